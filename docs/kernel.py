"""Start-up of the kernel of a page: link the files that pages use into its empty directory, and
define what shows a report inside a page.
"""

from html import escape as _escape
from pathlib import Path as _Path
from typing import Any

for _name in ("examples", "options", "train.py"):
    if not _Path(_name).exists():
        _Path(_name).symlink_to(_Path(__file__).resolve().parents[1] / _name)


def framed(report: str, title: str) -> Any:
    """A ``report.html`` inside the page."""
    from IPython.display import HTML

    text = _escape(_Path(report).read_text(encoding="utf-8"))
    frame = f'<iframe title="{_escape(title)}" srcdoc="{text}"></iframe>'
    return HTML(f'<div class="report">{frame}</div>')
