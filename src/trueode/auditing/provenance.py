"""What was audited: weights, versions, device and solver."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from trueode import gpus
from trueode.auditing.interception import version_of
from trueode.auditing.model_under_test import ModelUnderTest
from trueode.auditing.problem import FoundSolver
from trueode.evaluation import Evaluation
from trueode.evaluation.runnable import Runnable


def provenance(runnable: Runnable, own: Evaluation) -> Mapping[str, Any]:
    """Record what was audited: hash of the weights, versions, device, and the solver found in the
    model's own call.
    """
    from trueode import __version__

    model = (
        runnable.forward.model
        if isinstance(runnable, ModelUnderTest)
        else getattr(runnable, "model", None)
    )
    module = model if isinstance(model, nn.Module) else None
    if isinstance(runnable, ModelUnderTest) and module is None and runnable.forward.found.modules:
        module = nn.ModuleList(runnable.forward.found.modules)
    first = next(iter(module.parameters()), None) if module is not None else None
    versions = {
        "trueode": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    solver = own.solver
    solvers = (solver.blocks or (solver,)) if isinstance(solver, FoundSolver) else ()
    versions |= {
        found.library: version_of(found.library) for found in solvers if found.library != "trueode"
    }
    known: dict[str, Any] = {"weights": None, "parameters": 0, "device": "cpu", "dtype": None}
    if module is not None:
        known |= {
            "weights": weights_hash(module),
            "parameters": sum(p.numel() for p in module.parameters()),
        }
    if first is not None:
        known |= {"device": str(first.device), "dtype": str(first.dtype).removeprefix("torch.")}
    if isinstance(runnable, ModelUnderTest):
        facts = runnable.forward.framework.facts()
        versions |= facts.pop("versions", {})
        known |= facts
    return {
        "model": type(model).__name__,
        **known,
        **gpus.facts(torch.device(known["device"])),
        "seed": torch.initial_seed(),
        "machine": platform.machine(),
        "versions": versions,
        "solver": [
            {"library": found.library, "method": found.method, "settings": found.settings}
            for found in solvers
        ],
        "batches": list(runnable.sizes) if isinstance(runnable, ModelUnderTest) else [],
    }


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers with their names."""
    digest = sha256()
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor):  # extra state of a module
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        value = value if value.layout == torch.strided else value.to_dense()
        digest.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
