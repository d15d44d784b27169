from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweeps.samples import SOURCE, said, told
from trueode.sweeps import SweepDirectory, make_plan, run_sweep


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed sweep."""
    folder = tmp_path_factory.mktemp("whole")
    console = told()
    assert run_sweep(make_plan(SOURCE), SweepDirectory(folder), console=console) == 0, said(console)
    return folder
