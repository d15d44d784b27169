"""Images of one's own: a folder for each class."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trueode.data.splits import Batch, Samples, Split, as_numbers
from trueode.errors import DataError
from trueode.seeds import stream

FORMATS = {
    **{
        ".jpg": "JPEG",
        ".jpeg": "JPEG",
        ".png": "PNG",
        ".bmp": "BMP",
        ".gif": "GIF",
        ".webp": "WEBP",
    },
    **{".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM"},
}
"""Of Pillow, by the ending of a file's name; no other decoder is let near the file."""
MOST_PIXELS = 2**27  # of an image, as it lies there and resized
MEMORY = (
    4 * 2**30
)  # bytes of decoded images that are held in memory; more are read from disk as they are needed
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")

Array = np.ndarray[Any, Any]


class Files(NamedTuple):
    """Image files and their labels."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    def subset(self, indices: Sequence[int]) -> Files:
        return Files(tuple(self.paths[i] for i in indices), tuple(self.labels[i] for i in indices))


@dataclass(frozen=True, eq=False)
class FolderSplit(Samples):
    """Samples that are read from disk when they are asked for; otherwise like `Split`."""

    files: Files
    grey: bool
    image_size: int | None
    size: tuple[int, int]
    sized_by: Path  # the file that has this size
    dtype: torch.dtype = torch.float32

    t = None

    def __len__(self) -> int:
        return len(self.files.paths)

    @property
    def y(self) -> Tensor:  # type: ignore[override]  # the labels, made when they are asked for
        return torch.tensor(self.files.labels, dtype=torch.int64, device="cpu")

    def batch(self, indices: Tensor) -> Batch:
        """The samples of given indices ``(batch,)``."""
        chosen = self.files.subset(indices.tolist())
        pixels = [decode(path, self.image_size) for path in chosen.paths]
        x = np.empty((len(pixels), *self.size, 1 if self.grey else 3), np.uint8)
        for i, (path, image) in enumerate(zip(chosen.paths, pixels, strict=True)):
            _same_size(image, self.size, path, self.sized_by)
            x[i] = image[..., : x.shape[-1]]
        numbers = as_numbers(torch.from_numpy(x), self.dtype).permute(0, 3, 1, 2)
        return Batch(numbers, self.y[indices])

    def take(self, indices: Tensor) -> FolderSplit:
        """The samples of given indices ``(n,)`` as a split of their own."""
        return replace(self, files=self.files.subset(indices.tolist()))

    def to(self, dtype: torch.dtype) -> FolderSplit:
        """The same samples with floating point numbers of another type."""
        return replace(self, dtype=dtype)

    def read(
        self, indices: Iterator[tuple[Tensor, int]], num_workers: int
    ) -> Iterator[tuple[Batch, int]]:
        """Batches of given indices (with what stands beside them), read ahead by worker processes."""
        from torch.utils.data import DataLoader

        loader: Any = DataLoader(
            _Requests(self),
            sampler=indices,  # any iterable will do
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            generator=torch.Generator("cpu").manual_seed(
                0
            ),  # else it would draw from the global random state
        )
        with torch.device(
            "cpu"
        ):  # the loader draws a seed from this generator, on the default device
            items = iter(loader)
        for item in items:
            if isinstance(item, DataError):
                raise item
            yield item


@dataclass(frozen=True)
class _Requests(torch.utils.data.Dataset[Any]):
    """A split as torch's loader sees it: one item is a whole batch, or the error met in reading it."""

    split: FolderSplit

    def __getitem__(self, request: tuple[Tensor, int]) -> tuple[Batch, int] | DataError:
        indices, n = request
        try:
            return self.split.batch(indices), n
        except DataError as error:
            return error


def _as_it_is(item: Any) -> Any:
    return item


def image_folder(
    root: Path, *, seed: int, image_size: int | None, num_workers: int
) -> tuple[Samples, Samples, tuple[str, ...]]:
    """Read ``root/{train,test}/CLASS/*``; where there is no ``test``, a seeded fifth is held out.

    The test images are in a seeded random order.

    All images are grey if all files are, otherwise RGB.

    Args:
        root: the folder.
        seed: of the held-out fifth.
        image_size: the shorter side is resized to it and the middle square cut out; None: images as
            they are.
        num_workers: threads that decode.

    Returns:
        Training and test samples and the names of the classes, sorted.

    Raises:
        DataError: no images, a broken one, different sizes without ``image_size``, or a test class
            never trained on.
    """
    train_root = root / "train" if (root / "train").is_dir() else root
    classes = _subfolders(train_root)
    files = _scan(train_root, classes)
    if train_root != root and (root / "test").is_dir():
        unknown = sorted(set(_subfolders(root / "test")) - set(classes))
        if unknown:
            raise DataError(
                f"{root / 'test'} has the class {unknown[0]!r}, which {train_root} has not: the classes of the test "
                "images must be among those of the training images."
            )
        held_out = _scan(root / "test", classes)
    else:
        files, held_out = hold_out(files, seed)
    held_out = mixed(held_out, seed)
    both = Files(files.paths + held_out.paths, files.labels + held_out.labels)
    train, test = _load(both, len(files.paths), image_size, max(1, num_workers))
    return train, test, classes


def hold_out(files: Files, seed: int) -> tuple[Files, Files]:
    """Four fifths to train on and one fifth, chosen at random, to test on; both in their old order."""
    n = len(files.paths)
    if n < 2:
        raise DataError(
            f"One image cannot be split: {files.paths[0]} is all there is. Add more images."
        )
    chosen = np.zeros(n, bool)
    chosen[stream(seed, "split").permutation(n)[: max(1, n // 5)]] = True
    return files.subset(np.flatnonzero(~chosen).tolist()), files.subset(
        np.flatnonzero(chosen).tolist()
    )


def mixed(files: Files, seed: int) -> Files:
    """The files in a random order: the first of them, on which a verdict is founded, are of all
    classes.
    """
    return files.subset(stream(seed, "split", 1).permutation(len(files.paths)).tolist())


def decode(path: Path, image_size: int | None) -> Array:
    """Decode a file into bytes ``(height, width, 3)``, or ``(height, width, 1)`` where the file is
    grey.
    """
    from PIL import Image

    with _opened(path) as image:
        grey = image.mode in GREY
        if image.mode.startswith("I"):  # 16 bits
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image = image.convert("L" if grey else "RGB")
        if image_size is not None and image.size != (image_size, image_size):
            scale = image_size / min(image.size)
            width, height = (max(image_size, round(side * scale)) for side in image.size)
            _bound(width, height)
            left, top = (width - image_size) // 2, (height - image_size) // 2
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            image = image.crop((left, top, left + image_size, top + image_size))
        pixels: Array = np.array(image)
    return pixels[..., None] if grey else pixels


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An image file in the format that its name tells, in a block whose failures are those of the
    file.
    """
    from PIL import Image

    kind = FORMATS[path.suffix.lower()]
    try:
        if not path.is_file():  # a pipe would never end
            raise ValueError("no regular file")
        with Image.open(path, formats=[kind]) as image:
            _bound(*image.size)
            yield image
    except Exception as error:  # Pillow fails in as many ways as files can be damaged
        raise DataError(
            f"The image {path} cannot be read as {kind} ({error}). Repair, rename or remove it."
        ) from error


def _bound(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MOST_PIXELS}")


def _subfolders(root: Path) -> tuple[str, ...]:
    try:
        names = tuple(
            sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))
        )
    except OSError as error:
        raise DataError(
            f"The folder {root} cannot be read ({error.strerror}). image_folder expects "
            "DATA_DIR/train/CLASS/* and DATA_DIR/test/CLASS/*, or DATA_DIR/CLASS/*; DATA_DIR is given with --data_dir."
        ) from error
    if not names:
        raise DataError(
            f"{root} has no subfolders. image_folder expects one for each class with its images: DATA_DIR/train/CLASS/* "
            "and DATA_DIR/test/CLASS/*, or DATA_DIR/CLASS/*."
        )
    return names


def _scan(root: Path, classes: tuple[str, ...]) -> Files:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = root / name
        if folder.is_dir():
            found = sorted(
                e.name for e in os.scandir(folder) if Path(e.name).suffix.lower() in FORMATS
            )
            paths += [folder / file for file in found]
            labels += [label] * len(found)
    if not paths:
        raise DataError(
            f"There are no images in {root}/CLASS/; known are the endings {', '.join(FORMATS)}."
        )
    return Files(tuple(paths), tuple(labels))


def _same_size(image: Array, size: tuple[int, int], path: Path, first: Path) -> None:
    height, width = image.shape[:2]
    if (height, width) != size:
        raise DataError(
            f"The images differ in size: {first} has {size[1]} x {size[0]} pixels, {path} has {width} x {height}. "
            "Give them one with --image_size."
        )


def _load(files: Files, n_train: int, image_size: int | None, threads: int) -> tuple[Any, Any]:
    height, width = size = decode(files.paths[0], image_size).shape[:2]
    n = len(files.paths)
    if n * height * width * 3 > MEMORY:
        with ThreadPoolExecutor(threads) as pool:
            grey = all(pool.map(_is_grey, files.paths, chunksize=64))
        whole = FolderSplit(files, grey, image_size, (height, width), files.paths[0])
        return whole.first(n_train), replace(whole, files=files.subset(range(n_train, n)))
    x = np.empty((n, height, width, 3), np.uint8)

    def fill(i: int) -> bool:
        image: Array = decode(files.paths[i], image_size)
        _same_size(image, size, files.paths[i], files.paths[0])
        x[i] = image
        return bool(image.shape[2] == 1)

    with ThreadPoolExecutor(threads) as pool:
        grey = min(_each(pool, fill, n))
    pixels = torch.from_numpy(np.ascontiguousarray(x[..., :1]) if grey else x).permute(0, 3, 1, 2)
    labels = torch.tensor(files.labels, dtype=torch.int64, device="cpu")
    return Split(pixels[:n_train], labels[:n_train]), Split(pixels[n_train:], labels[n_train:])


def _each(pool: ThreadPoolExecutor, work: Callable[[int], bool], n: int) -> Iterator[bool]:
    """``work`` for 0 … n - 1, handed to the threads in slices: a task for each image would cost
    more.
    """

    def several(start: int) -> bool:
        return min(map(work, range(start, min(start + 256, n))))  # unlike all, sees every image

    return pool.map(several, range(0, n, 256))


def _is_grey(path: Path) -> bool:
    with _opened(path) as image:
        return image.mode in GREY
