"""Densities in the plane: their support, their shares, and that they depend on the seed alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueode.data import load_dataset
from trueode.data.planar import GENERATORS, checkerboard, moons, rings

N = 20_000


def test_moons_lie_around_two_half_circles() -> None:
    x = moons(N, np.random.default_rng(0))
    centres = np.array([[-1, -0.5], [1, 0.5]])
    radius = np.linalg.norm(x[:, None] - centres, axis=2)
    # the noise across an arc is 0.2, and no point is farther from the nearer arc than 5 of these
    nearer = np.abs(radius - 2).argmin(axis=1)
    off = np.take_along_axis(radius, nearer[:, None], axis=1)[:, 0] - 2
    assert np.abs(off).max() < 1
    assert off.std() == pytest.approx(0.2, rel=0.1)
    assert x.mean(axis=0) == pytest.approx([0, 0], abs=0.05)
    assert np.allclose(np.sort(np.abs(x[:, 0]))[-1], 3, atol=0.8)


def test_rings_have_equal_shares() -> None:
    x = rings(N, np.random.default_rng(0))
    radius = np.linalg.norm(x, axis=1)
    shares = [(np.abs(radius - r) < 0.5).mean() for r in (1, 2, 3)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.015)
    assert (radius[np.abs(radius - 3) < 0.5] - 3).std() == pytest.approx(0.15, rel=0.1)


def test_a_checkerboard_is_uniform_on_its_black_fields() -> None:
    x = checkerboard(N, np.random.default_rng(0))
    assert (np.abs(x) <= 2).all()
    column, row = np.floor(x + 2).astype(int).T
    assert ((column + row) % 2 == 0).all()
    counts = np.bincount(4 * column + row, minlength=16).reshape(4, 4)
    assert counts[counts > 0] == pytest.approx([N / 8] * 8, rel=0.1)
    assert (x % 1).mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.02)


@pytest.mark.parametrize("name", GENERATORS)
def test_data_is_a_function_of_the_seed_and_splits_are_disjoint(name: str, tmp_path: Path) -> None:
    sets = [load_dataset(name, tmp_path / str(i), seed=seed) for i, seed in enumerate((0, 0, 1))]
    parts = [split for each in sets for split in (each.train, each.test)]
    x = [part.x.numpy() for part in parts]  # type: ignore[attr-defined]
    assert [len(part) for part in parts[:2]] == [10_000, 2000]
    assert x[0].shape[1:] == sets[0].sample_shape == (1, 2)
    assert parts[0].y.shape == (10_000, 0)
    assert sets[0].task == "density"
    assert np.array_equal(x[0], x[2])
    assert np.array_equal(x[1], x[3])
    different = np.concatenate([x[0], x[1], x[4], x[5]]).reshape(-1, 2)
    assert len(np.unique(different, axis=0)) == 24_000
