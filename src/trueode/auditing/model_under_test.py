"""The model under test: any model with its data, run under any solver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from trueode.auditing.forward import Forward, ModelError
from trueode.auditing.frameworks import Call, framework_of
from trueode.auditing.interception import recorded, replaced
from trueode.auditing.outputs import checked_output, final_state
from trueode.auditing.problem import Solved, together
from trueode.auditing.replacement import replace_by
from trueode.auditing.samples import (
    Given,
    chosen,
    first_tensor,
    marks_of,
    read,
    refuse_shapes,
    size_of,
    targets_of,
    task_name,
    times_of,
)
from trueode.data import Batch
from trueode.errors import DataError, UsageError
from trueode.evaluation import Evaluation, Metric, Runnable, Task, get_task
from trueode.evaluation.runnable import ALL, Part, refuse_unknown
from trueode.models import NeuralODE
from trueode.solvers import FixedStep, Solver


@dataclass
class ModelUnderTest(Runnable):
    """A model, how it is called, and the samples of its audit.

    Attributes:
        forward: the model and its call.
        batches: the samples, in batches.
        sizes: the number of samples of each batch.
        task: what the model predicts.
        solver: the training solver, if the model itself uses another one.
        breaks: times at which its fields may jump, passed by the user. All solvers except the
            training solver end a step there.
        max_step: the longest step of these solvers; None means no limit.
        given: the data before they were cut into batches.
        of_rows: the mask and the groups that the user passed, for all rows.
        sample: ``sample(model, n)`` draws samples of a density by its solve; None: its method
            ``sample``, if it has one.
    """

    forward: Forward
    batches: tuple[Any, ...]
    sizes: tuple[int, ...]
    task: Task
    solver: Solver | None = None
    breaks: tuple[float, ...] = ()
    max_step: float | None = None
    given: Given | None = field(default=None, repr=False)
    of_rows: tuple[Tensor | None, Tensor | None] = field(default=(None, None), repr=False)
    sample: Callable[[Any, int], Tensor] | None = None

    def __post_init__(self) -> None:
        self.n = sum(self.sizes)

    def look_at(self, batches: tuple[Any, ...]) -> None:
        """Switch to other batches, with the targets, times, mask and groups of their rows.

        Raises:
            DataError: the batches have no form that can be audited.
        """
        for batch in batches:
            refuse_unknown("inputs", first_tensor(batch))
        self.batches, self.sizes = batches, tuple(map(size_of, batches))
        self.n = sum(self.sizes)
        self.y, marks = (_joined([of(batch) for batch in batches]) for of in (targets_of, marks_of))
        if self.y is not None and self.task.name == "regression":
            self.y = self.y.reshape(len(self.y), -1)
            refuse_unknown("targets", self.y)
        self.t = _times(self.batches, self.sizes)
        mask, groups = self.of_rows
        self.mask = _of_rows("mask", mask if mask is not None else marks, self.n, (torch.bool,))
        self.groups = _of_rows("groups", groups, self.n, (torch.int64, torch.int32))

    def on(self, batches: tuple[Any, ...], sizes: tuple[int, ...]) -> ModelUnderTest:
        """The same model on other batches."""
        return replace(self, batches=batches, sizes=sizes)

    @property
    def inputs(self) -> Tensor | None:
        """See `Runnable`."""
        parts = [batch[0] if isinstance(batch, tuple | list) else batch for batch in self.batches]
        alone = all(isinstance(part, Tensor) and part.dim() > 1 for part in parts)
        return torch.cat(parts) if self.separable and alone else None

    def at(self, inputs: Tensor) -> ModelUnderTest | None:
        """See `Runnable`; targets of a batch are repeated, because a call may expect them."""
        first = self.batches[0]
        parts = list(first) if isinstance(first, tuple | list) else [first]
        if len(parts) > 1 and isinstance(parts[1], Tensor):
            parts[1] = parts[1][:1].expand(len(inputs), *parts[1].shape[1:])
        if any(part is not None for part in parts[2:]):
            return None
        batch = (inputs, *parts[1:]) if isinstance(first, tuple | list) else inputs
        return self.on((batch,), (len(inputs),))

    def some(self, batch: Any, rows: Tensor, size: int) -> Any:
        """Some of the samples of a batch, whose number is ``size``."""
        return chosen(batch, rows, size, self.given.shared if self.given else frozenset())

    def run(self, solver: Solver | None = None, part: Part = ALL) -> Evaluation:
        """See `Runnable`.

        Raises:
            UsageError: the model calls no solver that can be replaced, returns something that
                cannot be audited, or raises.
        """
        # the training solver keeps its own steps: with limits or breaks it would be another solver
        how: tuple[tuple[float, ...], float | None] = (
            ((), None) if solver is None else (self.breaks, self.max_step)
        )
        solver = solver or self.solver
        block: AbstractContextManager[list[Solved]] = (
            recorded()
            if solver is None
            else replaced(self.forward.steady(replace_by(solver, part.solving, *how)))
        )
        outputs, states, solves = (
            list[Tensor](),
            list[Tensor | None](),
            list[tuple[int, list[Solved]]](),
        )
        with block as noted:
            for batch, numbers, rows, n in self._parts(
                part.indices, part.whole or not self.separable
            ):
                before = len(noted)
                if part.solving is not None:
                    part.solving.begin(numbers)
                output = self._outputs(batch, n, part.double, solver, noted)
                new = noted[before:]
                if not new:
                    raise UsageError(NO_SOLVER + (DISTILLED if self.task.name == "sampler" else ""))
                checked = checked_output(output, n, self.task, self.y)
                outputs.append(checked if rows is None else checked[rows])
                final = final_state(new[-1], n)
                states.append(final if final is None or rows is None else final[rows])
                solves.append((len(outputs[-1]), new))
        refuse_shapes(outputs)
        known = [part for part in states if part is not None]
        together_known = len(known) == len(states) and len({part.shape[1] for part in known}) == 1
        failed = next(
            (solve for _, group in solves for solve in group if solve.status != "success"), None
        )
        total = sum(map(len, outputs))

        def mean(value: Callable[[list[Solved]], float]) -> float:
            return sum(size * value(group) for size, group in solves) / total

        found = Evaluation(
            total,
            nfe=mean(lambda group: sum(solve.nfe for solve in group)),
            n_steps=mean(lambda group: max(solve.n_steps for solve in group)),
            n_rejected=mean(lambda group: max(solve.n_rejected for solve in group)),
            solver=solver or together([solve.found for solve in solves[0][1]]),
            outputs=torch.cat(outputs),
            states=torch.cat(known) if together_known else None,
            status="success" if failed is None else failed.status,
            message="" if failed is None else failed.message,
        )
        return self.scored(found) if part.indices is None else found

    def _outputs(
        self, batch: Any, n: int, double: bool, solver: Solver | None, noted: list[Solved]
    ) -> Any:
        """The outputs for a batch; NaN if the model raises an exception because a solve failed."""
        before = len(noted)
        try:
            return self.forward(batch, double, solver)
        except ModelError:
            lost = self.forward.lost(n, double)
            if lost is None or all(solve.status == "success" for solve in noted[before:]):
                raise
            return lost

    def _parts(
        self, indices: Tensor | None, whole: bool
    ) -> Iterator[tuple[Any, Tensor, Tensor | None, int]]:
        """Yield each batch to run, its row numbers, the rows to keep (None for all), its size."""
        start = 0
        for batch, size in zip(self.batches, self.sizes, strict=True):
            every = torch.arange(start, start + size, device="cpu")
            if indices is None:
                yield batch, every, None, size
            else:
                rows = indices[(indices >= start) & (indices < start + size)] - start
                if len(rows) == size or (len(rows) and whole):
                    yield batch, every, rows, size
                elif len(rows):
                    yield self.some(batch, rows, size), every[rows], None, len(rows)
            start += size


NO_SOLVER = (
    "The model's forward calls no solver that can be replaced, so nothing was audited. The audit "
    "can replace trueode.solve and NeuralODE, torchdiffeq's odeint, odeint_adjoint and "
    "odeint_event, torchdyn's odeint and NeuralODE, torchode's AutoDiffAdjoint, zuko's odeint, and "
    "diffrax's diffeqsolve. It cannot replace a loop written by hand, odeint_dense, or solves of a "
    "scripted, traced or ahead-of-time compiled model. In place of a loop of N steps of "
    "z = z + h * field(t, z), write: "
    "from trueode import FixedStep, solve; solver = FixedStep('euler', n_steps=N); "
    "z = solve(field, z, (t0, t1), solver=solver).z. The results are the same."
)
DISTILLED = (
    " A distilled or consistency model draws a sample by calls of its network alone: it solves "
    "nothing, so there is no solver to choose."
)


def model_under_test(
    model: Any,
    data: Any,
    *,
    task: str = "auto",
    call: Call | None = None,
    solver: Solver | None = None,
    metric: Metric | None = None,
    samples: int = 1000,
    mask: Tensor | None = None,
    groups: Tensor | None = None,
    held_out: bool = True,
    breaks: Sequence[float] = (),
    max_step: float | None = None,
    seed: int | None = None,
    margin: float | None = None,
    sample: Callable[[Any, int], Tensor] | None = None,
    **predictions: Any,
) -> ModelUnderTest:
    """Prepare a model and its data for an audit; see `audit` for the arguments.

    Raises:
        DataError: there is no data, or it has none of the forms of `audit`.
        UsageError: the model cannot be audited.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError(
            "A scripted model cannot be audited, because its solver is compiled into it. Audit the "
            "model that it was scripted from."
        )
    if not callable(model) and call is None:
        raise UsageError(f"The model must be callable, got {type(model).__name__}.")
    if samples < 1:
        raise UsageError(f"samples must be at least 1, got {samples!r}.")
    # the constructor refuses invalid times and steps
    steps = FixedStep("euler", n_steps=1, breaks=tuple(breaks), max_step=max_step)
    if task == "sampler" and data is None:
        raise DataError(
            "A sampler needs noise to start from: pass it as data, e.g. torch.randn(1000, 2)."
        )
    framework, data = framework_of(model, data)
    given = read(data, samples)
    if not sum(map(size_of, given.cut)):
        raise DataError("The data holds no samples.")
    name = (
        task_name(_joined(list(map(targets_of, given.cut))), given.cut[0])
        if task == "auto"
        else task
    )
    kind = get_task(name, **predictions).fitted(_shape_of_inputs(given.cut[0]), margin)
    if sample is not None and name != "density":
        raise UsageError(f"sample=… measures the mass of a density; the task is {name}.")
    # a NeuralODE takes its solver and times as arguments
    own = call is None and isinstance(model, NeuralODE)
    how = (_own_call(kind, solver), None) if own else (call or _call, solver)
    found = ModelUnderTest(
        Forward(model, how[0], seed, framework, sample),
        (),
        (),
        kind,
        how[1],
        steps.breaks,
        max_step,
        given,
        (mask, groups),
        sample,
    )
    found.metric, found.held_out = metric, held_out
    found.look_at(given.cut)
    return found


def _shape_of_inputs(batch: Any) -> tuple[int, ...] | None:
    """The shape of a sample of the inputs; None if they are no tensor."""
    x = batch[0] if isinstance(batch, tuple | list) else batch
    return tuple(x.shape[1:]) if isinstance(x, Tensor) else None


def _of_rows(
    name: str, given: Tensor | None, n: int, kinds: tuple[torch.dtype, ...]
) -> Tensor | None:
    """Check an argument with an entry for each sample, and cut it to the audited samples."""
    if given is None:
        return None
    if (
        not isinstance(given, Tensor)
        or given.dtype not in kinds
        or given.dim() == 0
        or len(given) < n
    ):
        form = type(given).__name__
        if isinstance(given, Tensor):
            form = f"{given.dtype} of shape {tuple(given.shape)}"
        raise DataError(
            f"{name}=… must be a tensor of {kinds[0]} with an entry for each of the {n} samples, "
            f"got {form}."
        )
    return given[:n].detach().cpu()


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    """Concatenate the parts of all batches; None if a batch has no such part."""
    known = [part for part in parts if part is not None]
    refuse_shapes(known)
    return torch.cat(known) if len(known) == len(parts) else None


def _times(batches: tuple[Any, ...], sizes: tuple[int, ...]) -> Tensor | None:
    """The times of the states: ``(times,)`` if all samples share them, else ``(n, times)``."""
    times = [times_of(batch) for batch in batches]
    if not all(isinstance(t, Tensor) for t in times):
        return None
    own = [
        t.detach().cpu() for t, n in zip(times, sizes, strict=True) if t.dim() == 2 and len(t) == n
    ]
    if len(own) == len(times) and len({t.shape[1] for t in own}) == 1:
        return torch.cat(own)
    return (
        times[0].detach().cpu()
        if len(times) == 1 or all(t.equal(times[0]) for t in times)
        else None
    )


def _call(model: Any, batch: Any) -> Any:
    """Call ``model(x)``, or ``model(x, t)`` if the batch holds times."""
    if not isinstance(batch, tuple | list):
        return model(batch)
    t = times_of(batch)
    return model(batch[0]) if t is None else model(batch[0], t)


def _own_call(task: Task, solver: Solver | None) -> Call:
    """The call of a `NeuralODE`; a time series is predicted at the times of the batch,
    ``(batch, times, …)``.
    """

    def call(model: NeuralODE, batch: Any) -> Any:
        if task.name == "timeseries":
            return task.predict(model, Batch(*batch), solver)[0]
        return model(batch[0] if isinstance(batch, tuple | list) else batch, solver)

    return call
