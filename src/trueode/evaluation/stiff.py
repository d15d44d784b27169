"""Rows on which explicit methods disagree: two implicit methods solve them and check blow-ups."""

from __future__ import annotations

import torch
from torch import Tensor

from trueode.evaluation.draft import TOGETHER, Draft, sizes
from trueode.evaluation.implicit import LONGEST, PATIENCE, Implicit
from trueode.evaluation.metrics import Evaluation
from trueode.solvers import Adaptive

TOLERANCE, COSTLY = 1e-7, 2000  # of implicit methods; about the field evaluations per row
# Blow-ups: the tolerance of Radau, the growth of a state that counts as infinite, and the number of
# rows that are checked.
ROUGH, GROWN, FEW = 1e-5, 1e6, 3


def settle_implicitly(draft: Draft, left: Tensor) -> None:
    """Mark rows on which two implicit methods agree as converged.

    A solve takes steps for the fast changes of each of its rows: there are as many rows in it as
    need about half of its evaluations. If the methods fail, the rows that remain are not tried.
    """
    rows, left = left[:TOGETHER], left[TOGETHER:]
    while len(rows):
        before = draft.spent
        if not _settled(draft, rows):
            return
        each = (draft.spent - before) / len(rows)
        size = max(TOGETHER, int(TOGETHER * PATIENCE / (2 * each)))
        rows, left = left[:size], left[size:]


def _settled(draft: Draft, rows: Tensor) -> bool:
    """Solve rows of one batch by two implicit methods; whether they agree on some."""
    one = _solved(draft, rows, Implicit(draft.course, "Radau", TOLERANCE), TOGETHER)
    if one is None or not bool(draft.runnable.finite(one.outputs, rows).any()):
        return False
    other = _solved(draft, rows, Implicit(draft.course, "LSODA", TOLERANCE), TOGETHER)
    if other is None:
        return False
    seen = draft.finite(rows)  # rk4 with its witness covered the whole interval
    draft.keep(rows[~seen], one.outputs[~seen], None, -1)
    same = (
        draft.same(other.outputs, one.outputs) & draft.runnable.finite(one.outputs, rows)[:, None]
    )
    draft.settle(rows, same, one.outputs, other.outputs)
    good = same.any(1)
    draft.keep(rows[good], one.outputs[good], None if one.states is None else one.states[good], -1)
    if bool(good.any()) and not bool(seen[good].all()):
        draft.width = max(draft.width, LONGEST)
    return bool(good.any())


def confirm_blow_ups(draft: Draft) -> None:
    """Reject blow-ups unless an implicit method loses the first of these rows at the same time."""
    lost = draft.blown_up.nonzero()[:FEW, 0]
    seen = [_ends(draft, row) for row in lost.tolist()]
    if not all(seen):
        draft.blown_up[:] = False
        draft.blown_up[lost] = torch.tensor(seen, device="cpu")


def _ends(draft: Draft, row: int) -> bool:
    """Whether Radau loses a row at the same time as rk4; also true if that cannot be tested."""
    radau, (known, within) = Implicit(draft.course, "Radau", ROUGH, GROWN), draft.ended[row]
    if _solved(draft, torch.tensor([row], device="cpu"), radau, 1) is None or radau.refused:
        return True
    return row in radau.ended and not abs(radau.ended[row] - known) > within


def _solved(draft: Draft, rows: Tensor, solving: Implicit, least: int) -> Evaluation | None:
    """Run rows under an implicit method; None if the budget does not allow it."""
    if draft.spent + COSTLY * len(rows) > draft.budget:
        return None
    solver = Adaptive("dopri5", solving.tolerance, solving.tolerance)  # `solving` replaces it
    return draft.run_by_parts(solver, rows, sizes(draft.own.outputs[rows]), least, solving)
