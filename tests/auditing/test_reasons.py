"""Stability, crossings, growth."""

from __future__ import annotations

import pytest
import torch

from trueode.auditing.reasons import count_crossings, growth, stability_limit
from trueode.solvers import get_tableau


@pytest.mark.parametrize(
    ("method", "limit"),
    [("euler", 2.0), ("midpoint", 2.0), ("heun2", 2.0), ("rk4", 2.785293563), ("dopri5", 3.3066)],
)
def test_stability_limits(method: str, limit: float) -> None:
    """Hairer & Wanner II, section IV.2."""
    assert stability_limit(get_tableau(method)) == pytest.approx(limit, rel=1e-4)


def paths(*lines: list[tuple[float, float]]) -> torch.Tensor:
    return torch.tensor(lines).transpose(0, 1)


def test_crossing_lines_of_different_labels_are_counted() -> None:
    cross = paths([(0, 0), (1, 1)], [(0, 1), (1, 0)], [(0, 2), (1, 3)])
    assert count_crossings(cross, torch.tensor([0, 1, 1])) == (1, 2)
    assert count_crossings(cross, torch.tensor([0, 0, 1])) == (0, 2)
    assert count_crossings(cross, torch.tensor([0, 0, 0])) == (0, 0)


def test_lines_that_cross_late_and_at_other_times_are_counted() -> None:
    cross = paths([(0, 0), (2, 0), (4, 0)], [(1, 5), (3, 5), (3, -5)])
    assert count_crossings(cross, torch.tensor([0, 1])) == (1, 1)


def test_growth_is_the_norm_of_a_symmetric_field() -> None:
    matrix = torch.diag(torch.tensor([-3.0, 0.5, 1.0], dtype=torch.float64))
    z = torch.zeros(4, 3, dtype=torch.float64)
    assert growth(lambda t, z: z @ matrix, torch.tensor(0.0), z, True) == pytest.approx(
        3.0, rel=1e-3
    )
    assert growth(
        lambda t, z: z @ matrix, torch.tensor(0.0), z.flatten()[:3], False
    ) == pytest.approx(3.0, rel=1e-3)
