"""The training loop."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import nn

from trueode.adaptation import ModelInspection, Progress, Refine
from trueode.data import Batch, Batches, Dataset
from trueode.distributed import Ranks
from trueode.errors import DivergenceError, SolveError
from trueode.evaluation import Task, evaluate, finer_solver, to_device
from trueode.interrupts import interrupts
from trueode.models import NeuralODE
from trueode.solvers import Adaptive, Backprop, Checkpoint, FixedStep, Solution, Solver
from trueode.solvers.clock import seconds
from trueode.training.checks import Checks, calls
from trueode.training.memory import bytes_per_step, free_memory
from trueode.training.state import State

Row = dict[str, float | int | None]
ADAPTIVE_STEPS = 100  # if this many steps fit, those of an adaptive solve are not counted beforehand


@dataclass(frozen=True)
class Schedule:
    """How long a run is and what happens how often; intervals in iterations.

    Attributes:
        niter: iterations of the whole run.
        log: between rows of the history.
        test: between evaluations of the test data; None: never.
        check: between checks of the adaptation.
        checkpoint: between checkpoints.
    """

    niter: int
    log: int
    test: int | None
    check: int
    checkpoint: int


@dataclass(frozen=True)
class Outcome:
    """How the loop ended: ``"finished"`` or ``"interrupted"``."""

    status: str


@dataclass(frozen=True)
class Hooks:
    """Where the loop's results go; called on every rank, at the same iterations.

    Attributes:
        row: takes a row of the history.
        checkpoint: saves the state.
        notice: tells the user something, once.
        doing: tells what takes long.
    """

    row: Callable[[Row], None]
    checkpoint: Callable[[State], None]
    notice: Callable[[str], None]
    doing: Callable[[str], None] = lambda text: None


def train(
    state: State,
    dataset: Dataset,
    task: Task,
    batches: Batches,
    schedule: Schedule,
    ranks: Ranks,
    hooks: Hooks,
    checks: Checks | None = None,
    field: nn.Module | None = None,
) -> Outcome:
    """Train until ``schedule.niter`` iterations are done, or until the user interrupts.

    A rule that certifies what it has achieved may ask for more iterations in the end.

    Args:
        state: of the training; it is changed.
        dataset: the data.
        task: what is learned.
        batches: of the training data.
        schedule: what happens when.
        ranks: the processes that train together.
        hooks: where results go.
        checks: what a rule sees; needed where there is one.
        field: how training steps compute the model's field, in lower precision for instance; None: as it is. Checks, tests
            and certificates call the model's own.

    Raises:
        DivergenceError: the loss is not finite. The last checkpoint is from before.
        SolveError: the training solver failed.
    """
    model, optimizer, rule = state.model, state.optimizer, state.rule
    network = _shared(model, ranks)
    model.train()
    memory = _Memory(hooks.notice, ranks, field)
    certifies = rule is not None and checks is not None and checks.unseen is not None
    suspicion = torch.zeros((), device=ranks.device)  # becomes NaN or infinite with the first such loss
    begin = time.perf_counter() - state.seconds
    if state.iteration < schedule.niter + state.extra:
        state.certificate = None  # it was of the model before it is trained on
    with interrupts() as interrupted:
        for batch, whole in batches.from_iteration(state.iteration):
            if state.iteration >= schedule.niter + state.extra:
                break
            state.iteration += 1
            batch = to_device(batch, ranks.device)
            memory.choose_gradient(state, batch)

            output, solution = task.predict(network, batch, state.solver, field=field)
            loss = task.loss_sum(output, batch) / whole
            optimizer.zero_grad()
            if ranks.world_size > 1:  # DistributedDataParallel averages gradients, and the loss is a sum over ranks
                (loss * ranks.world_size).backward()  # type: ignore[no-untyped-call]
            else:
                loss.backward()  # type: ignore[no-untyped-call]
            nfe = calls(solution, len(batch.x), whole, ranks)
            state.recent_nfe.append(nfe)
            state.samples += whole
            state.evaluations += nfe * whole
            state.evaluations_backward += solution.nfe_backward * whole
            solver = state.solver

            final = state.iteration == schedule.niter + state.extra
            # a model is certified with the solver that it was trained with
            checked = rule is not None and state.iteration % schedule.check == 0 and not (final and certifies)
            if checked:
                assert rule is not None
                assert checks is not None
                own = output if field is None else None  # a rule is to see the error of the solver alone
                measure, seen = checks.measure(state, batch, whole, own, nfe)
                progress = Progress(state.iteration, schedule.niter, tuple(state.recent_nfe))
                state.solver = rule.propose(measure, progress)
                state.evaluations += measure.nfe * seen
                if rule.notice:
                    hooks.notice(rule.notice)

            optimizer.step()
            suspicion += loss.detach()

            if final and certifies:
                assert checks is not None
                _certify(state, task, checks, ranks, hooks)
            last = state.iteration == schedule.niter + state.extra
            stop = interrupted() if ranks.world_size == 1 else False
            testing = schedule.test is not None and (last or state.iteration % schedule.test == 0)
            if last or testing or checked or state.iteration % schedule.log == 0 or state.iteration == 1:
                metric = task.metric_sum(output.detach(), batch).double() / whole
                values = ranks.sum(torch.stack([loss.detach().double(), metric, suspicion.double()])).tolist()
                if not isfinite(values[2]):
                    raise DivergenceError(
                        f"The loss is not finite at iteration {state.iteration}, or became so at most {schedule.log} "
                        "iterations before: take a smaller --lr, a finer solver, or another --init_type."
                    )
                state.seconds = time.perf_counter() - begin
                row = _row(state, solver, solution, values, task)
                if checked and rule is not None and rule.signal is not None:
                    row |= {"signal": rule.signal.value, "target": rule.signal.target}
                if testing:
                    row.update(_test(model, dataset, task, solver, ranks, hooks, refer=rule is not None))
                hooks.row(row)
                if ranks.world_size > 1:  # a signal reaches ranks at different times: they agree on it here
                    stop = bool(ranks.sum(torch.tensor(float(interrupted()), device=ranks.device)) > 0)
            if last or stop or state.iteration % schedule.checkpoint == 0:
                if not all(bool(p.isfinite().all()) for p in model.parameters()):
                    raise DivergenceError(
                        f"The weights are not finite after iteration {state.iteration}: take a smaller --lr, a finer "
                        "solver, or another --init_type."
                    )
                state.seconds = time.perf_counter() - begin
                hooks.checkpoint(state)
            if stop and not last:
                return Outcome("interrupted")
            del output, loss, solution  # and with them what backward needed, before the next iteration needs as much
    return Outcome("finished")


def _test(
    model: NeuralODE, dataset: Dataset, task: Task, solver: Solver, ranks: Ranks, hooks: Hooks, *, refer: bool
) -> dict[str, float]:
    """Loss and metric on the test data, the metric also under a finer solver to refer to.

    A solver that fails there does not end the training.
    """
    try:
        tested = evaluate(model, dataset.test, task, solver, ranks=ranks)
        found = {"test_loss": tested.loss, f"test_{task.metric_name}": tested.metric}
        if refer:
            finer = evaluate(model, dataset.test, task, finer_solver(solver, tested.n_steps), ranks=ranks)
            found[f"test_{task.metric_name}_reference"] = finer.metric
    except SolveError as failure:
        hooks.notice(f"the test data cannot be evaluated. {failure}")
        return {}
    return found


def _certify(state: State, task: Task, checks: Checks, ranks: Ranks, hooks: Hooks) -> None:
    """Ask the rule for a certificate of the trained model; if it wants another solver and more iterations, provide them."""
    assert state.rule is not None
    assert checks.unseen is not None
    inspection = ModelInspection(
        state.model, checks.unseen.attempt, task, batch_size=checks.batch_size, source=checks.unseen.source, ranks=ranks
    )
    hooks.doing("certifying on unseen inputs")
    answer = state.rule.certify(inspection)
    state.evaluations += inspection.evaluations
    samples, forward, backward = state.logged
    state.logged = (samples, forward + inspection.evaluations, backward)  # no part of any iteration
    if isinstance(answer, Refine):
        state.solver = answer.solver
        state.extra += answer.iterations
        hooks.notice(
            f"the model cannot be certified as it is: training goes on for {answer.iterations} iterations with {answer.solver}."
        )
    else:
        state.certificate = answer


def _row(state: State, solver: Solver, solution: Solution[Any], values: list[float], task: Task) -> Row:
    """A row of the history; evaluations are those of a sample, means over the iterations since the row before."""
    work = (state.samples, state.evaluations, state.evaluations_backward)
    samples, forward, backward = (now - before for now, before in zip(work, state.logged, strict=True))
    state.logged = work
    if isinstance(solver, Adaptive):
        setting = {"tolerance": solver.rtol}
    else:
        start, end = (seconds(end) for end in state.model.t)
        setting = {"step_size": abs(end - start) / solution.mean_steps}
    return {
        "iteration": state.iteration,
        "loss": values[0],
        task.metric_name: values[1],
        "nfe": forward / samples,
        "nfe_backward": backward / samples,
        "nfe_total": state.evaluations / state.samples * state.iteration,
        "n_steps": solution.mean_steps,
        **setting,
        "order": solver.order,
        "seconds": state.seconds,
    }


class _Memory:
    """Changes from back-propagation to checkpoints where the activations would not fit, on all ranks or on none."""

    def __init__(self, notice: Callable[[str], None], ranks: Ranks, field: nn.Module | None) -> None:
        self._notice, self._ranks, self._field = notice, ranks, field
        self._seen: Solver | None = None
        self._step = 0

    def choose_gradient(self, state: State, batch: Batch) -> None:
        """Look whenever the solver changes, until the change is made."""
        model, solver = state.model, state.solver
        if self._seen == solver or not isinstance(model.gradient, Backprop):
            return
        self._step = self._step or bytes_per_step(model, batch.x, solver, self._field)
        self._seen = solver
        free = free_memory(batch.x.device)
        length = seconds(model.t[1]) - seconds(model.t[0])
        steps: float = solver.count(length) if isinstance(solver, FixedStep) else ADAPTIVE_STEPS
        short = self._on_any_rank(self._step * steps > free / 2)
        if short and isinstance(solver, Adaptive):
            with torch.no_grad():
                steps = model(batch.x, solver, field=self._field, return_solution=True)[1].mean_steps
            short = self._on_any_rank(self._step * steps > free / 2)
        needed = self._step * steps
        if short:
            model.gradient = Checkpoint()
            self._notice(
                f"back-propagation would keep about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free: "
                "the run goes on with `--autodif checkpoint`, which gives the same gradient."
            )

    def _on_any_rank(self, short: bool) -> bool:
        return bool(self._ranks.sum(torch.tensor(float(short), device="cpu")) > 0)


def _shared(model: NeuralODE, ranks: Ranks) -> nn.Module:
    """The model, its gradients averaged over the ranks."""
    if ranks.world_size == 1:
        return model
    devices = [ranks.device.index] if ranks.device.type == "cuda" else None
    # Gradients of (1, n, 1) may have other strides than their weights, which are the same memory.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return nn.parallel.DistributedDataParallel(model, device_ids=devices)
