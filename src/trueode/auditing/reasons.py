"""Why a model depends on its solver: margins, stiffness, crossing trajectories, dependence on the
batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from trueode.auditing.interception import replaced
from trueode.auditing.model_under_test import ModelUnderTest
from trueode.auditing.problem import ForeignProblem, Solved
from trueode.auditing.replacement import breaks_within, replace_by
from trueode.auditing.samples import chosen
from trueode.catalog import METHODS
from trueode.evaluation import Evaluation, ExactFlow, Row
from trueode.solvers import ButcherTableau, FixedStep, Solver, get_tableau
from trueode.solvers.problem import Problem
from trueode.solvers.solving import solve_problem

PROBED = 40  # samples
TIMES = 5  # along the trajectories
POWER_STEPS = 12
FINE = 128  # steps of rk4 along which the exact flow is looked at
LONGEST = 129  # points of a trajectory
PAIRS_AT_ONCE = 16  # of trajectories: few enough to stay in the processor's cache


@dataclass(frozen=True)
class Reasons:
    """What explains a verdict; none of it decides.

    Attributes:
        margin_share: of classifiers: the error of the largest logit, relative to the margin between
            the two largest logits of the exact flow: its ``median``, its 90 % quantile ``q90``, and
            the share ``above_half`` of samples in which it exceeds a half.
        lipschitz: largest growth of a small difference per unit of time, along the exact
            trajectories of some samples; a lower bound of the field's Lipschitz constant there.
        step_lipschitz: the training step times ``lipschitz``.
        stability: the method is stable for steps times a negative eigenvalue down to minus this;
            NaN if it is not known.
        crossings: of two-dimensional states in an autonomous field: pairs of trajectories of
            different predictions that cross, under the training solver; None where it makes no
            sense.
        crossings_exact: the same under the exact flow, where none can cross but the chords that
            stand for them.
        pairs: pairs looked at.
        halved: predictions that change when the batches are halved: of solvers that control the
            error of a batch; None where it cannot be told.
        idle: whether an adaptive training solver accepted every step at its first try.
        texts: all of it in sentences.
    """

    margin_share: dict[str, float] | None
    lipschitz: float
    step_lipschitz: float
    stability: float
    crossings: int | None
    crossings_exact: int | None
    pairs: int
    halved: int | None
    idle: bool
    texts: tuple[str, ...]


@dataclass
class Paths:
    """Trajectories of some samples through the first ODE block.

    Attributes:
        own: under the training solver, ``(points, n, d)``.
        exact: under the exact flow, ``(points, n, d)``.
        predictions: of the samples under the training solver, ``(n,)``.
        predictions_exact: of the samples under the exact flow, ``(n,)``.
    """

    own: Tensor
    exact: Tensor
    predictions: Tensor
    predictions_exact: Tensor


def find_reasons(
    subject: ModelUnderTest, own: Evaluation, exact: ExactFlow, row: Row
) -> tuple[Reasons, Paths | None]:
    """Look for reasons, on some of the first samples.

    Args:
        subject: the model and the samples.
        own: the model under its training solver.
        exact: the model under its exact flow.
        row: of the training solver.

    Returns:
        The reasons, and for two-dimensional states the trajectories.
    """
    logits = (
        subject.task.name == "classification"
        and subject.task.decision is None
        and own.outputs.dim() == 2
    )
    shares = _margin_shares(own.outputs.double(), exact) if logits else None
    solver = own.solver.ours(own.n_steps) if hasattr(own.solver, "ours") else own.solver
    probe = _probe(subject, solver)
    length = probe.length
    single = not getattr(own.solver, "blocks", ())  # else the first block's steps are not known
    step = length / max(own.n_steps, 1.0) if single else nan
    limit = stability_limit(get_tableau(row.method)) if row.method in METHODS else nan
    halved = _halved(subject, own) if row.kind == "adaptive" else None
    idle = row.kind == "adaptive" and own.n_rejected == 0
    paths, crossings, crossings_exact, pairs = None, None, None, 0
    if probe.own is not None and probe.exact is not None and logits:
        n = probe.exact.shape[1]
        paths = Paths(
            probe.own, probe.exact, own.outputs[:n].argmax(1), exact.outputs[:n].argmax(1)
        )
        if probe.autonomous:
            crossings, pairs = count_crossings(paths.own, paths.predictions)
            crossings_exact, _ = count_crossings(paths.exact, paths.predictions_exact)
    reasons = Reasons(
        shares,
        probe.lipschitz,
        step * probe.lipschitz,
        limit,
        crossings,
        crossings_exact,
        pairs,
        halved,
        idle,
        (),
    )
    return Reasons(**{**vars(reasons), "texts": tuple(_texts(reasons, row, subject.n))}), paths


def _margin_shares(own: Tensor, flow: ExactFlow) -> dict[str, float] | None:
    exact = flow.outputs.double()
    there = flow.settled[:, 0] & exact.isfinite().all(1) & own.isfinite().all(1)
    if not bool(there.any()) or exact.shape[1] < 2:
        return None
    first, second = exact[there].topk(2, dim=1).values.unbind(1)
    share = (own - exact)[there].abs().amax(1) / (first - second).clamp(min=1e-30)
    above = (share > 0.5).double().mean()
    return {
        "median": float(share.median()),
        "q90": float(share.quantile(0.9)),
        "above_half": float(above),
    }


@dataclass
class _Probe:
    length: float = nan
    lipschitz: float = nan
    autonomous: bool = False
    own: Tensor | None = None
    exact: Tensor | None = None


def _probe(subject: ModelUnderTest, solver: Solver | None) -> _Probe:
    """Look at the field of the first ODE block, from inside a call of the model."""
    batch, size = subject.batches[0], subject.sizes[0]
    n = min(PROBED, size)
    few = chosen(batch, torch.arange(n, device="cpu"), size) if subject.separable else batch
    found = _Probe()

    inner = replace_by(
        FixedStep("rk4", n_steps=FINE), breaks=subject.breaks, max_step=subject.max_step
    )

    def look(problem: ForeignProblem) -> tuple[Tensor, Solved]:
        if found.length != found.length:  # the first block only
            _look(problem, solver, breaks_within(problem, subject.breaks), found)
        return inner(problem)

    with replaced(subject.forward.steady(look)):
        subject.forward(few)
    return found


def _look(
    problem: ForeignProblem, solver: Solver | None, breaks: tuple[float, ...], found: _Probe
) -> None:
    start, end = float(problem.times[0]), float(problem.times[-1])
    found.length = abs(end - start)
    grid = torch.linspace(start, end, FINE + 1, dtype=torch.float64, device="cpu")
    rk4 = FixedStep("rk4", n_steps=FINE, breaks=breaks)
    exact = solve_problem(
        Problem(problem.field, problem.z0, (start, end), solver=rk4, save_at=grid)
    )
    states = exact.zs
    assert states is not None
    chosen_times = torch.linspace(0, FINE, TIMES, device="cpu").round().long().tolist()
    found.lipschitz = max(
        growth(problem.field, grid[k].to(problem.z0.dtype), states[k], problem.samples)
        for k in chosen_times
    )
    if not problem.samples or problem.z0[0].numel() != 2:
        return
    z = states[0]
    early, late = (problem.field(grid[k].to(z), z) for k in (0, FINE))
    found.autonomous = bool(torch.equal(early, late))
    found.exact = states.flatten(2)[:, :PROBED].cpu()
    if solver is not None:
        # between its steps Euler's method goes straight; chords of higher methods could cross where
        # their solutions do not
        points = grid
        if (
            isinstance(solver, FixedStep)
            and solver.order == 1
            and solver.count(end - start) < LONGEST
        ):
            points = torch.linspace(
                start, end, solver.count(end - start) + 1, dtype=torch.float64, device="cpu"
            )
        own = solve_problem(
            Problem(problem.field, problem.z0, (start, end), solver=solver, save_at=points)
        )
        if own.status == "success" and own.zs is not None:
            found.own = own.zs.flatten(2)[:, :PROBED].cpu()


def growth(field: Callable[[Tensor, Tensor], Tensor], t: Tensor, z: Tensor, samples: bool) -> float:
    """The largest factor by which the field stretches small differences, by power iteration with
    finite differences.
    """
    if not bool(z.isfinite().all()):
        return nan
    generator = torch.Generator("cpu").manual_seed(0)
    direction = torch.randn(z.shape, generator=generator, dtype=torch.float64, device="cpu").to(z)
    kept = (0,) if samples else ()
    over = tuple(k for k in range(z.dim()) if k not in kept)
    size = torch.finfo(z.dtype).eps ** 0.5 * (1 + float(z.abs().amax()))

    def norm(x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, dim=over, keepdim=True) if over else x.abs()

    base, largest = field(t, z), 0.0
    for _ in range(POWER_STEPS):
        direction = direction / norm(direction).clamp(min=1e-30)
        image = (field(t, z + size * direction) - base) / size
        growth = norm(image)
        largest = max(largest, float(growth.amax()))
        direction = torch.where(growth > 0, image, direction)
    return largest


def stability_limit(tableau: ButcherTableau) -> float:
    """Where on the negative real axis a method stops being stable: |R(-x)| <= 1 for 0 <= x <=
    limit.

    Source: Hairer & Wanner, Solving Ordinary Differential Equations II, section IV.2.
    """
    s = tableau.advancing_stages
    a = torch.zeros(s, s, dtype=torch.float64, device="cpu")
    for i in range(s):
        for j, weight in enumerate(tableau.a[i][:s]):
            a[i, j] = weight
    b = torch.tensor(tableau.b[:s], dtype=torch.float64, device="cpu")
    one = torch.ones(s, dtype=torch.float64, device="cpu")

    def factor(x: float) -> float:
        return float(
            1
            - x
            * b
            @ torch.linalg.solve(torch.eye(s, dtype=torch.float64, device="cpu") + x * a, one)
        )

    x, step = 0.0, 1.0
    while step > 1e-6:
        while abs(factor(x + step)) <= 1 + 1e-12 and x < 100:
            x += step
        step /= 2
    return x


def count_crossings(paths: Tensor, labels: Tensor) -> tuple[int, int]:
    """Pairs of plane polylines of different labels that cross.

    Args:
        paths: ``(points, n, 2)``.
        labels: ``(n,)``.

    Returns:
        The pairs that cross, and all pairs of different labels.
    """
    n = paths.shape[1]
    first, second = torch.triu_indices(n, n, offset=1, device=paths.device)
    other = labels[first] != labels[second]
    first, second = first[other], second[other]
    a = paths.double().transpose(0, 1)
    crossed = 0
    for p, q in zip(first.split(PAIRS_AT_ONCE), second.split(PAIRS_AT_ONCE), strict=True):
        crossed += int((_apart(a[p], a[q]) & _apart(a[q], a[p]).mT).flatten(1).any(1).sum())
    return crossed, len(first)


def _apart(p: Tensor, q: Tensor) -> Tensor:
    """Whether the line through a segment of p has the ends of a segment of q on two sides:
    ``(pairs, of p, of q)``.
    """
    start, along = p[:, :-1, None], p.diff(dim=1)[:, :, None]
    to = q[:, None] - start
    side = along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0]
    return side[..., :-1] * side[..., 1:] < 0


def _halved(subject: ModelUnderTest, own: Evaluation) -> int | None:
    """Predictions that change when every batch is taken in two halves."""
    if not subject.separable:
        return None
    batches, sizes = [], []
    for batch, size in zip(subject.batches, subject.sizes, strict=True):
        for rows in torch.arange(size, device="cpu").chunk(2):
            batches.append(chosen(batch, rows, size))
            sizes.append(len(rows))
    halves = subject.on(tuple(batches), tuple(sizes)).run().outputs
    whole = own.outputs.double()
    return int(
        subject.task.flipped(halves.double(), whole, subject.task.allowed(whole)).any(1).sum()
    )


def _texts(reasons: Reasons, row: Row, n: int) -> list[str]:
    found = []
    if reasons.margin_share is not None:
        median, half = (reasons.margin_share[name] for name in ("median", "above_half"))
        found.append(
            f"the error of the logits is {median:.2g} of the decision margin in the median; it exceeds half of the margin, "
            f"which can change the prediction, in {100 * half:.1f} % of the samples"
        )
    if reasons.step_lipschitz == reasons.step_lipschitz:
        stable = ""
        if reasons.stability == reasons.stability and row.kind == "fixed":
            # a lower bound of a Lipschitz constant: what is below the limit may yet be unstable
            place = "above" if reasons.step_lipschitz > reasons.stability else "below"
            stable = f", {place} the stability limit {reasons.stability:.3g} of {row.method}"
        found.append(
            f"a step times the vector field's Lipschitz constant, estimated from below as {reasons.lipschitz:.3g}, is "
            f"{reasons.step_lipschitz:.3g}{stable}"
        )
    if reasons.crossings is not None:
        found.append(
            f"{reasons.crossings} of {reasons.pairs} pairs of trajectories of different predictions cross under the training "
            f"solver, {reasons.crossings_exact} under the exact flow, where only chords can: those of an ODE do not cross"
        )
    if reasons.halved:
        found.append(
            f"{reasons.halved} of {n} predictions change when the batches are halved: steps are shared by a batch"
        )
    if reasons.idle:
        found.append(
            "adaptivity is idle: every step was accepted at the first try, so the tolerance hardly decides the steps"
        )
    return found
