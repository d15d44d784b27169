"""Sections of `gpu.py` that run the paper's commands on images, for as long as there is time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from gpu_bench import COMMANDS_NEED, Bench, MissingError, Row, need
from gpu_runs import words_of


def figure5(bench: Bench) -> str:
    """Figure 5's command, one seed, in the fastest precision of the device."""
    precision = "float32" if bench.where.type == "cpu" else "tf32"
    return figure(bench, "fig5", precision=precision)


def figure4d(bench: Bench) -> str:
    """Figure 4 d's command at tolerance 1e-3, one seed."""
    return figure(bench, "fig4d", tol=bench.size(1e-3, 1e-1))


def figure(bench: Bench, name: str, **changed: Any) -> str:
    """Train as a figure of the paper does, until it is done or the time is over; "continues" if a
    further call would go on.
    """
    need(*COMMANDS_NEED, "PIL")
    from trueode.reproduction.plans import PAPER

    options = {
        **PAPER[name]["base"],
        "dataset": "image_folder",
        "data_dir": bench.images or made_up(bench),
        "output_dir": bench.out / "runs",
        "name": name,
        **changed,
    }
    if bench.tiny:
        options |= {"niter": 2, "ch_residual_block": 2, "batch_size": 4, "num_threads": 0}
        options |= {"verdict_budget": 0.01, "test_factor_list": [1.0], "torch_threads": 1}
    run = bench.out / "runs" / name
    begun = any((run / "checkpoints").glob("*.pt"))
    how = {"resume": True} if begun else {"overwrite": True}
    child = bench.command("train", *words_of({**options, **how}), *bench.flags)
    begin, before = time.time(), seconds_of(run)
    child.join(max(1.0, bench.left - bench.size(20.0, 5.0)))
    interrupted = child.is_alive()
    if interrupted:  # it saves a checkpoint
        assert child.pid is not None
        os.kill(child.pid, signal.SIGINT)
    child.join()
    if child.exitcode and not interrupted:
        raise RuntimeError(f"it ended with code {child.exitcode}; the section's log shows why")
    wall = time.time() - begin
    row = bench.row(
        options.get("precision", "float32"),
        lambda: pace(run, options["niter"], wall - (seconds_of(run) - before)),
        again=True,
    )
    return "done" if row.get("projected") == "no" or not interrupted else "continues"


def seconds_of(run: Path) -> float:
    """Seconds of training so far."""
    from trueode.runs import read_history

    path = run / "history.csv"
    found = read_history(path).get("seconds") if path.exists() else None
    return found[-1] if found else 0.0


def pace(run: Path, niter: int, around: float) -> Row:
    """The speed of a training, and the time that all of it takes.

    ``around``: seconds of the command beside those of training: start-up, and at the end verdict
    and pictures.
    """
    from trueode.runs import read_history

    history = read_history(run / "history.csv") if (run / "history.csv").exists() else {}
    if len(history.get("iteration", [])) < 2:
        raise MissingError("too few iterations were logged before the time was over")
    done, taken = history["iteration"], history["seconds"]
    half = next(i for i, n in enumerate(done) if n >= done[-1] / 2 or i == len(done) - 2)
    rate = (done[-1] - done[half]) / (taken[-1] - taken[half])
    whole = taken[-1] + (niter - done[-1]) / rate
    tested = [x for x in history.get("test_accuracy", []) if x == x]
    return {
        "iterations": f"{done[-1]:.0f} of {niter}",
        "per second": rate,
        "minutes": (whole + around) / 60,
        "projected": "yes" if done[-1] < niter else "no",
        "seconds beside training": around,
        "steps": history["n_steps"][-1],
        "test accuracy": f"{tested[-1]:.1%}" if tested else "",
    }


def made_up(bench: Bench) -> Path:
    """A folder of a few images; only for tiny sizes."""
    if not bench.tiny:
        raise MissingError("no --images DIR")
    from PIL import Image

    folder = bench.out / "data" / "photographs"
    for part, n in (("train", 4), ("test", 1)):
        for label in ("cat", "dog"):
            (folder / part / label).mkdir(parents=True, exist_ok=True)
            for i in range(n):
                noise = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / part / label / f"{i}.png")
    return folder
