"""Damaged, unsuitable and malicious data sets: files of arrays and folders of images."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from campaign.place import Place

ARRAYS = "--dataset arrays --network linear_odenet --act tanh"
IMAGES = "--dataset image_folder --network odenet --num_threads 0"
COMMON = "--name run --niter 2 --ch_residual_block 4 --batch_size 8 --torch_threads 1"
TYPES = (
    "f8",
    ">f8",
    "f4",
    "f2",
    "i8",
    "u8",
    "u1",
    "?",
    "c16",
    "O",
    "U3",
    "S2",
    "M8[s]",
    "V8",
    "f8,i4",
)
SHAPES = (
    (0,),
    (),
    (1,),
    (12,),
    (12, 2),
    (12, 1, 5),
    (12, 3, 4, 4),
    (12, 0),
    (11, 2),
    (2, 2),
    (12, 2, 1, 1, 1),
    (12, 5, 2),
)
VALUES = (0.0, -1.0, 1e308, -1e308, 5e-324, np.nan, np.inf, -np.inf, 1e19, 2.0**63, 0.5, 2019.5)
MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "LA", "YCbCr")
NAMES = (
    "0.png",
    "a b.PNG",
    "☃.bmp",
    ".hidden.png",
    "x\n.png",
    "[red].gif",
    "%s.tif",
    "0.jpg",
    "no-ending",
    "0.webp",
)


def attempt(number: int, place: Place) -> str:
    """Make a data set and train on it."""
    random, data = place.random, place.folder / "data"
    data.mkdir()
    if number % 3 < 2:
        words = [*ARRAYS.split(), "--data_dir", str(_arrays(data, random, place))]
        words += [
            "--task",
            random.choice(("auto", "auto", "classification", "regression", "timeseries")),
        ]
    else:
        words = [*IMAGES.split(), "--data_dir", str(_images(data, random, place))]
        words += random.choice(([], ["--image_size", "4"]))
    place.watch()
    code = place.command("train", [*words, *COMMON.split()]).code
    return "told" if code else "done"


def _arrays(folder: Path, random: Random, place: Place) -> Path:
    path = folder / "data.npz"
    drawn = np.random.default_rng(random.randrange(2**32))
    arrays: dict[str, Any] = {"x": drawn.normal(size=(12, 2)), "y": drawn.integers(0, 2, 12)}
    if random.random() < 0.4:
        arrays |= {"y": drawn.normal(size=(12, 3, 2)), "t": np.linspace(0.1, 1, 3)}
    told = []
    for _ in range(random.choice((1, 1, 2))):
        key = random.choice((*arrays, "t0"))
        how = random.choice(("type", "shape", "value", "value", "missing", "order"))
        if how == "missing" or (key == "t0" and key not in arrays):
            arrays.pop(key, None)
            if key == "t0":
                arrays[key] = np.array(random.choice((*VALUES, "x", [0.0, 1.0])))
        elif how == "type":
            arrays[key] = np.zeros(np.shape(arrays[key]), random.choice(TYPES))
        elif how == "shape":
            arrays[key] = np.ones(random.choice(SHAPES))
        elif how == "order":
            arrays[key] = np.asfortranarray(np.flip(arrays[key]))
        elif np.size(arrays[key]) and arrays[key].dtype.kind in "biuf":
            arrays[key] = arrays[key].astype(float)
            arrays[key].flat[random.randrange(arrays[key].size)] = random.choice(VALUES)
        told.append(f"{key} {how}")
    np.savez(path, **arrays)
    if random.random() < 0.35:
        told.append(_harm(path, random, place))
    place.what = f"arrays: {', '.join(told)}"
    return random.choice((folder, path))


def _harm(path: Path, random: Random, place: Place) -> str:
    """Damage or replace the file as a whole; return how."""
    content = path.read_bytes()
    how = random.choice(
        (
            "truncated",
            "flipped",
            "a header that lies",
            "empty",
            "text",
            "a folder",
            "a pipe",
            "a link",
        )
    )
    path.unlink()
    if how == "truncated":
        path.write_bytes(content[: random.randrange(len(content))])
    elif how == "flipped":
        changed = bytearray(content)
        changed[random.randrange(len(content))] ^= 1 << random.randrange(8)
        path.write_bytes(changed)
    elif how == "a header that lies":
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header,
            {"descr": "<f8", "fortran_order": False, "shape": (10 ** random.randint(5, 14), 2)},
        )
        with zipfile.ZipFile(path, "w") as file:
            for name in ("x.npy", "y.npy"):
                file.writestr(name, header.getvalue() + bytes(160))
    elif how in ("empty", "text"):
        path.write_text("" if how == "empty" else "x,y\n1,2\n")
    elif how == "a folder":
        path.mkdir()
    elif how == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(random.choice((path.name, str(place.mine / "precious.txt"), "/dev/zero")))
    return how


def _images(folder: Path, random: Random, place: Place) -> Path:
    """Make a folder of images, one of them strange."""
    from PIL import Image

    drawn = np.random.default_rng(random.randrange(2**32))
    told = []
    for label in random.choice(
        (("a", "b"), ("a", "b"), ("a",), ("ä ☃", "[b]"), ("train/a", "train/b", "test/c"))
    ):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(4):
            Image.fromarray(drawn.integers(0, 255, (5, 5, 3), dtype=np.uint8)).save(
                folder / label / f"{i}.png"
            )
        told.append(label)
    strange = folder / label / random.choice(NAMES)
    how = random.choice(
        (
            "mode",
            "size",
            "bytes",
            "bytes",
            "a bomb",
            "a folder",
            "a pipe",
            "a link",
            "animated",
            "nothing",
        )
    )
    strange.unlink(missing_ok=True)
    if how in ("mode", "size"):
        mode, size = (
            random.choice(MODES) if how == "mode" else "RGB",
            random.choice(((5, 5), (1, 1), (1, 900), (6, 5))),
        )
        told.append(mode)
        image = Image.new("L" if mode == "I;16" else mode, size)
        image = image.convert("I;16") if mode == "I;16" else image
        image.save(strange, "TIFF" if mode in ("F", "CMYK", "YCbCr", "LA", "I;16") else "PNG")
        if mode == "YCbCr":
            told.append("as TIFF")
    elif how == "bytes":
        content = bytearray((folder / label / "1.png").read_bytes())
        for _ in range(random.randint(1, 4)):
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        strange.write_bytes(
            content[: random.choice((len(content), random.randrange(len(content))))]
        )
    elif how == "a bomb":
        Image.new("1", (random.choice((9_000, 20_000)),) * 2).save(strange, "PNG")
    elif how == "a folder":
        strange.mkdir()
    elif how == "a pipe":
        os.mkfifo(strange)
    elif how == "a link":
        strange.symlink_to(
            random.choice((strange.name, str(place.mine / "precious.txt"), "/dev/zero", "absent"))
        )
    elif how == "animated":
        frames = [Image.new("P", (5, 5), i) for i in range(3)]
        frames[0].save(strange, "GIF", save_all=True, append_images=frames[1:])
    place.what = f"images in {told}: {strange.name!r} is {how}"
    return folder
