"""Audits of models of JAX that solve by diffrax, written as its documentation does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.auditing.test_foreign import (
    COARSE,
    EULERS,
    FINE,
    TESTED,
    own_audit,
    parts,
    rings,
    turned,
)
from trueode import Audit, audit, check_solver
from trueode.cli.main import main
from trueode.errors import DataError, UsageError
from trueode.solvers import Solver

dfx = pytest.importorskip("diffrax")
import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402


def array(x: torch.Tensor) -> Any:
    return jnp.asarray(x.detach().numpy())


class Field(eqx.Module):
    """The MLP of the rings, with the weights of another library's model."""

    layers: list[tuple[Any, Any]]

    def __call__(self, t: Any, y: Any, args: Any) -> Any:
        *first, (weight, bias) = self.layers
        for w, b in first:
            y = jnp.tanh(w @ y + b)
        return weight @ y + bias


class Model(eqx.Module):
    field: Field
    head: tuple[Any, Any]
    solver: Any = eqx.field(static=True)
    how: Any = eqx.field(static=True)

    def __call__(self, x: Any) -> Any:
        term = dfx.ODETerm(lambda t, y, args: self.field(t, y, args))
        solution = dfx.diffeqsolve(term, self.solver, 0.0, 1.0, y0=x, **dict(self.how))
        weight, bias = self.head
        return weight @ solution.ys[-1] + bias


@cache
def model(solver: Solver, name: str = "Euler", **how: Any) -> Model:
    """The weights that another library's model has, under a solver of diffrax."""
    field, head = parts(solver)
    layers = [(array(x.weight), array(x.bias)) for x in field.net if isinstance(x, nn.Linear)]
    assert isinstance(head, nn.Linear)
    how = how or {"dt0": 0.25}
    last = array(head.weight), array(head.bias)
    return Model(Field(layers), last, getattr(dfx, name)(), tuple(how.items()))


@cache
def data() -> tuple[Any, Any]:
    x, y = rings(TESTED, 2)
    return array(x), array(y)


def vmapped(model: Any, batch: Any) -> Any:
    return jax.vmap(model)(batch[0])


@eqx.filter_jit
def compiled(model: Any, batch: Any) -> Any:
    return jax.vmap(model)(batch[0])


@cache
def found_by(call: Callable[..., Any]) -> Audit:
    return audit(model(COARSE), data(), call=call, methods=("rk4", "dopri5"))


@pytest.mark.parametrize("call", [vmapped, compiled])
def test_the_same_weights_have_the_same_audit_as_in_other_libraries(call: Any) -> None:
    found, own = found_by(call), own_audit()
    assert found.solver == "diffrax Euler, h = 0.25"
    assert (found.verdict, found.decision) == (own.verdict, own.decision)
    assert found.performance == own.performance
    assert found.reference is not None
    assert own.reference is not None
    assert found.reference.double
    torch.testing.assert_close(found.reference.outputs, own.reference.outputs, rtol=1e-5, atol=1e-5)
    rows, same_rows = (
        {(row.method, row.setting): row for row in each.rows} for each in (found, own)
    )
    assert list(rows) == list(same_rows)
    for row, same in zip(rows.values(), same_rows.values(), strict=True):
        assert (row.flips, row.changed, row.status) == (same.flips, same.changed, same.status)
        if row.kind == "fixed":
            assert (row.n_steps, row.nfe) == (same.n_steps, same.nfe)
    assert found.exact is not None
    assert own.exact is not None
    assert found.exact.evaluations <= 2 * own.exact.evaluations
    assert found.reasons is not None
    assert own.reasons is not None
    assert (found.reasons.crossings, found.reasons.pairs) == (
        own.reasons.crossings,
        own.reasons.pairs,
    )
    known = found.provenance
    assert known["parameters"] == own.provenance["parameters"]
    assert {"jax", "diffrax", "equinox"} <= known["versions"].keys()
    assert (known["dtype"], len(known["weights"])) == ("float32", 64)
    assert known["compilation"] > 0


@pytest.mark.parametrize("library", ["torchdiffeq", "torchode"])
def test_flips_are_those_of_the_other_libraries(library: str) -> None:
    other = audit(EULERS[library](*parts(COARSE)).eval(), rings(TESTED, 2), methods=())
    assert abs(found_by(vmapped).flips - other.flips) <= 1


@pytest.mark.parametrize(
    ("name", "how", "text"),
    [
        (
            "Tsit5",
            {"dt0": None, "stepsize_controller": dfx.PIDController(rtol=1e-4, atol=1e-4)},
            "diffrax Tsit5, tol = 0.0001",
        ),
        ("Dopri5", {"dt0": 0.1, "saveat": dfx.SaveAt(t0=True, t1=True)}, "diffrax Dopri5, h = 0.1"),
    ],
    ids=["adaptive", "fixed"],
)
def test_fine_solvers_keep_the_ode(name: str, how: Any, text: str) -> None:
    found = audit(model(FINE, name, **how), data(), call=vmapped, methods=())
    assert found.solver == text
    assert found.verdict == "ode"


# Linear fields that turn the plane, with known solutions.
SPEED = 4.0
X = np.random.default_rng(0).normal(size=(320, 2)).astype("f4")
EXACT = turned(torch.tensor(X), SPEED)
PAIR = X, EXACT.argmax(1).numpy()


def turn(t: Any, y: Any, speed: Any) -> Any:
    return speed * y @ jnp.array([[0.0, 1.0], [-1.0, 0.0]], y.dtype)


def turning(x: Any, speed: Any = SPEED, t0: float = 0.0, t1: float = 1.0) -> Any:
    dt0 = (t1 - t0) / 4
    solution = dfx.diffeqsolve(dfx.ODETerm(turn), dfx.Euler(), t0, t1, dt0, x, args=speed)
    return solution.ys[-1]


MODELS: dict[str, tuple[Any, Any]] = {
    "function": (turning, None),
    "jit": (jax.jit(turning), None),
    "vmap": (jax.vmap(turning), None),
    "jit of vmap": (jax.jit(jax.vmap(turning)), None),
    "decreasing time": (lambda x: turning(x, -SPEED, 1.0, 0.0), None),
    "parameters": (
        {"speed": jnp.array(SPEED)},
        lambda given, batch: turning(batch[0], given["speed"]),
    ),
    "two blocks": (lambda x: turning(turning(x, SPEED / 2), SPEED / 2), None),
}


@pytest.mark.parametrize("kind", MODELS)
def test_all_ways_to_call_a_model(kind: str) -> None:
    of_jax, call = MODELS[kind]
    found = audit(of_jax, PAIR, call=call, methods=())
    assert found.solver == "diffrax Euler, h = 0.25"
    assert found.reference is not None
    assert found.reference.double
    torch.testing.assert_close(found.reference.outputs, EXACT, rtol=1e-3, atol=1e-3)
    if kind != "two blocks":
        assert found.verdict == "solver-dependent"
        own = np.asarray(turning(X)).argmax(1)
        assert found.flips == int((own != PAIR[1]).sum())


def test_time_series_and_check_solver() -> None:
    times = np.linspace(0, 1, 5).astype("f4")

    def path(x: Any, t: Any) -> Any:
        how = {"saveat": dfx.SaveAt(ts=t), "stepsize_controller": dfx.PIDController(1e-8, 1e-8)}
        return dfx.diffeqsolve(
            dfx.ODETerm(turn), dfx.Dopri5(), t[0], t[-1], None, x, args=SPEED, **how
        ).ys

    y = np.stack([turned(torch.tensor(X), SPEED * t).numpy() for t in times], 1).astype("f4")
    found = check_solver(
        jax.vmap(path, (0, None)), (X, y, times), samples=320, task="timeseries", absolute=1e-3
    )
    assert found.verdict == "ode"
    assert found.metric < 1e-6


def test_loaders_and_inputs_alone() -> None:
    batches = [(X[:160], PAIR[1][:160]), (X[160:], PAIR[1][160:])]
    whole = audit(turning, PAIR, methods=())
    for given in (batches, iter(batches), [[jnp.asarray(x) for x in batch] for batch in batches]):
        assert audit(turning, given, methods=()).decision == whole.decision
    alone = audit(turning, jnp.asarray(X), task="classification", methods=())
    assert alone.flips == whole.flips


@pytest.fixture
def _untouched() -> Iterator[None]:
    kind = type(dfx.diffeqsolve)
    entry = vars(kind)["__call__"]
    before = jax.config.jax_enable_x64, jax.config.jax_disable_jit
    yield
    assert vars(kind)["__call__"] is entry
    assert (jax.config.jax_enable_x64, jax.config.jax_disable_jit) == before


@pytest.mark.usefixtures("_untouched")
def test_a_model_gives_the_same_bits_before_and_after() -> None:
    own, call = model(COARSE), jax.jit(lambda x: jax.vmap(model(COARSE))(x))
    before, leaves = call(data()[0]), [np.array(x) for x in jax.tree.leaves(own)]
    audit(own, data(), call=vmapped, methods=())
    np.testing.assert_array_equal(call(data()[0]), before)
    assert call._cache_size() == 1
    for x, y in zip(jax.tree.leaves(own), leaves, strict=True):
        np.testing.assert_array_equal(x, y)


class Narrow(eqx.Module):
    """Computes in single precision, whatever its input."""

    weight: Any

    def __call__(self, x: Any) -> Any:
        return turning(x, self.weight).astype("float32")


def test_a_model_in_single_precision_is_told() -> None:
    found = audit(Narrow(jnp.array(SPEED)), PAIR, methods=())
    assert found.exact is not None
    assert not found.exact.double
    assert any("double precision" in note for note in found.notes)


class Dropping(eqx.Module):
    drop: eqx.nn.Dropout

    def __call__(self, x: Any) -> Any:
        return turning(self.drop(x))


def test_models_in_training_mode() -> None:
    training = Dropping(eqx.nn.Dropout(0.5))
    found = audit(training, PAIR, methods=())
    assert found.verdict == "solver-dependent"
    assert any("training mode" in note for note in found.notes)
    assert training.drop.inference is False
    with pytest.raises(UsageError, match=r"eqx\.nn\.inference_mode"):
        audit(lambda x: training(x), PAIR, methods=())


class Torch(nn.Module):
    def forward(self, x: Any) -> Any:
        return x


BAD: dict[str, tuple[Any, Any, type[UsageError], str]] = {
    "one sample": (lambda: model(COARSE), data, UsageError, r"one sample.*jax\.vmap\(model\)"),
    "tensors": (lambda: model(COARSE), lambda: rings(9, 0), DataError, r"tensors.*numpy\.asarray"),
    "loader of tensors": (
        lambda: model(COARSE),
        lambda: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*rings(9, 0))),
        DataError,
        "tensors.*collate_fn",
    ),
    "arrays for PyTorch": (Torch, data, DataError, r"JAX.*PyTorch.*torch\.tensor"),
    "mixed": (lambda: turning, lambda: (data()[0], rings(TESTED, 2)[1]), DataError, "mix"),
    "mixed later": (lambda: turning, lambda: [PAIR, rings(9, 0)], DataError, "mix"),
    "function of tensors": (
        lambda: lambda x: turning(jnp.asarray(x.numpy())),
        lambda: (torch.tensor(X), torch.tensor(PAIR[1])),
        UsageError,
        "array of JAX for tensors",
    ),
    "no solver": (lambda: lambda x: 2 * x, lambda: PAIR, UsageError, "diffrax"),
    "ahead of time": (
        lambda: jax.jit(turning).lower(jnp.asarray(X)).compile(),
        lambda: PAIR,
        UsageError,
        "ahead-of-time",
    ),
    "raises": (
        lambda: lambda x: turning(x.nothing),
        lambda: PAIR,
        UsageError,
        "forward failed.*nothing",
    ),
    "text": (lambda: turning, lambda: (X, np.array(["a"] * len(X))), DataError, "no tensor"),
}


@pytest.mark.usefixtures("_untouched")
@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_told_with_cause_and_remedy(what: str) -> None:
    of_jax, given, error, text = BAD[what]
    with pytest.raises(error, match=text):
        audit(of_jax(), given(), methods=())


def test_a_gradient_of_a_loss_is_refused_before_anything_is_solved() -> None:
    def call(model: Any, batch: Any) -> Any:
        raise AssertionError

    with pytest.raises(UsageError, match="JAX"):
        audit(model(COARSE), data(), call=call, methods=(), loss=lambda outputs, y: outputs.sum())


@pytest.mark.usefixtures("_untouched")
def test_solves_that_raise_or_fail() -> None:
    def few(x: Any, throw: bool) -> Any:
        how = {"stepsize_controller": dfx.PIDController(1e-6, 1e-6), "max_steps": 3, "throw": throw}
        return dfx.diffeqsolve(dfx.ODETerm(turn), dfx.Tsit5(), 0, 1, None, x, args=SPEED, **how).ys[
            -1
        ]

    with pytest.raises(UsageError, match="max_steps"):
        audit(lambda x: few(x, True), PAIR, methods=())
    found = audit(lambda x: few(x, False), PAIR, methods=())
    assert found.verdict == "solver-dependent"
    assert any("max_steps=" in note for note in found.notes)


def test_an_accelerator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(UsageError, match="JAX_PLATFORMS=cpu"):
        audit(turning, PAIR, methods=())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_data_in_half_precision_are_those_that_jax_computes_with(dtype: str) -> None:
    x, y = (part[:200] for part in data())

    def call(model: Any, batch: Any) -> Any:
        if batch[0].dtype != jnp.float64:
            assert batch[0].dtype == dtype
        return jax.vmap(model)(batch[0].astype(jnp.promote_types(batch[0].dtype, "float32")))

    half = x.astype(dtype)
    found = audit(model(COARSE), (half, y), call=call, methods=())
    expected = audit(model(COARSE), (half.astype("float32"), y), call=vmapped, methods=())
    assert found.decision.counts == expected.decision.counts


def test_data_in_double_precision_are_those_that_jax_computes_with() -> None:
    found = audit(turning, (X.astype("f8"), PAIR[1]), methods=())
    assert found.own.outputs.dtype == torch.float32
    with jax.enable_x64(True):
        double = audit(turning, (X.astype("f8"), PAIR[1]), methods=())
    assert double.own.outputs.dtype == torch.float64
    assert double.flips == found.flips


SCRIPT = """
import diffrax, equinox, jax, jax.numpy as jnp, numpy as np

class Turning(equinox.Module):
    speed: jax.Array

    def __call__(self, x):
        term = diffrax.ODETerm(lambda t, y, args: self.speed * jnp.stack([-y[1], y[0]]))
        return diffrax.diffeqsolve(term, diffrax.Euler(), 0, 1, 0.25, x).ys[-1]

model = Turning(jnp.array(4.0))
x = np.random.default_rng(0).normal(size=(200, 2)).astype("f4")
data = x, x.argmax(1)

def call(model, batch):
    return jax.vmap(model)(batch[0])
"""


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("turning_in_jax.py").write_text(SCRIPT)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    words = ["audit", "turning_in_jax:model", "--data", "turning_in_jax:data", "--methods", ""]
    assert main([*words, "--call", "turning_in_jax:call"]) == 3
    assert "diffrax Euler" in capsys.readouterr().out
    assert main(words) == 2
    assert "one sample" in capsys.readouterr().err


def test_data_that_cannot_be_read_are_told_by_their_cause() -> None:
    def batches() -> Any:
        raise OSError("the disk is gone")
        yield

    with pytest.raises(DataError, match="the disk is gone"):
        audit(lambda x: x, batches())
