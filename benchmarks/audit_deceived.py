"""Audit hard models whose true share of changed predictions is known, and doses made to deceive.

    python benchmarks/audit_deceived.py                 all models, 300 draws of each dose: hours
    python benchmarks/audit_deceived.py --parts models  the models alone
    python benchmarks/audit_deceived.py --parts models --models lorenz  models with this name
    python benchmarks/audit_deceived.py --parts doses --draws 20 --spreads all some  fewer doses

The models are those of ``hard_in_time.py`` and ``hard_in_state.py``, the doses those of
``doses.py``. The truth never comes from the audit: it is a closed form, a matrix exponential or
SciPy's DOP853 with tolerances of 1e-12. Each model is audited on three samples that share no point,
at a margin of 1 %. Wanted: never `ode` if more than 1 % of the predictions change or no truth
exists; never `solver-dependent` if at most 1 % change; `ode` if at most 0.3 % change;
`solver-dependent` if at least 3 % change.

Right: the share of samples whose prediction under the audit's exact flow is the true one; for
doses, the least share of all draws.

The results, one line each, go to ``audit-deceived-models.jsonl`` and
``audit-deceived-doses.jsonl`` of ``--output_dir``. Later calls continue there; ``--again`` repeats
results of other sources of the package. The tables of all results go to ``audit-deceived.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import mean
from typing import Any

from command import count, tell
from machine import describe, source

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
AUDITS = 3
LIBRARIES = ("torch", "scipy", "torchdiffeq", "torchdyn", "torchode")
PARTS, SPREADS = ("models", "doses"), ("all", "some", "own")
Result = dict[str, Any]


def prepare() -> None:
    """Limit this process to one thread."""
    import torch

    torch.set_num_threads(1)


def names() -> list[str]:
    from hard_in_state import MODELS as OF_STATE
    from hard_in_time import MODELS as OF_TIME

    return [*OF_TIME, *OF_STATE]


def examine(name: str) -> Result:
    """The true share of a model and the results of its audits."""
    from hard_in_state import MODELS as OF_STATE
    from hard_in_time import MODELS as OF_TIME

    kind, build = (OF_TIME | OF_STATE)[name]
    known = build()
    begin = time.perf_counter()
    true = known.share()
    result = {
        "model": name,
        "kind": kind,
        "true": None if math.isnan(true) else true,
        "how": known.how,
    }
    truth = time.perf_counter() - begin
    return {
        **result,
        "truth": truth,
        "audits": [audited(known, known.draw(known.each, k)) for k in range(AUDITS)],
    }


def deceive(form: str, spread: str, width: float, number: int) -> Result:
    """The share of predictions that a dose changes, and the result of its audit."""
    import doses

    made = doses.deceive(doses.Kind(form, spread, width), number)
    kind = {"form": form, "spread": spread, "width": width, "draw": number}
    found = audited(made.known, made.x)
    if found["verdict"] != "error":
        del found["sentence"]  # thousands of them would fill the file
    return {**kind, "true": made.true, "n_steps": made.n_steps, **found}


def audited(known: Any, x: Any) -> Result:
    """The result and the cost of one audit."""
    import torch

    from trueode.auditing import audit
    from trueode.errors import TrueodeError

    with torch.no_grad():
        y = known.model(x) if known.exact is None else known.exact(x.double())
    y = y.argmax(1) if known.task == "classification" else y.float()
    data = [(x, y)] if known.whole else (x, y)
    begin = time.perf_counter()
    try:
        found = audit(known.model, data, task=known.task, methods=(), **known.arguments)
    except TrueodeError as failure:
        return {
            "verdict": "error",
            "sentence": str(failure),
            "seconds": time.perf_counter() - begin,
        }
    counts, exact = found.decision.counts, found.exact
    return {
        "verdict": found.verdict,
        "sentence": found.sentence,
        "seconds": time.perf_counter() - begin,
        "n": counts.n,
        "changed": counts.changed,
        "blown_up": counts.blown_up,
        "unresolved": counts.unresolved,
        "right": found.performance.exact
        if found.performance.name == "accuracy" and known.exact
        else None,
        "evaluations": None if exact is None else exact.evaluations / len(x),
        "seen": None if exact is None or math.isnan(exact.width) else exact.width,
    }


def keep(
    path: Path,
    work: Callable[..., Result],
    jobs: Iterable[tuple[Any, ...]],
    key: Callable[[Result], Hashable],
    processes: int,
    again: bool,
) -> dict[Hashable, Result]:
    """All results of a file, one line each; those of missing jobs are computed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    known = {key(result): result for result in map(json.loads, lines)}
    if again:
        known = {name: result for name, result in known.items() if result["source"] == source()}
    left = [job for job in jobs if job not in known]
    spawned = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(processes, spawned, prepare) as pool,
        path.open("a", encoding="utf-8") as file,
    ):
        for done in as_completed([pool.submit(work, *job) for job in left]):
            result = {**done.result(), "source": source()}
            known[key(result)] = result
            file.write(json.dumps(result) + "\n")
            file.flush()
            tell(" | ".join(row(result) if "model" in result else dose_row(result)))
    return known


def model_key(result: Result) -> Hashable:
    return (result["model"],)


def dose_key(result: Result) -> Hashable:
    return tuple(result[name] for name in ("form", "spread", "width", "draw"))


def complaints(result: Result) -> list[str]:
    """The errors among the verdicts on a model or a dose."""
    from known_flows import judged

    true = math.nan if result["true"] is None else result["true"]
    return list(
        filter(None, (judged(each["verdict"], true) for each in result.get("audits", [result])))
    )


def average(values: Iterable[float | None]) -> float:
    """The mean of the values that are known."""
    known = [value for value in values if value is not None]
    return mean(known) if known else math.nan


def counted(words: Sequence[str]) -> str:
    """The distinct words, with their counts if above 1."""
    numbers = {word: words.count(word) for word in words}
    return ", ".join(word if count == 1 else f"{count} x {word}" for word, count in numbers.items())


COLUMNS = [
    "model",
    "kind",
    "true share",
    "truth by",
    "verdicts",
    "right",
    "evaluations",
    "seconds",
    "width",
    "wrong",
]


def row(result: Result) -> list[str]:
    """The cells of a model in the table."""
    audits = result["audits"]
    return [
        result["model"],
        result["kind"],
        "" if result["true"] is None else f"{100 * result['true']:.2f} %",
        result["how"],
        counted([each["verdict"] for each in audits]),
        f"{100 * average(each.get('right') for each in audits):.1f} %",
        f"{average(each.get('evaluations') for each in audits):.0f}",
        f"{average(each['seconds'] for each in audits):.2f}",
        f"{average(each.get('seen') for each in audits):.2g}",
        counted(complaints(result)),
    ]


def dose_row(result: Result) -> list[str]:
    return [
        *map(str, dose_key(result)),
        f"{100 * result['true']:.1f} %",
        result["verdict"],
        f"{result.get('evaluations') or math.nan:.0f}",
        f"{result['seconds']:.2f}",
    ]


DOSE_COLUMNS = [
    "form", "spread", "width", "draws", "least true share", "false ode", "inconclusive",
    "solver-dependent", "error", "right", "evaluations", "seconds",
]  # fmt: skip


def dose_table(results: Sequence[Result]) -> list[list[str]]:
    """The rows of the table of doses, one per kind."""
    kinds = dict.fromkeys((result["form"], result["spread"], result["width"]) for result in results)
    rows = []
    for kind in kinds:
        drawn = [
            result
            for result in results
            if (result["form"], result["spread"], result["width"]) == kind
        ]
        verdicts = [result["verdict"] for result in drawn]
        rows.append(
            [
                *map(str, kind),
                str(len(drawn)),
                f"{100 * min(result['true'] for result in drawn):.1f} %",
                *(
                    str(verdicts.count(word))
                    for word in ("ode", "inconclusive", "solver-dependent", "error")
                ),
                f"{100 * min(result.get('right', math.nan) for result in drawn):.1f} %",
                f"{average(result.get('evaluations') for result in drawn):.0f}",
                f"{average(result['seconds'] for result in drawn):.2f}",
            ]
        )
    return rows


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _wide(dose: Result) -> bool:
    """Whether a dose is as wide as the features that the audits say they see."""
    least = 5e-5 if dose["spread"] == "all" else 5e-5 / 0.05
    return bool(dose["width"] >= least)


def summary(models: Sequence[Result], drawn: Sequence[Result]) -> str:
    """The number of audits and their errors, in a few lines."""
    audits = [each for result in models for each in result["audits"]]
    wrong = [complaint for result in models for complaint in complaints(result)]
    lines = []
    if models:
        lines.append(
            f"{len(models)} models, {len(audits)} audits: {counted(wrong) or 'all as wanted'}."
        )
    for wide, words in ((True, "as wide as the audit names, or wider"), (False, "narrower")):
        some = [result for result in drawn if _wide(result) == wide]
        if some:
            verdicts = [result["verdict"] for result in some]
            missed, open_ = verdicts.count("ode"), verdicts.count("inconclusive")
            lines.append(
                f"{len(some)} doses {words}: {missed} times a false `ode`, {open_} times undecided."
            )
    return "\n\n".join(lines)


def write(models: Sequence[Result], drawn: Sequence[Result], path: Path) -> None:
    import doses

    sentences = [
        f"* {result['model']}: {each['verdict']}. {each['sentence']}"
        for result in models
        if complaints(result)
        for each in result["audits"]
    ]
    sources = ", ".join(sorted({result["source"] for result in [*models, *drawn]}))
    parts = [
        "# The audit where it is hard",
        f"Written by `python benchmarks/audit_deceived.py` on {describe(LIBRARIES)} "
        f"Sources of the package: {sources}.",
        (__doc__ or "").split("\n\n")[2],
        summary(models, drawn),
        "## Models",
        markdown(COLUMNS, map(row, models)),
        *(
            [
                "The audits of models with an unwanted verdict:",
                "\n".join(dict.fromkeys(sentences)),
            ]
            * bool(sentences)
        ),
        "## Doses",
        (doses.__doc__ or "").split("\n\n", 1)[1].strip(),
        markdown(DOSE_COLUMNS, dose_table(drawn)),
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        help="default: all, which writes the tables",
    )
    parser.add_argument(
        "--models", default="", metavar="WORD", help="only models whose names contain it"
    )
    parser.add_argument("--draws", type=count, default=300, help="per kind of dose (default: 300)")
    parser.add_argument(
        "--spreads", nargs="+", choices=SPREADS, default=SPREADS, help="of the doses (default: all)"
    )
    parser.add_argument("--widths", nargs="+", type=float, help="of the doses (default: all)")
    parser.add_argument("--output_dir", type=Path, default=DOCS, help="of results (default: docs)")
    parser.add_argument("--processes", type=count, default=os.cpu_count() or 1)
    parser.add_argument(
        "--again", action="store_true", help="repeat results of other sources of the package"
    )
    arguments = parser.parse_args()
    folder, how = arguments.output_dir.resolve(), (arguments.processes, arguments.again)
    models: list[Result] = []
    drawn: list[Result] = []
    if "models" in arguments.parts:
        chosen = [(name,) for name in names() if arguments.models.lower() in name.lower()]
        kept = keep(folder / "audit-deceived-models.jsonl", examine, chosen, model_key, *how)
        models = [kept[job] for job in chosen]
    if "doses" in arguments.parts:
        from doses import KINDS

        kinds = [
            kind
            for kind in KINDS
            if kind.spread in arguments.spreads
            and kind.width in (arguments.widths or (kind.width,))
        ]
        jobs = [(*kind, number) for number in range(arguments.draws) for kind in kinds]
        kept = keep(folder / "audit-deceived-doses.jsonl", deceive, jobs, dose_key, *how)
        drawn = [kept[key] for kind in KINDS for key in sorted(kept) if key[:3] == kind]
    if models and drawn and not arguments.models:
        write(models, drawn, folder / "audit-deceived.md")
    tables = markdown(COLUMNS, map(row, models)), markdown(DOSE_COLUMNS, dose_table(drawn))
    print(*tables, summary(models, drawn), sep="\n\n")


if __name__ == "__main__":
    main()
