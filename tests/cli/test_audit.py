"""``trueode audit`` of models named by module and function, and its refusals."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import trueode
from trueode.cli.audit import make_parser
from trueode.cli.main import main

SOURCE = '''
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from trueode import FixedStep, NeuralODE
import trueode

class Turn(nn.Module):
    """Turns the plane by one radian; Euler's method with one step by 45 degrees."""
    def forward(self, t, z):
        return torch.stack([-z[:, 1], z[:, 0]], 1)

class Noisy(Turn):
    def forward(self, t, z):
        return super().forward(t, z) + torch.randn_like(z)

def model(solver=FixedStep("rk4", n_steps=4), field=Turn):
    head = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
    return NeuralODE(field(), nn.Identity(), head, solver).eval()

def coarse():
    return model(FixedStep("euler", n_steps=1))

def noisy():
    return model(field=Noisy)

class Square(nn.Module):
    """Solutions from above 1 leave to infinity before the end."""
    def forward(self, t, z):
        return z * z

def leaves():
    return model(FixedStep("euler", n_steps=1), Square)

def tensors(width=2):
    x = torch.randn(400, width, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long()

def loader():
    return DataLoader(TensorDataset(*tensors()), batch_size=128)

ready, data = model(), loader()
'''
_numbers = count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"audited_model_{next(_numbers)}"
    Path(f"{name}.py").write_text(SOURCE)
    return name


def audit(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    importlib.invalidate_caches()
    code = main(["audit", *shlex.split(words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def add(module: str, source: str) -> None:
    with Path(f"{module}.py").open("a") as file:
        file.write(source)


def refused(words: str, capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """The single message of a request that fails; it must leave no files."""
    found, out, err = audit(words, capsys)
    assert found == code, err
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("trueode: ")
    assert "Traceback" not in err
    assert not Path("experiments").exists()
    return err


@pytest.mark.parametrize(
    ("target", "flags", "verdict", "code"),
    [
        ("model", "", "ode", 0),
        ("coarse", "", "solver-dependent", 3),
        ("coarse", "--margin 0.2", "ode", 0),
        ("model", "--samples 50", "inconclusive", 4),
        ("model", "--samples 50 --population all", "ode", 0),
        ("coarse", "--population all", "solver-dependent", 3),
        ("leaves", "--samples 60", "solver-dependent", 3),
        ("noisy", "", "inconclusive", 4),
    ],
)
def test_the_exit_code_is_the_verdict(
    target: str,
    flags: str,
    verdict: str,
    code: int,
    module: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = f"{module}:{target} --data {module}:loader --methods rk4 {flags}"
    found, out, err = audit(words, capsys)
    assert found == code, err
    assert err == ""
    *_, where = out.splitlines()
    place = Path(f"experiments/audits/{module}-{target}/audit.json")
    assert where == f"results: {place}"
    written = json.loads(place.read_text())
    assert (written["verdict"], written["sentence"]) == (verdict, out.splitlines()[0])


def test_json_alone_is_on_standard_output(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = audit(
        f"{module}:coarse --data {module}:tensors --methods euler,rk4 --json", capsys
    )
    assert code == 3
    found = json.loads(out)
    place = Path(f"experiments/audits/{module}-coarse")
    assert out == (place / "audit.json").read_text()
    assert err.strip() == f"results: {place}/audit.json"
    assert found["schema"] == 2
    assert (found["n"], found["task"], found["performance"]["name"]) == (
        400,
        "classification",
        "accuracy",
    )
    assert found["lower"] < found["flips"] / 400 < found["upper"]
    assert {row["method"] for row in found["rows"]} == {"euler", "rk4"}
    assert {path.name for path in place.iterdir()} == {
        "audit.json",
        *(f"audit_{name}.png" for name in ("swap", "order", "cost", "trajectories")),
    }


def test_objects_as_they_are(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The names may be a module and a loader instead of functions."""
    code, _, err = audit(
        f"{module}:ready --data {module}:data --methods '' --output_dir there", capsys
    )
    assert code == 0, err
    found = json.loads(Path("there/audit.json").read_text())
    assert (found["n"], len(found["rows"])) == (400, 1)
    assert not Path("experiments").exists()


def test_the_gradient_of_a_loss_is_that_of_the_call(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add(module, "def loss(outputs, y): return nn.functional.cross_entropy(outputs, y)")
    sys.path.insert(0, ".")
    made = importlib.import_module(module)
    expected = trueode.audit(made.coarse(), made.tensors(), methods=(), loss=made.loss).gradient
    words = f"{module}:coarse --data {module}:tensors --methods '' --loss {module}:loss"
    code, out, err = audit(f"{words} --output_dir there", capsys)
    assert code == 3, err
    assert json.loads(Path("there/audit.json").read_text())["gradient"] == vars(expected)
    assert f"* {expected}" in out.splitlines()


def test_call_metric_and_task(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    add(
        module,
        """
class Own(nn.Module):
    def forward(self, x, *, scale):
        z = trueode.solve(Turn(), x, (0.0, 1.0), solver=FixedStep("euler", n_steps=1)).z
        return x, {"out": scale * z}

def call(net, batch):
    return net(batch["inputs"], scale=2.0)[1]["out"]

def batches():
    yield {"inputs": tensors()[0], "more": torch.zeros(3)}

class tools:
    @staticmethod
    def far(outputs, y):
        return (outputs[:, 0] - y).abs()
""",
    )
    words = (
        f"{module}:Own --data {module}:batches --call {module}:call --methods euler --samples 40 "
        "--json"
    )
    assert "no targets" in refused(words, capsys)
    code, out, err = audit(f"{words} --task regression", capsys)
    assert code == 3, err
    found = json.loads(out)
    assert (found["task"], found["n"], found["flips"], found["performance"]["own"]) == (
        "regression",
        40,
        40,
        None,
    )
    words = (
        f"{module}:model --data {module}:tensors --methods rk4 --metric {module}:tools.far --json"
    )
    code, out, err = audit(words, capsys)
    assert code == 0, err
    found = json.loads(out)["performance"]
    assert found["name"] == "far"
    assert found["own"] == pytest.approx(found["exact"], rel=1e-2)
    assert found["own"] > 0


SPECIAL = """
class Dosed(nn.Module):
    \"""Moves every sample by two, within a hundred thousandth of the time.\"""
    def forward(self, t, z):
        on = 0.0125 <= float(t) < 0.0125 + 1e-5
        return torch.full_like(z, 2e5 if on else 0.0) * torch.tensor([1.0, 0.0])

def dosed():
    return model(FixedStep("euler", n_steps=3), Dosed)

class Blurred(nn.Module):
    def forward(self, x):
        z = x + 0.1 * torch.randn_like(x)
        return trueode.solve(Turn(), z, (0.0, 1.0), solver=FixedStep("rk4", n_steps=9)).z
"""


def test_breaks_show_what_is_too_short_to_be_found(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add(module, SPECIAL)
    words = f"{module}:dosed --data {module}:tensors --methods '' --json --max_step 0.1"
    changed = []
    for given in ("", "--breaks 0.0125,0.01251"):
        _, out, err = audit(f"{words} {given}", capsys)
        found = json.loads(out)
        assert found["exact_flow"]["width"] > 1e-5, err
        changed.append(found["share"])
    assert changed[0] == 0 < 0.2 < changed[1]


def test_steps_are_as_short_as_is_asked_for(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    each = []
    for given in ("", "--max_step 0.01"):
        code, out, err = audit(
            f"{module}:model --data {module}:tensors --methods '' --json {given}", capsys
        )
        assert code == 0, err
        each.append(json.loads(out)["evaluations"] / 400)
    assert each[0] < 400 <= each[1]  # a step of rk4 takes four


def test_a_seed_makes_random_numbers_the_same(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add(module, SPECIAL)
    words = f"{module}:Blurred --data {module}:tensors --methods '' --json"
    assert audit(words, capsys)[0] == 4
    accuracies = []
    for seed in (3, 3, 4):
        code, out, err = audit(f"{words} --seed {seed}", capsys)
        assert code == 0, err
        accuracies.append(json.loads(out)["performance"]["own"])
    assert accuracies[0] == accuracies[1] != accuracies[2]


def test_earlier_audits_are_left_alone(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"{module}:coarse --data {module}:tensors --methods '' --samples 30"
    for name in ("coarse", "coarse-2", "coarse-3"):
        _, out, _ = audit(words, capsys)
        assert out.splitlines()[-1] == f"results: experiments/audits/{module}-{name}/audit.json"
    first = Path(f"experiments/audits/{module}-coarse")
    mine = first / "audit_notes.png"
    mine.write_text("mine")
    before = {path: path.read_bytes() for path in first.iterdir()}
    code, out, err = audit(f"{words} --output_dir {first}", capsys)
    assert (code, out) == (2, "")
    assert "--overwrite true" in err
    assert {path: path.read_bytes() for path in first.iterdir()} == before
    code, out, err = audit(
        f"{module}:noisy --data {module}:tensors --output_dir {first} --overwrite true", capsys
    )
    assert code == 4, err
    assert {path.name for path in first.iterdir()} == {"audit.json", "audit_notes.png"}, (
        "figures of another audit"
    )
    assert mine.read_text() == "mine"
    code, out, err = audit(f"{words} --overwrite", capsys)
    assert out.splitlines()[-1] == f"results: {first}/audit.json"
    assert json.loads((first / "audit.json").read_text())["n"] == 30


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("nowhere:model --data {0}:loader", ["The model", "module nowhere cannot be imported"]),
        ("{0}:modle --data {0}:loader", ["has no modle", "Did you mean 'model'?"]),
        ("{0}:model --data {0}:loader.x.y", ["The data", "has no loader.x.y"]),
        ("{0}:model", ["--data module:name"]),
        ("{0}:model --data loader", ["The data is given as module:name, got 'loader'"]),
        (": --data {0}:loader", ["as module:name"]),
        ("{0}:torch --data {0}:loader", ["must be callable, got module"]),
        ("{0}:model --data {0}:loader --call {0}:nothing", ["--call", "has no nothing"]),
        ("{0}:model --data {0}:loader --metric far", ["--metric", "module:name"]),
        ("{0}:model --data {0}:loader --methods rk4,rk5", ["rk5", "Did you mean 'rk4'?"]),
        ("{0}:model --data {0}:loader --margin 1.5", ["--margin", "between 0 and 1", "1.5"]),
        ("{0}:model --data {0}:loader --margin little", ["--margin", "little"]),
        ("{0}:model --data {0}:loader --margin nan", ["--margin", "nan"]),
        ("{0}:model --data {0}:loader --samples 0", ["--samples", "at least 1"]),
        ("{0}:model --data {0}:loader --samples 2.5", ["--samples", "whole number"]),
        ("{0}:model --data {0}:loader --samples inf", ["--samples", "whole number"]),
        ("{0}:model --data {0}:loader --task guess", ["--task", "guess"]),
        ("{0}:model --data {0}:loader --overwrite maybe", ["--overwrite", "maybe"]),
        ("{0}:model --data {0}:loader --data_dir there", ["--data_dir", "run"]),
        ("{0}:model --data {0}:loader --split train", ["--split", "run"]),
        ("{0}:model --data {0}:loader --output_dir {0}.py", ["{0}.py is a file", "--output_dir"]),
        ("{0}:model --data {0}:loader --colour blue", ["--colour"]),
        ("", ["TARGET"]),
        ("no/such/run", ["There is no directory no/such/run", "module:name"]),
        (".", ["There is no run"]),
    ],
)
def test_wrong_requests(
    words: str, told: list[str], module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(words.format(module), capsys)
    for word in told:
        assert word.format(module) in message


@pytest.mark.parametrize(
    ("source", "words", "told"),
    [
        (
            "def broken(): raise ValueError('no weights')",
            "broken --data {0}:loader",
            "broken() raised: ValueError: no weights",
        ),
        (
            "def broken():\n    return 1 / 0",
            "model --data {0}:broken",
            "The data: {0}:broken() raised: ZeroDivisionError",
        ),
        (
            "def wide(): return tensors(3)",
            "model --data {0}:wide",
            "the derivative must have the shape of the state",
        ),
        (
            "def wide(): return tensors(3)\n"
            "def linear(): return nn.Sequential(nn.Linear(2, 2), model())",
            "linear --data {0}:wide",
            "forward failed on a batch of shape (400, 3): RuntimeError: mat1 and mat2",
        ),
        ("def empty(): return []", "model --data {0}:empty", "holds no samples"),
        ("def text(): return 'x'", "model --data {0}:text", "of type str"),
        (
            "def half():\n    yield tensors()\n    raise OSError('disk')",
            "model --data {0}:half",
            "cannot be read: OSError: disk",
        ),
        (
            "def plain(): return nn.Linear(2, 2)",
            "plain --data {0}:loader",
            "calls no solver that can be replaced",
        ),
        (
            "def blind(): return lambda x: x",
            "blind --data {0}:loader",
            "calls no solver that can be replaced",
        ),
        (
            "class Fails(nn.Module):\n    def forward(self, x): raise KeyError(x.shape)\n",
            "Fails --data {0}:loader",
            "forward failed on a batch of shape (128, 2): KeyError",
        ),
        (
            "def bad(net, batch): return net(batch[7])",
            "model --data {0}:loader --call {0}:bad",
            "IndexError",
        ),
        (
            "def bad(outputs, y): return outputs @ y",
            "model --data {0}:loader --metric {0}:bad",
            "The metric failed",
        ),
        (
            "def mean(outputs, y): return outputs.mean()",
            "model --data {0}:loader --metric {0}:mean",
            "a value for each",
        ),
        (
            "def bad(outputs, y): return outputs @ y",
            "model --data {0}:loader --loss {0}:bad",
            "loss=… failed",
        ),
        (
            "def rows(outputs, y): return outputs.sum(1)",
            "model --data {0}:loader --loss {0}:rows",
            "a number that depends on the outputs",
        ),
        (
            "def inputs(): return tensors()[0]\ndef loss(outputs, y): return outputs.mean()",
            "model --data {0}:inputs --task classification --loss {0}:loss",
            "needs targets",
        ),
        (
            "",
            "model --data {0}:loader --loss {0}:nothing",
            "--loss: {0} has no nothing",
        ),
        (
            "def floats():\n    x, y = tensors()\n    return x, y + 0.5",
            "model --data {0}:floats",
            "must agree",
        ),
    ],
)
def test_somebody_elses_code_fails(
    source: str, words: str, told: str, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add(module, source)
    assert told.format(module) in refused(f"{module}:{words.format(module)} --samples 500", capsys)


@pytest.mark.parametrize(
    "source", ["raise RuntimeError('in two\\nlines')", "import nosuchpackage", "exit(3)", "def ("]
)
def test_a_module_that_cannot_be_imported(
    source: str, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(f"{module}.py").write_text(source)
    assert f"{module} cannot be imported" in refused(
        f"{module}:model --data {module}:loader", capsys
    )


@pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated")
def test_a_scripted_model(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    add(module, "def scripted(): return torch.jit.script(nn.Linear(2, 2))")
    assert "scripted model" in refused(f"{module}:scripted --data {module}:loader", capsys)


def test_a_training_solver_that_fails_leaves_no_verdict(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add(
        module,
        """
class Explodes(nn.Module):
    def forward(self, t, z):
        return z / 0

def explodes():
    return model(field=Explodes)
""",
    )
    code, out, err = audit(f"{module}:explodes --data {module}:loader", capsys)
    assert code == 4, err
    assert "the training solver fails" in out
    assert "vacuous" not in out


def test_an_endless_loader(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    add(
        module,
        """
def endless():
    for k in range(4):
        yield torch.ones(20, 2), torch.zeros(20).long()
    raise AssertionError("more than 80 samples were asked for")
""",
    )
    code, _, err = audit(
        f"{module}:model --data {module}:endless --samples 80 --methods ''", capsys
    )
    assert code == 4, err


def test_help_shows_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = audit("--help", capsys)
    assert code == 0
    shown = " ".join(out.split())
    for action in make_parser("trueode audit")._actions:
        for flag in action.option_strings:
            assert flag in shown
        assert action.help
        assert action.help.split("(")[0].strip().replace("%%", "%") in shown
    assert "Exit code: 0 for an ODE, 3" in shown


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from trueode.cli.main import main; main(['audit', '--help']); "
        "main(['audit', 'x', '--samples', '0']); "
        "heavy = {'torch', 'numpy', 'matplotlib', 'scipy', 'torchdiffeq'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_it_is_a_command(module: str) -> None:
    """A separate process finds the module in the working directory."""
    words = [
        f"{module}:coarse",
        "--data",
        f"{module}:tensors",
        "--methods",
        "",
        "--samples",
        "100",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "trueode", "audit", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (3, 4), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["n"] == 100
    assert done.stderr.strip().splitlines() == [
        f"results: experiments/audits/{module}-coarse/audit.json"
    ]


def test_an_audit_imports_no_compiler(module: str) -> None:
    """The import of ``torch._dynamo`` takes seconds."""
    add(
        module,
        "import sys, atexit\n"
        "found = lambda: print('compiler:', 'torch._dynamo' in sys.modules, file=sys.stderr)\n"
        "atexit.register(found)",
    )
    words = [f"{module}:coarse", "--data", f"{module}:tensors", "--methods", "", "--samples", "100"]
    done = subprocess.run(
        [sys.executable, "-m", "trueode", "audit", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.strip() == "compiler: False"


DISTRIBUTIONS = """
class Shrink(nn.Module):
    def forward(self, t, z):
        return torch.cat([-z[:, :2], torch.full_like(z[:, :1], 2.0)], 1)

def flow(solver=FixedStep("euler", n_steps=2)):
    return NeuralODE(
        Shrink(),
        lambda x: torch.cat([x, torch.zeros_like(x[:, :1])], 1),
        lambda z: -z[:, :2].square().sum(1) / 2 - z[:, 2],
        solver,
    ).eval()

class Decay(nn.Module):
    def forward(self, t, z):
        return -z

def sampler():
    return NeuralODE(Decay(), solver=FixedStep("euler", n_steps=10)).eval()

def one_call():
    return nn.Linear(2, 2)

def points():
    return tensors()[0]

def drawn(model, n):
    return trueode.solve(lambda t, z: z, torch.randn(n, 2), (0.0, 1.0), solver=model.solver).z
"""


def test_densities_and_samplers(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    add(module, DISTRIBUTIONS)
    data = f"--data {module}:points --methods euler,rk4"
    flow = f"{module}:flow {data} --task density --json --overwrite true"
    code, out, _ = audit(f"{flow} --sample {module}:drawn", capsys)
    found = json.loads(out)
    assert (code, found["verdict"], found["performance"]["name"]) == (
        3,
        "solver-dependent",
        "bits_per_dim",
    )
    assert found["density"]["mass"] > 1
    lower = found["lower"]
    code, out, _ = audit(f"{flow} --dimensions 4 --margin 0.5", capsys)
    found = json.loads(out)
    assert (code, found["margin"], found["lower"]) == (0, 0.5, pytest.approx(lower / 2))
    code, out, _ = audit(f"{flow} --absolute 10", capsys)
    assert code == 0
    assert {path.name for path in Path(f"experiments/audits/{module}-flow").iterdir()} == {
        "audit.json",
        *(f"audit_{name}.png" for name in ("swap", "order", "cost")),
    }
    code, out, _ = audit(f"{module}:sampler {data} --task sampler --tolerance 0.03", capsys)
    assert code == 0
    assert "cheapest within 3 %: rk4 x 1" in out.replace("\n", " ")
    code, out, _ = audit(f"{module}:sampler {data} --task sampler --samples 60", capsys)
    assert code == 4


def test_wrong_requests_for_densities_and_samplers(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add(module, DISTRIBUTIONS)
    data = f"--data {module}:points"
    flow = f"{module}:flow {data} --task density"
    assert "absolute=" in refused(f"{flow} --tolerance 0.1", capsys)
    assert "noise" in refused(f"{module}:sampler --task sampler", capsys)
    assert "consistency" in refused(f"{module}:one_call {data} --task sampler", capsys)
    assert "'density' or 'sampler'" in refused(f"{module}:flow {data}", capsys)
