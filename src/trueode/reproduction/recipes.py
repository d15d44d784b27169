"""The recipes of all figures and tables, by name."""

from __future__ import annotations

from collections.abc import Callable

from trueode.reproduction.exact_flow import samples_text
from trueode.reproduction.phase_space import figure_1, figure_2, figure_3
from trueode.reproduction.recipe import Context, Made, Recipe
from trueode.reproduction.step_adaptation import figure_5
from trueode.reproduction.table import table_1
from trueode.reproduction.training_settings import critical, steps_figure, tolerances_figure


def first_table(data: str) -> Callable[[Context], Made]:
    """Table 1, beside the paper's numbers."""

    def make(context: Context) -> Made:
        rows, text = table_1(context.rows, data)
        return Made(None, rows, f"{text}\n\n{samples_text(context.rows)}".rstrip())

    return make


CHOSEN_TOLERANCES = "tolerances 1e-1 … 1e-5"
CRITERION = (
    "the grid search takes the coarsest step at which solvers of higher order with the same step "
    "lose at most 0.1 test accuracy, averaged over seeds"
)
CERTIFIED = (
    "the evaluations of `fidelity` include its certificate, at least a thousand samples under the "
    "exact flow, which is most of them in runs of a few hundred iterations"
)
WITHOUT_EULER = "`fidelity` is not run with Euler, whose certificate takes hundreds of steps"

RECIPES: dict[str, Recipe] = {
    "fig1": Recipe(
        "Trajectories in phase space with a fine (a) and a coarse (b) training step of Euler, and "
        "the test accuracy of each model against the number of steps (c, d)",
        figure_1,
        ("the fine step is 1/128", "trajectories are those of the first seed"),
    ),
    "fig2": Recipe(
        "Output of the ODE block over the regions of the classifier, for the model trained with "
        "h = 1/2 and tested with h = 1/2 (a) and h = 1/4 (b)",
        figure_2,
    ),
    "fig3": Recipe(
        "Lady Windermere's fan on XOR: the ends of Euler's trajectories are linearly separable "
        "with h = 10^-2.5 (a), but not with h = 10^-3.5 (b); the concentric spheres (c)",
        figure_3,
        ("the parameters of the field, the end T and the XOR points",),
        trains=False,
    ),
    "fig4a": Recipe(
        "Trained with Euler, tested with Euler, midpoint and rk4",
        steps_figure("Trained with Euler"),
    ),
    "fig4b": Recipe("Trained and tested with rk4", steps_figure("Trained with rk4")),
    "fig4c": Recipe(
        "Trained with Fehlberg 2(1), tested with Fehlberg 2(1) and Dopri5",
        tolerances_figure("Trained with Fehlberg 2(1)"),
        (CHOSEN_TOLERANCES,),
    ),
    "fig4d": Recipe(
        "Trained and tested with Dopri5",
        tolerances_figure("Trained with Dopri5"),
        (CHOSEN_TOLERANCES,),
    ),
    "fig5": Recipe(
        "Step adaptation: test accuracy with the training solver and a finer one, and number of "
        "steps, during training",
        figure_5,
        (
            "the finer solver during training is rk4 with as many steps (at least 16)",
            "the moments are the eighths of the run of the first seed, at which Euler, midpoint "
            "and rk4 take as many steps as the training solver takes next",
        ),
    ),
    "table1": Recipe(
        "Table 1, concentric spheres in two dimensions",
        first_table("spheres"),
        (CRITERION, CERTIFIED),
    ),
    "table1_cifar": Recipe(
        "Table 1, CIFAR-10", first_table("cifar10"), (CRITERION, CERTIFIED, WITHOUT_EULER)
    ),
    "spheres": Recipe(
        "Critical step size of concentric spheres in 3 and 10 dimensions, Euler",
        critical("dataset"),
        (CRITERION,),
    ),
    "sphere900": Recipe(
        "Critical step size of concentric spheres in 900 dimensions, Euler",
        critical("dataset"),
        (CRITERION,),
    ),
    "minima": Recipe(
        "Critical step size of the three minima, Euler", critical("dataset"), (CRITERION,)
    ),
    "tolerances": Recipe(
        "Trained with Fehlberg 2(1) and with Dopri5 at several tolerances, concentric spheres in "
        "two dimensions",
        tolerances_figure("Trained at several tolerances"),
    ),
    "mnist": Recipe("Critical step size of MNIST, Euler", critical("dataset"), (CRITERION,)),
}
