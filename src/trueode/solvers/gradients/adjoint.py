"""The continuous adjoint: the gradient of the exact flow, by a second solve backwards in time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trueode.errors import SolveError, UsageError
from trueode.solvers.clock import Clock
from trueode.solvers.control import Reduce
from trueode.solvers.gradients.methods import Adjoint
from trueode.solvers.gradients.replay import must_be_recorded
from trueode.solvers.integrate import Outcome, integrate
from trueode.solvers.problem import Problem
from trueode.solvers.saving import SavePoints, as_times, gather, union
from trueode.solvers.solver import Adaptive, FixedStep, OnGrid, Solver
from trueode.solvers.states import pack_tuple
from trueode.solvers.step import Field, Stepper


def integrate_adjoint(problem: Problem, adjoint: Adjoint) -> Outcome:
    """Solve without a graph; gradients come from the adjoint equation, solved backwards from the
    end.

    At each saved time the state is reset to the saved one, so that errors of the backward solve do
    not accumulate. Times of each sample are treated as times of all samples; the backward solve has
    one piece between any two.

    Raises:
        UsageError: times of each sample are differentiated.
    """
    field, z0, _ = problem.form
    clock, points, position = problem.clock.still(), problem.points, None
    times = None if points is None or points.moving is None else as_times(problem.save_at)  # type: ignore[arg-type]
    if points is not None and points.per_sample:
        if points.moving is not None:
            raise UsageError(
                "Adjoint has no derivative with respect to times of each sample: "
                "use gradient=Backprop()."
            )
        points, position = union(points)
    still = None if points is None else replace(points, moving=None)
    recorded = _Recorded(field, adjoint.parameters_of(problem.field))
    with torch.no_grad():
        tableau, control = problem.solver.tableau, problem.control
        stepper = Stepper(recorded.value, tableau, clock, control=control)
        outcome = integrate(stepper, problem.solver, z0.detach(), still, problem.reduce)
    recorded.settle()
    task = _Task(recorded, adjoint.solver or problem.solver, clock, still, problem.reduce)
    saved = z0.new_empty((0, *z0.shape)) if outcome.zs is None else outcome.zs
    final, zs = _AdjointSolve.apply(task, outcome.z, saved, z0, *problem.t, times, *recorded.params)
    if position is not None:
        zs = gather(zs, position)
    return outcome._replace(z=final, zs=None if points is None else zs)


class _Recorded:
    """Evaluates a field, each time with a new graph, and finds the tensors that it uses in addition
    to the state.

    Leaf tensors that the forward solve uses are differentiated. Other tensors in the graph would
    silently lose their gradients, so they raise an error.
    """

    def __init__(self, field: Field, params: tuple[Tensor, ...]) -> None:
        self._field = field
        self.params = list(params)
        self._leaves = {id(p) for p in params if p.is_leaf}
        self._nodes = {p.grad_fn for p in params if not p.is_leaf}
        self._settled = False

    def settle(self) -> None:
        """Refuse further parameters from now on."""
        self._settled = True

    def evaluate(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The state at which the graph begins, and the field there."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            # nodes with lower numbers do not belong to this evaluation
            before: Any = z.view_as(z).grad_fn
            value = self._field(t, z)
        if value.grad_fn is not None:
            self._look(value.grad_fn, before._sequence_nr(), z)
        elif value.requires_grad:
            self._leaf(value, z)
        return z, value

    def value(self, t: Tensor, z: Tensor) -> Tensor:
        """The field, without a graph."""
        return self.evaluate(t, z)[1].detach()

    def _look(self, root: Any, number: int, z: Tensor) -> None:
        seen, open_ = {root}, [root]
        while open_:
            for node, _ in open_.pop().next_functions:
                if node is None or node in seen or node in self._nodes:
                    continue
                seen.add(node)
                leaf = getattr(node, "variable", None)
                if leaf is not None:
                    self._leaf(leaf, z)
                elif node._sequence_nr() < number:
                    raise UsageError(
                        "The field uses a tensor that was computed from others, and Adjoint would "
                        "lose its gradient. Pass it, as in "
                        "Adjoint(params=(*field.parameters(), tensor)), or use Backprop() or "
                        "Checkpoint()."
                    )
                else:
                    open_.append(node)

    def _leaf(self, leaf: Tensor, z: Tensor) -> None:
        if leaf is z or id(leaf) in self._leaves:
            return
        if self._settled:
            raise UsageError(
                f"The field uses a parameter of shape {tuple(leaf.shape)} during the backward "
                "solve that it did not use in the forward one. Pass it, as in "
                "Adjoint(params=(*field.parameters(), tensor)), or use Backprop() or Checkpoint()."
            )
        self._leaves.add(id(leaf))
        self.params.append(leaf)


def backward_solver(solver: Solver, length: float) -> Solver:
    """The solver of a piece of the backward solve: the same step size, not the same number."""
    if isinstance(solver, Adaptive):
        return Adaptive(
            solver.method,
            solver.rtol,
            solver.atol,
            max_steps=solver.max_steps,
            max_step=solver.max_step,
        )
    steps = len(solver.grid) - 1 if isinstance(solver, OnGrid) else solver.count(length)
    return (
        FixedStep(solver.method, step_size=abs(length) / max(steps, 1))
        if length
        else FixedStep(solver.method, n_steps=1)
    )


@dataclass(frozen=True)
class _Task:
    """What the backward solve needs of the forward solve.

    Attributes:
        recorded: the field.
        solver: the solver of the backward solve.
        clock: the times, as constants.
        points: the times at which states were saved.
        reduce: sums over the ranks that share one batch.
    """

    recorded: _Recorded
    solver: Solver
    clock: Clock
    points: SavePoints | None
    reduce: Reduce | None

    def rate(self, theta: float, z: Tensor, g: Tensor) -> Tensor:
        """The rate at which a loss with gradient ``g`` changes as the state follows the flow."""
        return (g.conj() * self.recorded.value(self.clock.time(theta), z)).real.sum()

    def augmented(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The vector field of the state, the adjoint and the parameters' gradients together."""
        params, a = self.recorded.params, state[1]
        z, value = self.recorded.evaluate(t, state[0])
        if not value.requires_grad:
            return value, *(torch.zeros_like(x) for x in state[1:])
        found = torch.autograd.grad(value, (z, *params), -a, allow_unused=True)
        grads = (
            torch.zeros_like(x) if g is None else g.to(a.dtype)
            for g, x in zip(found, state[1:], strict=True)
        )
        return value.detach(), *grads

    def piece(self, start: float, end: float, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Solve for state, adjoint and gradients, backwards from fraction ``start`` to ``end``."""
        flat, packed, unpack = pack_tuple(self.augmented, state, per_sample=False)
        solver = backward_solver(self.solver, self.clock.length)
        clock = self.clock.part(start, end)
        stepper = Stepper(
            flat, solver.tableau, clock, watched=2 * state[0].numel()
        )  # state and adjoint
        outcome = integrate(stepper, solver, packed, None, self.reduce)
        if outcome.status != "success":
            raise SolveError(
                f"The adjoint's backward solve over {clock.length:g} failed. {outcome.message}",
                outcome.status,
            )
        found: tuple[Tensor, ...] = unpack(outcome.z)
        return found


class _AdjointSolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, task: _Task, *tensors: Any) -> tuple[Tensor, Tensor]:
        """Return the final state and the saved states; ``tensors`` also holds the initial state,
        both ends, the saved times and the parameters.
        """
        final, zs, z0, t0, t1, times, *params = tensors
        ctx.task, ctx.times = task, (t0, t1, times)
        ctx.save_for_backward(z0, final, zs, *params)
        return final.clone(), zs.clone()  # the user may change the results in place

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        if must_be_recorded(gradients):
            raise UsageError(
                "Adjoint has no second derivatives and no batched gradients. To differentiate a "
                "gradient again (create_graph=True), use gradient=Backprop() or Checkpoint()."
            )
        # this raises an error if a tensor was changed in place since the forward solve
        z0, final, zs, *params = ctx.saved_tensors
        task, (t0, t1, times) = ctx.task, ctx.times
        g_final, g_saved = gradients
        points = [] if task.points is None else task.points.fractions.tolist()
        # stations of the backward solve, the end first: fraction, state, gradient added there
        stations = [
            (1.0, final, g_final),
            *zip(points, zs.unbind(0), g_saved.unbind(0), strict=True),
        ]
        stations.sort(key=lambda station: station[0], reverse=True)
        state: tuple[Tensor, ...] = (
            final,
            torch.zeros_like(final),
            *(torch.zeros_like(p, dtype=final.dtype) for p in params),
        )
        at, g_ends = 1.0, [torch.zeros_like(final), torch.zeros_like(final)]
        for theta, z, entering in stations:
            if theta < at:
                _, *rest = task.piece(at, theta, state)
                state, at = (z, *rest), theta
            if times is None and theta == 0.0:
                g_ends[0] += entering  # the point moves with the start: its state is constant
            if theta == 1.0 and (times is None or z is final):
                g_ends[1] += entering
            state = (state[0], state[1] + entering, *state[2:])
        if at > 0.0:
            _, *rest = task.piece(at, 0.0, state)
            state = (z0, *rest)
        _, a, *g_params = state
        g_times: list[Tensor | None] = [None, None, None]
        if ctx.needs_input_grad[4]:
            g_times[0] = -task.rate(0.0, z0, a - g_ends[0])
        if ctx.needs_input_grad[5]:
            g_times[1] = task.rate(1.0, final, g_ends[1])
        if ctx.needs_input_grad[6]:
            g_times[2] = torch.stack(
                [task.rate(*each) for each in zip(points, zs, g_saved, strict=True)]
            )
        ends = (
            None if g is None else g.reshape(t.shape).to(t)
            for g, t in zip(g_times, (t0, t1, times), strict=True)
        )
        return (
            None,
            None,
            None,
            a,
            *ends,
            *(_like(g, p) for g, p in zip(g_params, params, strict=True)),
        )


def _like(g: Tensor, p: Tensor) -> Tensor:
    """Convert a gradient from the dtype of the state to that of its parameter."""
    return (g.real if g.is_complex() and not p.is_complex() else g).to(p.dtype)
