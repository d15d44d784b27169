"""The compiled kernel exists wherever it can; its other tests are skipped if it is missing."""

from __future__ import annotations

import shutil
import sys

import pytest
import torch

from trueode.solvers.backends import native


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None,
    reason="nothing here can build the kernel",
)
def test_where_it_can_be_built_it_is_in_use() -> None:
    assert native.instruction_sets(), native.describe()


def test_torch_on_one_thread_leaves_the_kernel_those_that_torch_had() -> None:
    before = torch.get_num_threads()

    def both() -> tuple[int, int]:
        return torch.get_num_threads(), native.library.threads()

    try:
        torch.set_num_threads(3)
        assert both() == (3, 3)
        with native.torch_on_one_thread():
            with native.torch_on_one_thread():
                assert both() == (1, 3)
            assert both() == (1, 3)
        assert both() == (3, 3)
    finally:
        torch.set_num_threads(before)
