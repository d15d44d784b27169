"""Samples that are neither training nor test samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from trueode.data import Dataset, Split, keep_unseen, load_dataset
from trueode.errors import DataError


def arrays(n: int) -> Dataset:
    x = torch.arange(float(n)).view(n, 1, 1)
    split = Split(x, torch.arange(n), torch.arange(float(2 * n)).view(n, 2))
    return Dataset("arrays", "classification", split, split.first(5), (1, 1), n)


@pytest.mark.parametrize(
    "name", ["concentric_sphere2", "concentric_sphere10", "three_minima", "pendulum"]
)
def test_generated_data_is_drawn_afresh(name: str, tmp_path: pytest.TempPathFactory) -> None:
    dataset = load_dataset(name, tmp_path, dtype=torch.float64)
    same, unseen = keep_unseen(dataset, seed=0, share=0.1, size=300)
    assert same is dataset, "all points are trained on"
    sets = [
        dataset.train.x,
        dataset.test.x,
        unseen.control.x,
        unseen.attempt(1).x,
        unseen.attempt(2).x,
    ]
    rows = torch.cat([part.flatten(1) for part in sets])
    assert len(torch.unique(rows, dim=0)) == len(rows), "no point is met twice"
    assert len(unseen.attempt(1)) == unseen.size == 300
    assert torch.equal(
        unseen.attempt(2).x, keep_unseen(dataset, seed=0, share=0.1, size=300)[1].attempt(2).x
    )
    assert not torch.equal(
        unseen.attempt(2).x, keep_unseen(dataset, seed=1, share=0.1, size=300)[1].attempt(2).x
    )
    assert unseen.control.x.dtype == torch.float64
    assert (unseen.control.t is None) == (dataset.train.t is None)


def test_other_data_is_shared_out() -> None:
    dataset = arrays(1000)
    rest, unseen = keep_unseen(dataset, seed=3, share=0.2, size=70)
    assert (len(rest.train), len(unseen.control), unseen.size) == (800, 50, 70)
    attempts = [unseen.attempt(k) for k in (1, 2, 3)]
    labels = [split.y.tolist() for split in (rest.train, unseen.control, attempts[0], attempts[1])]
    assert len({label for part in labels for label in part}) == 800 + 50 + 140, (
        "no sample is in two parts"
    )
    assert rest.train.y.tolist() == sorted(rest.train.y.tolist()), (
        "the order of training is that of the data"
    )
    assert attempts[2].y.tolist() == attempts[0].y.tolist(), (
        "where none are left, they are used again"
    )
    assert rest.test is dataset.test
    for split in (rest.train, unseen.control, attempts[1]):
        assert torch.equal(split.x.flatten(), split.y.float())
        assert torch.equal(split.t[:, 0], 2 * split.y.float())
    assert keep_unseen(dataset, seed=4, share=0.2, size=70)[1].control.y.tolist() != labels[1]


def test_where_there_are_few_an_attempt_takes_all() -> None:
    _, unseen = keep_unseen(arrays(200), seed=0, share=0.2, size=1000)
    assert unseen.size == 30
    assert sorted(unseen.attempt(1).y.tolist()) == sorted(unseen.attempt(2).y.tolist())


def test_the_control_samples_are_limited() -> None:
    assert len(keep_unseen(arrays(20_000), seed=0, share=0.5, size=10)[1].control) == 1024


@pytest.mark.parametrize(("n", "share"), [(100, 0.3), (33, 0.99)])
def test_too_few(n: int, share: float) -> None:
    with pytest.raises(DataError, match="--held_out"):
        keep_unseen(arrays(n), seed=0, share=share, size=10)


def test_images_on_disk_are_held_out(tmp_path) -> None:
    for split, count in (("train", 40), ("test", 8)):
        for label in ("a", "b"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.full((4, 4, 3), (i * 3 + (label == "b")) % 256, np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    dataset = load_dataset("image_folder", tmp_path)
    rest, unseen = keep_unseen(dataset, seed=0, share=0.5, size=8)
    assert (len(rest.train), len(unseen.control), unseen.size) == (40, 10, 8)
    assert unseen.attempt(1).batch(torch.arange(8)).x.shape == (8, 3, 4, 4)
