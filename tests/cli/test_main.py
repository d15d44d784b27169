"""The command line."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml

import trueode
from trueode import experiment
from trueode.cli.main import main, notices
from trueode.options import Options, describe, load_options, make_options

ROOT = Path(__file__).resolve().parents[2]


def test_help_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for item in describe():
        assert f"--{item.name}" in shown
        assert item.text.split()[0] in shown
        assert all(choice in shown for choice in item.choices)
        assert all(f"--{alias}" in shown for alias in item.aliases)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from trueode.cli.main import main; main(['train', '--help']); "
        "heavy = {'torch', 'numpy', 'matplotlib', 'scipy', 'torchvision', 'tensorboard'} & "
        "set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_config_prints_a_complete_options_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--lr", "0.5", "--evaluate_text_acc"]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert set(values) == set(Options.model_fields)
    assert make_options(values) == make_options({"lr": 0.5, "evaluate_test_acc": True})


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert trueode.__version__ in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "train" in capsys.readouterr().out
    assert main([]) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["trian"],
        ["train", "--solver", "rk5"],
        ["config", "--nme", "x"],
        ["train", "--use_gpu", "2"],
        ["audit", "model:net", "--sample", "20"],
        ["sweep", "grid.yaml", "--worker", "2"],
        ["reproduce", "fig4a", "--scal", "small"],
    ],
)
def test_bad_requests_end_with_2_and_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1


def test_train_hands_options_to_the_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        experiment, "run", lambda options, given: seen.append((options, given)) or 0
    )
    monkeypatch.setattr(experiment, "infer", lambda options, given: seen.append("infer") or 0)
    assert main(["train", "--lr", "0.5"]) == 0
    assert seen == [(make_options({"lr": 0.5}), frozenset({"lr"}))]
    assert main(["train", "--phase", "infer"]) == 0
    assert seen[-1] == "infer"


def test_notices_of_options_without_effect() -> None:
    def said(text: str) -> str:
        return " ".join(notices(*load_options(text.split())))

    assert "cannot be met in float32" in said("--solver dopri5")
    assert said("--solver dopri5 --precision float64") == ""
    assert said("--solver dopri5 --tol 1e-4") == ""
    assert "no effect" in said("--solver dopri5 --tol 1e-4 --step_size 0.5")
    assert "no effect" in said("--use_step_adaptation true --step_size 0.5")
    assert said("--step_size 0.5") == ""


def test_train_script_is_a_thin_shim() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--solver", "rk5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("train.py: --solver rk5")
    assert len((ROOT / "train.py").read_text().splitlines()) < 20


def test_warnings_of_the_package_are_notes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trueode.cli import main as module
    from trueode.solvers.backends.native import library

    def work() -> int:
        warnings.simplefilter("always")
        warnings.warn_explicit("slower", RuntimeWarning, library.__file__, 1)
        warnings.warn_explicit("theirs", RuntimeWarning, "elsewhere.py", 1)
        return 0

    others: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: others.append(str(message)))
    before = warnings.showwarning
    assert module._guarded("trueode", [], work) == 0
    assert capsys.readouterr().err == "note: slower\n"
    assert others == ["theirs"]
    assert warnings.showwarning is before


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    from trueode.solvers.backends import native

    assert main(["info"]) == 0
    told = capsys.readouterr().out
    assert torch.__version__ in told
    assert native.describe() in told
    assert main(["info", "--help"]) == 0
    assert main(["info", "x"]) == 2
