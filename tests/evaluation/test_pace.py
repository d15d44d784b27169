"""Pieces of work are reported with the time that they take at the speed so far."""

from __future__ import annotations

from trueode.evaluation.pace import Pace


def test_the_time_of_a_piece_follows_from_the_speed_so_far() -> None:
    told: list[str] = []
    seconds = iter([0.0, 0.0, 4.0, 9.0, 9.0, 10.0])
    pace = Pace(told.append, lambda: next(seconds))
    pace("first", 100)  # takes 4 s
    pace("second", 200)  # is expected to take 8 s, and takes 5 s: 3 s for a hundred
    pace("unknown")
    pace("third", 300)
    pace("short", 10)
    assert told == ["first", "second, about 8 s", "unknown", "third, about 9 s", "short"]
