"""The recording of a solve on a GPU: what the solve launches, and what its gradients launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from trueode.solvers.backends import generic, matrices
from trueode.solvers.gradients.replay import must_be_recorded
from trueode.solvers.integrate import Outcome
from trueode.solvers.problem import Problem
from trueode.solvers.solution import Counter
from trueode.transfer import Sent, sent_once


class UnclearError(Exception):
    """A field depends on something that cannot be compared."""


def called(problem: Problem) -> Outcome:
    """The solve by calling the field."""
    backend = matrices if matrices.accepts(problem) else generic
    outcome: Outcome = backend.solve(problem)
    return outcome


def root_of(problem: Problem) -> Any:
    field = problem.field
    return field.__self__ if isinstance(field, MethodType) else field


class Recorder:
    """Records the work that a GPU is given, as CUDA graphs that share their memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def rehearse(self, work: Callable[[], Any]) -> None:
        """Do the work once where it will be recorded: libraries allocate memory the first time."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """What does the work again, and the work's result, which changes each time."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph,
            pool=self._pool,
            stream=self._stream,
            capture_error_mode="thread_local",  # other threads may allocate memory meanwhile
        ):
            result = work()
        return graph.replay, result

    def random_state(self) -> list[Tensor]:
        """The states of the generators of random numbers."""
        return [torch.get_rng_state(), torch.cuda.get_rng_state(self._device)]

    def set_random_state(self, states: list[Tensor]) -> None:
        """Restore them."""
        torch.set_rng_state(states[0])
        torch.cuda.set_rng_state(states[1], self._device)


@dataclass(eq=False)
class Recording:
    """A recorded solve.

    Attributes:
        start: the initial state, which it reads.
        inputs: the tensors that are differentiated, after the state.
        sent: constants that the solve reads.
        forward: solves again.
        outcome: what it changes.
        calls: calls of the field.
        backward: computes gradients again; None: there are none.
        entering: the gradients of the results, which it reads.
        leaving: the gradients of the state and the inputs, which it changes.
        number: of the last solve.
    """

    start: Tensor
    inputs: list[Tensor]
    sent: Sent
    forward: Callable[[], None]
    outcome: Outcome
    calls: int
    backward: Callable[[], None] | None = None
    entering: list[Tensor] = field(default_factory=list)
    leaving: list[Tensor | None] = field(default_factory=list)
    number: int = 0

    def solve(self, problem: Problem) -> Outcome:
        """Solve a problem that differs from the recorded one in numbers alone."""
        problem.counter.add(self.calls)
        self.number += 1
        if self.backward is None:
            final, zs = self.run(problem.z0)
        else:
            found = _Repeated.apply(self, problem, problem.z0, *self.inputs)
            final, zs = found if isinstance(found, tuple) else (found, None)
        return self.outcome._replace(z=final, zs=zs)

    def run(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """The final and the saved states, from an initial state."""
        self.start.detach().copy_(z.detach())
        self.forward()
        zs = self.outcome.zs
        return self.outcome.z.detach().clone(), None if zs is None else zs.detach().clone()

    def pull(self, gradients: Sequence[Tensor]) -> list[Tensor | None]:
        """Gradients of the state and the inputs, from those of the results of the last solve."""
        assert self.backward is not None
        for own, given in zip(self.entering, gradients, strict=True):
            own.copy_(given)
        self.backward()
        return [None if x is None else x.clone() for x in self.leaving]


class _Repeated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, recording: Recording, problem: Problem, z: Tensor, *inputs: Tensor
    ) -> Any:
        final, zs = recording.run(z)
        ctx.recording, ctx.problem, ctx.number = recording, problem, recording.number
        ctx.save_for_backward(z, *inputs)
        return final if zs is None else (final, zs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        # this raises an error if a weight was changed in place since the forward solve
        z, *inputs = ctx.saved_tensors
        recording: Recording = ctx.recording
        # another solve may have taken the place of what this one has computed
        if must_be_recorded(gradients) or recording.number != ctx.number:
            found = _gradients(replace(ctx.problem, z0=z), [z, *inputs], gradients)
        else:
            found = recording.pull(gradients)
        return None, None, *found


def _gradients(
    problem: Problem, inputs: list[Tensor], gradients: Sequence[Tensor]
) -> list[Tensor | None]:
    """The same gradients by calling the field again."""
    twice = torch.is_grad_enabled()
    with torch.enable_grad():
        outputs = _results(called(problem))
    with torch.set_grad_enabled(twice):
        return _pulled(outputs, inputs, gradients)


def _results(outcome: Outcome) -> list[Tensor]:
    return [outcome.z] if outcome.zs is None else [outcome.z, outcome.zs]


def _pulled(
    outputs: Sequence[Tensor], inputs: list[Tensor], gradients: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of those inputs that need one, from those of the outputs, which are laid out as the
    outputs are, as in a recording; the graph is kept.
    """
    if not must_be_recorded(gradients):
        layouts = map(torch.empty_like, outputs)
        gradients = [x.copy_(g) for x, g in zip(layouts, gradients, strict=True)]
    needed = [x for x in inputs if x.requires_grad]
    found = iter(
        torch.autograd.grad(
            outputs,
            needed,
            gradients,
            retain_graph=True,
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
    )
    return [next(found) if x.requires_grad else None for x in inputs]


def alone(problem: Problem) -> Outcome:
    """The solve by calling the field, with the bits of a recording: the gradients of weights are
    summed solve by solve, and those of the results are laid out as these are.
    """
    outcome, z = called(problem), problem.z0
    outputs = _results(outcome)
    if not torch.is_grad_enabled() or not all(x.requires_grad for x in outputs):
        return outcome
    weights = [x for x in tensors_of(root_of(problem)) if x.requires_grad]
    if not _leaves(outputs, z) <= {id(x) for x in (z, *weights)}:
        return outcome
    final, *zs = _Alone.apply(outputs, z, *weights)
    return outcome._replace(z=final, zs=zs[0] if zs else None)


class _Alone(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: list[Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.outputs = outputs
        ctx.save_for_backward(*inputs)
        return tuple(x.detach() for x in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return None, *_pulled(ctx.outputs, list(ctx.saved_tensors), gradients)


def recorded(problem: Problem) -> Recording | None:
    """Record a solve; None if the recording would not give the same bits, or cannot be made."""
    recorder, root = recorder_of(problem.z0.device), root_of(problem)
    tensors, random = tensors_of(root), recorder.random_state()
    weights = {id(x) for x in root.parameters()}
    kept = [(x, x.detach().clone()) for x in tensors if id(x) not in weights]
    versions = [x._version for x in tensors]
    made: Recording | None = None
    try:
        made = _attempted(problem, recorder, [x for x in tensors if x.requires_grad])
        is_steady = versions == [x._version for x in tensors] and all(
            map(torch.equal, random, recorder.random_state())
        )
        return made if is_steady and _is_equal(made, problem) else None
    except (RuntimeError, UnclearError):  # something must wait, or memory is short
        return None
    finally:
        recorder.set_random_state(random)
        with torch.no_grad():
            for x, before in kept:
                if not x.is_inference():
                    x.copy_(before)


def _attempted(problem: Problem, recorder: Recorder, weights: list[Tensor]) -> Recording:
    z, counter, sent = problem.z0, Counter(), Sent()
    own = z.detach().clone().requires_grad_(z.requires_grad)
    still = replace(problem, z0=own, t=(problem.clock.t0, problem.clock.t1), counter=counter)

    def forward() -> Outcome:
        with sent_once(sent):
            return called(still)

    recorder.rehearse(forward)
    counter.forward = 0
    replay, outcome = recorder.record(forward)
    made = Recording(own, weights, sent, replay, outcome, counter.forward)
    if torch.is_grad_enabled() and (z.requires_grad or weights):
        _record_backward(made, recorder)
    return made


def _record_backward(made: Recording, recorder: Recorder) -> None:
    outcome = made.outcome
    outputs = _results(outcome)
    inputs = [made.start, *made.inputs]
    if not _leaves(outputs, made.start) <= {id(x) for x in inputs}:
        raise UnclearError
    made.entering = [torch.empty_like(x, requires_grad=False) for x in outputs]

    @torch.no_grad()
    def backward() -> list[Tensor | None]:
        return _pulled(outputs, inputs, made.entering)

    for x in made.entering:
        x.zero_()
    recorder.rehearse(backward)
    made.backward, made.leaving = recorder.record(backward)


def tensors_of(root: nn.Module) -> list[Tensor]:
    """The tensors of a module, each once."""
    found = chain(
        root.parameters(),
        root.buffers(),
        (x for module in root.modules() for x in vars(module).values() if isinstance(x, Tensor)),
    )
    return list({id(x): x for x in found}.values())


def _leaves(outputs: Sequence[Tensor], start: Tensor) -> set[int]:
    """The leaves of a graph that begins at a state, by identity."""
    nodes: list[Any] = [x.grad_fn for x in outputs if x.grad_fn is not None]
    seen, found = {*nodes, start.grad_fn}, set()
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    return found


def _is_equal(made: Recording, problem: Problem) -> bool:
    """Whether a recording gives the bits of a solve and of its gradients."""
    own = problem.z0.detach().requires_grad_(problem.z0.requires_grad)
    apart = replace(problem, z0=own, counter=Counter())
    wanted = called(apart)
    states = _results(wanted)
    found = [x for x in made.run(apart.z0) if x is not None]
    pairs: list[tuple[Tensor | None, Tensor | None]] = list(zip(found, states, strict=True))
    if made.backward is not None:
        inputs = [apart.z0, *made.inputs]
        entering = [x.detach() for x in states]
        with torch.no_grad():
            gradients = _pulled(states, inputs, entering)
        pairs += zip(made.pull(entering), gradients, strict=True)
    return all(_same(*pair) for pair in pairs)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one.detach().nan_to_num(), other.detach().nan_to_num())


recorder_of: Callable[[torch.device], Recorder] = Recorder
