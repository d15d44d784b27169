"""The contents of a checkpoint: everything that the rest of a run depends on."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch

from trueode.adaptation import Certificate, Rule
from trueode.errors import CheckpointError
from trueode.models import NeuralODE
from trueode.solvers import Checkpoint, Solver, from_plain, to_plain
from trueode.training.optimizers import Optimizer


@dataclass
class State:
    """The state of a training run between two iterations.

    Attributes:
        model: the model.
        optimizer: its optimiser.
        rule: the adaptation rule, if there is one.
        solver: the solver of the next iteration.
        iteration: iterations done.
        evaluations: field evaluations so far, counted in samples, including the checks of the
            adaptation.
        evaluations_backward: field evaluations spent on gradients.
        samples: samples seen so far, with repetitions.
        logged: ``samples``, ``evaluations`` and ``evaluations_backward`` at the last row of the
            history.
        recent_nfe: field evaluations of the last five training solves.
        extra: iterations beyond the schedule, which a failed certificate requested.
        certificate: the certificate of the current model, once training has ended.
        seconds: time spent on training.
        penalty: the discretisation-error penalty of the last iteration that had one.
    """

    model: NeuralODE
    optimizer: Optimizer
    rule: Rule | None
    solver: Solver
    iteration: int = 0
    evaluations: float = 0.0
    evaluations_backward: float = 0.0
    samples: int = 0
    logged: tuple[float, float, float] = (0, 0.0, 0.0)
    recent_nfe: deque[float] = field(default_factory=lambda: deque(maxlen=5))
    extra: int = 0
    certificate: Certificate | None = None
    seconds: float = 0.0
    penalty: float | torch.Tensor = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors; the data order is a function of the iteration."""
        return {
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rule": None if self.rule is None else self.rule.state_dict(),
            "solver": to_plain(self.solver),
            "checkpointing": isinstance(self.model.gradient, Checkpoint),
            "evaluations": self.evaluations,
            "evaluations_backward": self.evaluations_backward,
            "samples": self.samples,
            "logged": list(self.logged),
            "recent_nfe": list(self.recent_nfe),
            "extra": self.extra,
            "certificate": None if self.certificate is None else self.certificate.to_dict(),
            "seconds": self.seconds,
            "penalty": float(self.penalty),
            **random_states(self.device),
        }

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(p.device for p in self.model.parameters())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state.

        Raises:
            CheckpointError: another version saved it, or it is damaged.
        """
        own = self.state_dict()
        if "random_cuda" not in state:  # the run comes from the CPU
            own.pop("random_cuda", None)
        missing = own.keys() - state.keys()
        if missing:
            raise CheckpointError(
                f"The checkpoint has no {', '.join(sorted(missing))}: another version of trueode "
                "wrote it. Use that version, or start a new run."
            )
        wrong = [name for name, value in own.items() if not _alike(value, state[name])]
        if wrong:
            raise CheckpointError(f"The checkpoint has unexpected values for {', '.join(wrong)}.")
        self.iteration = state["iteration"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.rule is not None:
            self.rule.load_state_dict(state["rule"])
        self.solver = from_plain(state["solver"])
        if state["checkpointing"]:  # chosen for lack of memory; its gradient rounds differently
            self.model.gradient = Checkpoint()
        self.evaluations, self.evaluations_backward = (
            state["evaluations"],
            state["evaluations_backward"],
        )
        self.samples = state["samples"]
        first, second, third = state["logged"]
        self.logged = (first, second, third)
        self.extra = state["extra"]
        self.certificate = (
            Certificate.from_dict(state["certificate"]) if state["certificate"] else None
        )
        self.seconds = state["seconds"]
        self.penalty = state["penalty"]
        self.recent_nfe.extend(state["recent_nfe"])
        restore_random(state, self.device)


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of the generators from which a model on this device may draw."""
    found = {"random": torch.get_rng_state()}
    if device.type == "cuda":
        found["random_cuda"] = torch.cuda.get_rng_state(device)
    return found


def restore_random(states: dict[str, Any], device: torch.device) -> None:
    """Restore the states of the generators, as far as they are known."""
    torch.set_rng_state(states["random"].cpu())
    if device.type == "cuda" and "random_cuda" in states:
        torch.cuda.set_rng_state(states["random_cuda"].cpu(), device)


def _alike(own: Any, saved: Any) -> bool:
    """Whether a saved value may replace the own one.

    Types and shapes must be equal, and numbers not negative. Anything may replace None.
    """
    if isinstance(own, torch.Tensor):
        return isinstance(saved, torch.Tensor) and (saved.shape, saved.dtype) == (
            own.shape,
            own.dtype,
        )
    if isinstance(own, list):
        return isinstance(saved, list) and all(_alike(0.0, item) for item in saved)
    if isinstance(own, float):
        return type(saved) in (int, float) and 0 <= saved < inf
    return own is None or (type(saved) is type(own) and (type(own) is not int or saved >= 0))
