"""The contents of pages of runs, audits, sweeps and figures, from what they saved."""

from __future__ import annotations

import csv
import json
import math
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trueode import ContinuousFlow, FixedStep, audit
from trueode.auditing import page as audits
from trueode.cli.main import main
from trueode.errors import RunNotFoundError
from trueode.experiment import page as runs
from trueode.fields import build_field
from trueode.report import slider
from trueode.reproduction import page as results
from trueode.runs import RunDirectory, read_history
from trueode.sweeps import SweepDirectory
from trueode.sweeps import page as sweeps

HOSTILE = "a&b '<img src=x onerror=alert(1)>'"
QUICK = "--niter 12 --log_interval 3"
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, too, nothing is left out."""
    monkeypatch.setattr(runs, "SECONDS", math.inf)
    monkeypatch.setattr(slider, "SECONDS", math.inf)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    root = tmp_path_factory.mktemp("runs")
    flags = f"{QUICK} --evaluate_with_dif_solver true --output_dir {root} --name run"
    assert main(["train", *shlex.split(flags), "--data_dir", str(root / "data")]) == 0
    return RunDirectory(root / "run")


def training_stop(contents: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(
        stop for stop in contents["slider"]["stops"] if stop["mark"] == "training"
    )
    return found


def test_a_run_shows_what_its_audit_and_its_history_say(trained: RunDirectory) -> None:
    made = runs.contents_of(trained)
    saved = json.loads((trained.path / "audit.json").read_text())
    assert made["answer"] == {"sentence": saved["sentence"], "status": saved["verdict"]}
    own, exact = training_stop(made), made["slider"]["stops"][-1]
    assert own["accuracy"] == pytest.approx(saved["performance"]["own"])
    assert exact["accuracy"] == pytest.approx(saved["performance"]["exact"])
    assert own["flips"] == pytest.approx((saved["flips"] + saved["blown_up"]) / saved["n"])
    assert len(made["slider"]["changed"][-1]) == saved["flips"]
    history = read_history(trained.history)
    charts = {chart["id"]: chart for chart in made["charts"]}
    assert charts["loss"]["x"]["values"] == history["iteration"]
    assert charts["loss"]["lines"][0]["values"] == pytest.approx(history["loss"], rel=1e-5)
    (table,) = made["tables"]
    marked = [row["cells"] for row in table["rows"] if row["marked"]]
    assert [cells[0] for cells in marked] == [saved["solver"]]
    by_solver = {row["cells"][0]: row["cells"] for row in table["rows"]}
    for row in saved["rows"]:
        cells = by_solver[row["solver"]]
        numbers = [row[key] for key in ("n_steps", "nfe", "metric", "loss", "changed", "flips")]
        assert cells[1:7] == pytest.approx(numbers)


def test_the_command_of_a_run_repeats_it(trained: RunDirectory) -> None:
    made = runs.contents_of(trained)
    fact = next(fact for fact in made["facts"] if fact["title"] == "How it was made")
    words = shlex.split(fact["items"][0].removeprefix("Command: "))
    assert words[:2] == ["python", "train.py"]
    from trueode.options import load_options

    again, _ = load_options(words[2:])
    stored, _ = load_options(["--options_file", str(trained.config)])
    assert again == stored


def test_without_its_data_a_run_has_a_page_that_says_how_to_get_the_rest(tmp_path: Path) -> None:
    random, data = np.random.default_rng(0), tmp_path / "data.npz"
    x = random.normal(size=(300, 3))
    np.savez(data, x=x, y=(x[:, 0] > 0).astype(int))
    flags = f"{QUICK} --dataset arrays --data_dir {data} --output_dir {tmp_path} --name run"
    assert main(["train", *shlex.split(flags)]) == 0
    whole = runs.contents_of(RunDirectory(tmp_path / "run"))
    assert whole["slider"]["plane"]["projected"]
    moved = data.rename(tmp_path / "moved.npz")
    again = runs.contents_of(RunDirectory(tmp_path / "run"), data_dir=str(moved))
    assert again["slider"]["changed"] == whole["slider"]["changed"]
    made = runs.contents_of(RunDirectory(tmp_path / "run"))
    assert made["slider"] is None
    assert any("trueode report" in (fact["code"] or "") for fact in made["facts"])
    assert made["tables"]
    assert made["charts"]


def test_an_unfinished_run_has_no_page(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(RunNotFoundError, match="--resume true"):
        runs.contents_of(RunDirectory(tmp_path))


def test_an_audit_without_its_model_says_how_to_get_the_slider(trained: RunDirectory) -> None:
    made = audits.contents_of(trained.path)
    assert made["kind"] == "audit"
    assert made["slider"] is None
    assert any("report=True" in (fact["code"] or "") for fact in made["facts"])


def test_a_sweep_shows_each_run_once_with_its_options(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"base: {{niter: 3, data_dir: {tmp_path}/data}}\naxes: {{random_seed: [0, 1]}}\n"
    )
    flags = ["--output_dir", str(tmp_path / "sweep"), "--workers", "1"]
    assert main(["sweep", str(plan), *flags]) == 0
    made = sweeps.contents_of(SweepDirectory(tmp_path / "sweep"))
    assert [run["values"] for run in made["runs"]] == [{"random_seed": 0}, {"random_seed": 1}]
    for run in made["runs"]:
        folder = tmp_path / "sweep" / "runs" / run["name"]
        saved = json.loads((folder / "audit.json").read_text())
        assert run["verdict"] == saved["verdict"]
        assert run["metric"] == saved["performance"]["own"]
        assert run["spark"] == pytest.approx(read_history(folder / "history.csv")["loss"], abs=1e-6)
        assert "niter: 3" in run["options"]
        assert not (folder / "report.html").exists()
    assert len(made["tables"][0]["rows"]) == 2


def test_a_figure_shows_its_numbers_caption_and_command(tmp_path: Path) -> None:
    assert main(["reproduce", "fig3", "--output_dir", str(tmp_path), "--report", "true"]) == 0
    (stem,) = results.results_in(tmp_path)
    assert results.results_in(stem) == results.results_in(stem.with_suffix(".png")) == [stem]
    made = results.contents_of(stem)
    with stem.with_suffix(".csv").open(newline="") as file:
        numbers = list(csv.DictReader(file))
    (table,) = made["tables"]
    assert [column["label"] for column in table["columns"]] == list(numbers[0])
    assert len(table["rows"]) == len(numbers)
    first = dict(zip(numbers[0], table["rows"][0]["cells"], strict=True))
    assert first["step_size"] == pytest.approx(float(numbers[0]["step_size"]))
    assert any(fact["code"] == "trueode reproduce fig3 --scale small" for fact in made["facts"])
    assert stem.with_suffix(".html").is_file()


def test_hostile_names_stay_as_they_are(tmp_path: Path) -> None:
    flags = [*shlex.split(QUICK), "--name", HOSTILE, "--output_dir", str(tmp_path)]
    assert main(["train", *flags, "--data_dir", str(tmp_path / "data"), "--report", "true"]) == 0
    made = runs.contents_of(RunDirectory(tmp_path / HOSTILE))
    assert made["title"] == HOSTILE
    assert "<img src=x" not in (tmp_path / HOSTILE / "report.html").read_text()


def test_requests_that_no_page_answers(
    tmp_path: Path, trained: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert main(["report", str(tmp_path / "missing")]) == 2
    assert main(["report"]) == 2
    assert main(["report", str(tmp_path), "--data_dir", "x"]) == 2
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text(trained.config.read_text())
    assert main(["report", str(unfinished)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_command_prints_the_path_of_the_page(
    trained: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(trained.path)]) == 0
    assert str(trained.path / "report.html") in capsys.readouterr().out
    assert (trained.path / "report.html").stat().st_size < 1.5e6


def test_audits_write_their_page_on_request(trained: RunDirectory, tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    flags = f"--samples 50 --methods '' --output_dir {folder}"
    main(["audit", str(trained.path), *shlex.split(flags)])
    assert not (folder / "report.html").exists()
    main(["audit", str(trained.path), *shlex.split(flags), "--overwrite", "--report", "true"])
    assert (folder / "report.html").is_file()


def _missing(made: dict[str, Any]) -> str:
    facts = (fact for fact in made["facts"] if fact["title"] == "What is missing")
    return " ".join(item for fact in facts for item in fact["items"])


def test_other_weights_than_were_judged_have_no_slider(
    trained: RunDirectory, tmp_path: Path
) -> None:
    """The checkpoint of the end is damaged, so that an earlier one is the newest that is usable."""
    other = RunDirectory(tmp_path / "run")
    shutil.copytree(trained.path, other.path)
    first, *_, last = sorted(other.checkpoints.glob("*.pt"))
    assert first != last
    last.write_bytes(b"")
    made = runs.contents_of(other)
    assert made["slider"] is None
    assert "weights" in _missing(made)


def test_other_data_than_were_judged_have_no_slider(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 2))
    for name, y in (("old", x[:, 0] > 0), ("new", x[:, 0] < 0)):
        np.savez(tmp_path / f"{name}.npz", x=x, y=y.astype(np.int64))
    flags = f"--dataset arrays --niter 3 --network linear_odenet --output_dir {tmp_path} --name run"
    assert main(["train", *shlex.split(flags), "--data_dir", str(tmp_path / "old.npz")]) == 0
    directory = RunDirectory(tmp_path / "run")
    assert runs.contents_of(directory)["slider"] is not None
    made = runs.contents_of(directory, data_dir=str(tmp_path / "new.npz"))
    assert made["slider"] is None
    assert "data" in _missing(made)


@pytest.mark.parametrize(("absolute", "population"), [(5.0, "sample"), (None, "all")])
def test_the_slider_of_an_audit_judges_as_the_audit(
    absolute: float | None, population: str
) -> None:
    """A limit above one in place of the margin, and samples that are the whole population."""
    torch.manual_seed(0)
    field = build_field("linear_odenet", (1, 2), 8, "tanh", True)
    flow = ContinuousFlow(field, (1, 2), FixedStep("euler", n_steps=2))
    data = [torch.randn(120, 1, 2)]
    found = audit(
        flow, data, task="density", absolute=absolute, population=population, methods=("euler",)
    )
    made = audits.slider_of(found)
    (own,) = (row for row in made.rows if row.is_training)
    assert own.upper == pytest.approx(found.rows[0].upper)
    assert own.safe == found.rows[0].safe
