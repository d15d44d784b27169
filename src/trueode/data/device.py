"""Data on its way to a device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch

CPU = torch.device("cpu")
SHARE = 1 / 3  # of a device's free memory that a part of a data set may take
Made = TypeVar("Made")


def ahead(made: Iterator[Made]) -> Iterator[Made]:
    """The same items, each given out after the next one was made."""
    for item in made:
        for following in made:
            yield item
            item = following
        yield item
