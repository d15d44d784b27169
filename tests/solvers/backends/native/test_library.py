"""The compiled kernel is there where it can be: its other tests are skipped without it, and must not hide that it is missing."""

from __future__ import annotations

import shutil
import sys

import pytest

from trueode.solvers.backends import native


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="nothing here can build the kernel")
def test_where_it_can_be_built_it_is_in_use() -> None:
    assert native.instruction_sets(), native.describe()
