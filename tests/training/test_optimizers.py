"""Our optimisers equal those of PyTorch bit for bit."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueode.errors import CheckpointError
from trueode.training.optimizers import (
    FusedAdam,
    FusedSGD,
    Optimizer,
    TorchAdam,
    TorchRMSprop,
    TorchSGD,
    make_optimizer,
)

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
    ours.step()  # no parameter has a gradient yet
    for seed, frozen in enumerate((True, False, True)):
        for model, optimizer in ((own, ours), (other, theirs)):
            optimizer.zero_grad()
            gradients(model, seed)
            if frozen:
                model[0].weight.grad = None
            before = model[0].weight.detach().clone()
            optimizer.step()
            assert torch.equal(model[0].weight, before) == frozen
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
    for each, taker in ((model, optimizer), (again, other)):  # they share no memory
        taker.zero_grad()
        gradients(each, 1)
        taker.step()
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


CLASSES = {"adam": (FusedAdam, TorchAdam), "sgd": (FusedSGD, TorchSGD), "rmsprop": (TorchRMSprop,)}
PAIRS = [(one, other) for classes in CLASSES.values() for one in classes for other in classes]


def trained(kind: type[Optimizer], steps: int) -> tuple[nn.Module, Optimizer]:
    model = network()
    return model, further(model, kind(list(model.parameters()), 0.01, 0.1), range(steps))


def further(model: nn.Module, optimizer: Optimizer, seeds: range) -> Optimizer:
    for seed in seeds:
        optimizer.zero_grad()
        gradients(model, seed)
        optimizer.step()
    return optimizer


def older(optimizer: Optimizer, form: str) -> dict[str, Any]:
    """A state as earlier versions wrote it.

    The forms are an own one, that of torch.optim on a CPU, and that of ``fused=True``.
    """
    state = {number: dict(state) for number, state in optimizer.state_dict()["state"].items()}
    if form == "own":
        return {"state": state}
    name = next(name for name, classes in CLASSES.items() if type(optimizer) in classes)
    theirs: Any = {**PEERS, "rmsprop": torch.optim.RMSprop}[name](
        optimizer.params, lr=0.01, weight_decay=0.1
    )
    saved: dict[str, Any] = {
        **theirs.state_dict(),
        "state": {number: each for number, each in state.items() if each},
    }
    saved["param_groups"][0]["fused"] = form == "fused" or None
    return saved


@pytest.mark.parametrize("form", ["now", "own", "torch", "fused"])
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_every_state_goes_on_in_every_class(
    one: type[Optimizer], other: type[Optimizer], form: str
) -> None:
    """On a CPU, and from a CPU to another device and back."""
    model, optimizer = trained(one, 3)
    saved = optimizer.state_dict() if form == "now" else older(optimizer, form)
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    again = copy.deepcopy(model)
    taker = other(list(again.parameters()), 0.01, 0.1)
    taker.load_state_dict(torch.load(buffer, weights_only=True, map_location="cpu"))
    further(again, taker, range(3, 6))
    whole, uninterrupted = trained(one, 6)
    for p, q in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(
            p, q, rtol=0 if one is other else 1e-5, atol=0 if one is other else 1e-7
        )
    here, there = uninterrupted.state_dict()["state"], taker.state_dict()["state"]
    assert [list(state) for state in here.values()] == [list(state) for state in there.values()]


@pytest.mark.parametrize("kind", [kind for classes in CLASSES.values() for kind in classes])
def test_a_state_from_before_the_first_step_goes_on(kind: type[Optimizer]) -> None:
    _, fresh = trained(kind, 0)
    empty: dict[str, Any] = {"state": {}}  # as earlier versions wrote it
    for saved in (fresh.state_dict(), older(fresh, "torch"), empty):
        model, optimizer = trained(kind, 0)
        optimizer.load_state_dict(saved)
        further(model, optimizer, range(2))
        whole, _ = trained(kind, 2)
        for p, q in zip(whole.parameters(), model.parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("name", CLASSES)
def test_a_loaded_state_is_a_copy_of_the_type_and_layout_of_the_parameters(name: str) -> None:
    _, optimizer = trained(CLASSES[name][0], 2)
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    model = network(torch.float64)
    taker = make_optimizer(name, model.parameters(), 0.01, 0.1)
    taker.load_state_dict(
        {"state": {i: {k: v.contiguous() for k, v in s.items()} for i, s in saved["state"].items()}}
    )
    for number, param in enumerate(model.parameters()):
        for key, value in taker.state_dict()["state"][number].items():
            assert value.dtype == (torch.float32 if key == "step" else torch.float64)
            assert key == "step" or value.stride() == param.stride()
    taker.load_state_dict(saved)
    further(model, taker, range(2))
    for number, state in before["state"].items():
        for key, value in state.items():
            assert torch.equal(saved["state"][number][key], value)


def test_a_state_moves_to_the_device_of_the_parameters() -> None:
    for name, classes in CLASSES.items():
        _, optimizer = trained(classes[0], 2)
        away = make_optimizer(name, network().to("meta").parameters(), 0.01, 0.1)
        away.load_state_dict(optimizer.state_dict())
        for state in away.state_dict()["state"].values():
            assert {key: value.device.type for key, value in state.items()} == {
                key: "cpu" if key == "step" else "meta" for key in classes[0].NAMES
            }


@pytest.mark.parametrize("kind", [kind for classes in CLASSES.values() for kind in classes])
def test_a_state_that_does_not_fit_is_refused(kind: type[Optimizer]) -> None:
    _, optimizer = trained(kind, 1)
    torch.manual_seed(0)
    fewer = list(network().parameters())[:2]
    for form in ("now", "own", "torch"):
        saved = optimizer.state_dict() if form == "now" else older(optimizer, form)
        with pytest.raises(CheckpointError, match=r"4 parameters.*has 2"):
            kind(fewer, 0.01, 0.1).load_state_dict(saved)
    with pytest.raises(CheckpointError, match="no state"):
        kind(fewer, 0.01, 0.1).load_state_dict({})
    saved = optimizer.state_dict()
    saved["state"][1] |= {"step": torch.tensor(1.0), "strange": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"strange.*parameter 1"):
        kind(optimizer.params, 0.01, 0.1).load_state_dict(saved)
    if kind.NAMES:
        others = list(reversed(optimizer.params))
        with pytest.raises(CheckpointError, match=r"parameter 0.*\(5,\)"):
            kind(others, 0.01, 0.1).load_state_dict(optimizer.state_dict())
        saved = optimizer.state_dict()
        del saved["state"][2]["step"]
        with pytest.raises(CheckpointError, match=r"parameter 2.*'step'"):
            kind(optimizer.params, 0.01, 0.1).load_state_dict(saved)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_that_sometimes_have_no_gradient(name: str) -> None:
    """Each parameter counts its steps, before and after a state is loaded."""
    own, other = network(), network()
    ours = make_optimizer(name, own.parameters(), 0.01, 0.0)
    theirs = PEERS[name](other.parameters(), 0.01, fused=True)
    for seed in range(8):
        for model, optimizer in ((own, ours), (other, theirs)):
            optimizer.zero_grad()
            gradients(model, seed)
            if seed in (2, 3, 6):
                model[0].weight.grad = None
            optimizer.step()
        ours.load_state_dict(ours.state_dict())
    for p, q in zip(own.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_others_are_those_of_torch() -> None:
    assert isinstance(make_optimizer("rmsprop", network().parameters(), 0.01, 0.0), TorchRMSprop)
    elsewhere: list[Tensor] = [nn.Parameter(torch.empty(2, device="meta"))]
    assert isinstance(make_optimizer("adam", elsewhere, 0.01, 0.0), TorchAdam)
    mixed: list[Tensor] = [
        nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in (torch.float32, torch.float64)
    ]
    assert isinstance(make_optimizer("sgd", mixed, 0.01, 0.0), TorchSGD)


@pytest.mark.parametrize("kind", [TorchAdam, TorchSGD, TorchRMSprop])
def test_steps_of_the_others_are_those_of_torch(kind: type[TorchAdam]) -> None:
    model, _ = trained(kind, 4)
    other = network()
    theirs = getattr(torch.optim, kind.KIND)(other.parameters(), lr=0.01, weight_decay=0.1)
    for seed in range(4):
        theirs.zero_grad()
        gradients(other, seed)
        theirs.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_run_does_not_import_a_compiler(tmp_path: Path) -> None:
    """PyTorch's optimisers do, which takes as long as the import of PyTorch."""
    code = (
        "import sys; from trueode.cli.main import main; "
        f"code = main(['train', '--niter', '3', '--output_dir', {str(tmp_path)!r}, "
        f"'--data_dir', {str(tmp_path)!r}]); "
        "unwanted = {'torch._dynamo', 'torchvision', 'pandas', 'sympy', 'scipy.stats', "
        "'scipy.optimize'} & set(sys.modules); "
        "print(unwanted); sys.exit(code or bool(unwanted))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
