"""The features behind large defects: their edges, found by bisection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from trueode.evaluation.course import BISECTIONS, NARROWEST, Feature

# The error of a step is smooth. A missed feature has an edge that is narrower than this part of the
# way to the end of the step: on both sides, or on one.
SHARP, SHARPER = 1 / 8, 1 / 32
POINTS = 32  # parts of the way to an end of the step, in which an edge is searched
ADJACENT = 3  # most of these parts that an edge may take


def features(
    edges: Sequence[Sequence[float]], away: Sequence[float], step: float
) -> Iterator[Feature]:
    """Make a feature of each edge that is a jump, and one of all others, if they are sharp.

    Args:
        edges: bounds ``(lower, upper)`` of the edge on each side of a place.
        away: the distance of the place from the end of the step on each side.
        step: the length of the step.
    """
    found = [
        ((low, high), (high - low) / far)
        for (low, high), far in zip(edges, away, strict=True)
        if far
    ]
    both = all(ratio < SHARP for _, ratio in found)
    apart = [Feature(*edge, (edge,), step) for edge, ratio in found if both or ratio < SHARPER]
    lasting = [each for each in apart if not each.jumps]
    yield from (each for each in apart if each.jumps)
    if lasting:
        yield Feature(
            min(x.start for x in lasting),
            max(x.end for x in lasting),
            tuple(x.edges[0] for x in lasting),
            step,
        )


def bisected(
    defect: Callable[[Tensor], Tensor], inside: Tensor, outside: Tensor, there: Tensor
) -> tuple[Tensor, Tensor]:
    """Bisect the way between two times to the narrowest part in which a defect changes by half.

    The defect may also fall and rise again on the way: first, a few points show where it changes
    most.
    """
    width = (outside - inside) / POINTS
    way = inside + torch.arange(1, POINTS, device="cpu")[:, None] * width
    values = torch.cat([there[None], defect(way), torch.zeros_like(there)[None]])
    size, entries = values.norm(dim=2).amax(0), torch.arange(len(there), device="cpu")
    going, part, span = torch.zeros_like(size, dtype=torch.bool), 0 * entries, 0 * entries
    for adjacent in range(1, ADJACENT + 1):
        most, place = (values[:-adjacent] - values[adjacent:]).norm(dim=2).max(0)
        new = (most >= size / 2) & ~going
        part, span = torch.where(new, place, part), torch.where(new, adjacent, span)
        going |= new
    at_inside, at_outside = values[part, entries], values[part + span, entries]
    outside = torch.where(going, inside + (part + span) * width, outside)
    inside = torch.where(going, inside + part * width, inside)
    for _ in range(BISECTIONS):
        if not bool(going.any()):
            break
        middle = (inside + outside) / 2
        at_middle = defect(middle)
        size = torch.maximum(size, at_middle.norm(dim=1))  # the defect may be larger there
        near, far = (at_inside - at_middle).norm(dim=1), (at_middle - at_outside).norm(dim=1)
        going &= (outside - inside).abs() > NARROWEST
        going &= torch.maximum(near, far) >= size / 2
        closer, further = going & (near >= far), going & (near < far)
        outside = torch.where(closer, middle, outside)
        at_outside = torch.where(closer[:, None], at_middle, at_outside)
        inside = torch.where(further, middle, inside)
        at_inside = torch.where(further[:, None], at_middle, at_inside)
    return inside, outside
