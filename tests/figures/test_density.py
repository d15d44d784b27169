"""The figure of a density: its panels show what they say."""

from __future__ import annotations

import numpy as np
import pytest

from tests.figures.samples import density
from trueode import figures


def test_both_densities_have_equal_colours_and_the_change_lies_below() -> None:
    data = density()
    panels = figures.density(data).axes
    own, exact, change = (panels[i].images[0] for i in (1, 2, 3))
    assert np.allclose(own.get_array(), 2 * exact.get_array())
    assert own.get_clim() == exact.get_clim()
    assert 0.1 < exact.get_clim()[1] < 0.6  # that of the data
    shown = np.asarray(change.get_array())
    assert shown[12, 10] == pytest.approx(np.log(2))
    left, right, bottom, top = own.get_extent()
    # a cell's centre is its grid point
    assert left + (right - left) / 40 == pytest.approx(data["grid_x"][0])
    assert top - (top - bottom) / 50 == pytest.approx(data["grid_y"][-1])
    assert change.origin == own.origin == "lower"


def test_changes_of_negligible_densities_are_not_shown() -> None:
    data = density()
    logs = data["exact"]["log_density"]
    logs[0, 0], data["own"]["log_density"][0, 0] = -30, -20
    assert np.asarray(figures.density(data).axes[3].images[0].get_array())[0, 0] == 0


def test_points_and_titles() -> None:
    data = density()
    panels = figures.density(data).axes
    for place, points in (
        (0, data["data"]),
        (4, data["own"]["samples"]),
        (5, data["exact"]["samples"]),
    ):
        assert np.array_equal(np.stack(panels[place].lines[0].get_data(), axis=1), points)
    assert "euler, h = 1/2" in panels[1].get_title(loc="left")
    assert "-2.84 nats on average; mass 1" in panels[2].get_title(loc="left")
    assert all(axes.get_aspect() == 1 for axes in panels[:6])


def test_what_is_not_finite_is_left_out() -> None:
    data = density()
    data["own"]["log_density"][:] = np.nan
    data["own"]["samples"][:] = np.inf
    data["exact"]["log_density"][3] = -np.inf
    assert not len(figures.density(data).axes[4].lines[0].get_xdata())
