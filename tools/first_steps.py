"""Run the blocks of the README in order, in a fresh environment, and print their times.

    python tools/first_steps.py          all blocks except CIFAR-10; long trainings: 20 iterations
    python tools/first_steps.py --audit  up to the audit of a torchdiffeq model

Exit code: 0, or 1 if a block fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONG, SHORT = "--niter 10000", "--niter 20"


def blocks() -> Iterator[tuple[str, str]]:
    """Language and text of the README's blocks, in order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for match in re.finditer(r"^```(python|shell)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield match[1], match[2]


def steps(python: Path) -> Iterator[tuple[str, list[str], tuple[int, ...]]]:
    """The steps after the installation: name, command, and valid exit codes."""
    for language, text in blocks():
        if language == "python":
            yield "the audit", [str(python), "-c", text], (0,)
            continue
        for line in text.splitlines():
            if "cifar10" not in line:
                words = shlex.split(line.replace(LONG, SHORT))
                yield line, [str(python), *words[1:]], (0, 2) if "use_gpu" in line else (0,)


def main() -> int:
    """Install the package and run the steps; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--audit", action="store_true", help="stop after the audit")
    only_audit = parser.parse_args().audit
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("train.py", "options"):
            (place / name).symlink_to(ROOT / name)
        venv.create(place / "env", with_pip=True)
        python = place / "env" / "bin" / "python"
        install = [str(python), "-m", "pip", "install", "--quiet", str(ROOT), "torchdiffeq"]
        whole = 0.0
        for name, words, good in (("the installation", install, (0,)), *steps(python)):
            begin = time.monotonic()
            environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            done = subprocess.run(
                words, cwd=place, capture_output=True, text=True, check=False, env=environment
            )
            seconds = time.monotonic() - begin
            whole += seconds if words is not install else 0.0
            print(f"{seconds:7.1f} s  {name}", flush=True)
            if done.returncode not in good:
                print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
                return 1
            if name == "the audit":
                print(done.stdout)
                if only_audit:
                    break
        print(f"{whole:7.1f} s  all except the installation")
    return 0


if __name__ == "__main__":
    sys.exit(main())
