"""Reasons why a model depends on its solver: margins, stiffness, crossing trajectories, dependence
on the batch.
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
from trueode.catalog import METHODS
from trueode.evaluation import Evaluation, ExactFlow, Row
from trueode.solvers import ButcherTableau, FixedStep, Solver, get_tableau
from trueode.solvers.problem import Problem
from trueode.solvers.solving import solve_problem

PROBED = 40  # samples whose trajectories are examined
TIMES = 5  # times along each trajectory at which its Lipschitz constant is estimated
POWER_STEPS = 12  # iterations of the power method
FINE = 128  # steps of rk4 for the exact trajectories
LONGEST = 129  # most points of a trajectory
PAIRS_AT_ONCE = 16  # pairs of trajectories that fit into the processor's cache


@dataclass(frozen=True)
class Reasons:
    """Quantities that explain a verdict; none of them decides.

    Attributes:
        margin_share: for classifiers, the largest error of the logits relative to the margin
            between the two largest logits of the exact flow: its ``median``, its 90 % quantile
            ``q90``, and the share ``above_half`` of samples in which it exceeds a half.
        lipschitz: largest growth of a small difference per unit of time, along the exact
            trajectories of some samples; a lower bound of the field's Lipschitz constant there.
        step_lipschitz: the training step times ``lipschitz``.
        stability: the method is stable if the step times a negative eigenvalue is at least minus
            this; NaN if unknown.
        crossings: for two-dimensional states of an autonomous field, the number of pairs of
            trajectories with different predictions that cross under the training solver; None for
            other models.
        crossings_exact: the same under the exact flow. Its trajectories cannot cross, but the
            chords that represent them can.
        pairs: number of pairs that were examined.
        halved: for solvers that control the error of a batch, the number of predictions that change
            when batches are halved; None if this cannot be tested.
        idle: whether an adaptive training solver accepted every step at its first try.
        texts: all of these in sentences.
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
        own: states under the training solver, ``(points, n, d)``.
        exact: states under the exact flow, ``(points, n, d)``.
        predictions: predictions under the training solver, ``(n,)``.
        predictions_exact: predictions under the exact flow, ``(n,)``.
    """

    own: Tensor
    exact: Tensor
    predictions: Tensor
    predictions_exact: Tensor


def find_reasons(
    tested: ModelUnderTest, own: Evaluation, exact: ExactFlow, row: Row
) -> tuple[Reasons, Paths | None]:
    """Find reasons for the verdict, on some of the first samples.

    Args:
        tested: the model and the samples.
        own: results under the training solver.
        exact: results under the exact flow.
        row: the row of the training solver.

    Returns:
        The reasons, and for two-dimensional states the trajectories.
    """
    logits = (
        tested.task.name == "classification"
        and tested.task.decision is None
        and own.outputs.dim() == 2
    )
    shares = _margin_shares(own.outputs.double(), exact) if logits else None
    solver = own.solver.ours(own.n_steps) if hasattr(own.solver, "ours") else own.solver
    probe = _probe(tested, solver)
    length = probe.length
    single = not getattr(own.solver, "blocks", ())  # else the first block's steps are not known
    step = length / max(own.n_steps, 1.0) if single else nan
    limit = stability_limit(get_tableau(row.method)) if row.method in METHODS else nan
    halved = _halved(tested, own) if row.kind == "adaptive" else None
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
    return Reasons(**{**vars(reasons), "texts": tuple(_texts(reasons, row, tested.n))}), paths


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


def _probe(tested: ModelUnderTest, solver: Solver | None) -> _Probe:
    """Examine the field of the first ODE block, during a call of the model."""
    batch, size = tested.batches[0], tested.sizes[0]
    n = min(PROBED, size)
    few = tested.some(batch, torch.arange(n, device="cpu"), size) if tested.separable else batch
    found = _Probe()

    inner = replace_by(
        FixedStep("rk4", n_steps=FINE), breaks=tested.breaks, max_step=tested.max_step
    )

    def look(problem: ForeignProblem) -> tuple[Tensor, Solved]:
        # the first block only, if its interval is known
        if found.length != found.length and problem.event is None:
            _look(problem, solver, breaks_within(problem, tested.breaks), found)
        return inner(problem)

    with replaced(tested.forward.steady(look)):
        tested.forward(few)
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
        growth(problem.field, grid[k].to(problem.z0), states[k], problem.samples)
        for k in chosen_times
    )
    if not problem.samples or problem.z0[0].numel() != 2:
        return
    z = states[0]
    early, late = (problem.field(grid[k].to(z), z) for k in (0, FINE))
    found.autonomous = bool(torch.equal(early, late))
    found.exact = states.flatten(2)[:, :PROBED].cpu()
    if solver is not None:
        # Euler's method is straight between its steps; for methods of higher order, chords of
        # whole steps could cross even if their solutions do not
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
    """Estimate the largest factor by which the field stretches small differences, by power
    iteration with finite differences.
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
    """Compute the stability limit of a method on the negative real axis: |R(-x)| <= 1 for
    0 <= x <= limit.

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
    """Count the pairs of polylines in the plane that cross and have different labels.

    Args:
        paths: ``(points, n, 2)``.
        labels: ``(n,)``.

    Returns:
        The number of pairs that cross, and of all pairs with different labels.
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
    """Whether the ends of a segment of q lie on different sides of the line through a segment of p,
    ``(pairs, segments of p, segments of q)``.
    """
    start, along = p[:, :-1, None], p.diff(dim=1)[:, :, None]
    to = q[:, None] - start
    side = along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0]
    return side[..., :-1] * side[..., 1:] < 0


def _halved(tested: ModelUnderTest, own: Evaluation) -> int | None:
    """Count the predictions that change if each batch is split into two halves."""
    if not tested.separable:
        return None
    batches, sizes = [], []
    for batch, size in zip(tested.batches, tested.sizes, strict=True):
        for rows in torch.arange(size, device="cpu").chunk(2):
            batches.append(tested.some(batch, rows, size))
            sizes.append(len(rows))
    halves = tested.on(tuple(batches), tuple(sizes)).run().outputs
    whole = own.outputs.double()
    return int(tested.task.flipped(halves.double(), whole, tested.task.allowed(whole)).any(1).sum())


def _texts(reasons: Reasons, row: Row, n: int) -> list[str]:
    found = []
    if reasons.margin_share is not None:
        median, half = (reasons.margin_share[name] for name in ("median", "above_half"))
        found.append(
            f"the median error of the logits is {median:.2g} of the decision margin; in "
            f"{100 * half:.1f} % of the samples it exceeds half of the margin, enough to change "
            "the prediction"
        )
    if reasons.step_lipschitz == reasons.step_lipschitz:
        stable = ""
        if reasons.stability == reasons.stability and row.kind == "fixed":
            # the Lipschitz constant is a lower bound: a value below the limit proves no stability
            place = "above" if reasons.step_lipschitz > reasons.stability else "below"
            stable = f", {place} the stability limit {reasons.stability:.3g} of {row.method}"
        found.append(
            "the training step times the Lipschitz constant of the vector field (at least "
            f"{reasons.lipschitz:.3g}) is {reasons.step_lipschitz:.3g}{stable}"
        )
    if reasons.crossings is not None:
        found.append(
            f"{reasons.crossings} of {reasons.pairs} pairs of trajectories with different "
            f"predictions cross under the training solver, {reasons.crossings_exact} under the "
            "exact flow: trajectories of an ODE cannot cross, only the chords drawn for them"
        )
    if reasons.halved:
        found.append(
            f"{reasons.halved} of {n} predictions change when the batches are halved, because all "
            "samples of a batch share their steps"
        )
    if reasons.idle:
        found.append(
            "adaptivity is idle: every step was accepted at the first try, so the tolerance hardly "
            "affects the steps"
        )
    return found
