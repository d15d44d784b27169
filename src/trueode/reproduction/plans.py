"""The runs of each figure and table of the paper, as plans of sweeps.

``PAPER[name]`` is the plan of the paper; ``SMALL[name]`` changes it to one that takes minutes on
two cores. Figure 3 trains nothing: its plan only names the data that it shows.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

SPHERE = {
    "dataset": "concentric_sphere2",
    "network": "simple_odenet",
    "ch_residual_block": 32,
    "batch_size": 128,
    "lr": 1e-4,
    "niter": 10000,
    "solver": "euler",
    "evaluate_with_dif_solver": True,
    "test_solver_list": ["euler", "midpoint", "rk4"],
    "test_factor_list": [0.5, 0.75, 1.0, 1.5, 2.0],
}
CIFAR = {
    "dataset": "cifar10",
    "network": "odenet",
    "ch_residual_block": 128,
    "batch_size": 256,
    "lr": 1e-4,
    "niter": 7800,
    "evaluate_with_dif_solver": True,
    "test_factor_list": [0.1, 1.0, 10.0],
}
SEEDS = [0, 1, 2, 3, 4]
STEPS = [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125]
HIGHER = {"test_solver_list": ["midpoint", "rk4"], "test_factor_list": [1.0]}
POWERS = [2.0**k for k in range(1, -9, -1)]
ADAPT = {"use_step_adaption_algo": True, "step_size": 1.0}
FIDELITY = {**ADAPT, "adaption_algo": "fidelity"}
MOMENTS = "moments"
"""The grid of runs that stop early. Training is deterministic, so they show the long run at these
moments.
"""
EIGHTHS = [k / 8 for k in range(1, 8)]

PAPER: dict[str, dict[str, Any]] = {
    "fig1": {
        "base": SPHERE,
        "axes": {"random_seed": SEEDS},
        "grids": [
            {
                "name": "fine",
                "base": {"step_size": 0.0078125, "test_factor_list": [64 * x for x in POWERS]},
            },
            {"name": "coarse", "base": {"step_size": 0.5, "test_factor_list": POWERS}},
        ],
    },
    "fig2": {
        "base": {**SPHERE, "step_size": 0.5, "test_factor_list": POWERS},
        "axes": {"random_seed": [0]},
    },
    "fig3": {"base": SPHERE},
    "fig4a": {"base": SPHERE, "axes": {"step_size": STEPS, "random_seed": SEEDS}},
    "fig4b": {
        "base": {**SPHERE, "solver": "rk4", "test_solver_list": ["rk4"]},
        "axes": {"step_size": STEPS[:6], "random_seed": SEEDS},
    },
    "fig4c": {
        "base": {**CIFAR, "solver": "fehlberg2", "test_solver_list": ["fehlberg2", "dopri5"]},
        "axes": {"tol": [1e-1, 1e-2, 1e-3, 1e-4, 1e-5], "random_seed": SEEDS},
    },
    "fig4d": {
        "base": {**CIFAR, "solver": "dopri5", "test_solver_list": ["dopri5"]},
        "axes": {"tol": [1e-1, 1e-2, 1e-3, 1e-4, 1e-5], "random_seed": SEEDS},
    },
    "fig5": {
        "base": {**CIFAR, "solver": "euler", **HIGHER, **ADAPT, "evaluate_test_acc": True},
        "axes": {"random_seed": SEEDS},
        "grids": [
            {"name": "runs"},
            {
                "name": MOMENTS,
                "axes": {"random_seed": [0], "niter": EIGHTHS},
                "base": {
                    "evaluate_test_acc": False,
                    "test_solver_list": ["euler", "midpoint", "rk4"],
                    "verdict_budget": 0.05,
                },
            },
        ],
    },
    "table1": {
        "base": SPHERE,
        "axes": {"random_seed": SEEDS},
        "grids": [
            {"name": "grid search", "axes": {"step_size": STEPS}},
            {"name": "adaptation of the paper", "base": ADAPT},
            {"name": "fidelity, euler", "base": FIDELITY},
            {"name": "fidelity, rk4", "base": {**FIDELITY, "solver": "rk4"}},
        ],
    },
    "table1_cifar": {
        "base": {**CIFAR, "solver": "euler", **HIGHER},
        "axes": {"random_seed": SEEDS},
        "grids": [
            {"name": "grid search", "axes": {"step_size": STEPS[:7]}},
            {
                "name": "adaptation of the paper",
                "base": {**ADAPT, "evaluate_test_acc": True},
            },  # as Figure 5
            # not with Euler, for the reason given in its recipe
            {"name": "fidelity, rk4", "base": {**FIDELITY, "solver": "rk4"}},
            {"name": "fidelity, auto", "base": {**FIDELITY, "solver": "auto"}},
        ],
    },
    "spheres": {
        "base": {**SPHERE, **HIGHER},
        "axes": {
            "dataset": ["concentric_sphere3", "concentric_sphere10"],
            "step_size": STEPS,
            "random_seed": SEEDS,
        },
    },
    "sphere900": {
        "base": {**SPHERE, **HIGHER},
        "axes": {"dataset": ["concentric_sphere900"], "step_size": STEPS, "random_seed": SEEDS},
    },
    "minima": {
        "base": {**SPHERE, **HIGHER},
        "axes": {"dataset": ["three_minima"], "step_size": STEPS, "random_seed": SEEDS},
    },
    "tolerances": {
        "base": {
            **SPHERE,
            "test_solver_list": ["fehlberg2", "dopri5"],
            "test_factor_list": [0.1, 1.0, 10.0],
        },
        "axes": {
            "solver": ["fehlberg2", "dopri5"],
            "tol": [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6],
            "random_seed": SEEDS,
        },
    },
    "mnist": {
        "base": {**CIFAR, **HIGHER, "solver": "euler", "batch_size": 128},
        "axes": {"dataset": ["mnist"], "step_size": STEPS[:6], "random_seed": SEEDS},
    },
}

SMALL_IMAGES = {"ch_residual_block": 32, "batch_size": 64, "lr": 1e-3, "verdict_budget": 2.0}
"""Runs of a few hundred iterations are short compared with the exact flow of a few hundred images:
the verdict may cost more than the run.
"""

SMALL: dict[str, dict[str, Any]] = {
    "fig1": {"niter": 3000, "random_seed": [0, 1, 2]},
    "fig2": {"niter": 3000},
    "fig3": {},
    "fig4a": {"niter": 3000, "random_seed": [0, 1, 2]},
    "fig4b": {"niter": 3000, "random_seed": [0, 1, 2]},
    "fig4c": {**SMALL_IMAGES, "niter": 300, "random_seed": [0]},
    "fig4d": {**SMALL_IMAGES, "niter": 300, "random_seed": [0]},
    "fig5": {**SMALL_IMAGES, "niter": 400, "eval_interval": 25, "random_seed": [0, 1]},
    "table1": {"niter": 3000, "random_seed": [0, 1, 2]},
    "table1_cifar": {
        **SMALL_IMAGES,
        "niter": 400,
        "eval_interval": 25,
        "random_seed": [0, 1],
        "step_size": STEPS[:5],
    },
    "spheres": {"niter": 2000, "random_seed": [0, 1, 2], "lr": 1e-3},
    "sphere900": {"niter": 300, "random_seed": [0], "step_size": STEPS[:5], "lr": 1e-3},
    "minima": {"niter": 2000, "random_seed": [0], "lr": 1e-3},
    "tolerances": {"niter": 2000, "random_seed": [0], "tol": [1e-1, 1e-2, 1e-3, 1e-4]},
    "mnist": {
        **SMALL_IMAGES,
        "ch_residual_block": 16,
        "niter": 300,
        "random_seed": [0, 1],
        "step_size": STEPS[:5],
    },
}
"""Changes of the small scale: values of axes, and of options in the base. Axes of `MOMENTS` keep
their values.
"""

SCALES = ("small", "paper")


def plan_of(name: str, scale: str, niter: int | None = None) -> dict[str, Any]:
    """The plan of a figure or table at a scale, for `make_plan`.

    ``niter`` replaces its number of iterations.
    """
    plan = deepcopy(PAPER[name])
    if scale == "small":
        for part in (plan, *(grid for grid in plan.get("grids", []) if grid["name"] != MOMENTS)):
            for option, value in SMALL[name].items():
                if option in part.get("axes", {}):
                    part["axes"][option] = value if isinstance(value, list) else [value]
                elif part is plan and not isinstance(value, list):
                    part["base"][option] = value
    if niter is not None:
        plan["base"]["niter"] = niter
    for grid in plan.get("grids", []):
        if grid["name"] == MOMENTS:  # shares of a run, in iterations
            moments = (
                max(1, round(share * plan["base"]["niter"])) for share in grid["axes"]["niter"]
            )
            grid["axes"]["niter"] = list(dict.fromkeys(moments))
    return {"name": f"{name}-{scale}", **plan}
