"""The training loop."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trueode.adaptation import ModelInspection, Progress, Refine
from trueode.data import Batch, Batches, Dataset
from trueode.distributed import Ranks
from trueode.errors import DivergenceError, SolveError
from trueode.evaluation import Task, evaluate, finer_solver, to_device
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
    """How long a run is, and how many iterations there are between what happens again and again."""

    niter: int  # iterations of the whole run
    log: int  # rows of the history
    test: int | None  # evaluations of the test data; None: never
    check: int  # checks of the adaptation
    checkpoint: int


@dataclass(frozen=True)
class Hooks:
    """Where the results of a training go, by default nowhere; called on every rank, at the same
    iterations.
    """

    row: Callable[[Row], None] = lambda row: None  # of the history
    checkpoint: Callable[[State], None] = lambda state: None
    notice: Callable[[str], None] = lambda text: None  # told to the user once
    doing: Callable[[str], None] = lambda text: None  # what takes long


class Step(NamedTuple):
    """What an iteration has computed before the weights change."""

    batch: Batch  # this rank's part of the training batch
    whole: int  # samples of the training batch
    solver: Solver
    output: Tensor
    solution: Solution[Any]
    loss: Tensor  # this rank's share of the mean
    nfe: float  # of a sample


@dataclass
class Trainer:
    """All that a training is made of; `run` is its algorithm, the other methods are the parts of
    that.
    """

    state: State  # it is changed
    dataset: Dataset
    task: Task
    batches: Batches  # of the training data
    schedule: Schedule
    ranks: Ranks
    checks: Checks  # what a rule sees
    # How training steps compute the model's field, in lower precision for instance; None: as it is.
    # Checks, tests and certificates call the model's own.
    field: nn.Module | None = None
    hooks: Hooks = Hooks()

    @property
    def total(self) -> int:
        """Iterations of the whole run, those included that a failed certificate has asked for."""
        return self.schedule.niter + self.state.extra

    @property
    def done(self) -> bool:
        """Whether there are no iterations left."""
        return self.state.iteration >= self.total

    def run(self, at_most: int | None = None) -> bool:
        """Train until all iterations are done, or until the user interrupts.

        A rule that certifies what it has achieved may ask for more iterations in the end.

        Args:
            at_most: stop after so many iterations; None: train to the end.

        Returns:
            Whether all are done.

        Raises:
            DivergenceError: the loss or a weight is not finite. The last checkpoint is from before.
            SolveError: the training solver failed.
        """
        state, schedule, ranks = self.state, self.schedule, self.ranks
        network = _shared(state.model, ranks)
        state.model.train()
        self._memory = MemoryGuard(self.hooks.notice, ranks, self.field)
        self._suspicion = torch.zeros(
            (), device=ranks.device
        )  # becomes NaN or infinite with the first such loss
        self._begin = time.perf_counter() - state.seconds
        if not self.done:
            state.certificate = None  # it was of the model before it is trained on
        with (
            spared(state.model, self.batches.batch_size, self.dataset.sample_shape),
            interrupts() as interrupted,
        ):
            for batch, whole in islice(self.batches.from_iteration(state.iteration), at_most):
                if self.done:
                    break
                state.iteration += 1
                step = self.step(network, to_device(batch, ranks.device), whole)
                checked = self.check(step)
                state.optimizer.step()
                self.certify()  # which may ask for more iterations
                tested = self._due(schedule.test)
                logged = tested or checked or self._due(schedule.log) or state.iteration == 1
                if logged:
                    self.log(step, checked, tested)
                # a signal reaches ranks at different times: they agree on it at logged iterations
                stop = (
                    interrupted() if ranks.world_size == 1 else logged and ranks.any(interrupted())
                )
                if stop or self._due(schedule.checkpoint):
                    self.save()
                if stop:
                    break
                del (
                    step
                )  # and with it what backward needed, before the next iteration needs as much
        return self.done

    def step(self, network: nn.Module, batch: Batch, whole: int) -> Step:
        """Solve for this rank's part of a batch of ``whole`` samples, differentiate the loss, count
        what that took.
        """
        state, ranks, solver = self.state, self.ranks, self.state.solver
        self._memory.choose_gradient(state.model, batch.x, solver)
        output, solution = self.task.predict(network, batch, solver, field=self.field)
        loss = self.task.loss_sum(output, batch) / whole
        state.optimizer.zero_grad()
        # DistributedDataParallel averages gradients, and the loss is a sum over ranks
        (loss if ranks.world_size == 1 else loss * ranks.world_size).backward()  # type: ignore[no-untyped-call]
        self._suspicion += loss.detach()
        nfe = calls(solution, len(batch.x), whole, ranks)
        state.recent_nfe.append(nfe)
        state.samples += whole
        state.evaluations += nfe * whole
        state.evaluations_backward += solution.nfe_backward * whole
        return Step(batch, whole, solver, output, solution, loss, nfe)

    def check(self, step: Step) -> bool:
        """Where it is time, let the rule propose the solver of the next iterations; whether it was
        time.
        """
        state, rule = self.state, self.state.rule
        if rule is None or state.iteration % self.schedule.check:
            return False
        if self.done and self.checks.unseen is not None:
            return False  # a model is certified with the solver that it was trained with
        own = (
            step.output if self.field is None else None
        )  # a rule is to see the error of the solver alone
        measure, seen = self.checks.measure(state, step.batch, step.whole, own, step.nfe)
        state.solver = rule.propose(
            measure, Progress(state.iteration, self.schedule.niter, tuple(state.recent_nfe))
        )
        state.evaluations += measure.nfe * seen
        if rule.notice:
            self.hooks.notice(rule.notice)
        return True

    def certify(self) -> None:
        """In the end, ask the rule for a certificate; if it wants another solver and more
        iterations, provide them.
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
        state.logged = (
            samples,
            forward + inspection.evaluations,
            backward,
        )  # no part of any iteration
        if isinstance(answer, Refine):
            state.solver = answer.solver
            state.extra += answer.iterations
            more = f"training goes on for {answer.iterations} iterations with {answer.solver}."
            self.hooks.notice(f"the model cannot be certified as it is: {more}")
        else:
            state.certificate = answer

    def log(self, step: Step, checked: bool, tested: bool) -> None:
        """Hand over a row of the history: evaluations of a sample, means over the iterations since
        the row before.

        Raises:
            DivergenceError: a loss since the row before is not finite.
        """
        state, task = self.state, self.task
        right = task.metric_sum(step.output.detach(), step.batch).double() / step.whole
        shares = torch.stack([step.loss.detach().double(), right, self._suspicion.double()])
        loss, metric, suspicion = self.ranks.sum(shares).tolist()
        if not isfinite(suspicion):
            raise DivergenceError(
                f"The loss is not finite at iteration {state.iteration}, or became so at most {self.schedule.log} "
                f"iterations before: {ADVICE}"
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
        if checked and state.rule is not None and state.rule.signal is not None:
            row |= {"signal": state.rule.signal.value, "target": state.rule.signal.target}
        if tested:
            row |= self._test(step.solver)
        self.hooks.row(row)

    def save(self) -> None:
        """Hand over the state, to be saved.

        Raises:
            DivergenceError: a weight is not finite.
        """
        if not all(bool(p.isfinite().all()) for p in self.state.model.parameters()):
            raise DivergenceError(
                f"The weights are not finite after iteration {self.state.iteration}: {ADVICE}"
            )
        self.state.seconds = time.perf_counter() - self._begin
        self.hooks.checkpoint(self.state)

    def _due(self, interval: int | None) -> bool:
        """Whether it is time for what happens at an interval, and in the end."""
        return interval is not None and (self.done or self.state.iteration % interval == 0)

    def _test(self, solver: Solver) -> Row:
        """Loss and metric on the test data; beside a rule, the metric also under a finer solver to
        refer to.

        A solver that fails there does not end the training.
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
    """The model as the ranks share it: they choose the same steps, and gradients are averaged over
    them.
    """
    if ranks.world_size == 1:
        return model
    model.reduce = ranks.sum
    devices = [ranks.device.index] if ranks.device.type == "cuda" else None
    # Gradients of (1, n, 1) may have other strides than their weights, which are the same memory.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return nn.parallel.DistributedDataParallel(model, device_ids=devices)
