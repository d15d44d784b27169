"""Sensitivity: a prediction that a tiny change of the start moves has no computable flow."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trueode.evaluation.course import FINEST, Guided
from trueode.evaluation.draft import Draft
from trueode.evaluation.witness import Witnessed
from trueode.solvers import Adaptive, FixedStep

NUDGED, NUDGE = 10, 1e-9  # rows that are tested first, and the relative change of their start
GROWTH = 1e5  # growth of the change from which a row that has not converged counts as sensitive
CLOSE, PATIENT = 1e-10, 4 * FINEST  # tolerance and step limit of dopri5 in the test for chaos


def chaotic(draft: Draft, left: Tensor) -> bool:
    """Whether most tested rows move after a tiny change of their start; refinement cannot help
    then.
    """
    left = left[draft.apart[left].isfinite()]  # both methods reach the end
    if not draft.runnable.double or draft.runnable.n == 1 or not len(left):
        return False
    rows = left[torch.linspace(0, len(left) - 1, min(NUDGED, len(left)), device="cpu").long()]
    dopri5 = Adaptive("dopri5", CLOSE, CLOSE, max_steps=PATIENT)
    plain, nudged = (
        draft.run(dopri5, rows, Guided(draft.course, nudge)).outputs for nudge in (0.0, NUDGE)
    )
    finite = draft.runnable.finite(plain, rows) & draft.runnable.finite(nudged, rows)
    moves = draft.differ(rows, draft.same(nudged, plain)) & finite
    if 2 * int(moves.sum()) <= len(rows):
        return False
    draft.sensitive[rows] = moves
    return True


def perturb(draft: Draft, steps: Mapping[int, int], left: Tensor) -> None:
    """Solve rows again from a slightly changed start, and mark those that move as not converged.

    A few rows are tested first, and all of them if one moves. Rows that have not converged are
    tested too, because sensitivity may be the reason.

    Args:
        draft: the state of the computation.
        steps: the number of rk4 steps of each level.
        left: rows that have not converged.
    """
    if draft.runnable.n == 1:  # `follow` tests a single trajectory in any case
        return
    settled = (draft.needed & draft.settled).any(1).nonzero()[:, 0]
    unsettled = left[~draft.settled[left].all(1)][:NUDGED]
    order = torch.randperm(
        len(settled), generator=torch.Generator("cpu").manual_seed(0), device="cpu"
    )
    for rows in (
        unsettled,
        *(settled[part].sort().values for part in (order[:NUDGED], order[NUDGED:])),
    ):
        moved = False
        for level, n_steps in steps.items():
            here = rows[draft.level[rows] == level]
            moved |= len(here) > 0 and _moves(draft, here, level, n_steps)
        if not moved and rows is not unsettled:
            return


def _moves(draft: Draft, rows: Tensor, level: int, n_steps: int) -> bool:
    """Solve rows again with the steps of a level and a changed start; whether some of them move."""
    nudge = max(NUDGE, 8 * torch.finfo(draft.outputs.dtype).eps)
    solving = Witnessed(draft.course, n_steps, level, rows, nudge=nudge)
    nudged, known = (
        draft.run(FixedStep("rk4", n_steps=n_steps), rows, solving).outputs,
        draft.outputs[rows],
    )
    same = draft.same(nudged, known)
    moves = draft.differ(rows, same) & draft.finite(rows)
    # a prediction that has not converged may just lie close to another one: its change must have
    # grown, too
    change, size = ((x.flatten(1).abs().amax(1)) for x in (nudged - known, known))
    moves &= draft.settled[rows].any(1) | (change > GROWTH * nudge * size)
    draft.settled[rows] &= same
    draft.sensitive[rows] |= moves
    return bool(moves.any())
