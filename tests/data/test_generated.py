"""Spheres, three minima and pendulum: distributions, reproducibility, and the cache."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from trueode.data import load_dataset
from trueode.data.minima import MINIMA, resting_place, slope, three_minima
from trueode.data.pendulum import pendulum
from trueode.data.spheres import SHELLS, concentric_spheres


@pytest.mark.parametrize("d", [1, 2, 3, 10, 900])
def test_spheres_have_their_shells_and_shares(d):
    x, y = concentric_spheres(1002, d, np.random.default_rng(0))
    assert x.shape == (1002, 1, d)
    radius = np.linalg.norm(x[:, 0], axis=1)
    inside = [(low - 1e-12 <= radius) & (radius <= high + 1e-12) for low, high, _ in SHELLS]
    assert [int(shell.sum()) for shell in inside] == [250, 502, 250]
    for shell, (_, _, label) in zip(inside, SHELLS, strict=True):
        assert (y[shell] == label).all()
    assert 0 < y[:100].mean() < 1  # in random order


@pytest.mark.parametrize("d", [1, 2, 3, 10])
def test_radius_has_its_distribution(d):
    x, _ = concentric_spheres(8000, d, np.random.default_rng(1))
    radius = np.linalg.norm(x[:, 0], axis=1)
    for low, high, _ in SHELLS:
        r = np.sort(radius[(radius >= low - 1e-12) & (radius <= high + 1e-12)])
        u = ((r - low) / (high - low)).clip(0, 1) ** d  # uniform by the formula
        distance = np.abs(u - (np.arange(len(u)) + 0.5) / len(u)).max()  # Kolmogorov-Smirnov
        assert distance < 1.95 / len(u) ** 0.5  # at significance 0.1 %


def test_direction_is_uniform():
    x, _ = concentric_spheres(20000, 3, np.random.default_rng(2))
    direction = x[:, 0] / np.linalg.norm(x[:, 0], axis=1, keepdims=True)
    assert np.abs(direction.mean(axis=0)).max() < 0.02
    assert np.abs(direction.T @ direction / len(direction) - np.eye(3) / 3).max() < 0.01


def test_minima_are_at_rest_and_stable():
    x = np.array(MINIMA)
    assert np.abs(slope(x)).max() < 5e-3  # the minima are stated to three digits
    assert (slope(x + 0.01) > 0).all()
    assert (slope(x - 0.01) < 0).all()
    x = np.linspace(-1, 2, 7)
    direct = 1.2 * x**5 - 2.5 * x**4 - 0.768 * x**3 + 2.364 * x**2 + 0.176 * x - 0.192
    np.testing.assert_allclose(slope(x), direct, atol=1e-12)


def test_particle_near_a_minimum_stays_there():
    z = np.array([np.array(MINIMA) + 0.05, np.zeros(3)])
    assert resting_place(z).tolist() == [0, 1, 2]


def test_labels_of_three_minima_do_not_depend_on_the_step():
    x, y = three_minima(60, np.random.default_rng(0))
    assert x.shape == (60, 1, 2)
    assert (np.abs(x[:, 0]) <= 2).all()
    assert (x[:, 0, 0] >= -1).all()
    assert set(y.tolist()) == {0, 1, 2}
    finer = resting_place(x[:, 0].T, step=0.01)
    assert (finer == y).mean() > 0.95  # except for points on the border of two basins


def test_pendulum_solves_its_equation():
    from scipy.integrate import solve_ivp

    x, y, t = pendulum(3, np.random.default_rng(0))
    assert y.shape == (3, 41, 1, 2)
    np.testing.assert_array_equal(y[:, 0], x)
    np.testing.assert_allclose(t, np.linspace(0, 10, 41))
    for start, path in zip(x[:, 0], y[:, :, 0], strict=True):
        exact = solve_ivp(
            lambda t, z: [z[1], -np.sin(z[0]) - 0.1 * z[1]],
            (0, 10),
            start,
            t_eval=t,
            rtol=1e-11,
            atol=1e-11,
        )
        np.testing.assert_allclose(path, exact.y.T, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "shape", "n", "outputs", "task"),
    [
        ("concentric_sphere2", (1, 2), (2000, 1000), 2, "classification"),
        ("concentric_sphere3", (1, 3), (2000, 1000), 2, "classification"),
        ("concentric_sphere10", (1, 10), (2000, 1000), 2, "classification"),
        ("concentric_sphere900", (1, 900), (2000, 1000), 2, "classification"),
        ("three_minima", (1, 2), (2000, 1000), 3, "classification"),
        ("pendulum", (1, 2), (64, 500), 2, "timeseries"),
    ],
)
def test_generated_data_sets(name, shape, n, outputs, task, tmp_path):
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    data = load_dataset(name, tmp_path, seed=3)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002
    assert (data.name, data.task, data.sample_shape, data.n_outputs) == (name, task, shape, outputs)
    assert (len(data.train), len(data.test)) == n
    batch = data.train.batch(torch.tensor([3, 0]))
    assert batch.x.shape == (2, *shape)
    assert batch.x.dtype == torch.float32
    if task == "classification":
        assert batch.y.dtype == torch.int64
        assert batch.t is None
    else:
        assert batch.y.shape == (2, 41, 1, 2)
        assert torch.equal(batch.t, data.train.t)
        assert data.t_end == 10
    torch.testing.assert_close(batch.x, data.train.x[[3, 0]])
    assert data.to(torch.float64).train.batch(torch.arange(2)).x.dtype == torch.float64


def test_seed_decides_and_the_splits_are_independent(tmp_path):
    a = load_dataset("concentric_sphere2", tmp_path / "a", seed=0)
    b = load_dataset("concentric_sphere2", tmp_path / "b", seed=0)
    c = load_dataset("concentric_sphere2", tmp_path / "a", seed=1)
    assert torch.equal(a.train.x, b.train.x)
    assert torch.equal(a.test.y, b.test.y)
    assert not torch.equal(a.train.x, c.train.x)
    assert not set(map(tuple, a.train.x[:, 0].tolist())) & set(map(tuple, a.test.x[:, 0].tolist()))


class TestCache:
    def load(self, folder, monkeypatch):
        """Load the points; return whether they were drawn."""
        from trueode.data import spheres

        drawn = []
        draw = spheres.concentric_spheres
        with monkeypatch.context() as patch:
            patch.setattr(
                spheres, "concentric_spheres", lambda *args: drawn.append(args) or draw(*args)
            )
            data = load_dataset("concentric_sphere2", folder)
        return data, bool(drawn)

    def test_is_used_again_and_gives_the_same(self, tmp_path, monkeypatch):
        first, drawn = self.load(tmp_path, monkeypatch)
        again, drawn_again = self.load(tmp_path, monkeypatch)
        assert (drawn, drawn_again) == (True, False)
        assert torch.equal(first.train.x, again.train.x)
        assert len(os.listdir(tmp_path / "generated")) == 1  # no temporary file

    @pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text"])
    def test_damage_is_noticed_and_mended(self, damage, tmp_path, monkeypatch):
        first, _ = self.load(tmp_path, monkeypatch)
        (path,) = (tmp_path / "generated").iterdir()
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 1
        path.write_bytes(
            {"truncate": content[:-100], "flip": content, "empty": b"", "text": b"abc"}[damage]
        )
        again, drawn = self.load(tmp_path, monkeypatch)
        assert drawn
        assert torch.equal(first.train.x, again.train.x)
        assert not self.load(tmp_path, monkeypatch)[1]

    def test_interrupted_write_leaves_nothing(self, tmp_path, monkeypatch):
        def interrupted(file, **arrays):
            file.write(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(np, "savez", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_dataset("concentric_sphere2", tmp_path)
        assert os.listdir(tmp_path / "generated") == []

    def test_folder_that_cannot_be_written_is_no_obstacle(self, tmp_path, monkeypatch):
        (tmp_path / "generated").write_text("a file where the folder would be")
        assert self.load(tmp_path, monkeypatch)[1]
