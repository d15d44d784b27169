"""Recorded solves equal called ones in bits; what cannot be recorded is called. On a pretended
device, with pretended graphs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.pretend import CUDA, Device, pretend
from tests.pretend_graph import PretendedRecorder
from trueode.fields import ConvField, DenseField, SequentialField
from trueode.solvers import (
    Adaptive,
    Adjoint,
    Checkpoint,
    FixedStep,
    OnGrid,
    Solution,
    Solver,
    get_tableau,
    solve,
)
from trueode.solvers.backends.gpu import graphs, recording
from trueode.solvers.backends.gpu.graphs import EQUAL, MOST, RECORDINGS, STALE
from trueode.solvers.backends.gpu.library import GRAPHS

FIELDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (lambda: DenseField(2, 8, act="tanh"), (5, 2)),
    "dense, time": (lambda: DenseField(2, 8, time_dependent=True), (5, 2)),
    "signal": (lambda: ConvField(1, 4, dim=1), (5, 1, 2)),
    "images": (lambda: ConvField(2, 3, dim=2), (2, 2, 6, 6)),
    "sequence": (lambda: SequentialField(nn.Linear(3, 3), nn.SiLU(), nn.Linear(3, 3)), (4, 3)),
}
EULER = FixedStep("euler", n_steps=3)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    monkeypatch.setattr(GRAPHS, "is_on", lambda: True)
    RECORDINGS.clear()
    with pretend() as found:
        yield found
    RECORDINGS.clear()


def both(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Two equal fields on the device."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(make().to(CUDA))
    return made[0], made[1]


def called(field: Any, z: Tensor, **how: Any) -> Solution[Any]:
    """The solve without recordings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRAPHS, "is_on", lambda: False)
        return solve(field, z, **how)


def state(shape: tuple[int, ...], seed: int, requires_grad: bool = False) -> Tensor:
    z = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    return z.to(CUDA).requires_grad_(requires_grad)


def equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def descend(field: nn.Module) -> None:
    with torch.no_grad():
        for p in field.parameters():
            p -= 0.01 * p.grad if p.grad is not None else 0
            p.grad = None


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(
    ("save_at", "of_state"), [(None, True), ([0.2, 0.5, 1.0], False), ([1.0, 0.0], True)]
)
def test_training_equals_that_of_called_fields_in_bits(
    device: Device, name: str, save_at: Any, of_state: bool
) -> None:
    """With weights that change, a solver that changes and a batch of another size."""
    make, shape = FIELDS[name]
    one, other = both(make)
    grid = OnGrid(get_tableau("midpoint"), (0.0, 0.3, 1.0))
    n = EQUAL + 2
    solvers: list[Solver] = [EULER] * (n + 1) + [FixedStep("rk4", n_steps=2)] * n + [grid] * n
    for i, solver in enumerate(solvers):
        size = (shape[0] - (i == n), *shape[1:])
        results = []
        for run, field in ((solve, one), (called, other)):
            z = state(size, i, of_state)
            found = run(field, z, solver=solver, save_at=save_at)
            loss = found.z.square().mean()
            if save_at is not None:
                loss = loss + (found.zs**3).mean()
            loss.backward()
            statistics = torch.tensor([found.nfe, found.n_steps, found.status == "success"])
            gradients = [p.grad for p in field.parameters()]
            results.append((statistics, found.grid, found.z, found.zs, z.grad, *gradients))
            descend(field)
        assert all(map(equal, *results)), i
    assert len(RECORDINGS) == 3


def test_a_recorded_solve_waits_for_nothing(device: Device) -> None:
    field = DenseField(2, 8, time_dependent=True).to(CUDA)
    for i in range(EQUAL + 3):
        z = state((5, 2), i)
        device.reset()
        solve(field, z, solver=EULER, save_at=[0.25, 1.0]).z.sum().backward()
    assert len(RECORDINGS) == 1
    assert not device.waits, str(device)


def recorded_field(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> nn.Module:
    """A field whose solves with Euler are recorded, with and without gradients of the state."""
    torch.manual_seed(0)
    field = make().to(CUDA)
    for i in range(EQUAL + 1):
        solve(field, state(shape, i, True), solver=EULER).z.sum().backward()
    field.zero_grad()
    assert len(RECORDINGS) == 1
    return field


def test_two_solves_before_their_gradients(device: Device) -> None:
    field = recorded_field(*FIELDS["dense"])
    z, y = state((5, 2), 8, True), state((5, 2), 9, True)
    first, second = (solve(field, x, solver=EULER).z for x in (z, y))
    found = torch.autograd.grad((first * second).sum(), [z, y, *field.parameters()])
    first, second = (called(field, x, solver=EULER).z for x in (z, y))
    wanted = torch.autograd.grad((first * second).sum(), [z, y, *field.parameters()])
    for one, other in zip(found, wanted, strict=True):  # summed in another order
        torch.testing.assert_close(one.inner, other.inner)  # type: ignore[attr-defined]


def test_gradients_after_another_solve(device: Device) -> None:
    field = recorded_field(*FIELDS["dense"])
    z = state((5, 2), 8, True)
    loss = solve(field, z, solver=EULER).z.square().sum()
    wanted = torch.autograd.grad(loss, [z, *field.parameters()], retain_graph=True)
    solve(field, state((5, 2), 9, True), solver=EULER)
    found = torch.autograd.grad(loss, [z, *field.parameters()])
    assert all(map(equal, found, wanted))


def test_gradients_of_gradients(device: Device) -> None:
    field = recorded_field(*FIELDS["dense"])
    results = []
    for run in (solve, called):
        z = state((5, 2), 8, True)
        (first,) = torch.autograd.grad(
            run(field, z, solver=EULER).z.square().sum(), z, create_graph=True
        )
        results.append(torch.autograd.grad(first.square().sum(), [z, *field.parameters()]))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.inner, other.inner)  # type: ignore[attr-defined]


def test_a_weight_that_changed_before_its_gradient_is_an_error(device: Device) -> None:
    field = recorded_field(*FIELDS["dense"])
    final = solve(field, state((5, 2), 8, True), solver=EULER).z
    with torch.no_grad():
        next(field.parameters()).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        final.sum().backward()


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(2, 2), 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(z)  # type: ignore[no-any-return]


class Branching(Counting):
    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        found: Tensor = self.layer(z)
        return found if bool(found.mean() > 0) else -found


class Given(Counting):
    """Depends on an object that may change unseen."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        self.given = given

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        known = self.given() if callable(self.given) else self.given
        return self.layer(z) * known  # type: ignore[no-any-return]


class Box:
    value = 2.0

    def __call__(self) -> float:
        return self.value


class Wrapped(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z)  # type: ignore[no-any-return]


def watched() -> nn.Module:
    field = Wrapped(nn.Linear(2, 2))
    field.net.register_forward_hook(lambda module, args, result: None)
    return field


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "random": lambda: Wrapped(nn.Linear(2, 2), nn.Dropout(0.5)),
    "state of its own": lambda: Wrapped(nn.BatchNorm1d(2), nn.Linear(2, 2)),
    "a counter": Counting,
    "a branch on values": Branching,
    "an object": lambda: Given(Box()),
    "a tensor of the host": lambda: Given(torch.tensor(2.0)),
    "a hook": watched,
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_cannot_be_repeated_is_called(device: Device, name: str) -> None:
    """Neither the attempt to record it nor its refusal leaves a trace."""
    one, other = both(OTHERS[name])
    results = []
    for run, field in ((solve, one), (called, other)):
        torch.manual_seed(1)
        found = [run(field, state((5, 2), i), solver=EULER).z for i in range(EQUAL + 3)]
        buffers = [x for x in field.buffers() if x.is_floating_point()]
        results.append((*found, torch.get_rng_state(), *buffers))
    assert all(map(equal, *results))
    assert not len(RECORDINGS)
    assert getattr(one, "calls", 0) == getattr(other, "calls", 0)


def test_a_tensor_from_elsewhere_gets_its_gradient(device: Device) -> None:
    factor = torch.ones((), requires_grad=True, device="cpu")

    class Field(Wrapped):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.net(z) * factor.to(CUDA)  # type: ignore[no-any-return]

    field = Field(nn.Linear(2, 2)).to(CUDA)
    for i in range(EQUAL + 3):
        factor.grad = None
        solve(field, state((5, 2), i), solver=EULER).z.sum().backward()
        assert factor.grad is not None
    assert not len(RECORDINGS)


@pytest.mark.parametrize(
    "how",
    [
        {"solver": Adaptive("bosh3", 1e-3, 1e-3)},
        {"solver": EULER, "gradient": Checkpoint()},
        {"solver": EULER, "gradient": Adjoint()},
        {"solver": EULER, "save_at": [[0.5]] * 5},
    ],
)
def test_other_solves_are_what_they_were(device: Device, how: dict[str, Any]) -> None:
    one, other = both(FIELDS["dense"][0])
    for i in range(EQUAL + 2):
        found, wanted = solve(one, state((5, 2), i), **how), called(other, state((5, 2), i), **how)
        assert torch.equal(found.z, wanted.z)
        assert equal(found.zs, wanted.zs)


def test_a_recording_with_other_bits_is_not_used(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(PretendedRecorder):
        def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
            return (lambda: None), work()

    monkeypatch.setattr(recording, "recorder_of", Wrong)
    field = FIELDS["dense"][0]().to(CUDA)
    for i in range(EQUAL + 3):
        z = state((5, 2), i)
        assert torch.equal(solve(field, z, solver=EULER).z, called(field, z, solver=EULER).z)
    assert not len(RECORDINGS)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_what_fails_while_it_is_recorded_is_called(
    device: Device, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    class Full(PretendedRecorder):
        def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
            raise error("there is no room")

    monkeypatch.setattr(recording, "recorder_of", Full)
    field = FIELDS["dense"][0]().to(CUDA)
    for i in range(EQUAL + 3):
        solve(field, state((5, 2), i), solver=EULER).z.sum().backward()
    assert not len(RECORDINGS)


def test_what_the_work_depends_on_makes_another_recording(device: Device) -> None:
    field = recorded_field(*FIELDS["dense"])
    with torch.autocast("cuda", torch.bfloat16):
        solve(field, state((5, 2), 0, True), solver=EULER)
    assert len(RECORDINGS) == 1
    field.eval()
    field.act = "relu"
    for i in range(EQUAL + 1):
        z = state((5, 2), i, True)
        assert torch.equal(solve(field, z, solver=EULER).z, called(field, z, solver=EULER).z)
        assert len(RECORDINGS) == 1 + (i == EQUAL)


def test_old_recordings_are_dropped(device: Device) -> None:
    field, z = recorded_field(*FIELDS["dense"]), state((5, 2), 0)
    for n in range(1, MOST + 3):
        for _ in range(EQUAL + 1):
            solve(field, z, solver=FixedStep("euler", n_steps=n))
        assert len(RECORDINGS) <= MOST
    for _ in range(STALE + EQUAL + 2):
        solve(field, z, solver=FixedStep("euler", n_steps=1))
    assert len(RECORDINGS) == 1
    del field
    gc.collect()
    solve(FIELDS["dense"][0]().to(CUDA), z, solver=EULER)
    assert not len(RECORDINGS)


def test_it_is_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, is_on in ((None, False), ("off", False), ("on", True)):
        monkeypatch.delenv(GRAPHS.variable, raising=False)
        if value:
            monkeypatch.setenv(GRAPHS.variable, value)
        assert type(GRAPHS)(GRAPHS.variable).is_on() == is_on
    monkeypatch.setenv(GRAPHS.variable, "yes")
    with pytest.warns(RuntimeWarning, match=GRAPHS.variable):
        assert not type(GRAPHS)(GRAPHS.variable).is_on()
    assert graphs.NAME
