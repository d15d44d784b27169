"""Importing the data sets loads none of the libraries that only some of them need."""

from __future__ import annotations

import subprocess
import sys


def test_heavy_libraries_are_imported_when_they_are_needed():
    code = (
        "import sys, trueode.data; print([m for m in ('torchvision', 'scipy', 'PIL') if m in "
        "sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
