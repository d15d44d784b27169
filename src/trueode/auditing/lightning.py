"""`SolverCheck`: a callback for PyTorch Lightning (``pip install trueode[lightning]``)."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from trueode.auditing.auditor import check_solver
from trueode.auditing.report import Audit
from trueode.errors import UsageError


def _callback() -> Any:
    """The base class for callbacks, from the Lightning package in use, or else installed."""
    names = ("lightning.pytorch", "pytorch_lightning")
    loaded = [name for name in names if name in sys.modules]
    there = [name for name in names if find_spec(name.partition(".")[0]) is not None]
    if not loaded and not there:
        raise UsageError("SolverCheck needs PyTorch Lightning: pip install 'trueode[lightning]'.")
    return import_module((loaded or there)[0]).Callback


class SolverCheck(_callback()):  # type: ignore[misc]  # the package is chosen at run time
    """Log at regular intervals how much a model depends on its solver.

    It logs ``solver/flips`` (share of predictions that change under the exact flow),
    ``solver/flips_upper`` (its upper bound with 95 % confidence), ``solver/state_error`` and
    ``solver/nfe``. The module is called as ``module(x)`` unless you pass ``call``, and is left
    unchanged.

    Args:
        data: samples that the model is not trained on, as in `audit`.
        every_n_steps: training steps between checks.
        samples: number of samples to audit, the first ones of the data.
        how: other arguments of `audit`.

    Attributes:
        reports: the audits, by training step.
    """

    def __init__(
        self, data: Any, every_n_steps: int = 500, *, samples: int = 512, **how: Any
    ) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise UsageError(f"every_n_steps must be at least 1, got {every_n_steps!r}.")
        self.data = data
        self.every_n_steps = every_n_steps
        self.how = {"samples": samples, **how}
        self.reports: dict[int, Audit] = {}

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the model at every ``every_n_steps``-th step."""
        step = int(trainer.global_step)
        if step % self.every_n_steps or step in self.reports or not step:
            return
        found = check_solver(pl_module, self.data, **self.how)
        self.reports[step] = found
        values = {
            "solver/flips": found.flips / found.n if found.exact is not None else float("nan"),
            "solver/flips_upper": found.decision.most,
            "solver/state_error": found.state_error,
            "solver/nfe": found.own.nfe,
        }
        # log_dict serves callbacks that monitor these values; with a logger it would repeat them
        # until the epoch ends
        pl_module.log_dict(values, logger=False, rank_zero_only=True)
        for logger in trainer.loggers:
            logger.log_metrics(values, step)
