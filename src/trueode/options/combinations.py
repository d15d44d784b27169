"""Combinations of options that are impossible."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trueode.catalog import DATA_SETS, PENALTY, USUAL, task_of
from trueode.errors import nearest, printable

if TYPE_CHECKING:
    from trueode.options.schema import Options

MOST = 2**32 - 1
"""The largest whole number."""
LEAST_SIZE, MOST_SIZE = 1e-30, 1e30
"""Bounds on the absolute value of a nonzero number: results stay in the range of float32."""


def value_problems(o: Options) -> list[str]:
    """Values that are not among the choices of their option, or too large or too small."""
    found = []
    for name, info in type(o).model_fields.items():
        extra = info.json_schema_extra
        assert isinstance(extra, dict)
        choices: Any = extra["choices"]
        values = getattr(o, name)
        for value in values if isinstance(values, tuple) else (values,):
            if choices and value not in choices:
                hint = nearest(str(value), choices)
                known = ", ".join(choices)
                found.append(f"--{name} {printable(value)} is unknown: choose from {known}.{hint}")
            if isinstance(value, int) and value > MOST:
                found.append(
                    f"--{name} {printable(value)}: expected a whole number of at most {MOST}."
                )
            if isinstance(value, float) and value and not LEAST_SIZE <= abs(value) <= MOST_SIZE:
                found.append(
                    f"--{name} {value:g}: expected 0, or an absolute value between {LEAST_SIZE:g} "
                    f"and {MOST_SIZE:g}."
                )
    return found


def problems(o: Options) -> list[str]:
    """What is wrong with a combination of options, each of which is allowed by itself."""
    found = []
    shape, task = DATA_SETS[o.dataset]
    if not o.name or o.name in (".", "..") or any(c in o.name for c in "/\\\0"):
        found.append(f"--name {o.name!r}: expected the name of a folder, without / or \\.")
    if not o.test_solver_list:
        found.append("--test_solver_list is empty: expected at least one solver.")
    if not o.test_factor_list or not all(1e-4 <= x <= 1e4 for x in o.test_factor_list):
        factors = " ".join(map(str, o.test_factor_list))
        found.append(
            f"--test_factor_list {factors}: expected positive factors from 0.0001 to 10000."
        )
    if o.network == "odenet" and shape == "signal":
        found.append(
            f"--network odenet needs images, but --dataset {o.dataset} holds signals: "
            "choose simple_odenet or linear_odenet."
        )
    if o.network == "simple_odenet" and shape == "image":
        found.append(
            f"--network simple_odenet needs signals, but --dataset {o.dataset} holds images: "
            "choose odenet or linear_odenet."
        )
    if "auto" != o.task != task and task != "any":
        fitting = [name for name, known in DATA_SETS.items() if known.task in (o.task, "any")]
        found.append(
            f"--task {o.task} does not fit --dataset {o.dataset}, which is for {task}: choose "
            f"{' or '.join(fitting)}."
        )
    if o.downstream == "none" and (
        o.task == "classification" or (o.task == "auto" and task == "classification")
    ):
        found.append(
            "--downstream none is impossible: classification needs a linear layer after the ODE "
            "block. Choose linear."
        )
    if o.n_steps is not None and _changed(o, "step_size"):
        found.append(
            f"--n_steps {o.n_steps} and --step_size {o.step_size:g} contradict each other: "
            "give one of them."
        )
    if o.n_steps is not None and not o.fixed_step:
        found.append(
            f"--n_steps {o.n_steps} needs a fixed-step solver; {o.solver} is adaptive: use --tol."
        )
    if o.per_sample and o.fixed_step and o.solver != "auto":
        found.append(f"--per_sample true needs an adaptive solver; {o.solver} takes fixed steps.")
    found += _density_problems(o)
    found += _precision_problems(o)
    found += _adaptation_problems(o)
    found += [
        f"--{name} {getattr(o, name)} needs a penalty: add --penalty {PENALTY:g}."
        for name in ("penalty_interval", "penalty_stride")
        if not o.penalty_weight and _changed(o, name)
    ]
    if o.solver == "auto" and not o.certifies:
        found.append(
            "--solver auto needs the adaptation, which chooses the method: "
            "add --use_step_adaption_algo true --adaption_algo fidelity."
        )
    if o.resume and o.overwrite:
        found.append("--resume true and --overwrite true contradict each other: give one of them.")
    return found


def _changed(o: Options, name: str) -> bool:
    """Whether an option differs from its default for the task."""
    usual = USUAL.get(task_of(o.dataset, o.task), {})
    return bool(getattr(o, name) != usual.get(name, type(o).model_fields[name].default))


def _density_problems(o: Options) -> list[str]:
    """What is wrong with the options of a density, or with its options for another task."""
    if task_of(o.dataset, o.task) != "density":
        trace = f"--trace {o.trace} belongs to densities (--task density): leave it out."
        return [trace] if o.trace != "exact" else []
    found = []
    if o.network != "linear_odenet":
        found.append(
            f"--network {o.network} has no density: convolutions see the neighbours of a number, "
            "and the trace of their Jacobian is not known in closed form. Choose linear_odenet."
        )
    if o.act in ("relu", "lrelu"):
        found.append(
            f"--act {o.act} has no second derivative, so that gradients of a density would leave "
            "out where its units switch: choose tanh, softplus, gelu, silu or sigmoid."
        )
    if o.upstream_channels or o.downstream == "linear":
        flag = (
            f"--upstream_channels {o.upstream_channels}"
            if o.upstream_channels
            else "--downstream linear"
        )
        found.append(
            f"{flag} is impossible with a density: the flow maps samples to noise of the same "
            "shape, without other layers. Leave it out."
        )
    return found


def _precision_problems(o: Options) -> list[str]:
    """Options with which bfloat16 or TF32 is useless."""
    if o.precision not in ("bf16", "tf32"):
        return []
    if o.precision == "tf32" and not o.use_gpu:
        return [
            "--precision tf32 is a mode of GPUs: add --use_gpu true, or choose float32, which "
            "processors compute."
        ]
    if o.precision == "bf16" and o.network != "odenet":
        return [
            "--precision bf16 speeds up only convolutions of images (--network odenet); solves of "
            f"{o.network} are faster without it: leave it out."
        ]
    if o.solver == "auto" or not o.fixed_step:
        return [
            f"--precision {o.precision} needs a fixed-step solver: the error control of "
            f"{o.solver} would mistake the rounding for the solver's error. "
            "Choose euler, midpoint, heun2, rk4 or rk4_38."
        ]
    return []


def _adaptation_problems(o: Options) -> list[str]:
    """What is wrong with the options of the adaptation."""
    rules = {
        "paper": ("threshold", "initial_tol"),
        "fidelity": ("fidelity", "check_on", "held_out"),
    }
    if not o.use_step_adaption_algo:
        return [
            f"--{name} {getattr(o, name)} needs the adaptation: add --use_step_adaption_algo true."
            for name in ("adaption_algo", *rules["fidelity"])
            if _changed(o, name)
        ]
    found = [
        f"--{name} {getattr(o, name)} belongs to --adaption_algo {rule}, but {o.adaption_algo} is "
        "chosen: leave one of them out."
        for rule, names in rules.items()
        for name in names
        if _changed(o, name) and o.adaption_algo != rule
    ]
    if o.certifies:
        found += [
            f"--{name} {getattr(o, name):g} contradicts the fidelity rule, which chooses this "
            "value: leave it out."
            for name in ("step_size", "n_steps", "tol")
            if _changed(o, name)
        ]
    if o.adaption_algo == "paper" and o.fixed_step and _changed(o, "initial_tol"):
        found.append(
            f"--initial_tol {o.initial_tol:g} needs an adaptive solver, but {o.solver} takes fixed "
            "steps: choose an adaptive one, such as bosh3, dopri5 or tsit5, or leave --initial_tol "
            "out."
        )
    return found
