"""Every option of a training run: one documented, validated field each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from trueode.catalog import ACTIVATIONS, AUTO, DATA_SETS, INITIALISATIONS, METHODS, NETWORKS, TASKS
from trueode.errors import UNWRITABLE, OptionError, nearest, printable

ALIASES = {
    "evaluate_text_acc": "evaluate_test_acc",
    "evaluate_with_different_solver": "evaluate_with_dif_solver",
    "use_step_adaptation": "use_step_adaption_algo",
}
"""Other spellings that the documents use."""

EITHER_OR = (("autodif", "adjoint"), ("step_size", "n_steps"))
"""Pairs that say the same thing: giving one of them replaces what a file said of either."""


MOST = 2**32 - 1
LEAST_SIZE, MOST_SIZE = 1e-30, 1e30
"""Whole numbers are at most the first; other numbers than 0 lie between these two: what is computed
with them stays in the range of float32."""


def option(
    default: Any, group: str, text: str, choices: tuple[str, ...] = (), **limits: float
) -> Any:
    """A field with its default, group, help text and, where they exist, choices and limits (``gt``,
    ``ge``, ``le``).
    """
    extra: Any = {"group": group, "choices": list(choices)}
    constraints: Any = limits
    return Field(default, description=text, json_schema_extra=extra, **constraints)


class Options(BaseModel):
    """The options of a run; frozen, and never in an impossible combination."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        validate_default=False,
    )

    # run
    name: str = option("neural_ode", "run", "name of the run; results go to OUTPUT_DIR/NAME")
    output_dir: str = option("./experiments", "run", "folder of all results")
    phase: str = option(
        "train", "run", "train a model, or evaluate a saved run", ("train", "infer")
    )
    split: str = option("train", "run", "data that `--phase infer` evaluates", ("train", "test"))
    random_seed: int = option(0, "run", "seed of everything random", ge=0, le=MOST)
    resume: bool = option(False, "run", "continue the run NAME from its last checkpoint")
    overwrite: bool = option(False, "run", "replace the results of an earlier run NAME")

    # device
    use_gpu: bool = option(False, "device", "train on GPUs")
    gpu_ids: str = option(
        "0", "device", "GPUs to use, as '0' or '0,1,2'; several start a process each"
    )
    torch_threads: int | None = option(
        None, "device", "CPU threads of torch; none: torch's own choice", ge=1, le=1024
    )
    precision: str = option(
        "float32",
        "device",
        "floating point type; bf16: training computes the vector field in bfloat16 (odenet and fixed steps alone), and "
        "weights, states, loss, the checks of an adaptation, certificates and every evaluation remain in float32",
        ("float32", "float64", "bf16"),
    )

    # data
    dataset: str = option("concentric_sphere2", "data", "data set", tuple(DATA_SETS))
    data_dir: str = option(
        "./data", "data", "where data lies or is put; for `arrays` also an .npz file"
    )
    task: str = option(
        "auto", "data", "what is learned; auto: what the data set is for", ("auto", *TASKS)
    )
    image_size: int | None = option(
        None,
        "data",
        "resize and crop images to this many pixels; none: as they are",
        ge=1,
        le=10_000,
    )
    num_threads: int = option(2, "data", "data-loading workers (image folders)", ge=0, le=1024)
    batch_size: int = option(128, "data", "samples per iteration, over all devices together", ge=1)
    serial_batches: bool = option(False, "data", "take the data in order, without shuffling")

    # model
    network: str = option(
        "simple_odenet",
        "model",
        "vector field: Conv2d (images), Conv1d (signals) or dense",
        NETWORKS,
    )
    ch_residual_block: int = option(32, "model", "hidden channels of the vector field", ge=1)
    act: str = option("relu", "model", "activation", tuple(ACTIVATIONS))
    init_type: str = option("kaiming", "model", "initialisation of the weights", INITIALISATIONS)
    init_variance: float = option(
        0.02, "model", "gain of the initialisations normal, xavier and orthogonal", gt=0
    )
    time_dependent: bool = option(
        False, "model", "give the time to the vector field as one more input"
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
        "layer after the ODE block; auto: linear, none for time series",
        ("auto", "linear", "none"),
    )

    # solver
    solver: str = option(
        "euler",
        "solver",
        "method that training uses; auto: the adaptation chooses it",
        (*METHODS, "auto"),
    )
    step_size: float = option(1.0, "solver", "step of a fixed-step solver", gt=0)
    n_steps: int | None = option(None, "solver", "number of steps, instead of step_size", ge=1)
    tol: float = option(
        1e-8, "solver", "relative and absolute tolerance of an adaptive solver", gt=0
    )
    t_end: float | None = option(
        None, "solver", "end T of the ODE block; none: 1, or the last time of a time series", gt=0
    )
    max_steps: int = option(
        500, "solver", "most steps of a fixed-step solver in training", ge=1, le=10_000_000
    )
    per_sample: bool = option(
        False, "solver", "control the error of each sample by itself (adaptive solvers)"
    )
    autodif: str = option(
        "naive",
        "solver",
        "gradients: back-propagation, the same with little memory, or the continuous adjoint",
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
        False, "adaptation", "adapt step size or tolerance during training"
    )
    adaption_algo: str = option(
        "paper", "adaptation", "the paper's rule, or ours", ("paper", "fidelity")
    )
    fidelity: float = option(
        0.01,
        "adaptation",
        "share of predictions that may depend on the solver (fidelity rule)",
        ge=1e-4,
        lt=1,
    )
    check_on: str = option(
        "held_out",
        "adaptation",
        "inputs that the fidelity rule looks at: unseen ones, the training batch with noise, or as it is",
        ("held_out", "noise", "batch"),
    )
    held_out: float = option(
        0.1,
        "adaptation",
        "share of the training samples kept to control and to certify (fidelity rule; not where data is generated)",
        gt=0,
        lt=1,
    )
    threshold: float = option(
        0.1, "adaptation", "accuracy difference at which the paper's rule refines", gt=0, le=1
    )
    initial_tol: float = option(
        1e-6, "adaptation", "tolerance that the paper's rule starts with", gt=0
    )
    adaption_interval: int = option(50, "adaptation", "iterations between checks", ge=1)

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
        (0.5, 1.0, 2.0), "evaluation", "factors on the training step or tolerance"
    )
    verdict_budget: float = option(
        0.25,
        "evaluation",
        "share of the run's field evaluations that the closing verdict may spend (never less than 50 Gflop)",
        ge=0,
    )

    # logging
    log_interval: int = option(10, "logging", "iterations between rows of the history", ge=1)
    model_checkpoint_freq: int = option(500, "logging", "iterations between checkpoints", ge=1)
    use_tensorboard: bool = option(False, "logging", "write TensorBoard logs as well")

    @field_validator("*", mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: ValidationInfo) -> Any:
        """Read numbers as people write them: whole numbers as 1e3, a missing value as none."""
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
    def _same_gradient(cls, data: Any) -> Any:
        """``adjoint`` and ``autodif`` say the same thing."""
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
        for problem in _problems(self):
            raise OptionError(problem)
        return self

    def flags(self, names: Iterable[str]) -> list[str]:
        """The command-line flags that give some of the options the values that they have here."""
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

    def training_step(self, length: float) -> float:
        """The step size of a fixed-step training solver on an interval of a length."""
        return self.step_size if self.n_steps is None else length / self.n_steps

    def check_times(self, t_end: float, t_start: float = 0.0) -> None:
        """Check the training step against the interval.

        Raises:
            OptionError: the step is longer than the interval, or too many steps are needed.
        """
        if not self.fixed_step or self.use_step_adaption_algo:
            return
        length, interval = t_end - t_start, f"[{t_start:.12g}, {t_end:.12g}]"
        step = self.training_step(length)
        if step > length * (1 + 1e-9):
            raise OptionError(
                f"--step_size {step:g} is longer than the interval {interval}: a training step is at most {length:g}."
            )
        count = length / step * (1 - 1e-9)  # of steps, to be rounded up
        if count > self.max_steps:
            flag = f"--step_size {step:g}" if self.n_steps is None else f"--n_steps {self.n_steps}"
            raise OptionError(
                f"{flag} takes {count:.6g} steps on {interval}, more than --max_steps {self.max_steps}: "
                f"take larger steps, or raise --max_steps."
            )


def _problems(o: Options) -> list[str]:
    """What is wrong with a combination of options, first things first."""
    found = []
    for name, info in Options.model_fields.items():
        choices = _extra(info)["choices"]
        values = getattr(o, name)
        for value in values if isinstance(values, tuple) else (values,):
            if choices and value not in choices:
                hint = nearest(str(value), choices)
                found.append(
                    f"--{name} {printable(value)}: not known. Choose from {', '.join(choices)}.{hint}"
                )
            if isinstance(value, int) and value > MOST:
                found.append(f"--{name} {printable(value)}: whole numbers are at most {MOST}.")
            if isinstance(value, float) and value and not LEAST_SIZE <= abs(value) <= MOST_SIZE:
                found.append(
                    f"--{name} {value:g}: numbers other than 0 lie between {LEAST_SIZE:g} and {MOST_SIZE:g} in size."
                )
    if found:
        return found
    shape, task = DATA_SETS[o.dataset]
    if not o.name or o.name in (".", "..") or any(c in o.name for c in "/\\\0"):
        found.append(f"--name {o.name!r}: a name of a folder is needed, without / or \\.")
    if (
        not o.test_solver_list
        or not o.test_factor_list
        or not all(1e-4 <= x <= 1e4 for x in o.test_factor_list)
    ):
        factors = " ".join(map(str, o.test_factor_list))
        found.append(
            f"--test_factor_list {factors}: positive factors are needed, from 0.0001 to 10000."
        )
    if o.network == "odenet" and shape == "signal":
        found.append(
            f"--network odenet needs images, and --dataset {o.dataset} holds flat data: "
            "choose simple_odenet or linear_odenet."
        )
    if o.network == "simple_odenet" and shape == "image":
        found.append(
            f"--network simple_odenet needs signals, and --dataset {o.dataset} holds images: "
            "choose odenet or linear_odenet."
        )
    if "auto" != o.task != task and task != "any":
        found.append(f"--task {o.task} does not fit --dataset {o.dataset}, which is for {task}.")
    if o.downstream == "none" and (
        o.task == "classification" or (o.task == "auto" and task == "classification")
    ):
        found.append(
            "--downstream none: classification needs a linear layer after the ODE block: choose linear."
        )
    if o.n_steps is not None and o.step_size != Options.model_fields["step_size"].default:
        found.append(
            f"--n_steps {o.n_steps} and --step_size {o.step_size:g} contradict each other: give one of them."
        )
    if o.n_steps is not None and not o.fixed_step:
        found.append(
            f"--n_steps {o.n_steps} needs a fixed-step solver; {o.solver} is adaptive: use --tol."
        )
    if o.per_sample and o.fixed_step and o.solver != "auto":
        found.append(f"--per_sample true needs an adaptive solver; {o.solver} takes fixed steps.")
    found += _precision_problems(o)
    found += _adaptation_problems(o)
    if o.solver == "auto" and not o.certifies:
        found.append(
            "--solver auto leaves the choice to the adaptation: add --use_step_adaption_algo true --adaption_algo fidelity."
        )
    if o.resume and o.overwrite:
        found.append("--resume true and --overwrite true contradict each other: give one of them.")
    known = o.t_end is not None or (task not in ("timeseries", "any") and o.task != "timeseries")
    own_start = task == "any" and o.task in ("auto", "timeseries")  # it may be in the data
    if not found and known and not own_start:
        o.check_times(o.t_end or 1.0)
    return found


def _precision_problems(o: Options) -> list[str]:
    """Where bfloat16 would be of no use."""
    if o.precision != "bf16":
        return []
    if o.network != "odenet":
        return [
            f"--precision bf16 speeds up convolutions of images, --network odenet; whole solves of {o.network} are faster as "
            "they are: leave it out."
        ]
    if o.solver == "auto" or not o.fixed_step:
        return [
            f"--precision bf16 needs a fixed-step solver: the error control of {o.solver} would take the rounding of bfloat16 "
            "for its own error. Choose euler, midpoint, heun2, rk4 or rk4_38."
        ]
    return []


def _adaptation_problems(o: Options) -> list[str]:
    """What is wrong with the options of the adaptation."""

    def changed(name: str) -> bool:
        return bool(getattr(o, name) != Options.model_fields[name].default)

    rules = {
        "paper": ("threshold", "initial_tol"),
        "fidelity": ("fidelity", "check_on", "held_out"),
    }
    found = [
        f"--{name} {getattr(o, name)} is of the adaptation: add --use_step_adaption_algo true."
        for name in ("adaption_algo", *rules["fidelity"])
        if changed(name) and not o.use_step_adaption_algo
    ]
    if o.use_step_adaption_algo:
        found += [
            f"--{name} {getattr(o, name)} belongs to --adaption_algo {rule}, and {o.adaption_algo} is chosen: leave one of "
            "them out."
            for rule, names in rules.items()
            for name in names
            if changed(name) and o.adaption_algo != rule
        ]
    if o.certifies:
        found += [
            f"--{name} {getattr(o, name):g} is what the fidelity rule chooses: leave it out."
            for name in ("step_size", "n_steps", "tol")
            if changed(name)
        ]
    if (
        o.use_step_adaption_algo
        and o.adaption_algo == "paper"
        and o.fixed_step
        and changed("initial_tol")
    ):
        found.append(
            f"--initial_tol {o.initial_tol:g} starts a tolerance rule, and {o.solver} takes fixed steps: "
            "choose an adaptive solver (fehlberg2, bosh3, dopri5, tsit5), or leave --initial_tol out."
        )
    return found


def _extra(info: Any) -> dict[str, Any]:
    extra = info.json_schema_extra
    assert isinstance(extra, dict)
    return extra
