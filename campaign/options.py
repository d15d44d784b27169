"""Read nonsensical options and plans, given as words and as YAML, a hundred per case.

Options that are accepted must be the same after they are written and read again.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from campaign.place import RUN, Fault, Place, bounded
from tests import processes

EACH = 100  # option sets per case
SLOW = 30.0  # seconds until reading one counts as a hang
WORDS = (
    *(
        "0",
        "-1",
        "1",
        "2",
        "1e9",
        "1e19",
        "1e30",
        "1e308",
        "1e400",
        "-1e308",
        "5e-324",
        "nan",
        "-inf",
        "9" * 5000,
        "0.1",
    ),
    *(
        "",
        "x]",
        "o[",
        "[/]",
        "[bold]",
        ":x:",
        "\udcff",
        "a\0b",
        "a\nb",
        "☃",
        "none",
        "true",
        "false",
        "0x10",
        "1_000",
        "1e-4",
    ),
    *(
        "True",
        "1,2",
        "..",
        "/",
        "~",
        "'",
        "- a",
        "{a: b}",
        "-x",
        "--",
        "=",
        "é",
        "\u2028",
        "\ufeff",
        "%s",
        "$HOME",
        "rk4",
    ),
)
SCALARS = (
    *WORDS[:13], "2001-99-99", "2001-02-30", "!!float abc", "!!int ''", "!!int x", "0x_", "0b_",
    "!!timestamp foo", "12:30:45", "0x" + "f" * 5000, "[" * 3000 + "]" * 3000,
    "{a: " * 1500 + "1" + "}" * 1500, "!!python/object/apply:os.getcwd []", "!!set {a}",
    "&a [*a]", "*b", "!!binary aGVsbG8=", "|\n  text", "'", '"\\ud800"', '"\\x00"', "{", "]", "<<",
    "~", "[1, 2]", "{a: 1}", "? a", "!!null x", "!x y", "yes", "0o17", "1_000", ".inf", "-.NaN",
    "1e3", "[0.5, 1]", "[euler]", "\t1", "# note", "%TAG", "...",
)  # fmt: skip
BOMB = "x0: &x0 [1, 1]\n" + "".join(
    f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}, *x{i - 1}]\n" for i in range(1, 25)
)


def attempt(number: int, place: Place) -> str:
    """Read a hundred option sets in a child process."""
    seed = place.random.random()
    place.what = f"{EACH} option sets"
    place.watch()
    place.run.mkdir()
    child = processes.start_work(partial(_read_all, seed), place.work)
    try:
        place.ended(child, (0,))
    except Fault as fault:
        last = place.run / "last.txt"
        place.what = last.read_text(encoding="utf-8") if last.exists() else place.what
        raise fault from None
    wrong: list[list[str]] = json.loads((place.run / "found.json").read_text())
    for outcome, what, told in wrong:
        others = f" (and {len(wrong) - 1} more of this case)" if len(wrong) > 1 else ""
        place.what = what
        raise Fault(outcome, told + others)
    return "equal"


def _read_all(seed: float) -> int:
    """Read option sets and write the faults to ``found.json``."""
    bounded(None)
    os.chdir(RUN)
    random, wrong = Random(seed), []
    for _ in range(EACH):
        what, read = _one(random)
        Path("last.txt").write_text(what, encoding="utf-8")
        begin = time.perf_counter()
        fault = _fault(read)
        if time.perf_counter() - begin > SLOW:
            fault = ("hang", f"{time.perf_counter() - begin:.0f} s")
        if fault is not None:
            wrong.append((fault[0], what, fault[1]))
    Path("found.json").write_text(json.dumps(wrong))
    return 0


def _fault(read: Callable[[], bool]) -> tuple[str, str] | None:
    """The fault of reading an option set: a wrong exception, or options that do not come back."""
    from trueode.errors import TrueodeError

    try:
        return None if read() else ("different", "not the same after writing and reading")
    except TrueodeError as refused:
        return (
            None
            if 0 < len(str(refused)) < 20_000
            else ("different", f"a message of {len(str(refused))} characters")
        )
    except BaseException as failure:
        place = traceback.extract_tb(failure.__traceback__)[-1]
        return (
            "traceback",
            f"{type(failure).__name__}: {str(failure)[:100]} "
            f"({Path(place.filename).name}:{place.lineno})",
        )


def _one(random: Random) -> tuple[str, Callable[[], bool]]:
    """An option set or a plan: its text, and a function that reads it."""
    kind = random.random()
    if kind < 0.5:
        words = list(_words(random))
        return ascii(words), partial(_options, words)
    if kind < 0.8:
        content = _spoilt(_lines(random, random.randint(0, 6)), random)
        Path("options.yaml").write_bytes(content)
        return ascii(content), partial(_options, ["--options_file", "options.yaml"])
    content = _spoilt(_plan(random), random)
    Path("plan.yaml").write_bytes(content)
    return ascii(content), partial(_read_plan, Path("plan.yaml"))


def _options(words: list[str]) -> bool:
    from trueode.options import dump_yaml, load_options

    options, _ = load_options(words)
    Path("again.yaml").write_text(dump_yaml(options), encoding="utf-8")
    return load_options(["--options_file", "again.yaml"])[0] == options


def _read_plan(path: Path) -> bool:
    from trueode.sweeps import SweepDirectory, read_plan

    plan = read_plan(path)
    directory = SweepDirectory("sweep")
    with directory:
        directory.keep(plan)
    again = directory.read_plans()
    for kept in directory.plans.iterdir():
        kept.unlink()
    return [[run.hash for run in each.runs] for each in again] == [[run.hash for run in plan.runs]]


def _words(random: Random) -> Iterator[str]:
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        item, value = _choice(random)
        if random.random() < 0.05:
            yield random.choice((*WORDS, f"--{item[:-1]}", f"--{item}"))
        elif random.random() < 0.5:
            yield f"--{item}={value}"
        else:
            yield from (f"--{item}", value, *([value] if random.random() < 0.1 else []))


def _choice(random: Random) -> tuple[str, str]:
    """An option and a valid or invalid value."""
    from trueode.options import describe

    item = random.choice(describe())
    good = [*item.choices, str(item.default).lower() if not item.several else "1"]
    return item.name, random.choice(good if random.random() < 0.6 else WORDS)


def _lines(random: Random, number: int, indent: str = "") -> str:
    lines = []
    for _ in range(number):
        name, value = _choice(random)
        value = random.choice(SCALARS) if random.random() < 0.5 else value
        name = (
            random.choice(("<<", "? [a]", "1", "null", "[a]", "*a", "☃", '"\\0"'))
            if random.random() < 0.04
            else name
        )
        lines.append(f"{indent}{name}: {value}\n")
    return "".join(lines)


def _plan(random: Random) -> str:
    """The text of a plan of a few runs, or of far too many."""
    text = f"base:\n{_lines(random, random.randint(0, 2), '  ')}axes:\n"
    if random.random() < 0.02:
        return (
            text
            + "".join(f"  {name}: [1, 2]\n" for name in ("lr", "niter", "tol"))
            + f"  random_seed: {list(range(20_000))}\n"
        )
    for _ in range(random.randint(0, 3)):
        name, value = _choice(random)
        values = [value, *(random.choice((*SCALARS, *WORDS)) for _ in range(random.randint(0, 2)))]
        text += f"  {name}: [{', '.join(values)}]\n"
    return text + random.choice(
        (
            "",
            "",
            "grids: [{name: a}, {axes: {lr: [1, 2]}}]\n",
            "grids: [1]\n",
            "name: ../x\n",
            "more: 1\n",
        )
    )


def _spoilt(text: str, random: Random) -> bytes:
    """A text as bytes, sometimes damaged."""
    content: Any = bytearray(text.encode("utf-8", "surrogatepass"))
    how = random.random()
    if how < 0.1:
        for _ in range(random.randint(1, 4) if content else 0):
            content[random.randrange(len(content))] = random.randrange(256)
    elif how < 0.13:
        content = BOMB.encode() + content
    elif how < 0.16:
        content = text.encode("utf-16", "surrogatepass")
    elif how < 0.18:
        content = bytearray(random.randbytes(50))
    return bytes(content)
