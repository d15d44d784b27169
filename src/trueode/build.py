"""Build the parts of a run from its options: data, model, solver, optimiser and rule.

No other module translates options into objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from trueode.adaptation import (
    DiscretisationPenalty,
    FidelityRule,
    Ladder,
    PaperStepRule,
    PaperToleranceRule,
    Rule,
    paper_starting_step,
)
from trueode.adaptation.fidelity import PATIENCE
from trueode.catalog import AUTO, METHODS
from trueode.data import Batches, Dataset, Unseen, keep_unseen, load_dataset
from trueode.distributed import Ranks
from trueode.errors import OptionError
from trueode.evaluation import Task, get_task
from trueode.fields import Autocast, build_field, init_weights
from trueode.models import ContinuousFlow, NeuralODE
from trueode.options import Options
from trueode.precision import tf32
from trueode.seeds import torch_stream
from trueode.solvers import (
    Adaptive,
    Adjoint,
    Backprop,
    Checkpoint,
    FixedStep,
    Gradient,
    Solver,
    get_tableau,
)
from trueode.training import Schedule, State, Trainer
from trueode.training.checks import Checks, accuracy_difference, prediction_difference
from trueode.training.optimizers import Optimizer, make_optimizer

# of data, weights and states
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bf16": torch.float32,
    "tf32": torch.float32,
}
GRADIENTS: dict[str, Gradient] = {
    "naive": Backprop(),
    "checkpoint": Checkpoint(),
    "adjoint": Adjoint(),
}
COLD = 8  # field evaluations of the solver with which a fidelity rule starts
# With a penalty: coarser solvers let a model form folds that the penalty cannot undo.
COOL = 12
CHECKED = 64  # samples in a check on unseen inputs
# flips that the certification set should allow; with fewer, certification is a matter of luck
CERTIFIED = 10
# generated inputs of an attempt: one for so many that training sees, at most so many
SEEN, GENERATED = 160, 8000
QUICK = 5  # the fewest checks of a trial
# the smallest useful tolerances: below them rounding errors dominate
FLOORS = {
    "float32": 1e-7,
    "float64": 1e-13,
    "bf16": 1e-7,
    "tf32": 1e-7,
}


@dataclass(frozen=True)
class Shape:
    """The properties of the data on which a model depends.

    Attributes:
        task: a name of ``catalog.TASKS``.
        sample: the shape of one input.
        n_outputs: the number of classes, or of numbers in a target or state; 1 for a density.
        t_end: the end T of the ODE block.
        t_start: the start of the ODE block.
    """

    task: str
    sample: tuple[int, ...]
    n_outputs: int
    t_end: float
    t_start: float = 0.0

    @property
    def length(self) -> float:
        """The length of the ODE block's interval."""
        return self.t_end - self.t_start


def build_run(options: Options, ranks: Ranks) -> tuple[Shape, Trainer]:
    """Build the training of a new run on this rank; return the data's shape and the trainer.

    Raises:
        DataError: the data is missing or not usable.
        OptionError: the options do not fit the data.
    """
    with ranks.main_first():
        dataset = build_data(options)
    dataset, unseen = keep_apart(options, dataset)
    shape = shape_of(options, dataset)
    torch.manual_seed(options.random_seed)
    model = build_model(options, shape).to(ranks.device)
    batches = build_batches(options, dataset, ranks)
    rule, spent = build_rule(options, model, shape, batches, ranks)
    solver = model.solver if rule is None else rule.solver
    state = State(model, build_optimizer(options, model), rule, solver, evaluations=spent)
    task = get_task(shape.task).fitted(shape.sample, options.fidelity)
    schedule = Schedule(
        options.niter,
        options.log_interval,
        options.eval_interval if options.evaluate_test_acc else None,
        options.adaption_interval,
        options.model_checkpoint_freq,
    )
    checks, field = build_checks(options, task, unseen, ranks), build_training_field(options, model)
    trainer = Trainer(
        state,
        dataset,
        task,
        batches,
        schedule,
        ranks,
        checks,
        field,
        precision=tf32 if options.precision == "tf32" else None,
        penalty=build_penalty(options, task),
    )
    trainer.begin()
    return shape, trainer


def build_data(options: Options) -> Dataset:
    """Load the data.

    Raises:
        DataError: the data is missing or not usable.
    """
    return load_dataset(
        options.dataset,
        options.data_dir,
        seed=options.random_seed,
        task=options.task,
        image_size=options.image_size,
        num_workers=options.num_threads,
        dtype=DTYPES[options.precision],
    )


def shape_of(options: Options, dataset: Dataset) -> Shape:
    """The properties of the data on which the model depends.

    Raises:
        OptionError: the options do not fit the data.
    """
    last = 1.0 if dataset.t_end is None else dataset.t_end
    t_end = options.t_end or last
    if dataset.t_end is not None and t_end < last:
        raise OptionError(
            f"--t_end {t_end:.12g} lies before the last time of the data, {last:.12g}: "
            "leave it out or raise it."
        )
    options.check_times(t_end, dataset.t_start)
    return Shape(dataset.task, dataset.sample_shape, dataset.n_outputs, t_end, dataset.t_start)


def build_model(options: Options, shape: Shape) -> NeuralODE:
    """Build the model; its initial weights depend only on ``random_seed``.

    Raises:
        UsageError: the options do not fit the data.
    """
    with torch.device("cpu"):  # not the default device: the caller moves the model
        sample = shape.sample
        upstream: nn.Module | None = None
        if options.upstream_channels:
            conv = nn.Conv1d if len(sample) == 2 else nn.Conv2d
            upstream = conv(sample[0], options.upstream_channels, 1)
            sample = (options.upstream_channels, *sample[1:])
        field = build_field(
            options.network, sample, options.ch_residual_block, options.act, options.time_dependent
        )
        downstream = _downstream(options, shape, sample)
    how: Any = {
        "solver": training_solver(options, shape.length),
        "t": (shape.t_start, shape.t_end),
        "gradient": GRADIENTS[options.autodif],
    }
    model = (
        ContinuousFlow(field, sample, trace=options.trace, **how)
        if shape.task == "density"
        else NeuralODE(field, upstream, downstream, **how)
    )
    generator = torch_stream(options.random_seed, "weights")
    init_weights(model, options.init_type, options.init_variance, generator)
    return model.to(DTYPES[options.precision])


def _downstream(options: Options, shape: Shape, state: tuple[int, ...]) -> nn.Module | None:
    if shape.task == "density":
        return None
    series = shape.task == "timeseries"
    kind = options.downstream
    if kind == "auto":
        kind = "none" if series and not options.upstream_channels else "linear"
    if kind == "none":
        if prod(state) != shape.n_outputs or shape.task == "classification":
            raise OptionError(
                f"--downstream none: the ODE block's state has {prod(state)} numbers, the output "
                f"has {shape.n_outputs}. Choose --downstream linear."
            )
        return None if series else nn.Flatten()
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(prod(state), shape.n_outputs)]
    if series:
        layers.append(nn.Unflatten(1, shape.sample))
    return nn.Sequential(*layers)


def training_solver(options: Options, length: float) -> Solver:
    """The solver with which training starts on an interval of this length; an adaptation may
    change it.
    """
    if options.fixed_step:
        step = min(options.training_step(length), length)
        return FixedStep(options.method, step_size=step, max_steps=options.max_steps)
    tol = options.initial_tol if options.use_step_adaption_algo else options.tol
    return Adaptive(options.method, tol, tol, per_sample=options.per_sample)


def build_rule(
    options: Options, model: NeuralODE, shape: Shape, batches: Batches, ranks: Ranks
) -> tuple[Rule | None, float]:
    """Build the adaptation rule, if the options ask for one; the paper's step rule chooses its
    first step on the first batch.

    Returns:
        The rule, and the field evaluations spent on it, summed over samples.
    """
    if not options.use_step_adaption_algo:
        return None, 0.0
    if options.adaption_algo == "fidelity":
        return _fidelity_rule(options, shape), 0.0
    if not options.fixed_step:
        rule = PaperToleranceRule(
            options.solver,
            options.initial_tol,
            threshold=options.threshold,
            floor=FLOORS[options.precision],
            per_sample=options.per_sample,
        )
        return rule, 0.0
    batch, whole = batches.first()
    with torch.no_grad():
        z0 = batch.x if model.upstream is None else model.upstream(batch.x)
    step = paper_starting_step(
        model.field,
        z0,
        shape.length,
        start=shape.t_start,
        order=model.solver.order,
        max_steps=options.max_steps,
        total=ranks.sum,
    )
    step_rule = PaperStepRule(
        options.solver, shape.length, step, threshold=options.threshold, max_steps=options.max_steps
    )
    return step_rule, 2.0 * whole


def _fidelity_rule(options: Options, shape: Shape) -> FidelityRule:
    penalised = options.penalty_weight > 0
    ladder = Ladder(
        max_steps=options.max_steps,
        tightest=FLOORS[options.precision],
        least=COLD if penalised else 1,
    )

    def cold(method: str) -> FixedStep | Adaptive:
        """The coarse solver of a method with which training may start."""
        if METHODS[method].kind == "adaptive":
            return Adaptive(method, ladder.loosest, ladder.loosest, per_sample=options.per_sample)
        stages = get_tableau(method).advancing_stages
        evaluations = COOL if penalised else COLD
        return FixedStep(method, n_steps=max(1, min(evaluations // stages, options.max_steps)))

    start, *others = (
        cold(method) for method in (AUTO if options.solver == "auto" else (options.method,))
    )
    target = get_task(shape.task).target
    # with a penalty a trial takes a tenth of a short run: the model follows the solver
    checks = options.niter // options.adaption_interval
    patience = max(min(checks // 10, PATIENCE), QUICK) if penalised else PATIENCE
    return FidelityRule(
        start,
        options.fidelity,
        target=target,
        others=others,
        ladder=ladder,
        penalised=penalised,
        patience=patience,
    )


def keep_apart(options: Options, dataset: Dataset) -> tuple[Dataset, Unseen | None]:
    """Keep unseen inputs apart, to control an adaptation and certify its result.

    Returns:
        The data for training and testing, and the unseen inputs; None without certification.

    Raises:
        DataError: there are too few samples.
    """
    if not options.certifies:
        return dataset, None
    size = max(round(CERTIFIED / options.fidelity), 1)
    return keep_unseen(
        dataset,
        seed=options.random_seed,
        share=options.held_out,
        size=size,
        generated=max(size, min(options.niter * options.batch_size // SEEN, GENERATED)),
    )


def build_checks(options: Options, task: Task, unseen: Unseen | None, ranks: Ranks) -> Checks:
    """Build the checks on which an adaptation decides."""
    difference = prediction_difference if options.certifies else accuracy_difference
    return Checks(
        task,
        ranks,
        difference(task, ranks),
        on=options.check_on if options.certifies else "batch",
        unseen=unseen,
        seed=options.random_seed,
        size=CHECKED,
        interval=options.adaption_interval,
        batch_size=options.batch_size,
    )


def build_penalty(options: Options, task: Task) -> DiscretisationPenalty | None:
    """Build the penalty of discretisation errors; None: there is none."""
    if not options.penalty_weight:
        return None
    return DiscretisationPenalty(
        options.penalty_weight,
        options.penalty_interval,
        options.penalty_stride,
        seed=options.random_seed,
        task=task,
    )


def build_training_field(options: Options, model: NeuralODE) -> nn.Module | None:
    """The model's field in the precision of training; None: the field itself."""
    if options.precision != "bf16":
        return None
    return Autocast(model.field, torch.bfloat16, if_faster=True)


def build_batches(options: Options, dataset: Dataset, ranks: Ranks) -> Batches:
    """Build the training batches of this rank; their order depends only on the seed."""
    return Batches(
        dataset.train,
        options.batch_size,
        seed=options.random_seed,
        shuffle=not options.serial_batches,
        rank=ranks.rank,
        world_size=ranks.world_size,
        num_workers=options.num_threads,
        device=ranks.device,
    )


def build_optimizer(options: Options, model: nn.Module) -> Optimizer:
    """Build the optimiser."""
    return make_optimizer(options.optimizer, model.parameters(), options.lr, options.weight_decay)
