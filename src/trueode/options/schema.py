"""Every option of a training run: one documented, validated field each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from trueode.catalog import (
    ACTIVATIONS,
    AUTO,
    DATA_SETS,
    INITIALISATIONS,
    METHODS,
    NETWORKS,
    PENALTY,
    TASKS,
    TRACES,
    USUAL,
    task_of,
)
from trueode.errors import UNWRITABLE, OptionError, printable
from trueode.options.combinations import MOST, problems, value_problems

ALIASES = {
    "evaluate_text_acc": "evaluate_test_acc",
    "evaluate_with_different_solver": "evaluate_with_dif_solver",
    "use_step_adaptation": "use_step_adaption_algo",
}
"""Other spellings in use."""

EITHER_OR = (("autodif", "adjoint"), ("step_size", "n_steps"))
"""Pairs of options with the same meaning: giving one replaces both values of a file."""


def option(
    default: Any, group: str, text: str, choices: tuple[str, ...] = (), **limits: float
) -> Any:
    """A field with its default, group, help text, choices and limits (``gt=``, ``le=``, …)."""
    extra: Any = {"group": group, "choices": list(choices)}
    constraints: Any = limits
    return Field(default, description=text, json_schema_extra=extra, **constraints)


class Options(BaseModel):
    """The options of a run: immutable, and always a possible combination."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        validate_default=False,
    )

    # run
    name: str = option("neural_ode", "run", "name of the run; its results go to OUTPUT_DIR/NAME")
    output_dir: str = option("./experiments", "run", "folder of all runs")
    phase: str = option(
        "train", "run", "train a model, or evaluate a saved run", ("train", "infer")
    )
    split: str = option("train", "run", "data that `--phase infer` evaluates", ("train", "test"))
    random_seed: int = option(0, "run", "seed of all random numbers", ge=0, le=MOST)
    resume: bool = option(False, "run", "continue the run NAME from its last checkpoint")
    overwrite: bool = option(False, "run", "replace the results of an earlier run NAME")

    # device
    use_gpu: bool = option(False, "device", "train on GPUs")
    gpu_ids: str = option(
        "0", "device", "GPUs to use, such as 0 or 0,1,2; each of several gets its own process"
    )
    torch_threads: int | None = option(
        None, "device", "CPU threads of PyTorch; none: PyTorch's default", ge=1, le=1024
    )
    precision: str = option(
        "float32",
        "device",
        "floating-point type; bf16 (odenet with fixed steps only): training evaluates the vector "
        "field in bfloat16 unless the compiled kernel solves it, which is faster; weights, states, "
        "loss, checks of an adaptation, certificates and evaluations stay in float32; tf32 (on "
        "GPUs, with fixed steps only): training steps round the factors of products to 10 bits, "
        "all else stays in IEEE float32",
        ("float32", "float64", "bf16", "tf32"),
    )

    # data
    dataset: str = option("concentric_sphere2", "data", "data set", tuple(DATA_SETS))
    data_dir: str = option(
        "./data", "data", "folder of the data, also for downloads; `arrays`: folder or .npz file"
    )
    task: str = option(
        "auto",
        "data",
        "learning task; auto: that of the data set. Defaults of a density: "
        + ", ".join(f"{name} {str(value).lower()}" for name, value in USUAL["density"].items()),
        ("auto", *TASKS),
    )
    image_size: int | None = option(
        None,
        "data",
        "resize and crop images to this many pixels; none: keep their size",
        ge=1,
        le=10_000,
    )
    num_threads: int = option(2, "data", "data-loading workers, for image folders", ge=0, le=1024)
    batch_size: int = option(128, "data", "samples per iteration, over all devices together", ge=1)
    serial_batches: bool = option(False, "data", "take the samples in order, without shuffling")

    # model
    network: str = option(
        "simple_odenet",
        "model",
        "vector field: odenet has Conv2d layers (images), simple_odenet Conv1d layers (signals), "
        "linear_odenet dense layers",
        NETWORKS,
    )
    ch_residual_block: int = option(32, "model", "hidden channels of the vector field", ge=1)
    act: str = option("relu", "model", "activation function", tuple(ACTIVATIONS))
    init_type: str = option("kaiming", "model", "initialisation of the weights", INITIALISATIONS)
    init_variance: float = option(
        0.02, "model", "gain of the initialisations normal, xavier and orthogonal", gt=0
    )
    time_dependent: bool = option(
        False, "model", "pass the time to the vector field as an additional input"
    )
    upstream_channels: int = option(
        0,
        "model",
        "lift the input to this many channels before the ODE block; 0: no upstream layer",
        ge=0,
    )
    downstream: str = option(
        "auto",
        "model",
        "layer after the ODE block; auto: linear, or none for time series and densities",
        ("auto", "linear", "none"),
    )
    trace: str = option(
        "exact",
        "model",
        "density: trace of the Jacobian in training, exact or by Hutchinson's estimate",
        TRACES,
    )

    # solver
    solver: str = option(
        "euler",
        "solver",
        "solver for training; auto: the adaptation chooses it",
        (*METHODS, "auto"),
    )
    step_size: float = option(1.0, "solver", "step size of a fixed-step solver", gt=0)
    n_steps: int | None = option(None, "solver", "number of steps, instead of --step_size", ge=1)
    tol: float = option(
        1e-8, "solver", "relative and absolute tolerance of an adaptive solver", gt=0
    )
    t_end: float | None = option(
        None,
        "solver",
        "end time T of the ODE block; none: 1, or the last time of a time series",
        gt=0,
    )
    max_steps: int = option(
        500,
        "solver",
        "maximum number of steps of a fixed-step solver in training",
        ge=1,
        le=10_000_000,
    )
    per_sample: bool = option(
        False, "solver", "adaptive solvers: control the error of each sample separately"
    )
    autodif: str = option(
        "naive",
        "solver",
        "gradients: back-propagation (naive), the same with less memory (checkpoint), or the "
        "continuous adjoint",
        ("naive", "checkpoint", "adjoint"),
    )
    adjoint: bool = option(False, "solver", "the same as --autodif adjoint")

    # optimisation
    niter: int = option(3000, "optimisation", "training iterations", ge=1)
    optimizer: str = option("adam", "optimisation", "optimiser", ("adam", "sgd", "rmsprop"))
    lr: float = option(1e-4, "optimisation", "learning rate", gt=0)
    weight_decay: float = option(0.0, "optimisation", "weight decay", ge=0)

    # adaptation
    use_step_adaption_algo: bool = option(
        False, "adaptation", "adapt the step size or tolerance during training"
    )
    adaption_algo: str = option(
        "paper",
        "adaptation",
        "rule of the adaptation: the paper's, or fidelity, which certifies the model",
        ("paper", "fidelity"),
    )
    fidelity: float = option(
        0.01,
        "adaptation",
        "fidelity rule: share of predictions that may depend on the solver; of a density, the "
        "change of its mean in bits per dimension",
        ge=1e-4,
        lt=1,
    )
    check_on: str = option(
        "held_out",
        "adaptation",
        "fidelity rule: inputs of its checks, which are unseen samples, the training batch with "
        "noise, or the batch itself",
        ("held_out", "noise", "batch"),
    )
    held_out: float = option(
        0.1,
        "adaptation",
        "fidelity rule: share of the training samples held out for checks and certificate; unused "
        "for generated data",
        gt=0,
        lt=1,
    )
    threshold: float = option(
        0.1, "adaptation", "paper's rule: accuracy difference above which it refines", gt=0, le=1
    )
    initial_tol: float = option(1e-6, "adaptation", "paper's rule: first tolerance", gt=0)
    adaption_interval: int = option(50, "adaptation", "iterations between checks", ge=1)

    penalty: float | None = option(
        None,
        "adaptation",
        "weight of the discretisation-error penalty in the loss; 0: no penalty; not given: "
        f"{PENALTY:g} with the fidelity rule, otherwise 0",
        ge=0,
    )
    penalty_interval: int = option(4, "adaptation", "iterations between penalties", ge=1)
    penalty_stride: int = option(
        4, "adaptation", "one over the share of samples that a penalty compares", ge=1
    )

    # evaluation
    evaluate_test_acc: bool = option(False, "evaluation", "evaluate the test data during training")
    eval_interval: int = option(100, "evaluation", "iterations between these evaluations", ge=1)
    evaluate_with_dif_solver: bool = option(
        False, "evaluation", "evaluate with other solvers after training"
    )
    test_solver_list: tuple[str, ...] = option(
        ("euler", "midpoint", "rk4"), "evaluation", "the other solvers", tuple(METHODS)
    )
    test_factor_list: tuple[float, ...] = option(
        (0.5, 1.0, 2.0),
        "evaluation",
        "factors by which they multiply the training step or tolerance",
    )
    verdict_budget: float = option(
        0.25,
        "evaluation",
        "field evaluations of the verdict, as a share of those of the run; at least 50 Gflop",
        ge=0,
    )

    # logging
    log_interval: int = option(10, "logging", "iterations between rows of the history", ge=1)
    model_checkpoint_freq: int = option(500, "logging", "iterations between checkpoints", ge=1)
    use_tensorboard: bool = option(False, "logging", "also write TensorBoard logs")
    report: bool = option(False, "logging", "also write report.html, a page to look at")

    @field_validator("*", mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: ValidationInfo) -> Any:
        """Accept whole numbers such as 1e3, and none for a missing value."""
        annotation = str(cls.model_fields[str(info.field_name)].annotation)
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, str) and UNWRITABLE.search(part):
                raise ValueError("text of one line")
            if isinstance(part, int) and part.bit_length() > 64:
                raise ValueError("a number of usual size")
        if (
            "None" in annotation
            and isinstance(value, str)
            and value.lower() in ("none", "null", "")
        ):
            return None
        if isinstance(value, bool) and "bool" not in annotation:
            raise ValueError("a number or text")
        if "int" in annotation and isinstance(value, str):
            try:
                number = float(value)
            except ValueError:
                return value
            return int(number) if number.is_integer() else value
        if "tuple" in annotation and not isinstance(value, (list, tuple)):
            return [value]
        return value

    @model_validator(mode="before")
    @classmethod
    def _usual_of_task(cls, data: Any) -> Any:
        """Take the defaults of the task for options that are not given."""
        if not isinstance(data, dict):
            return data
        dataset, task = data.get("dataset"), data.get("task", "auto")
        if not isinstance(task, str) or not isinstance(dataset, str | None):
            return data
        return {**USUAL.get(task_of(dataset or "", task), {}), **data}

    @model_validator(mode="before")
    @classmethod
    def _same_gradient(cls, data: Any) -> Any:
        """Set ``adjoint`` and ``autodif``, which have the same meaning, from each other."""
        if not isinstance(data, dict):
            return data
        adjoint, autodif = data.get("adjoint"), data.get("autodif")
        switched = printable(adjoint).lower() in ("true", "yes", "1", "on", "t", "y")
        if adjoint is not None and autodif is not None and switched != (autodif == "adjoint"):
            raise OptionError(
                f"--adjoint {printable(adjoint).lower()} contradicts --autodif {autodif}: "
                "`--adjoint true` means `--autodif adjoint`; give one of them."
            )
        if adjoint is not None and autodif is None:
            return {**data, "autodif": "adjoint" if switched else "naive"}
        return {**data, "adjoint": autodif == "adjoint"} if autodif is not None else data

    @model_validator(mode="after")
    def _possible(self) -> Options:
        for problem in value_problems(self) or problems(self):
            raise OptionError(problem)
        task = DATA_SETS[self.dataset].task
        series = "timeseries" in (task, self.task)
        known = self.t_end is not None or not (series or task == "any")
        own_start = task == "any" and self.task in ("auto", "timeseries")  # the data may hold it
        if known and not own_start:
            self.check_times(self.t_end or 1.0)
        return self

    def flags(self, names: Iterable[str]) -> list[str]:
        """The command-line flags that set the named options to their values here."""
        words = []
        for name in sorted(names):
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            words += [
                f"--{name}",
                *(str(v).lower() if v is None or isinstance(v, bool) else str(v) for v in values),
            ]
        return words

    @property
    def changed(self) -> list[str]:
        """The names of the options that do not have their default values."""
        fields = type(self).model_fields.items()
        return [name for name, field in fields if getattr(self, name) != field.default]

    @property
    def fixed_step(self) -> bool:
        """Whether the training solver takes fixed steps."""
        return METHODS[self.method].kind == "fixed"

    @property
    def method(self) -> str:
        """The method that training starts with."""
        return AUTO[0] if self.solver == "auto" else self.solver

    @property
    def certifies(self) -> bool:
        """Whether the run ends with a certificate."""
        return self.use_step_adaption_algo and self.adaption_algo == "fidelity"

    @property
    def penalty_weight(self) -> float:
        """The weight of the discretisation-error penalty; 0: there is none."""
        chosen = PENALTY if self.certifies else 0.0
        return chosen if self.penalty is None else self.penalty

    def training_step(self, length: float) -> float:
        """The step size of a fixed-step training solver on an interval of the given length."""
        return self.step_size if self.n_steps is None else length / self.n_steps

    def check_times(self, t_end: float, t_start: float = 0.0) -> None:
        """Check that the training step fits the interval.

        Raises:
            OptionError: the step is longer than the interval, or too many steps are needed.
        """
        if not self.fixed_step or self.use_step_adaption_algo:
            return
        length, interval = t_end - t_start, f"[{t_start:.12g}, {t_end:.12g}]"
        step = self.training_step(length)
        if step > length * (1 + 1e-9):
            raise OptionError(
                f"--step_size {step:g} is longer than the interval {interval}: "
                f"a training step is at most {length:g}."
            )
        count = length / step * (1 - 1e-9)  # number of steps before rounding up
        if count > self.max_steps:
            flag = f"--step_size {step:g}" if self.n_steps is None else f"--n_steps {self.n_steps}"
            raise OptionError(
                f"{flag} takes {count:.6g} steps on {interval}, more than --max_steps "
                f"{self.max_steps}: take larger steps, or raise --max_steps."
            )
