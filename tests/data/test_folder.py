"""Folders of images, in memory and from disk, and refusals."""

from __future__ import annotations

import os
import struct
from itertools import islice

import numpy as np
import pytest
import torch

from trueode.data import Batches, Split, folder, load_dataset
from trueode.data.folder import FolderSplit, decode
from trueode.errors import DataError

Image = pytest.importorskip("PIL.Image")


def write(path, seed=0, size=(6, 5), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    pixels = np.random.default_rng(seed).integers(
        0, 256, (size[1], size[0], *channels), dtype=np.uint8
    )
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def two_classes(tmp_path):
    """Seven training and three test images; classes are not created in alphabetic order."""
    pixels = {}
    for split, count in (("train", 7), ("test", 3)):
        for i in range(count):
            path = tmp_path / split / ("zebra" if i % 3 else "ant") / f"{i}.png"
            pixels[split, i] = write(path, seed=len(pixels))
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".hidden").mkdir()
    return tmp_path, pixels


def test_classes_are_sorted_and_pixels_lie_in_0_1(two_classes):
    root, pixels = two_classes
    data = load_dataset("image_folder", root)
    assert (data.classes, data.n_outputs, data.sample_shape) == (("ant", "zebra"), 2, (3, 5, 6))
    assert isinstance(data.train, Split)
    assert (len(data.train), len(data.test)) == (7, 3)
    assert data.train.y.tolist() == [0, 0, 0, 1, 1, 1, 1]
    expected = pixels["train", 3].transpose(2, 0, 1) / np.float32(255)  # the second of the ants
    torch.testing.assert_close(data.train.batch(torch.tensor([1])).x[0], torch.from_numpy(expected))


@pytest.mark.parametrize("workers", [0, 2])
def test_from_disk_equals_memory(workers, two_classes, monkeypatch):
    root, _ = two_classes
    memory = load_dataset("image_folder", root, image_size=4)
    monkeypatch.setattr(folder, "MEMORY", 0)
    disk = load_dataset("image_folder", root, image_size=4)
    assert isinstance(disk.train, FolderSplit)
    assert (disk.sample_shape, len(disk.train), len(disk.test)) == (memory.sample_shape, 7, 3)
    state = torch.get_rng_state()
    expected, found = (
        list(islice(Batches(part.train, 3, seed=5, num_workers=workers).from_iteration(1), 4))
        for part in (memory, disk)
    )
    for (a, n), (b, m) in zip(expected, found, strict=True):
        assert n == m
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
    assert torch.equal(torch.get_rng_state(), state)
    a, b = (
        torch.cat([batch.x for batch in Batches(part.test.first(2), 2).in_order()])
        for part in (memory, disk)
    )
    assert torch.equal(a, b)
    assert disk.to(torch.float64).train.batch(torch.arange(2)).x.dtype == torch.float64


def test_an_error_while_reading_from_disk_is_told_plainly(two_classes, monkeypatch):
    root, _ = two_classes
    monkeypatch.setattr(folder, "MEMORY", 0)
    data = load_dataset("image_folder", root)
    path = root / "train" / "zebra" / "1.png"
    path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        list(Batches(data.train, 7, num_workers=1).in_order())
    assert str(path) in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_fifth_is_held_out_where_there_is_no_test(tmp_path):
    for i in range(10):
        write(tmp_path / f"class{i % 2}" / f"{i}.png", seed=i)
    data = load_dataset("image_folder", tmp_path, seed=1)
    assert (len(data.train), len(data.test)) == (8, 2)
    images = torch.cat([data.train.x, data.test.x]).flatten(1).tolist()
    assert len(set(map(tuple, images))) == 10
    assert torch.equal(load_dataset("image_folder", tmp_path, seed=1).test.x, data.test.x)
    others = [load_dataset("image_folder", tmp_path, seed=seed).test.x for seed in range(2, 5)]
    assert not all(torch.equal(other, data.test.x) for other in others)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    ("modes", "channels"), [(("L", "L"), 1), (("L", "RGB"), 3), (("RGB", "RGBA"), 3)]
)
def test_grey_if_all_files_are(modes, channels, in_memory, tmp_path, monkeypatch):
    if not in_memory:
        monkeypatch.setattr(folder, "MEMORY", 0)
    for i in range(4):
        write(tmp_path / "a" / f"{i}.png", seed=i, mode=modes[i % 2])
    data = load_dataset("image_folder", tmp_path)
    assert data.sample_shape == (channels, 5, 6)
    assert data.train.batch(torch.arange(3)).x.shape == (3, channels, 5, 6)


def test_sixteen_bits(tmp_path):
    values = np.array([[0, 256], [65535, 32768]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert decode(tmp_path / "deep.png", None)[..., 0].tolist() == [[0, 1], [255, 128]]


def test_resized_to_the_middle_square(tmp_path):
    pixels = np.zeros((20, 40), np.uint8)
    pixels[:, 10:30] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    small = decode(tmp_path / "wide.png", 10)
    assert small.shape == (10, 10, 1)
    assert (small[:, 2:8] == 200).all()


def read_all(root):
    data = load_dataset("image_folder", root)
    for split in (data.train, data.test):
        list(Batches(split, 2).in_order())


def test_different_sizes(tmp_path, monkeypatch):
    write(tmp_path / "a" / "0.png")
    write(tmp_path / "b" / "1.png", size=(8, 8))
    for memory in (folder.MEMORY, 0):
        monkeypatch.setattr(folder, "MEMORY", memory)
        assert load_dataset("image_folder", tmp_path, image_size=5).sample_shape == (3, 5, 5)
        with pytest.raises(DataError) as caught:
            read_all(tmp_path)
        for word in ("0.png", "6 x 5", "1.png", "8 x 8", "--image_size"):
            assert word in str(caught.value)


def test_unusable_folders(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read.*DATA_DIR/train/CLASS"):
        load_dataset("image_folder", tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no subfolders"):
        load_dataset("image_folder", tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="no images"):
        load_dataset("image_folder", tmp_path)
    write(tmp_path / "a" / "0.png")
    with pytest.raises(DataError, match="single image"):
        load_dataset("image_folder", tmp_path)
    (tmp_path / "a" / "1.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(DataError, match=r"1\.jpg cannot be read"):
        load_dataset("image_folder", tmp_path)


def test_a_test_class_that_is_never_trained_on(tmp_path):
    write(tmp_path / "train" / "a" / "0.png")
    write(tmp_path / "test" / "b" / "0.png")
    with pytest.raises(DataError, match="'b'"):
        load_dataset("image_folder", tmp_path)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("kind", ["GIF", "TIFF", "EPS", "JPEG"])
def test_a_format_is_what_the_name_says(kind, in_memory, tmp_path, monkeypatch):
    if not in_memory:
        monkeypatch.setattr(folder, "MEMORY", 0)
    write(tmp_path / "a" / "0.png")
    write(tmp_path / "a" / "1.PNG")
    load_dataset("image_folder", tmp_path)
    Image.new("RGB", (6, 5)).save(tmp_path / "a" / "2.png", kind)
    with pytest.raises(DataError, match=r"2\.png cannot be read as PNG"):
        read_all(tmp_path)


@pytest.mark.parametrize(("suffix", "kind"), folder.FORMATS.items())
def test_all_known_endings(suffix, kind, tmp_path):
    Image.new("L", (6, 5)).save(tmp_path / f"x{suffix}", kind)
    assert decode(tmp_path / f"x{suffix}", None).shape[:2] == (5, 6)


def test_images_of_billions_of_pixels(tmp_path):
    header = b"BM" + struct.pack(
        "<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0
    )
    (tmp_path / "vast.bmp").write_bytes(header)
    with pytest.raises(DataError, match=r"vast\.bmp.*pixels"):
        decode(tmp_path / "vast.bmp", None)
    Image.new("L", (1, 100_000)).save(tmp_path / "long.png")
    with pytest.raises(DataError, match=r"1000 x 100000000 pixels"):
        decode(tmp_path / "long.png", 1000)


def test_images_that_are_no_files(tmp_path):
    for name in ("0.png", "1.png"):
        write(tmp_path / "a" / name)
    os.mkfifo(tmp_path / "a" / "2.png")
    with pytest.raises(DataError, match=r"2\.png.*not a regular file"):
        load_dataset("image_folder", tmp_path)
    (tmp_path / "a" / "2.png").unlink()
    (tmp_path / "a" / "2.png").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"2\.png.*not a regular file"):
        load_dataset("image_folder", tmp_path)
