"""Audit models that packages ship, built as their own documentation builds them.

    python benchmarks/published.py              all models: a quarter of an hour on two cores
    python benchmarks/published.py moons board  some of them
    python benchmarks/published.py --page       write the page from the results

Each file of ``examples/published`` is a model. The packages are those of the extra ``published``.
Results go to ``docs/published.json``, the table to ``docs/published.md``.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from machine import processor, version

from trueode import Audit, audit
from trueode.auditing.drawing import seed_all
from trueode.files import plain

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "examples" / "published"
RESULTS, PAGE = ROOT / "docs" / "published.json", ROOT / "docs" / "published.md"
NAMES = sorted(path.stem for path in SCRIPTS.glob("*.py"))
HEAD = """# Models that packages ship

Written by `python benchmarks/published.py` on {processor}, one thread, beside other programs: times
are rough. Each model is built as the documentation of its package builds it, trained briefly on the
same machine, and audited as it is: `examples/published/NAME.py`. The packages come with
`pip install "trueode[published]"`. The verdict is about these weights, not about the package. Other
weights, seeds or settings can have another one.

*Changed* are predictions under the exact flow; of a density, the mean change of its logarithm; of a
trajectory, the time up to which it is that of its ODE. *Error* is the RMS difference of the outputs
from the exact flow, relative to their spread. The [audit](audit.md) and [densities and
samplers](densities.md) define the other words.
"""


def run(name: str) -> dict[str, Any]:
    """Train a model and audit it."""
    seed_all(0)
    script, begun = runpy.run_path(str(SCRIPTS / f"{name}.py")), time.perf_counter()
    model, data, how = script["trained"]()
    between = time.perf_counter()
    found = audit(model, data, **{"methods": (), **how})
    ended = time.perf_counter()
    counts = found.decision.counts
    return {
        "what": script["WHAT"],
        "packages": {package: version(package) for package in script["PACKAGES"]},
        "verdict": found.verdict,
        "sentence": found.sentence,
        "solver": found.solver,
        "n": found.n,
        "changed": _changed(found),
        "unresolved": counts.unresolved,
        "error": plain(found.rows[0].output_error),
        "nfe": found.own.nfe,
        "notes": list(found.notes),
        "training_s": round(between - begun, 1),
        "audit_s": round(ended - between, 1),
        "torch": torch.__version__,
        "trueode": version("trueode"),
    }


def _changed(found: Audit) -> str:
    counts = found.decision.counts
    if counts.trajectory is not None:
        return f"t ≤ {counts.trajectory.horizon:.6g}"
    if counts.likelihood is not None:
        return f"{counts.likelihood.mean:.2g} nats"
    return "–" if found.task == "sampler" else f"{counts.changed} of {counts.n}"


def page(results: dict[str, dict[str, Any]]) -> str:
    """The page: a table, and a section for each model."""
    ordered = sorted(results.items(), key=lambda each: (list(each[1]["packages"]), each[0]))
    lines = [
        HEAD.format(processor=processor()),
        "| package | model | solver | verdict | changed | error | evaluations | audit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in ordered:
        package = next(iter(row["packages"]))
        error = "–" if row["error"] is None else f"{row['error']:.2g}"
        lines.append(
            f"| {package} | [{name}](#{name}) | {row['solver']} | "
            f"`{row['verdict']}` | {row['changed']} | {error} | "
            f"{row['nfe']:.4g} | {row['audit_s']:.1f} s |"
        )
    for name, row in ordered:
        versions = ", ".join(f"{package} {number}" for package, number in row["packages"].items())
        lines += [
            f"\n## {name}\n",
            f"{versions}: {row['what']}. Trained in {row['training_s']:.0f} s.\n",
            f"```console\n$ python benchmarks/published.py {name}\n```\n",
            f"> {row['sentence']}\n",
            *(f"* {note}" for note in row["notes"]),
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--page", action="store_true", help="write the page and audit nothing")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(NAMES)}")
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for name in () if arguments.page else arguments.names or NAMES:
        results[name] = run(name)
        print(f"{name}: {results[name]['sentence']}", flush=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
