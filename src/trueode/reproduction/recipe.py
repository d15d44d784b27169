"""A recipe: how a figure or table of the paper is made from the runs of its plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trueode.reproduction.numbers import Row
from trueode.sweeps import Plan, SweepDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Context:
    """The input of a recipe: a plan, the directory of its runs, and their table."""

    plan: Plan
    directory: SweepDirectory
    rows: Sequence[Row]


@dataclass(frozen=True)
class Made:
    """The output of a recipe.

    Attributes:
        figure: the picture, if there is one.
        numbers: the numbers behind it, as rows of a table.
        text: findings in Markdown.
    """

    figure: Figure | None
    numbers: Sequence[Row]
    text: str = ""


@dataclass(frozen=True)
class Recipe:
    """One figure or table.

    Attributes:
        title: what it shows.
        make: draws and computes it.
        silent: choices of ours that the paper does not state.
        trains: whether it needs the runs of its plan.
    """

    title: str
    make: Callable[[Context], Made]
    silent: tuple[str, ...] = ()
    trains: bool = True
