"""Runs of a sweep in a separate process."""

from __future__ import annotations

import os
from pathlib import Path

from trueode.sweeps import worker


def test_a_link_in_the_place_of_a_log_is_replaced(tmp_path: Path) -> None:
    mine, log = tmp_path / "mine.txt", tmp_path / "logs" / "run.txt"
    mine.write_text("mine")
    log.parent.mkdir()
    log.symlink_to(mine)
    with worker._into(log):
        os.write(1, b"said")
    assert (mine.read_text(), log.read_text(), log.is_symlink()) == ("mine", "said", False)


def test_a_log_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "run.txt").mkdir()
    status, why = worker.perform({}, tmp_path / "run.txt")
    assert status == "failed"
    assert "run.txt" in why
