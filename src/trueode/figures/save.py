"""Writing a figure to a file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

from trueode.figures.theme import style


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write ``figure`` as PNG to ``path``, whole or not at all; missing folders are made.

    Equal figures give equal bytes: the size is fixed and no date is written.

    Returns:
        The path written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".png")
    try:
        with os.fdopen(handle, "wb") as file, style():
            figure.savefig(file, format="png")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
