"""What an audit of a density measures beside the verdict: mass, forth and back, and noise."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from math import nan
from typing import Any

import torch
from torch import Tensor

from trueode.auditing.interception import replaced
from trueode.auditing.model_under_test import ModelUnderTest
from trueode.auditing.problem import ForeignProblem, Solved
from trueode.auditing.replacement import replace_by
from trueode.auditing.samples import first_tensor, mapped
from trueode.errors import TrueodeError, UsageError
from trueode.evaluation import Evaluation, ExactFlow, get_task
from trueode.evaluation.likelihood import Likelihood
from trueode.evaluation.runnable import Part
from trueode.evaluation.statistics import mean_bounds, mean_deviation
from trueode.solvers import FixedStep

SEEDS = 5  # further seeds under which the noise of a stochastic trace is measured
ALLOWED = 0.01  # by which the mass of a density may differ from 1
STEPS = 512  # most steps of rk4 for samples of the exact flow

Sample = Callable[[Any, int], Tensor]
"""``sample(model, n)`` draws ``n`` samples of a model by its solve, ``(n, …)``."""


@dataclass(frozen=True)
class DensityChecks:
    """Quantities beside the verdict on a density; none of them decides.

    Attributes:
        mass: the mean of exp(change of the log density) over samples of the exact flow. It is the
            integral of what the training solver returns as density, where the exact one is
            positive: 1 for a density. NaN without samples.
        mass_lower: its lower bound, of a t-interval, with 95 % confidence.
        mass_upper: its upper bound, likewise.
        forth_and_back: RMS error of the initial states after a solve to the end and back by the
            training solver's method, relative to their spread; NaN if there is no equivalent
            method.
        noise: standard deviation of the mean log density over five further seeds, in nats; NaN if
            the model draws no random numbers.
        texts: all of these in sentences.
    """

    mass: float
    mass_lower: float
    mass_upper: float
    forth_and_back: float
    noise: float
    texts: tuple[str, ...]


def check_density(
    tested: ModelUnderTest, own: Evaluation, exact: ExactFlow, found: Likelihood, margin: float
) -> DensityChecks:
    """Measure what a reader should know beside the verdict on a density.

    Args:
        tested: the model and the samples.
        own: results under the training solver.
        exact: results under the exact flow.
        found: the change of the log density.
        margin: the margin of the decision, in bits per dimension.

    Raises:
        UsageError: ``sample=`` failed.
    """
    (mass, lower, upper), failure = _mass(tested, exact)
    back, noise = _forth_and_back(tested, own), _noise(tested)
    texts = [
        f"mean log density {found.own:.4g} nats under the training solver, {found.exact:.4g} under "
        f"the exact flow; the change of a sample is {found.median:.2g} nats (median), "
        f"{found.q90:.2g} (90 %), {found.q99:.2g} (99 %), {found.largest:.2g} at most"
    ]
    if mass == mass:
        one = lower <= 1 + ALLOWED and upper >= 1 - ALLOWED
        apart = "" if one else ": what the training solver returns is no density"
        texts.append(
            f"the mass under the training solver is {mass:#.4g} (1 for a density; between "
            f"{lower:#.4g} and {upper:#.4g}){apart}"
        )
    elif failure:
        texts.append(f"the mass was not measured: {failure}")
    if back == back:
        texts.append(
            f"forth and back by the training solver's method moves the inputs by {back:.2g} of "
            "their spread"
        )
    if noise == noise:
        size = noise / found.bit
        side = "more" if size > margin else "less"
        texts.append(
            f"with other random numbers the mean log density varies by {noise:.2g} nats, "
            f"{found.told(size)} (standard deviation over {SEEDS} seeds), {side} than the margin"
        )
    return DensityChecks(mass, lower, upper, back, noise, tuple(texts))


def _mass(tested: ModelUnderTest, exact: ExactFlow) -> tuple[tuple[float, float, float], str]:
    """The mass with its bounds, or why it was not measured."""
    unknown = nan, nan, nan
    method = getattr(tested.forward.model, "sample", None)
    if tested.sample is None and not callable(method):
        return unknown, "the model has no method sample: pass sample=…"
    try:
        return _measured_mass(tested, exact, tested.sample or (lambda model, n: model.sample(n)))
    except TrueodeError as failure:
        if tested.sample is not None:
            raise UsageError(
                f"sample=… cannot be used. {failure} It takes the model and a number n, and "
                "returns n samples, (n, …), that the model draws by its solve."
            ) from failure
        return unknown, f"the model's method sample cannot be used ({failure}): pass sample=…"


def _measured_mass(
    tested: ModelUnderTest, exact: ExactFlow, sample: Sample
) -> tuple[tuple[float, float, float], str]:
    fine = FixedStep("rk4", n_steps=min(exact.n_steps, STEPS))
    drawing = copy(tested.forward)
    drawing.call = lambda model, batch: sample(model, len(batch))
    batches = list[Any]()
    for k, (batch, size) in enumerate(zip(tested.batches, tested.sizes, strict=True)):
        drawing.seed = (tested.forward.seed or 0) + k  # else all batches would be equal
        numbers = torch.zeros(size, device="cpu")
        sampler = ModelUnderTest(drawing, (numbers,), (size,), get_task("sampler"))
        # in the precision of the noise, which is not known in advance
        batches.append(_with_inputs(batch, sampler.run(fine).outputs))
    drawn = tested.on(tuple(batches), tested.sizes)
    own, known = drawn.run(), drawn.run(fine, Part(double=tested.double))
    change = (own.outputs.double() - known.outputs).flatten()
    change = change[change.isfinite()]
    if len(change) < 2:
        return (nan, nan, nan), "the log densities of samples are not finite"
    mean, lower, upper = mean_bounds(change.exp().tolist(), 0.95)
    return (mean, max(lower, 0.0), upper), ""


def _with_inputs(batch: Any, x: Tensor) -> Any:
    """A batch with other inputs, its first tensor.

    Raises:
        UsageError: they have another shape.
    """
    given = first_tensor(batch)
    assert given is not None
    if given.numel() != x.numel():
        raise UsageError(
            f"The samples have shape {tuple(x.shape)}, the inputs {tuple(given.shape)}."
        )
    return mapped(batch, lambda part: x.to(given).view(given.shape) if part is given else part)


def _forth_and_back(tested: ModelUnderTest, own: Evaluation) -> float:
    """The error of the initial states of the first ODE block after a solve to the end and back."""
    solver = own.solver.ours(own.n_steps) if hasattr(own.solver, "ours") else own.solver
    if solver is None:
        return nan
    solve = replace_by(solver, breaks=tested.breaks)
    blocks, moved, spread = list[ForeignProblem](), list[Tensor](), list[Tensor]()

    def look(problem: ForeignProblem) -> tuple[Tensor, Solved]:
        states, solved = solve(problem)
        if not blocks:
            times = -problem.times.flip(0)
            back = ForeignProblem(
                lambda t, z: -problem.field(-t, z), states[-1], times,
                tuple(sorted(-x for x in problem.breaks)), problem.samples, problem.found,
            )  # fmt: skip
            change, z0 = solve(back)[0][-1] - problem.z0, problem.z0
            # a log density starts with zeros, which have no spread
            kept = z0.flatten(1).std(0) > 0 if problem.samples else z0 != 0
            if problem.samples:
                change, z0 = change.flatten(1), z0.flatten(1)
            change, z0 = (x[..., kept].double() for x in (change, z0))
            moved.append(change.square().mean())
            spread.append((z0 - z0.mean(0)).square().mean())
        blocks.append(problem)
        return states, solved

    with replaced(tested.forward.steady(look)):
        for batch in tested.batches:
            blocks.clear()
            tested.forward(batch)
    return float((torch.stack(moved).mean() / torch.stack(spread).mean()).sqrt())


def _noise(tested: ModelUnderTest) -> float:
    """How much the mean log density varies with the seed."""
    seed = tested.forward.seed
    if seed is None or not tested.forward.random:
        return nan
    other = copy(tested)
    other.forward = copy(tested.forward)
    means = []
    for k in range(1, SEEDS + 1):
        other.forward.seed = seed + k
        means.append(float(other.run().outputs.double().mean()))
    return mean_deviation(means)[1]
