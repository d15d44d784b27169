"""Our optimisers do what those of PyTorch do, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trueode.training.optimizers import FusedAdam, FusedSGD, make_optimizer

PEERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
NAMES = ["adam", "sgd"]


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5)).to(
        dtype=dtype, memory_format=torch.channels_last
    )


def gradients(model: nn.Module, seed: int) -> None:
    x = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    model(x.to(next(model.parameters()).dtype)).square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_torch(name: str, decay: float, dtype: torch.dtype) -> None:
    own, other = network(dtype), network(dtype)
    ours = make_optimizer(name, own.parameters(), 0.01, decay)
    assert isinstance(ours, FusedAdam | FusedSGD)
    theirs = PEERS[name](other.parameters(), lr=0.01, weight_decay=decay, fused=True)
    for seed in range(5):
        for model, optimizer in ((own, ours), (other, theirs)):
            optimizer.zero_grad()
            gradients(model, seed)
            optimizer.step()
    for p, q in zip(own.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_without_a_gradient_stays(name: str) -> None:
    own, other = network(), network()
    ours, theirs = (
        make_optimizer(name, own.parameters(), 0.01, 0.1),
        PEERS[name](other.parameters(), 0.01, weight_decay=0.1),
    )
    ours.step()  # nothing at all has one yet
    for seed, frozen in enumerate((True, False, True)):
        for model, optimizer in ((own, ours), (other, theirs)):
            optimizer.zero_grad()
            gradients(model, seed)
            if frozen:
                model[0].weight.grad = None  # type: ignore[index]
            before = model[0].weight.detach().clone()  # type: ignore[index]
            optimizer.step()
            assert torch.equal(model[0].weight, before) == frozen  # type: ignore[index]
    for p, q in zip(own.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_state_goes_on(name: str) -> None:
    model, again = network(), network()
    optimizer = make_optimizer(name, model.parameters(), 0.01, 0.0)
    gradients(model, 0)
    optimizer.step()
    saved = optimizer.state_dict()
    again.load_state_dict(model.state_dict())
    other = make_optimizer(name, again.parameters(), 0.01, 0.0)
    other.load_state_dict(saved)
    for each, taker in ((model, optimizer), (again, other)):  # which share no memory
        taker.zero_grad()
        gradients(each, 1)
        taker.step()
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_others_are_those_of_torch() -> None:
    assert isinstance(make_optimizer("rmsprop", network().parameters(), 0.01, 0.0), torch.optim.RMSprop)
    elsewhere: list[Tensor] = [nn.Parameter(torch.empty(2, device="meta"))]
    assert isinstance(make_optimizer("adam", elsewhere, 0.01, 0.0), torch.optim.Adam)


def test_a_run_does_not_import_a_compiler(tmp_path: Path) -> None:
    """What PyTorch's own optimisers do; it takes as long as the import of PyTorch itself."""
    code = (
        "import sys; from trueode.cli.main import main; "
        f"code = main(['train', '--niter', '3', '--output_dir', {str(tmp_path)!r}, '--data_dir', {str(tmp_path)!r}]); "
        "unwanted = {'torch._dynamo', 'torchvision', 'pandas', 'sympy', 'scipy.stats', 'scipy.optimize'} & set(sys.modules); "
        "print(unwanted); sys.exit(code or bool(unwanted))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
