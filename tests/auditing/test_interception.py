"""Blocks that record or replace solves."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from trueode.auditing import interception
from trueode.auditing.interception import recorded, replaced
from trueode.auditing.problem import ForeignProblem, Solved
from trueode.auditing.replacement import replace_by
from trueode.auditing.session import Library
from trueode.errors import UsageError
from trueode.solvers import FixedStep

torchdiffeq = pytest.importorskip("torchdiffeq")

EULER = replace_by(FixedStep("euler", n_steps=4))


def decay(t: Tensor, z: Tensor) -> Tensor:
    return -z * torch.cos(t)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Linear(2, 2)
        self.t = torch.tensor([0.0, 1.0])

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = torchdiffeq.odeint(
            lambda t, z: self.field(z).tanh(), x, self.t, method="rk4"
        )
        return states[-1]


def test_blocks_are_not_nested_and_leave_everything_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = _registry()
    before = dict(registry)
    for outer, inner in ((recorded, _replacing), (_replacing, recorded)):
        with outer(), pytest.raises(UsageError, match="nested"), inner():
            pass
        assert _same(before, registry)
    with replaced(EULER):
        assert not any(registry[name] is before[name] for name in before)
    with pytest.raises(RuntimeError, match="mine"), replaced(EULER):
        raise RuntimeError("mine")
    assert _same(before, registry)
    with replaced(EULER):  # and can be opened again
        pass
    own = object()
    monkeypatch.setitem(registry, "euler", registry["euler"])  # put back after the test
    with recorded() as solves:
        kept = registry["euler"]
        registry["euler"] = own
    assert registry["euler"] is own  # entries changed by others meanwhile stay
    registry["euler"] = kept  # a hook is inactive after its block
    torchdiffeq.odeint(decay, torch.ones(1, 1), torch.tensor([0.0, 1.0]), method="euler")
    assert not solves


def _registry() -> dict[str, object]:
    registry: dict[str, object] = sys.modules["torchdiffeq._impl.odeint"].SOLVERS
    return registry


def _same(before: dict[str, object], registry: dict[str, object]) -> bool:
    return list(before) == list(registry) and all(registry[name] is before[name] for name in before)


def _replacing() -> object:
    return replaced(EULER)


def test_other_threads_are_left_alone() -> None:
    model, x = Model(), torch.randn(4, 2)
    own, results = model(x), dict[str, Tensor | Exception]()

    def elsewhere() -> None:
        with torch.no_grad():
            results["solved"] = model(x)
        try:
            with recorded():
                pass
        except UsageError as refusal:
            results["refused"] = refusal

    for block in (replaced(EULER), recorded()):
        with block as solves:
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            assert not solves
            model(x)
            assert len(solves) == 1
        assert torch.equal(results["solved"], own)
        assert "Another thread" in str(results["refused"])


def test_the_probe_leaves_no_traces() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(5)
    torch.manual_seed(3)
    with recorded() as solves:
        assert not solves
    with replaced(EULER) as solves:
        assert not solves
    assert torch.equal(torch.rand(5), wanted)


@pytest.mark.parametrize("kind", ["unseen", "wrong", "moved", "raising"])
@pytest.mark.parametrize("block", [recorded, _replacing])
def test_unknown_versions_are_refused(
    kind: str, block: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = _registry()
    before = dict(registry)
    with monkeypatch.context() as patch:
        patch.setattr(interception, "_tested", set())
        original = torchdiffeq.odeint
        if kind == "unseen":
            patch.setattr(torchdiffeq, "odeint", lambda f, z, t, method: torch.stack([z, 0 * z]))
        elif kind == "wrong":
            patch.setattr(torchdiffeq, "odeint", lambda *a, **k: 0.9 + original(*a, **k))
        elif kind == "moved":
            patch.delattr(sys.modules["torchdiffeq._impl.odeint"], "SOLVERS")
        else:
            patch.setattr(torchdiffeq, "odeint", _raising)
        with (
            pytest.raises(
                UsageError,
                match=r"torchdiffeq 0\.2\.\d+ is not supported by this version of trueode",
            ),
            block(),
        ):
            pass
    assert _same(before, registry)
    with recorded():
        pass


def _raising(*_: object, **__: object) -> Tensor:
    raise KeyError("odd")


def test_libraries_that_are_not_loaded_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    absent = Library("absent", "absent_library", never, never)
    monkeypatch.setattr("trueode.auditing.interception.LIBRARIES", (absent,))
    with recorded() as solves:
        Model()(torch.ones(1, 2))
    assert not solves

    def import_late(fails: bool) -> None:
        monkeypatch.setitem(sys.modules, "absent_library", object())
        if fails:
            raise UsageError("no solve was seen")

    for fails in (False, True):
        monkeypatch.delitem(sys.modules, "absent_library", raising=False)
        with pytest.raises(UsageError, match="absent was imported while the model ran"), recorded():
            import_late(fails)


def test_replacements_must_give_all_states() -> None:
    def short(posed: ForeignProblem) -> tuple[Tensor, Solved]:
        return posed.z0[None], Solved(posed.found, 0, 0, 0, 1.0)

    with (
        replaced(short),
        pytest.raises(UsageError, match=r"shape \(1, 4, 2\); needed is \(2, 4, 2\)"),
    ):
        Model()(torch.ones(4, 2))


def test_compiled_models_run_as_written() -> None:
    model, x = Model(), torch.randn(4, 2)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        own = compiled(x)
        with replaced(replace_by(FixedStep("rk4_38", n_steps=1))) as solves:
            torch.testing.assert_close(compiled(x), own)
        assert len(solves) == 1
        with recorded() as solves:
            compiled(x)
        assert [solve.nfe for solve in solves] == [4]
        with replaced(EULER):
            assert not torch.equal(compiled(x), own)
        assert torch.equal(compiled(x), own)
    import torch._dynamo.eval_frame as frame

    assert frame._stance.stance == "default"


def test_the_final_state_is_noted() -> None:
    model, x = Model(), torch.randn(4, 2)
    for block in (recorded(), replaced(EULER)):
        with block as solves:
            output = model(x)
        assert solves[0].final is not None
        assert torch.equal(solves[0].final, output)
        assert not solves[0].final.requires_grad
