"""``trueode audit`` of runs: results, files, agreement with the run's verdict, staleness."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trueode.cli.main import main
from trueode.errors import RunNotFoundError, UsageError
from trueode.runs import load_latest, read_audit, save_checkpoint

SHORT = "--log_interval 5 --model_checkpoint_freq 5"
QUICK = "--methods '' --samples 100"


def arrays() -> str:
    random = np.random.default_rng(0)
    x = random.normal(size=(600, 3))
    np.savez("regression.npz", x=x, y=np.tanh(x @ random.normal(size=(3, 2))))
    return "--dataset arrays --data_dir regression.npz --niter 30 --step_size 0.5"


def images() -> str:
    from PIL import Image

    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 8)):
        for i in range(count):
            path = Path("pictures", split, "dark" if i % 2 else "light", f"{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 128, (6, 6, 3)) + 127 * (i % 2 == 0)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return "--dataset image_folder --data_dir pictures --network odenet --niter 3 --batch_size 8"


KINDS: dict[str, Callable[[], str]] = {
    "classification": lambda: "--niter 12",
    "regression": arrays,
    "timeseries": lambda: (
        "--dataset pendulum --network linear_odenet --act tanh --solver rk4 --step_size 0.5 "
        "--niter 6"
    ),
    "images": images,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the default model, which tests copy."""
    root = tmp_path_factory.mktemp("trained")
    flags = f"{SHORT} {KINDS['classification']()} --verdict_budget 1e6"
    assert main(["train", "--name", "run", "--output_dir", str(root), *shlex.split(flags)]) == 0
    return root / "run"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def path(trained: Path) -> Path:
    """A copy of the run, for one test."""
    return Path(shutil.copytree(trained, Path("experiments/run")))


def run(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command in this process; return exit code and output."""
    code = main(shlex.split(words))
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def train(kind: str, capsys: pytest.CaptureFixture[str]) -> Path:
    code, output = run(f"train --name run {SHORT} {KINDS[kind]()} --verdict_budget 1e6", capsys)
    assert code == 0, output
    return Path("experiments/run")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def keys_of(written: Any) -> list[Any]:
    rows = {tuple(row) for row in written["rows"]}
    return [list(written), list(written["performance"]), list(written["exact_flow"]), *rows]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_audited(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = train(kind, capsys)
    before = everything(path)
    code, output = run(f"audit {path} --methods euler,rk4", capsys)
    found, judged = read(path / "audit/audit.json"), read(path / "audit.json")
    assert code == {"ode": 0, "solver-dependent": 3, "inconclusive": 4}[found["verdict"]], output
    sentence, *_, where = output.splitlines()
    assert (sentence, where) == (found["sentence"], f"results: {path}/audit/audit.json")
    drawn = {"swap", "order", "cost"} | ({"trajectories"} if kind == "classification" else set())
    assert {each.name for each in (path / "audit").iterdir()} == {
        "audit.json",
        *(f"audit_{n}.png" for n in drawn),
    }
    after = everything(path)
    assert {name: after[name] for name in before} == before, "nothing else of the run is touched"

    # the verdict at the end of training is the same, on the same samples and in the same form
    assert keys_of(found) == keys_of(judged)
    same = (
        "verdict",
        "n",
        "flips",
        "blown_up",
        "unresolved",
        "rounding",
        "lower",
        "upper",
        "solver",
        "schema",
        "task",
    )
    assert {name: found[name] for name in same} == {name: judged[name] for name in same}
    for name, value in judged["performance"].items():
        close = pytest.approx(value, rel=1e-3, abs=1e-6) if isinstance(value, float) else value
        assert found["performance"][name] == close


FORMER = {
    "sentence": "NOT an ODE",
    "status": "not checked",
    "n": 40,
    "flips": 0,
    "lower": 0.0,
    "upper": 1.0,
    "solver": "euler x 4",
    "metric_name": "accuracy",
    "metric": 0.9,
    "metric_exact": None,
    "n_steps_exact": 0,
}


def test_what_former_versions_wrote_is_read_and_what_later_ones_write_is_refused() -> None:
    Path("run").mkdir()
    written = Path("run/audit.json")
    written.write_text(json.dumps(FORMER))
    found = read_audit(Path("run"))
    assert (found["verdict"], found["exact_flow"], found["rows"]) == ("inconclusive", None, [])
    written.write_text(
        json.dumps({**FORMER, "status": "ode", "metric_exact": 0.8, "n_steps_exact": 64})
    )
    row = {
        "solver": "euler",
        "kind": "fixed",
        "n_steps": 4,
        "tol": None,
        "accuracy": 0.9,
        "flips": 0.25,
        "nfe": 4.0,
        "loss": None,
        "status": "success",
        "is_training": False,
        "factors": [1],
    }
    Path("run/solver_swap.json").write_text(json.dumps({"rows": [row]}))
    found = read_audit(Path("run"))
    assert (found["schema"], found["verdict"], found["performance"]["exact"]) == (2, "ode", 0.8)
    (row,) = found["rows"]
    assert (row["method"], row["setting"], row["changed"], row["metric"]) == ("euler", 4, 0.25, 0.9)
    assert "flips" not in row
    written.write_text('{"schema": 3}')
    with pytest.raises(UsageError, match="has the schema 3"):
        read_audit(Path("run"))
    strange = (
        json.dumps({**found, "n": "40"}),
        json.dumps({**found, "rows": [{**row, "metric": "0.9"}]}),
        '{"schema": 2}',
    )
    for content in (*strange, "[]", "3", "nothing", "{}", b"\xff", None):
        written.unlink() if content is None else written.write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
        with pytest.raises(RunNotFoundError, match=r"--resume true --output_dir \. --name run"):
            read_audit(Path("run"))


@pytest.mark.usefixtures("undrawn")
def test_where_results_go(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(f"audit {path} {QUICK}", capsys)
    before = everything(path)
    code, output = run(f"audit {path} {QUICK}", capsys)
    assert code == 2
    assert "--output_dir" in output
    assert "--overwrite true" in output
    assert everything(path) == before
    code, output = run(
        f"audit {path}/ {QUICK} --samples 99 --split train --output_dir other", capsys
    )
    assert code in (0, 3, 4), output
    assert read(Path("other/audit.json"))["n"] == 99
    assert everything(path) == before
    code, output = run(f"audit {path} {QUICK} --samples 50 --overwrite true", capsys)
    assert code in (0, 3, 4), output
    assert read(path / "audit/audit.json")["n"] == 50


@pytest.mark.usefixtures("undrawn")
def test_a_run_from_within_its_directory(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path)
    assert main(["audit", ".", *shlex.split(QUICK), "--json"]) in (0, 3, 4)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == read(Path("audit/audit.json"))
    assert printed.err.strip() == "results: audit/audit.json"


@pytest.mark.usefixtures("undrawn")
def test_the_data_may_have_moved(capsys: pytest.CaptureFixture[str]) -> None:
    path = train("regression", capsys)
    Path("regression.npz").rename("elsewhere.npz")
    code, output = run(f"audit {path} {QUICK}", capsys)
    assert code == 2
    assert "regression.npz" in output
    code, output = run(f"audit {path} {QUICK} --data_dir elsewhere.npz", capsys)
    assert code in (0, 3, 4), output


@pytest.mark.usefixtures("undrawn")
def test_the_gradient_of_a_loss(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output = run(f"audit {path} {QUICK} --loss torch.nn.functional:cross_entropy", capsys)
    assert code in (0, 3, 4), output
    found = read(path / "audit/audit.json")["gradient"]
    assert found["relative"] > 10 * found["error"], "the run has one Euler step"


@pytest.mark.usefixtures("undrawn")
def test_wrong_requests(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(path)
    Path("empty").mkdir()
    for flags, words in {
        "--data module:name": ["--data", "run"],
        "--call module:name": ["--call", "run"],
        "--metric module:name": ["--metric", "run"],
        "--task regression": ["--task", "run"],
    }.items():
        code, output = run(f"audit {path} {flags}", capsys)
        assert (code, len(output.splitlines())) == (2, 1), output
        assert all(word in output for word in words)
    for target, words in {
        "empty": ["There is no run", "no config.yaml"],
        "experiments": ["There is no run"],
        "experiments/rum": ["There is no directory experiments/rum"],
        f"{path}/config.yaml": ["There is no directory"],
    }.items():
        code, output = run(f"audit {target}", capsys)
        assert (code, len(output.splitlines())) == (2, 1), output
        assert all(word in output for word in words)
    assert everything(path) == before


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_usable_checkpoint(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for checkpoint in (path / "checkpoints").iterdir():
        checkpoint.write_bytes(b"nothing")
    code, output = run(f"audit {path}", capsys)
    assert code == 1
    assert output.splitlines()[-1].startswith("trueode: ")
    assert "no usable checkpoint" in output
    assert not (path / "audit").exists()
    for checkpoint in (path / "checkpoints").iterdir():
        checkpoint.unlink()
    code, output = run(f"audit {path}", capsys)
    assert code == 1
    assert len(output.splitlines()) == 1


def test_a_checkpoint_of_another_version_is_one_message(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = path / "checkpoints"
    _, saved = load_latest(folder, print)
    save_checkpoint(folder, saved["iteration"], {**saved, "solver": {"step_size": 1.0}})
    code, output = run(f"audit {path}", capsys)
    assert code == 1
    assert len(output.splitlines()) == 1
    assert "does not fit the run or this version" in output


@pytest.mark.usefixtures("undrawn")
def test_an_audit_does_not_outlive_its_model(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A longer or overwriting run removes it, but no file of the user; a finished run does not."""
    run(f"audit {path} {QUICK}", capsys)
    audited = everything(path / "audit")
    mine = [path / "audit/notes.txt", path / "audit/more/audit.json", path / "audit/swap.png"]
    mine[1].parent.mkdir()
    for file in mine:
        file.write_text("mine")
    code, output = run("train --name run --resume true", capsys)
    assert code == 0, output
    after = everything(path / "audit")
    assert {name: after[name] for name in audited} == audited, "the model is the same"
    for flags in ("--resume true --niter 15", "--overwrite true --niter 3"):
        run(f"audit {path} {QUICK} --overwrite true", capsys)
        assert (path / "audit/audit.json").exists()
        code, output = run(f"train --name run {flags}", capsys)
        assert code == 0, output
        assert set(everything(path / "audit")) == set(map(str, mine))
    for file in mine:
        assert file.read_text() == "mine"
