"""Sections of `gpu.py` that train, resume and audit models, as commands and by hand."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_bench import COMMANDS_NEED, Bench, MissingError, Row, away, drawn, need
from torch import Tensor, nn

# --- training


def data(bench: Bench, images: bool = False) -> Path:
    """A folder of generated samples of two classes, as ``--dataset arrays`` takes them."""
    folder = bench.out / "data" / ("images" if images else "signals")
    if (folder / "test.npz").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    shape = (3, 8, 8) if images else (1, 2)
    for i, (part, n) in enumerate((("train", bench.size(1000, 50)), ("test", bench.size(200, 4)))):
        x, y = drawn(n, *shape, seed=i).numpy().astype("f4"), np.arange(n) % 2
        radius = np.abs(x).reshape(n, -1).mean(1).reshape(-1, *[1] * len(shape))
        np.savez(folder / f".{part}.npz", x=x / radius * (1 + y.reshape(radius.shape)), y=y)
        (folder / f".{part}.npz").replace(folder / f"{part}.npz")
    return folder


def words_of(options: dict[str, Any]) -> list[str]:
    """Options as flags."""
    words: list[str] = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(str(x).lower() if isinstance(x, bool) else str(x) for x in values)]
    return words


def small(bench: Bench, images: bool = False, **changed: Any) -> dict[str, Any]:
    """The options of a short training."""
    return {
        "dataset": "arrays",
        "data_dir": data(bench, images),
        "network": "odenet" if images else "simple_odenet",
        "ch_residual_block": bench.size(16, 4),
        "batch_size": bench.size(96, 24),
        "solver": "euler",
        "step_size": bench.size(0.125, 0.5),
        "lr": 0.01,
        "verdict_budget": bench.size(1, 0.01),
        "torch_threads": 1,
        **changed,
    }


def trainer_of(bench: Bench, device: torch.device, ranks: Any = None, **changed: Any) -> Any:
    """The trainer of a short training on a device."""
    need("pydantic", "yaml")
    from trueode.build import build_run
    from trueode.distributed import Ranks
    from trueode.options import make_options

    options = small(bench, **{"use_gpu": device.type == "cuda", **changed})
    if "n_steps" in options:
        del options["step_size"]
    options["data_dir"] = str(options["data_dir"])
    return build_run(make_options(options), ranks or Ranks(0, 1, device))[1]


# --- resuming


def resume(bench: Bench) -> None:
    """A run that is killed and resumed ends with the bits of the uninterrupted one."""
    need(*COMMANDS_NEED)
    rule = {"use_step_adaption_algo": True, "adaption_interval": 3}
    jobs = {
        "signals": (small(bench), {}),
        "signals, paper's rule": (small(bench, **rule), {}),
        "images": (small(bench, images=True), {}),
        "images, with graphs": (small(bench, images=True), {"TRUEODE_GRAPHS": "on"}),
    }
    for name, (options, environment) in list(jobs.items())[: bench.size(4, 1)]:
        bench.row(name, partial(killed_and_resumed, bench, options, environment))


def killed_and_resumed(bench: Bench, options: dict[str, Any], environment: dict[str, str]) -> Row:
    place, niter = bench.out / "runs" / "resume", bench.size(400, 30)
    common = {"output_dir": place, "niter": niter, "model_checkpoint_freq": 2, "overwrite": True}

    def start(name: str, *words: str) -> Any:
        return bench.command("train", "--name", name, *words, *bench.flags, **environment)

    names = [f"whole{i}" for i in range(bench.size(2, 1))]
    whole = [start(name, *words_of({**options, **common})) for name in names]
    shutil.rmtree(place / "cut", ignore_errors=True)
    cut = start("cut", *words_of({**options, **common}))
    while cut.is_alive() and newest(place / "cut") < niter // 3:
        time.sleep(0.01)
    if not cut.is_alive():
        raise RuntimeError("the run ended before it could be killed; the section's log shows it")
    os.kill(cut.pid, signal.SIGKILL)
    cut.join()
    ended(*whole)
    at = checkpoint(place / "cut")["iteration"]
    ended(start("cut", "--output_dir", str(place), "--resume", "true"))
    results = [checkpoint(place / name) for name in ("cut", *names)]
    if not alike(*results[1:]):
        raise MissingError("uninterrupted runs do not repeat their bits either")
    row: Row = {"killed after": at, "iterations": results[0]["iteration"]}
    row["equal"] = alike(*results[:2])
    return row if row["equal"] else {**row, "wrong": "other weights than without interruption"}


def newest(run: Path) -> int:
    """The iteration of a run's newest checkpoint; -1 without one."""
    found = (run / "checkpoints").glob("iteration_*.pt")
    return max((int(path.stem.removeprefix("iteration_")) for path in found), default=-1)


def checkpoint(run: Path) -> dict[str, Any]:
    """The newest checkpoint of a run."""
    from trueode.runs import load_latest

    return load_latest(run / "checkpoints", print)[1]


def alike(*saved: dict[str, Any]) -> bool:
    """Whether checkpoints hold the same weights and the same state of the optimiser."""
    flat = [list(leaves((each["model"], each["optimizer"]))) for each in saved]
    return all(
        len(flat[0]) == len(other) and all(map(torch.equal, flat[0], other)) for other in flat
    )


def leaves(nested: Any) -> Iterator[Tensor]:
    """All tensors in dicts, lists and tuples."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, dict):
        for value in nested.values():
            yield from leaves(value)
    elif isinstance(nested, list | tuple):
        for value in nested:
            yield from leaves(value)


def ended(*commands: Any) -> None:
    """Wait for commands, which must end with code 0."""
    for command in commands:
        command.join()
    codes = [command.exitcode for command in commands]
    if any(codes):
        raise RuntimeError(f"a command ended with code {codes}; the section's log shows it")


def across(bench: Bench) -> None:
    """A run that moves from the CPU to the GPU and back is the run on the CPU, up to rounding."""
    need(*COMMANDS_NEED)
    optimizers = bench.size(("adam", "sgd", "rmsprop"), ("adam",))
    for name in optimizers:
        bench.row(name, partial(moved, bench, name))


def moved(bench: Bench, optimizer: str) -> Row:
    place, n = bench.out / "runs" / "across", bench.size(10, 2)
    options = small(
        bench, output_dir=place, overwrite=True, precision="float64", optimizer=optimizer
    )
    words = words_of(options)
    stay = bench.command("train", "--name", "stay", "--niter", str(3 * n), *words)
    ended(bench.command("train", "--name", "move", "--niter", str(n), *words))
    go_on = ["--name", "move", "--output_dir", str(place), "--resume", "true", "--niter"]
    ended(bench.command("train", *go_on, str(2 * n), *bench.flags))
    ended(bench.command("train", *go_on, str(3 * n), "--use_gpu", "false"))
    ended(stay)
    one, other = (
        torch.cat([x.double().flatten() for x in leaves(checkpoint(place / name)["model"])])
        for name in ("move", "stay")
    )
    distance = away(one, other)
    row: Row = {"iterations on each": n, "distance of the weights": distance}
    return row if distance < 1e-9 else {**row, "wrong": "above 1e-9"}


# --- audits


class Foreign(nn.Module):
    """A model of torchdiffeq whose field depends on time."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(3, 16), nn.Linear(16, 2), nn.Linear(2, 2)
        self.register_buffer("t", torch.tensor([0.0, 1.0]))

    def field(self, t: Tensor, z: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(torch.cat([z, t.expand(len(z), 1)], 1))))

    def forward(self, x: Tensor) -> Tensor:
        from torchdiffeq import odeint

        options = {"step_size": 0.5}
        return self.head(odeint(self.field, x, self.t, method="euler", options=options)[-1])


def audits(bench: Bench) -> None:
    """Audits say what they say on the CPU; the time of one at the paper's size."""
    need("pydantic", "scipy")
    bench.row("NeuralODE", lambda: same_verdict(bench, own_model()))
    bench.row("torchdiffeq, with time", lambda: same_verdict(bench, foreign_model()))
    bench.row("odenet, time of a verdict", lambda: time_of_audit(bench))


def own_model() -> nn.Module:
    from trueode import FixedStep, NeuralODE
    from trueode.fields import build_field

    torch.manual_seed(0)
    return NeuralODE(
        build_field("linear_odenet", (2,), 16),
        downstream=nn.Linear(2, 2),
        solver=FixedStep("euler", n_steps=2),
    )


def foreign_model() -> nn.Module:
    import torchdiffeq  # noqa: F401 - audits see libraries that were imported before

    torch.manual_seed(0)
    return Foreign()


def same_verdict(bench: Bench, model: nn.Module) -> Row:
    from trueode import audit

    n = bench.size(500, 12)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)  # so that some predictions change
    x = drawn(n, 2).float()
    y = (x.norm(dim=1) > 1).long()
    found = {}
    for device in (torch.device("cpu"), bench.where):
        model.to(device)
        result = audit(
            model, (x.to(device), y.to(device)), methods=bench.size(("euler", "rk4"), ())
        )
        counts = (result.verdict, result.flips, result.n)
        found[str(device)] = (*counts, *((str(r.solver), r.flips) for r in result.rows[1:]))
    cpu, own = found["cpu"], found[str(bench.where)]
    row: Row = {"verdict": own[0], "changed": own[1], "of": own[2], "on the CPU": cpu[1]}
    same = own[0] == cpu[0] and abs(own[1] - cpu[1]) <= 1
    return row if same else {**row, "wrong": f"on the CPU {cpu[:3]}"}


def time_of_audit(bench: Bench) -> Row:
    """A verdict on an untrained network of the size of Figure 5."""
    from trueode import FixedStep, NeuralODE, check_solver
    from trueode.fields import build_field

    channels, length, n = bench.size((128, 32, 512), (2, 4, 4))
    torch.manual_seed(0)
    field = build_field("odenet", (3, length, length), channels)
    head = nn.Sequential(nn.Flatten(), nn.Linear(3 * length**2, 10))
    model = NeuralODE(field, downstream=head, solver=FixedStep("euler", n_steps=16))
    model = model.to(bench.where)
    x, y = drawn(n, 3, length, length).float(), torch.arange(n) % 10
    begin = time.perf_counter()
    result = check_solver(model, (x.to(bench.where), y.to(bench.where)), samples=n)
    return {
        "samples": n,
        "channels": channels,
        "verdict": result.verdict,
        "seconds": time.perf_counter() - begin,
    }


# --- several processes


def ranks(bench: Bench) -> None:
    """Two processes that share a device by gloo train what one trains; NCCL with one process."""
    bench.row("gloo, two processes", lambda: two_ranks(bench))
    bench.row("NCCL, one process", lambda: nccl_alone(bench))


def two_ranks(bench: Bench) -> Row:
    need("pydantic", "yaml")
    if bench.device == "pretend":
        raise MissingError("DistributedDataParallel takes no pretended tensors")
    data(bench)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    other = bench.start(rank, bench.out / "rank1.pt", **shared, RANK="1")
    bench.apart(rank, bench.out / "rank0.pt", **shared, RANK="0")
    other.join()
    bench.apart(rank, bench.out / "alone.pt", WORLD_SIZE="1", RANK="0")
    one, two, alone = (
        torch.load(bench.out / f"{name}.pt", weights_only=True)
        for name in ("rank0", "rank1", "alone")
    )
    distance = away(one, alone)
    row: Row = {"ranks are equal": torch.equal(one, two), "distance from one": distance}
    if not torch.equal(one, two) or distance > 1e-9:
        row["wrong"] = "ranks differ, or one process finds other weights (1e-9)"
    return row


def rank(bench: Bench, file: Path) -> None:
    """Train on one of several processes, and save the weights."""
    from trueode.distributed import Ranks

    number, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size > 1:
        torch.distributed.init_process_group("gloo", rank=number, world_size=size)
    group = Ranks(number, size, bench.where)
    rule = {"use_step_adaption_algo": True, "adaption_interval": 3}
    trainer = trainer_of(
        bench, bench.where, group, precision="float64", niter=bench.size(20, 6), **rule
    )
    trainer.run()
    weights = [x.double().cpu().flatten() for x in leaves(trainer.state.model.state_dict())]
    torch.save(torch.cat(weights), file)
    del trainer
    group.close()


def nccl_alone(bench: Bench) -> Row:
    if not bench.on_gpu:
        raise MissingError("no GPU")
    if not torch.distributed.is_nccl_available():
        raise MissingError("PyTorch was built without NCCL")
    bench.apart(through_nccl)
    return {"sum and DistributedDataParallel": "as without"}


def through_nccl(bench: Bench) -> None:
    """A sum, and gradients of a model, through NCCL with one process."""
    torch.cuda.set_device(bench.where)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group(
        "nccl", store=store, rank=0, world_size=1, device_id=bench.where
    )
    x = drawn(4, 2).float().to(bench.where)
    total = x.clone()
    torch.distributed.all_reduce(total)
    layer = nn.Linear(2, 2).to(bench.where)
    shared = nn.parallel.DistributedDataParallel(layer, device_ids=[0])
    shared(x).square().sum().backward()
    own = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    layer(x).square().sum().backward()
    for one, other in zip([total, *own], [x, *(p.grad for p in layer.parameters())], strict=True):
        torch.testing.assert_close(one, other)
    torch.distributed.destroy_process_group()
