"""One data set, one network, two step sizes: a ResNet in disguise and an ODE.

Trains the same network on concentric spheres with coarse and with fine Euler steps, evaluates both
under other solvers, and draws the trajectories and accuracies (the picture of the README; the
paper's Figure 1):

    python examples/collapse.py
"""

from __future__ import annotations

import argparse

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from trueode import FixedStep, NeuralODE, solve
from trueode.data import Batches, Dataset, load_dataset
from trueode.fields import build_field
from trueode.figures import save
from trueode.figures.theme import DARK, colour, new_figure, style

VIEW = {"xlim": (-3, 3), "ylim": (-1.5, 3.5)}  # some trajectories leave it
METHODS = {"euler": "o", "midpoint": "x", "rk4": "^"}


def train(data: Dataset, n_steps: int, iterations: int) -> NeuralODE:
    """A Neural ODE with a linear classifier, trained through ``n_steps`` Euler steps."""
    torch.manual_seed(0)
    field = build_field("simple_odenet", data.sample_shape, hidden=32, act="relu")
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    model = NeuralODE(field, downstream=classifier, solver=FixedStep("euler", n_steps=n_steps))
    # the decay keeps the flow gentle enough to draw
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, iterations)
    batches = Batches(data.train, 128, seed=0, shuffle=True).from_iteration(0)
    for _, (batch, _) in zip(range(iterations), batches, strict=False):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch.x), batch.y).backward()
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def accuracy(model: NeuralODE, x: Tensor, y: Tensor, solver: FixedStep) -> float:
    """The accuracy under a solver, in per cent."""
    return 100 * (model(x, solver).argmax(1) == y).float().mean().item()


@torch.no_grad()
def draw_paths(axes: Axes, model: NeuralODE, x: Tensor, y: Tensor) -> None:
    """Draw trajectories under the training solver: hollow at the start, filled at the end."""
    times = torch.linspace(0, 1, model.solver.n_steps + 1)
    paths = solve(model.field, x, solver=model.solver, save_at=times).zs.flatten(2).numpy()
    for label in (0, 1):
        own, tint = paths[:, y == label], colour(label)
        axes.plot(own[..., 0], own[..., 1], color=tint, linewidth=0.7, alpha=0.6)
        axes.plot(*own[0].T, "o", markerfacecolor="white", markeredgecolor=tint, markersize=4)
        axes.plot(*own[-1].T, "o", color=tint, markersize=4)
    axes.set(**VIEW, xlabel="$z_1$", aspect="equal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument(
        "--steps",
        type=int,
        nargs=2,
        default=(2, 128),
        help="Euler steps of the coarse and the fine model",
    )
    parser.add_argument("--figure", default="collapse.png")
    args = parser.parse_args()

    data = load_dataset("concentric_sphere2", "./data", seed=0)
    x, y, _ = data.test.batch(torch.arange(len(data.test)))
    tested = [2**k for k in range(9)]
    with style():
        figure = new_figure(8.4, 6.6)
        panels = figure.subplots(
            2,
            2,
            sharey="row",
            gridspec_kw={"height_ratios": [1.8, 1], "hspace": 0.25, "wspace": 0.08},
        )
        for (paths, curve), n_steps in zip(panels.T, args.steps, strict=True):
            model = train(data, n_steps, args.iterations)
            draw_paths(paths, model, x[:120], y[:120])
            paths.set_title(f"trained with {n_steps} Euler steps")
            for k, (method, marker) in enumerate(METHODS.items()):
                scores = [accuracy(model, x, y, FixedStep(method, n_steps=n)) for n in tested]
                curve.plot(
                    tested,
                    scores,
                    marker=marker,
                    color=colour(k),
                    markerfacecolor="none",
                    label=method,
                )
            own = accuracy(model, x, y, model.solver)
            curve.plot([n_steps], [own], "o", color=DARK, markersize=9, label="as trained")
            curve.set(xlabel="steps in the test", xscale="log", xticks=tested, xticklabels=tested)
            curve.minorticks_off()
            exact = accuracy(model, x, y, FixedStep("rk4", n_steps=256))
            print(
                f"trained with {n_steps} Euler steps: accuracy {own:.1f} %, "
                f"with 256 steps of rk4 {exact:.1f} %"
            )
        panels[0, 0].set_ylabel("$z_2$")
        panels[1, 0].set_ylabel("test accuracy (%)")
        panels[1, 1].legend(loc="lower right")
        print("drawn:", save(figure, args.figure))


if __name__ == "__main__":
    main()
