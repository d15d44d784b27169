"""The training loop."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trueode.adaptation import (
    DiscretisationPenalty,
    FidelityRule,
    ModelInspection,
    Progress,
    Refine,
)
from trueode.data import Batch, Batches, Dataset
from trueode.distributed import Ranks
from trueode.errors import DivergenceError, SolveError
from trueode.evaluation import Task, evaluate, finer_solver
from trueode.interrupts import interrupts
from trueode.models import NeuralODE
from trueode.solvers import Adaptive, Solution, Solver
from trueode.solvers.clock import seconds
from trueode.training.checks import Checks, calls
from trueode.training.memory import MemoryGuard
from trueode.training.state import State
from trueode.training.threads import spared

Row = dict[str, float]
ADVICE = "take a smaller --lr, a finer solver, or another --init_type."


@dataclass(frozen=True)
class Schedule:
    """The number of iterations of a run, and the intervals between its recurring actions."""

    niter: int  # iterations of the whole run
    log: int  # iterations between rows of the history
    test: int | None  # between evaluations of the test data; None: never
    check: int  # between checks of the adaptation
    checkpoint: int  # between checkpoints


@dataclass(frozen=True)
class Hooks:
    """Receivers of the results of training; the defaults do nothing.

    Each rank calls them at the same iterations.
    """

    row: Callable[[Row], None] = lambda row: None  # a row of the history
    checkpoint: Callable[[State], None] = lambda state: None  # a state to be saved
    notice: Callable[[str], None] = lambda text: None  # a message, to be shown once
    doing: Callable[[str], None] = lambda text: None  # the name of a long operation that begins


class Step(NamedTuple):
    """The results of an iteration before the weights change."""

    batch: Batch  # this rank's part of the training batch
    whole: int  # samples of the training batch on all ranks
    solver: Solver
    output: Tensor
    solution: Solution[Any]
    loss: Tensor  # this rank's part of the mean loss
    nfe: float  # field evaluations per sample


class PenaltyTerm(NamedTuple):
    """The penalty of an iteration."""

    value: Tensor  # this rank's part
    part: Batch  # the samples of this rank that are compared
    whole: int  # the compared samples on all ranks
    solver: Solver  # the partner of the training solver
    solution: Solution[Any]  # of the partner


@dataclass
class Trainer:
    """The components of a training run. `run` is the training loop, the other methods its parts."""

    state: State  # changed by training
    dataset: Dataset
    task: Task
    batches: Batches  # of the training data
    schedule: Schedule
    ranks: Ranks
    checks: Checks  # of the adaptation rule
    # The field that training steps call, for instance in lower precision; None: the model's own.
    # Checks, tests and certificates call the model's own.
    field: nn.Module | None = None
    # The mode of training steps and their backward passes, for instance `tf32`, likewise.
    precision: Callable[[], AbstractContextManager[None]] | None = None
    penalty: DiscretisationPenalty | None = None  # of discretisation errors, in the loss
    hooks: Hooks = Hooks()

    @property
    def total(self) -> int:
        """Iterations of the whole run, including those that a failed certificate requested."""
        return self.schedule.niter + self.state.extra

    @property
    def done(self) -> bool:
        """Whether no iterations are left."""
        return self.state.iteration >= self.total

    def run(self, at_most: int | None = None) -> bool:
        """Train until all iterations are done, or until the user interrupts.

        A rule that certifies the model may request more iterations at the end.

        Args:
            at_most: stop after this many iterations; None: train to the end.

        Returns:
            Whether all iterations are done.

        Raises:
            DivergenceError: the loss or a weight is not finite. The last checkpoint is older.
            SolveError: the training solver failed.
            OutOfMemoryError: the memory does not suffice, not even with checkpoints.
        """
        state, schedule, ranks = self.state, self.schedule, self.ranks
        network = _shared(state.model, ranks)
        state.model.train()
        self._memory = MemoryGuard(self.hooks.notice, ranks, self.field)
        # the sum of all losses: NaN or infinite from the first such loss on
        self._loss_sum = torch.zeros((), device=ranks.device)
        self._begin = time.perf_counter() - state.seconds
        if not self.done:
            state.certificate = None  # it holds for the model before further training
        with (
            spared(state.model, self.batches.batch_size, self.dataset.sample_shape),
            interrupts() as interrupted,
            self._memory.told(state.model),
        ):
            for batch, whole in islice(self.batches.from_iteration(state.iteration), at_most):
                if self.done:
                    break
                state.iteration += 1
                make = partial(self.step, network, batch, whole)
                with (self.precision or nullcontext)():
                    step = self._memory.attempt(state.model, make)
                checked = self.check(step)
                state.optimizer.step()
                self.certify()  # may request more iterations
                tested = self._due(schedule.test)
                logged = tested or checked or self._due(schedule.log) or state.iteration == 1
                if logged:
                    self.log(step, checked, tested)
                # ranks receive a signal at different times: they agree on it at logged iterations
                stop = (
                    interrupted() if ranks.world_size == 1 else logged and ranks.any(interrupted())
                )
                if stop or self._due(schedule.checkpoint):
                    self.save()
                if stop:
                    break
                del step  # frees the memory of back-propagation before the next iteration
        return self.done

    def begin(self) -> None:
        """Let the rule choose the solver of the first iteration."""
        state, rule = self.state, self.state.rule
        if self.penalty is None or not isinstance(rule, FidelityRule):
            return
        batch, whole = self.batches.first()
        measure, seen = self.checks.measure(state, batch, whole, None, 0.0)
        state.solver = rule.begin(measure)
        state.evaluations += measure.nfe * seen

    def step(self, network: nn.Module, batch: Batch, whole: int) -> Step:
        """Solve for this rank's part of a batch of ``whole`` samples, differentiate the loss, and
        count field evaluations.
        """
        state, ranks, solver = self.state, self.ranks, self.state.solver
        self._memory.choose_gradient(state.model, batch.x, solver)
        output, solution = self.task.predict(network, batch, solver, field=self.field)
        loss = self.task.loss_sum(output, batch) / whole
        term = self.penalise(network, batch, whole, output)
        total = loss if term is None else loss + term.value
        state.optimizer.zero_grad()
        # DistributedDataParallel averages gradients, and the loss is a sum over ranks
        (total if ranks.world_size == 1 else total * ranks.world_size).backward()  # type: ignore[no-untyped-call]
        # Count last: if memory runs out before, the step is made again.
        self._loss_sum += total.detach()
        if term is not None and self.penalty is not None:
            self._count(term.solution, term.part, term.solver, term.whole)
            state.penalty = ranks.sum(term.value.detach()) / self.penalty.interval
        nfe = self._count(solution, batch, solver, whole)
        state.recent_nfe.append(nfe)
        state.samples += whole
        return Step(batch, whole, solver, output, solution, loss, nfe)

    def penalise(
        self, network: nn.Module, batch: Batch, whole: int, output: Tensor
    ) -> PenaltyTerm | None:
        """This rank's part of the penalty, if one is due."""
        state, ranks, penalty = self.state, self.ranks, self.penalty
        if penalty is None or not penalty.due(state.iteration):
            return None
        rows = penalty.rows(first=whole * ranks.rank // ranks.world_size)
        part = batch.rows(rows)
        partner = penalty.partner(state.solver, state.iteration)
        other, solution = self.task.predict(network, part, partner, field=self.field)
        n = -(-whole // penalty.stride)
        return PenaltyTerm(penalty(output[rows], other, n), part, n, partner, solution)

    def _count(self, solution: Solution[Any], batch: Batch, solver: Solver, whole: int) -> float:
        """Count the field evaluations of a solve, and return their number per sample."""
        nfe = calls(solution, batch, solver, whole, self.ranks)
        self.state.evaluations += nfe * whole
        self.state.evaluations_backward += solution.nfe_backward * whole
        return nfe

    def check(self, step: Step) -> bool:
        """If a check is due, let the rule propose the solver of the next iterations.

        Returns:
            Whether a check was due.
        """
        state, rule = self.state, self.state.rule
        if rule is None or state.iteration % self.schedule.check:
            return False
        if self.done and self.checks.unseen is not None:
            return False  # the certificate is for the solver that the model was trained with
        # lower precision would add its rounding to the error of the solver
        own = step.output if self.field is None and self.precision is None else None
        measure, seen = self.checks.measure(state, step.batch, step.whole, own, step.nfe)
        state.solver = rule.propose(
            measure, Progress(state.iteration, self.schedule.niter, tuple(state.recent_nfe))
        )
        state.evaluations += measure.nfe * seen
        if rule.notice:
            self.hooks.notice(rule.notice)
        return True

    def certify(self) -> None:
        """At the end, ask the rule for a certificate; the rule may request further training with
        another solver instead.
        """
        state, rule, unseen = self.state, self.state.rule, self.checks.unseen
        if rule is None or unseen is None or not self.done:
            return
        how: dict[str, Any] = {
            "batch_size": self.checks.batch_size,
            "source": unseen.source,
            "ranks": self.ranks,
        }
        inspection = ModelInspection(state.model, unseen.attempt, self.task, **how)
        self.hooks.doing("certifying on unseen inputs")
        answer = rule.certify(inspection)
        state.evaluations += inspection.evaluations
        samples, forward, backward = state.logged
        # the history counts evaluations of iterations only
        state.logged = samples, forward + inspection.evaluations, backward
        if isinstance(answer, Refine):
            state.solver = answer.solver
            state.extra += answer.iterations
            more = f"training continues for {answer.iterations} iterations with {answer.solver}."
            self.hooks.notice(f"the model cannot be certified yet: {more}")
        else:
            state.certificate = answer

    def log(self, step: Step, checked: bool, tested: bool) -> None:
        """Write a row of the history.

        Numbers of field evaluations are per sample, averaged over the iterations since the last
        row.

        Raises:
            DivergenceError: a loss since the last row is not finite.
        """
        state, task = self.state, self.task
        right = task.metric_sum(step.output.detach(), step.batch).double() / step.whole
        shares = torch.stack([step.loss.detach().double(), right, self._loss_sum.double()])
        penalty = state.penalty
        if not isinstance(penalty, Tensor):  # there was none since the run began or was resumed
            penalty = shares.new_full((), penalty)
        means = [*self.ranks.sum(shares), penalty.double()]
        loss, metric, loss_sum, last_penalty = torch.stack(means).tolist()
        if not isfinite(loss_sum):
            raise DivergenceError(
                f"The loss is not finite at iteration {state.iteration}, or became so at most "
                f"{self.schedule.log} iterations before: {ADVICE}"
            )
        state.seconds = time.perf_counter() - self._begin
        work = (state.samples, state.evaluations, state.evaluations_backward)
        samples, forward, backward = (
            now - before for now, before in zip(work, state.logged, strict=True)
        )
        state.logged = work
        if isinstance(step.solver, Adaptive):
            setting = {"tolerance": step.solver.rtol}
        else:
            start, end = (seconds(end) for end in state.model.t)
            setting = {"step_size": abs(end - start) / step.solution.mean_steps}
        row = {
            "iteration": state.iteration,
            "loss": loss,
            task.metric_name: metric,
            "nfe": forward / samples,
            "nfe_backward": backward / samples,
            "nfe_total": state.evaluations / state.samples * state.iteration,
            "n_steps": step.solution.mean_steps,
            **setting,
            "order": step.solver.order,
            "seconds": state.seconds,
        }
        if self.penalty is not None:
            row["penalty"] = last_penalty
        if checked and state.rule is not None and state.rule.signal is not None:
            row |= {"signal": state.rule.signal.value, "target": state.rule.signal.target}
        if tested:
            row |= self._test(step.solver)
        self.hooks.row(row)

    def save(self) -> None:
        """Pass the state to the hook that saves it.

        Raises:
            DivergenceError: a weight is not finite.
        """
        finite = [p.detach().isfinite().all() for p in self.state.model.parameters()]
        if not bool(torch.stack(finite).all()):
            raise DivergenceError(
                f"The weights are not finite after iteration {self.state.iteration}: {ADVICE}"
            )
        self.state.seconds = time.perf_counter() - self._begin
        self.hooks.checkpoint(self.state)

    def _due(self, interval: int | None) -> bool:
        """Whether an action at an interval is due; all are due at the end."""
        return interval is not None and (self.done or self.state.iteration % interval == 0)

    def _test(self, solver: Solver) -> Row:
        """Loss and metric on the test data; with a rule, also the metric under a finer reference
        solver.

        A failing solver does not end training here.
        """
        model, test, task = self.state.model, self.dataset.test, self.task
        try:
            tested = evaluate(model, test, task, solver, ranks=self.ranks)
            found = {"test_loss": tested.loss, f"test_{task.metric_name}": tested.metric}
            if self.state.rule is not None:
                finer = evaluate(
                    model, test, task, finer_solver(solver, tested.n_steps), ranks=self.ranks
                )
                found[f"test_{task.metric_name}_reference"] = finer.metric
        except SolveError as failure:
            self.hooks.notice(f"the test data cannot be evaluated. {failure}")
            return {}
        return found


def _shared(model: NeuralODE, ranks: Ranks) -> nn.Module:
    """The model for training on all ranks: they take the same steps and average their gradients."""
    if ranks.world_size == 1:
        return model
    model.reduce = ranks.sum
    devices = [ranks.device.index] if ranks.device.type == "cuda" else None
    # Gradients of shape (1, n, 1) may have other strides than their weights: the same memory layout
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return nn.parallel.DistributedDataParallel(model, device_ids=devices)
