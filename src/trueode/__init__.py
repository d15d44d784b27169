"""Neural ODEs that are true ODEs: train one, and see whether it is an ODE or a ResNet in disguise.

Importing this package does not import torch or other large packages; names are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.3.0.dev0"

_HOMES = {
    "trueode.solvers": (
        "Adaptive",
        "Adjoint",
        "Backprop",
        "ButcherTableau",
        "Checkpoint",
        "FixedStep",
        "OnGrid",
        "Solution",
        "solve",
    ),
    "trueode.drop_in": ("odeint", "odeint_adjoint"),
    "trueode.models": ("ContinuousFlow", "NeuralODE"),
    "trueode.adaptation": (
        "Certificate",
        "DiscretisationPenalty",
        "FidelityRule",
        "Measure",
        "ModelInspection",
        "PaperStepRule",
        "PaperToleranceRule",
        "Progress",
        "Refine",
    ),
    "trueode.auditing": ("Audit", "audit", "check_solver"),
    "trueode.auditing.lightning": ("SolverCheck",),
    "trueode.options": ("Options",),
    "trueode.errors": ("SolveError", "TrueodeError", "UsageError"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'trueode' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
