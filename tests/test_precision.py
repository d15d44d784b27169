"""The precision of products on GPUs: the modes in effect when a field is called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trueode
from trueode import build, distributed, gpus
from trueode.adaptation import ModelInspection
from trueode.distributed import Ranks
from trueode.evaluation import get_task
from trueode.experiment import infer, run
from trueode.fields import build_field
from trueode.options import make_options
from trueode.precision import CUDA, ieee, modes, tf32
from trueode.solvers import FixedStep
from trueode.solvers.backends import native

PARTS = (
    "loop.step",
    "loop.check",
    "loop.begin",
    "loop._test",
    "inspection.count",
    "closing.judge",
    "saved.infer",
    "auditor.audit",
)
Seen = Callable[[], set[tuple[str, str, bool]]]
SEEN = StringIO()  # audits would undo changes of a list


def is_ieee() -> bool:
    """Whether convolutions and matrix products of float32 on a GPU are IEEE."""
    found = modes()
    if found.parts is None:
        return found.matmul == "highest" and not found.cudnn
    return all(found.parts[name] in ("ieee", "none") for name in CUDA)


def note(what: str) -> None:
    """Record whether the modes are IEEE, and the innermost part of the package that computes."""
    frame: Any = sys._getframe()
    while frame is not None:
        part = f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"
        if part in PARTS:
            SEEN.write(f"{part} {what} {is_ieee()}\n")
            return
        frame = frame.f_back


class Noted(torch.autograd.Function):
    """The identity, which records the modes of its forward and backward pass."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        note("forward")
        return z.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        note("backward")
        return grad


class Field(nn.Module):
    """A field that records the modes in which it is called."""

    def __init__(self, *how: Any) -> None:
        super().__init__()
        self.field: Any = build_field(*how)

    def forward(self, t: Any, z: Tensor) -> Tensor:
        return self.field(t, Noted.apply(z))

    def flops(self, shape: Sequence[int]) -> float:
        return float(self.field.flops(shape))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Reads what the fields of models have recorded: part, direction, whether it was IEEE."""

    def read() -> set[tuple[str, str, bool]]:
        lines = map(str.split, SEEN.getvalue().splitlines())
        return {(part, way, exact == "True") for part, way, exact in lines}

    SEEN.seek(0)
    SEEN.truncate()
    monkeypatch.setattr(build, "build_field", Field)
    with native.using("off"):  # the kernel would solve it without a call
        yield read


backends: Any = torch.backends
parts = pytest.mark.skipif(not hasattr(backends.cudnn, "conv"), reason="before torch 2.9")
USERS: dict[str, Callable[[], object]] = {
    "default": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "older": lambda: setattr(backends.cuda.matmul, "allow_tf32", True),
    "older, both": lambda: (
        setattr(backends.cudnn, "allow_tf32", False),
        setattr(backends.cuda.matmul, "allow_tf32", True),
    ),
    "all": lambda: setattr(backends, "fp32_precision", "tf32"),
    "a backend": lambda: setattr(backends.cudnn, "fp32_precision", "ieee"),
    "a part": lambda: setattr(backends.cudnn.conv, "fp32_precision", "ieee"),
}


@pytest.fixture(
    params=[
        pytest.param(k, marks=parts if k in ("all", "a backend", "a part") else ()) for k in USERS
    ]
)
def user(request: pytest.FixtureRequest) -> Iterator[None]:
    """The modes that a user has set, by one of torch's interfaces."""
    USERS[request.param]()
    yield
    if hasattr(backends.cudnn, "conv"):
        backends.fp32_precision = backends.cudnn.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True


@pytest.mark.usefixtures("user")
def test_modes_are_set_and_restored() -> None:

    @tf32()
    def failing() -> None:
        assert not is_ieee()
        raise KeyError

    before = modes()
    with ieee():
        inside = modes()
        assert is_ieee()
        with pytest.raises(KeyError):
            failing()
        assert modes() == inside
    assert modes() == before


@pytest.mark.parametrize("name", ["default", "high", "medium", "older", "older, both"])
def test_the_older_modes_can_be_read_inside(name: str) -> None:
    """Torch refuses to read those that contradict the new ones; its own blocks read them."""
    USERS[name]()
    try:
        for mode, expected in ((ieee, False), (tf32, True)):
            with mode():
                assert backends.cudnn.allow_tf32 is expected
                assert backends.cuda.matmul.allow_tf32 is expected
                with backends.cudnn.flags(enabled=False):
                    pass
    finally:
        torch.set_float32_matmul_precision("highest")
        backends.cudnn.allow_tf32 = True


FLAGS = {
    "network": "linear_odenet",
    "ch_residual_block": 4,
    "niter": 8,
    "solver": "midpoint",
    "evaluate_test_acc": True,
    "eval_interval": 4,
    "evaluate_with_dif_solver": True,
    "adaption_interval": 4,
    "penalty_interval": 2,
    "verdict_budget": 0.0,
}
RULES = {
    "paper": {"use_step_adaption_algo": True, "penalty": 0.1},
    "fidelity": {
        "use_step_adaption_algo": True,
        "adaption_algo": "fidelity",
        "fidelity": 0.05,
        "check_on": "batch",
    },
    "adjoint": {"autodif": "adjoint", "penalty": 0.1, "n_steps": 2},
    "checkpoint": {"autodif": "checkpoint", "penalty": 0.1, "n_steps": 2},
}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("precision", "rule"),
    [*product(["tf32"], RULES), ("float32", "paper"), ("float32", "fidelity")],
)
def test_runs(
    precision: str, rule: str, seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only training steps with ``--precision tf32`` are computed in TF32, forward and backward."""
    cpu = Ranks(0, 1, torch.device("cpu"))
    monkeypatch.setattr(distributed, "connect", lambda *how: cpu)
    monkeypatch.setattr(gpus, "chosen", lambda *how: [])
    values = {**FLAGS, **RULES[rule], "precision": precision, "output_dir": str(tmp_path)}
    options = make_options({**values, "use_gpu": precision == "tf32"})
    before = modes()
    run(options)
    trained = seen()
    infer(options)
    assert modes() == before
    steps = {(way, exact) for part, way, exact in trained if part == "loop.step"}
    assert steps == {(way, precision != "tf32") for way in ("forward", "backward")}
    others = seen() - {each for each in trained if each[0] == "loop.step"}
    assert {exact for *_, exact in others} == {True}
    computed = {part for part, *_ in others}
    assert computed >= {"loop._test", "closing.judge", "saved.infer"}
    assert "loop.check" in computed or "adaption_algo" not in RULES[rule]
    assert "inspection.count" in computed or rule != "fidelity"


@pytest.mark.parametrize("mode", [ieee, tf32])
def test_audits(mode: Any, seen: Seen) -> None:
    torch.manual_seed(0)
    model = trueode.NeuralODE(
        Field("linear_odenet", (1, 2), 4), solver=FixedStep("euler", n_steps=2)
    )
    x = torch.randn(20, 1, 2)
    with mode():
        before = modes()
        trueode.audit(model, (x, x), task="regression")
        ModelInspection(model, lambda attempt: x, get_task("regression")).count(model.solver, 1)
        assert modes() == before
        with pytest.raises(trueode.UsageError):
            trueode.audit(lambda x: model(x)[0, 0, 0, 0], (x, x), task="regression")
        assert modes() == before
    assert {(part, exact) for part, _, exact in seen()} == {
        ("auditor.audit", True),
        ("inspection.count", True),
    }


def test_checks_compute_the_training_solver_again(tmp_path: Path) -> None:
    """Its output in TF32 has another rounding than the reference in IEEE float32."""
    values = {**FLAGS, **RULES["paper"], "use_gpu": True, "output_dir": str(tmp_path)}
    spent = []
    for precision in ("float32", "tf32"):
        options = make_options({**values, "precision": precision})
        _, trainer = build.build_run(options, Ranks(0, 1, torch.device("cpu")))
        trainer.run(options.adaption_interval)
        spent.append(trainer.state.evaluations)
    assert spent[1] > spent[0]
