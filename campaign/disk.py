"""Fill the disk under a run, at a file operation or in the middle of a write, then free it.

The run must end with a message, and its continuation must give the undisturbed result.
"""

from __future__ import annotations

from functools import partial

from campaign.kills import both, go_on
from campaign.operations import at_operation, refuse, refuse_at_byte
from campaign.place import Place
from campaign.results import compare, results
from campaign.runs import KINDS, run_of, undisturbed

SMALLEST = 8_000  # least size limit of files in bytes; below it the run cannot write its message


def attempt(number: int, place: Place) -> str:
    """Run until the disk is full, then resume the run with space."""
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
