"""Run the README and the documentation: commands and Python of each page in one directory."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import pickle
import re
import runpy
import shlex
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests import processes
from trueode.options import Options

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]

# The exact commands of the original documentation.
DOCUMENTED = (
    "python train.py --solver euler --step_size 0.1",
    "python train.py --help",
    "python train.py --use_gpu true",
    "python train.py --adjoint true",
    "python train.py --use_step_adaption_algo true",
    "python train.py --dataset concentric_sphere2 --solver euler --step_size 0.015625 "
    "--lr 0.0001 --network simple_odenet --ch_residual_block 32 --batch_size 128 "
    "--niter 10000 --evaluate_text_acc true --evaluate_with_different_solver true  "
    "--test_solver_list euler midpoint rk4 --test_factor_list 0.5 0.75 1. 1.5 2.",
    "python train.py --dataset cifar10 --solver dopri5 --tol 0.001 --lr 0.0001 "
    "--network odenet --ch_residual_block 128 --batch_size 256 --niter 7800 "
    "--evaluate_text_acc true --evaluate_with_different_solver true  "
    "--test_solver_list dopri5 --test_factor_list 0.1 1. 10.",
    "python train.py --dataset cifar10 --solver euler --lr 0.0001 --network odenet "
    "--ch_residual_block 128 --batch_size 256 --niter 7800 --evaluate_text_acc true "
    "--use_step_adaptation true",
)
SPELLINGS = {
    "evaluate_text_acc": "evaluate_test_acc",
    "evaluate_with_different_solver": "evaluate_with_dif_solver",
    "use_step_adaptation": "use_step_adaption_algo",
}
OTHER_OPTIONS = re.compile(
    "absolute|all|data|decision|dry_run|help|ignore_index|json|look|loss|margins?|max_step|methods|"
    "dimensions|metric|open|nproc_per_node|nthreads|"
    "options_file|population|samples?|scale|scheduler|seeds?|tolerance|breaks|call|draws|jobs|"
    "before|again|workers|ntasks|"
    "parts|processes|rows|kills|mnist|images|port|device|out|sections|budget"
)
IMAGE_SETS = ("mnist", "cifar10", "image_folder")
NOT_IN_CONFIG = ("niter", "name", "resume", "overwrite", "phase", "split", "options_file")


def trust(archive: str) -> None:
    """Let torchvision accept a small archive as the published one."""
    from torchvision.datasets import CIFAR10

    with tarfile.open(archive) as tar:
        sums = {
            m.name.split("/")[-1]: hashlib.md5(tar.extractfile(m).read()).hexdigest()
            for m in tar
            if m.isfile()
        }
    CIFAR10.tgz_md5 = hashlib.md5(Path(archive).read_bytes()).hexdigest()
    CIFAR10.train_list = [[f"data_batch_{k}", sums[f"data_batch_{k}"]] for k in range(1, 6)]
    CIFAR10.test_list = [["test_batch", sums["test_batch"]]]
    CIFAR10.meta = CIFAR10.meta | {"md5": sums["batches.meta"]}


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Fenced blocks of a page that are run: ("python" or "shell", text), in order."""
    run = (
        {"python": "python", "shell": "shell"}
        if page == README
        else {"{code-cell} python": "python", "shell": "shell"}
    )
    for match in re.finditer(
        r"^```([^\n]*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        if match[1].strip() in run:
            yield run[match[1].strip()], re.sub(r"\A(:.*\n)+", "", match[2])


def commands(block: str) -> list[str]:
    """The commands of a shell block that train or audit, continuation lines joined."""
    lines = block.replace("\\\n", " ").splitlines()
    return [
        line.strip()
        for line in lines
        if re.match(r"\s*(python train\.py|torchrun |trueode )", line)
    ]


def flags(command: str) -> dict[str, list[str]]:
    """The flags ``--name value …`` of a command, with their values as lists."""
    found: dict[str, list[str]] = {}
    for word in shlex.split(command):
        if word.startswith("--"):
            found[word[2:].split("=")[0]] = word.split("=")[1:]
        elif found:
            found[list(found)[-1]].append(word)
    return {SPELLINGS.get(name, name): values for name, values in found.items()}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A working directory with train.py and options/, as after cloning."""
    for name in ("train.py", "options", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def in_readme() -> list[str]:
    return [command for _, block in blocks(README) for command in commands(block)]


def test_every_documented_command_stands_in_the_readme_as_printed():
    printed = in_readme()
    assert [command for command in DOCUMENTED if command not in printed] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_points_to_exist(page: Path):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_that_a_page_names_exist(page: Path):
    named = set(re.findall(r"--([a-z_]+)", page.read_text(encoding="utf-8")))
    unknown = named - set(Options.model_fields) - set(SPELLINGS)
    assert [name for name in unknown if not OTHER_OPTIONS.fullmatch(name)] == []


def test_make_targets_of_the_readme_exist():
    found = re.findall(
        r"`make ([a-z]+)`|^\$ make ([a-z]+)$", README.read_text(encoding="utf-8"), re.MULTILINE
    )
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found
    assert {name for pair in found for name in pair} - {""} <= set(targets)


def test_what_the_readme_prints_is_what_its_python_prints(capsys: pytest.CaptureFixture[str]):
    """Except for numbers, which the processor's rounding may change."""
    text = README.read_text(encoding="utf-8")
    code, output = re.search(
        r"^```python\n(.*?)^```\n+```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL
    ).groups()
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    printed, wanted = (
        re.sub(r"[\d.]+", "1", each.splitlines()[0]) for each in (capsys.readouterr().out, output)
    )
    assert printed == wanted
    assert len(code.replace("\n\n", "\n").splitlines()) <= 12


# both are warnings of PyTorch Lightning
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.* is deprecated")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if list(blocks(page))], ids=lambda page: page.stem
)
def test_a_page_runs(page: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch):
    """Run all blocks in order in one working directory, except those also in the README."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    scope: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "kernel.py"), run_name="page")
    run_there = (
        () if page == README else [command for command in in_readme() if "--name" not in command]
    )
    for language, block in blocks(page):
        if language == "python":
            if page != README:  # its own is run by the test above
                exec(compile(block, page.name, "exec", dont_inherit=True), scope)
            continue
        for command in commands(block):
            if command in run_there:
                continue
            if command.startswith("trueode audit"):
                check_audit(command)
                continue
            if command.startswith("trueode report"):
                check_report(command)
                continue
            if re.match("trueode (sweep|reproduce) ", command):
                check_sweep(command)
                continue
            dataset = flags(command).get("dataset", ["concentric_sphere2"])[0]
            if dataset in IMAGE_SETS and find_spec("torchvision") is None:
                continue
            provide_images(dataset, command)
            check(command, *run(command, dataset))


def run(command: str, dataset: str) -> tuple[int, str, list[Path]]:
    """Run a command with few iterations; return exit code, output and run directories."""
    words = shlex.split(command)
    options = flags(command)
    if "infer" not in options.get("phase", []):
        words += ["--niter", "1" if dataset == "cifar10" else "40" if "resume" in options else "20"]
    before = set(Path("experiments").glob("*"))
    if words[0] == "torchrun":
        code, printed = run_torchrun(words[1:])
    elif dataset == "cifar10":
        trusting = partial(trust, "data/cifar-10-python.tar.gz")
        code, printed = processes.ended(
            processes.start(words[2:], Path.cwd(), before=trusting), Path.cwd()
        )
    else:
        code, printed = processes.run_line(words, Path.cwd(), environment={"COLUMNS": "120"})
    made = set(Path("experiments").glob("*")) - before
    named = [Path("experiments") / name for name in options.get("name", [])]
    return code, f"\n$ {command}\n{printed}", named or sorted(made)


def run_torchrun(words: list[str]) -> tuple[int, str]:
    """Run torchrun at a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment = os.environ | {"PET_MASTER_PORT": str(free.getsockname()[1]), "COLUMNS": "120"}
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    return result.returncode, result.stdout + result.stderr


def check(command: str, code: int, told: str, runs: list[Path]) -> None:
    """Check that the command did what it says."""
    options = flags(command)
    if options.get("use_gpu") == ["true"] and not gpu_exists():
        assert code == 2, told
        assert re.search("cuda|gpu", told.split("\n", 2)[2], re.IGNORECASE), told
        return
    assert code == 0, told
    if "help" in options:
        for name in yaml.safe_load(Path("options/default_config.yaml").read_text()):
            assert f"--{name}" in told, name
        return
    assert len(runs) == 1, told
    check_run(runs[0], options, told)


def check_audit(command: str) -> None:
    """Run and check an audit of an earlier run."""
    code, told = processes.run_line(
        shlex.split(command), Path.cwd(), environment={"COLUMNS": "120"}
    )
    assert code in (0, 3, 4), told
    found = json.loads((Path(shlex.split(command)[2]) / "audit" / "audit.json").read_text())
    assert found["sentence"] in told, told


def check_report(command: str) -> None:
    """Write and check the page of an earlier run."""
    code, told = processes.run_line(shlex.split(command), Path.cwd())
    assert code == 0, told
    assert (Path(shlex.split(command)[2]) / "report.html").is_file(), told


def check_sweep(command: str) -> None:
    """Run and check a sweep, its estimate or status, or a figure, with few iterations."""
    words = shlex.split(command)
    short = [] if "status" in words else ["--niter", "20", "--random_seed", "0"]
    code, told = processes.run_line([*words, *short], Path.cwd(), environment={"COLUMNS": "120"})
    assert code == 0, told
    if "status" in words:
        assert "3 finished" in told, told
    elif "--dry_run" in words:
        assert "field evaluations" in told, told
    elif words[1] == "reproduce":
        for form in ("png", "pdf", "svg", "csv", "md"):
            assert (
                Path("experiments/reproduction/results") / f"{words[2]}-small.{form}"
            ).is_file(), told
    else:
        name = Path(words[2]).stem
        assert (
            len((Path("experiments") / name / "tables" / f"{name}.csv").read_text().splitlines())
            > 9
        ), told


def check_run(run: Path, options: dict[str, list[str]], told: str) -> None:
    """Check that the run directory is complete and its config agrees with the flags."""
    for name in (
        "config.yaml",
        "history.csv",
        "run.json",
        "figures/loss.png",
        "figures/effort.png",
    ):
        assert (run / name).is_file(), (name, told)
    assert list((run / "checkpoints").iterdir()), told
    config = yaml.safe_load((run / "config.yaml").read_text())
    for name, words in options.items():
        if name not in NOT_IN_CONFIG and name in config:
            values = [yaml.safe_load(word) for word in words]
            value = config[name] if isinstance(config[name], list) else [config[name]]
            assert [*map(str, value)] == [*map(str, values)] or value == values, (name, told)
    history = list(csv.DictReader((run / "history.csv").read_text().splitlines()))
    assert history, told
    assert all(np.isfinite(float(row["loss"])) for row in history), told
    assert json.loads((run / "audit.json").read_text())["sentence"] in told, told
    if options.get("adjoint") == ["true"]:
        assert config["autodif"] == "adjoint", told
    if options.get("evaluate_test_acc") == ["true"]:
        assert any(row["test_accuracy"] for row in history), told
    if options.get("adaption_algo") == ["fidelity"]:
        certificate = json.loads((run / "audit.json").read_text())["certificate"]
        assert certificate["sentence"] in told, told
        assert (run / "figures/adaptation.png").is_file(), told
    if options.get("use_step_adaption_algo") == ["true"]:
        assert float(history[-1]["step_size"]) < 1, told  # the start rule chose it, not the default
    if options.get("evaluate_with_dif_solver") == ["true"]:
        rows = json.loads((run / "audit.json").read_text())["rows"]
        assert {row["method"] for row in rows} >= set(options["test_solver_list"]), told
        factors = {factor for row in rows for factor in row["factors"]}
        assert factors >= {float(word) for word in options["test_factor_list"]}, told
        assert (run / "solver_swap.csv").is_file(), told
        assert (run / "figures/solver_swap.png").is_file(), told


def gpu_exists() -> bool:
    import torch

    return torch.cuda.is_available()


def provide_images(dataset: str, command: str) -> None:
    """Make a few images in the published layout where the command expects them, once."""
    options = flags(command)
    folder = Path(options.get("data_dir", ["data"])[0])
    if dataset == "cifar10" and not (folder / "cifar-10-python.tar.gz").exists():
        small_cifar10(folder / "cifar-10-python.tar.gz")
    elif dataset == "mnist" and not (folder / "MNIST").exists():
        small_mnist(folder / "MNIST" / "raw")
    elif dataset == "image_folder" and not folder.exists():
        small_image_folder(folder, varied="image_size" in options)


def small_cifar10(path: Path) -> None:
    """cifar-10-python.tar.gz with one image per training file and two for testing."""
    random = np.random.default_rng(0)

    def batch(n: int) -> dict[str, Any]:
        return {
            "data": random.integers(0, 256, (n, 3072), dtype=np.uint8),
            "labels": random.integers(0, 10, n).tolist(),
        }

    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    members = {f"data_batch_{k}": batch(1) for k in range(1, 6)}
    members |= {"test_batch": batch(2), "batches.meta": {"label_names": names}}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            data = pickle.dumps(content, protocol=2)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def small_mnist(folder: Path) -> None:
    """The four idx files, as published and unpacked, with a few images each."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part, n in (("train", 12), ("t10k", 4)):
        images, labels = (
            random.integers(0, 256, (n, 28, 28), dtype=np.uint8),
            random.integers(0, 10, n, dtype=np.uint8),
        )
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">i4").tobytes()
            (folder / f"{part}-{name}-ubyte").write_bytes(header + values.tobytes())
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(
                gzip.compress(header + values.tobytes())
            )


def small_image_folder(folder: Path, *, varied: bool) -> None:
    """Two classes of PNG files."""
    from PIL import Image

    random = np.random.default_rng(0)
    for part, n in (("train", 4), ("test", 2)):
        for label in ("cat", "dog"):
            (folder / part / label).mkdir(parents=True)
            for k in range(n):
                height, width = (36 + 4 * k, 48) if varied else (32, 32)
                pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{k}.png")


@pytest.mark.parametrize(
    "script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem
)
def test_examples_run(script: Path, tmp_path: Path):
    words = [sys.executable, "-W", "error", str(script), "--iterations", "5"]
    result = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stdout
