"""The report of `gpu.py`: what was wanted, what was measured, and what is missing and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from command import short
from gpu_bench import Bench, Row

Sections = Mapping[str, Mapping[str, Any]]


class Target(NamedTuple):
    """Something wanted.

    Attributes:
        what: it, in words.
        wanted: the limit.
        unit: of the figure: "x" for ratios, which must be at least the limit; others at most.
        rows: the rows that the figure comes from, as (section, row, column).
        figure: computes it.
    """

    what: str
    wanted: float
    unit: str
    rows: tuple[tuple[str, str, str], ...]
    figure: Callable[..., float] = lambda x: x


def ratio(theirs: float, own: float) -> float:
    return theirs / own


def speedup(what: str, wanted: float, theirs: str, own: str) -> Target:
    """A ratio of two times of training steps."""
    sides = [("diffrax" if "diffrax" in name else "speed", name, "ms") for name in (theirs, own)]
    return Target(what, wanted, "x", tuple(sides), ratio)


def least_diffrax() -> Target:
    """The fastest way of trueode against the faster gradient of diffrax."""
    rows = (
        ("diffrax", "sphere2, diffrax, IEEE", "ms"),
        ("diffrax", "sphere2, diffrax, direct, IEEE", "ms"),
        ("speed", "sphere2, trueode, graphs, IEEE", "ms"),
        ("speed", "sphere2, trueode, kernel, IEEE", "ms"),
    )
    return Target(
        "Sphere2 step against jitted diffrax, IEEE",
        5,
        "x",
        rows,
        lambda one, other, graphs, kernel: min(one, other) / min(graphs, kernel),
    )


SPHERE, ODENET = "Sphere2 step against torchdiffeq", "odenet step against torchdiffeq"
TARGETS = (
    speedup(
        f"{SPHERE}, with graphs, IEEE",
        20,
        "sphere2, torchdiffeq, IEEE",
        "sphere2, trueode, graphs, IEEE",
    ),
    speedup(
        f"{SPHERE}, with the kernel, IEEE",
        60,
        "sphere2, torchdiffeq, IEEE",
        "sphere2, trueode, kernel, IEEE",
    ),
    least_diffrax(),
    *(
        speedup(
            f"{ODENET}, {precision} both",
            1.25,
            f"odenet, torchdiffeq, {precision}",
            f"odenet, trueode, graphs, {precision}",
        )
        for precision in ("IEEE", "TF32")
    ),
    speedup(
        f"{ODENET}, bf16 against its default, TF32",
        2,
        "odenet, torchdiffeq, TF32",
        "odenet, trueode, graphs, bf16",
    ),
    Target(
        "verdict on an untrained odenet, 128 channels, 512 images",
        300,
        "s",
        (("audits", "odenet, time of a verdict", "seconds"),),
    ),
    Target(
        "Figure 5's command, one seed, paper's size, TF32",
        10,
        "min",
        (("figure5", "tf32", "minutes"),),
    ),
    *(
        Target(f"waits of the host: {row}", 0, "", (("waits", row, "waits"),))
        for row in ("euler, 8 steps, Backprop", "training steps, images, Euler")
    ),
)


def judged(target: Target, sections: Sections, on_gpu: bool) -> Row:
    """Figure and result of a target: met, missed, or why it is unmeasured."""
    values, why = [], ""
    for section, name, column in target.rows:
        found = sections[section]
        known = next((row for row in found["rows"] if row["name"] == name), {})
        if column in known:
            values.append(known[column])
        else:
            reason = known.get("missing") or known.get("error") or found["why"] or found["status"]
            why = why or f"unmeasured: {name}: {reason}"
    row: Row = {"target": target.what, "wanted": wanted(target), "figure": "–", "result": why}
    if not on_gpu:
        return {**row, "result": "unmeasured: no GPU"}
    if len(values) < len(target.rows):
        return row
    figure = target.figure(*values)
    met = figure >= target.wanted if target.unit == "x" else figure <= target.wanted
    projected = any(
        row.get("projected") == "yes"
        for section, name, _ in target.rows
        for row in sections[section]["rows"]
        if row["name"] == name
    )
    row["figure"] = f"{short(figure)} {target.unit}{' (projected)' if projected else ''}".strip()
    return {**row, "result": "met" if met else "missed"}


def wanted(target: Target) -> str:
    sign = "≥" if target.unit == "x" else "≤"
    return f"{sign} {target.wanted:g} {target.unit}".strip()


def write_report(bench: Bench, works: Iterable[str]) -> dict[str, Any]:
    """Write ``report.md`` and ``report.json``; return what the latter holds."""
    sections = {name: replace(bench, section=name).read() for name in works}
    for found in sections.values():
        if found["status"] == "running":
            found.update(status="stopped", why="the call was ended")
    report = {
        "device": bench.device,
        "tiny": bench.tiny,
        "targets": [judged(target, sections, bench.on_gpu) for target in TARGETS],
        "sections": sections,
    }
    text = json.dumps(report, indent=1, ensure_ascii=False)
    (bench.out / "report.json").write_text(text + "\n", encoding="utf-8")
    (bench.out / "report.md").write_text(in_markdown(report), encoding="utf-8")
    return report


def in_markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    parts = ["# Report of `benchmarks/gpu.py`", ""]
    parts += [f"`--device {report['device']}`{', tiny sizes' if report['tiny'] else ''}.", ""]
    parts += ["## Targets", "", table(report["targets"]), ""]
    parts += ["## Sections", "", table(summary(report["sections"])), ""]
    for name, found in report["sections"].items():
        if found["rows"]:
            parts += [f"## {name}", "", table(found["rows"]), ""]
    return "\n".join(parts).rstrip() + "\n"


def short_report(report: Mapping[str, Any]) -> str:
    """Targets and sections alone."""
    return f"{table(report['targets'])}\n\n{table(summary(report['sections']))}\n"


def summary(sections: Sections) -> list[Row]:
    """A row for each section."""
    return [
        {
            "section": name,
            "status": found["status"],
            "seconds": found["seconds"],
            "rows": len(found["rows"]),
            "missing": sum("missing" in row for row in found["rows"]),
            "why": found["why"],
        }
        for name, found in sections.items()
    ]


def table(rows: list[Row]) -> str:
    """Rows as Markdown; their columns in the order in which they first appear."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[cell(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return short(value)
    return str(value).replace("|", "\\|").replace("\n", " ")
