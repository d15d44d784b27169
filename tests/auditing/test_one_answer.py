"""The end of a run, an audit, a check and a certificate give the same answer or error."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueode import Adaptive, FixedStep, ModelInspection, NeuralODE, audit, check_solver
from trueode.adaptation import Certifier
from trueode.auditing import judge
from trueode.cli.main import main
from trueode.data import Split
from trueode.errors import UsageError
from trueode.evaluation import Answer, Decision, Flips, ModelOnSamples, Status, decide, get_task
from trueode.solvers import Solver

ODE, DEPENDENT, OPEN = Status
Field = Callable[[Tensor, Tensor], Tensor]


def points(n: int = 600, width: int = 2) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Case:
    """A model on samples.

    Attributes:
        field: the vector field, solved from 0 to 1.
        solver: the training solver.
        x: inputs.
        y: targets; None: the model's predictions with its solver.
        counts: the expected ``(flips, blown up, unresolved, rounding)``; None is any number
            except 0.
        status: the expected verdict.
        answer: the expected verdict on the performance.
        downstream: applied after the field.
    """

    field: Field
    solver: Solver
    x: Tensor
    y: Tensor | None
    counts: tuple[int | None, int | None, int | None, int | None]
    status: Status
    answer: Answer = Answer.SAME
    downstream: Any = None

    @property
    def model(self) -> NeuralODE:
        return NeuralODE(self.field, None, self.downstream, self.solver).eval()

    @property
    def targets(self) -> Tensor:
        return self.model(self.x).detach().argmax(1) if self.y is None else self.y

    @property
    def task(self) -> str:
        return "regression" if self.targets.is_floating_point() else "classification"


def turn(t: Tensor, z: Tensor) -> Tensor:
    """Turns by one radian; one Euler step turns by 45 degrees."""
    return torch.stack([-z[:, 1], z[:, 0]], 1)


def turned(x: Tensor) -> Tensor:
    c, s = torch.tensor(1.0).cos(), torch.tensor(1.0).sin()
    return x @ torch.stack([torch.stack([c, s]), torch.stack([-s, c])])


def square(t: Tensor, z: Tensor) -> Tensor:
    """Solutions that start above 1 blow up before the end."""
    return z * z


def sided(z: Tensor) -> Tensor:
    return torch.cat([z, torch.zeros_like(z)], 1)


def near(share: float) -> Tensor:
    """Points of which a share changes class between turns by 45 degrees and one radian."""
    angle = torch.linspace(-2.0, 0.2, 600)  # their first component keeps its sign under both
    angle[: round(share * 600)] = 0.5 * torch.pi - 0.5 * (1 + 0.25 * torch.pi)
    return torch.stack([angle.cos(), angle.sin()], 1)[
        torch.randperm(600, generator=torch.Generator().manual_seed(1))
    ]


def first(z: Tensor) -> Tensor:
    return sided(z[:, :1])


def offset(z: Tensor) -> Tensor:
    """Logits whose differences are lost in single precision."""
    return 1e5 + sided(z[:, :1])


def flat(z: Tensor) -> Tensor:
    return z * torch.tensor([1.0, 0.0]).to(z)


def blowing(share: float) -> Tensor:
    x = torch.linspace(-0.9, -0.1, 400)[:, None]
    x[: round(share * 400)] = 3.0
    return x


EULER, RK4, FAILING = (
    FixedStep("euler", n_steps=1),
    FixedStep("rk4", n_steps=8),
    FixedStep("euler", n_steps=3000),
)
X = points()
CASES = {
    "ode": Case(turn, RK4, X, turned(X).argmax(1), (0, 0, 0, 0), ODE),
    "uses the error of its solver": Case(
        turn, EULER, X, None, (None, 0, 0, 0), DEPENDENT, Answer.SOLVER
    ),
    "too coarse": Case(
        turn, EULER, X, turned(X).argmax(1), (None, 0, 0, 0), DEPENDENT, Answer.EXACT
    ),
    "numbers that move and cost nothing": Case(
        turn, EULER, X, 100 * points(600), (None, 0, 0, 0), DEPENDENT
    ),
    "near the margin": Case(
        turn,
        EULER,
        near(0.01),
        torch.zeros(600).long(),
        (6, 0, 0, 0),
        OPEN,
        Answer.UNDECIDED,
        first,
    ),
    "blows up": Case(
        square, EULER, blowing(0.03), None, (0, 12, 0, 0), DEPENDENT, Answer.UNDECIDED, sided
    ),
    "blows up, seldom": Case(
        square, EULER, blowing(0.01), None, (0, 4, 0, 0), OPEN, Answer.UNDECIDED, sided
    ),
    "its solver fails": Case(
        square,
        FAILING,
        blowing(0.03),
        torch.ones(400).long(),
        (0, 0, 12, 0),
        OPEN,
        Answer.UNDECIDED,
        sided,
    ),
    "adaptive": Case(
        turn, Adaptive("dopri5", 1e-5, 1e-5), X, turned(X).argmax(1), (0, 0, 0, 0), ODE
    ),
    "rounding": Case(
        turn, RK4, 0.01 * X, (turned(X)[:, 0] < 0).long(), (0, 0, 0, None), ODE, downstream=offset
    ),
    "constant": Case(turn, RK4, X, points(600), (0, 0, 0, 0), OPEN, Answer.SAME, flat),
}


def answers(case: Case) -> dict[str, tuple[Decision, Answer | None]]:
    """The answers of all four ways to a case."""
    model, x, y, n = case.model, case.x, case.targets, len(case.x)
    task = get_task(case.task)
    on_samples = ModelOnSamples(model, Split(x, y), task, case.solver)
    at_the_end = judge(on_samples, on_samples.run())
    inspection = ModelInspection(model, lambda attempt: Split(x, y), task)
    certifier = Certifier(0.01)
    certificate = certifier.judge(inspection.count(case.solver, 1), case.solver)
    attempt = certificate.decision if certificate is not None else certifier.attempts[-1]
    outside = NeuralODE(case.field, None, case.downstream, EULER).eval()
    found = {
        "end of a run": at_the_end,
        "audit": audit(model, (x, y), methods=("rk4",), task=case.task),
        "check": check_solver(model, (x, y), samples=n, task=case.task),
        "foreign": audit(
            lambda x: outside(x), (x, y), solver=case.solver, methods=(), task=case.task
        ),
    }
    said = {name: (each.decision, each.performance.answer) for name, each in found.items()}
    return {**said, "certificate": (decide(attempt.counts, 0.01), None)}


def counts_of(counts: Flips) -> tuple[int, ...]:
    return counts.n, counts.flips, counts.blown_up, counts.unresolved, counts.rounding


@pytest.mark.parametrize("name", CASES)
def test_every_entry_gives_the_same_answer(name: str) -> None:
    case = CASES[name]
    found = answers(case)
    for entry, (decision, answer) in found.items():
        assert decision.status is case.status, entry
        assert answer in (case.answer, None), entry
        for expected, counted in zip(case.counts, counts_of(decision.counts)[1:], strict=True):
            assert counted == expected if expected is not None else counted > 0, entry
    assert len({counts_of(decision.counts) for decision, _ in found.values()}) == 1


class Wrong:
    """A request without an answer: a model, its data, options of the task and a margin."""

    def __init__(
        self, y: Tensor, told: str, x: Tensor = X, model: NeuralODE | None = None, **how: Any
    ) -> None:
        self.model, self.data, self.told = model or NeuralODE(turn, solver=RK4).eval(), (x, y), told
        self.margin = how.pop("margin", 0.01)
        self.task = "regression" if y.is_floating_point() else "classification"
        self.how, self.decision = how, how.get("decision")


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 2)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        derivative: Tensor = self.line(z)
        return derivative


def but_one(value: float) -> Tensor:
    x = X.clone()
    x[3, 0] = value
    return x


LABELS = X.argmax(1)
WRONG = SimpleNamespace(
    empty=Wrong(LABELS[:0], "holds no samples", X[:0]),
    nan=Wrong(LABELS, "inputs of 1 samples hold NaN", but_one(nan)),
    infinite=Wrong(LABELS, "inputs of 1 samples hold NaN or infinite", but_one(inf)),
    targets=Wrong(but_one(nan), "targets of 1 samples hold NaN"),
    ignored=Wrong(torch.full_like(LABELS, -100), "No prediction counts"),
    raises=Wrong(X, "decision=… failed .* ZeroDivisionError", decision=lambda outputs: 1 / 0),
    short=Wrong(X, "decision=… returned shape", decision=lambda outputs: outputs[:5] > 0),
    number=Wrong(X, "decision=… returned float", decision=lambda outputs: 3.0),
    tolerance=Wrong(X, "tolerance", tolerance=0.0),
    absolute=Wrong(X, "absolute", absolute=0.0),
    classes=Wrong(LABELS, "tolerance does not go with classification", tolerance=0.1),
    margin=Wrong(LABELS, "margin.* between 0 and 1.*1.5", margin=1.5),
    half=Wrong(
        LABELS,
        "torch.float16.* single precision",
        X.half(),
        NeuralODE(Line(), solver=RK4).half().eval(),
    ),
)


def at_the_end(wrong: Wrong) -> None:
    x, y = wrong.data
    runnable = ModelOnSamples(
        wrong.model, Split(x, y, dtype=x.dtype), get_task(wrong.task, **wrong.how), RK4
    )
    judge(runnable, runnable.run(), margin=wrong.margin)


def certified(wrong: Wrong) -> None:
    x, y = wrong.data
    split = Split(x, y, dtype=x.dtype)
    inspection = ModelInspection(
        wrong.model, lambda attempt: split, get_task(wrong.task, **wrong.how)
    )
    Certifier(wrong.margin).judge(inspection.count(RK4, 1), RK4)


ENTRIES: dict[str, Callable[[Wrong], Any]] = {
    "end of a run": at_the_end,
    "certificate": certified,
    "audit": lambda wrong: audit(
        wrong.model, wrong.data, task=wrong.task, margin=wrong.margin, methods=(), **wrong.how
    ),
    "check": lambda wrong: check_solver(
        wrong.model, wrong.data, task=wrong.task, margin=wrong.margin, **wrong.how
    ),
}


@pytest.mark.parametrize("name", vars(WRONG))
def test_what_cannot_be_answered_is_told_alike(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    wrong: Wrong = getattr(WRONG, name)
    for entry in ENTRIES.values():
        with pytest.raises(UsageError, match=wrong.told):
            entry(wrong)
    place = f"{__name__}:WRONG.{name}"
    words = [
        f"{place}.model",
        "--data",
        f"{place}.data",
        "--task",
        wrong.task,
        "--margin",
        str(wrong.margin),
    ]
    for option, value in wrong.how.items():
        words += [f"--{option}", f"{place}.decision" if option == "decision" else str(value)]
    assert main(["audit", *words, "--methods", "", "--output_dir", str(tmp_path / "audit")]) == 2
    (message,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(wrong.told, message)
    assert not list(tmp_path.iterdir())
