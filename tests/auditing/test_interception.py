"""Blocks in which solves are noted or replaced, and solvers of ours in the place of others'."""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from trueode.auditing.interception import (
    Field,
    FoundSolver,
    Library,
    Problem,
    Solved,
    in_place,
    recorded,
    replaced,
)
from trueode.errors import UsageError
from trueode.solvers import Adaptive, FixedStep, OnGrid, solve

torchdiffeq = pytest.importorskip("torchdiffeq")

FOUND = FoundSolver("torchdiffeq", "euler", {"step_size": 0.125}, False, 1, "euler")
EULER = in_place(FixedStep("euler", n_steps=4))


def problem(field: Field, times: list[float], breaks: tuple[float, ...] = (), z0: Tensor | None = None) -> Problem:
    start = torch.ones(3, 2, dtype=torch.float64) if z0 is None else z0
    return Problem(field, start, torch.tensor(times, dtype=torch.float64), breaks, True, FOUND)


def decay(t: Tensor, z: Tensor) -> Tensor:
    return -z * torch.cos(t)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Linear(2, 2)
        self.t = torch.tensor([0.0, 1.0])

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = torchdiffeq.odeint(lambda t, z: self.field(z).tanh(), x, self.t, method="rk4")
        return states[-1]


def test_what_was_found_says_itself_and_is_plain() -> None:
    tight = FoundSolver("torchdyn", "dopri5", {"rtol": 0.1, "atol": 0.1}, True, 5, "dopri5")
    loose = FoundSolver("torchdiffeq", "dopri8", {"rtol": 1e-7, "atol": 1e-9}, True, 8, None)
    assert str(FOUND) == "torchdiffeq euler, h = 0.125"
    assert str(tight) == "torchdyn dopri5, tol = 0.1"
    assert str(loose) == "torchdiffeq dopri8, tol = 1e-07 (rel), 1e-09 (abs)"
    assert str(FoundSolver("torchdiffeq", "rk4", {}, False, 4, "rk4_38")) == "torchdiffeq rk4"
    assert json.loads(json.dumps(tight.settings)) == tight.settings
    assert len({FOUND, FoundSolver("torchdiffeq", "euler", {"step_size": 0.125}, False, 1, "euler")}) == 1


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4", "dopri5"])
def test_equal_steps_are_those_of_solve(method: str) -> None:
    posed = problem(decay, [0.0, 1.0])
    states, solved = in_place(FixedStep(method, n_steps=5))(posed)
    solution = solve(decay, posed.z0, (0.0, 1.0), solver=FixedStep(method, n_steps=5))
    assert torch.equal(states[0], posed.z0)
    torch.testing.assert_close(states[-1], solution.z, rtol=1e-14, atol=0)
    assert (solved.nfe, solved.n_steps, solved.n_rejected) == (solution.nfe, 5, 0)
    assert (solved.length, solved.status, solved.found) == (1.0, "success", FOUND)


@pytest.mark.parametrize(
    ("solver", "times", "steps"),
    [
        (FixedStep("euler", n_steps=10), torch.linspace(0, 1, 11).tolist(), 10),
        (FixedStep("euler", step_size=0.1), torch.linspace(0, 1, 11).tolist(), 10),
        (FixedStep("euler", n_steps=20), torch.linspace(0, 1, 11).tolist(), 20),
        (FixedStep("euler", n_steps=7), torch.linspace(0, 1, 11).tolist(), 10),
        (FixedStep("euler", n_steps=4), [0.0, 0.3, 1.0], 2 + 3),
        (FixedStep("euler", step_size=0.4), [2.0, 2.1, 3.0], 1 + 3),
        (FixedStep("euler", n_steps=3000), torch.linspace(5, 8, 1001).tolist(), 3000),
        (OnGrid("euler", (0.0, 0.25, 0.5, 1.0)), [0.0, 0.5, 0.75, 1.0], 4),
    ],
)
def test_steps_end_at_the_times_and_no_state_is_interpolated(
    solver: FixedStep | OnGrid, times: list[float], steps: int
) -> None:
    posed = problem(lambda t, z: torch.ones_like(z) * t, times)
    states, solved = in_place(solver)(posed)
    assert (solved.n_steps, solved.nfe) == (steps, steps)
    for i, end in enumerate(times[1:], 1):  # alone, up to each of the times, Euler comes to the same states
        alone, _ = in_place(solver if len(times) < 3 else OnGrid("euler", _ends(solver, times, end)))(
            problem(posed.field, [times[0], end])
        )
        torch.testing.assert_close(states[i], alone[-1], rtol=1e-12, atol=1e-12)
        if i > 20:
            break


def _ends(solver: FixedStep | OnGrid, times: list[float], end: float) -> tuple[float, ...]:
    """Fractions of the interval up to a time at which steps end, counted anew."""
    length = times[-1] - times[0]
    if isinstance(solver, OnGrid):
        points = {*times, *(times[0] + x * length for x in solver.grid if isinstance(x, float))}
    else:
        h = solver.step_size or length / (solver.n_steps or 1)
        points = {times[0]}
        for a, b in pairwise(times):
            n = max(1, math.ceil((b - a) / h - 1e-3))
            points |= {a + (b - a) * i / n for i in range(1, n)} | {b}
    inside = sorted(p for p in points if p <= end)
    return tuple((p - times[0]) / (end - times[0]) for p in inside)


def test_adaptive_solves_once_with_states_between() -> None:
    times = [0.0, 0.1, 0.7, 2.0]
    states, solved = in_place(Adaptive("dopri5", 1e-10, 1e-10, per_sample=True))(problem(decay, times))
    exact = torch.tensor(times, dtype=torch.float64).sin().neg().exp()
    torch.testing.assert_close(states, exact.view(-1, 1, 1).expand(-1, 3, 2), rtol=1e-8, atol=1e-8)
    alone = solve(
        decay, torch.ones(3, 2, dtype=torch.float64), (0.0, 2.0), solver=Adaptive("dopri5", 1e-10, 1e-10), save_at=times
    )
    assert (solved.n_steps, solved.n_rejected, solved.nfe) == (alone.n_steps, alone.n_rejected, alone.nfe)


@pytest.mark.parametrize(
    "solver",
    [
        FixedStep("rk4", n_steps=8),
        FixedStep("bosh3", n_steps=40),
        Adaptive("dopri5", 1e-9, 1e-9),
        Adaptive("tsit5", 1e-9, 1e-9),
    ],
)
@pytest.mark.parametrize("right", [True, False], ids=["t >= 0.3 jumps", "t > 0.3 jumps"])
def test_steps_end_at_breaks_and_see_one_side_of_the_jump(solver: FixedStep | Adaptive, right: bool) -> None:
    def jumping(t: Tensor, z: Tensor) -> Tensor:
        after = t >= 0.3 if right else t > 0.3
        return torch.where(after, -3.0, 1.0) * torch.ones_like(z)

    states, solved = in_place(solver)(problem(jumping, [0.0, 0.3, 0.5, 1.0], breaks=(0.3, 5.0)))
    wanted = torch.tensor([1.0, 1.3, 0.7, -0.8], dtype=torch.float64).view(-1, 1, 1).expand(-1, 3, 2)
    torch.testing.assert_close(states, wanted, rtol=1e-12, atol=1e-12)
    assert solved.n_rejected == 0


def test_a_break_between_times_is_no_state() -> None:
    states, solved = in_place(FixedStep("euler", n_steps=2))(problem(decay, [0.0, 1.0], breaks=(0.25,)))
    assert states.shape == (2, 3, 2)
    assert solved.n_steps == 1 + 2


@pytest.mark.parametrize("solver", [FixedStep("euler", n_steps=3), Adaptive("dopri5", 1e-3, 1e-3)])
def test_intervals_without_length(solver: FixedStep | Adaptive) -> None:
    for times in ([2.0], [2.0, 2.0]):
        states, solved = in_place(solver)(problem(decay, times))
        assert torch.equal(states, torch.ones(len(times), 3, 2, dtype=torch.float64))
        assert (solved.nfe, solved.n_steps, solved.length) == (0, 0, 0.0)


def test_failures_are_noted_and_states_are_nan_from_there() -> None:
    def exploding(t: Tensor, z: Tensor) -> Tensor:
        return z**2

    times = [0.0, 0.5, 2.0]
    states, solved = in_place(Adaptive("dopri5", 1e-6, 1e-6, max_steps=60))(problem(exploding, times))
    assert solved.status in ("max_steps", "step_underflow", "non_finite")
    assert solved.message
    assert states[:2].isfinite().all()
    torch.testing.assert_close(states[1], torch.full((3, 2), 2.0, dtype=torch.float64), rtol=1e-5, atol=0)
    assert states[2].isnan().all()
    states, solved = in_place(FixedStep("euler", n_steps=50, max_steps=20))(problem(decay, times))
    assert solved.status == "max_steps"
    assert states[1:].isnan().all()
    assert solved.nfe == 0
    after = problem(lambda t, z: torch.where(t > 0.7, math.nan, 1.0) * z, times, breaks=(1.0, 1.5))
    states, solved = in_place(FixedStep("euler", n_steps=20))(after)
    assert solved.status == "non_finite"
    assert states.shape == (3, 3, 2)
    assert states[2].isnan().all()


def test_what_cannot_stand_in_is_refused() -> None:
    with pytest.raises(UsageError, match="grid for each sample"):
        in_place(OnGrid("euler", ((0.0, 0.0), (1.0, 1.0))))
    with pytest.raises(UsageError, match="complex"):
        EULER(problem(decay, [0.0, 1.0], z0=torch.ones(3, 2, dtype=torch.complex64)))


def test_blocks_are_not_nested_and_leave_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert registry["euler"] is own  # what others put there meanwhile is theirs
    registry["euler"] = kept  # a hook that was kept does nothing more
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
def test_unknown_versions_are_refused(kind: str, block: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    registry = _registry()
    before = dict(registry)
    with monkeypatch.context() as patch:
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
            pytest.raises(UsageError, match=r"torchdiffeq 0\.2\.\d+ is not supported by this version of trueode"),
            block(),
        ):  # type: ignore[attr-defined]
            pass
    assert _same(before, registry)
    with recorded():
        pass


def _raising(*_: object, **__: object) -> Tensor:
    raise KeyError("odd")


def test_libraries_that_are_not_loaded_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    absent = Library("absent", "absent_library", never, never)  # type: ignore[arg-type]
    monkeypatch.setattr("trueode.auditing.libraries.LIBRARIES", (absent,))
    with recorded() as solves:
        Model()(torch.ones(1, 2))
    assert not solves
    with pytest.raises(UsageError, match="absent was imported while the model ran"), recorded():
        monkeypatch.setitem(sys.modules, "absent_library", object())


def test_replacements_must_give_all_states() -> None:
    def short(posed: Problem) -> tuple[Tensor, Solved]:
        return posed.z0[None], Solved(posed.found, 0, 0, 0, 1.0)

    with replaced(short), pytest.raises(UsageError, match=r"shape \(1, 4, 2\); needed is \(2, 4, 2\)"):
        Model()(torch.ones(4, 2))


def test_compiled_models_run_as_written() -> None:
    model, x = Model(), torch.randn(4, 2)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        own = compiled(x)
        with replaced(in_place(FixedStep("rk4_38", n_steps=1))) as solves:
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
