"""The names that options, solvers and data share: data only, without imports."""

from __future__ import annotations

from typing import NamedTuple


class Method(NamedTuple):
    """A Runge-Kutta method: ``kind`` is ``"fixed"`` or ``"adaptive"``; ``order`` is the order of
    the advanced solution.
    """

    kind: str
    order: int


METHODS: dict[str, Method] = {
    "euler": Method("fixed", 1),
    "midpoint": Method("fixed", 2),
    "heun2": Method("fixed", 2),
    "heun3": Method("fixed", 3),
    "rk4": Method("fixed", 4),
    "rk4_38": Method("fixed", 4),
    "adaptive_heun": Method("adaptive", 2),
    "fehlberg2": Method("adaptive", 2),
    "bosh3": Method("adaptive", 3),
    "dopri5": Method("adaptive", 5),
    "tsit5": Method("adaptive", 5),
    "dopri8": Method("adaptive", 8),
}

AUTO = ("rk4", "midpoint", "euler", "dopri5")
"""The methods from which ``--solver auto`` chooses; it starts with the first."""


PENALTY = 1.5
"""The default weight of the discretisation-error penalty."""


class DataSet(NamedTuple):
    """A data set: ``shape`` is ``"signal"`` (channels, length), ``"image"`` (channels, height,
    width) or ``"any"``.
    """

    shape: str
    task: str


DATA_SETS: dict[str, DataSet] = {
    "concentric_sphere2": DataSet("signal", "classification"),
    "concentric_sphere3": DataSet("signal", "classification"),
    "concentric_sphere10": DataSet("signal", "classification"),
    "concentric_sphere900": DataSet("signal", "classification"),
    "three_minima": DataSet("signal", "classification"),
    "pendulum": DataSet("signal", "timeseries"),
    "moons": DataSet("signal", "density"),
    "rings": DataSet("signal", "density"),
    "checkerboard": DataSet("signal", "density"),
    "mnist": DataSet("image", "classification"),
    "cifar10": DataSet("image", "classification"),
    "image_folder": DataSet("image", "classification"),
    "arrays": DataSet("any", "any"),
}

TASKS = ("classification", "regression", "timeseries", "density")
AUDITED = (*TASKS, "sampler")
"""The tasks of models that an audit judges."""
TRACES = ("exact", "hutchinson")
USUAL: dict[str, dict[str, object]] = {
    "density": {
        "network": "linear_odenet",
        "ch_residual_block": 64,
        "act": "tanh",
        "time_dependent": True,
        "solver": "rk4",
        "step_size": 0.125,
        "batch_size": 512,
        "lr": 0.005,
        "niter": 1000,
    }
}
"""The defaults of options for some tasks, where they are other than for all tasks."""


def task_of(dataset: str, task: str) -> str:
    """The task of a run: that of its data set, where ``task`` is ``"auto"``."""
    return task if task != "auto" or dataset not in DATA_SETS else DATA_SETS[dataset].task


NETWORKS = ("odenet", "simple_odenet", "linear_odenet")


class Activation(NamedTuple):
    """A pointwise function, and its names in PyTorch and in the compiled kernel.

    Attributes:
        module: its class in ``torch.nn``.
        settings: the module's attributes with which it computes this function.
        function: its name in ``torch`` or ``torch.nn.functional``.
        overwriting: the name of a form that may overwrite its input. It differs from ``function``
            if the derivative follows from the output.
        kernel: its number in ``native.c``.
    """

    module: str
    settings: dict[str, object]
    function: str
    overwriting: str
    kernel: int


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation("ReLU", {}, "relu", "relu_", 1),
    "lrelu": Activation("LeakyReLU", {"negative_slope": 0.01}, "leaky_relu", "leaky_relu_", 2),
    "sigmoid": Activation("Sigmoid", {}, "sigmoid", "sigmoid_", 3),
    "tanh": Activation("Tanh", {}, "tanh", "tanh_", 4),
    "silu": Activation("SiLU", {}, "silu", "silu", 5),
    "softplus": Activation("Softplus", {"beta": 1.0, "threshold": 20.0}, "softplus", "softplus", 6),
    "gelu": Activation("GELU", {"approximate": "none"}, "gelu", "gelu", 7),
}
"""The activations by name; a layer without activation has the name ``"identity"``."""
INITIALISATIONS = ("normal", "xavier", "kaiming", "orthogonal")
