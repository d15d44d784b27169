import numpy as np
import pytest

from trueode import figures


@pytest.mark.parametrize(("n", "shown"), [(1, 1), (2, 2), (3, 3), (40, 4)])
def test_a_panel_per_trajectory_with_dots_for_the_truth_and_lines_for_the_prediction(n, shown):
    t = np.linspace(0, 10, 21)
    truth = np.random.default_rng(0).normal(size=(n, 21, 2))
    figure = figures.time_series(t, truth, truth + 1, names=("angle", "speed"))
    panels = [axes for axes in figure.axes if axes.lines]
    assert len(panels) == shown
    for number, axes in enumerate(panels):
        for k in range(2):
            dots, line = axes.lines[2 * k : 2 * k + 2]
            assert (dots.get_linestyle(), dots.get_marker(), line.get_marker()) == (
                "None",
                "o",
                "None",
            )
            assert np.array_equal(dots.get_ydata(), truth[number, :, k])
            assert np.array_equal(line.get_ydata(), truth[number, :, k] + 1)
            assert dots.get_color() == line.get_color()


def test_the_legend_names_the_components():
    t = np.linspace(0, 1, 5)
    figure = figures.time_series(
        t, np.zeros((2, 5, 2)), np.zeros((2, 5, 2)), names=("angle", "speed")
    )
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert [text.get_text() for text in legend.get_texts()] == [
        "angle",
        "speed",
        "truth",
        "predicted",
    ]
