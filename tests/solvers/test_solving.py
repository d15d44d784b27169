"""`solve`: states, failures, statistics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.problems import PROBLEMS, TanhField, states
from trueode.errors import SolveError, UsageError
from trueode.solvers import (
    Adaptive,
    Adjoint,
    Backprop,
    Checkpoint,
    FixedStep,
    OnGrid,
    Solver,
    solve,
)

RK4 = FixedStep("rk4", n_steps=5)
DOPRI5 = Adaptive("dopri5", 1e-6, 1e-6)
PER_SAMPLE = Adaptive("dopri5", 1e-6, 1e-6, per_sample=True)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(1, 4), max_size=4),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_any_shape_and_floating_dtype(shape: list[int], dtype: torch.dtype) -> None:
    z0 = torch.ones(shape, dtype=dtype)
    for solver in (RK4, Adaptive("dopri5", 1e-3, 1e-3)):
        solution = solve(lambda t, z: -z, z0, solver=solver)
        assert solution.z.shape == z0.shape
        assert solution.z.dtype == dtype
        torch.testing.assert_close(
            solution.z.double(), torch.exp(-torch.ones(shape)).double(), rtol=2e-2, atol=2e-2
        )


@pytest.mark.parametrize(
    "gradient",
    [Backprop(), Checkpoint(), Adjoint(params=())],
    ids=["backprop", "checkpoint", "adjoint"],
)
@pytest.mark.parametrize("solver", [RK4, DOPRI5, PER_SAMPLE], ids=["rk4", "dopri5", "per sample"])
def test_a_tuple_is_its_parts_side_by_side(
    solver: Solver, gradient: Backprop | Checkpoint | Adjoint
) -> None:
    position, velocity = states(3, 2).requires_grad_(), states(3, 1, seed=2).requires_grad_()

    def parts(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, v = z
        return -x * v, torch.sin(t) * x.sum(1, keepdim=True)

    def joined(t: Tensor, z: Tensor) -> Tensor:
        return torch.cat(parts(t, (z[:, :2], z[:, 2:])), dim=1)

    solution = solve(
        parts, (position, velocity), solver=solver, gradient=gradient, save_at=[0.5, 1.0]
    )
    expected = solve(joined, torch.cat([position, velocity], 1), solver=solver, save_at=[0.5, 1.0])
    torch.testing.assert_close(torch.cat(solution.z, 1), expected.z)
    torch.testing.assert_close(torch.cat(solution.zs, 2), expected.zs)
    tolerance = 1e-4 if isinstance(gradient, Adjoint) else 1e-9
    found = torch.autograd.grad(solution.z[0].sum() + solution.zs[1].sum(), (position, velocity))
    wanted = torch.autograd.grad(
        expected.z[:, :2].sum() + expected.zs[:, :, 2:].sum(), (position, velocity)
    )
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(
            x, y, rtol=tolerance, atol=tolerance * (100 if isinstance(solver, FixedStep) else 1)
        )


def blow_up(t: Tensor, z: Tensor) -> Tensor:
    return z**2  # from 1 to infinity at t = 1


@pytest.mark.parametrize(
    ("solver", "status"),
    [
        (FixedStep("rk4", n_steps=100), "non_finite"),
        (FixedStep("rk4", step_size=0.01, max_steps=100), "max_steps"),
        (Adaptive("dopri5", 1e-6, 1e-6), "step_underflow"),
        (Adaptive("dopri5", 1e-6, 1e-6, max_steps=10), "max_steps"),
        (Adaptive("dopri5", 1e-6, 1e-6, per_sample=True), "step_underflow"),
        (Adaptive("dopri5", 1e-6, 1e-6, per_sample=True, max_steps=10), "max_steps"),
    ],
)
def test_failures_are_told(solver: Solver, status: str) -> None:
    z0 = torch.tensor([[1.0], [0.1]], dtype=torch.float64)
    with pytest.raises(SolveError) as failure:
        solve(blow_up, z0, (0.0, 5.0), solver=solver)
    assert failure.value.status == status
    assert "step" in str(failure.value)
    solution = solve(
        blow_up, z0, (0.0, 5.0), solver=solver, on_failure="return", save_at=[0.5, 4.0]
    )
    assert solution.status == status
    assert solution.message == str(failure.value)
    assert solution.zs.shape == (2, 2, 1)


@pytest.mark.parametrize("solver", [RK4, DOPRI5, PER_SAMPLE], ids=["rk4", "dopri5", "per sample"])
def test_a_state_that_is_not_finite(solver: Solver) -> None:
    z0 = torch.tensor([[1.0], [float("nan")]])
    with pytest.raises(SolveError) as failure:
        solve(lambda t, z: -z, z0, solver=solver)
    assert failure.value.status == "non_finite"


@pytest.mark.parametrize("per_sample", [False, True])
def test_rejected_overflow_leaves_no_trace_in_the_gradient(per_sample: bool) -> None:
    """A first step that is far too long is rejected; gradients stay finite and right."""

    def stiff(t: Tensor, z: Tensor) -> Tensor:
        return -torch.exp(z)

    z0 = torch.tensor([[8.0], [0.0]], dtype=torch.float64, requires_grad=True)
    solver = Adaptive("dopri5", 1e-8, 1e-8, first_step=1.0, per_sample=per_sample)
    solution = solve(stiff, z0, solver=solver)
    assert int(torch.as_tensor(solution.n_rejected).sum()) > 0
    (gradient,) = torch.autograd.grad(solution.z.sum(), z0)
    exact = torch.exp(-z0) / (torch.exp(-z0) + 1)  # z(1) = -log(exp(-z0) + 1)
    torch.testing.assert_close(gradient, exact.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "solver", [RK4, DOPRI5, PER_SAMPLE, Adaptive("fehlberg2", 1e-3, 1e-3)], ids=str
)
def test_an_interval_of_no_length(solver: Solver) -> None:
    z0 = states()
    solution = solve(lambda t, z: z, z0, (1.0, 1.0), solver=solver, save_at=[1.0, 1.0])
    assert torch.equal(solution.z, z0)
    assert torch.equal(solution.zs, torch.stack([z0, z0]))
    assert solution.nfe == 0


def test_statistics() -> None:
    problem = PROBLEMS[0]
    solution = solve(problem.field, problem.start, problem.t, solver=DOPRI5)
    assert solution.grid[0] == problem.t[0]
    assert solution.grid[-1] == problem.t[1]
    assert len(solution.grid) == solution.n_steps + 1
    assert len(solution.errors) == solution.n_steps
    assert float(solution.errors.max()) <= 1
    assert solution.mean_steps == solution.n_steps
    replayed = solve(problem.field, problem.start, problem.t, solver=solution.replay())
    torch.testing.assert_close(replayed.z, solution.z, rtol=1e-13, atol=1e-14)


def test_per_sample_statistics_and_replay() -> None:
    field, z0 = TanhField(), states(5) * torch.arange(1, 6).view(-1, 1)
    with torch.no_grad():
        solution = solve(field, z0, (0.0, 2.0), solver=PER_SAMPLE)
        assert solution.n_steps.shape == solution.n_rejected.shape == (5,)
        for i in range(5):
            n = int(solution.n_steps[i])
            times = solution.grid[:, i]
            assert bool((times[1 : n + 1] > times[:n]).all())
            assert bool((times[n:] == 2.0).all())
            assert bool(solution.errors[:n, i].le(1).all())
        replayed = solve(field, z0, (0.0, 2.0), solver=solution.replay())
        torch.testing.assert_close(replayed.z, solution.z, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("named", [False, True])
def test_adjoint_finds_the_parameters_of_a_function(named: bool) -> None:
    weight = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    z0, gradient = states(), Adjoint(params=[weight]) if named else Adjoint()
    solution = solve(lambda t, z: weight * z, z0, solver=RK4, gradient=gradient)
    (found,) = torch.autograd.grad(solution.z.sum(), weight)
    torch.testing.assert_close(found, (z0 * torch.exp(weight)).sum().detach(), rtol=1e-3, atol=1e-3)


def test_adjoint_finds_what_a_module_reads_and_does_not_own() -> None:
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    field = TanhField()
    found = []
    for gradient in (Backprop(), Adjoint()):
        z = solve(
            lambda t, z: scale * field(t, z),
            states(),
            solver=FixedStep("rk4", n_steps=40),
            gradient=gradient,
        ).z
        found.append(torch.autograd.grad(z.sum(), [scale, field.inner]))
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


def test_adjoint_refuses_what_it_would_lose() -> None:
    """Unnamed computed tensors, and parameters that only the backward solve uses."""
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    context = 2 * weight
    with pytest.raises(UsageError, match="computed from others"):
        solve(lambda t, z: context * z, states(), solver=RK4, gradient=Adjoint())
    z = solve(lambda t, z: context * z, states(), solver=RK4, gradient=Adjoint(params=(context,))).z
    (found,) = torch.autograd.grad(z.sum(), weight)
    torch.testing.assert_close(
        found, (2 * states() * torch.exp(context)).sum().detach(), rtol=1e-3, atol=1e-3
    )
    late, calls = torch.tensor(1.0, dtype=torch.float64, requires_grad=True), []

    def field(t: Tensor, z: Tensor) -> Tensor:
        calls.append(t)
        return weight * z + (late * z if len(calls) > 20 else 0)

    z = solve(field, states(), solver=RK4, gradient=Adjoint()).z
    with pytest.raises(UsageError, match="did not use in the forward one"):
        z.sum().backward()


def test_adjoint_of_a_frozen_field() -> None:
    field = TanhField()
    for p in field.parameters():
        p.requires_grad_(False)
    z0 = states().requires_grad_()
    (found,) = torch.autograd.grad(solve(field, z0, solver=DOPRI5, gradient=Adjoint()).z.sum(), z0)
    (exact,) = torch.autograd.grad(solve(field, z0, solver=DOPRI5).z.sum(), z0)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4)


def test_checkpoint_keeps_the_states_only() -> None:
    """Memory held after the forward solve grows by one state per step."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 256), nn.Tanh(), nn.Linear(256, 4))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.net(z)

    def kept(n: int) -> int:
        field, z0, total = Wide(), torch.randn(8, 4), 0

        def pack(x: Tensor) -> Tensor:
            nonlocal total
            total += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            solve(field, z0, solver=FixedStep("rk4", n_steps=n), gradient=Checkpoint())
        return total

    assert kept(64) - kept(32) <= 32 * (8 * 4 + 16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, z: solve(f, z.long(), solver=RK4), "floating point"),
        (lambda f, z: solve(f, z, solver="rk4"), "solver must be"),
        (lambda f, z: solve(f, z, (0.0, 1.0, 2.0), solver=RK4), "two times"),
        (lambda f, z: solve(f, z, (0.0, float("inf")), solver=RK4), "finite"),
        (lambda f, z: solve(f, z, solver=RK4, save_at=[0.5, 1.5]), "outside of the interval"),
        (
            lambda f, z: solve(f, z, solver=RK4, save_at=torch.zeros(2, 2, 2)),
            r"shape \(times,\) or \(batch, times\)",
        ),
        (lambda f, z: solve(f, z, solver=RK4, on_failure="ignore"), "on_failure"),
        (
            lambda f, z: solve(lambda t, z: z[:, :1], z, solver=RK4),
            r"shape \(4, 1\) for a state of shape \(4, 2\)",
        ),
        (lambda f, z: solve(f, z[0, 0], solver=PER_SAMPLE), "batch dimension"),
        (lambda f, z: solve(lambda t, z: z, (z, z[:1]), solver=PER_SAMPLE), "same first dimension"),
        (lambda f, z: solve(lambda t, z: z, (z, z.float()), solver=RK4), "share dtype"),
        (lambda f, z: solve(lambda t, z: z[0], (z, z), solver=RK4), "tuple of tensors"),
        (lambda f, z: solve(f, z, solver=OnGrid("rk4", ((0.0, 0.0), (1.0, 1.0)))), "2 samples"),
    ],
)
def test_bad_requests_name_what_is_wrong(call: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(lambda t, z: -z, states())


def test_gradients_of_gradients() -> None:
    z0 = states(2).requires_grad_()
    field = TanhField()
    assert torch.autograd.gradgradcheck(
        lambda z: solve(field, z, solver=FixedStep("rk4", n_steps=2)).z, (z0,)
    )


# details

ALL_KINDS = [FixedStep("rk4", n_steps=8), FixedStep("midpoint", step_size=0.03), DOPRI5, PER_SAMPLE]


@pytest.mark.parametrize("solver", ALL_KINDS, ids=str)
def test_saved_times_stand_still_when_an_end_moves(solver: Solver) -> None:
    """Also those on the grid: the grid moves, the times do not."""

    ends = (torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    for end in ends:
        end.requires_grad_()

    def gradients(solver: Solver, gradient: Backprop | Adjoint) -> tuple[Tensor, ...]:
        saved = solve(
            TanhField(), states(3), ends, solver=solver, gradient=gradient, save_at=[0.25, 0.5, 0.6]
        ).zs
        assert saved is not None
        return torch.autograd.grad(saved.sum(), ends)

    expected = gradients(Adaptive("dopri5", 1e-10, 1e-10), Adjoint())
    for x, y in zip(gradients(solver, Backprop()), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-2, atol=5e-3)


def test_a_saved_time_at_the_end_of_a_step_of_its_own() -> None:
    solver = Adaptive("dopri5", 1e-3, 1e-3, per_sample=True, first_step=0.25)
    z0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    saved = solve(lambda t, z: -z, z0, solver=solver, save_at=[0.25, 0.5, 1.0]).zs
    assert saved is not None
    expected = z0 * torch.exp(-torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)).view(3, 1, 1)
    torch.testing.assert_close(saved, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_saved_times_are_not_rounded_to_the_precision_of_the_state(dtype: torch.dtype) -> None:
    saved = solve(
        lambda t, z: torch.ones_like(z),
        torch.zeros(1, dtype=dtype),
        solver=FixedStep("euler", n_steps=256),
        save_at=[0.25, 0.5, 0.75],
    ).zs
    assert saved is not None
    exact = solve(
        lambda t, z: torch.ones_like(z),
        torch.zeros(1, dtype=dtype),
        (0.0, 0.5),
        solver=FixedStep("euler", n_steps=128),
    ).z
    assert torch.equal(saved[1], exact)


def test_a_time_rounded_like_the_end_is_the_end() -> None:
    solution = solve(
        lambda t, z: -z, torch.ones(2), (0.0, torch.tensor(0.7)), solver=RK4, save_at=[0.7]
    )
    assert solution.zs is not None
    assert torch.equal(solution.zs[0], solution.z)


def test_an_overflow_of_the_first_attempt_leaves_gradients_finite() -> None:
    w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    z0 = torch.tensor([[1e10], [1.0]], dtype=torch.float64)
    solver = Adaptive("dopri5", 1e-6, 1e-6, per_sample=True, first_step=1.0)
    solution = solve(lambda t, z: -w * z**3, z0, solver=solver, on_failure="return")
    solution.z[1].sum().backward()
    assert w.grad is not None
    assert bool(w.grad.isfinite())


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_field_that_is_not_finite_at_the_start_is_told_at_once(per_sample: bool) -> None:
    solver = Adaptive("dopri5", 1e-6, 1e-6, per_sample=per_sample)
    solution = solve(lambda t, z: z / 0.0, torch.ones(2, 1), solver=solver, on_failure="return")
    assert solution.status == "non_finite"
    assert solution.nfe <= 3


@pytest.mark.parametrize("solver", ALL_KINDS, ids=str)
@pytest.mark.parametrize(
    "gradient", [Backprop(), Checkpoint(), Adjoint()], ids=["backprop", "checkpoint", "adjoint"]
)
def test_a_batch_without_samples_still_has_a_gradient(
    solver: Solver, gradient: Backprop | Checkpoint | Adjoint
) -> None:
    field = nn.Sequential(nn.Linear(2, 2))

    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = field

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.net(z)

    solution = solve(Timed(), torch.zeros(0, 2), solver=solver, gradient=gradient)
    solution.z.sum().backward()
    for p in field.parameters():
        assert p.grad is not None
        assert not p.grad.any()


def test_a_parameter_named_twice_counts_once() -> None:
    w = torch.tensor(1.0, requires_grad=True)
    for params in ((w,), (w, w)):
        solution = solve(
            lambda t, z: w * z, torch.ones(1), solver=RK4, gradient=Adjoint(params=params)
        )
        (found,) = torch.autograd.grad(solution.z.sum(), w)
        assert float(found) == pytest.approx(2.718, rel=1e-2)


def test_a_failure_on_another_rank_is_a_failure_here() -> None:
    with pytest.raises(SolveError, match="another rank"):
        solve(lambda t, z: -z, torch.ones(1), solver=RK4, reduce=lambda x: x + 1)


def test_the_state_keeps_its_precision_whatever_the_field_returns() -> None:
    assert solve(lambda t, z: -z.double(), torch.ones(2), solver=RK4).z.dtype == torch.float32


def test_an_interval_of_no_length_is_replayed() -> None:
    solution = solve(lambda t, z: -z, torch.ones(2), (1.0, 1.0), solver=DOPRI5)
    assert torch.equal(
        solve(lambda t, z: -z, torch.ones(2), (1.0, 1.0), solver=solution.replay()).z, torch.ones(2)
    )


def test_vmap_of_a_solve() -> None:
    z0 = torch.randn(3, 2)
    found = torch.func.vmap(lambda z: solve(lambda t, y: -y, z, solver=RK4).z)(z0)
    torch.testing.assert_close(found, solve(lambda t, y: -y, z0, solver=RK4).z)
