"""The forward pass of a model under test: in either precision, always from the same state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

from trueode.auditing.drawing import Draws, seed_all
from trueode.auditing.frameworks import Call, Framework
from trueode.auditing.kept import ROUNDING, Kept, Number, apart
from trueode.auditing.layered import Layered
from trueode.auditing.problem import Field, ForeignProblem, Replacement, Solved
from trueode.auditing.reachable import reachable
from trueode.auditing.samples import first_tensor, mapped, size_of
from trueode.errors import TrueodeError, UsageError, told
from trueode.solvers import Solver


class ModelError(UsageError):
    """The model's own code raised an exception; it is the cause of this one."""


class Forward:
    """A model, and how it is called for a batch.

    Args:
        model: any callable.
        call: calls the model.
        seed: seed of the random numbers of each call; None leaves the random state alone.
        framework: the framework of the model; None: PyTorch.
        others: further functions that are called with the model.

    Attributes:
        found: the objects that a call may use or change.
        on_gpu: whether any of them is on a GPU.
        gradients: whether it runs with gradients enabled, because its field differentiates
            something.
        random: whether it was seen to draw random numbers.
    """

    def __init__(
        self,
        model: Any,
        call: Call,
        seed: int | None = None,
        framework: Framework | None = None,
        *others: Any,
    ) -> None:
        self.model, self.call, self.seed = model, call, seed
        self.framework = framework or Framework(model)
        self._like: Tensor | None = None  # outputs of no samples
        self._n = 0  # the number of samples of the present call
        self.random = False
        self._tried = False  # whether its fields were found to draw none
        self.found = reachable(model, call, *others)
        self.gradients = self._continues = self._ran = False
        self._touched, self._counters = Kept(), list[Number]()
        self.on_gpu = any(x.is_cuda for x in self.found.tensors)
        self._device = next(
            (x.device for module in self.found.modules for x in module.parameters()), None
        )

    def __call__(
        self,
        batch: Any,
        double: bool = False,
        solver: Solver | None = None,
        then: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Compute the outputs for a batch on the model's device, in its own or double precision.

        Args:
            batch: the batch.
            double: whether to compute in double precision.
            solver: the solver that replaces the model's own, if any; named in error messages.
            then: computes the result from the outputs, which then have gradients.

        Raises:
            ModelError: the model raises an exception; errors of this package pass unchanged.
        """
        if not self._continues:
            self._touched.restore()
        if self.seed is not None:
            seed_all(self.seed)
        self._n = size_of(batch)
        moved = mapped(batch, lambda x: _cast(x, self._device, double))
        gradients = torch.enable_grad() if self.gradients or then else nullcontext()
        draws = Draws() if not self._ran or (double and self.random) else None
        try:
            with (
                gradients,
                in_double(self.found.every) if double else nullcontext(),
                draws or nullcontext(),
            ):
                outputs = self.framework.outputs(self.call, moved, double)
                outputs = outputs if then is None else then(outputs)
        except TrueodeError:
            raise
        except Exception as failure:  # a foreign model may fail in any way
            first = first_tensor(batch)
            shape = "" if first is None else f" of shape {tuple(first.shape)}"
            how = "" if solver is None else f" with {solver}"
            how += " in double precision" if double else ""
            hint = "" if self._ran else self.framework.hint(batch, failure)
            raise ModelError(
                f"The model's forward failed on a batch{shape}{how}: {told(failure)}.{hint}"
            ) from failure
        self.random |= draws is not None and draws.any
        self._ran = True
        if isinstance(outputs, Tensor) and outputs.dim() and then is None:
            self._like = outputs.detach()[:0]
        return outputs

    def lost(self, n: int, double: bool) -> Tensor | None:
        """Outputs of NaN, like earlier ones; None if the model has not returned any."""
        if self._like is None:
            return None
        like = self._like.double() if double else self._like
        return like.new_full((n, *like.shape[1:]), nan)

    @contextmanager
    def continued(self) -> Iterator[None]:
        """Let calls within the block start from the current state instead of the initial one."""
        self._continues = True
        try:
            yield
        finally:
            self._continues = False

    def settle(self, before: Kept) -> None:
        """Note what the first call has changed; each later call starts by undoing it."""
        self._touched, self._counters = before.touched(), before.numbers()

    def steady(self, replacement: Replacement, through: bool = False) -> Replacement:
        """Wrap a replacement: each field call starts with the same counters, and builds no graph
        that outlives it, except to differentiate ``through`` the solve. States with more or fewer
        rows than the batch, such as nodes of its graphs, count no samples.
        """

        def solve(problem: ForeignProblem) -> tuple[Tensor, Solved]:
            samples = problem.samples and len(problem.z0) == self._n
            problem = replace(problem, samples=samples)
            if through:
                field = self._steady(problem.field, None) if self._counters else problem.field
                return replacement(replace(problem, field=field))
            gradients = torch.is_grad_enabled()
            self._refuse_noise(problem)
            call, z0 = problem.field, problem.z0
            if gradients or self._counters:
                call, z0 = self._steady(problem.field, gradients), z0.detach()
            found = self.found
            field = Layered(call, problem.field, found.every, found.tensors, z0)
            with torch.no_grad():
                return replacement(replace(problem, field=field, z0=z0))

        return solve

    def _refuse_noise(self, problem: ForeignProblem) -> None:
        if self.seed is None or not self.random or self._tried:
            return
        with (
            torch.random.fork_rng(devices=[x for x in [problem.z0.device] if x.type == "cuda"]),
            torch.no_grad(),
        ):
            field = self._steady(problem.field, self.gradients)
            one, other = (field(problem.times[0], problem.z0) for _ in range(2))
        most = ROUNDING if one.is_cuda else 0.0
        if apart(one, other) > most and bool(one.isfinite().all()):
            raise UsageError(
                "The vector field draws new random numbers at each call, so it has no flow to "
                "compare with: draw them once, before the solve."
            )
        self._tried = True

    def _steady(self, field: Field, gradients: bool | None) -> Field:
        """The field with the same counters at each call; None for ``gradients`` keeps the graph."""
        counted: list[tuple[Number, Any]] | None = None

        def called(t: Tensor, z: Tensor) -> Tensor:
            nonlocal counted
            for number, value in counted or ():
                number.write(value)
            if gradients is None:
                derivative = field(t, z)
            else:
                with torch.set_grad_enabled(gradients):
                    derivative = field(t.detach(), z.detach()).detach()
            if counted is None:
                counted = [
                    (number, value)
                    for number in self._counters
                    if (value := number.read()) is not None
                ]
            return derivative

        return called


@contextmanager
def in_double(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Replace parameters and buffers by copies in double precision within the block; tied weights
    stay tied.

    Raises:
        TypeError: some modules are scripted.
    """
    modules = list(modules)
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules):
        raise TypeError("scripted parts of a model keep their precision")
    copies: dict[int, Tensor] = {}

    def copied(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        if id(x) not in copies:
            copy = x.detach().double() if x.is_floating_point() else x.detach()
            copies[id(x)] = (
                copy.clone() if copy.data_ptr() == x.data_ptr() else copy
            ).requires_grad_(x.requires_grad)
        return copies[id(x)]

    places: list[dict[str, Any]] = [
        held for module in modules for held in (module._parameters, module._buffers)
    ]
    originals = [dict(held) for held in places]
    try:
        for held in places:
            held.update({name: copied(x) for name, x in held.items()})
        yield
    finally:
        for held, own in zip(places, originals, strict=True):
            held.clear()
            held.update(own)


def _cast(x: Tensor, device: torch.device | None, double: bool) -> Tensor:
    # detached, because a model may require gradients of its input
    x = (x if device is None else x.to(device)).detach()
    return x.double() if double and x.is_floating_point() else x
