"""Models that solve by torchode, written as its README does."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueode.auditing.interception import recorded, replaced
from trueode.auditing.problem import ForeignProblem, Solved
from trueode.auditing.replacement import replace_by
from trueode.errors import UsageError
from trueode.solvers import Adaptive, FixedStep

to = pytest.importorskip("torchode")

TIGHT = replace_by(Adaptive("dopri5", 1e-10, 1e-10, per_sample=True))


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        assert t.shape == y.shape[:-1]
        derivative: Tensor = self.net(torch.cat([y, t[..., None]], -1))
        return derivative


@pytest.fixture
def field() -> Field:
    return Field()


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 2, dtype=torch.float64)


def fixed(field: Any, method: str = "Euler") -> Any:
    term = to.ODETerm(field)
    return to.AutoDiffAdjoint(getattr(to, method)(term=term), to.FixedStepController())


def adaptive(field: Any, method: str = "Tsit5", tolerance: float = 1e-10, **options: Any) -> Any:
    term = to.ODETerm(field, **options)
    return to.AutoDiffAdjoint(
        getattr(to, method)(term=term),
        to.IntegralController(atol=tolerance, rtol=tolerance, term=term),
    )


def shared(*times: float) -> Tensor:
    return torch.tensor(times, dtype=torch.float64).expand(3, -1)


OWN_TIMES = torch.stack(
    [torch.linspace(a, b, 5, dtype=torch.float64) for a, b in ((0, 1), (2, 4), (1, 0.5))]
)
IRREGULAR = torch.tensor([[0, 0.3, 1], [2, 3.5, 4], [1, 0.6, 0.5]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("method", "ours"),
    [("Euler", "euler"), ("Heun", "heun2"), ("Dopri5", "dopri5"), ("Tsit5", "tsit5")],
)
@pytest.mark.parametrize(
    "t_eval", [shared(0, 0.5, 1), shared(1, 0.25, 0), None], ids=["ascending", "decreasing", "end"]
)
def test_fixed_steps_equal_the_librarys(
    field: Field, x: Tensor, method: str, ours: str, t_eval: Tensor | None
) -> None:
    solver = fixed(field, method)
    down = t_eval is not None and bool(t_eval[0, 0] > 0)
    start, end = (torch.ones(3), torch.zeros(3)) if down else (torch.zeros(3), torch.ones(3))
    problem = to.InitialValueProblem(x, start.double(), end.double(), t_eval)
    dt0 = torch.full((3,), -0.125 if down else 0.125, dtype=torch.float64)
    own = solver.solve(problem, dt0=dt0)
    with replaced(replace_by(FixedStep(ours, step_size=0.125))) as solves:
        swapped = solver.solve(problem, dt0=dt0)
    torch.testing.assert_close(swapped.ys, own.ys, rtol=1e-12, atol=1e-12)
    assert torch.equal(swapped.ts, own.ts)
    assert torch.equal(swapped.status, own.status)
    for name in ("n_steps", "n_accepted", "n_initialized"):
        assert torch.equal(swapped.stats[name], own.stats[name]), name
    with recorded() as noted:
        assert torch.equal(solver.solve(problem, dt0=dt0).ys, own.ys)
    (swap,), (note,) = solves, noted
    assert (swap.found, swap.n_steps, swap.length) == (note.found, 8, 1.0)
    assert (note.nfe, note.n_steps, note.n_rejected) == (float(own.stats["n_f_evals"][0]), 8, 0)
    assert (note.length, note.found.name, note.found.adaptive) == (1.0, ours, False)
    assert str(note.found) == f"torchode {method}, h = 0.125"


def test_each_sample_has_its_own_times(field: Field, x: Tensor) -> None:
    lengths = OWN_TIMES[:, -1] - OWN_TIMES[:, 0]
    solver = fixed(field)
    own = solver.solve(to.InitialValueProblem(x, t_eval=OWN_TIMES), dt0=lengths / 8)
    with replaced(replace_by(FixedStep("euler", n_steps=8))) as solves:
        swapped = solver.solve(to.InitialValueProblem(x, t_eval=OWN_TIMES), dt0=lengths / 8)
    torch.testing.assert_close(swapped.ys, own.ys, rtol=1e-12, atol=1e-12)
    assert solves[0].n_steps == 8
    assert solves[0].length == pytest.approx(float(lengths.abs().mean()))


def test_times_rounded_to_single_precision_are_no_further_steps() -> None:
    t_eval = torch.stack([torch.linspace(0, 5, 10), torch.linspace(3, 4, 10)])
    x, solver = torch.tensor([[1.2], [5.0]]), adaptive(lambda t, y: -0.5 * y, tolerance=1e-5)
    with replaced(replace_by(FixedStep("euler", n_steps=9))) as solves:
        solver.solve(to.InitialValueProblem(x, t_eval=t_eval))
    assert solves[0].n_steps == 9
    with replaced(replace_by(FixedStep("rk4", n_steps=36))):
        swapped = solver.solve(to.InitialValueProblem(x, t_eval=t_eval))
    exact = x[:, None] * torch.exp(-0.5 * (t_eval - t_eval[:, :1]))[..., None]
    torch.testing.assert_close(swapped.ys, exact, rtol=1e-4, atol=0)
    assert torch.equal(swapped.ys[:, 0], x)


@pytest.mark.parametrize(
    "t_eval", [shared(0, 0.1, 1), OWN_TIMES, IRREGULAR], ids=["shared", "own", "irregular"]
)
@pytest.mark.parametrize("method", ["Dopri5", "Tsit5"])
def test_tight_solves_agree(field: Field, x: Tensor, method: str, t_eval: Tensor) -> None:
    solver = adaptive(field, method)
    own = solver.solve(to.InitialValueProblem(x, t_eval=t_eval))
    for stand_in in (TIGHT, replace_by(FixedStep("rk4", n_steps=64))):
        with replaced(stand_in):
            swapped = solver.solve(to.InitialValueProblem(x, t_eval=t_eval))
        torch.testing.assert_close(swapped.ys, own.ys, rtol=0, atol=1e-6)
    assert torch.equal(swapped.ts, t_eval)


@pytest.mark.parametrize(
    "ends", [((1.0, 1.0, 1.0), (3.0, 3.0, 3.0)), ((0.0, 1.0, 2.0), (1.0, 4.0, 5.0))]
)
def test_rows_may_have_times_of_their_own(field: Field, x: Tensor, ends: Any) -> None:
    """The field at each row's time equals the library's term, as the witness needs it."""
    starts, stops = (torch.tensor(each, dtype=torch.float64) for each in ends)
    asked: list[Tensor] = []

    def solve(problem: ForeignProblem) -> tuple[Tensor, Solved]:
        start, end = float(problem.times[0]), float(problem.times[-1])
        fractions = torch.tensor([[0.1], [0.5], [0.8]], dtype=torch.float64)
        asked.append(problem.field(start + fractions * (end - start), x))
        return replace_by(FixedStep("rk4", n_steps=4))(problem)

    with replaced(solve):
        fixed(field).solve(
            to.InitialValueProblem(y0=x, t_start=starts, t_end=stops), dt0=stops - starts
        )
    lengths = stops - starts
    times = starts + torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64) * lengths
    expected = (
        field(times, x)
        * (lengths / lengths.mean() if len(set(ends[0])) > 1 else torch.ones(3))[:, None]
    )
    torch.testing.assert_close(asked[0], expected)


def test_the_interval_may_be_longer_than_the_times(field: Field, x: Tensor) -> None:
    start, end = torch.zeros(3).double(), torch.full((3,), 2.0).double()
    problem = to.InitialValueProblem(x, start, end, shared(0.5, 1.0))
    own = adaptive(field).solve(problem)
    with replaced(TIGHT) as solves:
        swapped = adaptive(field).solve(problem)
    torch.testing.assert_close(swapped.ys, own.ys, rtol=0, atol=1e-6)
    assert solves[0].length == 2.0
    with replaced(TIGHT), pytest.raises(UsageError, match="outside"):
        adaptive(field).solve(to.InitialValueProblem(x, start, end, shared(0.5, 3.0)))


def test_samples_may_have_no_interval(x: Tensor, field: Field) -> None:
    start, end = torch.zeros(3).double(), torch.tensor([1.0, 0.0, 2.0]).double()
    with replaced(TIGHT):
        swapped = adaptive(field).solve(to.InitialValueProblem(x, start, end))
    torch.testing.assert_close(swapped.ys[1, 0], x[1])
    with replaced(TIGHT) as solves:
        swapped = adaptive(field).solve(to.InitialValueProblem(x, start, start))
    assert torch.equal(swapped.ys[:, 0], x)
    assert solves[0].nfe == 0


def test_functions_and_arguments(x: Tensor) -> None:
    def f(t: Tensor, y: Tensor, args: Tensor) -> Tensor:
        return -args * y

    own = to.solve_ivp(f, x, torch.linspace(0, 1, 3).double(), args=torch.tensor(2.0))
    with replaced(TIGHT):
        swapped = to.solve_ivp(f, x, torch.linspace(0, 1, 3).double(), args=torch.tensor(2.0))
    torch.testing.assert_close(swapped.ys, own.ys, rtol=0, atol=1e-6)


@pytest.mark.parametrize("with_stats", [True, False])
def test_the_librarys_own_statistics(x: Tensor, with_stats: bool) -> None:
    calls = 0

    def stiff(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return -30 * (y - torch.cos(9 * t)[:, None])

    solver = adaptive(stiff, tolerance=1e-4, with_stats=with_stats)
    vf = solver.step_method.term.vf
    with recorded() as solves:
        stats = solver.solve(to.InitialValueProblem(x, t_eval=shared(0, 1, 3))).stats
    (solved,) = solves
    assert solved.nfe == calls
    assert solved.n_steps == pytest.approx(float(stats["n_accepted"].double().mean()))
    assert solved.n_steps + solved.n_rejected == pytest.approx(
        float(stats["n_steps"].double().mean())
    )
    assert solver.step_method.term.vf == vf
    assert ("n_f_evals" in stats) == with_stats
    with replaced(TIGHT) as solves:
        replaced_stats = solver.solve(to.InitialValueProblem(x, t_eval=shared(0, 1, 3))).stats
    assert set(replaced_stats) == set(stats)
    if with_stats:
        assert set(replaced_stats["n_f_evals"].tolist()) == {solves[0].nfe}


def test_failures_of_the_library_are_noted(x: Tensor) -> None:
    term = to.ODETerm(lambda t, y: -30 * y)
    controller = to.IntegralController(atol=1e-8, rtol=1e-8, term=term)
    solver = to.AutoDiffAdjoint(to.Dopri5(term), controller, max_steps=3)
    with recorded() as solves:
        solver.solve(to.InitialValueProblem(x, t_eval=shared(0, 1)))
    assert solves[0].status == "max_steps"
    assert "REACHED_MAX_STEPS for 3 of 3" in solves[0].message
    assert solves[0].found.settings["max_steps"] == 3
    with recorded() as solves:
        adaptive(lambda t, y: y * float("nan")).solve(
            to.InitialValueProblem(x, t_eval=shared(0, 1))
        )
    assert solves[0].status == "non_finite"


def test_failures_of_the_stand_in_are_nan_with_the_librarys_success(x: Tensor) -> None:
    with replaced(replace_by(FixedStep("euler", n_steps=9, max_steps=2))) as solves:
        solution = adaptive(lambda t, y: -y).solve(to.InitialValueProblem(x, t_eval=shared(0, 1)))
    assert solves[0].status == "max_steps"
    assert torch.equal(solution.ys[:, 0], x)
    assert solution.ys[:, 1].isnan().all()
    assert (solution.status == to.Status.SUCCESS.value).all()


def test_what_is_found(x: Tensor, field: Field) -> None:
    def found(solver: Any, **options: Any) -> Any:
        with recorded() as solves:
            solver.solve(to.InitialValueProblem(x, t_eval=shared(0, 0.5, 1)), **options)
        json.dumps(solves[0].found.settings)
        return solves[0].found

    tight = found(adaptive(field, "Tsit5", 1e-4))
    assert str(tight) == "torchode Tsit5, tol = 0.0001"
    assert (tight.adaptive, tight.order, tight.name, tight.settings["n_times"]) == (
        True,
        5,
        "tsit5",
        3,
    )
    assert found(adaptive(field, "Heun", 1e-3)).name is None  # our Heun has no error estimate
    started = found(adaptive(field, "Dopri5", 1e-3), dt0=torch.full((3,), 0.1).double())
    assert started.settings["dt0"] == pytest.approx(0.1)
    assert not found(adaptive(field, "Euler", 1e-3), dt0=torch.full((3,), 0.1).double()).adaptive


def test_methods_bound_earlier_and_compiled_solvers(field: Field, x: Tensor) -> None:
    solver = adaptive(field)
    bound, compiled = solver.solve, torch.compile(solver, backend="eager")
    problem = to.InitialValueProblem(x, t_eval=shared(0, 1))
    for call in (bound, compiled.solve):
        with replaced(replace_by(FixedStep("euler", n_steps=1))) as solves:
            swapped = call(problem)
        assert len(solves) == 1
        torch.testing.assert_close(
            swapped.ys[:, 1], x + field(torch.zeros(3, dtype=torch.float64), x)
        )


def test_restored_after_success_and_after_exceptions(field: Field, x: Tensor) -> None:
    function = to.AutoDiffAdjoint.solve
    code, solver, problem = (
        function.__code__,
        adaptive(field),
        to.InitialValueProblem(x, t_eval=shared(0, 1)),
    )
    own = solver.solve(problem)
    with replaced(TIGHT):
        assert function.__code__ is not code
        solver.solve(problem)
    assert function.__code__ is code
    with pytest.raises(RuntimeError, match="mine"), recorded():
        raise RuntimeError("mine")
    assert to.AutoDiffAdjoint.solve is function
    assert function.__code__ is code
    assert torch.equal(solver.solve(problem).ys, own.ys)


def test_other_threads_are_left_alone(field: Field, x: Tensor) -> None:
    solver, problem = adaptive(field), to.InitialValueProblem(x, t_eval=shared(0, 1))
    own, elsewhere = solver.solve(problem).ys, list[Tensor]()
    with replaced(replace_by(FixedStep("euler", n_steps=1))) as solves:
        thread = threading.Thread(target=lambda: elsewhere.append(solver.solve(problem).ys))
        thread.start()
        thread.join()
    assert not solves
    assert torch.equal(elsewhere[0], own)


@pytest.mark.parametrize("kind", ["AutoDiffAdjoint", "BacksolveAdjoint", "JointBacksolveAdjoint"])
def test_gradients_after_the_block_are_the_librarys(field: Field, x: Tensor, kind: str) -> None:
    term = to.ODETerm(field)
    parts = to.Tsit5(term), to.IntegralController(atol=1e-6, rtol=1e-6)
    solver = (
        to.AutoDiffAdjoint(*parts) if kind == "AutoDiffAdjoint" else getattr(to, kind)(term, *parts)
    )
    given = {"term": term} if kind == "AutoDiffAdjoint" else {}
    problem = to.InitialValueProblem(x, t_eval=shared(0, 0.5, 1))

    def gradient() -> Tensor:
        field.zero_grad()
        solver.solve(problem, **given).ys[:, -1].square().sum().backward()
        grad = field.net[0].weight.grad
        assert isinstance(grad, Tensor)
        return grad.clone()

    own, seen = gradient(), list[ForeignProblem]()

    def look(posed: ForeignProblem) -> tuple[Tensor, Solved]:
        seen.append(posed)
        return TIGHT(posed)

    states = solver.solve(problem, **given).ys
    with replaced(look):
        torch.testing.assert_close(solver.solve(problem, **given).ys, states, rtol=0, atol=1e-4)
    assert seen[0].samples == (kind != "JointBacksolveAdjoint")
    assert torch.equal(gradient(), own)


def test_times_are_wider_than_states_where_the_library_has_them_so() -> None:
    seen = list[torch.dtype]()

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.append(t.dtype)
        return -y

    wide = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    for t_eval, y0, dtype in (
        (wide, torch.ones(1, 1), torch.float64),
        (wide.float(), torch.ones(1, 1), torch.float32),
    ):
        seen.clear()
        with replaced(replace_by(FixedStep("rk4", n_steps=2))):
            ys = adaptive(f).solve(to.InitialValueProblem(y0, t_eval=t_eval)).ys
        assert (set(seen), ys.dtype) == ({dtype}, torch.float32)


def test_unseen_solves_are_an_unknown_version(monkeypatch: pytest.MonkeyPatch) -> None:
    function = to.AutoDiffAdjoint.solve
    with monkeypatch.context() as patch:
        patch.setattr(
            to.AutoDiffAdjoint,
            "solve",
            lambda self, problem, **_: function(self, problem, dt0=problem.t_end),
        )
        with pytest.raises(UsageError, match=r"torchode 1\.\S+ is not supported"), replaced(TIGHT):
            pass
    assert to.AutoDiffAdjoint.solve is function
    with recorded():
        pass
