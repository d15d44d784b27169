"""MNIST and CIFAR-10 from small archives in the published layouts, with other checksums."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import socket
import struct
import tarfile
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch

from trueode.data import images, load_dataset
from trueode.data.images import resized
from trueode.errors import DataError

datasets = pytest.importorskip("torchvision.datasets")
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Downloads fail at once, as on a machine without network."""

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def write_idx(path, array, pack=True):
    data = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".gz" * pack).write_bytes(gzip.compress(data) if pack else data)


def make_mnist(root, pack=True):
    made = {}
    for prefix, n in (("train", 12), ("t10k", 5)):
        x = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        y = (np.arange(n) % 10).astype(np.uint8)
        write_idx(root / "MNIST" / "raw" / f"{prefix}-images-idx3-ubyte", x, pack)
        write_idx(root / "MNIST" / "raw" / f"{prefix}-labels-idx1-ubyte", y, pack)
        made[prefix] = x, y
    return made


@pytest.mark.parametrize("pack", [True, False])
def test_mnist(pack, tmp_path):
    made = make_mnist(tmp_path, pack)
    data = load_dataset("mnist", tmp_path)
    assert (data.sample_shape, data.n_outputs, len(data.train), len(data.test)) == (
        (1, 28, 28),
        10,
        12,
        5,
    )
    batch = data.test.batch(torch.tensor([4, 1]))
    torch.testing.assert_close(
        batch.x, torch.from_numpy(made["t10k"][0][[4, 1], None] / np.float32(255))
    )
    assert batch.y.tolist() == [4, 1]
    raw = sorted(os.listdir(tmp_path / "MNIST" / "raw"))
    assert len(raw) == (8 if pack else 4)  # unpacked next to the archives, no temporary file
    assert len(load_dataset("mnist", tmp_path).train) == 12


def test_mnist_in_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    make_mnist(tmp_path)
    monkeypatch.setattr(os, "access", lambda *args: False)
    assert len(load_dataset("mnist", tmp_path).test) == 5
    assert len(os.listdir(tmp_path / "MNIST" / "raw")) == 4


def test_damaged_mnist_is_named(tmp_path):
    make_mnist(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    file = raw / "train-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-12])
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz is damaged"):
        load_dataset("mnist", tmp_path)
    assert not (raw / "train-labels-idx1-ubyte").exists()
    file.write_bytes(gzip.compress(b"not an idx file"))
    with pytest.raises(DataError, match="damaged"):
        load_dataset("mnist", tmp_path)


@pytest.fixture
def cifar_archive(tmp_path, monkeypatch):
    """A CIFAR-10 of 5 x 4 + 4 images in the published layout: the .tar.gz and the images."""
    folder = tmp_path / "made" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    reader = datasets.CIFAR10
    tables = {"train_list": [], "test_list": []}
    images = []
    for table, names in (
        ("train_list", [f"data_batch_{i}" for i in range(1, 6)]),
        ("test_list", ["test_batch"]),
    ):
        for name in names:
            x = RNG.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
            images.append(x)
            content = pickle.dumps({"data": x.reshape(4, -1), "labels": [0, 3, 9, 1]})
            (folder / name).write_bytes(content)
            tables[table].append([name, hashlib.md5(content).hexdigest()])
    content = pickle.dumps({"label_names": [f"class{i}" for i in range(10)]})
    (folder / "batches.meta").write_bytes(content)
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": hashlib.md5(content).hexdigest()})
    for table, rows in tables.items():
        monkeypatch.setattr(reader, table, rows)
    archive = tmp_path / "made" / reader.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(reader, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return archive, images


@pytest.mark.parametrize("unpacked", [True, False])
def test_cifar10(unpacked, cifar_archive, tmp_path):
    archive, images = cifar_archive
    root = tmp_path / "data"
    root.mkdir()
    if unpacked:
        (archive.parent / "cifar-10-batches-py").rename(root / "cifar-10-batches-py")
    else:
        archive.rename(root / archive.name)
    data = load_dataset("cifar10", root)
    assert (data.sample_shape, data.n_outputs, len(data.train), len(data.test)) == (
        (3, 32, 32),
        10,
        20,
        4,
    )
    assert data.classes[3] == "class3"
    batch = data.train.batch(torch.tensor([5, 0]))
    expected = np.concatenate(images)[[5, 0]] / np.float32(255)
    torch.testing.assert_close(batch.x, torch.from_numpy(expected))
    assert batch.y.tolist() == [3, 0]
    assert not [name for name in os.listdir(root) if name.startswith(".")]
    assert len(load_dataset("cifar10", root).train) == 20


def test_damaged_cifar10_is_refused(cifar_archive, tmp_path):
    archive, _ = cifar_archive
    root = tmp_path / "data"
    root.mkdir()
    (root / archive.name).write_bytes(archive.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is not the published archive"):
        load_dataset("cifar10", root)
    (root / archive.name).unlink()
    folder = archive.parent / "cifar-10-batches-py"
    (folder / "test_batch").write_bytes(b"")
    folder.rename(root / folder.name)
    with pytest.raises(DataError, match=r"cifar-10-batches-py.*Delete the folder"):
        load_dataset("cifar10", root)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "cifar10",
            ["cifar-10-python.tar.gz", "cifar-10-batches-py", "https://www.cs.toronto.edu"],
        ),
        (
            "mnist",
            ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", "MNIST/raw", "https://"],
        ),
    ],
)
def test_failed_download_says_what_goes_where_and_leaves_nothing(name, words, tmp_path):
    patience = socket.getdefaulttimeout()
    with pytest.raises(DataError) as caught:
        load_dataset(name, tmp_path / "data")
    for word in [str(tmp_path), "could not be downloaded", *words]:
        assert word in str(caught.value)
    assert os.listdir(tmp_path / "data") == []
    assert socket.getdefaulttimeout() == patience


def test_download_appears_whole_or_not_at_all(cifar_archive, tmp_path, monkeypatch):
    archive, _ = cifar_archive
    root = tmp_path / "data"
    plain = datasets.CIFAR10.__init__

    def downloading(self, where, train=True, download=False):
        if download:  # as torchvision does it: the archive into the folder, then unpacked there
            (where / archive.name).write_bytes(archive.read_bytes())
            if broken:
                raise RuntimeError("connection lost")
        plain(self, where, train, download=download)

    monkeypatch.setattr(datasets.CIFAR10, "__init__", downloading)
    broken = True
    with pytest.raises(DataError, match="connection lost"):
        load_dataset("cifar10", root)
    assert os.listdir(root) == []
    broken = False
    assert len(load_dataset("cifar10", root).train) == 20
    assert os.listdir(root) == ["cifar-10-batches-py"]


@pytest.mark.parametrize(
    "content",
    [
        b"\x1f\x8b\x08\0\0\0\0\0\0\0damaged",
        b"no gzip",
        b"",
        gzip.compress(bytes(3 * 10**4), mtime=0),
    ],
)
def test_packed_files_that_are_damaged_or_too_large(content, tmp_path, monkeypatch):
    make_mnist(tmp_path)
    monkeypatch.setattr(images, "LARGEST", 2 * 10**4)
    raw = tmp_path / "MNIST" / "raw"
    for file in raw.iterdir():
        file.unlink()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"ubyte\.gz is damaged|cannot be read"):
        load_dataset("mnist", tmp_path)


def test_nowhere_to_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--data_dir"):
        load_dataset("mnist", tmp_path / "file" / "data")


def test_image_size(tmp_path):
    make_mnist(tmp_path)
    assert load_dataset("mnist", tmp_path, image_size=14).sample_shape == (1, 14, 14)


def test_resized_keeps_the_middle_and_the_mean():
    x = torch.zeros(2, 3, 20, 40, dtype=torch.uint8)
    x[:, :, :, 10:30] = 200
    small = resized(x, 10)
    assert small.shape == (2, 3, 10, 10)
    assert small.dtype == torch.uint8
    assert small[..., 2:8].eq(200).all()
    assert resized(x[:, :, :, :20], 20).equal(x[:, :, :, :20])
