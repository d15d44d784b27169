"""A model's forward: in double precision, with its gradients, always from the same state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

from trueode import FixedStep, NeuralODE, audit
from trueode.auditing.forward import Forward, ModelError, in_double
from trueode.auditing.model_under_test import model_under_test
from trueode.auditing.problem import ForeignProblem, FoundSolver
from trueode.auditing.reachable import reachable
from trueode.errors import UsageError
from trueode.evaluation.runnable import Part

X = torch.randn(320, 2, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
UNIT = torch.tensor([0.0, 1.0])
RK4 = {"method": "rk4", "options": {"step_size": 0.125}}


def odeint(field: Callable[..., Any], x: Any, **how: Any) -> Any:
    states = torchdiffeq.odeint(field, x, UNIT, **(how or RK4))
    return states[-1] if isinstance(states, Tensor) else tuple(state[-1] for state in states)


# Precision


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(2, 2), nn.Linear(2, 2)
        self.other.weight = self.one.weight
        self.register_buffer("shift", torch.ones(2))
        self.register_buffer("index", torch.arange(2))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        assert self.one.weight is self.other.weight
        derivative: Tensor = self.one(torch.tanh(self.other(z + self.shift)))[:, self.index]
        return derivative


FIELD = Tied()


def classify(x: Tensor) -> Tensor:
    return odeint(FIELD, x)


def test_a_function_runs_in_double_precision() -> None:
    ran = model_under_test(classify, (X, Y)).run(FixedStep("rk4", n_steps=8), Part(double=True))
    assert ran.outputs.dtype == torch.float64
    expected = model_under_test(NeuralODE(FIELD), (X, Y)).run(
        FixedStep("rk4", n_steps=8), Part(double=True)
    )
    torch.testing.assert_close(ran.outputs, expected.outputs)
    assert FIELD.one.weight.dtype == torch.float32
    assert FIELD.one.weight is FIELD.other.weight


def test_double_precision_ends_with_its_block() -> None:
    field = Tied()
    before = {name: id(x) for name, x in [*field.named_parameters(), *field.named_buffers()]}

    def interrupted() -> None:
        with in_double(reachable(field).every):
            assert (field.shift.dtype, field.index.dtype) == (torch.float64, torch.int64)
            field.index += 1
            field.shift = field.shift + 1
            assert field.one.weight.requires_grad
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {
        name: id(x) for name, x in [*field.named_parameters(), *field.named_buffers()]
    } == before
    assert (field.index.tolist(), field.shift.tolist()) == ([0, 1], [1.0, 1.0])


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning"
)
def test_scripted_parts_keep_their_precision() -> None:
    model = Headed(lambda field, z: odeint(lambda t, z: scripted(z), z))
    scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    found = audit(model, (X, Y), methods=())
    assert found.verdict == "ode"
    assert found.reference is not None
    assert not found.reference.double
    assert any("scripted parts of a model keep their precision" in note for note in found.notes)
    assert {p.dtype for p in [*model.parameters(), *scripted.parameters()]} == {torch.float32}


def test_a_function_is_told_by_its_weights() -> None:
    known = audit(classify, (X, Y), methods=()).provenance
    assert (known["parameters"], known["dtype"]) == (
        sum(p.numel() for p in FIELD.parameters()),
        "float32",
    )
    assert known["weights"] is not None


# Gradients


class Hamiltonian(nn.Module):
    """A field that differentiates an energy."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.energy = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
        self.given = 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.given += z.grad_fn is not None
        z = z.requires_grad_()
        (g,) = torch.autograd.grad(self.energy(z).sum(), z, create_graph=True)
        return 3 * torch.stack([g[:, 1], -g[:, 0]], 1)


class Headed(nn.Module):
    """Has layers on both sides of its flow, hence states that depend on weights."""

    def __init__(self, flow: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.field, self.upstream, self.head = Hamiltonian(), nn.Linear(2, 2), nn.Linear(2, 2)
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        head: Tensor = self.head(self.flow(self.field, self.upstream(x)))
        return head


MODELS: dict[str, Callable[[], nn.Module]] = {
    "torchdiffeq": lambda: Headed(odeint),
    "torchdiffeq dopri5": lambda: Headed(lambda field, z: odeint(field, z, rtol=1e-5, atol=1e-5)),
    "NeuralODE": lambda: NeuralODE(
        Hamiltonian(), nn.Linear(2, 2), nn.Linear(2, 2), solver=FixedStep("rk4", n_steps=8)
    ),
}


@pytest.mark.parametrize("methods", [(), ("rk4",)])
@pytest.mark.parametrize("name", MODELS)
def test_a_field_that_differentiates(name: str, methods: tuple[str, ...]) -> None:
    model: Any = MODELS[name]()
    x = X.clone()
    found = audit(model, (x, Y), methods=methods)
    assert (found.verdict, found.flips) == ("ode", 0)
    assert found.reference is not None
    assert found.reference.double
    assert not x.requires_grad
    assert all(p.grad is None for p in model.parameters())
    enabled = audit(model, (x, Y), call=with_gradients, methods=())
    assert (enabled.verdict, enabled.decision) == (found.verdict, found.decision)


def with_gradients(model: nn.Module, batch: Any) -> Tensor:
    with torch.enable_grad():
        return model(batch[0])


@pytest.mark.parametrize("double", [False, True])
def test_no_graph_grows_along_a_replaced_solve(double: bool) -> None:
    model = Headed(odeint)
    subject = model_under_test(model, (X, Y))
    subject.forward.gradients = True
    with torch.no_grad():
        subject.run(FixedStep("rk4", n_steps=20), Part(double=double))
        assert model.field.given == 0
        subject.run()  # the library's solver builds the graph, as in training
    assert model.field.given


class Density(nn.Module):
    """A continuous normalising flow whose log-determinant is a trace by autograd."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))

    def field(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z = state[0].requires_grad_()
        dz = self.net(z)
        trace = sum(
            torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2)
        )
        return dz, -torch.as_tensor(trace)[:, None]

    def forward(self, x: Tensor) -> Tensor:
        z, change = odeint(self.field, (x, x.new_zeros(len(x), 1)), rtol=1e-5, atol=1e-5)
        return -z.square().sum(1) / 2 - change[:, 0]


def test_a_log_determinant_by_autograd() -> None:
    found = audit(Density(), X, task="density", methods=())
    assert found.verdict == "ode"


class Adjusted(nn.Module):
    """Enables gradients itself and differentiates through its solve."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[0.3, 0.2], [-0.4, 0.1]]))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            final = odeint(lambda t, z: torch.tanh(z @ self.a), x)
            (slope,) = torch.autograd.grad(final.square().sum(), x)
        return slope.detach()


def test_a_model_that_differentiates_through_its_solve_cannot_be_audited() -> None:
    with pytest.raises(ModelError, match=r"with euler x 2: RuntimeError: .* does not require grad"):
        audit(Adjusted(), (X, Y), methods=())


# Counters

EVALUATIONS = 0
LIMIT = 200


def refuse(n: float | Tensor) -> None:
    if n > LIMIT:
        raise RuntimeError("too many evaluations")


class Counting(nn.Module):
    """Fails at a limit of field evaluations, which it counts in one of many ways."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
        self.where, self.nfe, self.counts = where, 0, [0]
        self.register_buffer("evaluations", torch.tensor(0.0))

    def field(self, t: Tensor, z: Tensor) -> Tensor:
        global EVALUATIONS
        if self.where == "attribute":
            self.nfe += 1
            refuse(self.nfe)
        elif self.where == "list":
            self.counts[0] += 1
            refuse(self.counts[0])
        elif self.where == "name":
            EVALUATIONS += 1
            refuse(EVALUATIONS)
        elif self.where == "buffer":
            self.evaluations += 1
            refuse(self.evaluations)
        else:
            self.evaluations = self.evaluations + 1
            refuse(self.evaluations)
        return self.net(z)

    def forward(self, x: Tensor) -> Tensor:
        return odeint(self.field, x)


@pytest.mark.parametrize("where", ["attribute", "list", "name", "buffer", "new buffer"])
def test_counters_with_limits_stand_still(where: str) -> None:
    torch.manual_seed(0)
    model, before = Counting(where), EVALUATIONS
    found = audit(model, (X, Y), methods=("rk4",))
    assert found.verdict == "ode"
    assert found.reference is not None
    assert found.reference.double
    assert (model.nfe, model.counts, EVALUATIONS, float(model.evaluations)) == (0, [0], before, 0.0)
    model(X)


def test_a_field_that_changes_nothing_is_called_as_it_is() -> None:
    forward = Forward(classify, lambda model, batch: model(batch[0]))
    given: list[Any] = []

    def look(problem: Any) -> Any:
        given.append(problem)
        return torch.stack([problem.z0] * 2), None

    times = torch.tensor([0.0, 1.0])
    found = FoundSolver("", "rk4", {}, False, 4, "rk4")
    problem = ForeignProblem(lambda t, z: z.sin(), X, times, (), True, found)
    with torch.no_grad():
        forward.steady(look)(problem)
    (seen,) = given
    assert seen.z0 is X
    assert torch.equal(seen.field(times[0], X), X.sin())


# Causes


class Choosy(nn.Module):
    """Fails at certain calls of its field."""

    def __init__(self, dislikes: Callable[[Tensor, Tensor], bool]) -> None:
        super().__init__()
        self.net, self.dislikes = nn.Linear(2, 2), dislikes

    def forward(self, x: Tensor) -> Tensor:
        def field(t: Tensor, z: Tensor) -> Tensor:
            if self.dislikes(t, z):
                raise ValueError("not this one")
            return torch.tanh(self.net(z))

        return odeint(field, x)


def test_the_data_is_the_cause_of_the_first_failure_alone() -> None:
    with pytest.raises(
        ModelError, match=r"shape \(320, 3\): RuntimeError: .*Is this the data .* call="
    ):
        audit(Choosy(lambda t, z: False), (torch.randn(320, 3), Y), methods=())
    previous = [0.0]

    def after_half_a_step(t: Tensor, z: Tensor) -> bool:
        before, previous[0] = previous[0], float(t)
        return (before, previous[0]) == (0.0, 0.5)

    with pytest.raises(ModelError, match=r"\(320, 2\) with euler x 2: ValueError: not this one\.$"):
        audit(Choosy(after_half_a_step), (X, Y), methods=())


def test_a_later_failure_tells_what_was_done() -> None:
    # A single step tests first whether the model runs in double precision at all; it must pass.
    choosy = Choosy(lambda t, z: z.dtype == torch.float64 and float(t) > 0)
    with pytest.raises(
        UsageError, match=r"with rk4 x 33 in double precision: ValueError: not this one\.$"
    ):
        audit(choosy, (X, Y), methods=())
