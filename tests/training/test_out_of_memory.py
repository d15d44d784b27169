"""Iterations for which the memory does not suffice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trueode.build import build_run
from trueode.distributed import Ranks
from trueode.errors import OutOfMemoryError
from trueode.options import make_options
from trueode.solvers import Backprop, Checkpoint, Gradient
from trueode.solvers.backends import native
from trueode.training import Hooks, Trainer

CPU = torch.device("cpu")
FAILS_AT = 4  # the iteration without enough memory


@pytest.fixture(autouse=True)
def portable() -> Any:
    with native.using("off"):
        yield


class Backward(torch.autograd.Function):
    """The identity, whose derivative needs more memory than there is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")


class Field(torch.nn.Module):
    """A random field that needs much memory for some gradients."""

    def __init__(self, trainer: Trainer, where: str, needy: tuple[type[Gradient], ...]) -> None:
        super().__init__()
        self.field, self.where, self.needy = trainer.state.model.field, where, needy
        self.state, self.calls = trainer.state, 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        dz: Tensor = self.field(t, z) * torch.rand((), dtype=z.dtype)
        if self.state.iteration != FAILS_AT or not isinstance(
            self.state.model.gradient, self.needy
        ):
            return dz
        self.calls += 1
        if self.where == "backward":
            return Backward.apply(dz)  # type: ignore[no-any-return, no-untyped-call]
        if (self.calls == 6) == (self.where == "penalty"):  # its partner takes the sixth step
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return dz


def a_trainer(
    folder: Path, where: str, *needy: type[Gradient], **how: Any
) -> tuple[Trainer, list[str]]:
    options = make_options(
        {
            "niter": 6,
            "n_steps": 3,
            "batch_size": 16,
            "penalty": 1.0,
            "penalty_interval": 2,
            "precision": "float64",
            "data_dir": str(folder),
            **how,
        }
    )
    trainer = build_run(options, Ranks(0, 1, CPU))[1]
    trainer.field = Field(trainer, where, needy)
    notices: list[str] = []
    trainer.hooks = Hooks(notice=notices.append)
    return trainer, notices


@pytest.mark.parametrize("where", ["forward", "penalty", "backward"])
def test_the_iteration_is_repeated_with_checkpoints(where: str, tmp_path: Path) -> None:
    """As if the gradient had been changed before: nothing is counted or drawn twice."""
    found, notices = a_trainer(tmp_path, where, Backprop)
    assert found.run()
    assert found.state.model.gradient == Checkpoint()
    assert len(notices) == 1
    assert "--autodif checkpoint" in notices[0]
    wanted, nothing = a_trainer(tmp_path, where)
    wanted.run(FAILS_AT - 1)
    wanted.state.model.gradient = Checkpoint()
    assert wanted.run()
    assert nothing == []
    one, other = (trainer.state.state_dict() for trainer in (found, wanted))
    for state in (one, other):
        del state["seconds"]
        for name, weight in state.pop("model").items():
            state[name] = weight.tolist()
        state["random"] = state["random"].tolist()
        moments = state["optimizer"]["state"].values()
        state["optimizer"] = [value.tolist() for each in moments for value in each.values()]
    assert one == other


@pytest.mark.parametrize(
    ("needy", "how", "advice"),
    [
        ((Backprop, Checkpoint), {}, "--autodif adjoint"),
        ((Checkpoint,), {"autodif": "checkpoint"}, "--autodif adjoint"),
        ((object,), {"autodif": "adjoint"}, "--batch_size"),
    ],
)
def test_what_does_not_fit_with_checkpoints_is_an_error(
    needy: Any, how: dict[str, Any], advice: str, tmp_path: Path
) -> None:
    trainer, _ = a_trainer(tmp_path, "forward", *needy, **how)
    with pytest.raises(OutOfMemoryError, match=advice) as raised:
        trainer.run()
    assert raised.value.exit_code == 1
    assert trainer.state.iteration == FAILS_AT


def test_several_ranks_do_not_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them cannot: the others would wait for its gradients."""
    trainer, notices = a_trainer(tmp_path, "forward", Backprop)
    trainer.run(FAILS_AT - 1)
    monkeypatch.setattr(Ranks, "sum", lambda self, x: x)
    monkeypatch.setattr("trueode.training.loop._shared", lambda model, ranks: model)
    trainer.ranks = Ranks(0, 2, CPU)
    with pytest.raises(OutOfMemoryError, match="--autodif checkpoint"):
        trainer.run()
    assert notices == []
