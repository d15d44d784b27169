"""Data sets, which are generated, downloaded or the user's, and batches in a reproducible order."""

from __future__ import annotations

from collections.abc import Callable
from os.path import expanduser
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trueode.catalog import DATA_SETS, TASKS
from trueode.data.cache import Arrays, cached
from trueode.data.fingerprint import identity
from trueode.data.loaders import Batches
from trueode.data.splits import Batch, Dataset, Samples, Split
from trueode.data.unseen import Unseen, drawn, held_out
from trueode.errors import DataError, nearest
from trueode.seeds import stream

__all__ = [
    "Batch",
    "Batches",
    "Dataset",
    "Samples",
    "Split",
    "Unseen",
    "generator_version",
    "identity",
    "keep_unseen",
    "load_dataset",
]


def load_dataset(
    name: str,
    data_dir: str | Path = "./data",
    *,
    seed: int = 0,
    task: str = "auto",
    image_size: int | None = None,
    num_workers: int = 2,
    dtype: torch.dtype = torch.float32,
) -> Dataset:
    """Load a data set.

    Args:
        name: one of ``catalog.DATA_SETS``.
        data_dir: its folder; generated data is stored in the subfolder ``generated``.
        seed: of generated data and of the choice of test samples. Training and test data are drawn
            independently.
        task: the task; ``"auto"`` takes that of the data set.
        image_size: images are resized (shorter side) and cropped to squares of this size; None
            keeps their size.
        num_workers: number of threads that decode images.
        dtype: of all numbers except labels.

    Raises:
        DataError: the name is unknown, or the data is missing, unreadable or unsuitable; the
            message says what to do.
    """
    if name not in DATA_SETS:
        known = ", ".join(DATA_SETS)
        raise DataError(
            f"dataset = {name!r} is unknown; known are {known}.{nearest(name, DATA_SETS)}"
        )
    kind, own_task = DATA_SETS[name]
    if task not in ("auto", *TASKS) or (own_task != "any" and task not in ("auto", own_task)):
        allowed = ", ".join(("auto", *TASKS) if own_task == "any" else ("auto", own_task))
        raise DataError(
            f"task = {task!r} is impossible with dataset = {name}; allowed are {allowed}."
        )
    if image_size is not None and (kind != "image" or image_size < 1):
        raise DataError(
            f"image_size = {image_size} is impossible with dataset = {name}: expected at least 1, "
            "and images."
        )
    root = Path(expanduser(data_dir))
    if name == "arrays":
        from trueode.data.arrays import arrays

        dataset = arrays(root, seed=seed, task=task)
    elif name == "image_folder":
        from trueode.data.folder import image_folder

        train, test, classes = image_folder(
            root, seed=seed, image_size=image_size, num_workers=num_workers
        )
        shape = tuple(train.batch(torch.zeros(1, dtype=torch.int64, device="cpu")).x.shape[1:])
        dataset = Dataset(name, own_task, train, test, shape, len(classes), classes)
    elif kind == "image":
        dataset = _published(name, root, image_size)
    else:
        dataset = _generated(name, root / "generated", seed)
    return dataset.to(dtype)


def _published(name: str, root: Path, image_size: int | None) -> Dataset:
    from trueode.data.images import cifar10, mnist, resized

    train, test, classes = (mnist if name == "mnist" else cifar10)(root)
    if image_size is not None:
        train, test = ((resized(x, image_size), y) for x, y in (train, test))
    shape = tuple(train[0].shape[1:])
    return Dataset(
        name, "classification", Split(*train), Split(*test), shape, len(classes), classes
    )


def _generated(name: str, folder: Path, seed: int) -> Dataset:
    draw, version = _generator(name)
    task = DATA_SETS[name].task
    counts = {"timeseries": (64, 500), "density": (10_000, 2000)}.get(task, (2000, 1000))

    def make() -> Arrays:
        drawn = (draw(n, stream(seed, "data", part)) for part, n in enumerate(counts))
        return {
            f"{part}_{split}": value
            for split, parts in zip(("train", "test"), drawn, strict=True)
            for part, value in zip("xyt", parts, strict=False)
        }

    arrays = cached(
        folder, name, {"name": name, "version": version, "seed": seed, "counts": counts}, make
    )
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    train, test = (
        Split(tensors[f"x_{s}"], tensors[f"y_{s}"], tensors.get(f"t_{s}"))
        for s in ("train", "test")
    )
    shape = tuple(train.x.shape[1:])
    if task == "density":
        return Dataset(name, task, train, test, shape, 1)
    if train.t is not None:
        return Dataset(
            name, task, train, test, shape, train.x[0].numel(), t_end=float(train.t.max())
        )
    return Dataset(name, task, train, test, shape, int(train.y.max()) + 1)


def keep_unseen(
    dataset: Dataset, *, seed: int, share: float, size: int, generated: int | None = None
) -> tuple[Dataset, Unseen]:
    """Provide samples that training does not see: fresh draws of generated data, otherwise some of
    the training samples.

    Args:
        dataset: the data.
        seed: of the run.
        share: of the training samples that is held out, unless the data is generated.
        size: number of samples for each attempt to certify.
        generated: the same for generated data; None: the same number.

    Returns:
        The data to train and test with, and the unseen samples.

    Raises:
        DataError: there are too few samples.
    """
    if DATA_SETS[dataset.name].shape != "signal":  # not generated
        return held_out(dataset, share, size, seed=seed)
    draw, _ = _generator(dataset.name)

    def fresh(n: int, key: int) -> Split:
        x, y, *t = (torch.from_numpy(part.copy()) for part in draw(n, stream(seed, "unseen", key)))
        return Split(x, y, t[0] if t else None).to(dataset.train.dtype)

    return dataset, drawn(fresh, generated or size, dataset.name)


def generator_version(name: str) -> int:
    """The version of a generator; another version draws other samples from the same seed."""
    return _generator(name)[1]


def _generator(name: str) -> tuple[Callable[[int, np.random.Generator], tuple[Any, ...]], int]:
    """The generator of a data set, and its version."""
    from trueode.data import minima, pendulum, planar, spheres

    if name in planar.GENERATORS:
        return lambda n, rng: planar.planar(name, n, rng), planar.VERSION
    if name == "pendulum":
        return pendulum.pendulum, pendulum.VERSION
    if name == "three_minima":
        return minima.three_minima, minima.VERSION
    d = int(name.removeprefix("concentric_sphere"))
    return lambda n, rng: spheres.concentric_spheres(n, d, rng), spheres.VERSION
