"""One self-contained page: its numbers and still pictures are static, a script moves the rest.

Names are text, whatever they contain: everything passes through :func:`~trueode.report.markup.text`
or is JSON without ``<``; only the page's own script may run (by its hash), and nothing is loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from trueode.figures.theme import BLUE, DARK, GREEN, GREY, PALETTE, VERMILION
from trueode.files import plain, write_atomic
from trueode.report import markup

Contents = Mapping[str, Any]

DRAWN = ("slider", "charts")  # what the script needs; all else is static
SCRIPTS = ("draw.js", "chart.js", "plane.js", "series.js", "steps.js", "page.js")
AMBER, PAPER, NIGHT = "#b07d00", "#fdfcfa", "#16181c"
STATUS = {"ode": GREEN, "solver-dependent": VERMILION, "inconclusive": AMBER, "none": GREY}


def write_report(contents: Contents, path: str | Path) -> Path:
    """Write the page of ``contents`` to ``path``, atomically.

    Args:
        contents: the ``title``, the ``answer``, and what is shown below: the solvers from coarse to
            fine (``slider``), ``charts``, ``runs``, ``tables``, ``facts`` and ``stills``.
        path: the file.

    Returns:
        The path of the page.

    Raises:
        OSError: the file cannot be written.
    """
    page = make_page(contents)
    target = Path(path)
    # a file's name may hold bytes that are no text
    write_atomic(target, lambda file: file.write(page.encode(errors="backslashreplace")))
    return target


def make_page(contents: Contents) -> str:
    """The page as HTML."""
    shown: dict[str, Any] = plain(contents)
    script = "\n".join(_asset(name) for name in SCRIPTS)
    data = json.dumps({key: shown.get(key) for key in DRAWN}, allow_nan=False)
    parts = {
        "policy": _policy(script),
        "title": markup.text(shown["title"]),
        "style": _asset("page.css") + _colours(),
        "header": markup.header(shown),
        "main": markup.sections(shown),
        "data": data.replace("<", r"\u003c"),
        "script": script,
    }
    # in one pass, so that what is put in is not searched
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return (files("trueode.report") / "assets" / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """What the page may do: run its own script, show pictures that it holds, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def _colours() -> str:
    """The theme's colours as properties: of classes and answers, on paper and in the dark."""
    light = _properties({"paper": PAPER, "ink": DARK, "link": BLUE}, towards=DARK, share=0.3)
    dark = _properties({"paper": NIGHT, "ink": "#e6e4df", "link": "#7cc0ee"}, "#ffffff", 0.35)
    tints = "".join(
        f".own-{k}, .line-{k} {{ --tint: var(--class-{k}); }}\n"
        f".end[data-now='{k}'] {{ fill: var(--class-{k}); }}\n"
        for k in range(len(PALETTE))
    )
    return (
        f":root {{ {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{tints}"
    )


def _properties(base: Mapping[str, str], towards: str, share: float) -> str:
    """Colours of lines and marks, and (``-text``) such that words in them can be read."""
    paper = base["paper"]
    dark = paper == NIGHT
    found = dict(base)
    for index, tint in enumerate(PALETTE):
        found[f"class-{index}"] = _mixed(tint, "#ffffff", 0.25) if dark else tint
    for name, tint in STATUS.items():
        found[f"status-{name}"] = _mixed(tint, "#ffffff", 0.25) if dark else tint
        found[f"status-{name}-text"] = _mixed(tint, towards, share)
    for name, amount in (("muted", 0.36), ("rule", 0.86), ("wash", 0.95)):
        found[name] = _mixed(base["ink"], paper, amount)
    return " ".join(f"--{name}: {value};" for name, value in found.items())


def _mixed(colour: str, other: str, share: float) -> str:
    """A colour with a share of another one."""
    channels = (
        round((1 - share) * int(colour[i : i + 2], 16) + share * int(other[i : i + 2], 16))
        for i in (1, 3, 5)
    )
    return "#" + "".join(f"{channel:02x}" for channel in channels)
