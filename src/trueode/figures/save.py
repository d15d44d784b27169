"""Writing a figure to files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from trueode.figures.theme import style

UNDATED: dict[str, dict[str, Any]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
"""Forms, each with what keeps the date out of it."""


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write ``figure`` to ``path``, whole or not at all; missing folders are made.

    The ending of the path tells the form: ``.pdf`` and ``.svg`` are drawings, everything else becomes PNG. Equal figures give equal bytes: the size is fixed and no date is written.

    Returns:
        The path written.
    """
    path = Path(path)
    form = path.suffix.lower().removeprefix(".")
    form = form if form in UNDATED else "png"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=f".{form}")
    try:
        with os.fdopen(handle, "wb") as file, style():
            figure.savefig(file, format=form, metadata=UNDATED[form])
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
