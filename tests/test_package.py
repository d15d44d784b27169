"""Built archives work without a compiler: the wheel with its kernel, the source without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "3rd-party-licenses.txt")
BUILT = shutil.ignore_patterns("*.egg-info", "*.so", "__pycache__")
TRAIN_AND_INFO = """
import sys
from trueode.cli.main import main
sys.exit(main(["train", "--niter", "2", "--verdict_budget", "1"]) or main(["info"]))
"""
MISSING = "The compiled kernel is not used"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, built from a copy, because building leaves files behind."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "src", folder / "copy" / "src", ignore=BUILT)
    for name in NEEDED:
        shutil.copy(ROOT / name, folder / "copy")
    build = "import sys, setuptools.build_meta as build; build.build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(folder)],
        cwd=folder / "copy",
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def no_compiler(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a machine without a compiler."""
    empty = str(tmp_path_factory.mktemp("empty"))
    return {**os.environ, "PATH": empty, "CC": "/bin/false", "TRUEODE_NATIVE": ""}


def pip(*words: str, environment: Mapping[str, str]) -> None:
    """Run pip without an index; all requirements are installed."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        *words,
        "--no-deps",
        "--no-index",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def installed(archive: Path, folder: Path, environment: Mapping[str, str]) -> tuple[str, str]:
    """Install an archive next to the installed packages and train; return output and errors."""
    pip(
        "install",
        "--no-build-isolation",
        "--target",
        str(folder / "site"),
        str(archive),
        environment=environment,
    )
    found = {**environment, "PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-W",
        "error",
        "-W",
        f"always:{MISSING}:RuntimeWarning",
        "-c",
        TRAIN_AND_INFO,
    ]
    done = subprocess.run(command, cwd=folder, env=found, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None,
    reason="nothing here can build the kernel",
)
def test_a_wheel_holds_the_kernel(
    source: Path, no_compiler: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "cc").write_text('#!/bin/sh\nexec gcc "$@" -O0\n')  # it takes a quarter of the time
    (tmp_path / "cc").chmod(0o755)
    with_compiler = {name: value for name, value in os.environ.items() if name != "TRUEODE_NATIVE"}
    with_compiler["CC"] = str(tmp_path / "cc")
    pip(
        "wheel",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        str(source),
        environment=with_compiler,
    )
    wheel = next(tmp_path.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert {"trueode/py.typed", "trueode/report/assets/page.html"} <= set(names)
    assert [
        name
        for name in names
        if name.startswith("trueode/solvers/backends/native/_kernel") and name.endswith(".so")
    ]
    printed, said = installed(wheel, tmp_path, no_compiler)
    assert "compiled kernel" in printed.splitlines()[-1]
    assert MISSING not in said


def test_the_source_installs_without_a_compiler(
    source: Path, no_compiler: dict[str, str], tmp_path: Path
) -> None:
    printed, said = installed(source, tmp_path, no_compiler)
    assert "portable path" in printed.splitlines()[-1]
    assert said.count(MISSING) == 1
