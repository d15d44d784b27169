"""Plan and carry out the cases of all attacks, and tabulate their outcomes."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import NamedTuple

from campaign import data, directories, disk, kills, options
from campaign.place import Fault, Place

ATTACKS: dict[str, Callable[[int, Place], str]] = {
    "kills": kills.attempt,
    "directories": directories.attempt,
    "options": options.attempt,
    "data": data.attempt,
    "disk": disk.attempt,
}
EACH = dict.fromkeys(ATTACKS, 1) | {"options": options.EACH}  # attacks per case
LONGEST = 600  # printed characters of a case
WHOLE = {"kills": 200, "directories": 500, "options": 10_000, "data": 150, "disk": 60}
SHORT = {"kills": 2, "directories": 4, "options": 200, "data": 4, "disk": 1}
GOOD = ("equal", "told", "done")
FAULTS = ("traceback", "hang", "different", "outside", "exit code")


class Tried(NamedTuple):
    """The outcome of a case.

    Attributes:
        attack: name of the attack.
        number: number of the case.
        what: what was done.
        outcome: ``"equal"``, bit for bit; ``"told"``, a message and exit code 1 or 2; ``"done"``,
            success, but the damage left nothing to compare with; or one of ``FAULTS``.
        told: details of a fault.
        seconds: duration.
    """

    attack: str
    number: int
    what: str
    outcome: str
    told: str
    seconds: float

    @property
    def fault(self) -> bool:
        """Whether the outcome is a fault."""
        return self.outcome not in GOOD


def attempt(attack: str, number: int, seed: int, folder: Path) -> Tried:
    """Carry out a case, which depends only on the attack, its number and the seed.

    Args:
        attack: name of the attack.
        number: number of the case.
        seed: seed of the campaign.
        folder: folder of the campaign, which keeps the files that cases share.
    """
    begin = time.perf_counter()
    here = Path(tempfile.mkdtemp(dir=folder, prefix=f"{attack}-{number}-"))
    place, told = Place(here, folder / "shared", Random(f"{seed} {attack} {number}")), ""
    try:
        outcome = ATTACKS[attack](number, place)
    except Fault as fault:
        outcome, told = fault.outcome, fault.told
    finally:
        shutil.rmtree(here, ignore_errors=True)
    return Tried(
        attack, number, place.what[:LONGEST], outcome, told[-LONGEST:], time.perf_counter() - begin
    )


def plan(numbers: Mapping[str, int]) -> list[tuple[str, int]]:
    """Order the cases such that all attacks advance together.

    Args:
        numbers: the number of tries by attack.
    """
    counts = {attack: -(-number // EACH[attack]) for attack, number in numbers.items()}
    cases = [
        ((number + 0.5) / count, attack, number)
        for attack, count in counts.items()
        for number in range(count)
    ]
    return [(attack, number) for _, attack, number in sorted(cases)]


def carry_out(
    cases: Iterable[tuple[str, int]], seed: int, folder: Path, processes: int, until: float
) -> Iterator[Tried]:
    """Carry out cases in several processes.

    No case starts after the time ``until`` of `time.monotonic`.
    """
    left = iter(cases)
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        running = {pool.submit(attempt, *case, seed, folder) for case in islice(left, processes)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                case = next(left, None) if time.monotonic() < until else None
                if case is not None:
                    running.add(pool.submit(attempt, *case, seed, folder))
                yield future.result()


def table(tried: Sequence[Tried]) -> str:
    """A table with one row per attack."""
    head = ["attack", "tried", *GOOD, *FAULTS]
    rows = [head, ["---"] * len(head)]
    for attack in ATTACKS:
        outcomes = [case.outcome for case in tried if case.attack == attack]
        if outcomes:
            counts = [
                outcomes.count(outcome) * (EACH[attack] if outcome in GOOD else 1)
                for outcome in (*GOOD, *FAULTS)
            ]
            rows.append([attack, *map(str, (len(outcomes) * EACH[attack], *counts))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
