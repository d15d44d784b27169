import numpy as np
import pytest

from tests.figures.samples import history
from trueode import figures
from trueode.figures.theme import DARK, GREEN, VERMILION


def run(n=50, seed=0, *, adaptive=False, orders=(2,)):
    """An adaptive run of ``n`` rows: checks in every fifth, test evaluations in every tenth."""
    random = np.random.default_rng(seed)
    data = history(n, adaptive=adaptive)
    checked = np.arange(n) % 5 == 4
    data["n_steps"] = random.integers(1, 30, n).astype(float)
    data["nfe_total"] = np.cumsum(10 * data["nfe"])
    data["order"] = np.asarray(orders, dtype=float)[np.arange(n) * len(orders) // n]
    data["signal"] = np.where(checked, random.uniform(0.001, 0.02, n), np.nan)
    data["target"] = np.where(checked, 0.01, np.nan)
    for name in ("accuracy", "mse"):
        data[f"test_{name}"] = data[f"test_{name}"] * random.uniform(0.9, 1.0)
        data[f"test_{name}_reference"] = 0.9 * data[f"test_{name}"]
    return data


def without(data, *names):
    return {name: column for name, column in data.items() if name not in names}


def first(data, n):
    return {name: column[:n] for name, column in data.items()}


def curve(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


def of_colour(axes, tint):
    return [line for line in axes.lines if line.get_color() == tint]


def at_checks(data, name):
    return data[name][np.isfinite(data[name])]


def says(axes):
    return [text.get_text() for text in axes.texts if text.get_text()]


FULL = {
    "fixed steps": lambda: figures.adaptation(run(), "accuracy"),
    "tolerance": lambda: figures.adaptation(run(adaptive=True), "mse"),
    "methods": lambda: figures.adaptation(run(orders=(4, 2, 4)), "accuracy"),
    "runs": lambda: figures.adaptation_runs(
        {"paper": [run(seed=k) for k in range(3)], "fidelity": [run()]}, "accuracy"
    ),
    "runs, mse": lambda: figures.adaptation_runs({"paper": [run(seed=k) for k in range(3)]}, "mse"),
}
DEGENERATE = {
    "no columns": lambda: figures.adaptation({}, "accuracy"),
    "no rows": lambda: figures.adaptation(first(run(adaptive=True), 0), "accuracy"),
    "one row": lambda: figures.adaptation(first(run(adaptive=True), 1), "mse"),
    "one check": lambda: figures.adaptation(
        {name: column[9:10] for name, column in run().items()}, "accuracy"
    ),
    "only NaN": lambda: figures.adaptation(
        {name: np.full(50, np.nan) for name in run(adaptive=True)}, "accuracy"
    ),
    "only infinity": lambda: figures.adaptation(
        run() | {"signal": np.full(50, np.inf)}, "accuracy"
    ),
    "zero mse": lambda: figures.adaptation(run() | {"mse": np.zeros(50)}, "mse"),
    "constant": lambda: figures.adaptation(
        run() | {"accuracy": np.ones(50), "test_accuracy": np.ones(50)}, "accuracy"
    ),
    "a method a row": lambda: figures.adaptation(run(orders=range(1, 51)), "accuracy"),
    "no groups": lambda: figures.adaptation_runs({}, "accuracy"),
    "no runs": lambda: figures.adaptation_runs({"paper": [], "fidelity": [run()]}, "accuracy"),
    "a run without columns": lambda: figures.adaptation_runs({"paper": [{}, run()]}, "mse"),
    "runs of one row": lambda: figures.adaptation_runs(
        {"paper": [first(run(), 1), first(run(), 1)]}, "accuracy"
    ),
    "a run of zero mse": lambda: figures.adaptation_runs(
        {"paper": [run()], "fidelity": [run() | {"test_mse": np.zeros(50)}]}, "mse"
    ),
    "runs that have no iteration in common": lambda: figures.adaptation_runs(
        {"paper": [first(run(), 20), {name: column[30:] for name, column in run().items()}]},
        "accuracy",
    ),
}


@pytest.mark.parametrize("draw", [*FULL.values(), *DEGENERATE.values()], ids=[*FULL, *DEGENERATE])
def test_every_figure_is_written(draw, tmp_path):
    assert figures.save(draw(), tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", FULL)
def test_equal_input_gives_equal_bytes(name, tmp_path):
    one, other = (figures.save(FULL[name](), tmp_path / f"{k}.png").read_bytes() for k in range(2))
    assert one == other


def test_the_metric_is_shown_with_the_training_solver_and_with_a_finer_one():
    data = run()
    axes = figures.adaptation(data, "accuracy").axes[0]
    assert "%" in axes.get_ylabel()
    assert np.array_equal(curve(axes, "_batch").get_ydata(), 100 * data["accuracy"])
    tested, finer = curve(axes, "test set"), curve(axes, "test set, finer solver")
    assert np.array_equal(tested.get_ydata(), 100 * at_checks(data, "test_accuracy"))
    assert np.array_equal(finer.get_ydata(), 100 * at_checks(data, "test_accuracy_reference"))
    assert finer.get_markerfacecolor() == "none"
    assert tested.get_markerfacecolor() != "none"
    assert axes.get_ylim()[1] < 103
    assert len(axes.collections) == 1  # the gap


def test_mse_stands_on_a_logarithmic_axis():
    data = run()
    axes = figures.adaptation(data, "mse").axes[0]
    assert axes.get_yscale() == "log"
    assert np.array_equal(curve(axes, "_batch").get_ydata(), data["mse"])


def test_panels_share_the_iterations():
    panels = figures.adaptation(run(), "accuracy").axes[:4]
    assert len({axes.get_xlim() for axes in panels}) == 1
    assert [axes.get_xlabel() for axes in panels] == ["", "", "", "iteration"]


def test_steps_have_the_tolerance_at_their_side_if_there_is_one():
    data = run(adaptive=True)
    fixed, adaptive = (
        figures.adaptation(run(), "accuracy").axes,
        figures.adaptation(data, "accuracy").axes,
    )
    assert "tolerance" not in [axes.get_ylabel() for axes in fixed]
    assert np.array_equal(adaptive[1].lines[0].get_ydata(), data["n_steps"])
    (right,) = (axes for axes in adaptive if axes.get_ylabel() == "tolerance")
    assert right.get_yscale() == "log"
    assert np.array_equal(right.lines[0].get_ydata(), data["tolerance"])
    assert right.lines[0].get_drawstyle() == "steps-post"


def test_the_tolerance_breaks_off_where_the_steps_are_fixed():
    data = run(adaptive=True)
    data["tolerance"][10:20] = np.nan
    (right,) = (
        axes
        for axes in figures.adaptation(data, "accuracy").axes
        if axes.get_ylabel() == "tolerance"
    )
    assert np.array_equal(right.lines[0].get_ydata(), data["tolerance"], equal_nan=True)


def test_a_line_marks_each_change_of_the_method():
    data = run(60, orders=(4, 2, 4))
    axes = figures.adaptation(data, "accuracy").axes[1]
    assert [line.get_xdata()[0] for line in axes.lines[1:]] == [
        data["iteration"][20],
        data["iteration"][40],
    ]
    assert says(axes) == ["order 4", "order 2", "order 4"]


def test_the_order_of_a_method_is_left_out_where_it_has_no_room():
    data = run(200)
    data["order"][100], data["order"][110:118] = 3, 4
    axes = figures.adaptation(data, "accuracy").axes[1]
    assert len(axes.lines) == 1 + 4
    assert says(axes) == ["order 2", "2", "4", "order 2"]


def test_a_single_method_is_not_marked():
    axes = figures.adaptation(run(), "accuracy").axes[1]
    assert (len(axes.lines), says(axes)) == (1, [])


def test_the_signal_is_shown_with_its_target():
    data = run()
    axes = figures.adaptation(data, "accuracy").axes[2]
    assert axes.get_yscale() == "log"
    assert np.array_equal(curve(axes, "signal").get_ydata(), at_checks(data, "signal"))
    assert np.array_equal(curve(axes, "target").get_ydata(), at_checks(data, "target"))


def test_an_infinite_signal_is_left_out():
    data = run()
    data["signal"][4], data["signal"][9] = np.inf, np.nan
    axes = figures.adaptation(data, "accuracy").axes[2]
    assert np.array_equal(curve(axes, "signal").get_ydata(), at_checks(data, "signal"))
    assert len(at_checks(data, "signal")) == 8


def test_a_signal_of_zero_stands_on_a_linear_axis():
    data = run()
    data["signal"][4] = 0.0
    assert figures.adaptation(data, "accuracy").axes[2].get_yscale() == "linear"


@pytest.mark.parametrize(
    ("factor", "unit"), [(1, "thousands"), (1e3, "millions"), (1e6, "billions")]
)
def test_evaluations_are_shown_for_an_iteration_and_in_total(factor, unit):
    data = run()
    data["nfe_total"] = data["nfe_total"] * factor
    axes = figures.adaptation(data, "accuracy").axes
    assert np.array_equal(axes[3].lines[0].get_ydata(), data["nfe"])
    right = axes[4]
    assert unit in right.get_ylabel()
    assert right.lines[0].get_ydata() == pytest.approx(data["nfe_total"] / factor / 1e3)
    assert max(right.get_yticks()) < 1000


@pytest.mark.parametrize(
    ("place", "names"),
    [
        (0, ("accuracy", "test_accuracy", "test_accuracy_reference")),
        (1, ("n_steps", "tolerance", "order")),
        (2, ("signal", "target")),
        (3, ("nfe", "nfe_total")),
    ],
)
def test_panels_without_columns_say_so(place, names):
    data = run(adaptive=True, orders=(2, 4))
    empty = data | {name: np.full(50, np.nan) for name in names}
    for found in (
        figures.adaptation(without(data, *names), "accuracy"),
        figures.adaptation(empty, "accuracy"),
    ):
        silent = [k for k, axes in enumerate(found.axes[:4]) if "no data" in says(axes)]
        assert silent == [place]


@pytest.mark.parametrize(
    "name", ["accuracy", "test_accuracy", "test_accuracy_reference", "n_steps", "target", "nfe"]
)
def test_a_panel_that_lacks_one_of_its_columns_shows_the_others(name):
    figure = figures.adaptation(without(run(adaptive=True), name), "accuracy")
    assert not [axes for axes in figure.axes if "no data" in says(axes)]


def test_each_rule_is_a_column_with_a_line_per_seed_and_their_mean():
    runs = [run(seed=k) for k in range(4)]
    paper, fidelity, steps, _ = figures.adaptation_runs(
        {"paper": runs, "fidelity": runs[:1]}, "accuracy"
    ).axes
    assert [paper.get_title(loc="left"), fidelity.get_title(loc="left")] == ["paper", "fidelity"]
    assert (paper.get_ylabel(), steps.get_ylabel()) == ("test accuracy (%)", "steps")
    for axes, tint, name, scale in (
        (paper, VERMILION, "test_accuracy", 100),
        (paper, DARK, "test_accuracy_reference", 100),
        (steps, GREEN, "n_steps", 1),
    ):
        *seeds, mean = of_colour(axes, tint)
        for data, line in zip(runs, seeds, strict=True):
            assert np.array_equal(line.get_ydata(), scale * at_checks(data, name))
            assert line.get_linewidth() < mean.get_linewidth()
        assert mean.get_label() == "mean"
        assert mean.get_ydata() == pytest.approx(
            scale * np.mean([at_checks(data, name) for data in runs], axis=0)
        )


def test_columns_share_the_axes_of_values_and_panels_of_a_column_that_of_iterations():
    figure = figures.adaptation_runs(
        {"paper": [run(50)], "fidelity": [run(80, seed=1)]}, "accuracy"
    )
    paper, fidelity, paper_steps, fidelity_steps = figure.axes
    assert paper.get_ylim() == fidelity.get_ylim()
    assert paper_steps.get_ylim() == fidelity_steps.get_ylim()
    assert paper.get_xlim() == paper_steps.get_xlim() != fidelity.get_xlim()


def test_the_mean_ends_where_the_first_run_ends_and_is_taken_between_rows_as_well():
    long = {
        "iteration": np.array([0.0, 100, 200, 300]),
        "test_accuracy": np.array([0, 0.4, 0.8, 0.8]),
    }
    short = {"iteration": np.array([50.0, 150, 250]), "test_accuracy": np.array([0.2, 0.2, 0.2])}
    long["n_steps"], short["n_steps"] = np.array([1.0, 3, 5, 7]), np.array([1.0, 1, 1])
    upper, lower = figures.adaptation_runs({"paper": [long, short]}, "accuracy").axes
    assert list(curve(upper, "mean").get_xdata()) == [50, 100, 150, 200, 250]
    assert curve(upper, "mean").get_ydata() == pytest.approx([20, 30, 40, 50, 50])
    assert list(curve(lower, "mean").get_ydata()) == [1, 2, 2, 3, 3]


@pytest.mark.parametrize(("most", "scale"), [(6, "linear"), (120, "log")])
def test_numbers_of_steps_that_differ_much_stand_on_a_logarithmic_axis(most, scale):
    few = run() | {"n_steps": np.linspace(1, 6, 50).round()}
    many = run() | {"n_steps": np.linspace(1, most, 50).round()}
    *_, left, right = figures.adaptation_runs({"fidelity": [few], "paper": [many]}, "accuracy").axes
    assert left.get_yscale() == right.get_yscale() == scale


def test_one_mse_of_zero_makes_the_common_axis_linear():
    upper = figures.adaptation_runs(
        {"a": [run()], "b": [run() | {"test_mse": np.zeros(50)}]}, "mse"
    ).axes[:2]
    assert [axes.get_yscale() for axes in upper] == ["linear", "linear"]
    assert figures.adaptation_runs({"a": [run()]}, "mse").axes[0].get_yscale() == "log"


def test_no_tick_above_100_per_cent():
    perfect = run() | {
        "accuracy": np.ones(50),
        "test_accuracy": np.ones(50),
        "test_accuracy_reference": np.ones(50),
    }
    figure = figures.adaptation_runs({"a": [perfect]}, "accuracy")
    for axes in (figure.axes[0], figures.adaptation(perfect, "accuracy").axes[0]):
        low, high = axes.get_ylim()
        assert not [tick for tick in axes.get_yticks() if 100 < tick <= high]
        assert low < 100 < high


def test_the_legend_of_the_runs_lies_above_the_panels():
    figure = figures.adaptation_runs({"paper": [run()], "fidelity": [run()]}, "accuracy")
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().y0 > max(axes.get_tightbbox().y1 for axes in figure.axes)
