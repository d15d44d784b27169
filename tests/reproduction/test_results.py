"""From a name to picture, numbers and caption, with runs of a few iterations in this process."""

from __future__ import annotations

import csv
import io
import re
import runpy
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trueode.reproduction import reproduce
from trueode.sweeps import execute
from trueode.sweeps.jobs import Job, Result
from trueode.sweeps.worker import perform

ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = {"niter": 4, "random_seed": 0, "ch_residual_block": 4}
SPHERE: dict[str, Any] = {**TINY, "dataset": "concentric_sphere2", "network": "simple_odenet"}


class Here:
    """Workers that run in this process."""

    count = 1

    def __init__(self) -> None:
        self.jobs: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def next(self, patience: float) -> Result | None:
        job = self.jobs.popleft()
        return Result(job.hash, *perform(job.options, Path(job.log)))

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(execute, "_workers", lambda *_: Here())
    monkeypatch.chdir(tmp_path)


def made(name: str, overrides: dict[str, Any], code: int = 0) -> tuple[list[dict[str, str]], str]:
    """Numbers and caption."""
    console = Console(file=io.StringIO(), width=200)
    assert reproduce(name, output_dir="out", overrides=overrides, console=console) == code, (
        console.file.getvalue()
    )
    stem = Path("out/results") / f"{name}-small"
    with stem.with_suffix(".csv").open() as file:
        numbers = list(csv.DictReader(file))
    return numbers, stem.with_suffix(".md").read_text()


def pictures() -> set[str]:
    return {
        path.name
        for path in Path("out/results").iterdir()
        if path.suffix in (".png", ".pdf", ".svg")
    }


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("fig1", TINY),
        ("fig2", TINY),
        ("fig4a", {**TINY, "step_size": 0.5}),
        ("tolerances", {**TINY, "tol": 0.1}),
        ("fig5", SPHERE),
        ("mnist", {**SPHERE, "step_size": 0.5}),
    ],
)
def test_picture_numbers_and_caption(name: str, overrides: dict[str, Any]) -> None:
    numbers, caption = made(name, overrides)
    assert pictures() == {f"{name}-small.{form}" for form in ("png", "pdf", "svg")}
    assert numbers
    assert f"trueode reproduce {name} --scale small" in caption
    assert "--niter 4" in caption
    assert "seed 0; 4 iterations; concentric_sphere2; 4 channels" in caption
    assert "`niter` 4 (paper: " in caption
    if name != "fig2":  # its numbers are points of one run
        hashes = {
            word for row in numbers for word in row.get("hashes", row.get("hash", "")).split()
        }
        assert hashes
        assert all(len(list(Path("out/runs").glob(f"*-{run}/run.json"))) == 1 for run in hashes)


def test_the_command_of_a_caption_can_be_repeated_elsewhere() -> None:
    _, caption = made("fig2", {**TINY, "data_dir": "Mine", "evaluate_with_dif_solver": False})
    assert "--data_dir DIR --evaluate_with_dif_solver false`" in caption
    assert "Mine" not in caption


def test_table_1_and_the_documentation_page() -> None:
    numbers, caption = made("table1", {**TINY, "step_size": 1.0})
    assert [row["rule"] for row in numbers] == [
        "grid search",
        "adaptation of the paper",
        "fidelity, euler",
        "fidelity, rk4",
    ]
    assert "98.9 ± 0.6 %" in caption
    assert not pictures()
    write = runpy.run_path(str(ROOT / "tools" / "reproduction.py"))["write"]
    assert write(Path("out/results"), Path("docs")) == ["table1-small"]
    page = Path("docs/README.md").read_text()
    assert caption in page
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert Path("docs", link).is_file()
    assert write(Path("elsewhere"), Path("docs")) == []
    assert Path("docs/README.md").read_text() == page
    Path("elsewhere").mkdir()
    Path("elsewhere/fig3-paper.md").write_text("Another caption.\n")
    assert write(Path("elsewhere"), Path("docs")) == ["fig3-paper"]
    both = Path("docs/README.md").read_text()
    assert both.index("Another caption.") < both.index(caption)


def test_nothing_is_shown_where_no_run_is_finished() -> None:
    console = Console(file=io.StringIO(), width=200)
    overrides = {**TINY, "niter": 30, "lr": 1e30, "step_size": 1.0}
    assert reproduce("fig4b", output_dir="out", overrides=overrides, console=console) == 1
    assert not Path("out/results").exists()
