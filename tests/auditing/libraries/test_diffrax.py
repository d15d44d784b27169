"""Solves by diffrax, recorded and replaced: written as its documentation does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trueode.auditing.interception import recorded, replaced
from trueode.auditing.problem import ForeignProblem, Solved
from trueode.auditing.replacement import replace_by
from trueode.errors import UsageError
from trueode.solvers import Adaptive, FixedStep

dfx = pytest.importorskip("diffrax")
import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

TIGHT = replace_by(Adaptive("dopri5", 1e-11, 1e-11))
W1 = jax.random.normal(jax.random.key(0), (8, 3))
W2 = jax.random.normal(jax.random.key(1), (2, 8))


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def field(t: Any, y: Any, args: Any) -> Any:
    return W2.astype(y.dtype) @ jnp.tanh(W1.astype(y.dtype) @ jnp.append(y, t))


@pytest.fixture
def x() -> Any:
    return jnp.asarray(np.random.default_rng(1).normal(size=(3, 2)))


def solve(y: Any, solver: Any = None, vf: Any = field, t1: float = 1.0, **how: Any) -> Any:
    """A solve with 8 steps, unless the keywords say otherwise."""
    how = {"t0": 0.0, "t1": t1, "dt0": t1 / 8, **how}
    return dfx.diffeqsolve(dfx.ODETerm(vf), solver or dfx.Euler(), y0=y, **how)


PID = dfx.PIDController(rtol=1e-9, atol=1e-9)
ADAPTIVE = {"solver": dfx.Tsit5(), "dt0": None, "stepsize_controller": PID}
SOLVERS = {
    "Euler": "euler",
    "Midpoint": "midpoint",
    "Heun": "heun2",
    "Bosh3": "bosh3",
    "Dopri5": "dopri5",
    "Tsit5": "tsit5",
    "Dopri8": "dopri8",
}


@pytest.mark.parametrize("name", SOLVERS)
def test_fixed_steps_equal_the_librarys(x: Any, name: str) -> None:
    ours, t1 = SOLVERS[name], -1.0 if name in ("Heun", "Dopri8") else 1.0

    def call(y: Any) -> Any:
        saveat = dfx.SaveAt(t0=True, ts=jnp.asarray([0.25, 0.5]) * t1, t1=True)
        return solve(y, getattr(dfx, name)(), t1=t1, saveat=saveat)

    with recorded() as noted:
        own = jax.vmap(call)(x)
    with replaced(replace_by(FixedStep(ours, step_size=0.125))) as solves:
        swapped = jax.vmap(call)(x)
    np.testing.assert_allclose(swapped.ys, own.ys, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(swapped.ts, own.ts)
    assert bool((swapped.result == own.result).all())
    for stat in ("num_steps", "num_accepted_steps", "num_rejected_steps"):
        np.testing.assert_array_equal(swapped.stats[stat], own.stats[stat])
    (swap,), (note,) = solves, noted
    assert (swap.found, swap.n_steps, swap.length) == (note.found, 8, 1.0)
    assert (note.n_steps, note.n_rejected, note.length, note.status) == (8, 0, 1.0, "success")
    assert (note.found.name, note.found.adaptive) == (ours, False)
    assert str(note.found) == f"diffrax {name}, h = 0.125"
    assert note.final is not None
    assert swap.final is not None
    torch.testing.assert_close(swap.final, note.final, rtol=1e-12, atol=1e-12)


EVALUATIONS = {
    "Euler": {},
    "Heun": {},
    "Tsit5": {"dt0": None, "stepsize_controller": PID},
    "Bosh3": {"stepsize_controller": dfx.PIDController(rtol=1e-4, atol=1e-4)},
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluations_are_those_that_the_library_makes(name: str) -> None:
    calls: list[bool] = []

    def counted(t: Any, y: Any, args: Any) -> Any:
        jax.debug.callback(calls.append, True)
        return field(t, y, args)

    with recorded() as noted:
        solve(jnp.ones(2), getattr(dfx, name)(), counted, **EVALUATIONS[name])
    jax.effects_barrier()
    assert noted[0].nfe == len(calls)


WAYS = {
    "vmap": jax.vmap,
    "jit of vmap": lambda f: jax.jit(jax.vmap(f)),
    "vmap of jit": lambda f: jax.vmap(jax.jit(f)),
    "filter_jit": lambda f: eqx.filter_jit(jax.vmap(f)),
    "compiled before": lambda f: jax.jit(jax.vmap(f)),
    "checkpoint": lambda f: jax.vmap(jax.checkpoint(f)),
    "scan": lambda f: lambda x: jax.lax.scan(lambda c, y: (c, f(y)), 0, x)[1],
    "map": lambda f: lambda x: jax.lax.map(f, x),
    "cond": lambda f: jax.vmap(lambda y: jax.lax.cond(y[0] < 9, f, lambda y: y, y)),
}


@pytest.mark.parametrize("way", WAYS)
def test_solves_are_seen_however_functions_are_transformed(x: Any, way: str) -> None:
    call = WAYS[way](lambda y: 2 * solve(3 * y).ys[-1])
    if way == "compiled before":
        own = call(x)
    with recorded() as noted:
        own = call(x)
    n = 3 if way in ("scan", "map") else 1
    for _ in range(2):
        with replaced(replace_by(FixedStep("euler", n_steps=8))) as solves:
            np.testing.assert_allclose(call(x), own, rtol=1e-12)
        assert len(solves) == n
    with replaced(replace_by(FixedStep("euler", n_steps=4))) as solves:
        assert not np.allclose(call(x), own)
    assert len(noted) == n
    np.testing.assert_allclose(call(x), own, rtol=1e-12)


def test_a_batch_without_vmap(x: Any) -> None:
    def rows(t: Any, y: Any, args: Any) -> Any:
        return jax.vmap(field, (None, 0, None))(t, y, args)

    own = solve(x, vf=rows).ys
    with replaced(replace_by(FixedStep("euler", n_steps=8))) as solves:
        np.testing.assert_allclose(solve(x, vf=rows).ys, own, rtol=1e-12)
    assert solves[0].final is not None
    assert solves[0].final.shape == (3, 2)
    with replaced(TIGHT) as solves:
        assert solve(x[0]).ys.shape == (1, 2)
    assert solves[0].final is None


def test_states_may_be_pytrees(x: Any) -> None:
    def vf(t: Any, y: Any, args: Any) -> Any:
        return {"z": field(t, y["z"], None), "log": (y["z"].sum(), jnp.ones((2, 2)) * t)}

    def call(z: Any) -> Any:
        y0 = {"z": z, "log": (0.0, jnp.zeros((2, 2)))}
        return solve(y0, vf=vf, saveat=dfx.SaveAt(ts=[0.5, 1.0])).ys

    own = jax.vmap(call)(x)
    with replaced(replace_by(FixedStep("euler", step_size=0.125))):
        swapped = jax.vmap(call)(x)
    assert jax.tree.structure(own) == jax.tree.structure(swapped)
    for one, other in zip(jax.tree.leaves(own), jax.tree.leaves(swapped), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-12, atol=1e-12)
    with recorded() as noted:
        jax.vmap(call)(x)
    assert noted[0].final is not None
    assert noted[0].final.shape == (3, 7)


def test_what_is_saved(x: Any) -> None:
    subs = {
        "end": dfx.SubSaveAt(t1=True),
        "path": dfx.SubSaveAt(
            ts=jnp.asarray([0.25, 0.75]), fn=lambda t, y, args: (t, args * y.sum())
        ),
    }
    own = solve(x[0], args=2.0, saveat=dfx.SaveAt(subs=subs))
    with replaced(replace_by(FixedStep("euler", step_size=0.125))):
        swapped = solve(x[0], args=2.0, saveat=dfx.SaveAt(subs=subs))
    with recorded():
        again = solve(x[0], args=2.0, saveat=dfx.SaveAt(subs=subs))
    for other in (swapped, again):
        assert jax.tree.structure((own.ts, own.ys)) == jax.tree.structure((other.ts, other.ys))
        for a, b in zip(jax.tree.leaves(own.ys), jax.tree.leaves(other.ys), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-12)


def test_rows_of_a_batch_may_have_parameters_and_times_of_their_own(x: Any) -> None:
    ends, rates = jnp.asarray([1.0, 2.0, -1.0]), jnp.asarray([0.3, 0.2, 0.1])

    def call(y: Any, end: Any, rate: Any) -> Any:
        saveat = dfx.SaveAt(ts=jnp.stack([0 * end, end / 3, end]))
        return solve(y, vf=lambda t, y, args: rate * t * y + args, args=rate, t1=end, saveat=saveat)

    own = jax.vmap(call)(x, ends, rates)
    with replaced(replace_by(FixedStep("euler", n_steps=8))) as solves:
        jax.vmap(call)(x, ends, rates)
    assert solves[0].length == pytest.approx(4 / 3)
    with replaced(TIGHT):
        swapped = jax.vmap(call)(x, ends, rates)
    np.testing.assert_array_equal(swapped.ts, own.ts)
    t, r = swapped.ts[..., None], rates[:, None, None]
    grid, weights = np.polynomial.legendre.leggauss(20)
    inside = t[..., None] * (grid + 1) / 2
    forced = (jnp.exp(r[..., None] * (t[..., None] ** 2 - inside**2) / 2) @ weights) * t / 2
    exact = x[:, None] * jnp.exp(r * t**2 / 2) + r * forced
    np.testing.assert_allclose(swapped.ys, exact, rtol=1e-8)


def test_nested_batches(x: Any) -> None:
    models = jnp.asarray([[1.0, 0.5], [0.2, 0.1]])

    def call(scale: Any, y: Any) -> Any:
        return solve(y, vf=lambda t, y, args: -scale * y).ys[-1]

    both = jax.vmap(jax.vmap(call, (None, 0)), (0, None))
    with replaced(TIGHT) as solves:
        swapped = both(models, x)
    assert len(solves) == 1
    np.testing.assert_allclose(swapped, x[None] * jnp.exp(-models)[:, None], rtol=1e-8)


def test_rows_may_have_times_of_their_own_as_the_witness_needs_it(x: Any) -> None:
    asked: list[Tensor] = []

    def look(problem: ForeignProblem) -> tuple[Tensor, Solved]:
        times = torch.tensor([[0.1], [0.5], [0.8], [0.9]], dtype=torch.float64)
        rows = problem.z0[[0, 1, 2, 0]]
        asked.append(problem.field(times, rows))
        return replace_by(FixedStep("rk4", n_steps=4))(problem)

    with replaced(look):
        jax.vmap(lambda y: solve(y).ys)(x)
    wanted = [
        field(t, y, None)
        for t, y in zip([0.1, 0.5, 0.8, 0.9], x[jnp.asarray([0, 1, 2, 0])], strict=True)
    ]
    np.testing.assert_allclose(asked[0], jnp.stack(wanted), rtol=1e-12)


def test_controls_are_odes(x: Any) -> None:
    ts = jnp.linspace(0, 1, 5)
    path = dfx.CubicInterpolation(
        ts, dfx.backward_hermite_coefficients(ts, jnp.stack([ts, ts**2], 1))
    )
    term = dfx.ControlTerm(lambda t, y, args: jnp.outer(y, jnp.ones(2)), path)

    def call(y: Any) -> Any:
        return dfx.diffeqsolve(dfx.MultiTerm(term, dfx.ODETerm(field)), dfx.Heun(), 0, 1, 0.01, y)

    with replaced(TIGHT):
        swapped = call(x[0]).ys[-1]
    np.testing.assert_allclose(swapped, call(x[0]).ys[-1], rtol=1e-3)


def test_jumps_are_ends_of_steps(x: Any) -> None:
    def jumping(t: Any, y: Any, args: Any) -> Any:
        return jnp.where(t < 0.3, 1.0, -2.0) * jnp.ones_like(y)

    how = {**ADAPTIVE, "stepsize_controller": dfx.ClipStepSizeController(PID, jump_ts=[0.3])}
    with replaced(replace_by(FixedStep("midpoint", n_steps=1))) as solves:
        found = solve(x[0], vf=jumping, **how).ys[-1]
    assert solves[0].n_steps == 2
    np.testing.assert_allclose(found, x[0] + 0.3 - 1.4, rtol=1e-12)


@pytest.mark.parametrize(
    "how",
    [
        {"solver": dfx.Kvaerno5(), **{k: v for k, v in ADAPTIVE.items() if k != "solver"}},
        {"solver": dfx.HalfSolver(dfx.Euler())},
        {"solver": dfx.ReversibleHeun()},
    ],
    ids=["implicit", "half", "reversible"],
)
def test_other_solvers_of_odes(x: Any, how: Any) -> None:
    with recorded() as noted:
        jax.vmap(lambda y: solve(y, **how).ys)(x)
    assert noted[0].nfe >= noted[0].n_steps > 1
    assert noted[0].found.name is None
    with replaced(TIGHT):
        swapped = jax.vmap(lambda y: solve(y, **how).ys[-1])(x)
    exact = jax.vmap(lambda y: solve(y, **ADAPTIVE).ys[-1])(x)
    np.testing.assert_allclose(swapped, exact, atol=1e-6)


def test_settings_are_found(x: Any) -> None:
    with recorded() as noted:
        solve(x[0], **ADAPTIVE)
        steps = dfx.StepTo(ts=jnp.linspace(0, 1, 5))
        solve(x[0], dt0=None, stepsize_controller=steps)
    pid, given = noted
    assert str(pid.found) == "diffrax Tsit5, tol = 1e-09"
    assert (pid.found.name, pid.found.adaptive, pid.found.order) == ("tsit5", True, 5)
    assert str(given.found) == "diffrax Euler, h = 0.25"
    assert given.n_steps == given.nfe == 4


def sde(y: Any) -> Any:
    noise = dfx.VirtualBrownianTree(0, 1, 1e-2, (2,), jax.random.key(0))
    diffusion = dfx.ControlTerm(lambda t, y, args: jnp.eye(2), noise)
    return dfx.diffeqsolve(
        dfx.MultiTerm(dfx.ODETerm(field), diffusion), dfx.EulerHeun(), 0, 1, 0.1, y
    )


REFUSED = {
    "stochastic": sde,
    "event": lambda y: solve(y, event=dfx.Event(lambda t, y, args, **_: y[0] > 9)),
    "dense": lambda y: solve(y, saveat=dfx.SaveAt(t1=True, dense=True)),
    "steps": lambda y: solve(y, saveat=dfx.SaveAt(steps=True)),
    "solver_state": lambda y: solve(y, dfx.Tsit5(), saveat=dfx.SaveAt(t1=True, solver_state=True)),
    "SemiImplicit": lambda y: dfx.diffeqsolve(
        (dfx.ODETerm(lambda t, y, args: y), dfx.ODETerm(lambda t, y, args: -y)),
        dfx.SemiImplicitEuler(), 0, 1, 0.1, (y, y),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_solves_that_cannot_be_replaced_are_named(x: Any, what: str) -> None:
    with recorded() as noted:
        REFUSED[what](x[0])
    assert noted[0].n_steps > 0
    with replaced(TIGHT), pytest.raises(UsageError, match=f"{what}.*cannot|{what}.*no other"):
        REFUSED[what](x[0])


def test_derivatives_of_solves_are_refused(x: Any) -> None:
    def call(y: Any) -> Any:
        return jax.grad(lambda y: solve(y).ys.sum())(y)

    with recorded() as noted:
        np.testing.assert_array_equal(call(x[0]), call(x[0]))
    assert len(noted) == 2
    with replaced(TIGHT), pytest.raises(UsageError, match="differentiates through its solve"):
        call(x[0])


def test_fields_may_differentiate(x: Any) -> None:
    def vf(t: Any, y: Any, args: Any) -> Any:
        return -jax.grad(lambda y: (y**2).sum() / 2)(y)

    with replaced(TIGHT):
        found = jax.vmap(lambda y: solve(y, vf=vf).ys[-1])(x)
    np.testing.assert_allclose(found, x * jnp.exp(-1), rtol=1e-8)


def test_failures_are_told(x: Any) -> None:
    few = {**ADAPTIVE, "max_steps": 2}
    with recorded() as noted:
        jax.vmap(lambda y: solve(y, **few, throw=False).ys)(x)
    assert noted[0].status == "max_steps"
    assert "3 of 3" in noted[0].message
    with recorded(), pytest.raises(UsageError, match=r"max_steps.*throw=False"):
        jax.vmap(lambda y: solve(y, **few).ys)(x)
    with recorded() as noted:
        solve(x[0], vf=lambda t, y, args: y * jnp.inf)
    assert noted[0].status == "non_finite"


def test_everything_is_restored(x: Any) -> None:
    kind, call = type(dfx.diffeqsolve), jax.jit(jax.vmap(lambda y: solve(y).ys))
    before, entry, own = vars(kind)["__call__"], jax.config.jax_disable_jit, call(x)
    compiled = call._cache_size()

    def failing(problem: ForeignProblem) -> tuple[Tensor, Solved]:
        raise ArithmeticError

    with replaced(failing), pytest.raises(ArithmeticError):
        call(x)
    with replaced(TIGHT):
        assert jax.config.jax_disable_jit
        call(x)
    assert vars(kind)["__call__"] is before
    assert jax.config.jax_disable_jit is entry
    assert call._cache_size() == compiled
    np.testing.assert_array_equal(call(x), own)


def test_a_compiled_solve_escapes_and_an_inner_jit_is_told(x: Any) -> None:
    ahead = jax.jit(lambda y: solve(y).ys).lower(x[0]).compile()
    with recorded() as noted:
        ahead(x[0])
    assert not noted

    def forced(y: Any) -> Any:
        with jax.disable_jit(False):
            return jax.jit(lambda y: solve(y).ys)(y)

    with replaced(TIGHT), pytest.raises(UsageError, match="uncompiled"):
        forced(x[0])
