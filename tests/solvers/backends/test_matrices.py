"""A field by matrices equals the field at all times and states."""

from __future__ import annotations

import pytest
import torch

from trueode.fields import ConvField
from trueode.solvers import FixedStep
from trueode.solvers.backends import with_fast_field
from trueode.solvers.problem import Problem


@pytest.mark.parametrize("time_dependent", [False, True])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_field_is_called_by_matrices(length: int, time_dependent: bool) -> None:
    torch.manual_seed(length)
    field = ConvField(3, 8, 1, "tanh", time_dependent).double()
    z = torch.randn(4, 3, length, dtype=torch.float64)
    problem = with_fast_field(Problem(field, z, solver=FixedStep("rk4", 0.5)))
    assert problem.field is not field
    states = torch.randn(6, 3, length, dtype=torch.float64)  # other rows than the problem's
    for t in (torch.tensor(0.3, dtype=torch.float64), torch.rand(6, 1, 1, dtype=torch.float64)):
        torch.testing.assert_close(
            problem.field(t, states), field(t, states), rtol=1e-12, atol=1e-12
        )
