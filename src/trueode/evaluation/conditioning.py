"""Predictions that move with a hair's breadth of the initial state have no flow that can be
computed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trueode.evaluation.course import FINEST, Guided
from trueode.evaluation.draft import Draft
from trueode.evaluation.witness import Witnessed
from trueode.solvers import Adaptive, FixedStep

NUDGED, NUDGE = (
    10,
    1e-9,
)  # rows that are looked at first, and the relative change of their initial state
GROWTH = 1e5  # of the change: a row that is not settled anyway is chaotic
CLOSE, PATIENT = (
    1e-10,
    4 * FINEST,
)  # tolerance of dopri5 and its most steps, where refinement does not help


def chaotic(draft: Draft, left: Tensor) -> bool:
    """Whether most of some rows move that are solved with a start that is a little off: no
    refinement helps then.
    """
    left = left[draft.apart[left].isfinite()]  # both methods arrive
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
    """Solve some rows again from a start that is a little off; where one of them moves, all: those
    that move are not settled.

    Rows that are left may have moved, too: that is why.

    Args:
        draft: what is known.
        steps: those of rk4, by level.
        left: rows that are not settled.
    """
    if draft.runnable.n == 1:  # a trajectory is followed from such a start in any case
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
    """Whether some of the rows move that are solved again with the steps of a level."""
    nudge = max(NUDGE, 8 * torch.finfo(draft.outputs.dtype).eps)
    solving = Witnessed(draft.course, n_steps, level, rows, nudge=nudge)
    nudged, known = (
        draft.run(FixedStep("rk4", n_steps=n_steps), rows, solving).outputs,
        draft.outputs[rows],
    )
    same = draft.same(nudged, known)
    moves = draft.differ(rows, same) & draft.finite(rows)
    # an unsettled prediction may just lie close to another one: its change must have grown, too
    change, size = ((x.flatten(1).abs().amax(1)) for x in (nudged - known, known))
    moves &= draft.settled[rows].any(1) | (change > GROWTH * nudge * size)
    draft.settled[rows] &= same
    draft.sensitive[rows] |= moves
    return bool(moves.any())
