"""Inputs that training does not see: an adaptation is controlled with some of them, and its result
certified on others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from trueode.data.splits import Dataset, Samples, Split
from trueode.errors import DataError
from trueode.seeds import stream

CONTROL = 1024
"""Samples to control with: enough for a check not to meet the same ones again before others have
been seen.
"""
FEWEST = 8  # to control with


@dataclass(frozen=True, eq=False)
class Unseen:
    """Samples apart from those of training and test; their labels are not needed.

    Attributes:
        control: to control with.
        size: samples of an attempt to certify.
        attempt: the samples of an attempt, counted from 1: new ones each time where there are any.
        source: where they come from, in words.
    """

    control: Samples
    size: int
    attempt: Callable[[int], Samples]
    source: str


def drawn(draw: Callable[[int, int], Split], size: int, name: str) -> Unseen:
    """Fresh draws of the data set ``name``; ``draw(n, key)`` gives ``n`` samples, other ones for
    each key.
    """
    return Unseen(
        draw(CONTROL, 0), size, lambda attempt: draw(size, attempt), f"drawn afresh from {name}"
    )


def held_out(dataset: Dataset, share: float, size: int, *, seed: int) -> tuple[Dataset, Unseen]:
    """Keep samples from training: a quarter of them, 1024 at most, to control with, the others to
    certify on.

    Args:
        dataset: the data.
        share: of the training samples that is kept from it.
        size: samples wanted for an attempt to certify; where there are fewer, each attempt takes
            all.
        seed: of the choice.

    Returns:
        The data with what is left to train on, and what is kept.

    Raises:
        DataError: nothing would be left for one of the three.
    """
    n = len(dataset.train)
    kept = round(share * n)
    n_control = min(CONTROL, kept // 4)
    if n_control < FEWEST or kept >= n:
        raise DataError(
            f"--held_out {share:g} of {n} training samples are {kept}: at least {4 * FEWEST} are needed to control the "
            "adaptation and to certify the model, and some to train on. Give another --held_out, or more data."
        )
    order = torch.from_numpy(stream(seed, "unseen").permutation(n))
    control, pool = dataset.train.take(order[:n_control]), dataset.train.take(order[n_control:kept])
    train = dataset.train.take(order[kept:].sort().values)
    size = min(size, len(pool))
    whole = len(pool) // size

    def attempt(number: int) -> Samples:
        start = (number - 1) % whole * size
        return pool.take(torch.arange(start, start + size, device="cpu"))

    return replace(dataset, train=train), Unseen(
        control, size, attempt, f"held out of the training samples of {dataset.name}"
    )
