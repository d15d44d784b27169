"""Images of the user, in a folder for each class."""

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

from trueode.data.device import CPU, ahead
from trueode.data.splits import Batch, Samples, Split
from trueode.errors import DataError
from trueode.seeds import stream

FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
}
"""The decoder of Pillow for each suffix of a file; no other decoder is used."""
MOST_PIXELS = 2**27  # of an image, before and after resizing
MEMORY = 4 * 2**30  # bytes of decoded images held in memory; more are read from disk when needed
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
    """Samples that are read from disk when needed; otherwise like `Split`."""

    files: Files
    grey: bool
    image_size: int | None
    size: tuple[int, int]
    sized_by: Path  # the file that determines the size
    dtype: torch.dtype = torch.float32

    t = None

    def __len__(self) -> int:
        return len(self.files.paths)

    @property
    def y(self) -> Tensor:  # type: ignore[override]
        return torch.tensor(self.files.labels, dtype=torch.int64, device="cpu")

    def stored(self, indices: Tensor) -> Batch:
        """The samples with the given indices ``(batch,)``, as bytes."""
        chosen = self.files.subset(indices.tolist())
        pixels = [decode(path, self.image_size) for path in chosen.paths]
        x = np.empty((len(pixels), *self.size, 1 if self.grey else 3), np.uint8)
        for i, (path, image) in enumerate(zip(chosen.paths, pixels, strict=True)):
            _same_size(image, self.size, path, self.sized_by)
            x[i] = image[..., : x.shape[-1]]
        return Batch(torch.from_numpy(x).permute(0, 3, 1, 2), self.y[indices])

    def take(self, indices: Tensor) -> FolderSplit:
        """The samples with the given indices ``(n,)`` as a split."""
        return replace(self, files=self.files.subset(indices.tolist()))

    def to(self, dtype: torch.dtype) -> FolderSplit:
        """The same samples with another floating-point type."""
        return replace(self, dtype=dtype)

    def read(
        self, indices: Iterator[tuple[Tensor, int]], num_workers: int, device: torch.device = CPU
    ) -> Iterator[tuple[Batch, int]]:
        """Batches with the given indices, read ahead by worker processes; see `Samples.read`."""
        made = self._decoded(indices, num_workers, device)
        return made if device.type == "cpu" else ahead(made)

    def _decoded(
        self, indices: Iterator[tuple[Tensor, int]], num_workers: int, device: torch.device
    ) -> Iterator[tuple[Batch, int]]:
        from torch.utils.data import DataLoader

        loader: Any = DataLoader(
            _Requests(self, as_numbers=device.type == "cpu"),
            sampler=indices,  # any iterable is allowed
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            # without a generator it would draw a seed from the global random state
            generator=torch.Generator("cpu").manual_seed(0),
        )
        with torch.device("cpu"):  # the device of the generator must be the default device
            items = iter(loader)
        for item in items:
            if isinstance(item, DataError):
                raise item
            batch, n = item
            yield batch.to(device).numbers(self.dtype), n


@dataclass(frozen=True)
class _Requests(torch.utils.data.Dataset[Any]):
    """A split for the loader of torch: an item is a whole batch, or the error of reading it.

    Attributes:
        as_numbers: whether the workers convert bytes to numbers, which a GPU does itself.
    """

    split: FolderSplit
    as_numbers: bool

    def __getitem__(self, request: tuple[Tensor, int]) -> tuple[Batch, int] | DataError:
        indices, n = request
        try:
            return (self.split.batch if self.as_numbers else self.split.stored)(indices), n
        except DataError as error:
            return error


def _as_it_is(item: Any) -> Any:
    return item


def image_folder(
    root: Path, *, seed: int, image_size: int | None, num_workers: int
) -> tuple[Samples, Samples, tuple[str, ...]]:
    """Read ``root/{train,test}/CLASS/*``; without ``test``, a random fifth becomes the test data.

    The test images are in random order. All images are grey if all files are, otherwise RGB.

    Args:
        root: the folder.
        seed: of the choice and the order of the test images.
        image_size: images are resized (shorter side) and cropped to squares of this size; None
            keeps their size.
        num_workers: number of threads that decode.

    Returns:
        Training and test samples and the sorted names of the classes.

    Raises:
        DataError: there are no images, an image is broken, sizes differ without ``image_size``, or
            a test class has no training images.
    """
    train_root = root / "train" if (root / "train").is_dir() else root
    classes = _subfolders(train_root)
    files = _scan(train_root, classes)
    if train_root != root and (root / "test").is_dir():
        unknown = sorted(set(_subfolders(root / "test")) - set(classes))
        if unknown:
            raise DataError(
                f"{root / 'test'} has the class {unknown[0]!r}, but {train_root} has not: the "
                "classes of the test images must be among those of the training images."
            )
        held_out = _scan(root / "test", classes)
    else:
        files, held_out = hold_out(files, seed)
    held_out = mixed(held_out, seed)
    both = Files(files.paths + held_out.paths, files.labels + held_out.labels)
    train, test = _load(both, len(files.paths), image_size, max(1, num_workers))
    return train, test, classes


def hold_out(files: Files, seed: int) -> tuple[Files, Files]:
    """Split files into four fifths for training and a random fifth for testing, in their order."""
    n = len(files.paths)
    if n < 2:
        raise DataError(
            f"A single image, {files.paths[0]}, cannot be split into training and test data. Add "
            "more images."
        )
    chosen = np.zeros(n, bool)
    chosen[stream(seed, "split").permutation(n)[: max(1, n // 5)]] = True
    return files.subset(np.flatnonzero(~chosen).tolist()), files.subset(
        np.flatnonzero(chosen).tolist()
    )


def mixed(files: Files, seed: int) -> Files:
    """The files in random order: a verdict uses the first ones, which must have all classes."""
    return files.subset(stream(seed, "split", 1).permutation(len(files.paths)).tolist())


def decode(path: Path, image_size: int | None) -> Array:
    """Decode a file into bytes ``(height, width, 3)``, or ``(height, width, 1)`` if it is grey."""
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
    """Open an image in the format of its suffix; failures in the block become a `DataError`."""
    from PIL import Image

    kind = FORMATS[path.suffix.lower()]
    try:
        if not path.is_file():  # reading a pipe would not end
            raise ValueError("not a regular file")
        with Image.open(path, formats=[kind]) as image:
            _bound(*image.size)
            yield image
    except Exception as error:  # Pillow raises many kinds of errors for damaged files
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
            "DATA_DIR/train/CLASS/* and DATA_DIR/test/CLASS/*, or DATA_DIR/CLASS/*; set DATA_DIR "
            "with --data_dir."
        ) from error
    if not names:
        raise DataError(
            f"{root} has no subfolders. image_folder expects one for each class with its images: "
            "DATA_DIR/train/CLASS/* and DATA_DIR/test/CLASS/*, or DATA_DIR/CLASS/*."
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
            f"There are no images in {root}/CLASS/; known suffixes are {', '.join(FORMATS)}."
        )
    return Files(tuple(paths), tuple(labels))


def _same_size(image: Array, size: tuple[int, int], path: Path, first: Path) -> None:
    height, width = image.shape[:2]
    if (height, width) != size:
        raise DataError(
            f"The images differ in size: {first} has {size[1]} x {size[0]} pixels, {path} has "
            f"{width} x {height}. Resize them with --image_size."
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
    """``work`` for 0 … n - 1, in slices, because a task for each image would cost more."""

    def several(start: int) -> bool:
        return min(
            map(work, range(start, min(start + 256, n)))
        )  # unlike `all`, it reads every image

    return pool.map(several, range(0, n, 256))


def _is_grey(path: Path) -> bool:
    with _opened(path) as image:
        return image.mode in GREY
