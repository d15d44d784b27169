from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.solvers.recognition.fields import LAYERS, OTHERS, Given
from trueode import UsageError
from trueode.fields import SequentialField, explain, recognise
from trueode.solvers import FixedStep, solve
from trueode.solvers.recognition import recogniser

SOLVER = FixedStep("rk4", n_steps=3)
BESIDE = ("counter", "counter in a buffer", "log", "log in a global list", "special method")
MODULES = [given for given in LAYERS if isinstance(given.make(), nn.Module)]


@pytest.fixture(autouse=True)
def _fields_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recogniser, "TRIED", 10**9)


def by_name(name: str) -> Any:
    return next(given.make() for given in OTHERS if given.name == name)


@pytest.mark.parametrize("given", MODULES, ids=lambda given: given.name)
def test_layers_are_found_without_a_state(given: Given) -> None:
    field, z = given.make(), torch.randn(3, *given.shape)
    has_layers = any(isinstance(each, nn.Linear | nn.Conv1d) for each in field.modules())
    fast = recognise(field, None if has_layers else z)
    stack = fast.layer_stack(z.shape)
    assert stack is not None
    torch.testing.assert_close(solve(fast, z, solver=SOLVER).z, solve(field, z, solver=SOLVER).z)
    assert list(fast.parameters()) == list(field.parameters())


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_done_beside_the_layers_is_not_done(name: str) -> None:
    torch.manual_seed(0)
    field, z = by_name(name), torch.randn(3, 2)
    fast = recognise(field)
    assert fast.layer_stack(z.shape) is not None
    before = copy.deepcopy(vars(field)), {k: v.clone() for k, v in field.named_buffers()}
    found = [solve(fast, z, solver=SOLVER).z for _ in range(3)]
    assert all(torch.equal(x, found[0]) for x in found)
    assert {k: v for k, v in before[0].items() if isinstance(v, (int, list))} == {
        k: v for k, v in vars(field).items() if isinstance(v, (int, list))
    }
    torch.testing.assert_close(found[0], solve(lambda t, y: field(t, y), z, solver=SOLVER).z)


@pytest.mark.parametrize(
    "given", [g for g in OTHERS if g.name not in (*BESIDE, "print")], ids=lambda given: given.name
)
@pytest.mark.filterwarnings("ignore:.*")
def test_other_fields_are_refused(given: Given) -> None:
    with pytest.raises(UsageError):
        recognise(given.make(), torch.randn(4, *given.shape))


def test_a_scale_that_changes_at_each_call_is_refused() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            self.calls += 1
            return self.net(y) * self.calls  # type: ignore[no-any-return]

    with pytest.raises(UsageError):
        recognise(Growing())


def test_a_change_is_seen() -> None:
    field = by_name("counter")
    fast, z = recognise(field), torch.randn(3, 2)
    for change in (
        lambda: setattr(field, "net", nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2))),
        lambda: field.net.append(nn.Softsign()),
        lambda: field.net.register_forward_hook(lambda module, args, result: 2 * result),
    ):
        change()
        expected = solve(lambda t, y: field(t, y), z, solver=SOLVER).z
        torch.testing.assert_close(solve(fast, z, solver=SOLVER).z, expected)


def test_copies_have_their_own_parameters() -> None:
    fast, z = recognise(by_name("counter")), torch.randn(3, 2)
    expected = solve(fast, z, solver=SOLVER).z
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    for other in (copy.deepcopy(fast), torch.load(file, weights_only=False)):
        torch.testing.assert_close(solve(other, z, solver=SOLVER).z, expected)
        with torch.no_grad():
            other.field.net[0].weight.zero_()
        assert not torch.allclose(solve(other, z, solver=SOLVER).z, expected)
    torch.testing.assert_close(solve(fast, z, solver=SOLVER).z, expected)


def test_a_function_is_refused() -> None:
    with pytest.raises(UsageError):
        recognise(lambda t, y: -y)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        recognise(nn.Identity())


def test_explain_names_what_computes_a_field() -> None:
    z = torch.randn(3, 2)
    layers, counting = LAYERS[0].make(), by_name("counter")
    assert explain(layers, z) == explain(SequentialField(*layers.net), z)
    assert "nfe" in explain(counting, z)
    assert explain(recognise(counting), z) == explain(layers, z)
    assert explain(by_name("sine of the time"), z) != explain(layers, z)
