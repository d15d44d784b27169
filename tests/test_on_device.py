"""Saved runs on a GPU: evaluated, audited, loaded and continued."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pretend import CUDA, pretend
from trueode import distributed
from trueode.cli.main import main
from trueode.distributed import Ranks
from trueode.errors import UsageError
from trueode.experiment import load
from trueode.options import read_file
from trueode.solvers.backends import native

pytestmark = pytest.mark.usefixtures("undrawn")
FLAGS = "--network linear_odenet --ch_residual_block 4 --niter 2 --verdict_budget 0 --act tanh"


@pytest.fixture(autouse=True)
def _run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run that was trained on the CPU, without the kernel, which is for processors."""
    monkeypatch.chdir(tmp_path)
    with native.using("off"):
        assert main(["train", "--name", "run", *shlex.split(FLAGS)]) == 0
        yield


def results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"experiments/run/{name}.json").read_text())
    return found


def test_an_evaluation_is_that_of_the_cpu() -> None:
    words = ["train", "--name", "run", "--phase", "infer", "--split", "test"]
    assert main(words) == 0
    here = results("evaluation_test")
    with pretend():
        assert main([*words, "--use_gpu", "true"]) == 0
    there = results("evaluation_test")
    facts = there["audit"]["provenance"]
    assert (facts["device"], facts["gpu"]["device"]) == ("cuda:0", "cuda:0")
    assert "gpu" not in here["audit"]["provenance"]
    assert there["loss"] == pytest.approx(here["loss"], rel=1e-5)
    assert there["audit"]["sentence"] == here["audit"]["sentence"]


def test_an_audit_is_that_of_the_cpu() -> None:
    words = ["audit", "experiments/run", "--samples", "10", "--methods", "", "--overwrite"]
    code = main(words)
    here = results("audit/audit")
    with pretend():
        assert main([*words, "--use_gpu", "true", "--gpu_ids", "0"]) == code
    there = results("audit/audit")
    assert there["provenance"]["gpu"]["name"] == "pretended"
    assert there["sentence"] == here["sentence"]


def test_a_model_of_a_user_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "moved_by_an_audit.py").write_text(
        "import torch\n"
        "from trueode.experiment import load\n"
        "model = load('experiments/run')[0]\n"
        "def function(x): return model(x)\n"
        "def named(): return function\n"
        "data = torch.randn(10, 1, 2), torch.arange(10) % 2\n"
    )
    words = "--data moved_by_an_audit:data --samples 10 --methods '' --use_gpu true"
    audit = ["audit", *shlex.split(words)]
    with pretend():
        assert main([*audit, "moved_by_an_audit:model", "--output_dir", "found"]) == 4
        assert main([*audit, "moved_by_an_audit:named"]) == 2
    assert "function" in capsys.readouterr().err
    assert json.loads(Path("found/audit.json").read_text())["provenance"]["device"] == "cuda:0"


@pytest.mark.parametrize("words", ["audit experiments/run", "train --name run --phase infer"])
def test_without_a_gpu(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words.split(), "--use_gpu", "true"]) == 2
    assert "cuda:0 does not exist" in capsys.readouterr().err


def test_load() -> None:
    x = torch.ones(3, 1, 2)
    here = load("experiments/run")[0](x)
    with pretend():
        there = load("experiments/run", device=CUDA)[0](x.to(CUDA))
        assert there.device == CUDA
        torch.testing.assert_close(there.cpu(), here)
    with pytest.raises(UsageError, match="nowhere"):
        load("experiments/run", device="nowhere")
    with pytest.raises(UsageError, match="cuda:0 cannot be used"):
        load("experiments/run", device="cuda:0")


def test_a_resumed_run_stays_on_its_device_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def connect(use_gpu: bool, gpu_ids: str) -> Ranks:
        asked.append(use_gpu)
        return Ranks(0, 1, torch.device("cpu"))

    monkeypatch.setattr(distributed, "connect", connect)
    monkeypatch.setattr(distributed.gpus, "count", lambda: 1)
    resume = ["train", "--name", "run", "--resume", "true", "--niter"]
    assert main([*resume, "3", "--use_gpu", "true"]) == 0
    assert main([*resume, "4"]) == 0
    assert main([*resume, "5", "--use_gpu", "false"]) == 0
    assert asked == [True, True, False]
    assert not read_file(Path("experiments/run/config.yaml"))["use_gpu"]


def test_a_run_in_tf32_does_not_go_on_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Path("experiments/run/config.yaml")
    text = config.read_text().replace("precision: float32", "precision: tf32")
    config.write_text(text.replace("use_gpu: false", "use_gpu: true"))
    words = ["train", "--name", "run", "--resume", "true", "--niter", "4"]
    assert main([*words, "--use_gpu", "false"]) == 2
    assert "--precision tf32" in capsys.readouterr().err
    assert main(["train", "--name", "run", "--phase", "infer"]) == 0  # in IEEE float32
