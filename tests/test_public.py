"""The public names."""

from __future__ import annotations

import subprocess
import sys

import pytest

import trueode

PUBLIC = [
    "Audit",
    "SolverCheck",
    "audit",
    "check_solver",
    "Refine",
    "Progress",
    "PaperToleranceRule",
    "PaperStepRule",
    "ModelInspection",
    "Measure",
    "DiscretisationPenalty",
    "FidelityRule",
    "Certificate",
    "Adaptive",
    "Adjoint",
    "Backprop",
    "ButcherTableau",
    "Checkpoint",
    "ContinuousFlow",
    "FixedStep",
    "NeuralODE",
    "OnGrid",
    "Options",
    "Solution",
    "SolveError",
    "TrueodeError",
    "UsageError",
    "__version__",
    "odeint",
    "odeint_adjoint",
    "solve",
]


def test_public_names() -> None:
    assert sorted(trueode.__all__) == sorted(PUBLIC)
    assert dir(trueode) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(trueode, name) is not None


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = trueode.nothing


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, trueode; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
