"""The static parts of a page: headings, the answer, tables, facts, runs, pictures."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Part = Mapping[str, Any]

KINDS = {
    "ode": "A true ODE",
    "solver-dependent": "It depends on its solver",
    "inconclusive": "Undecided",
    "none": "",
}
ROWS = 200  # of the numbers of a chart; more are thinned out, and the table says so
LONG = 100  # characters of an answer that is set smaller
SPARK = (160, 44)  # size of the small picture of a run


def text(value: object) -> str:
    """Any value as text of HTML, also within an attribute."""
    return html.escape(str(value), quote=True)


def number(value: object) -> str:
    """A cell as text: numbers with four digits, nothing as a dash."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def share(value: float | None) -> str:
    """A share in per cent."""
    return "–" if value is None else f"{100 * value:.1f} %"


def header(contents: Part) -> str:
    """The title and the answer in the colour of its kind."""
    answer = contents["answer"]
    status = answer["status"] if answer["status"] in KINDS else "none"
    single = contents.get("kind") in ("run", "audit") and KINDS[status]
    kind = f'<p class="kind">{KINDS[status]}</p>' if single else ""
    sentence = answer["sentence"].replace(" %", "\N{NO-BREAK SPACE}%")
    subtitle = contents.get("subtitle")
    return (
        f"<h1>{text(contents['title'])}</h1>"
        + (f'<p class="subtitle">{text(subtitle)}</p>' if subtitle else "")
        + f'<div id="answer" class="answer {status}">{kind}'
        f'<p class="sentence{" long" if len(sentence) > LONG else ""}">{text(sentence)}</p></div>'
    )


def sections(contents: Part) -> str:
    """All below the answer, from what moves to how it was made."""
    stills = contents.get("stills") or []
    kept = [still for still in stills if not still.get("fallback")]
    spare = [still for still in stills if still.get("fallback")]
    found = ""
    if contents.get("slider"):
        found += _steps(contents["slider"])
    if spare:
        found += f'<section class="spare" aria-label="Still pictures">{_stills(spare)}</section>'
    if kept:
        found += _section("Pictures", _stills(kept))
    if contents.get("charts"):
        figures = "".join(_chart(index, chart) for index, chart in enumerate(contents["charts"]))
        title = "Course of the training" if contents.get("kind") == "run" else "Charts"
        found += _section(title, f'<div class="charts">{figures}</div>')
    if contents.get("runs"):
        found += _section("Runs", _runs(contents["runs"]))
    for index, each in enumerate(contents.get("tables") or []):
        found += _section(
            each["title"],
            table(f"table-{index}", each["title"], each["columns"], each["rows"])
            + (f'<p class="note">{text(each["note"])}</p>' if each.get("note") else ""),
        )
    facts = "".join(_fact(fact) for fact in contents.get("facts") or [])
    return found + (f'<div class="facts">{facts}</div>' if facts else "")


def table(
    name: str,
    title: str,
    columns: Sequence[Part],
    rows: Iterable[Part],
    sortable: bool = True,
) -> str:
    """A table that scrolls sideways where it is too wide.

    Args:
        name: its identifier in the page.
        title: its caption.
        columns: their ``label`` and whether they are ``numeric``.
        rows: their ``cells`` (text, numbers or None) and whether they are ``marked``.
        sortable: whether the script makes its headings buttons.
    """
    aligned = [' class="number"' if column.get("numeric") else "" for column in columns]
    heads = "".join(
        f'<th scope="col"{align}>{text(column["label"])}</th>'
        for column, align in zip(columns, aligned, strict=True)
    )
    lines = []
    for row in rows:
        cells = [
            f"<td{align}{_value(cell) if sortable else ''}>{text(number(cell))}</td>"
            for cell, align in zip(row["cells"], aligned, strict=True)
        ]
        lines.append(f"<tr{' class=marked' if row.get('marked') else ''}>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" role="group" tabindex="0" aria-labelledby="{name}-title">'
        f'<table id="{name}"{" data-sortable" if sortable else ""}>'
        f'<caption id="{name}-title">{text(title)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{text(title)}</h2>{body}</section>"


def _value(cell: object) -> str:
    """What a cell is sorted by, where this is not its text."""
    if cell is None:
        return ' data-value=""'
    return f' data-value="{cell!r}"' if type(cell) in (int, float) else ""


def _steps(slider: Part) -> str:
    """Where the script draws the solvers from coarse to fine, and their numbers as a table."""
    stops = slider["stops"]
    changed = slider.get("changed") or [None] * len(stops)
    name = slider.get("metric_name") or "metric"
    kinds: list[tuple[str, str, Callable[[Any], Any]]] = [
        ("nfe", "evaluations", lambda value: value),
        ("accuracy", "accuracy", share),
        ("flips", "unlike the exact flow", share),
        ("metric", name, lambda value: value),
    ]
    wanted = [kind for kind in kinds if any(stop.get(kind[0]) is not None for stop in stops)]
    columns: list[Part] = [{"label": "solver"}]
    columns += [{"label": label, "numeric": True} for _, label, _ in wanted]
    rows = []
    for stop, samples in zip(stops, changed, strict=True):
        line = [stop["label"], *(show(stop.get(key)) for key, _, show in wanted)]
        rows.append({"cells": [*line, None if samples is None else len(samples)]})
    columns.append({"label": "unlike the training solver", "numeric": True})
    numbers = table("stops", "Every solver's numbers", columns, rows, sortable=False)
    return _section(
        "From coarse to fine",
        f'<div id="steps"></div><details class="numbers" open><summary>Numbers</summary>{numbers}'
        "</details>",
    )


def _chart(index: int, chart: Part) -> str:
    """Where the script draws a chart, and its numbers as a table."""
    x, lines = chart["x"]["values"], chart["lines"]
    every = -(-len(x) // ROWS) or 1
    title = f"{chart['title']}: numbers" + (f", one row of {every}" if every > 1 else "")
    rows = [
        {"cells": [x[i], *(line["values"][i] for line in lines)]} for i in range(0, len(x), every)
    ]
    heads = [chart["x"]["label"], *(line["label"] for line in lines)]
    columns = [{"label": head, "numeric": True} for head in heads]
    numbers = table(f"chart-{index}-numbers", title, columns, rows, sortable=False)
    return (
        f'<figure class="chart" data-chart="{index}"><figcaption>{text(chart["title"])}'
        f'</figcaption><div class="plot"></div><details class="numbers" open>'
        f"<summary>Numbers</summary>{numbers}</details></figure>"
    )


def _fact(fact: Part) -> str:
    items = "".join(f"<li>{text(item)}</li>" for item in fact["items"])
    code = fact.get("code")
    return (
        f"<section><h2>{text(fact['title'])}</h2>"
        + (f"<ul>{items}</ul>" if items else "")
        + (f'<pre tabindex="0"><code>{text(code)}</code></pre>' if code else "")
        + "</section>"
    )


def _stills(stills: Iterable[Part]) -> str:
    return "".join(
        f'<figure class="still"><img src="{text(still["src"])}" alt="{text(still["alt"])}">'
        + (f"<figcaption>{text(still['title'])}</figcaption>" if still.get("title") else "")
        + "</figure>"
        for still in stills
    )


def _runs(runs: Sequence[Part]) -> str:
    """The runs of a sweep: small multiples, each of which opens its options, and a table."""
    axes = list(dict.fromkeys(axis for run in runs for axis in run["values"]))
    name = next(filter(None, (run.get("metric_name") for run in runs)), "metric")
    columns = [
        {"label": "run"},
        *({"label": axis, "numeric": _numeric(runs, axis)} for axis in axes),
        {"label": name, "numeric": True},
        {"label": "verdict"},
        {"label": "status"},
    ]
    rows = [
        {
            "cells": [
                run["name"],
                *(run["values"].get(axis) for axis in axes),
                run["metric"],
                run["verdict"],
                run["status"],
            ]
        }
        for run in runs
    ]
    cards = "".join(f"<li>{_card(run, name)}</li>" for run in runs)
    return f'<ul class="runs">{cards}</ul>{table("runs", "All runs", columns, rows)}'


def _numeric(runs: Sequence[Part], axis: str) -> bool:
    return all(isinstance(run["values"].get(axis), (int, float, type(None))) for run in runs)


def _card(run: Part, metric: str) -> str:
    verdict = run["verdict"]
    status = verdict if verdict in KINDS else "none"
    place = ", ".join(f"{axis} {number(value)}" for axis, value in run["values"].items())
    return (
        f'<p class="name">{text(place or run["name"])}</p>{_spark(run)}'
        f'<p class="verdict {status}">{text(verdict or run["status"])}</p>'
        f"<p>{text(metric)} {text(number(run['metric']))}</p>"
        f"<details><summary>Options<span class=unseen> of {text(run['name'])}</span></summary>"
        f'<pre tabindex="0"><code>{text(run["options"])}</code></pre></details>'
    )


def _spark(run: Part) -> str:
    """A line without axes; a gap where a number is missing."""
    width, height = SPARK
    values = run.get("spark") or []
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return ""
    low, span = min(known), (max(known) - min(known)) or 1.0
    path, pen = "", "M"
    for index, value in enumerate(values):
        if value is None:
            pen = "M"
            continue
        x = 2 + (width - 4) * index / (len(values) - 1)
        y = height - 3 - (height - 6) * (value - low) / span
        path += f"{pen}{x:.1f} {y:.1f}"
        pen = "L"
    alt = f"course: from {known[0]:.3g} to {known[-1]:.3g}, least {low:.3g}"
    return (
        f'<svg class="spark" viewBox="0 0 {width} {height}" role="img" aria-label="{alt}">'
        f'<path d="{path}"/></svg>'
    )
