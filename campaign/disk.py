"""The disk becomes full under a run, at a file operation or in the middle of a write; then it has
space again.

The run ends with a message, and goes on as if nothing had happened.
"""

from __future__ import annotations

from functools import partial

from campaign.kills import both, go_on
from campaign.operations import at_operation, refuse, refuse_at_byte
from campaign.place import Place
from campaign.results import compare, results
from campaign.runs import KINDS, run_of, undisturbed

SMALLEST = 8_000  # bytes that a file may have at least, so that the run can say what is wrong


def attempt(number: int, place: Place) -> str:
    """Fill the disk, and let the run go on when there is space."""
    kind = KINDS[number % len(KINDS)]
    expected, operations = undisturbed(kind, place.shared)
    run = run_of(kind, place.shared)
    if place.random.random() < 0.5:
        first = place.random.randint(1, operations)
        full = partial(at_operation, first, refuse)
        place.what = f"{kind}, no space from operation {first}"
    else:
        size = place.random.randint(SMALLEST, 60_000)
        full = partial(refuse_at_byte, size)
        place.what = f"{kind}, no space for more than {size} bytes of a file"
    place.watch()
    place.command(run.command, run.words, before=partial(both, full, run.before))
    place.command(run.command, go_on(place, run), codes=[0], before=run.before)
    compare(results(place.run), results(expected))
    return "equal"
