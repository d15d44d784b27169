"""Describe the machine and the software of a measurement."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from hashlib import sha256
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def describe(libraries: Iterable[str]) -> str:
    """Processor, cores, load, versions, commit, and the path of solves (kernel or Python)."""
    versions = [
        f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in libraries),
    ]
    info = subprocess.run(
        [sys.executable, "-m", "trueode", "info"], capture_output=True, text=True, check=True
    ).stdout
    path = next(
        line.split(maxsplit=1)[1] for line in info.splitlines() if line.startswith("solves")
    )
    load = f"; load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    return (
        f"{processor()}, {os.cpu_count()} cores, {platform.system()}{load}. "
        f"{', '.join(versions)}. trueode: {path}; commit {commit()}."
    )


def processor() -> str:
    """The model of the processor, as far as the system reports it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def commit() -> str:
    """The commit of the sources, and whether files of src differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--", "src") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def source() -> str:
    """A hash of the package's sources, which identifies stored results of other sources."""
    digest = sha256()
    for path in sorted((ROOT / "src").rglob("*.[pch]*")):
        if path.suffix in (".py", ".c", ".h"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:10]
