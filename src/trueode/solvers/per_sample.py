"""The integration loop with adaptive steps for each sample separately."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trueode.solvers.clock import Clock
from trueode.solvers.control import (
    error_scale,
    rms_per_sample,
    scaled_error,
    starting_fractions,
    step_factors,
)
from trueode.solvers.failure import Stop, reason, status_of
from trueode.solvers.saving import Inside, SavePoints
from trueode.solvers.solver import Adaptive
from trueode.solvers.step import Field, Stepper
from trueode.transfer import send


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
    are controlled in float64 where the state is, with one look at the results of each step; the
    field sees times of shape ``(samples, 1, …)``.

    Args:
        stepper: takes the steps.
        solver: method and tolerances.
        z: initial state ``(batch, …)``.
        points: the times at which states are saved.

    Returns:
        The final states, the states at the points ``(times, batch, …)`` and the traces.
    """
    clock, device = stepper.clock, z.device
    control = device if device.type == "cuda" else torch.device("cpu")  # others lack float64
    whole, record = _Whole(stepper.field, z, clock), _Record(len(z), control)
    saver = None if points is None else _Saver(points, z, control)
    final, state, first = z, z, None
    active = torch.arange(len(z) if clock.length else 0, device=control)
    theta = torch.zeros(len(active), dtype=torch.float64, device=control)
    dtheta, finite = theta, theta.isfinite()
    most = solver.longest(clock.length) if clock.length else 1.0
    if len(active):
        first = stepper.start_per_sample(theta, z)
        dtheta = _first_fractions(stepper, solver, z, first, control).clamp(max=most)
    elif not len(z):
        # nothing to solve, but the weights must be in the graph, as on ranks that have samples
        final = z + 0 * stepper.start_per_sample(theta, z)

    def giving_up() -> Tensor:
        tired = record.counts[:, active].sum(0) >= solver.max_steps
        return (dtheta <= 10 * torch.finfo(torch.float64).eps * theta) | ~dtheta.isfinite() | tired

    failed = giving_up()
    any_fails = int(failed.any())
    while len(active):
        if any_fails:
            sizes, tired = dtheta * clock.length, record.counts[:, active].sum(0)
            stops = [
                Stop(state, float(sizes[k]), int(tired[k]) >= solver.max_steps, bool(finite[k]), k)
                for k in failed.nonzero()[:, 0].tolist()
            ]
            record.fail(stepper, solver, (active, theta), stops)
            leaving, n_leaving, any_fails = failed, len(stops), 0
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
                    scaled_error(result.error, state, result.z, solver.rtol, solver.atol), control
                )
                accepted, finite = ratio <= 1, ratio.isfinite()
            dtheta = (
                (target - theta) * step_factors(ratio, solver.tableau.embedded_order + 1)
            ).clamp(max=most)
            before, theta = theta, torch.where(accepted, target, theta)
            record.step(active, accepted, target, ratio)
            leaving, failed = theta >= 1, giving_up()
            failed = failed & ~leaving
            facts = torch.stack([~accepted, ~finite, leaving, failed]).sum(1)
            n_rejected, n_infinite, n_leaving, any_fails = facts.tolist()
            if n_infinite:
                finite = finite | (_all_finite(result.z) & _all_finite(result.error)).to(control)
            if n_rejected:
                if result.z.requires_grad and n_infinite:
                    # the overflow of a rejected step would enter the gradients as 0 x inf: repeat
                    # rejected steps with size 0
                    span = stepper.span_per_sample(before, theta, state)
                    result = stepper.step(span, state, first, inside, with_error=True)
                column = _columns(accepted.to(device), state)
                end = (
                    None
                    if result.end is None or first is None
                    else torch.where(column, result.end, first)
                )
                result = result._replace(z=torch.where(column, result.z, state), end=end)
            if saver is not None and wanted is not None and result.saved is not None:
                saver.take(wanted.index, result.saved, accepted[wanted.rows])
            state, first = result.z, result.end
        if n_leaving:
            # like indices by a mask, whose number is known
            order = leaving.byte().argsort(descending=True, stable=True)
            gone, kept = order[:n_leaving], order[n_leaving:]
            final = final.index_copy(0, active[gone].to(device), state[gone.to(device)])
            here = kept.to(device)
            state, first = state[here], None if first is None else first[here]
            active, theta, dtheta, finite = active[kept], theta[kept], dtheta[kept], finite[kept]
            failed = failed[kept]
            stepper = replace(stepper, field=whole.part(active))
            # a step must behave the same when it is recomputed
            if stepper.recompute and len(active):
                whole.settle(stepper, theta, state)
    traces = record.traces()
    if saver is None:
        return final, None, traces
    arrived = [status == "success" for status in traces.statuses]
    return final, saver.stacked(final, torch.tensor(arrived, device="cpu").to(control)), traces


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

    def __init__(self, batch: int, device: torch.device) -> None:
        self.counts = torch.zeros(2, batch, dtype=torch.long, device=device)  # accepted, rejected
        # of each attempt: rows, whether accepted, fractions reached, errors
        self._attempts: list[Tensor] = []
        self._statuses, self._message = ["success"] * batch, ""

    def step(self, rows: Tensor, accepted: Tensor, target: Tensor, ratio: Tensor) -> None:
        """Record one step of some samples."""
        self.counts[0, rows] += accepted
        self.counts[1, rows] += ~accepted
        self._attempts.append(torch.stack([rows.double(), accepted.double(), target, ratio]))

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
        counts = self.counts.cpu()
        steps, batch = int(counts[0].max()) if counts.numel() else 0, counts.shape[1]
        grid = torch.zeros(steps + 1, batch, dtype=torch.float64, device="cpu")
        errors = torch.full((steps, batch), float("nan"), dtype=torch.float64, device="cpu")
        position = torch.zeros_like(counts[0])
        sizes = [attempt.shape[1] for attempt in self._attempts]
        known = torch.split(torch.cat(self._attempts, 1).cpu(), sizes, 1) if sizes else ()
        for attempt in known:
            found = attempt[:, attempt[1] > 0]
            rows, fractions, ratios = found[0].long(), found[2], found[3]
            errors[position[rows], rows] = ratios
            position[rows] += 1
            grid[position[rows], rows] = fractions
        n_failed = sum(status != "success" for status in self._statuses)
        others = f" {n_failed - 1} other samples failed, too." if n_failed > 1 else ""
        grid, (accepted, rejected) = grid.cummax(0).values, counts
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

    def __init__(self, points: SavePoints, z: Tensor, device: torch.device) -> None:
        shape = (len(points.fractions), len(z))
        fractions = points.fractions if points.per_sample else points.fractions[:, None]
        moving = fractions if points.moving is None else points.moving.view(fractions.shape)
        fractions, moving = send(fractions, device), send(moving, device)
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

    def take(self, index: Tensor, states: Tensor, accepted: Tensor | None = None) -> None:
        """Add the states at some of the points, or at those of accepted steps."""
        if accepted is not None:  # others go to a place after the last one
            index = torch.where(accepted, index, self._fractions.numel())
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
        saved = z.new_full((n + 1, *z.shape[1:]), float("nan"))
        if self._index:
            saved = saved.index_copy(
                0, torch.cat(self._index).to(z.device), torch.cat(self._states)
            )
        return saved[:n].view(len(self._fractions), *z.shape)


def _columns(values: Tensor, state: Tensor) -> Tensor:
    """Values ``(samples,)`` made broadcastable against ``(samples, …)`` states."""
    return values.view(-1, *[1] * (state.dim() - 1))


def _all_finite(x: Tensor) -> Tensor:
    """Whether a sample is finite: ``(samples,)``."""
    return x.detach().isfinite().reshape(len(x), -1).all(1)


def _first_fractions(
    stepper: Stepper, solver: Adaptive, z: Tensor, first: Tensor, device: torch.device
) -> Tensor:
    length = abs(stepper.clock.length)
    if solver.first_step is not None:
        step = min(1.0, solver.first_step / length)
        return torch.full((len(z),), step, dtype=torch.float64, device=device)
    scale = error_scale(z.detach(), solver.rtol, solver.atol)
    order = solver.tableau.embedded_order + 1

    def norms(x: Tensor) -> Tensor:
        return rms_per_sample(x.detach() / scale, device)

    def move(trial: Tensor) -> Tensor:  # not under no_grad: the field may compute derivatives
        h = _columns(stepper.clock.tensor_step(trial), z).detach()
        return stepper.start_per_sample(trial, z + h * first)

    start = z, first, _all_finite(first).to(device)
    return starting_fractions(norms, move, start, length, order)
