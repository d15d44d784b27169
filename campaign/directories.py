"""Damage, remove or replace files of runs and sweeps, then run commands that use them.

A command must report what is wrong, or do what it would do without the damage. It must never follow
a link out of the run.
"""

from __future__ import annotations

import os
import shutil
import signal
from functools import partial
from pathlib import Path
from random import Random

from campaign.kills import both
from campaign.operations import at_operation, die
from campaign.place import Place
from campaign.results import compare, newest, results
from campaign.runs import SWEEP, run_of, undisturbed

CODES = (0, 1, 2)
AUDITED = (0, 1, 2, 3, 4)
COMMANDS = ("resume", "overwrite", "infer", "audit")
OF_SWEEPS = ("again", "status")
BYTES = ("truncated", "emptied", "flipped", "garbled", "lengthened")
REPLACED = (
    "deleted",
    "a folder",
    "a link to mine",
    "a broken link to mine",
    "a link to itself",
    "of another run",
)
OTHERS = ("a link instead of its temporary file", *(["forbidden"] if os.geteuid() else []))
FOLDERS = ("deleted", "a file", "a link to mine", "a link to itself", "of another run")


def attempt(number: int, place: Place) -> str:
    """Damage a directory and run a command."""
    random = place.random
    kind = ("plain", "certified", "plain", SWEEP)[number % 4]
    begun = random.random() < 0.5  # not finished
    expected, operations = undisturbed(kind, place.shared)
    run = run_of(kind, place.shared)
    if begun:
        moment = partial(at_operation, random.randint(operations // 3, operations - 2), die)
        place.ended(
            place.start(run.command, run.words, partial(both, moment, run.before)),
            (0, -signal.SIGKILL),
        )
    else:
        shutil.copytree(expected, place.run)
    target = random.choice(sorted(path for path in place.run.rglob("*") if path.suffix != ".part"))
    how = random.choice(FOLDERS if target.is_dir() else random.choice((BYTES, REPLACED, OTHERS)))
    command = random.choice(OF_SWEEPS if kind == SWEEP else COMMANDS)
    name = target.relative_to(place.run)
    place.what = f"{kind}, {'begun' if begun else 'finished'}: {name} {how}; {command}"
    (place.run / "notes.txt").write_text("mine\n")
    tamper(target, how, place, random)
    place.watch()
    code = _give(command, place)
    if how == "forbidden" or target.is_symlink():  # it cannot be read and compared
        _put_away(target)
    if code not in (0, 3, 4):
        return "told"
    lost = _not_comparable(name, how, command, kind)
    if lost is None:
        return "done"
    found, wanted = (
        {
            file: digest
            for file, digest in newest(results(folder)).items()
            if not file.startswith(lost)
        }
        for folder in (place.run, expected)
    )
    compare(found, wanted)
    return "equal"


def _give(command: str, place: Place) -> int:
    run = run_of(SWEEP, place.shared)
    words = {
        "resume": ("train", ["--name", "run", "--resume", "true"]),
        "overwrite": ("train", [*run_of("plain", place.shared).words, "--overwrite", "true"]),
        "infer": ("train", ["--name", "run", "--phase", "infer", "--split", "test"]),
        "audit": ("audit", ["experiments/run", "--methods", "rk4", "--overwrite", "true"]),
        "status": ("sweep", ["status", "experiments/run"]),
        "again": (run.command, run.words),
    }
    name, arguments = words[command]
    codes = AUDITED if command == "audit" else CODES
    return place.command(
        name, arguments, codes=codes, before=run.before if command == "again" else None
    ).code


def _not_comparable(name: Path, how: str, command: str, kind: str) -> tuple[str, ...] | None:
    """The prefixes of the names of files that may differ; None if all files may."""
    if command == "overwrite":
        return () if kind == "plain" else None
    if (
        command not in ("resume", "again")
        or how == "of another run"
        or name.name == "fingerprints.json"
    ):
        return None
    if kind == SWEEP:  # a sweep trusts the results of finished runs
        return None if name.parts[0] == "runs" else (str(name),)
    if name.name == "config.yaml":
        return None if how in ("flipped", "garbled", "lengthened") else ()
    if name.name == "history.csv":
        return (str(name), "figures")
    return () if name.suffix == ".pt" else (str(name),)


def tamper(target: Path, how: str, place: Place, random: Random) -> None:
    """Damage or replace a file or a folder."""
    mine = place.mine / "checkpoints" if target.is_dir() else place.mine / "precious.txt"
    if how == "forbidden":
        target.chmod(0)
    elif how == "a link instead of its temporary file":
        target.with_name(f"{target.name}.part").symlink_to(mine)
    elif how in BYTES:
        target.write_bytes(_damaged(target.read_bytes(), how, random))
    else:
        _put_away(target)
        if how == "a folder":
            (target / "inside").mkdir(parents=True)
        elif how == "a file":
            target.write_text("no folder\n")
        elif how == "a link to mine":
            target.symlink_to(mine)
        elif how == "a broken link to mine":
            target.symlink_to(place.mine / "absent")
        elif how == "a link to itself":
            target.symlink_to(target.name)
        elif how == "of another run":
            _take_over(target, place)


def _take_over(target: Path, place: Place) -> None:
    """Replace a file or folder by one of another kind of run, if there is one with this name."""
    other, _ = undisturbed("series", place.shared)
    found = sorted(other.rglob(target.name)) or sorted(other.rglob(f"*{target.suffix}"))
    if found and found[-1].is_dir():
        shutil.copytree(found[-1], target)
    elif found:
        shutil.copy(found[-1], target)


def _put_away(target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink()


def _damaged(content: bytes, how: str, random: Random) -> bytes:
    if how == "truncated":
        return content[: random.randrange(max(len(content), 1))]
    if how == "flipped":
        changed = bytearray(content)
        for _ in range(random.randint(1, 8) if content else 0):
            changed[random.randrange(len(content))] ^= 1 << random.randrange(8)
        return bytes(changed)
    extra = random.randbytes(random.randint(1, 300))
    return {"emptied": b"", "garbled": extra, "lengthened": content + extra}[how]
