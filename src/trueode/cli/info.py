"""The command ``trueode info``: the installation and the machine."""

from __future__ import annotations

import platform
from importlib import metadata

from trueode import __version__

LIBRARIES = (
    "numpy",
    "scipy",
    "torchvision",
    "tensorboard",
    "torchdiffeq",
    "torchdyn",
    "torchode",
    "diffrax",
    "jax",
    "distributed",
    "pyarrow",
)


def text() -> str:
    """Versions, devices, threads and the backend of solves, one per line."""
    import torch

    from trueode import gpus
    from trueode.solvers.backends import gpu, native

    devices = ["cpu", *(f"cuda:{i}" for i in range(gpus.count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    rows = {
        "trueode": __version__,
        "python": f"{platform.python_version()} ({platform.system()}, {platform.machine()})",
        "torch": torch.__version__,
        **{name: _version(name) for name in LIBRARIES},
        "devices": ", ".join(devices),
        "CUDA": f"{torch.version.cuda or 'not in this torch'}, driver {gpus.driver() or 'none'}",
        "threads": str(torch.get_num_threads()),
        "on GPUs": gpu.describe(),
        "solves": f"{native.describe()} (of {', '.join(native.instruction_sets()) or 'none'})",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
