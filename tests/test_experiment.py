"""Whole runs: output, files, names, continuation, evaluation and loading."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.test_interruptions import equal
from trueode.cli.main import main
from trueode.experiment import load
from trueode.runs import load_latest, read_history
from trueode.runs.checkpoints import found

SHORT = "--niter 12 --log_interval 5 --model_checkpoint_freq 5"
FIDELITY = "--use_step_adaption_algo true --adaption_algo fidelity --fidelity 0.05"


pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(flags: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command in this process; return exit code and output."""
    code = main(["train", *shlex.split(flags)])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def state(name: str) -> dict[str, Any]:
    """The newest checkpoint of a run, without wall times."""
    saved = load_latest(Path("experiments") / name / "checkpoints", pytest.fail)[1]
    del saved["seconds"]
    return saved


def history(name: str) -> dict[str, list[float]]:
    columns = read_history(Path("experiments") / name / "history.csv")
    del columns["seconds"]
    return columns


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_leaves_all_that_is_promised(capsys: pytest.CaptureFixture[str]) -> None:
    code, output = train(
        f"{SHORT} --evaluate_test_acc true --eval_interval 5 --use_tensorboard true", capsys
    )
    assert code == 0, output
    sentence = output.splitlines()[-2]
    assert sentence.startswith("test accuracy ")
    assert "with euler, h = 1; " in sentence
    assert "under the exact flow" in sentence
    run = Path("experiments/neural_ode")
    assert str(run) in output.splitlines()[-1]
    figures = {path.name for path in (run / "figures").iterdir()}
    assert figures == {"loss.png", "accuracy.png", "effort.png", "trajectories.png", "regions.png"}
    info = json.loads((run / "run.json").read_text())
    assert info["status"] == "finished"
    assert info["iteration"] == 12
    assert info["sentence"] == sentence
    assert info["evaluations"] == 12 * 128
    assert info["nfe_per_iteration"] == 1
    assert torch.__version__.startswith(info["versions"]["torch"])
    assert json.loads((run / "audit.json").read_text())["sentence"] == sentence
    assert list((run / "tensorboard_logs").iterdir())
    rows = history("neural_ode")
    assert rows["iteration"] == [1, 5, 10, 12]
    assert np.isfinite(rows["test_accuracy"]).tolist() == [False, True, True, True]
    assert rows["nfe"] == [1.0] * 4
    assert [path.name for path in found(run / "checkpoints")] == [
        f"iteration_{i:08d}.pt" for i in (12, 10, 5)
    ]


@pytest.mark.parametrize(
    "flags",
    [
        "--solver rk4 --n_steps 3 --optimizer sgd --weight_decay 0.1",
        "--solver dopri5 --tol 1e-3 --autodif checkpoint --optimizer rmsprop",
        "--solver tsit5 --tol 1e-3 --per_sample true --time_dependent true",
        "--solver midpoint --adjoint true --upstream_channels 3 --act gelu "
        "--init_type orthogonal --init_variance 1",
        "--dataset concentric_sphere10 --network linear_odenet --serial_batches true",
        "--solver heun2 --use_step_adaption_algo true --adaption_interval 3",
        "--solver fehlberg2 --use_step_adaption_algo true --adaption_interval 3 --initial_tol 1e-3",
        "--dataset pendulum --network linear_odenet --act tanh --solver rk4 --step_size 0.5",
        "--dataset three_minima --precision float64",
        f"--solver auto {FIDELITY} --adaption_interval 3",
        f"--solver dopri5 {FIDELITY} --adaption_interval 3 --check_on noise",
    ],
)
def test_the_same_options_give_the_same_run(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit, from the flags and from the written config."""
    torch.rand(3)  # the state of the global random numbers does not matter
    code, output = train(f"{SHORT} {flags} --name one", capsys)
    assert code == 0, output
    np.random.rand(3)  # noqa: NPY002
    torch.rand(5)
    code, output = train("--options_file experiments/one/config.yaml --name two", capsys)
    assert code == 0, output
    assert equal(state("one"), state("two"))
    assert repr(history("one")) == repr(history("two"))
    audits = [
        json.loads(Path(f"experiments/{name}/audit.json").read_text()) for name in ("one", "two")
    ]
    audits[1]["sentence"] = audits[1]["sentence"].replace("--name two", "--name one")
    assert audits[0] == audits[1]


def test_evaluations_are_counted_per_sample(capsys: pytest.CaptureFixture[str]) -> None:
    """Also in the smaller last batch of an epoch."""
    code, output = train(
        "--niter 35 --log_interval 3 --solver midpoint --n_steps 3 --name run", capsys
    )
    assert code == 0, output
    assert set(history("run")["nfe"]) == {6.0}
    assert set(history("run")["nfe_backward"]) == {0.0}


def test_another_seed_gives_another_run(capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        train(f"{SHORT} --random_seed {seed} --name seed{seed}", capsys)
    assert not equal(state("seed0")["model"], state("seed1")["model"])
    assert history("seed0")["loss"] != history("seed1")["loss"]


def test_results_are_never_touched(capsys: pytest.CaptureFixture[str]) -> None:
    train(SHORT, capsys)
    before = everything(Path("experiments"))
    code, output = train(SHORT, capsys)
    assert code == 0
    assert "this run is called neural_ode-2" in output
    code, output = train(f"{SHORT} --name neural_ode", capsys)
    assert code == 2
    for way in ("--resume true", "--overwrite true", "--name neural_ode-3"):
        assert way in output
    after = everything(Path("experiments"))
    assert {path: after[path] for path in before} == before


def test_overwriting_spares_what_the_run_has_not_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(f"{SHORT} --name run", capsys)
    notes = Path("experiments/run/notes.txt")
    notes.write_text("mine")
    code, output = train("--niter 3 --name run --overwrite true --network linear_odenet", capsys)
    assert code == 0, output
    assert notes.read_text() == "mine"
    assert state("run")["iteration"] == 3
    assert "overwrite: false" in Path("experiments/run/config.yaml").read_text()


def test_a_run_made_longer_is_the_longer_run(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--log_interval 5 --use_step_adaption_algo true --adaption_interval 4 --name"
    train(f"{flags} run --niter 10", capsys)
    code, output = train("--name run --resume true --niter 20 --log_interval 5", capsys)
    assert code == 0, output
    train(f"{flags} whole --niter 20", capsys)
    assert equal(state("run"), state("whole"))
    assert repr(history("run")) == repr(history("whole"))
    info = json.loads(Path("experiments/run/run.json").read_text())
    assert "from 10 to 20 at iteration 10" in info["continued"]
    code, output = train("--name run --resume true", capsys)
    assert code == 0
    assert "is finished (20 iterations)" in output
    assert equal(state("run"), state("whole"))


@pytest.mark.parametrize(
    "change", ["--lr 0.1", "--niter 3", "--solver rk4", "--precision float64", "--n_steps 2"]
)
def test_a_resumed_run_stays_the_same_run(change: str, capsys: pytest.CaptureFixture[str]) -> None:
    train(f"{SHORT} --name run", capsys)
    before = everything(Path("experiments"))
    code, output = train(f"--name run --resume true {change}", capsys)
    assert code == 2
    assert change.split()[0] in output
    assert everything(Path("experiments")) == before
    code, output = train("--name runn --resume true", capsys)
    assert code == 2
    assert "'run'" in output


def test_a_run_without_checkpoint_starts_anew(capsys: pytest.CaptureFixture[str]) -> None:
    train(f"{SHORT} --name run", capsys)
    expected = state("run")
    for path in Path("experiments/run/checkpoints").iterdir():
        path.unlink()
    code, output = train("--name run --resume true", capsys)
    assert code == 0, output
    assert equal(state("run"), expected)


def test_no_usable_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    train(f"{SHORT} --name run", capsys)
    for path in Path("experiments/run/checkpoints").iterdir():
        path.write_bytes(b"nothing")
    for flags in ("--resume true", "--phase infer"):
        code, output = train(f"--name run {flags}", capsys)
        assert code == 1
        assert "no usable checkpoint" in output


def test_divergence_keeps_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    flags = (
        "--optimizer sgd --lr 1e4 --solver rk4 --n_steps 8 --niter 40 --log_interval 3 "
        "--model_checkpoint_freq 1"
    )
    code, output = train(f"{flags} --name wild", capsys)
    assert code == 1
    assert "Training stopped." in output
    assert "experiments/wild/checkpoints" in output
    assert all(bool(weight.isfinite().all()) for weight in state("wild")["model"].values())
    assert json.loads(Path("experiments/wild/run.json").read_text())["status"] == "diverged"
    assert all(np.isfinite(history("wild")["loss"]))


def test_infer(capsys: pytest.CaptureFixture[str]) -> None:
    train(f"{SHORT} --name run --evaluate_test_acc true", capsys)
    before = everything(Path("experiments"))
    code, output = train(
        "--phase infer --name run --split test --evaluate_with_dif_solver true", capsys
    )
    assert code == 0, output
    result = json.loads(Path("experiments/run/evaluation_test.json").read_text())
    assert result["accuracy"] == history("run")["test_accuracy"][-1]
    assert result["n"] == 1000
    assert result["audit"]["sentence"] in output
    assert {row["method"] for row in result["audit"]["rows"]} == {"euler", "midpoint", "rk4"}
    code, output = train("--phase infer --name run", capsys)
    assert json.loads(Path("experiments/run/evaluation_train.json").read_text())["n"] == 2000
    after = everything(Path("experiments"))
    assert {path: after[path] for path in before} == before
    code, output = train("--phase infer --name run --solver rk4", capsys)
    assert code == 2
    assert "--solver rk4" in output


def test_solver_swap(capsys: pytest.CaptureFixture[str]) -> None:
    flags = (
        "--step_size 0.5 --evaluate_with_dif_solver true --test_solver_list euler dopri5 "
        "--test_factor_list 0.5 1 4"
    )
    code, output = train(f"{SHORT} {flags} --tol 1e-4", capsys)
    assert code == 0, output
    run = Path("experiments/neural_ode")
    table = json.loads((run / "audit.json").read_text())
    steps = {
        (row["method"], tuple(row["factors"])): row["n_steps"]
        for row in table["rows"]
        if row["kind"] == "fixed"
    }
    assert steps == {("euler", (0.5,)): 4, ("euler", (1.0,)): 2, ("euler", (4.0,)): 1}
    assert [row["setting"] for row in table["rows"] if row["kind"] == "adaptive"] == pytest.approx(
        [5e-5, 1e-4, 4e-4]
    )
    assert len((run / "solver_swap.csv").read_text().splitlines()) == 1 + len(table["rows"])
    assert (run / "figures/solver_swap.png").is_file()
    assert "(training)" in output


def test_load(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train(f"{SHORT} --use_step_adaption_algo true --adaption_interval 2 --name run", capsys)
    monkeypatch.chdir("/")  # neither the data nor the working directory are needed
    model, options = load(tmp_path / "experiments/run")
    monkeypatch.chdir(tmp_path)
    assert not model.training
    assert options.use_step_adaption_algo
    assert model.solver.step_size == state("run")["rule"]["step_size"]
    assert equal(dict(model.state_dict()), dict(state("run")["model"]))
    assert model(torch.zeros(4, 1, 2)).shape == (4, 2)


def test_own_arrays(capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 3))
    np.savez("regression.npz", x=x, y=x @ random.normal(size=(3, 2)))
    t = np.sort(random.uniform(0, 2, size=(60, 7)), axis=1)
    t[::3, 5:] = np.nan
    start = random.normal(size=(60, 1, 2))
    y = start[:, None] * np.exp(-t)[:, :, None, None]
    y[1, 2] = np.nan
    np.savez("series.npz", x=start, y=y, t=t)
    code, output = train(
        f"{SHORT} --dataset arrays --data_dir regression.npz --name regression", capsys
    )
    assert code == 0, output
    assert "test mse" in output
    assert Path("experiments/regression/figures/mse.png").is_file()
    flags = (
        "--dataset arrays --data_dir series.npz --network linear_odenet --solver rk4 "
        "--step_size 0.2 --lr 0.03"
    )
    code, output = train(f"{flags} --niter 160 --batch_size 16 --name series", capsys)
    assert code == 0, output
    assert "undecided" in output
    losses = history("series")["loss"]
    assert losses[-1] < 0.2 * losses[0]
    assert Path("experiments/series/figures/time_series.png").is_file()


def series(t0: float | None, shift: float, own: bool = False, **changes: Any) -> None:
    """Write an oscillation to ``series.npz``; multiples of 1/8 are shifted without rounding."""
    random = np.random.default_rng(0)
    x, t = random.normal(size=(60, 2)), np.arange(5) / 8
    if own:
        t = np.sort(random.integers(0, 9, (60, 1)) + np.arange(3), axis=1) / 8
    angle = np.broadcast_to(2 * t, (60, t.shape[-1]))
    y = (
        x[:, None] * np.cos(angle)[..., None]
        + (x[:, ::-1] * [1, -1])[:, None] * np.sin(angle)[..., None]
    )
    given = {} if t0 is None else {"t0": t0}
    np.savez("series.npz", **{"x": x, "y": y, "t": t + shift, **given, **changes})


SERIES = (
    "--dataset arrays --data_dir series.npz --network linear_odenet --act tanh --niter 12 "
    "--log_interval 3 --lr 0.01"
)
SERIES_SOLVERS = {
    "fixed": "--solver rk4 --n_steps 8 --evaluate_with_dif_solver true "
    "--test_solver_list euler dopri5",
    "euler": "--solver euler --step_size 0.25 --autodif checkpoint",
    "adaptive": "--solver dopri5 --tol 1e-3",
    "per sample": "--solver dopri5 --tol 1e-3 --per_sample true --autodif adjoint",
    "paper": "--solver euler --use_step_adaption_algo true --adaption_interval 3",
    "fidelity": f"--solver rk4 {FIDELITY} --adaption_interval 3 --held_out 0.75",
}


@pytest.mark.parametrize("how", SERIES_SOLVERS)
def test_a_series_may_start_at_any_time(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An autonomous field gives the same results on times shifted to 0."""
    flags = (
        f"{SERIES} {SERIES_SOLVERS[how]} --evaluate_test_acc true --eval_interval 6 "
        "--verdict_budget 0.5"
    )
    results = []
    for name, t0, shift in (("zero", None, 0.0), ("late", 2019.0, 2019.0)):
        series(t0, shift, own=how in ("euler", "per sample"))
        code, output = train(f"{flags} --name {name}", capsys)
        assert code == 0, output
        saved, model = state(name), load(f"experiments/{name}")[0]
        assert model.t[0] == saved.pop("shape")["t_start"] == shift
        results.append((saved, history(name)))
    assert equal(results[0][0], results[1][0])
    assert str(results[0][1]) == str(results[1][1])


@pytest.mark.parametrize("own", [False, True], ids=["shared times", "own times"])
def test_a_series_is_judged_from_its_start(own: bool, capsys: pytest.CaptureFixture[str]) -> None:
    results: list[dict[str, Any]] = []
    for name, t0, shift in (
        ("zero", None, 0.0),
        ("early", -4.0, -4.0) if own else ("late", 2019.0, 2019.0),
    ):
        series(t0, shift, own)
        code, output = train(
            f"{SERIES} --solver rk4 --n_steps 8 --verdict_budget 0.5 --name {name}", capsys
        )
        assert code == 0, output
        flags = "--evaluate_with_dif_solver true --test_solver_list euler dopri5"
        code, output = train(f"--phase infer --name {name} --split test {flags}", capsys)
        assert code == 0, output
        results.append(json.loads(Path(f"experiments/{name}/evaluation_test.json").read_text()))
        assert main(["audit", f"experiments/{name}", "--samples", "10"]) != 2
        capsys.readouterr()
        audited = json.loads(Path(f"experiments/{name}/audit/audit.json").read_text())
        results[-1] |= {"audited": audited["rows"]}
    zero, other = map(numbers, results)
    assert other == pytest.approx(zero, rel=1e-9, nan_ok=True)


def numbers(value: Any) -> list[float]:
    """All numbers in JSON values, in order."""
    if isinstance(value, dict | list):
        return [
            x
            for part in (value.values() if isinstance(value, dict) else value)
            for x in numbers(part)
        ]
    return [value] if isinstance(value, int | float) else []


def test_a_series_has_one_start(capsys: pytest.CaptureFixture[str]) -> None:
    """Resuming, evaluation and audits need data with the start time of the run.

    A start far from 0 is never guessed.
    """
    flags = f"{SERIES} --solver rk4 --n_steps 8 --name run"
    series(None, 2019.1)
    code, output = train(flags, capsys)
    assert code == 2, output
    assert "2019.1" in output
    series(2019.1, 2019.1)
    code, output = train(flags, capsys)
    assert code == 0, output
    series(2018.5, 2019.1)
    for flags in ("--resume true --niter 15", "--phase infer"):
        code, output = train(f"{flags} --name run", capsys)
        assert code == 2, output
        assert "2018.5" in output
        assert "2019.1" in output
    assert main(["audit", "experiments/run"]) == 2
    series(2019.1, 2019.1)
    code, output = train("--resume true --niter 15 --name run", capsys)
    assert code == 0, output
    code, output = train(
        f"{SERIES} --solver rk4 --step_size 0.1 --t_end 2020.1 --name longer", capsys
    )
    assert code == 0, output
    assert load("experiments/longer")[0].t == (2019.1, 2020.1)


def test_what_is_wrong_is_said_in_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("no folder")
    for flags, words in {
        "--output_dir file/results": ["file", "--output_dir"],
        "--dataset mnist --network odenet --data_dir nowhere": ["MNIST", "nowhere"],
        "--dataset arrays --data_dir nowhere.npz": ["nowhere.npz"],
        "--phase infer --name nothing": ["experiments/nothing"],
        "--dataset pendulum --network linear_odenet --step_size 11": ["--step_size 11", "10"],
        "--dataset pendulum --network linear_odenet --t_end 5": ["--t_end 5", "10"],
    }.items():
        code, output = train(flags, capsys)
        assert code == 2, output
        assert "Traceback" not in output
        for word in words:
            assert word in output


def test_overwriting_waits_until_the_new_run_is_possible(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, output = train("--niter 3 --name run", capsys)
    assert code == 0, output
    before = everything(Path("experiments"))
    for wrong in (
        "--dataset arrays --data_dir nope.npz --network linear_odenet",
        "--dataset pendulum --step_size 30",
    ):
        code, output = train(f"--name run --overwrite true {wrong}", capsys)
        assert code == 2, output
        assert everything(Path("experiments")) == before
        code, output = train(f"--name other {wrong}", capsys)
        assert code == 2, output
        assert not Path("experiments/other").exists()


def test_test_metrics_come_at_their_own_interval(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--niter 12 --log_interval 7 --evaluate_test_acc true --eval_interval 5 --name run"
    code, output = train(flags, capsys)
    assert code == 0, output
    rows = history("run")
    assert rows["iteration"] == [1, 5, 7, 10, 12]
    assert np.isfinite(rows["test_accuracy"]).tolist() == [False, True, False, True, True]


def test_a_continued_run_does_not_keep_the_verdict_of_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, output = train("--niter 3 --name run", capsys)
    assert code == 0, output
    info = Path("experiments/run/run.json")
    assert "sentence" in json.loads(info.read_text())
    code, output = train("--resume true --niter 6 --name run --lr 1e-4", capsys)
    assert code == 0, output
    assert (
        json.loads(Path("experiments/run/audit.json").read_text())["provenance"]["iteration"] == 6
    )
    code, output = train("--niter 40 --name bad --optimizer sgd --lr 1e30", capsys)
    assert code == 1, output
    assert not {"sentence", "verdict"} & set(
        json.loads(Path("experiments/bad/run.json").read_text())
    )


def test_a_run_of_fidelity_ends_with_a_certificate(capsys: pytest.CaptureFixture[str]) -> None:
    flags = (
        f"--niter 120 --lr 0.01 --solver rk4 {FIDELITY} --adaption_interval 10 "
        "--evaluate_test_acc true --name run"
    )
    code, output = train(f"{flags} --eval_interval 40 --use_tensorboard true", capsys)
    assert code == 0, output
    run = Path("experiments/run")
    audit = json.loads((run / "audit.json").read_text())
    certificate = audit["certificate"]
    assert audit["sentence"].startswith(certificate["sentence"])
    assert output.splitlines()[-2] == audit["sentence"], "a run has one closing sentence"
    assert (
        audit["verdict"]
        == certificate["status"]
        == json.loads((run / "run.json").read_text())["verdict"]
    )
    assert [attempt["counts"]["n"] for attempt in certificate["attempts"]] == [200] * len(
        certificate["attempts"]
    )
    saved = state("run")
    assert saved["iteration"] == audit["provenance"]["iteration"] == 120 + saved["extra"]
    assert saved["extra"] == 200 * (len(certificate["attempts"]) - 1)
    assert {"adaptation.png", "effort.png"} <= {path.name for path in (run / "figures").iterdir()}
    rows = history("run")
    checks = [
        i
        for i, signal in zip(rows["iteration"], rows["signal"], strict=True)
        if np.isfinite(signal)
    ]
    certified = [120 + 200 * k for k in range(len(certificate["attempts"]))]  # no checks at these
    assert checks == [
        float(i) for i in range(10, int(saved["iteration"]) + 1, 10) if i not in certified
    ]
    tested = [
        i
        for i, value in zip(rows["iteration"], rows["test_accuracy_reference"], strict=True)
        if np.isfinite(value)
    ]
    assert tested[:3] == [40.0, 80.0, 120.0]
    counted = rows["nfe_total"][-1] / saved["iteration"] * saved["samples"]
    assert counted == pytest.approx(saved["evaluations"])
    exact = 200 * 4 * 17
    assert saved["evaluations"] > exact * len(certificate["attempts"]), "certificates are counted"
    assert max(rows["nfe"]) < 200, "and not as part of an iteration"
    info = json.loads((run / "run.json").read_text())
    assert info["nfe_per_iteration"] == pytest.approx(saved["evaluations"] / saved["samples"])
    model, _ = load(run)
    assert str(model.solver) == certificate["attempts"][-1]["solver"]

    # every verdict on the run is at the margin of its certificate
    flags = "--phase infer --split test --name run --verdict_budget 1e6"
    assert main(["train", *shlex.split(flags)]) == 0
    again = "audit experiments/run --methods rk4 --samples 200"
    assert main(shlex.split(again)) in (0, 3, 4)
    assert main(shlex.split(f"{again} --margin 0.3 --output_dir own")) == 0
    inferred = json.loads((run / "evaluation_test.json").read_text())["audit"]
    audited, own = (json.loads(Path(p, "audit.json").read_text()) for p in (run / "audit", "own"))
    margins = [each["margin"] for each in (certificate["decision"], audit, inferred, audited, own)]
    assert margins == [0.05, 0.05, 0.05, 0.05, 0.3]
    assert (inferred["verdict"] == "ode") is (inferred["upper"] <= 0.05)
    for row in audited["rows"]:
        assert row["safe"] is (row["upper"] <= 0.05)
    assert "allowed: 30 %" in own["sentence"]


def test_a_certified_run_is_made_longer(capsys: pytest.CaptureFixture[str]) -> None:
    """The longer training ends with another certificate."""
    flags = f"--lr 0.001 --solver rk4 {FIDELITY} --adaption_interval 10 --name run"
    train(f"{flags} --niter 40", capsys)
    before = json.loads(Path("experiments/run/audit.json").read_text())
    code, output = train(
        f"--name run --resume true --niter {before['provenance']['iteration'] + 40}", capsys
    )
    assert code == 0, output
    after = json.loads(Path("experiments/run/audit.json").read_text())
    assert after["provenance"]["iteration"] > before["provenance"]["iteration"]
    attempts, earlier = (found["certificate"]["attempts"] for found in (after, before))
    assert attempts[: len(earlier)] == earlier, "new attempts share what is left"
    code, output = train("--name run --resume true", capsys)
    assert code == 0
    assert json.loads(Path("experiments/run/audit.json").read_text()) == after


def test_data_that_is_not_generated_is_held_out(capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(5000, 2))
    np.savez("data.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    flags = (
        f"--dataset arrays --data_dir data.npz --solver midpoint {FIDELITY} "
        "--adaption_interval 10 --niter 30"
    )
    code, output = train(f"{flags} --name enough", capsys)
    assert code == 0, output
    certificate = json.loads(Path("experiments/enough/audit.json").read_text())["certificate"]
    assert certificate["attempts"][0]["counts"]["n"] == 200
    assert "held out of the training samples of arrays" in certificate["sentence"]
    code, output = train(f"{flags} --held_out 0.01 --name few", capsys)
    assert code == 0, output
    assert "it needs at least 72 inputs that training has not seen; there are 30" in output
    assert "note: the run will end with: not certified" in output
    code, output = train(f"{flags} --held_out 0.0005 --name none", capsys)
    assert code == 2, output
    assert "--held_out 0.0005 of 4000 training samples are 2" in output


@pytest.mark.parametrize("on", ["held_out", "noise", "batch"])
def test_checks_look_where_they_are_told(on: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = f"--solver rk4 {FIDELITY.replace('0.05', '0.4')} --adaption_interval 5"
    code, output = train(f"{flags} --niter 10 --check_on {on} --name run", capsys)
    assert code == 0, output
    assert np.isfinite(history("run")["signal"]).any()
