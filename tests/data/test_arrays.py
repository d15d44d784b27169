"""The user's arrays: valid files, and the messages for invalid ones."""

from __future__ import annotations

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from trueode.data import load_dataset
from trueode.errors import DataError

RNG = np.random.default_rng(0)
X = RNG.standard_normal((10, 3))
LABELS = np.arange(10) % 3
TIMES = np.array([0.0, 0.5, 2.0])
STATES = RNG.standard_normal((10, 3, 3))


def changed(value, index, to):
    value = np.array(value, dtype=float)
    value[index] = to
    return value


def save(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def test_classification_from_one_file(tmp_path):
    path = save(tmp_path / "mine.npz", x=X, y=LABELS)
    data = load_dataset("arrays", path, seed=1)
    assert (data.task, data.sample_shape, data.n_outputs) == ("classification", (1, 3), 3)
    assert (len(data.train), len(data.test)) == (8, 2)
    rows = torch.cat([data.train.x, data.test.x])[:, 0]
    assert sorted(rows.tolist()) == sorted(torch.tensor(X, dtype=torch.float32).tolist())
    assert torch.equal(load_dataset("arrays", path, seed=1).test.x, data.test.x)
    pairs = {
        tuple(x): y for x, y in zip(X.astype(np.float32).tolist(), LABELS.tolist(), strict=True)
    }
    assert all(
        pairs[tuple(x)] == y
        for x, y in zip(data.test.x[:, 0].tolist(), data.test.y.tolist(), strict=True)
    )


def test_regression_from_two_files(tmp_path):
    save(tmp_path / "train.npz", x=X.reshape(10, 1, 1, 3), y=X.sum(1))
    save(tmp_path / "test.npz", x=X[:4].reshape(4, 1, 1, 3), y=X[:4].sum(1))
    data = load_dataset("arrays", tmp_path)
    assert (data.task, data.sample_shape, data.n_outputs, len(data.test)) == (
        "regression",
        (1, 1, 3),
        1,
        4,
    )
    assert data.train.y.shape == (10, 1)
    assert load_dataset("arrays", tmp_path, dtype=torch.float64).train.x.dtype == torch.float64


def test_integers_may_be_regression_targets(tmp_path):
    save(tmp_path / "data.npz", x=X, y=LABELS)
    data = load_dataset("arrays", tmp_path, task="regression")
    assert data.train.y.dtype == torch.float32
    assert data.n_outputs == 1


@pytest.mark.parametrize("own_times", [False, True])
def test_time_series(own_times, tmp_path):
    t = np.tile(TIMES, (10, 1)) if own_times else TIMES
    y = STATES.copy()
    y[0, 1] = np.nan
    if own_times:
        t[1, 2] = np.nan
        t[2] += 3
    save(tmp_path / "data.npz", x=X, y=y, t=t)
    data = load_dataset("arrays", tmp_path)
    assert (data.task, data.sample_shape, data.n_outputs) == ("timeseries", (1, 3), 3)
    assert data.t_end == (5.0 if own_times else 2.0)
    batch = data.train.batch(torch.arange(4))
    assert batch.y.shape == (4, 3, 1, 3)
    assert batch.t.shape == ((4, 3) if own_times else (3,))
    assert torch.cat([data.train.y, data.test.y]).isnan().sum() == 3


@pytest.mark.parametrize("own_times", [False, True])
def test_time_series_that_start_elsewhere(own_times, tmp_path):
    for t0, t in (
        (2019.0, TIMES + 2019),
        (-3.5, TIMES - 3),
        (0.0, TIMES + 7),
        (np.float32(1.5), TIMES + 2),
    ):
        save(tmp_path / "data.npz", x=X, y=STATES, t=np.tile(t, (10, 1)) if own_times else t, t0=t0)
        data = load_dataset("arrays", tmp_path)
        assert (data.t_start, data.t_end) == (float(t0), t[-1])
        assert data.to(torch.float64).t_start == float(t0)
    save(tmp_path / "train.npz", x=X, y=STATES, t=TIMES + 7, t0=np.array(5))
    save(tmp_path / "test.npz", x=X, y=STATES, t=TIMES + 9, t0=5)
    assert (data := load_dataset("arrays", tmp_path)).t_start == 5
    assert data.t_end == 11
    save(tmp_path / "test.npz", x=X, y=STATES, t=TIMES + 7, t0=6)
    with pytest.raises(DataError, match=r"t0 is 5 in .*train\.npz and 6 in .*test\.npz"):
        load_dataset("arrays", tmp_path)


@pytest.mark.parametrize(
    ("t", "accepted"),
    [
        (TIMES + 2, True),  # as far from 0 as from each other
        (TIMES + 2.01, False),
        (TIMES[:1] + 3, True),  # a single time has no neighbour to compare with
        (np.tile(TIMES, (10, 1)) + np.arange(10)[:, None], True),  # over all samples
        (np.tile(TIMES, (10, 1)) + np.arange(10)[:, None] + 12, False),
        (changed(np.tile(TIMES, (10, 1)), (3, 0), np.nan) + 9, False),
    ],
)
def test_times_far_from_0_are_refused_unless_the_file_tells_when_x_is(t, accepted, tmp_path):
    path = save(tmp_path / "data.npz", x=X, y=STATES[:, : t.shape[-1]], t=t)
    if accepted:
        assert load_dataset("arrays", tmp_path).t_start == 0
    else:
        with pytest.raises(DataError, match=r"t = 0.*t0=") as caught:
            load_dataset("arrays", tmp_path)
        assert f"{path}: the first time is {np.nanmin(t):.12g}" in str(caught.value)
    save(path, x=X, y=STATES[:, : t.shape[-1]], t=t, t0=0)
    assert load_dataset("arrays", tmp_path).t_start == 0


def test_without_times_t0_means_nothing(tmp_path):
    save(tmp_path / "data.npz", x=X, y=LABELS, t0=np.array(["of something else"]))
    assert load_dataset("arrays", tmp_path).t_start == 0


@pytest.mark.parametrize(
    ("arrays", "task", "words"),
    [
        ({"x": X}, "auto", ["'y' is missing"]),
        ({"y": LABELS}, "auto", ["'x' is missing"]),
        ({"x": X, "y": LABELS[:7]}, "auto", ["(10, 3)", "(7,)"]),
        ({"x": X[:, 0], "y": LABELS}, "auto", ["shape (8,)", "(n, d)"]),
        ({"x": changed(X, (4, 1), np.nan), "y": LABELS}, "auto", ["nan", "finite"]),
        ({"x": X, "y": LABELS - 1}, "auto", ["label -1"]),
        ({"x": X, "y": LABELS * 100}, "auto", ["labels up to 200"]),
        ({"x": X, "y": LABELS * 10**7}, "auto", ["20000000"]),
        ({"x": X, "y": X}, "classification", ["integer labels", "--task regression"]),
        ({"x": X, "y": np.zeros((10, 2, 2))}, "regression", ["(n, outputs)"]),
        ({"x": X, "y": changed(LABELS, 3, np.inf)}, "regression", ["inf", "finite"]),
        ({"x": X, "y": STATES}, "timeseries", ["array t"]),
        ({"x": X, "y": STATES, "t": TIMES[::-1]}, "auto", ["ascend"]),
        ({"x": X, "y": STATES, "t": TIMES - 1}, "auto", ["start at 0"]),
        ({"x": X, "y": STATES, "t": TIMES * 0}, "auto", ["ascend"]),
        ({"x": X, "y": STATES[:, :1], "t": TIMES[:1]}, "auto", ["end at 0"]),
        ({"x": X, "y": STATES, "t": changed(TIMES, 1, np.nan)}, "auto", ["NaN", "(n, times)"]),
        ({"x": X, "y": STATES, "t": TIMES[:2]}, "auto", ["(8, 3, 3)", "(8, 2, 3)"]),
        ({"x": X, "y": STATES, "t": TIMES, "t0": 0.1}, "auto", ["start at 0.1 or later", "t0"]),
        ({"x": X, "y": STATES[:, :1], "t": TIMES[2:], "t0": 2}, "auto", ["end at 2"]),
        ({"x": X, "y": STATES, "t": TIMES, "t0": np.nan}, "auto", ["t0 is nan", "finite"]),
        ({"x": X, "y": STATES, "t": TIMES, "t0": -np.inf}, "auto", ["t0 is -inf", "finite"]),
        ({"x": X, "y": STATES, "t": TIMES, "t0": np.zeros(2)}, "auto", ["t0 is [0. 0.]", "one"]),
        ({"x": X, "y": STATES, "t": TIMES, "t0": np.zeros(1)}, "auto", ["t0 is [0.]", "one"]),
        ({"x": X, "y": STATES, "t": TIMES, "t0": "noon"}, "auto", ["t0", "number"]),
        ({"x": X, "y": STATES, "t": np.zeros((4, 3))}, "auto", ["each of the 10"]),
        ({"x": X, "y": STATES, "t": np.zeros((10, 3, 1))}, "auto", ["(times,) or (n, times)"]),
        ({"x": X, "y": changed(STATES, slice(None), np.inf), "t": TIMES}, "auto", ["infinite"]),
        (
            {"x": X, "y": changed(STATES, slice(None), np.nan), "t": TIMES},
            "auto",
            ["no observed state"],
        ),
        ({"x": np.array(["a"] * 10), "y": LABELS}, "auto", ["real numbers"]),
        ({"x": X[:1], "y": LABELS[:1]}, "auto", ["two or more"]),
    ],
)
def test_refused_with_reason(arrays, task, words, tmp_path):
    path = save(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError) as caught:
        load_dataset("arrays", tmp_path, task=task)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"data\.npz does not exist"):
        load_dataset("arrays", tmp_path)
    with pytest.raises(DataError, match=r"nowhere\.npz does not exist.*--data_dir"):
        load_dataset("arrays", tmp_path / "nowhere.npz")
    (tmp_path / "data.npz").write_bytes(b"PK half a file")
    with pytest.raises(DataError, match=r"data\.npz cannot be read"):
        load_dataset("arrays", tmp_path)
    np.savez(tmp_path / "data.npz", x=np.array([{}], dtype=object), y=LABELS)
    with pytest.raises(DataError, match="plain arrays"):
        load_dataset("arrays", tmp_path)
    (tmp_path / "data.npz").write_bytes(pickle.dumps([1]))
    with pytest.raises(DataError, match="plain arrays"):
        load_dataset("arrays", tmp_path)
    np.save(tmp_path / "data.npy", X)
    (tmp_path / "data.npy").replace(tmp_path / "data.npz")
    with pytest.raises(DataError, match="plain arrays"):
        load_dataset("arrays", tmp_path)
    save(tmp_path / "train.npz", x=X, y=LABELS)
    with pytest.raises(DataError, match=r"no test\.npz"):
        load_dataset("arrays", tmp_path)
    save(tmp_path / "test.npz", x=X[:, :2], y=LABELS)
    with pytest.raises(DataError, match="differ in shape"):
        load_dataset("arrays", tmp_path)
    save(tmp_path / "test.npz", x=X, y=LABELS + 1)
    with pytest.raises(DataError, match=r"label 3.*up to 2"):
        load_dataset("arrays", tmp_path)


@pytest.mark.parametrize(
    "shape",
    ["10**18, 3", "10**6, 10**6", "-1, 3", "2.5, 3", "True, 3", "'a', 3", "[10], 3", "10**30,"],
)
def test_shapes_that_a_header_only_claims(shape, tmp_path):
    """The header claims more numbers than the 240 bytes of the file."""
    header = (
        str({"descr": "<f8", "fortran_order": False, "shape": None})
        .replace("None", f"({shape})")
        .encode()
    )
    npy = (
        b"\x93NUMPY\x01\x00"
        + len(header + b"\n").to_bytes(2, "little")
        + header
        + b"\n"
        + X.tobytes()
    )
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as file:
        file.writestr("x.npy", npy)
        file.writestr("y.npy", npy)
    with pytest.raises(DataError, match=r"data\.npz"):
        load_dataset("arrays", tmp_path)


@pytest.mark.parametrize("kind", ["U3", "S3", "O", "M8[s]", "m8[s]", "c16", "V4", "f4,f4"])
def test_arrays_of_other_things_than_numbers(kind, tmp_path):
    for key in ("x", "y", "t", "t0"):
        wrong = {"x": X, "y": STATES, "t": TIMES, "t0": np.zeros(())}
        wrong[key] = np.zeros(wrong[key].shape, kind)
        save(tmp_path / "data.npz", **wrong)
        with pytest.raises(DataError, match=r"data\.npz"):
            load_dataset("arrays", tmp_path)


def test_numbers_that_the_precision_does_not_hold(tmp_path):
    save(tmp_path / "data.npz", x=changed(X, (4, 1), 1e300), y=LABELS)
    with pytest.raises(DataError, match=r"float32.*scale"):
        load_dataset("arrays", tmp_path)
    assert load_dataset("arrays", tmp_path, dtype=torch.float64).train.x.dtype == torch.float64


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "data.npz")
    for place in (tmp_path, tmp_path / "data.npz"):
        with pytest.raises(DataError, match="does not exist"):
            load_dataset("arrays", place)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cifar", {}, ["Did you mean 'cifar10'"]),
        ("mnist", {"task": "regression"}, ["regression", "mnist", "classification"]),
        ("arrays", {"task": "sorting"}, ["sorting", "timeseries"]),
        ("pendulum", {"image_size": 4}, ["image_size = 4", "pendulum"]),
        ("image_folder", {"image_size": 0}, ["image_size = 0"]),
    ],
)
def test_impossible_requests(name, options, words, tmp_path):
    with pytest.raises(DataError) as caught:
        load_dataset(name, tmp_path, **options)
    for word in words:
        assert word in str(caught.value)


def test_a_density_is_that_of_x_alone(tmp_path):
    path = save(tmp_path / "data.npz", x=X)
    data = load_dataset("arrays", path, task="density")
    assert (data.task, data.sample_shape, data.n_outputs) == ("density", (1, 3), 1)
    assert (data.train.y.shape, data.test.y.shape) == ((8, 0), (2, 0))
    assert data.train.batch(torch.arange(3)).y.shape == (3, 0)
    with pytest.raises(DataError, match=r"'y' is missing.*--task density"):
        load_dataset("arrays", path)
    both = save(tmp_path / "both.npz", x=X, y=LABELS, t=TIMES)
    with pytest.raises(DataError, match="t and y beside x"):
        load_dataset("arrays", both, task="density")
    with pytest.raises(DataError, match=r"x\[0, 1\] is nan"):
        load_dataset(
            "arrays", save(tmp_path / "bad.npz", x=changed(X, (0, 1), np.nan)), task="density"
        )
