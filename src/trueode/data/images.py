"""MNIST and CIFAR-10, downloaded and read by torchvision."""

from __future__ import annotations

import gzip
import os
import socket
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trueode.errors import DataError

LARGEST = 2**27  # bytes, more than any unpacked file of MNIST
PATIENCE = 5.0  # seconds without an answer after which a download fails


class Images(NamedTuple):
    """Images ``(n, channels, height, width)`` as bytes, labels ``(n,)``, and class names."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: tuple[str, ...]


def mnist(root: Path) -> Images:
    """MNIST (1 x 28 x 28, 10 classes) from packed or unpacked files in ``root/MNIST/raw``.

    Raises:
        DataError: files are missing and cannot be downloaded, or are damaged.
    """
    reader = _torchvision().MNIST
    raw = root / "MNIST" / "raw"
    names = [os.path.splitext(os.path.basename(url))[0] for url, _ in reader.resources]
    if not all((raw / name).is_file() or (raw / f"{name}.gz").is_file() for name in names):
        where = f"{', '.join(f'{name}.gz' for name in names)} into {raw}"
        _download(reader, root, Path("MNIST/raw"), where, reader.mirrors[0])
    with TemporaryDirectory() as scratch:
        unpacked = all((raw / name).is_file() for name in names)
        source = root if unpacked or os.access(raw, os.W_OK) else Path(scratch)
        for name in names:
            _unpack_gzip(raw / name, source / "MNIST" / "raw" / name)
        parts = [_read(partial(reader, source, train=train), raw) for train in (True, False)]
    (x, y), (x_test, y_test) = ((part.data[:, None], part.targets) for part in parts)
    return Images((x, y), (x_test, y_test), tuple(map(str, range(10))))


def cifar10(root: Path) -> Images:
    """CIFAR-10 (3 x 32 x 32, 10 classes) from ``root/cifar-10-batches-py`` or
    ``root/cifar-10-python.tar.gz``.

    Raises:
        DataError: the files are missing and cannot be downloaded, or are damaged.
    """
    reader = _torchvision().CIFAR10
    folder, archive = root / reader.base_folder, root / reader.filename
    if not folder.exists():
        if archive.exists():
            _unpack_tar(archive, reader.tgz_md5, folder)
        else:
            where = f"{reader.filename} (or its folder {reader.base_folder}) into {root}"
            _download(reader, root, Path(reader.base_folder), where, reader.url)
    parts = [_read(partial(reader, root, train=train), folder) for train in (True, False)]
    (x, y), (x_test, y_test) = (
        (torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets, device="cpu"))
        for part in parts
    )
    return Images((x, y), (x_test, y_test), tuple(parts[0].classes))


def resized(x: Tensor, size: int) -> Tensor:
    """Resize the shorter side of images (antialiased) to ``size`` and crop the central square."""
    height, width = x.shape[2:]
    scale = size / min(height, width)
    shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    parts = [
        F.interpolate(part.float(), shape, mode="bilinear", antialias=True)
        .round_()
        .clamp_(0, 255)
        .to(torch.uint8)
        for part in x.split(1024)  # type: ignore[no-untyped-call]
    ]
    return torch.cat(parts)[:, :, top : top + size, left : left + size].contiguous()


def _torchvision() -> Any:
    try:
        return import_module("torchvision.datasets")
    except ImportError as error:
        raise DataError(
            "MNIST and CIFAR-10 are read with torchvision, which is not installed: pip install "
            "'trueode[images]'"
        ) from error


def _read(read: Callable[[], Any], folder: Path) -> Any:
    try:
        return read()
    except Exception as error:  # torchvision raises many kinds of errors for damaged files
        raise DataError(
            f"The files in {folder} cannot be read or are damaged ({_short(error)}). "
            "Delete the folder, and download the files or place them there again."
        ) from error


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """A temporary folder on the same file system, to move files atomically out of it."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        scratch = TemporaryDirectory(dir=root, prefix=".unfinished-")
    except OSError as error:
        raise DataError(
            f"{root} cannot be written ({error.strerror}): give another folder with --data_dir."
        ) from error
    with scratch as path:
        yield Path(path)


def _download(reader: Any, root: Path, folder: Path, where: str, address: str) -> None:
    """Download into a scratch folder, and move the files of ``folder`` to ``root``."""
    with _scratch(root) as scratch:
        patience = socket.getdefaulttimeout()
        socket.setdefaulttimeout(PATIENCE)
        try:
            reader(scratch, download=True)  # torchvision verifies the checksums
        except Exception as error:
            raise DataError(
                f"{reader.__name__} is not in {root} and could not be downloaded "
                f"({_short(error)}). Place {where}, from {address}"
            ) from error
        finally:
            socket.setdefaulttimeout(patience)
        (root / folder).parent.mkdir(parents=True, exist_ok=True)
        if (root / folder).exists():
            for file in (scratch / folder).iterdir():
                os.replace(file, root / folder / file.name)
        else:
            os.replace(scratch / folder, root / folder)


def _unpack_gzip(file: Path, target: Path) -> None:
    """Write the contents of ``file``, or of ``file.gz`` if only that exists, to ``target``."""
    if target.is_file():
        return
    with _scratch(target.parent) as scratch:
        try:
            with file.open("rb") if file.is_file() else gzip.open(f"{file}.gz") as source:
                content = source.read(LARGEST + 1)
            if len(content) > LARGEST:
                raise ValueError(f"unpacked it has more than {LARGEST} bytes")
            (scratch / "file").write_bytes(content)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise DataError(
                f"{file}.gz is damaged ({_short(error)}). Delete it and place it there again."
            ) from error
        os.replace(scratch / "file", target)


def _unpack_tar(archive: Path, md5: str, folder: Path) -> None:
    """Unpack a folder from an archive with a known checksum."""
    if not import_module("torchvision.datasets.utils").check_integrity(str(archive), md5):
        raise DataError(
            f"{archive} is not the published archive or is damaged: its MD5 checksum is not {md5}. "
            "Download it again."
        )
    with _scratch(folder.parent) as scratch:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        os.replace(scratch / folder.name, folder)


def _short(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
