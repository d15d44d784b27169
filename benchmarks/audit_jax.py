"""Audits of the same weights in diffrax, torchdiffeq and trueode: evaluations and seconds.

`python benchmarks/audit_jax.py` prints a table. The first audit of a model of JAX compiles; the
second one in a process does not.
"""

from __future__ import annotations

import time
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from trueode import FixedStep, NeuralODE, audit

N, REPEATS, METHODS = 1000, 5, ("euler", "rk4", "dopri5")


class Field(nn.Module):
    """2-32-32-2."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)
        )

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        derivative: Tensor = self.net(z)
        return derivative


class OfTorchdiffeq(nn.Module):
    def __init__(self, field: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.field, self.head = field, head

    def forward(self, x: Tensor) -> Tensor:
        times = torch.tensor([0.0, 1.0]).to(x)
        output: Tensor = self.head(
            odeint(self.field, x, times, method="euler", options={"step_size": 0.25})[-1]
        )
        return output


class OfDiffrax(eqx.Module):
    layers: list[tuple[Any, Any]]
    head: tuple[Any, Any]

    def field(self, t: Any, y: Any, args: Any) -> Any:
        *inner, (weight, bias) = self.layers
        for w, b in inner:
            y = jnp.tanh(w @ y + b)
        return weight @ y + bias

    def __call__(self, x: Any) -> Any:
        term = diffrax.ODETerm(lambda t, y, args: self.field(t, y, args))
        weight, bias = self.head
        return weight @ diffrax.diffeqsolve(term, diffrax.Euler(), 0, 1, 0.25, x).ys[-1] + bias


def trained() -> NeuralODE:
    """A model that was fitted to a disc in a ring."""
    torch.manual_seed(0)
    model = NeuralODE(Field(), None, nn.Linear(2, 2), FixedStep("euler", n_steps=4))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        x, y = rings(256)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def rings(n: int) -> tuple[Tensor, Tensor]:
    """Points of a disc, 0, and of a ring around it, 1."""
    y = torch.randint(2, (n,))
    radius, angle = y + 0.5 * torch.rand(n), 2 * torch.pi * torch.rand(n)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), y


def main() -> None:
    """Print the table."""
    model, (x, y) = trained(), rings(N)
    head = model.downstream
    layers = [z for z in (*model.field.net, head) if isinstance(z, nn.Linear)]  # type: ignore[union-attr]
    arrays = [tuple(jnp.asarray(w.detach().numpy()) for w in (z.weight, z.bias)) for z in layers]
    in_jax = OfDiffrax(arrays[:-1], arrays[-1])
    of = {
        "trueode": (model, (x, y), {}),
        "torchdiffeq": (OfTorchdiffeq(model.field, head), (x, y), {}),
        "diffrax": (
            in_jax,
            tuple(jnp.asarray(z.numpy()) for z in (x, y)),
            {"call": lambda model, batch: jax.vmap(model)(batch[0])},
        ),
    }
    print(
        "| library | flips | evaluations of the exact flow | seconds | of the verdict alone | "
        "the first time | of which compilation |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, (each, data, how) in of.items():
        least, first, found = [], 0.0, None
        for methods in (METHODS, ()):
            seconds = []
            for _ in range(REPEATS + 1):
                start = time.perf_counter()
                last = audit(each, data, methods=methods, **how)
                seconds.append(time.perf_counter() - start)
                if found is None:
                    found, first = last, seconds[0]
            least.append(min(seconds[1:]))
        assert found is not None
        assert found.exact is not None
        print(
            f"| {name} | {found.flips} | {found.exact.evaluations:,} | {least[0]:.2f} | "
            f"{least[1]:.2f} | {first:.1f} | {found.provenance.get('compilation', 0.0):.1f} |"
        )


if __name__ == "__main__":
    main()
