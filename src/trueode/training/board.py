"""Write rows of the history for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trueode.errors import UsageError


def summary_writer() -> Any:
    """TensorBoard's class that writes event files.

    Raises:
        UsageError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            "--use_tensorboard true needs the package tensorboard: "
            "pip install 'trueode[tensorboard]'."
        ) from None
    return SummaryWriter


class Board:
    """Writes rows of the history as scalars.

    Args:
        folder: the folder of the event files.
        iteration: the iteration to continue from; entries after it, from before an interruption,
            are dropped.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        self._writer = summary_writer()(str(folder), purge_step=iteration + 1)

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, row: dict[str, Any]) -> None:
        """Write one row, without its empty entries."""
        for name, value in row.items():
            if name != "iteration" and value is not None:
                self._writer.add_scalar(name, value, row["iteration"])
