"""Samples that training does not see: for the checks of an adaptation, and for its certificate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from trueode.data.splits import Dataset, Samples, Split
from trueode.errors import DataError
from trueode.seeds import stream

CONTROL = 1024
"""Number of samples for the checks of an adaptation: a check repeats samples only after it has used
many others.
"""
FEWEST = 8  # of these samples


@dataclass(frozen=True, eq=False)
class Unseen:
    """Samples other than those of training and test; their labels are not needed.

    Attributes:
        control: samples for the checks of an adaptation.
        size: number of samples of an attempt to certify.
        attempt: the samples of an attempt, counted from 1; new ones each time while there are any.
        source: origin of the samples in words.
    """

    control: Samples
    size: int
    attempt: Callable[[int], Samples]
    source: str


def drawn(draw: Callable[[int, int], Split], size: int, name: str) -> Unseen:
    """Fresh draws of the data set ``name``; ``draw(n, key)`` gives ``n`` new samples for a key."""
    return Unseen(
        draw(CONTROL, 0), size, lambda attempt: draw(size, attempt), f"drawn afresh from {name}"
    )


def held_out(dataset: Dataset, share: float, size: int, *, seed: int) -> tuple[Dataset, Unseen]:
    """Hold out training samples: a quarter of them, at most 1024, for checks, the others for
    certificates.

    Args:
        dataset: the data.
        share: of the training samples that is held out.
        size: number of samples for each attempt to certify; if there are fewer, each attempt uses
            all.
        seed: of the choice.

    Returns:
        The data with the remaining training samples, and the held-out samples.

    Raises:
        DataError: there are too few samples for training, checks or certificates.
    """
    n = len(dataset.train)
    kept = round(share * n)
    n_control = min(CONTROL, kept // 4)
    if n_control < FEWEST or kept >= n:
        raise DataError(
            f"--held_out {share:g} of {n} training samples are {kept}: at least {4 * FEWEST} are "
            "needed to control the adaptation and to certify the model, and some to train on. "
            "Give another --held_out, or more data."
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
