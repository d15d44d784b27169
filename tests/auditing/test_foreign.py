"""Audits of models of other libraries, written as in their READMEs and not modified."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import cache, partial
from math import pi
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trueode import Audit, FixedStep, NeuralODE, audit
from trueode.auditing.provenance import weights_hash
from trueode.evaluation import Answer
from trueode.solvers import Solver

torchdiffeq = pytest.importorskip("torchdiffeq")
torchode = pytest.importorskip("torchode")
pytest.importorskip("torchdyn")
from torchdyn.core import NeuralODE as DynNeuralODE  # noqa: E402 - as a model would before the audit

TESTED = 400
COARSE, FINE = FixedStep("euler", n_steps=4), FixedStep("rk4", n_steps=4)
ITERATIONS = {COARSE: 150, FINE: 60}


def rings(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """A disc in a ring."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    radius = 0.5 * torch.rand(n, generator=generator) + y
    angle = 2 * pi * torch.rand(n, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), y


class Field(nn.Module):
    """MLP 2-32-32-2."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)
        )

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        derivative: Tensor = self.net(y)
        return derivative


@cache
def trained(solver: Solver) -> NeuralODE:
    """A model that was fitted to the rings."""
    torch.manual_seed(0)
    model = NeuralODE(Field(), None, nn.Linear(2, 2), solver)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    x, y = rings(256, 1)
    for _ in range(ITERATIONS[solver]):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


class Diffeq(nn.Module):
    def __init__(
        self, field: nn.Module, head: nn.Module, odeint: Any = torchdiffeq.odeint, **how: Any
    ) -> None:
        super().__init__()
        self.field, self.head, self.odeint, self.how = field, head, odeint, how
        self.integration_time = torch.tensor([0.0, 1.0])

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(
            self.odeint(self.field, x, self.integration_time.type_as(x), **self.how)[-1]
        )
        return output


class Dyn(nn.Module):
    def __init__(self, field: Any, head: nn.Module, steps: int = 4, **how: Any) -> None:
        super().__init__()
        self.model, self.head = DynNeuralODE(field.net, **how), head
        self.t_span = torch.linspace(0, 1, steps + 1)

    def forward(self, x: Tensor) -> Tensor:
        _, trajectory = self.model(x, self.t_span)
        output: Tensor = self.head(trajectory[-1])
        return output


class Ode(nn.Module):
    """A torchode model whose field is registered twice: in the model and in the solver's term."""

    def __init__(
        self, field: nn.Module, head: nn.Module, method: str, controller: Any, dt0: float | None
    ) -> None:
        super().__init__()
        self.field, self.head, self.dt0 = field, head, dt0
        term = torchode.ODETerm(field)
        self.solver = torchode.AutoDiffAdjoint(
            getattr(torchode, method)(term=term), controller(term=term)
        )

    def forward(self, x: Tensor) -> Tensor:
        problem = torchode.InitialValueProblem(
            y0=x, t_start=torch.zeros(len(x)).to(x), t_end=torch.ones(len(x)).to(x)
        )
        dt0 = None if self.dt0 is None else torch.full((len(x),), self.dt0).to(x)
        output: Tensor = self.head(self.solver.solve(problem, dt0=dt0).ys[:, -1])
        return output


def fixed(term: Any) -> Any:
    return torchode.FixedStepController()


def controlled(term: Any) -> Any:
    return torchode.IntegralController(atol=1e-4, rtol=1e-4, term=term)


def parts(solver: Solver) -> tuple[Field, nn.Module]:
    model = trained(solver)
    assert isinstance(model.field, Field)
    assert isinstance(model.downstream, nn.Module)
    return model.field, model.downstream


EULERS: dict[str, Callable[[Field, nn.Module], nn.Module]] = {
    "torchdiffeq": lambda field, head: Diffeq(
        field, head, method="euler", options={"step_size": 0.25}
    ),
    "torchdyn": lambda field, head: Dyn(field, head, solver="euler", sensitivity="adjoint"),
    "torchode": lambda field, head: Ode(field, head, "Euler", fixed, 0.25),
}


@cache
def own_audit() -> Audit:
    return audit(trained(COARSE), rings(TESTED, 2), methods=("rk4", "dopri5"))


def test_coarse_euler_learns_rings_that_no_ode_has() -> None:
    found = own_audit()
    assert (found.verdict, found.exit_code) == ("solver-dependent", 3)
    assert found.metric > 0.95
    assert found.decision.lower > 0.05
    assert found.metric_exact < found.metric - 0.05
    assert found.performance.answer is Answer.SOLVER
    assert found.performance.lower > found.decision.margin
    assert "NOT an ODE" in found.sentence
    assert found.reasons is not None
    assert found.reasons.crossings
    assert found.reasons.crossings_exact == 0


@pytest.mark.parametrize("library", EULERS)
def test_the_same_weights_have_the_same_audit_in_every_library(library: str) -> None:
    model = EULERS[library](*parts(COARSE)).eval()
    found, own = audit(model, rings(TESTED, 2), methods=("rk4", "dopri5")), own_audit()
    assert found.solver == f"{library} {'Euler' if library == 'torchode' else 'euler'}, h = 0.25"
    assert (found.verdict, found.decision) == (own.verdict, own.decision)
    assert found.performance == own.performance
    assert found.reference is not None
    assert own.reference is not None
    torch.testing.assert_close(found.reference.outputs, own.reference.outputs, rtol=1e-5, atol=1e-5)
    rows, same_rows = (
        {(row.method, row.setting): row for row in each.rows} for each in (found, own)
    )
    # torchdyn asks for the states after each of its steps, which bounds the number of steps
    if library == "torchdyn":
        assert min(row.n_steps for row in found.rows if row.kind == "fixed") == 4
        rows = {
            key: row for key, row in rows.items() if row.kind == "adaptive" or row.setting % 4 == 0
        }
        same_rows = {key: same_rows[key] for key in rows}
    assert list(rows) == list(same_rows)
    assert {"euler", "rk4", "dopri5"} == {row.method for row in rows.values()}
    for row, same in zip(rows.values(), same_rows.values(), strict=True):
        assert row.is_training == same.is_training
        assert (row.flips, row.changed, row.metric, row.status) == (
            same.flips,
            same.changed,
            same.metric,
            same.status,
        )
        assert row.loss == pytest.approx(same.loss, rel=1e-3, abs=1e-5)
        if row.kind == "fixed":
            assert (row.n_steps, row.nfe) == (same.n_steps, same.nfe)
            assert row.output_error == pytest.approx(same.output_error, rel=0.02, abs=1e-6)
            assert row.state_error == pytest.approx(same.state_error, rel=0.02, abs=1e-6)
    assert found.reasons is not None
    assert own.reasons is not None
    assert (found.reasons.crossings, found.reasons.pairs) == (
        own.reasons.crossings,
        own.reasons.pairs,
    )
    assert found.reasons.lipschitz == pytest.approx(own.reasons.lipschitz, rel=1e-3)
    (solver,) = found.provenance["solver"]
    assert solver["library"] == library
    assert solver["settings"]["step_size"] == pytest.approx(0.25)
    assert library in found.provenance["versions"]
    assert found.provenance["parameters"] == own.provenance["parameters"]


FINES: dict[str, Callable[[Field, nn.Module], nn.Module]] = {
    "torchdiffeq rk4, h = 0.1": lambda field, head: Diffeq(
        field, head, method="rk4", options={"step_size": 0.1}
    ),
    "torchdyn rk4, h = 0.1": lambda field, head: Dyn(field, head, 10, solver="rk4"),
    "torchode Tsit5, tol = 0.0001": lambda field, head: Ode(field, head, "Tsit5", controlled, None),
    "torchdiffeq dopri5, tol = 1e-07 (rel), 1e-09 (abs)": lambda field, head: Diffeq(field, head),
}


@pytest.mark.parametrize("solver", FINES)
def test_fine_solvers_keep_the_ode_that_they_were_trained_for(solver: str) -> None:
    found = audit(FINES[solver](*parts(FINE)).eval(), rings(TESTED, 2), methods=())
    assert found.solver == solver
    assert found.verdict == "ode"
    assert found.metric == pytest.approx(found.metric_exact, abs=0.005)
    assert found.metric > found.chance
    assert "NOT an ODE" not in found.sentence


def test_the_weights_decide_together_with_the_solver() -> None:
    """Weights trained with coarse Euler are an ODE under a fine solver, of another accuracy."""
    found = audit(FINES["torchdiffeq rk4, h = 0.1"](*parts(COARSE)), rings(TESTED, 2), methods=())
    assert found.verdict != "solver-dependent"
    assert found.metric == pytest.approx(own_audit().metric_exact, abs=0.01)


# Linear fields that turn the plane, with known solutions.


class Rotation(nn.Module):
    """z' = speed (-z2, z1): turns by ``speed`` per unit of time."""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self.matrix = nn.Parameter(speed * torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return z @ self.matrix


SPEED = 4.0


def turned(x: Tensor, angle: float) -> Tensor:
    x = x.double()
    c, s = (
        torch.tensor(angle, dtype=torch.float64).cos(),
        torch.tensor(angle, dtype=torch.float64).sin(),
    )
    return x @ torch.stack([torch.stack([c, s]), torch.stack([-s, c])])


X = torch.randn(320, 2, generator=torch.Generator().manual_seed(0))
Y = (turned(X, SPEED)).argmax(1)
QUARTERS: dict[str, Any] = {"method": "euler", "options": {"step_size": 0.25}}


class Turning(nn.Module):
    """Turns the plane, by one call of torchdiffeq."""

    def __init__(self, forward: Callable[[Rotation, Tensor], Tensor]) -> None:
        super().__init__()
        self.field = Rotation(SPEED)
        self.solve = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.solve(self.field, x)


def as_tuple(field: Rotation, x: Tensor) -> Tensor:
    """A tuple state, whose second part is not used."""

    def both(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z, travelled = state
        return field(t, z), torch.ones_like(travelled)

    t = torch.tensor([0.0, 1.0])
    states = torchdiffeq.odeint(both, (x, x.new_zeros(len(x), 1)), t, **QUARTERS)
    final: Tensor = states[0][-1]
    return final


def backwards(field: Rotation, x: Tensor) -> Tensor:
    def reversed_field(t: Tensor, z: Tensor) -> Tensor:
        return -field(t, z)

    final: Tensor = torchdiffeq.odeint(reversed_field, x, torch.tensor([1.0, 0.0]), **QUARTERS)[-1]
    return final


euler = partial(torchdiffeq.odeint, method="euler", options={"step_size": 0.25})
UNIT = torch.tensor([0.0, 1.0])
CALLS: dict[str, Callable[[Rotation, Tensor], Tensor]] = {
    "odeint": lambda field, x: torchdiffeq.odeint(field, x, UNIT, **QUARTERS)[-1],
    "odeint_adjoint": lambda field, x: torchdiffeq.odeint_adjoint(field, x, UNIT, **QUARTERS)[-1],
    "partial": lambda field, x: euler(field, x, UNIT)[-1],
    "tuple states": as_tuple,
    "decreasing time": backwards,
    "many times": lambda field, x: torchdiffeq.odeint(
        field, x, torch.linspace(0, 1, 5), method="euler"
    )[-1],
}


@pytest.mark.parametrize("call", CALLS)
def test_all_ways_to_call_a_solver_are_seen(call: str) -> None:
    found = audit(Turning(CALLS[call]), (X, Y), methods=())
    assert found.solver == "torchdiffeq euler, h = 0.25"
    assert found.verdict == "solver-dependent"
    assert found.reference is not None
    assert found.reference.double
    torch.testing.assert_close(found.reference.outputs, turned(X, SPEED), rtol=1e-3, atol=1e-3)
    expected = (CALLS["odeint"](Rotation(SPEED), X).argmax(1) != Y).sum()
    assert found.flips == int(expected)
    assert (found.rows[0].n_steps, found.rows[0].nfe) == (4, 4)


class Blocks(nn.Module):
    """Several ODE blocks in a row, each solved by one of the libraries."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Net(nn.Module):
    """The net of a torchdyn field, called without the time."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


def block(library: str, speed: float) -> nn.Module:
    if library == "trueode":
        return NeuralODE(Rotation(speed), solver=COARSE)
    if library == "torchdiffeq":
        return Diffeq(Rotation(speed), nn.Identity(), **QUARTERS)
    if library == "torchode":
        return Ode(Rotation(speed), nn.Identity(), "Euler", fixed, 0.25)
    linear = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(Rotation(speed).matrix.T)
    return Dyn(Net(linear), nn.Identity(), solver="euler")


@pytest.mark.parametrize(
    "libraries",
    [
        ("torchdiffeq", "torchdiffeq"),
        ("torchdyn", "torchode"),
        ("torchdiffeq", "torchdyn"),
        ("trueode", "torchode", "torchdiffeq"),
    ],
    ids="+".join,
)
def test_several_blocks_are_replaced_together(libraries: tuple[str, ...]) -> None:
    speed = SPEED / len(libraries)
    model = Blocks(*(block(library, speed) for library in libraries)).eval()
    found = audit(model, (X, Y), methods=("rk4",))
    assert [each["library"] for each in found.provenance["solver"]] == list(
        dict.fromkeys(libraries)
    )
    assert set(libraries) | {"trueode"} <= set(found.provenance["versions"])
    assert found.reference is not None
    torch.testing.assert_close(found.reference.outputs, turned(X, SPEED), rtol=1e-4, atol=1e-4)
    assert (found.rows[0].n_steps, found.rows[0].nfe) == (4, 4 * len(libraries))
    finest = [row for row in found.rows if row.method == "rk4"][-1]
    assert (finest.flips, finest.nfe) == (0, 4 * finest.setting * len(libraries))
    own = model(X).detach()
    assert found.flips == int((own.argmax(1) != turned(X, SPEED).argmax(1)).sum())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_model_is_audited_as_it_was_written() -> None:
    """The backend "eager" needs no C++ compiler; the interception is the same."""
    model = Turning(CALLS["odeint"])
    plain = audit(model, (X, Y), methods=())
    compiled = torch.compile(model, backend="eager")
    before = compiled(X)
    found = audit(compiled, (X, Y), methods=())
    assert (found.verdict, found.decision, found.solver) == (
        plain.verdict,
        plain.decision,
        plain.solver,
    )
    torch.testing.assert_close(compiled(X), before)


class SinglePrecision(nn.Module):
    """A constant in single precision, whose product with other precisions fails."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.field = Rotation(SPEED)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.field.matrix.float().detach()
        final: Tensor = torchdiffeq.odeint(lambda t, z: z @ matrix, x, UNIT, **QUARTERS)[-1]
        return self.scale * final


class OwnPrecision(SinglePrecision):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).float()


@pytest.mark.parametrize("kind", [SinglePrecision, OwnPrecision])
def test_a_model_of_single_precision_has_a_reference_in_its_own(kind: type[nn.Module]) -> None:
    found = audit(kind(), (X, Y), methods=())
    assert found.verdict == "solver-dependent"
    assert found.reference is not None
    assert not found.reference.double
    assert 0 <= found.reference.floor < 1e-3
    torch.testing.assert_close(
        found.reference.outputs.double(), turned(X, SPEED), rtol=1e-3, atol=1e-3
    )
    (precision,) = (each for each in found.preconditions if each.name == "double precision")
    assert not precision.holds
    assert any(note.startswith("double precision") for note in found.notes)


class Shared(nn.Module):
    """One field in two blocks, under two names, with a head that shares its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Rotation(SPEED / 2)
        self.second = self.first
        self.tied = nn.Linear(2, 2, bias=False)
        self.tied.weight = self.first.matrix  # a rotation by a right angle and a stretch
        self.register_buffer("unit", torch.tensor([0.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        for field in (self.first, self.second):
            x = torchdiffeq.odeint(field, x, self.unit, **QUARTERS)[-1]
        output: Tensor = self.tied(x)
        return output


def test_shared_modules_and_tied_weights_stay_shared_and_tied() -> None:
    model = Shared()
    matrix, before = model.first.matrix, weights_hash(model)
    found = audit(model, (X, Y), methods=())
    assert found.reference is not None
    assert found.reference.double
    exact = turned(X, SPEED) @ matrix.detach().double().T
    torch.testing.assert_close(found.reference.outputs, exact, rtol=1e-3, atol=1e-3)
    assert model.first is model.second
    assert model.first.matrix is matrix
    assert model.tied.weight is matrix
    assert (matrix.dtype, model.unit.dtype) == (torch.float32, torch.float32)
    assert weights_hash(model) == before == found.provenance["weights"]
    assert found.provenance["parameters"] == matrix.numel()


class Restless(nn.Module):
    """Draws random numbers, counts in buffers (in place and by new tensors), and may fail.

    It has parts in different modes, and fails from call ``fails_at`` on.
    """

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.field = Rotation(SPEED)
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False).eval()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("anew", torch.zeros(()))
        self.calls_seen = itertools.count(1)  # an audit cannot reset it
        self.fails_at = fails_at

    def forward(self, x: Tensor) -> Tensor:
        seen = next(self.calls_seen)
        self.calls += 1
        self.anew = self.anew + 1
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        if self.fails_at is not None and seen >= self.fails_at:
            raise ZeroDivisionError("at this call")
        x = self.norm(x)
        with torch.enable_grad():
            (self.field.matrix.sum() ** 2).backward()
        final: Tensor = torchdiffeq.odeint(self.field, x, self.unit(x), **QUARTERS)[-1]
        return final

    def unit(self, x: Tensor) -> Tensor:
        return torch.tensor([0.0, 1.0]).to(x)


def state_of(model: Restless) -> tuple[Any, ...]:
    tensors = [
        (name, id(x), x.tolist(), x.dtype)
        for name, x in [*model.named_parameters(), *model.named_buffers()]
    ]
    grads = [
        (p.requires_grad, id(p.grad), None if p.grad is None else p.grad.tolist())
        for p in model.parameters()
    ]
    modes = [module.training for module in model.modules()]
    numbers = np.random.get_state()  # noqa: NPY002
    return (
        tensors,
        grads,
        modes,
        torch.get_rng_state().tolist(),
        random.getstate(),
        numbers[1].tolist(),
        numbers[2],
    )


@pytest.mark.parametrize("fails_at", [None, 1, 2, 3, 5, 8])
def test_the_model_is_left_exactly_as_it_was(fails_at: int | None) -> None:
    model = Restless()
    model(X).sum().backward()
    assert model.field.matrix.grad is not None
    model.calls_seen, model.fails_at = itertools.count(1), fails_at
    before, registry = state_of(model), dict(torchdiffeq._impl.odeint.__globals__["SOLVERS"])
    if fails_at is None:
        found = audit(model, (X, Y), methods=())
        assert found.verdict == "solver-dependent"  # its counters do not change its outputs
    else:
        try:
            audit(model, (X, Y), methods=())
        except Exception as failure:
            assert "at this call" in str(failure)  # noqa: PT017 - some later calls may fail, or are not made
    assert state_of(model) == before
    assert torchdiffeq._impl.odeint.__globals__["SOLVERS"] == registry


class Failing(nn.Module):
    """Fails from a given call of its field on."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.field = Rotation(SPEED)
        self.at, self.seen = at, itertools.count(1)

    def forward(self, x: Tensor) -> Tensor:
        def field(t: Tensor, z: Tensor) -> Tensor:
            if next(self.seen) >= self.at:
                raise ZeroDivisionError("at this call")
            return self.field(t, z)

        final: Tensor = torchdiffeq.odeint(field, x, UNIT, **QUARTERS)[-1]
        return final


# At these calls no parts of a batch are tried, which may fail.
@pytest.mark.parametrize("at", [1, 2, 20, 40])
def test_after_an_exception_the_libraries_solve_by_themselves_again(at: int) -> None:
    model = Failing(at)
    matrix = model.field.matrix
    with pytest.raises(Exception, match="at this call"):
        audit(model, (X, Y), methods=())
    assert model.training
    assert model.field.matrix is matrix
    assert matrix.dtype == torch.float32
    model.at = 10**9
    torch.testing.assert_close(model(X), CALLS["odeint"](Rotation(SPEED), X))
    assert audit(model, (X, Y), methods=()).verdict == "solver-dependent"
