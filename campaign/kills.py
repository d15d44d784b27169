"""Kill runs and sweeps before file operations, in the middle of writes and at random times.

They are then resumed, and must give the undisturbed result.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from campaign.operations import at_operation, die, die_at_byte
from campaign.place import Ended, Place
from campaign.results import compare, results
from campaign.runs import KINDS, SWEEP, Run, run_of, undisturbed

WORKERS = 20  # one case in so many kills the worker of a sweep
GOLDEN = 0.6180339887  # the fractional parts of its multiples are spread evenly
KILLED = (-signal.SIGKILL, -signal.SIGXFSZ)


def attempt(number: int, place: Place) -> str:
    """Kill a run one to three times, or the worker of a sweep, then let it finish."""
    if number % WORKERS == WORKERS - 1:
        return _attempt_worker(place)
    kind = KINDS[number % len(KINDS)]
    expected, operations = undisturbed(kind, place.shared)
    run, random = run_of(kind, place.shared), place.random
    first = 1 + int(operations * (number // len(KINDS) * GOLDEN % 1))
    moments: list[tuple[str, float]] = [("operation", first)]
    for _ in range(random.randrange(3)):
        how = random.choice(("operation", "byte", "second"))
        until = {"operation": operations, "byte": 40_000, "second": 2.0}[how]
        moments.append(
            (how, random.uniform(0, until) if how == "second" else random.randint(1, int(until)))
        )
    random.shuffle(moments)
    place.what = f"{kind}, killed at {', '.join(f'{how} {when:.4g}' for how, when in moments)}"
    place.watch()
    for how, when in moments:
        if _killed(place, run, how, when).code == 0:
            break
    place.command(run.command, go_on(place, run), codes=[0], before=run.before)
    compare(results(place.run), results(expected))
    return "equal"


def _attempt_worker(place: Place) -> str:
    """Kill or terminate only the worker of a sweep.

    The sweep must do all runs, or report which ones are missing.
    """
    expected, _ = undisturbed(SWEEP, place.shared)
    run, seconds = run_of(SWEEP, place.shared), place.random.uniform(0, 1)
    number = place.random.choice((signal.SIGKILL, signal.SIGTERM))
    place.what = f"the worker of a sweep, {number.name} {seconds:.2g} s after its first run begins"
    place.watch()
    sweep = place.start(run.command, run.words)
    while sweep.is_alive() and not list(place.run.glob("runs/*")):
        sweep.join(0.05)
    sweep.join(seconds)
    children = Path(f"/proc/{sweep.pid}/task/{sweep.pid}/children")
    for worker in children.read_text().split() if sweep.is_alive() else ():
        os.kill(int(worker), number)
    if place.ended(sweep, (0, 1)).code == 1:
        place.command(run.command, run.words, codes=[0])
    compare(results(place.run), results(expected))
    return "equal"


def go_on(place: Place, run: Run) -> list[str]:
    """The arguments that start a run, or resume it if it has started."""
    begun = (place.run / "config.yaml").exists()
    return run.resume if begun or run.command == SWEEP else run.words


def _killed(place: Place, run: Run, how: str, when: float) -> Ended:
    before: dict[str, Callable[[], None]] = {
        "operation": partial(at_operation, int(when), die),
        "byte": partial(die_at_byte, int(when)),
    }
    child = place.start(
        run.command, go_on(place, run), before=partial(both, before.get(how), run.before)
    )
    if how == "second":
        child.join(when)
        child.kill()
    return place.ended(child, (0, *KILLED))


def both(one: Callable[[], Any] | None, other: Callable[[], Any] | None) -> None:
    """Call both functions, except None."""
    for function in filter(None, (one, other)):
        function()
