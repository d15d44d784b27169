"""What is audited: a model with its data, run under any solver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trueode.auditing.interception import recorded, replaced
from trueode.auditing.problem import Solved
from trueode.auditing.ran import Ran, checked_output, final_state, summed
from trueode.auditing.replacement import replace_by
from trueode.auditing.samples import (
    absent_times,
    batches_of,
    chosen,
    first_tensor,
    mapped,
    refuse_shapes,
    size_of,
    targets_of,
    times_of,
)
from trueode.data import Batch
from trueode.errors import DataError, TrueodeError, UsageError, told
from trueode.evaluation import Task, get_task
from trueode.models import NeuralODE
from trueode.solvers import Solver

Call = Callable[[Any, Any], Tensor]
"""How a model is called for a batch: ``call(model, batch)`` returns the outputs, samples first."""


@dataclass(frozen=True)
class ModelUnderTest:
    """A model, how it is called, and the samples that it is audited on.

    Attributes:
        model: the model; nothing of it is changed.
        batches: the samples, in the batches in which they were given.
        sizes: samples of each batch.
        y: targets of all samples on the CPU: labels ``(n,)`` or as the outputs; None where there are none.
        task: what is learned.
        call: how the model is called.
        solver: the training solver, where it is not that of the model itself.
        separable: whether a sample's output is the same in any batch, so that a part of a batch may be run by itself.
        absent: of time series, ``(n, times)`` of bool: times that samples do not have; None where all have all.
    """

    model: Any
    batches: tuple[Any, ...]
    sizes: tuple[int, ...]
    y: Tensor | None
    task: Task
    call: Call
    solver: Solver | None = None
    separable: bool = True
    absent: Tensor | None = None

    @property
    def n(self) -> int:
        """Number of samples."""
        return sum(self.sizes)

    def finite(self, outputs: Tensor) -> Tensor:
        """Which samples have finite outputs at all times that they have: ``(n,)`` of bool."""
        known = outputs.isfinite().flatten(1)
        if self.absent is not None and outputs.shape[:2] == self.absent.shape:
            known = (outputs.isfinite().flatten(2).all(2)) | (self.absent & outputs.isnan().flatten(2).all(2))
        return known.all(1)

    def run(self, solver: Solver | None = None, *, indices: Tensor | None = None, double: bool = False) -> Ran:
        """Run the model on samples.

        Args:
            solver: the solver in the place of the model's own; None: the training solver.
            indices: of the samples ``(m,)``, ascending; None: all.
            double: run in double precision, on copies of the parameters and buffers.

        Raises:
            UsageError: the model calls no solver that can be replaced, returns what cannot be audited, or raises.
        """
        solver = solver or self.solver
        block: AbstractContextManager[list[Solved]] = recorded() if solver is None else replaced(replace_by(solver))
        outputs, states, solves = [], [], list[tuple[int, list[Solved]]]()
        with block as noted:
            for batch, rows, n in self._parts(indices):
                before = len(noted)
                output = self.forward(batch, double)
                new = noted[before:]
                if not new:
                    raise UsageError(NO_SOLVER)
                checked = checked_output(output, n, self.task)
                outputs.append(checked if rows is None else checked[rows])
                final = final_state(new[-1], n)
                states.append(final if final is None or rows is None else final[rows])
                solves.append((len(outputs[-1]), new))
        return summed(outputs, states, solves)

    def _parts(self, indices: Tensor | None) -> Iterator[tuple[Any, Tensor | None, int]]:
        """Batches to run, which rows of their outputs are wanted (None: all), and how many samples they hold."""
        start = 0
        for batch, size in zip(self.batches, self.sizes, strict=True):
            if indices is None:
                yield batch, None, size
            else:
                rows = indices[(indices >= start) & (indices < start + size)] - start
                if len(rows) == size or (len(rows) and not self.separable):
                    yield batch, rows, size
                elif len(rows):
                    yield chosen(batch, rows, size), None, len(rows)
            start += size

    def forward(self, batch: Any, double: bool = False) -> Any:
        """Call the model for a batch on its device, in its own or in double precision.

        Raises:
            ModelError: the model raises something; errors of this package pass as they are.
        """
        module = self.model if isinstance(self.model, nn.Module) else None
        device = next((p.device for p in module.parameters()), torch.device("cpu")) if module is not None else None
        moved = mapped(batch, lambda x: _cast(x, device, double))
        try:
            return (
                in_double(module, self.call, moved) if double and module is not None else self.call(self.model, moved)
            )
        except TrueodeError:
            raise
        except Exception as failure:  # a foreign model may fail in any way
            first = first_tensor(batch)
            shape = "" if first is None else f" of shape {tuple(first.shape)}"
            raise ModelError(
                f"The model's forward failed on a batch{shape}{' in double precision' if double else ''}: {told(failure)}. Is "
                "this the data that the model takes? Say with call=… how it is called."
            ) from failure


class ModelError(UsageError):
    """The model's own code raised something, which is the cause."""


NO_SOLVER = (
    "The model's forward calls no solver that can be replaced, so nothing was audited. Replaced are: trueode.solve and "
    "NeuralODE; torchdiffeq's odeint and odeint_adjoint; torchdyn's odeint and NeuralODE; torchode's AutoDiffAdjoint. A "
    "loop written by hand, odeint_dense, a scripted or traced model escape: pass the field itself, as "
    "NeuralODE(field, upstream, downstream, solver)."
)


class _Called(nn.Module):
    """A model together with how it is called, so that methods of it other than forward see replaced parameters too."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.model = model
        self._call = call

    def forward(self, batch: Any) -> Any:
        return self._call(self.model, batch)


def in_double(model: nn.Module, call: Call, batch: Any) -> Any:
    """Call a model with copies of its parameters and buffers in double precision; the model's own are left alone."""
    called = _Called(model, call)
    copies: dict[int, Tensor] = {}  # tied weights stay tied

    def copied(x: Tensor) -> Tensor:
        return copies.setdefault(id(x), x.detach().double() if x.is_floating_point() else x.detach().clone())

    # every place once: functional_call would not find back to the originals of a module that has two names
    places = {
        f"{path}.{name}": copied(x)
        for path, module in called.named_modules()
        if path
        for name, x in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }
    return functional_call(called, places, (batch,), tie_weights=False)


def model_under_test(
    model: Any,
    data: Any,
    *,
    task: str = "auto",
    call: Call | None = None,
    solver: Solver | None = None,
    samples: int = 1000,
) -> ModelUnderTest:
    """A model with its data, ready for an audit.

    Args:
        model: a `NeuralODE`, or any module or function that calls a known solver.
        data: a `Split`; a pair ``(x, y)`` or triple ``(x, y, t)`` of tensors; inputs ``x`` alone; or an iterable of batches
            of these kinds, such as a ``DataLoader``.
        task: ``"classification"``, ``"regression"``, ``"timeseries"``, or ``"auto"``: by the targets.
        call: how the model is called for a batch; None: ``model(x)``, with times ``model(x, t)`` (a `NeuralODE`:
            ``model(x, save_at=t)``).
        solver: the training solver, where it is not that of the model itself.
        samples: the audit looks at so many of the first samples.

    Raises:
        DataError: there is no data, or it is not of such a form.
        UsageError: the model cannot be audited.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError(
            "A scripted model cannot be audited: its solver is compiled into it. Audit the model that it was scripted from."
        )
    if not callable(model):
        raise UsageError(f"The model must be callable, got {type(model).__name__}.")
    batches = tuple(batches_of(data, samples))
    sizes = tuple(size_of(batch) for batch in batches)
    if not sum(sizes):
        raise DataError("The data holds no samples: the loader gave no batch.")
    targets = [targets_of(batch) for batch in batches]
    known = [y for y in targets if y is not None]
    refuse_shapes(known)
    y = torch.cat(known) if len(known) == len(targets) else None
    name = _task_name(y, batches[0]) if task == "auto" else task
    if y is not None and name == "regression":
        y = y.reshape(len(y), -1)
    kind = get_task(name)
    if call is None and isinstance(model, NeuralODE):  # it takes its solver, and times, as arguments
        return ModelUnderTest(
            model, batches, sizes, y, kind, _own_call(kind, solver), absent=absent_times(batches, sizes)
        )
    return ModelUnderTest(model, batches, sizes, y, kind, call or _call, solver, absent=absent_times(batches, sizes))


def _call(model: Any, batch: Any) -> Any:
    """``model(x)``, and ``model(x, t)`` where the batch holds times."""
    if not isinstance(batch, tuple | list):
        return model(batch)
    t = times_of(batch)
    return model(batch[0]) if t is None else model(batch[0], t)


def _own_call(task: Task, solver: Solver | None) -> Call:
    """How a `NeuralODE` is called; time series at the times of the batch, ``(batch, times, …)``."""

    def call(model: NeuralODE, batch: Any) -> Any:
        if task.name == "timeseries":
            return task.predict(model, Batch(*batch), solver)[0]
        return model(batch[0] if isinstance(batch, tuple | list) else batch, solver)

    return call


def _task_name(y: Tensor | None, batch: Any) -> str:
    if y is None:
        raise UsageError(
            "The data has no targets, so it cannot be told what is learned: pass task='classification', 'regression' or "
            "'timeseries'."
        )
    if not y.is_floating_point():
        return "classification"
    if y.numel() == len(y) and bool(((y == 0) | (y == 1)).all()):
        raise UsageError(
            "The targets are numbers, and all are 0 or 1: pass task='classification' (for a model of one or more logits), or "
            "task='regression'."
        )
    return "timeseries" if y.dim() > 2 or times_of(batch) is not None else "regression"


def _cast(x: Tensor, device: torch.device | None, double: bool) -> Tensor:
    x = x if device is None else x.to(device)
    return x.double() if double and x.is_floating_point() else x
