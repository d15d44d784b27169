"""A short campaign finds no fault, and a planted fault of each kind is found."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest

from campaign import cases, kills, place, runs
from campaign.__main__ import main
from campaign.cases import ATTACKS, FAULTS, SHORT, attempt, plan, table
from campaign.place import Place

SEED = 1


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a campaign, whose shared files are made once."""
    return tmp_path_factory.mktemp("campaign")


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_short_campaign(attack: str, folder: Path) -> None:
    tried = [attempt(*case, SEED, folder) for case in plan({attack: SHORT[attack]})]
    assert not [case for case in tried if case.fault], table(tried)
    assert [case.number for case in tried] == list(range(len(tried)))
    assert {path.name for path in folder.iterdir()} <= {"shared"}


def crash() -> None:
    import trueode.cli.main as module

    def load_options(*_: object) -> NoReturn:
        raise ValueError("a defect")

    vars(module)["load_options"] = load_options


def write_outside() -> None:
    Path("..", "mine", "precious.txt").write_text("mine no more")


def make_outside() -> None:
    Path("stray.txt").write_text("")


def given(before: Callable[[], object]) -> Callable[[int, Place], str]:
    """An attack that runs one command after a planted fault."""

    def attempt(number: int, place: Place) -> str:
        place.watch()
        place.command("config", [], before=before)
        return "equal"

    return attempt


def spoilt(number: int, place: Place) -> str:
    """An attack on a run with a falsified expected result."""
    history = runs.undisturbed("plain", place.shared)[0] / "history.csv"
    history.write_text(history.read_text().replace("1", "2", 1))
    return kills.attempt(number, place)


PLANTED = {
    "traceback": given(crash),
    "hang": given(partial(time.sleep, 60)),
    "outside": given(write_outside),
    "exit code": given(partial(sys.exit, 7)),
    "different": spoilt,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cases.ATTACKS, "kills", PLANTED[fault])
    if fault == "hang":
        monkeypatch.setattr(place, "PATIENCE", 1.0)
    assert main(["--seed", "1", "--only", "kills:0"]) == 1
    printed = capsys.readouterr().out
    assert f"\n{fault}: " in printed
    assert "python -m campaign --seed 1 --only kills:0" in printed


def test_a_file_that_is_made_outside_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cases.ATTACKS, "data", given(make_outside))
    assert attempt("data", 0, 1, tmp_path).told == "made work/stray.txt"


def test_a_case_is_the_same_each_time(tmp_path: Path) -> None:
    """It depends only on the seed, the attack and the number."""
    one, again, other = (attempt("data", 1, seed, tmp_path) for seed in (1, 1, 2))
    assert (one.what, one.outcome) == (again.what, again.outcome)
    assert one.what != other.what


def test_attacks_advance_together() -> None:
    order = plan({"kills": 2, "options": 400, "disk": 0})
    assert sorted(order) == [
        ("kills", 0),
        ("kills", 1),
        *(("options", number) for number in range(4)),
    ]
    assert {attack for attack, _ in order[:3]} == {"kills", "options"}
