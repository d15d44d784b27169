"""Contents of pages, of fields whose flow is known in closed form."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

HOSTILE = "<img src=x onerror=\"document.title='owned'\"></script><b>'&\u2028\u2029\udc80{{data}}"
STEPS = (1, 2, 4, 8, 16, 32)
TRAINED = 4
SIZE = 120
DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgAB"
    "SK+kcQAAAABJRU5ErkJggg=="
)


def twist(z: Array) -> Array:
    """Rotation whose speed falls with the radius: circles, at a constant speed each."""
    speed = 4.5 * np.exp(-0.35 * (z**2).sum(-1, keepdims=True))
    return speed * np.stack([-z[..., 1], z[..., 0]], -1)


def euler(z: Array, steps: int) -> Array:
    """All states ``(steps + 1, n, 2)`` of Euler's method over the unit interval."""
    states = [z]
    for _ in range(steps):
        states.append(states[-1] + twist(states[-1]) / steps)
    return np.stack(states)


def exact(z: Array, points: int) -> Array:
    """The flow itself: each state turns about the origin."""
    angle = 4.5 * np.exp(-0.35 * (z**2).sum(-1))[None] * np.linspace(0, 1, points)[:, None]
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([c * z[:, 0] - s * z[:, 1], s * z[:, 0] + c * z[:, 1]], -1)


def classes_of(z: Array) -> NDArray[np.int64]:
    """The linear classifier at the end."""
    found: NDArray[np.int64] = (z[..., 0] + 0.4 * z[..., 1] > 0).astype(int)
    return found


def coded(values: NDArray[Any], kind: str) -> str:
    """An array as the page reads it."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode()


def plane_slider(n: int = 120) -> dict[str, Any]:
    """A classifier that was trained by four steps of Euler and needs them."""
    z0 = np.random.default_rng(0).normal(size=(n, 2)) * 0.9
    side = np.linspace(-3.2, 3.2, SIZE)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    labels = classes_of(euler(z0, TRAINED)[-1])
    reference = classes_of(exact(z0, 2)[-1])
    stops, paths, maps, predicted = [], [], [], []
    for steps in (*STEPS, None):
        states = exact(z0, 65) if steps is None else euler(z0, steps)
        ends = exact(grid, 2)[-1] if steps is None else euler(grid, steps)[-1]
        now = classes_of(states[-1])
        stops.append(
            {
                "label": "exact flow" if steps is None else f"euler, {steps} steps",
                "short": "exact" if steps is None else str(steps),
                "mark": {None: "exact", TRAINED: "training"}.get(steps, ""),
                "nfe": 320.0 if steps is None else float(steps),
                "accuracy": float((now == labels).mean()),
                "flips": float((now != reference).mean()),
                "metric": None,
            }
        )
        paths.append(states.transpose(1, 0, 2))
        maps.append(coded(classes_of(ends), "u1"))
        predicted.append(now.tolist())
    trained = np.array(predicted[STEPS.index(TRAINED)])
    return {
        "stops": stops,
        "metric_name": "accuracy",
        "plane": {
            "bounds": [-3.2, 3.2, -3.2, 3.2],
            "labels": ["z1", "z2"],
            "projected": False,
            "note": "States of the ODE block, from start (ring) to end (dot), over the class that "
            "an input at that place gets.",
        },
        "paths": [coded(each, "<f4") for each in paths],
        "n_paths": n,
        "n_points": [each.shape[1] for each in paths],
        "n_samples": n,
        "classes": labels.tolist(),
        "predicted": predicted,
        "changed": [np.flatnonzero(np.array(now) != trained).tolist() for now in predicted],
        "regions": {"width": SIZE, "height": SIZE, "maps": maps},
        "class_names": ["inner", "outer"],
        "series": None,
    }


def course(n: int = 60) -> list[dict[str, Any]]:
    """Charts of a training run."""
    t = np.arange(n) * 50
    loss = 0.7 * np.exp(-t / 600) + 0.02
    return [
        {
            "id": "loss",
            "title": "Loss and accuracy",
            "x": {"label": "iteration", "log": False, "values": t.tolist()},
            "lines": [
                {"label": "loss, training", "values": loss.tolist(), "axis": 0},
                {
                    "label": "loss, validation",
                    "values": [None if i % 10 == 3 else v * 1.2 for i, v in enumerate(loss)],
                    "axis": 0,
                },
                {"label": "accuracy", "values": (100 - 50 * loss).tolist(), "axis": 1},
            ],
            "y": {"label": "cross-entropy", "log": True},
            "y2": {"label": "%", "log": False},
            "alt": "The loss falls from 0.7 to 0.02, the accuracy grows to 99 %.",
        },
        {
            "id": "effort",
            "title": "Effort of a solve",
            "x": {"label": "iteration", "log": False, "values": t.tolist()},
            "lines": [
                {"label": "evaluations", "values": [4 + (i > 20) * 4 for i in range(n)], "axis": 0}
            ],
            "y": {"label": "evaluations", "log": False},
            "alt": "The number of evaluations doubles from 4 to 8 at iteration 1050.",
        },
    ]


def solver_table() -> dict[str, Any]:
    """A table with a marked row, a missing number and text."""
    rows = [
        ("euler, 4 steps", 4, 0.4167, "no"),
        ("rk4, 4 steps", 16, 0.0021, "yes"),
        ("midpoint, 16 steps", 32, 0.0, "yes"),
        ("dopri5, 1e-3", 26.5, None, "–"),
    ]
    columns = [("solver", False), ("evaluations", True), ("flips", True), ("safe", False)]
    return {
        "id": "solvers",
        "title": "Solvers",
        "columns": [{"label": label, "numeric": numeric} for label, numeric in columns],
        "rows": [{"cells": list(row), "marked": row[0].startswith("rk4")} for row in rows],
        "note": "The marked one is the cheapest that is safe.",
    }


def facts() -> list[dict[str, Any]]:
    """Lists, with and without code."""
    return [
        {
            "title": "What the audit cannot see",
            "items": [
                "Features in time narrower than 0.0001 of the interval may be missed.",
                "The data are 120 samples drawn from the distribution of the test set.",
            ],
            "code": None,
        },
        {
            "title": "How it was made",
            "items": ["trueode 0.2, torch 2.14, seed 0", "12 s on two cores"],
            "code": "trueode train --dataset rings --solver euler --step_size 0.25 --seed 0",
        },
    ]


def run_page() -> dict[str, Any]:
    """A run in the plane."""
    return {
        "kind": "run",
        "title": "rings-euler-4",
        "subtitle": "A Neural ODE on two classes in the plane, trained by four steps of Euler",
        "answer": {
            "sentence": "This is not an ODE: 42 % of its predictions are its solver's, not its "
            "field's.",
            "status": "solver-dependent",
        },
        "slider": plane_slider(),
        "charts": course(),
        "tables": [solver_table()],
        "facts": facts(),
        "runs": None,
        "stills": [],
    }


def series_page() -> dict[str, Any]:
    """A pendulum without friction, small swings: cosines."""
    t = np.linspace(0, 10, 81)
    starts = np.array([[1.0, 0.0], [0.4, 0.6], [-0.7, 0.3]])
    true = starts[:, :1] * np.cos(t) + starts[:, 1:] * np.sin(t)
    stops, lines = [], []
    for steps in (20, 40, 80, 160, None):
        if steps is None:
            own = true
        else:  # Euler's method turns by atan(h) and grows by sqrt(1 + h²) in each step
            h = 10 / steps
            k = t / h
            grown, angle = (1 + h * h) ** (k / 2), k * np.arctan(h)
            own = grown * (starts[:, :1] * np.cos(angle) + starts[:, 1:] * np.sin(angle))
        gap = float(np.sqrt(((own - true) ** 2).mean()))
        stops.append(
            {
                "label": "exact flow" if steps is None else f"euler, {steps} steps",
                "short": "exact" if steps is None else str(steps),
                "mark": {None: "exact", 80: "training"}.get(steps, ""),
                "nfe": 640.0 if steps is None else float(steps),
                "accuracy": None,
                "flips": None,
                "metric": gap,
            }
        )
        lines.append(own.tolist())
    noise = np.random.default_rng(1).normal(size=true.shape) * 0.04
    return {
        "kind": "audit",
        "title": "pendulum",
        "subtitle": "Three swings over ten seconds",
        "answer": {
            "sentence": "Undecided: 40 trajectories more would tell.",
            "status": "inconclusive",
        },
        "slider": {
            "stops": stops,
            "metric_name": "gap to the exact flow",
            "plane": {},
            "paths": None,
            "n_paths": 0,
            "n_points": [],
            "n_samples": 3,
            "classes": [],
            "predicted": None,
            "changed": [[0, 1, 2], [1, 2], [], [0], [0, 2]],
            "regions": None,
            "class_names": [],
            "series": {
                "t": t.tolist(),
                "lines": lines,
                "exact": true.tolist(),
                "measured": (true + noise).tolist(),
                "labels": ["t in s", "angle"],
            },
        },
        "charts": course()[:1],
        "tables": [],
        "facts": facts()[:1],
        "runs": None,
        "stills": [],
    }


def sweep_page() -> dict[str, Any]:
    """Twelve runs."""
    runs = []
    for k, (seed, h) in enumerate([(s, h) for h in (0.5, 0.25, 0.125, 0.0625) for s in range(3)]):
        verdict = ("solver-dependent", "solver-dependent", "inconclusive", "ode")[k // 3]
        decay = np.exp(-np.arange(40) / (8 + k)) + 0.02 * k
        runs.append(
            {
                "name": f"h={h}-seed={seed}",
                "status": "finished",
                "values": {"step_size": h, "seed": seed},
                "metric": 0.99 - 0.01 * k,
                "metric_name": "accuracy",
                "verdict": verdict,
                "options": f"solver: euler\nstep_size: {h}\nseed: {seed}\n",
                "spark": decay.tolist(),
            }
        )
    runs[4].update(metric=None, verdict="", status="failed", spark=[None, 1.0])
    chart = course()[1] | {"title": "Accuracy over the step size"}
    return {
        "kind": "sweep",
        "title": "step sizes and seeds",
        "subtitle": "12 runs",
        "answer": {"sentence": "Runs are ODEs from a step size of 1/16 down.", "status": "ode"},
        "slider": None,
        "charts": [chart],
        "tables": [],
        "facts": facts()[1:],
        "runs": runs,
        "stills": [],
    }


PAGES = {"run": run_page, "series": series_page, "sweep": sweep_page}


def hostile_page() -> dict[str, Any]:
    """Names everywhere that would like to be more than text."""
    page = run_page()
    page["title"] = page["subtitle"] = page["answer"]["sentence"] = HOSTILE
    page["slider"]["class_names"] = [HOSTILE, HOSTILE]
    page["slider"]["plane"].update(note=HOSTILE, labels=[HOSTILE, HOSTILE])
    for stop in page["slider"]["stops"]:
        stop["label"] = HOSTILE
    for chart in page["charts"]:
        chart.update(id=HOSTILE, title=HOSTILE, alt=HOSTILE)
        chart["x"]["label"] = chart["y"]["label"] = HOSTILE
        chart["lines"][0]["label"] = HOSTILE
    table = page["tables"][0]
    table.update(id=HOSTILE, title=HOSTILE, note=HOSTILE)
    table["columns"][0]["label"] = table["rows"][0]["cells"][0] = HOSTILE
    page["facts"] = [{"title": HOSTILE, "items": [HOSTILE], "code": HOSTILE}]
    page["runs"] = [
        {
            "name": HOSTILE,
            "status": HOSTILE,
            "values": {HOSTILE: HOSTILE},
            "metric": 0.5,
            "metric_name": HOSTILE,
            "verdict": HOSTILE,
            "options": HOSTILE,
            "spark": [1.0, 0.5],
        }
    ]
    page["stills"] = [{"alt": HOSTILE, "title": HOSTILE, "src": DOT}]
    return page
