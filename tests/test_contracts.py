"""Properties of every method and every gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from tests.problems import PROBLEMS, Problem, TanhField, states
from trueode.catalog import METHODS
from trueode.solvers import (
    Adaptive,
    Adjoint,
    Backprop,
    Checkpoint,
    FixedStep,
    Solution,
    Solver,
    get_tableau,
    solve,
)

EMBEDDED = [name for name, method in METHODS.items() if method.kind == "adaptive"]
FIXED = [name for name in METHODS if name not in EMBEDDED]
# largest error per tolerance on these problems; Fehlberg's pair underestimates its error most
SPREAD = {
    "adaptive_heun": 100,
    "fehlberg2": 1000,
    "bosh3": 100,
    "dopri5": 100,
    "tsit5": 100,
    "dopri8": 100,
}
DISCRETE = [Backprop(), Checkpoint()]


def error(problem: Problem, solver: Solver) -> float:
    solution = solve(problem.field, problem.start, problem.t, solver=solver)
    return float((solution.z - problem.exact(problem.t[1])).abs().max())


def slope(steps: list[int], errors: list[float]) -> float:
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
@pytest.mark.parametrize("method", METHODS)
def test_order_of_convergence(method: str, problem: Problem) -> None:
    order = METHODS[method].order  # rounding hides a high order after few steps
    steps = [40, 80, 160, 320] if order < 5 else [8, 16, 32] if order < 8 else [2, 4, 8]
    errors = [error(problem, FixedStep(method, n_steps=n)) for n in steps]
    assert slope(steps, errors) > METHODS[method].order - 0.25


@pytest.mark.parametrize("method", FIXED)
def test_order_is_not_higher_than_stated(method: str) -> None:
    steps = [40, 80, 160]
    errors = [error(PROBLEMS[1], FixedStep(method, n_steps=n)) for n in steps]
    assert slope(steps, errors) < METHODS[method].order + 0.5


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
@pytest.mark.parametrize("method", EMBEDDED)
def test_adaptive_agrees_with_scipy_within_100_tol(
    method: str, problem: Problem, per_sample: bool
) -> None:
    # Fehlberg's pair estimates its error as (k1 - k3) h / 512, which leads to long steps and large
    # errors
    tol, share = (1e-5, 0.2) if method == "fehlberg2" else (1e-7, 1.0)
    shape, (start, end) = problem.start.shape, problem.t
    interval = start, start + share * (end - start)

    def flat(t: float, z: np.ndarray) -> np.ndarray:
        return problem.field(torch.tensor(t), torch.from_numpy(z).view(shape)).reshape(-1).numpy()

    oracle = solve_ivp(flat, interval, problem.start.reshape(-1).numpy(), rtol=1e-12, atol=1e-12).y[
        :, -1
    ]
    solver = Adaptive(method, tol, tol, per_sample=per_sample, max_steps=100_000)
    ours = solve(problem.field, problem.start, interval, solver=solver)
    assert np.abs(ours.z.reshape(-1).numpy() - oracle).max() < 100 * tol


@pytest.mark.parametrize(
    "ours_theirs",
    [*((name, name) for name in ("euler", "midpoint", "heun2", "heun3")), ("rk4_38", "rk4")],
)
def test_fixed_methods_equal_torchdiffeq_on_the_same_grid(ours_theirs: tuple[str, str]) -> None:
    from torchdiffeq import odeint

    ours, theirs = ours_theirs
    for problem in PROBLEMS:
        grid = torch.linspace(*problem.t, 11, dtype=torch.float64)
        expected = odeint(problem.field, problem.start, grid, method=theirs)[-1]
        found = solve(problem.field, problem.start, problem.t, solver=FixedStep(ours, n_steps=10)).z
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_classical_rk4_is_the_textbook_formula() -> None:
    problem = PROBLEMS[2]
    (start, end), n = problem.t, 7
    z, h = problem.start, (end - start) / n
    for i in range(n):
        t = torch.tensor(start + i * h, dtype=torch.float64)
        k1 = problem.field(t, z)
        k2 = problem.field(t + h / 2, z + h / 2 * k1)
        k3 = problem.field(t + h / 2, z + h / 2 * k2)
        k4 = problem.field(t + h, z + h * k3)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    found = solve(problem.field, problem.start, problem.t, solver=FixedStep("rk4", n_steps=n)).z
    torch.testing.assert_close(found, z, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_nfe_of_fixed_steps(method: str) -> None:
    problem, tableau = PROBLEMS[0], get_tableau(method)
    solution = solve(problem.field, problem.start, problem.t, solver=FixedStep(method, n_steps=5))
    assert solution.nfe == 5 * tableau.advancing_stages
    assert (solution.n_steps, solution.n_rejected, solution.nfe_backward) == (5, 0, 0)


@pytest.mark.parametrize("first_step", [None, 1.4])
@pytest.mark.parametrize("method", EMBEDDED)
def test_nfe_of_adaptive_steps(method: str, first_step: float | None) -> None:
    problem, tableau = PROBLEMS[0], get_tableau(method)
    solution = solve(
        problem.field,
        problem.start,
        problem.t,
        solver=Adaptive(method, 1e-6, 1e-6, first_step=first_step),
    )
    attempts = solution.n_steps + solution.n_rejected
    assert first_step is None or solution.n_rejected > 0
    # first stages: with FSAL, each is the last stage of the step before
    start = 1 if tableau.fsal else solution.n_steps
    assert solution.nfe == (first_step is None) + start + attempts * (tableau.stages - 1)


def solvers(method: str) -> list[Solver]:
    fixed: list[Solver] = [FixedStep(method, n_steps=4), FixedStep(method, step_size=0.3)]
    if method in EMBEDDED:
        fixed += [Adaptive(method, 1e-3, 1e-3), Adaptive(method, 1e-3, 1e-3, per_sample=True)]
    return fixed


def loss(solution: Solution[Tensor]) -> Tensor:
    total = (solution.z**2).sum()
    return (
        total
        if solution.zs is None
        else total + (solution.zs * torch.arange(1.0, 1 + len(solution.zs)).view(-1, 1, 1)).sum()
    )


@pytest.mark.parametrize("save_at", [None, [0.0, 0.33, 0.61, 1.0]], ids=["end", "saved"])
@pytest.mark.parametrize("gradient", DISCRETE, ids=["backprop", "checkpoint"])
@pytest.mark.parametrize("method", METHODS)
def test_discrete_gradients_against_finite_differences(
    method: str, gradient: Backprop | Checkpoint, save_at: list[float] | None
) -> None:
    """By state, parameters and ends of time; the differences replay the steps that were taken."""
    for solver in solvers(method):
        field, z0 = TanhField(), states()
        start, end = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.0, 1.0))
        z0.requires_grad_()
        solution = solve(field, z0, (start, end), solver=solver, gradient=gradient, save_at=save_at)
        per_sample = isinstance(solver, Adaptive) and solver.per_sample
        if per_sample and save_at:
            continue  # a replayed grid per sample cannot save between its points; see the next test
        loss(solution).backward()
        replay = solution.replay()
        eps = 1e-6
        generator = torch.Generator().manual_seed(2)
        inputs = [z0, field.inner, field.outer, start, end]
        if save_at:
            inputs = inputs[:-2]  # moving the ends moves the saved fractions
        for x in inputs:
            direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    x += sign * eps * direction
                    values.append(
                        loss(solve(field, z0, (start, end), solver=replay, save_at=save_at))
                    )
                    x -= sign * eps * direction
            expected = (values[0] - values[1]) / (2 * eps)
            assert x.grad is not None
            torch.testing.assert_close((x.grad * direction).sum(), expected, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("method", EMBEDDED)
def test_gradients_of_saved_states_under_per_sample_control(method: str) -> None:
    """At a tight tolerance they equal those of the coupled solve."""
    grads = []
    for per_sample in (False, True):
        field, z0 = TanhField(), states()
        tol = 1e-8
        solver = Adaptive(method, tol, tol, per_sample=per_sample, max_steps=100_000)
        loss(
            solve(field, z0.requires_grad_(), solver=solver, save_at=[0.0, 0.33, 0.61, 1.0])
        ).backward()
        grads.append(torch.cat([z0.grad.flatten(), field.inner.grad.flatten()]))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_checkpoint_is_the_gradient_of_backprop(method: str) -> None:
    for solver in solvers(method):
        found = []
        for gradient in DISCRETE:
            field, z0 = TanhField(), states().requires_grad_()
            solution = solve(field, z0, solver=solver, gradient=gradient)
            solution.z.square().sum().backward()
            assert (solution.nfe_backward > 0) == isinstance(gradient, Checkpoint)
            found.append([z0.grad, field.inner.grad, field.outer.grad])
        for x, y in zip(*found, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-14)


def gradient_error(solver: Solver, exact: list[Tensor], save_at: list[float] | None) -> float:
    return max(
        float((x - y).abs().max() / y.abs().max())
        for x, y in zip(adjoint_gradients(solver, Adjoint(), save_at), exact, strict=True)
    )


def adjoint_gradients(
    solver: Solver, gradient: Adjoint | Backprop, save_at: list[float] | None
) -> list[Tensor]:
    field, z0 = TanhField(), states().requires_grad_()
    start, end = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.0, 1.0))
    solution = solve(field, z0, (start, end), solver=solver, gradient=gradient, save_at=save_at)
    loss(solution).backward()
    if isinstance(gradient, Adjoint):
        assert solution.nfe_backward > 0
    times = [] if save_at else [start.grad, end.grad]
    found = [z0.grad, field.inner.grad, field.outer.grad, *times]
    return [x for x in found if x is not None]


@pytest.mark.parametrize("save_at", [None, [0.5, 1.0]], ids=["end", "saved"])
@pytest.mark.parametrize("method", METHODS)
def test_adjoint_converges_to_the_gradient_at_the_order_of_the_method(
    method: str, save_at: list[float] | None
) -> None:
    exact = adjoint_gradients(FixedStep("rk4", n_steps=512), Backprop(), save_at)
    order = METHODS[method].order
    steps = [8, 16, 32] if order < 5 else [4, 8, 16] if order < 8 else [2, 4, 8]
    errors = [gradient_error(FixedStep(method, n_steps=n), exact, save_at) for n in steps]
    assert slope(steps, errors) > METHODS[method].order - 0.35


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("method", EMBEDDED)
def test_adjoint_converges_with_the_tolerance(method: str, per_sample: bool) -> None:
    exact = adjoint_gradients(FixedStep("rk4", n_steps=512), Backprop(), None)
    for tol in (1e-3, 1e-5):
        assert (
            gradient_error(
                Adaptive(method, tol, tol, per_sample=per_sample, max_steps=100_000), exact, None
            )
            < SPREAD[method] * tol
        )


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
@pytest.mark.parametrize("method", METHODS)
def test_dense_output_has_its_order_off_the_grid(method: str, problem: Problem) -> None:
    start, end = problem.t
    times = [start + (end - start) * (i + 0.5) / 37 for i in range(37)]
    exact = torch.stack([problem.exact(t) for t in times])
    steps, errors = [10, 20, 40, 80] if METHODS[method].order < 8 else [5, 10, 20], []
    for n in steps:
        plain = solve(problem.field, problem.start, problem.t, solver=FixedStep(method, n_steps=n))
        saved = solve(
            problem.field,
            problem.start,
            problem.t,
            solver=FixedStep(method, n_steps=n),
            save_at=times,
        )
        torch.testing.assert_close(plain.z, saved.z, rtol=1e-12, atol=1e-12)  # the same steps
        errors.append(float((saved.zs - exact).abs().max()))
    assert slope(steps, errors) > min(METHODS[method].order, 4) - 0.35


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("method", EMBEDDED)
def test_dense_output_of_adaptive_solves(method: str, per_sample: bool) -> None:
    tol = 1e-6
    solver = Adaptive(method, tol, tol, per_sample=per_sample, max_steps=100_000)
    for problem in PROBLEMS:
        start, end = problem.t
        times = [
            start,
            *(start + (end - start) * x for x in (0.93, 0.123, 0.317)),
            end,
        ]  # in any order
        plain = solve(problem.field, problem.start, problem.t, solver=solver)
        saved = solve(problem.field, problem.start, problem.t, solver=solver, save_at=times)
        rounding = 1e-12 if method != "dopri8" else 1e-10  # its steps are longer
        torch.testing.assert_close(plain.z, saved.z, rtol=rounding, atol=rounding)
        assert torch.equal(saved.zs[0], problem.start)
        assert torch.equal(saved.zs[-1], saved.z)
        exact = torch.stack([problem.exact(t) for t in times])
        assert float((saved.zs - exact).abs().max()) < SPREAD[method] * tol


@pytest.mark.parametrize("method", EMBEDDED)
def test_per_sample_control_does_not_depend_on_the_batch(method: str) -> None:
    field, z0 = (
        TanhField(),
        states(6) * torch.tensor([[0.1], [1], [5], [1], [0.2], [3]], dtype=torch.float64),
    )
    solver = Adaptive(method, 1e-5, 1e-5, per_sample=True)
    with torch.no_grad():
        together = solve(field, z0, (0.0, 3.0), solver=solver)
        assert len(set(together.n_steps.tolist())) > 1
        for i in range(6):
            alone = solve(field, z0[i : i + 1], (0.0, 3.0), solver=solver)
            assert alone.n_steps.item() == together.n_steps[i]
            assert alone.n_rejected.item() == together.n_rejected[i]
            torch.testing.assert_close(alone.z[0], together.z[i], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_decreasing_time_goes_back(method: str) -> None:
    problem = PROBLEMS[2]
    start, end = problem.t
    arrived = problem.exact(end)
    for solver in solvers(method):
        fine = solver.refined(16)
        if isinstance(fine, Adaptive) and method == "fehlberg2":
            fine = solver.scaled(1e-3)
        back = solve(problem.field, arrived, (end, start), solver=fine)
        accuracy = 40 * 0.02 ** METHODS[method].order
        assert float((back.z - problem.start).abs().max()) < accuracy
        assert back.grid.flatten()[0] == end
        mirrored = solve(lambda s, z: -problem.field(-s, z), arrived, (-end, -start), solver=fine)
        torch.testing.assert_close(back.z, mirrored.z, rtol=1e-12, atol=1e-13)


def test_every_method_is_in_the_catalog() -> None:
    for name, method in METHODS.items():
        tableau = get_tableau(name)
        assert tableau.order == method.order
        assert (tableau.embedded is not None) == (method.kind == "adaptive")
        assert tableau.source
        assert math.isclose(sum(tableau.b), 1)
