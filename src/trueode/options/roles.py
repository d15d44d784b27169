"""Roles of options: those that a result depends on, and those that may change for a saved run."""

from __future__ import annotations

from trueode.options.schema import Options

PLACES = frozenset({"name", "output_dir", "data_dir", "phase", "split", "resume", "overwrite"})
DEVICES = frozenset({"use_gpu", "gpu_ids", "num_threads", "torch_threads"})
LOGGING = frozenset({"log_interval", "model_checkpoint_freq", "use_tensorboard", "report"})
EVALUATION = frozenset(
    {"evaluate_with_dif_solver", "test_solver_list", "test_factor_list", "verdict_budget"}
)
RESULT = frozenset(Options.model_fields) - PLACES - DEVICES - LOGGING
"""The options that a run's result depends on. It depends on the data, but not on its location."""
