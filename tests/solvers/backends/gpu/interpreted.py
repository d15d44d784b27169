"""Solves by Triton's kernels on the CPU, in a process that interprets them; prints what came out.

Run as ``python -m tests.solvers.backends.gpu.interpreted`` with TRITON_INTERPRET=1 and
TRUEODE_TRITON=on.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations, product
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.solvers.backends.native.test_native import Field
from trueode.catalog import ACTIVATIONS, METHODS
from trueode.fields import ConvField
from trueode.solvers import (
    Adaptive,
    Adjoint,
    Backprop,
    Checkpoint,
    FixedStep,
    OnGrid,
    Solution,
    solve,
)
from trueode.solvers.backends import backend_of, native
from trueode.solvers.backends.gpu import library, task, triton_layers
from trueode.solvers.backends.native.runtime import NOT_ASKED, RUNTIME
from trueode.solvers.problem import Problem

KINDS = (*ACTIVATIONS, "cube", "identity")
STEPS = {
    "equal": lambda method: FixedStep(method, n_steps=2),
    "shorter": lambda method: FixedStep(method, step_size=0.3),
    "grid": lambda method: OnGrid(method, (0.0, 0.3, 1.0)),
}


class Case(NamedTuple):
    """A solve. Layer j has the activation j places after ``activation`` in `KINDS`."""

    activation: str
    method: str
    widths: tuple[int, int]
    batch: int
    timed: bool
    dtype: str
    gradient: str
    layers: int
    t: tuple[float, float]
    steps: str
    saves: bool

    @property
    def activations(self) -> list[str]:
        first = KINDS.index(self.activation)
        hidden = [KINDS[(first + 2 * j) % len(KINDS)] for j in range(self.layers - 1)]
        return [*hidden, "identity"]


CHOICES: dict[str, tuple[Any, ...]] = {
    "activation": KINDS,
    "method": tuple(METHODS),
    "widths": ((1, 3), (5, 24), (9, 16)),
    "batch": (1, 16, 21),
    "timed": (False, True),
    "dtype": ("float32", "float64"),
    "gradient": ("backprop", "checkpoint"),
    "layers": (1, 2, 3, 4),
    "t": ((0.0, 0.5), (0.5, 0.0), (-1.0, -0.5)),
    "steps": tuple(STEPS),
    "saves": (False, True),
}


def pairs(case: Case) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    """The pairs of choices that a case tests; each of its hidden layers tests an activation."""
    chosen = [(name, value) for name, value in case._asdict().items() if name != "activation"]
    used = [("activation", each) for each in dict.fromkeys(case.activations[:-1])]
    return {*combinations(chosen, 2), *product(used, chosen)}


def covering() -> list[Case]:
    """Cases that test every pair of choices: the best of some random ones, again and again."""
    draw = Random(0)

    def random() -> Case:
        return Case(**{name: draw.choice(values) for name, values in CHOICES.items()})

    left = {
        ((one, x), (other, y))
        for one, other in combinations(CHOICES, 2)
        for x, y in product(CHOICES[one], CHOICES[other])
        if (one, other, y) != ("activation", "layers", 1)  # without a hidden layer
    }
    cases = []
    while left:
        best = max((random() for _ in range(400)), key=lambda case: len(pairs(case) & left))
        if pairs(best) & left:
            cases.append(best)
            left -= pairs(best)
    return cases


CASES = covering()


def field_of(case: Case) -> Field:
    """The field of a case, in its precision."""
    state, hidden = case.widths
    widths = [state, *(hidden + j for j in range(case.layers - 1)), state]
    layers = list(zip(widths[:-1], widths[1:], case.activations, strict=True))
    field = Field(layers, case.timed, getattr(torch, case.dtype))
    with torch.no_grad():  # with cubes, larger weights make the state overflow
        for x in field.parameters():
            x *= 0.6
    return field


def results(field: nn.Module, z0: Tensor, **how: Any) -> tuple[Solution[Tensor], list[Tensor]]:
    """A solution, with states and gradients of a function of them."""
    z0 = z0.clone().requires_grad_()
    solution = solve(field, z0, **how)
    total, found = solution.z.square().sum() / len(z0), [solution.z.detach()]
    if solution.zs is not None:
        total = total + solution.zs.sin().sum() / len(z0)
        found.append(solution.zs.detach())
    inputs = [z0, *field.parameters()]
    return solution, [*found, *torch.autograd.grad(total, inputs, materialize_grads=True)]


@contextmanager
def without_kernels() -> Iterator[None]:
    """Call the field within the block."""
    before, RUNTIME.triton = RUNTIME.triton, None
    try:
        yield
    finally:
        RUNTIME.triton = before


def in_double(field: nn.Module, z0: Tensor, **how: Any) -> tuple[Solution[Tensor], list[Tensor]]:
    """The results of calling the field in double precision."""
    dtype = z0.dtype
    with without_kernels():
        found = results(field.double(), z0.double(), **how)
    field.to(dtype)
    return found


def served(field: nn.Module, z0: Tensor, **how: Any) -> bool:
    """Whether the kernels solve a problem."""
    return backend_of(Problem(field, z0, **how)) is triton_layers


def error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative error of several tensors; NaN if a number is missing."""
    errors = [
        (x - y).norm() / y.norm().clamp(min=1e-6) for x, y in zip(found, expected, strict=True)
    ]
    return float(torch.stack([x.double() for x in errors]).max())


def compared(field: nn.Module, z0: Tensor, repeat: bool = True, **how: Any) -> dict[str, Any]:
    """What the kernels give, and give again, beside what calling the field gives."""
    solution, found = results(field, z0, **how)
    again = results(field, z0, **how)[1] if repeat else found
    called, expected = in_double(field, z0, **how)
    return {
        "served": served(field, z0, **how),
        "error": error(found, expected),
        "equal": all(map(torch.equal, found, again)),
        "counts": [solution.nfe, solution.nfe_backward],
        "steps": [solution.n_steps, called.n_steps],
    }


def one(case: Case) -> dict[str, Any]:
    """The comparison of a case."""
    how: dict[str, Any] = {"solver": STEPS[case.steps](case.method), "t": case.t}
    how["gradient"] = Backprop() if case.gradient == "backprop" else Checkpoint()
    if case.saves:
        start, end = case.t
        grid = how["solver"].fractions(end - start)
        how["save_at"] = [start + grid[i] * (end - start) for i in (1, 0, 2, 1)]
    draw = torch.Generator().manual_seed(case.batch)
    z0 = torch.randn(case.batch, case.widths[0], generator=draw, dtype=torch.double)
    repeat = CASES.index(case) % 8 == 0  # it takes time
    found = compared(field_of(case), z0.to(getattr(torch, case.dtype)) / 2, repeat, **how)
    stages = how["solver"].tableau.advancing_stages
    return {**found, "expected counts": [2 * stages] * 2}


def states(*shape: int, dtype: torch.dtype = torch.double) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def dense(dtype: torch.dtype = torch.double, hidden: int = 7) -> Field:
    return Field([(2, hidden, "tanh"), (hidden, 2, "identity")], True, dtype)


def rows() -> Field:
    """Three layers that act on each row of a sample alike."""
    return Field([(2, 5, "gelu"), (5, 4, "relu"), (4, 2, "identity")], True)


def convolutions(**how: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    field = ConvField(2, 5, 1, "silu", time_dependent=True).double()
    return compared(field, states(5, 2, 3), solver=FixedStep("rk4", n_steps=2), **how)


def pointwise() -> dict[str, Any]:
    """With saved times of each sample, some of which have fewer."""
    times = torch.tensor([[0.5, 1.0], [0.0, torch.nan]], dtype=torch.double).repeat(3, 1)
    solver = FixedStep("heun3", n_steps=2)
    with_nan = results(rows(), states(6, 6), solver=solver, save_at=times)[0].zs
    with without_kernels():
        expected = results(rows(), states(6, 6), solver=solver, save_at=times)[0].zs
    assert with_nan is not None
    assert expected is not None
    found = compared(rows(), states(6, 6), solver=solver)
    alike = torch.allclose(with_nan, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    return {**found, "equal": found["equal"] and alike}


def unlike_rows() -> dict[str, Any]:
    """The first layer acts on each of two rows, the second one on all."""
    field = Field([(2, 3, "tanh"), (6, 4, "identity")])
    return compared(field, states(5, 4), solver=FixedStep("midpoint", n_steps=2))


def recognised() -> dict[str, Any]:
    """A module that does not describe its layers."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 6).double(), nn.Linear(6, 3).double()

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            value: Tensor = self.two(torch.tanh(self.one(z)))
            return value

    torch.manual_seed(0)
    return compared(Plain(), states(4, 3), solver=FixedStep("rk4_38", n_steps=2))


def wide() -> dict[str, Any]:
    """A state that is wider than the least width of a matrix product."""
    field = Field([(40, 20, "sigmoid"), (20, 40, "identity")], True, torch.float32)
    z0 = states(33, 40, dtype=torch.float32)
    return compared(field, z0, solver=FixedStep("bosh3", n_steps=2), save_at=[1.0])


def many_blocks() -> dict[str, Any]:
    """Programs that pull back several blocks of samples each."""
    before, task.MOST_PROGRAMS = task.MOST_PROGRAMS, 2
    try:
        return compared(dense(), states(70, 2), solver=FixedStep("heun2", n_steps=2))
    finally:
        task.MOST_PROGRAMS = before


def both_ways(work: Callable[[Field, Tensor, Solution[Tensor]], Tensor]) -> dict[str, Any]:
    """Something computed from a solve by the kernels and from one without them."""
    found, field, solver = [], dense(), FixedStep("rk4", n_steps=2)
    for _ in range(2):
        z0 = states(18, 2).requires_grad_()
        solution = solve(field, z0, solver=solver, save_at=[0.5, 1.0])
        found.append(work(field, z0, solution).detach())
        RUNTIME.triton, kept = None, RUNTIME.triton
        if len(found) == 1:
            first = kept
    RUNTIME.triton = first
    return {"error": error(found[:1], found[1:])}


def penalty(field: Field, z0: Tensor, solution: Solution[Tensor]) -> Tensor:
    """Gradients of gradients."""
    assert solution.zs is not None
    total = solution.z.square().sum() + solution.zs.sin().sum()
    (slope,) = torch.autograd.grad(total, z0, create_graph=True)
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(slope.square().sum(), field.weights)]
    )


def batched(field: Field, z0: Tensor, solution: Solution[Tensor]) -> Tensor:
    """Several gradients at once."""
    directions = states(3, 18, 2)
    return torch.autograd.grad(solution.z, z0, directions, is_grads_batched=True)[0]


def twice(field: Field, z0: Tensor, solution: Solution[Tensor]) -> Tensor:
    """The same gradient a second time, with that of one saved state."""
    assert solution.zs is not None
    torch.autograd.grad(solution.z.sum(), z0, retain_graph=True)
    return torch.autograd.grad(solution.z.sum() + solution.zs[0].sum(), z0)[0]


def without_gradient(field: Field, z0: Tensor, solution: Solution[Tensor]) -> Tensor:
    with torch.no_grad():
        return solve(field, z0, solver=FixedStep("rk4", n_steps=2)).z


def refusals() -> dict[str, list[Any]]:
    """Of problems that the kernels do not serve: whether they do, and the error of the solve."""
    fixed, end = FixedStep("rk4", n_steps=2), torch.tensor(1.0, dtype=torch.double)
    torch.manual_seed(0)
    image, long = (ConvField(2, 5, dim, "relu").double() for dim in (2, 1))
    problems: dict[str, tuple[nn.Module, Tensor, dict[str, Any]]] = {
        "adaptive": (dense(), states(4, 2), {"solver": Adaptive("bosh3", 1e-3, 1e-3)}),
        "a moving end": (dense(), states(4, 2), {"t": (0.0, end.requires_grad_())}),
        "a state inside a step": (dense(), states(4, 2), {"save_at": [0.3]}),
        "steps of each sample": (
            dense(),
            states(2, 2),
            {"solver": OnGrid("rk4", ((0.0, 0.0), (0.3, 0.4), (1.0, 1.0)))},
        ),
        "the adjoint method": (dense(), states(4, 2), {"gradient": Adjoint()}),
        "too wide": (dense(hidden=3000), states(4, 2), {}),
        "images": (image, states(2, 2, 4, 4), {}),
        "a long signal": (long, states(2, 2, 300), {}),
        "no interval": (dense(), states(4, 2), {"t": (0.5, 0.5)}),
    }
    found = {}
    for name, (field, z0, how) in problems.items():
        how = {"solver": fixed, **how}
        is_served = served(field, z0, **how)
        found[name] = [
            is_served,
            error(results(field, z0, **how)[1], in_double(field, z0, **how)[1]),
        ]
    return found


def broken() -> dict[str, list[Any]]:
    """Kernels that cannot be compiled: the warnings, and the error of two solves; and what is
    warned of for other values of the variable.
    """
    kernels, found = library.kernels(), {}

    class Broken:
        def __getitem__(self, grid: Any) -> Any:
            raise RuntimeError("no compiler")

    how = {"solver": FixedStep("rk4", n_steps=2)}
    for name in ("forward", "backward"):
        kept = getattr(kernels, name)
        setattr(kernels, name, Broken())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            expected = in_double(dense(), states(4, 2), **how)[1]
            errors = [error(results(dense(), states(4, 2), **how)[1], expected) for _ in range(2)]
        found[name] = [[str(each.message) for each in caught], max(errors)]
        setattr(kernels, name, kept)
        RUNTIME.triton = kernels
    return found


def poisoned(like: Tensor, *shape: int) -> Tensor:
    return like.new_full(shape, float("nan"))


def main() -> None:
    task._new = poisoned
    torch.set_num_threads(1)
    assert RUNTIME.triton is NOT_ASKED
    with native.using("off"):
        told = {
            "cases": [one(case) for case in CASES],
            "fields": {
                "convolutions": convolutions(),
                "convolutions, saved": convolutions(save_at=[0.0, 1.0, 0.5]),
                "pointwise": pointwise(),
                "unlike rows": unlike_rows(),
                "recognised": recognised(),
                "wide": wide(),
                "many blocks": many_blocks(),
            },
            "graph": {
                work.__name__: both_ways(work)
                for work in (penalty, batched, twice, without_gradient)
            },
            "refusals": refusals(),
            "broken": broken(),
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
