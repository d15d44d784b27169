import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from tests.figures.samples import portrait
from trueode import figures
from trueode.figures.portrait import PATHS
from trueode.figures.theme import colour


def test_every_path_is_drawn_in_the_colour_of_its_class():
    data = portrait()
    axes = figures.trajectories(data).axes[0]
    collections = [artist for artist in axes.collections if isinstance(artist, LineCollection)]
    assert sum(len(artist.get_segments()) for artist in collections) == 30
    for label, artist in enumerate(collections):
        assert np.allclose(artist.get_color()[0, :3], to_rgba(colour(label))[:3])
        own = data["paths"][:, data["labels"] == label]
        assert np.array_equal(np.stack(artist.get_segments(), axis=1), own)


def test_starts_are_hollow_and_ends_are_filled():
    data = portrait()
    starts, ends = figures.trajectories(data).axes[0].lines[:2]
    first = data["labels"] == 0
    assert np.array_equal(np.stack(starts.get_data(), axis=1), data["paths"][0, first])
    assert starts.get_markerfacecolor() == "white"
    assert np.array_equal(np.stack(ends.get_data(), axis=1), data["paths"][-1, first])
    assert ends.get_markerfacecolor() == colour(0)


def test_only_so_many_paths_as_a_reader_can_follow():
    axes = figures.trajectories(portrait(1000)).axes[0]
    assert sum(len(artist.get_segments()) for artist in axes.collections) == PATHS


@pytest.mark.parametrize("draw", [figures.trajectories, figures.regions])
def test_the_title_names_solver_and_accuracy_and_the_units_are_equal(draw):
    figure = draw(portrait())
    axes = figure.axes[0]
    assert any("euler, h = 1, accuracy 99.6 %" in text.get_text() for text in figure.texts)
    assert axes.get_aspect() == 1


def test_regions_lie_under_the_output_at_the_place_they_belong_to():
    data = portrait(n_classes=3)
    axes = figures.regions(data).axes[0]
    (image,) = axes.images
    assert np.array_equal(image.get_array(), data["regions"])
    left, right, bottom, top = image.get_extent()
    # A cell's centre is its grid point.
    assert left + (right - left) / 80 == pytest.approx(data["grid_x"][0])
    assert top - (top - bottom) / 60 == pytest.approx(data["grid_y"][-1])
    assert image.origin == "lower"
    drawn = np.concatenate([np.stack(line.get_data(), axis=1) for line in axes.lines])
    assert len(drawn) == 30
    assert len(axes.lines) == 3


def test_a_sample_flung_far_away_does_not_shrink_the_others():
    data = portrait(100)
    data["paths"][-1, 0] = 1e5
    axes = figures.trajectories(data).axes[0]
    inside = data["paths"][:, 1:]
    assert axes.get_xlim()[1] < 10
    assert axes.get_xlim()[0] < data["paths"][0, :, 0].min()
    assert np.mean(inside[..., 0] < axes.get_xlim()[1]) > 0.9


def test_samples_outside_of_the_regions_do_not_widen_them():
    data = portrait()
    data["output"] = data["output"] + 100.0
    axes = figures.regions(data).axes[0]
    assert axes.get_xlim() == pytest.approx((-3 - 3 / 39, 3 + 3 / 39))
