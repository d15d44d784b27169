"""Random numbers for different purposes from one seed: independent of each other, and of what else
is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_STREAMS = ("data", "split", "order", "weights", "unseen", "noise")


def stream(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """A generator for a purpose, and for one of its parts, such as an epoch.

    Args:
        seed: of the run.
        purpose: one of ``_STREAMS``.
        keys: numbers of the part.
    """
    return np.random.default_rng(_sequence(seed, purpose, *keys))


def torch_stream(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """The same for torch, whose generators want seeds with a good balance of 0 and 1 bits (its
    documentation says).
    """
    import torch

    number = int(_sequence(seed, purpose, *keys).generate_state(1, np.uint64)[0])
    return torch.Generator("cpu").manual_seed(number >> 1)


def _sequence(seed: int, purpose: str, *keys: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(_STREAMS.index(purpose), *keys))
