"""Random numbers for different purposes from one seed, independent of each other and of other
draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_STREAMS = ("data", "split", "order", "weights", "unseen", "noise", "partner")


def stream(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """A random generator for a purpose, or for one part of it, such as an epoch.

    Args:
        seed: the seed of the run.
        purpose: one of ``_STREAMS``.
        keys: numbers that identify the part.
    """
    return np.random.default_rng(_sequence(seed, purpose, *keys))


def torch_stream(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """The same for torch, which recommends seeds with a good balance of 0 and 1 bits."""
    import torch

    number = int(_sequence(seed, purpose, *keys).generate_state(1, np.uint64)[0])
    return torch.Generator("cpu").manual_seed(number >> 1)


def _sequence(seed: int, purpose: str, *keys: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(_STREAMS.index(purpose), *keys))
