"""Compare the efficiency of embedded methods with SciPy's, on the 25 problems of DETEST.

    python benchmarks/detest.py                  dopri5 with RK45, bosh3 with RK23: a minute
    python benchmarks/detest.py --methods tsit5  tsit5 with SciPy's method of the same order

Both sides solve each problem with tolerances (relative and absolute alike) from 1e-3 to 1e-10, RK23
and its peer to 1e-7. The ratio compares the numbers of field evaluations **for the same error** at
the end, against DOP853 with a tolerance of 1e-13: the logarithm of the evaluations is interpolated
over the logarithm of the error, and averaged over the errors that both sides reach. The smallest of
these errors is a hundred times the error of the reference.

The problems: Hull, Enright, Fellen & Sedgwick, Comparing numerical methods for ordinary
differential equations, SIAM J. Numer. Anal. 9, 1972; classes A (single equations), B (small
systems), C (moderate systems), D (orbits), E (of higher order).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from scipy.integrate import solve_ivp

from trueode import Adaptive, solve

Array = np.ndarray
Field = Callable[[float, Array], Array]
Runs = Sequence[tuple[float, int]]
END = 20.0
PEERS = {"dopri5": "RK45", "tsit5": "RK45", "bosh3": "RK23"}
TOLERANCES = {"RK45": np.logspace(-3, -10, 15), "RK23": np.logspace(-3, -7, 9)}


def scalar(field: Callable[[float, float], float]) -> Field:
    """A single equation as a system of one."""
    return lambda x, y: np.array([field(x, y[0])])


def linear(matrix: Array) -> Field:
    return lambda x, y: matrix @ y


def chain(rates: Array) -> Field:
    """A radioactive decay chain: each substance decays into the next one."""
    return linear(np.diag(np.append(-rates, 0.0)) + np.diag(rates, -1))


def diffusion(n: int) -> Field:
    return linear(
        np.diag(np.full(n, -2.0)) + np.diag(np.ones(n - 1), 1) + np.diag(np.ones(n - 1), -1)
    )


def torus(x: float, y: Array) -> Array:
    r = np.hypot(y[0], y[1])
    return np.array([-y[1] - y[0] * y[2] / r, y[0] - y[1] * y[2] / r, y[0] / r])


MASSES = np.array(
    [
        0.000954786104043,
        0.000285583733151,
        0.0000437273164546,
        0.0000517759138449,
        0.00000277777777778,
    ]
)
PLANETS = np.array(
    [
        [
            [3.42947415189, 3.35386959711, 1.35494901715],
            [-0.557160570446, 0.505696783289, 0.230578543901],
        ],
        [
            [6.64145542550, 5.97156957878, 2.18231499728],
            [-0.415570776342, 0.365682722812, 0.169143213293],
        ],
        [
            [11.2630437207, 14.6952576794, 6.27960525067],
            [-0.325325669158, 0.189706021964, 0.0877265322780],
        ],
        [
            [-30.1552268759, 1.65699966404, 1.43785752721],
            [-0.0240476254170, -0.287659532608, -0.117219543175],
        ],
        [
            [-21.1238353380, 28.4465098142, 15.3882659679],
            [-0.176860753121, -0.216393453025, -0.0148647893090],
        ],
    ]
)


def outer_planets(x: float, y: Array) -> Array:
    """Five planets, relative to the sun; ``y`` holds positions, then velocities."""
    z, velocity = y.reshape(2, 5, 3)
    pull = z / np.linalg.norm(z, axis=1, keepdims=True) ** 3
    apart = z[None] - z[:, None]  # from the planet of the row to that of the column
    distances = np.linalg.norm(apart, axis=2)
    np.fill_diagonal(distances, 1.0)
    others = (
        np.einsum("k,jki->ji", MASSES, apart / distances[..., None] ** 3)
        - MASSES @ pull
        + MASSES[:, None] * pull
    )
    force = 2.95912208286 * (others - (1.00000597682 + MASSES[:, None]) * pull)
    return np.concatenate([velocity.ravel(), force.ravel()])


def orbit(x: float, y: Array) -> Array:
    r = np.hypot(y[0], y[1]) ** 3
    return np.array([y[2], y[3], -y[0] / r, -y[1] / r])


def ellipse(e: float) -> tuple[Field, list[float]]:
    """Two bodies with eccentricity ``e``: field and initial state."""
    return orbit, [1 - e, 0.0, 0.0, ((1 + e) / (1 - e)) ** 0.5]


def unit(n: int) -> list[float]:
    return [1.0] + [0.0] * (n - 1)


PROBLEMS: dict[str, tuple[Field, Sequence[float]]] = {
    "A1": (scalar(lambda x, y: -y), [1.0]),
    "A2": (scalar(lambda x, y: -(y**3) / 2), [1.0]),
    "A3": (scalar(lambda x, y: y * np.cos(x)), [1.0]),
    "A4": (scalar(lambda x, y: y / 4 * (1 - y / 20)), [1.0]),
    "A5": (scalar(lambda x, y: (y - x) / (y + x)), [4.0]),
    "B1": (lambda x, y: np.array([2 * (y[0] - y[0] * y[1]), -(y[1] - y[0] * y[1])]), [1.0, 3.0]),
    "B2": (
        linear(np.array([[-1.0, 1.0, 0.0], [1.0, -2.0, 1.0], [0.0, 1.0, -1.0]])),
        [2.0, 0.0, 1.0],
    ),
    "B3": (lambda x, y: np.array([-y[0], y[0] - y[1] ** 2, y[1] ** 2]), [1.0, 0.0, 0.0]),
    "B4": (torus, [3.0, 0.0, 0.0]),
    "B5": (
        lambda x, y: np.array([y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]]),
        [0.0, 1.0, 1.0],
    ),
    "C1": (chain(np.ones(9)), unit(10)),
    "C2": (chain(np.arange(1.0, 10.0)), unit(10)),
    "C3": (diffusion(10), unit(10)),
    "C4": (diffusion(51), unit(51)),
    "C5": (outer_planets, np.concatenate([PLANETS[:, 0].ravel(), PLANETS[:, 1].ravel()]).tolist()),
    "D1": ellipse(0.1),
    "D2": ellipse(0.3),
    "D3": ellipse(0.5),
    "D4": ellipse(0.7),
    "D5": ellipse(0.9),
    "E1": (
        lambda x, y: np.array([y[1], -(y[1] / (x + 1) + (1 - 0.25 / (x + 1) ** 2) * y[0])]),
        [0.6713967071418030, 0.09540051444747446],
    ),
    "E2": (lambda x, y: np.array([y[1], (1 - y[0] ** 2) * y[1] - y[0]]), [2.0, 0.0]),
    "E3": (
        lambda x, y: np.array([y[1], y[0] ** 3 / 6 - y[0] + 2 * np.sin(2.78535 * x)]),
        [0.0, 0.0],
    ),
    "E4": (lambda x, y: np.array([y[1], 0.032 - 0.4 * y[1] ** 2]), [30.0, 0.0]),
    "E5": (lambda x, y: np.array([y[1], np.sqrt(1 + y[1] ** 2) / (25 - x)]), [0.0, 0.0]),
}


@cache
def reference(problem: str) -> Array:
    field, start = PROBLEMS[problem]
    return solve_ivp(field, (0.0, END), start, method="DOP853", rtol=1e-13, atol=1e-15).y[:, -1]


def error(problem: str, end: Array) -> float:
    """The largest error of a component, relative to the largest component (at least 1)."""
    exact = reference(problem)
    return float(np.abs(end - exact).max() / max(1.0, np.abs(exact).max()))


@cache
def theirs(problem: str, method: str) -> Runs:
    """Errors and evaluations of SciPy's method with each tolerance."""
    field, start = PROBLEMS[problem]
    found = (
        solve_ivp(field, (0.0, END), start, method, rtol=tol, atol=tol)
        for tol in TOLERANCES[method]
    )
    return [(error(problem, solution.y[:, -1]), solution.nfev) for solution in found]


def ours(problem: str, method: str) -> Runs:
    """Errors and evaluations of a method of this package."""
    field, start = PROBLEMS[problem]
    z0 = torch.tensor(start, dtype=torch.float64)
    runs = []
    for tol in TOLERANCES[PEERS[method]].tolist():
        solver = Adaptive(method, tol, tol, max_steps=1_000_000)
        with torch.no_grad():
            found = solve(
                lambda t, z: torch.from_numpy(field(float(t), z.numpy())),
                z0,
                (0.0, END),
                solver=solver,
            )
        runs.append((error(problem, found.z.numpy()), found.nfe))
    return runs


def compare(a: Runs, b: Runs) -> float:
    """The evaluations of ``a`` relative to those of ``b`` for the same error.

    The mean is over the errors that both reach. Errors are sorted, because by chance a loose
    tolerance may end with a smaller error than a tight one: the smallest error is assigned to the
    most evaluations.
    """
    (x, f), (y, g) = (np.sort(np.log(runs), axis=0).T for runs in (a, b))
    at = np.linspace(max(x[0], y[0]), min(x[-1], y[-1]), 1000)
    return float(np.exp((np.interp(at, x, f[::-1]) - np.interp(at, y, g[::-1])).mean()))


def ratio(problem: str, method: str) -> float:
    """The evaluations of a method relative to its peer's, for the same error."""
    return compare(ours(problem, method), theirs(problem, PEERS[method]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--methods", nargs="+", choices=PEERS, default=["dopri5", "bosh3"], help="embedded methods"
    )
    methods = parser.parse_args().methods
    torch.set_num_threads(1)
    rows = []
    print("| problem |" + "".join(f" {method} / {PEERS[method]} |" for method in methods))
    print("|---" * (1 + len(methods)) + "|")
    for problem in PROBLEMS:
        rows.append([ratio(problem, method) for method in methods])
        print(f"| {problem} |" + "".join(f" {x:.3f} |" for x in rows[-1]), flush=True)
    summary = {"geometric mean": np.exp(np.log(rows).mean(axis=0)), "largest": np.max(rows, axis=0)}
    for name, values in summary.items():
        print(f"| {name} |" + "".join(f" {x:.3f} |" for x in values))


if __name__ == "__main__":
    main()
