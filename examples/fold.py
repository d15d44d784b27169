"""Two steps of rk4, with and without the discretisation-error penalty: a fold, and none.

Trains the same network to tell a disc from the ring around it, with two steps of rk4, once with the
penalty in the loss. Draws the trajectories of both models under these two steps and under the exact
flow:

    python examples/fold.py
"""

from __future__ import annotations

import argparse

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from trueode import DiscretisationPenalty, FixedStep, NeuralODE, solve
from trueode.fields import build_field
from trueode.figures import save
from trueode.figures.theme import colour, new_figure, style

COARSE, EXACT = FixedStep("rk4", n_steps=2), FixedStep("rk4", n_steps=256)


def points(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points ``(n, 1, 2)`` of a disc and of the ring around it, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(2, (n,), generator=generator)
    part, turn = torch.rand(2, n, generator=generator)
    radius = torch.where(label == 1, 0.9 + 0.2 * part, 0.5 * part.sqrt())
    angle = 2 * torch.pi * turn
    return (radius * torch.stack([angle.cos(), angle.sin()])).T[:, None], label


def train(iterations: int, penalty: DiscretisationPenalty | None) -> NeuralODE:
    """A Neural ODE with a linear classifier, trained through two steps of rk4."""
    torch.manual_seed(0)
    field = build_field("linear_odenet", (1, 2), hidden=32, act="tanh")
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    model = NeuralODE(field, downstream=classifier, solver=COARSE)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for iteration in range(iterations):
        x, y = points(128, seed=1 + iteration)
        logits = model(x)
        loss = nn.functional.cross_entropy(logits, y)
        if penalty is not None and penalty.due(iteration):
            finer = model(penalty.part(x), penalty.partner(COARSE, iteration))
            loss = loss + penalty(penalty.part(logits), finer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def draw(axes: Axes, model: NeuralODE, x: Tensor, y: Tensor, solver: FixedStep) -> None:
    """Draw trajectories under a solver: hollow at the start, filled at the end."""
    times = torch.linspace(0, 1, min(solver.n_steps, 64) + 1)
    paths = solve(model.field, x, solver=solver, save_at=times).zs.flatten(2).numpy()
    for label in (0, 1):
        own, tint = paths[:, y == label], colour(label)
        axes.plot(own[..., 0], own[..., 1], color=tint, linewidth=0.7, alpha=0.6)
        axes.plot(*own[0].T, "o", markerfacecolor="white", markeredgecolor=tint, markersize=4)
        axes.plot(*own[-1].T, "o", color=tint, markersize=4)


@torch.no_grad()
def classes(model: NeuralODE, x: Tensor, solver: FixedStep) -> Tensor:
    """The predicted classes under a solver."""
    return model(x, solver).argmax(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--figure", default="fold.png")
    args = parser.parse_args()
    x, y = points(2000, seed=0)
    with style():
        figure = new_figure(8.0, 8.1)
        panels = figure.subplots(2, 2, gridspec_kw={"hspace": 0.2, "wspace": 0.15})
        for (coarse, exact), penalty in zip(panels.T, (None, DiscretisationPenalty()), strict=True):
            model = train(args.iterations, penalty)
            name = "without the penalty" if penalty is None else "with the penalty"
            scores = []
            for axes, solver, how in ((coarse, COARSE, "two steps"), (exact, EXACT, "exact flow")):
                draw(axes, model, x[:150], y[:150], solver)
                found = classes(model, x, solver)
                scores.append(100 * (found == y).float().mean().item())
                axes.set_title(f"{name}: {how}, {scores[-1]:.0f} %")
            limits = torch.tensor([[axes.get_xlim(), axes.get_ylim()] for axes in (coarse, exact)])
            low, high = limits[..., 0].amin(0), limits[..., 1].amax(0)
            centre, half = (low + high) / 2, float((high - low).max()) / 2
            (left, right), (bottom, top) = ((float(c) - half, float(c) + half) for c in centre)
            for axes in (coarse, exact):  # the same square
                axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
            flips = 100 * (classes(model, x, COARSE) != classes(model, x, EXACT)).float().mean()
            print(
                f"{name}: accuracy {scores[0]:.1f} % with two steps of rk4, {scores[1]:.1f} % "
                f"under the exact flow; {flips:.1f} % of the predictions change"
            )
        for axes in panels[1]:
            axes.set_xlabel("$z_1$")
        for axes in panels[:, 0]:
            axes.set_ylabel("$z_2$")
        print("drawn:", save(figure, args.figure))


if __name__ == "__main__":
    main()
