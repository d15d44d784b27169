import numpy as np
import pytest

from tests.figures.samples import history
from trueode import figures
from trueode.figures.history import COLUMNS


def curve(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


def test_loss_shows_every_batch_its_mean_and_the_test_set():
    data = history()
    (axes,) = figures.loss(data).axes
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel() == "iteration"
    assert np.array_equal(curve(axes, "_batch").get_ydata(), data["loss"])
    tested = np.isfinite(data["test_loss"])
    assert np.array_equal(curve(axes, "test set").get_xdata(), data["iteration"][tested])
    assert np.array_equal(curve(axes, "test set").get_ydata(), data["test_loss"][tested])


def test_the_running_mean_of_a_line_is_the_line_inside():
    data = {"iteration": np.arange(200.0), "loss": 1 + np.arange(200.0)}
    (axes,) = figures.loss(data).axes
    mean = curve(axes, "training batches, running mean")
    assert mean.get_ydata()[5:-5] == pytest.approx(data["loss"][5:-5])


@pytest.mark.parametrize("lowest", [0.0, -1.0])
def test_a_loss_that_is_not_positive_stands_on_a_linear_axis(lowest):
    data = {"iteration": np.arange(3.0), "loss": np.array([1.0, lowest, 2.0])}
    assert figures.loss(data).axes[0].get_yscale() == "linear"


def test_accuracy_is_shown_in_per_cent_and_ends_at_100():
    data = history()
    (axes,) = figures.metric(data, "accuracy").axes
    assert np.array_equal(curve(axes, "_batch").get_ydata(), 100 * data["accuracy"])
    assert axes.get_yscale() == "linear"
    assert "%" in axes.get_ylabel()
    assert 100 < axes.get_ylim()[1] < 103


def test_mse_is_shown_as_it_is():
    data = history()
    (axes,) = figures.metric(data, "mse").axes
    assert np.array_equal(curve(axes, "_batch").get_ydata(), data["mse"])
    assert axes.get_yscale() == "log"


@pytest.mark.parametrize(("adaptive", "panels"), [(False, 2), (True, 3)])
def test_effort_shows_evaluations_steps_and_the_tolerance_of_adaptive_solvers(adaptive, panels):
    data = history(adaptive=adaptive)
    axes = figures.effort(data).axes
    assert len(axes) == panels
    assert np.array_equal(curve(axes[0], "forward").get_ydata(), data["nfe"])
    assert np.array_equal(curve(axes[0], "backward").get_ydata(), data["nfe_backward"])
    assert np.array_equal(axes[1].lines[0].get_ydata(), data["n_steps"])
    if adaptive:
        assert axes[2].get_yscale() == "log"
        assert np.array_equal(axes[2].lines[0].get_ydata(), data["tolerance"])


def test_a_long_history_keeps_its_peaks_in_few_points():
    n = 100_000
    data = {"iteration": np.arange(float(n)), "loss": np.ones(n)}
    data["loss"][41_234], data["loss"][77_777] = 50.0, 0.02
    (axes,) = figures.loss(data).axes
    drawn = curve(axes, "_batch").get_ydata()
    assert len(drawn) == 2 * COLUMNS
    assert (drawn.min(), drawn.max()) == (0.02, 50.0)
