"""The integration loop with adaptive steps for each sample separately."""

from __future__ import annotations

from dataclasses import dataclass, replace
from sys import float_info

import torch
from torch import Tensor

from trueode.solvers.clock import Clock
from trueode.solvers.control import (
    error_scale,
    rms_per_sample,
    scaled_error,
    starting_step,
    step_factors,
    trial_step,
)
from trueode.solvers.failure import Stop, reason, status_of
from trueode.solvers.saving import Inside, SavePoints
from trueode.solvers.solver import Adaptive
from trueode.solvers.step import Field, Stepper


@dataclass(frozen=True)
class SampleTraces:
    """The records of the solves of all samples.

    Attributes:
        grid: accepted fractions of the interval, ``(steps + 1, batch)``; a finished sample repeats
            its last one.
        errors: norm of the scaled error of the accepted steps, ``(steps, batch)``; NaN after the
            last one.
        n_steps: accepted steps, ``(batch,)``.
        n_rejected: rejected steps, ``(batch,)``.
        statuses: ``"success"`` or the reason of failure, for each sample.
        message: a description of the first sample's failure, if any.
    """

    grid: Tensor
    errors: Tensor
    n_steps: Tensor
    n_rejected: Tensor
    statuses: tuple[str, ...]
    message: str


def integrate(
    stepper: Stepper, solver: Adaptive, z: Tensor, points: SavePoints | None
) -> tuple[Tensor, Tensor | None, SampleTraces]:
    """Integrate each sample to the end of the interval under its own error control.

    Only samples that have not reached the end are evaluated, so a stiff sample does not slow down
    the others. A sample that fails keeps the state that it reached, and the others continue. Steps
    are controlled in float64 on the CPU; the field sees times of shape ``(samples, 1, …)``.

    Args:
        stepper: takes the steps.
        solver: method and tolerances.
        z: initial state ``(batch, …)``.
        points: the times at which states are saved.

    Returns:
        The final states, the states at the points ``(times, batch, …)`` and the traces.
    """
    clock, device = stepper.clock, z.device
    whole, record = _Whole(stepper.field, z, clock), _Record(len(z))
    saver = None if points is None else _Saver(points, z)
    final, state, first = z, z, None
    active = torch.arange(len(z) if clock.length else 0, device="cpu")
    theta = torch.zeros(len(active), dtype=torch.float64, device="cpu")
    dtheta, finite = theta, theta.isfinite()
    most = solver.longest(clock.length) if clock.length else 1.0
    if len(active):
        first = stepper.start_per_sample(theta, z)
        dtheta = _first_fractions(stepper, solver, z, first).clamp(max=most)
    elif not len(z):
        # nothing to solve, but the weights must be in the graph, as on ranks that have samples
        final = z + 0 * stepper.start_per_sample(theta, z)
    while len(active):
        tired = record.counts[:, active].sum(0) >= solver.max_steps
        failed = (
            (dtheta <= 10 * torch.finfo(torch.float64).eps * theta) | ~dtheta.isfinite() | tired
        )
        leaving = failed
        if bool(failed.any()):
            sizes = dtheta * clock.length
            stops = [
                Stop(state, float(sizes[k]), bool(tired[k]), bool(finite[k]), k)
                for k in failed.nonzero()[:, 0].tolist()
            ]
            record.fail(stepper, solver, (active, theta), stops)
        else:
            target = torch.where(theta + 1.0001 * dtheta >= 1, 1.0, theta + dtheta)
            wanted = None if saver is None else saver.wanted(active, theta, target)
            inside = (
                None if wanted is None else Inside.at(wanted.theta, wanted.rows.to(device), state)
            )
            span = stepper.span_per_sample(theta, target, state)
            result = stepper.step(span, state, first, inside, with_error=True)
            assert result.error is not None
            with torch.no_grad():
                ratio = rms_per_sample(
                    scaled_error(result.error, state, result.z, solver.rtol, solver.atol)
                )
                accepted, finite = ratio <= 1, ratio.isfinite()
                if not bool(finite.all()):
                    finite = finite | (_all_finite(result.z) & _all_finite(result.error)).cpu()
            dtheta = (
                (target - theta) * step_factors(ratio, solver.tableau.embedded_order + 1)
            ).clamp(max=most)
            if not bool(accepted.all()):
                if result.z.requires_grad and not bool(ratio.isfinite().all()):
                    # the overflow of a rejected step would enter the gradients as 0 x inf: repeat
                    # rejected steps with size 0
                    span = stepper.span_per_sample(
                        theta, torch.where(accepted, target, theta), state
                    )
                    result = stepper.step(span, state, first, inside, with_error=True)
                column = _columns(accepted.to(device), state)
                end = (
                    None
                    if result.end is None or first is None
                    else torch.where(column, result.end, first)
                )
                result = result._replace(z=torch.where(column, result.z, state), end=end)
            if saver is not None and wanted is not None and result.saved is not None:
                passed = accepted[wanted.rows]
                saver.take(wanted.index[passed], result.saved[passed.to(device)])
            record.step(active, accepted, target, ratio)
            theta = torch.where(accepted, target, theta)
            state, first = result.z, result.end
            leaving = theta >= 1
        if bool(leaving.any()):
            final = final.index_copy(0, active[leaving].to(device), state[leaving.to(device)])
            keep = ~leaving
            state, first = state[keep.to(device)], None if first is None else first[keep.to(device)]
            active, theta, dtheta, finite = active[keep], theta[keep], dtheta[keep], finite[keep]
            stepper = replace(stepper, field=whole.part(active))
            # a step must behave the same when it is recomputed
            if stepper.recompute and len(active):
                whole.settle(stepper, theta, state)
    traces = record.traces()
    if saver is None:
        return final, None, traces
    return (
        final,
        saver.stacked(final, torch.tensor([x == "success" for x in traces.statuses], device="cpu")),
        traces,
    )


class _Whole:
    """The field of the whole batch, evaluated for the samples that have not reached the end.

    A field that has additional inputs for each sample refuses a part of the batch. From then on it
    is called with the whole batch, in which the other samples keep their initial states.
    """

    def __init__(self, field: Field, z: Tensor, clock: Clock) -> None:
        self._field, self._z = field, z.detach()
        self._t = clock.time(0.0).detach()
        self._needs_all = self._settled = False

    def part(self, rows: Tensor) -> Field:
        """The field of some samples, ``(rows,)``."""

        def part(t: Tensor, z: Tensor) -> Tensor:
            if not self._needs_all:
                try:
                    return self._field(t, z)
                except (RuntimeError, ValueError, IndexError):
                    # if the part of the batch is not the cause, this raises the error again
                    value = self._among_all(rows, t, z)
                    self._needs_all = True
                    return value
            return self._among_all(rows, t, z)

        return part

    def settle(self, stepper: Stepper, theta: Tensor, z: Tensor) -> None:
        """Find out once, outside of a step, whether the field accepts a part of the batch."""
        if not self._settled:
            self._settled = True
            stepper.start_per_sample(theta, z)

    def _among_all(self, rows: Tensor, t: Tensor, z: Tensor) -> Tensor:
        here = rows.to(z.device)
        times = self._t.expand(len(self._z), *t.shape[1:]).index_copy(0, here, t)
        return self._field(times, self._z.index_copy(0, here, z))[here]


class _Record:
    """Records the steps of the samples."""

    def __init__(self, batch: int) -> None:
        self.counts = torch.zeros(2, batch, dtype=torch.long, device="cpu")  # accepted, rejected
        self._accepted: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, fractions reached, errors
        self._statuses, self._message = ["success"] * batch, ""

    def step(self, rows: Tensor, accepted: Tensor, target: Tensor, ratio: Tensor) -> None:
        """Record one step of some samples."""
        self.counts[0, rows] += accepted
        self.counts[1, rows] += ~accepted
        self._accepted.append((rows[accepted], target[accepted], ratio[accepted]))

    def fail(
        self, stepper: Stepper, solver: Adaptive, where: tuple[Tensor, Tensor], stops: list[Stop]
    ) -> None:
        """Record the samples that gave up, and describe the failure of the first one; ``where``:
        the active samples and their fractions.
        """
        active, theta = where

        def field(z: Tensor) -> Tensor:
            return stepper.start_per_sample(theta, z)

        known = field(stops[0].z).detach()
        for stop in stops:
            self._statuses[int(active[stop.row])] = status_of(stop, known)
        if not self._message:
            clock, stop, k = stepper.clock, stops[0], stops[0].row
            accepted, rejected = self.counts[:, active[k]].tolist()
            self._message = (
                f"The solve of sample {int(active[k])} with {stepper.tableau.name} stopped at "
                f"t = {clock.at(float(theta[k])):.6g} of [{clock.t0:g}, {clock.t1:g}] "
                f"after {accepted} accepted and {rejected} rejected steps "
                f"(next step size {abs(stop.h):.3g}): {reason(field, known, solver, stop)[1]}."
            )

    def traces(self) -> SampleTraces:
        """The grids and errors of all samples, side by side."""
        steps = int(self.counts[0].max()) if self.counts.numel() else 0
        grid = torch.zeros(steps + 1, self.counts.shape[1], dtype=torch.float64, device="cpu")
        errors = torch.full(
            (steps, self.counts.shape[1]), float("nan"), dtype=torch.float64, device="cpu"
        )
        position = torch.zeros_like(self.counts[0])
        for rows, fractions, ratios in self._accepted:
            errors[position[rows], rows] = ratios
            position[rows] += 1
            grid[position[rows], rows] = fractions
        n_failed = sum(status != "success" for status in self._statuses)
        others = f" {n_failed - 1} other samples failed, too." if n_failed > 1 else ""
        grid, (accepted, rejected) = grid.cummax(0).values, self.counts
        return SampleTraces(
            grid, errors, accepted, rejected, tuple(self._statuses), self._message + others
        )


@dataclass(frozen=True)
class _Wanted:
    """Points inside the steps of some samples: fractions of the steps, rows among these samples,
    and indices among all points.
    """

    theta: Tensor
    rows: Tensor
    index: Tensor


class _Saver:
    """Collects states as each sample passes its points."""

    def __init__(self, points: SavePoints, z: Tensor) -> None:
        shape = (len(points.fractions), len(z))
        fractions = points.fractions if points.per_sample else points.fractions[:, None]
        moving = fractions if points.moving is None else points.moving.view(fractions.shape)
        self._fractions, self._moving = fractions.expand(shape), moving.expand(shape)
        self._ends_stay = points.ends_stay
        self._z, self._index, self._states = z, list[Tensor](), list[Tensor]()

    def wanted(self, active: Tensor, before: Tensor, after: Tensor) -> _Wanted | None:
        """The points inside the steps of the active samples between two fractions; None if there
        are none.
        """
        points = self._fractions[:, active]
        hits = (points > before) & (points <= after)
        if self._ends_stay:
            hits &= points < 1
        else:
            hits |= (points <= 0) & (before == 0)
        at, rows = hits.nonzero().unbind(1)
        if not len(at):
            return None
        theta = (self._moving[at, active[rows]] - before[rows]) / (after - before)[rows]
        return _Wanted(theta, rows, at * len(self._z) + active[rows])

    def take(self, index: Tensor, states: Tensor) -> None:
        """Add the states at some of the points."""
        self._index.append(index)
        self._states.append(states)

    def stacked(self, final: Tensor, arrived: Tensor) -> Tensor:
        """The states at all points, ``(times, batch, …)``; NaN where a sample has no time or failed
        before it.
        """
        z, n = self._z, self._fractions.numel()
        if self._ends_stay:
            for at, states in (
                (self._fractions <= 0, z),
                ((self._fractions >= 1) & arrived, final),
            ):
                index = at.flatten().nonzero()[:, 0]
                self.take(index, states[(index % max(len(z), 1)).to(z.device)])
        saved = z.new_full((n, *z.shape[1:]), float("nan"))
        if self._index:
            saved = saved.index_copy(
                0, torch.cat(self._index).to(z.device), torch.cat(self._states)
            )
        return saved.view(len(self._fractions), *z.shape)


def _columns(values: Tensor, state: Tensor) -> Tensor:
    """Values ``(samples,)`` made broadcastable against ``(samples, …)`` states."""
    return values.view(-1, *[1] * (state.dim() - 1))


def _all_finite(x: Tensor) -> Tensor:
    """Whether a sample is finite: ``(samples,)``."""
    return x.detach().isfinite().view(len(x), -1).all(1)


def _first_fractions(stepper: Stepper, solver: Adaptive, z: Tensor, first: Tensor) -> Tensor:
    length = abs(stepper.clock.length)
    if solver.first_step is not None:
        return torch.full(
            (len(z),), min(1.0, solver.first_step / length), dtype=torch.float64, device="cpu"
        )
    scale = error_scale(z.detach(), solver.rtol, solver.atol)

    def norms(x: Tensor) -> Tensor:
        return rms_per_sample(x.detach() / scale)

    d0, d1 = norms(z), norms(first)
    # a tiny tolerance can make the norm of a finite field overflow
    if bool(d1.isinf().any()):
        d1 = torch.where(d1.isinf() & _all_finite(first).cpu(), float_info.max, d1)
    h0 = torch.tensor(
        list(map(trial_step, d0.tolist(), d1.tolist())), dtype=torch.float64, device="cpu"
    )
    trial = h0.clamp(max=length) / length
    # not under no_grad: the field may compute derivatives itself
    moved = stepper.start_per_sample(
        trial, z + _columns(stepper.clock.tensor_step(trial), z).detach() * first
    )
    d2 = norms(moved - first) / (trial * length)
    order = solver.tableau.embedded_order + 1
    steps = [
        starting_step(x, y, c, order)
        for x, y, c in zip(h0.tolist(), d1.tolist(), d2.tolist(), strict=True)
    ]
    return torch.tensor(steps, dtype=torch.float64, device="cpu").clamp(max=length) / length
