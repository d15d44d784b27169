"""Small runs of every kind, and their undisturbed results."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import numpy as np

from campaign.operations import count_into
from campaign.place import Place

PLAIN = (
    "--dataset arrays --data_dir {data}/classes.npz --ch_residual_block 8 --batch_size 32 --lr 0.01"
)
TRAINED = "--name run --torch_threads 1 --model_checkpoint_freq 8 --log_interval 1"
FLAGS = {
    "plain": f"{PLAIN} --niter 30 --evaluate_test_acc true --eval_interval 10",
    "adaptation": f"{PLAIN} --niter 30 --max_steps 16 --use_step_adaption_algo true "
    "--adaption_interval 5 --threshold 0.02",
    "certified": f"{PLAIN} --niter 20 --solver rk4 --use_step_adaption_algo true "
    "--adaption_algo fidelity --fidelity 0.1 --held_out 0.5 --adaption_interval 10",
    "series": "--dataset arrays --data_dir {data}/series.npz --network linear_odenet --act tanh "
    "--solver rk4 --n_steps 4 --niter 20",
    "images": "--dataset image_folder --data_dir {data}/images --network odenet "
    "--ch_residual_block 4 --num_threads 0 --niter 10",
}
PLAN = """\
base:
  dataset: arrays
  data_dir: {data}/classes.npz
  ch_residual_block: 8
  niter: 10
  model_checkpoint_freq: 4
axes: {{random_seed: [0, 1]}}
"""
SWEEP = "sweep"
KINDS = (*FLAGS, SWEEP)


@dataclass(frozen=True)
class Run:
    """A command of trueode, and its arguments to start and to resume a kind of run."""

    command: str
    words: list[str]
    resume: list[str]
    before: Callable[[], None] | None = None


def run_of(kind: str, shared: Path) -> Run:
    """The run of a kind."""
    data = make_data(shared)
    if kind == SWEEP:
        words = [str(data / "plan.yaml"), "--output_dir", "experiments/run", "--workers", "1"]
        return Run("sweep", words, words, work_here)
    words = f"{FLAGS[kind].format(data=data)} {TRAINED}".split()
    return Run("train", words, ["--name", "run", "--resume", "true"])


def make_data(shared: Path) -> Path:
    """Make the data of all runs, once, and return its folder."""
    folder = shared / "data"
    if folder.exists():
        return folder
    from PIL import Image

    drawn = np.random.default_rng(0)
    with _whole(folder) as made:
        x, t = drawn.normal(size=(120, 2)), np.linspace(0, 0.8, 5)
        turned = [
            x[:, :1] * np.cos(2 * t) + x[:, 1:] * np.sin(2 * t),
            x[:, 1:] * np.cos(2 * t) - x[:, :1] * np.sin(2 * t),
        ]
        np.savez(made / "series.npz", x=x, y=np.stack(turned, -1), t=t)
        np.savez(made / "classes.npz", x=x, y=(np.linalg.norm(x, axis=1) > 1).astype(int))
        for name in ("images/a", "images/b"):
            (made / name).mkdir(parents=True)
            for i in range(6):
                Image.fromarray(drawn.integers(0, 255, (6, 6, 3), dtype=np.uint8)).save(
                    made / name / f"{i}.png"
                )
        (made / "plan.yaml").write_text(PLAN.format(data=folder))
    return folder


def undisturbed(kind: str, shared: Path) -> tuple[Path, int]:
    """The folder of an undisturbed run, made once, and its number of file operations.

    Raises:
        Fault: the run fails.
    """
    kept = shared / "undisturbed" / kind
    if not kept.exists():
        with _whole(kept) as made:
            place, run = Place(made / "place", shared, Random(0)), run_of(kind, shared)
            before = partial(_counted, str(made / "operations"), run.before)
            place.command(run.command, run.words, codes=[0], before=before)
            place.run.rename(made / "run")
    return kept / "run", (kept / "operations").stat().st_size


def _counted(path: str, then: Callable[[], None] | None) -> None:
    count_into(path)
    if then is not None:
        then()


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Make a folder atomically; another process may make it at the same time."""
    made = folder.with_name(f"{folder.name}-{os.getpid()}")
    made.mkdir(parents=True)
    try:
        yield made
        with suppress(OSError):  # the other one was faster
            made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def work_here() -> None:
    """Let a sweep do its runs in this process, and thus be killed as a whole."""
    from trueode.sweeps import execute
    from trueode.sweeps.jobs import Job, Result
    from trueode.sweeps.worker import perform

    class Here:
        def __init__(self, count: int, gpus: Sequence[str] = ()) -> None:
            self.count, self._jobs = 1, deque[Job]()

        def submit(self, job: Job) -> None:
            self._jobs.append(job)

        def next(self, patience: float) -> Result | None:
            if not self._jobs:
                return None
            job = self._jobs.popleft()
            return Result(job.hash, *perform(job.options, Path(job.log)))

        def interrupt(self) -> None:
            self._jobs.clear()

        def close(self) -> None:
            self._jobs.clear()

    vars(execute)["LocalWorkers"] = Here
