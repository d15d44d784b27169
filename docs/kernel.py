"""Start-up of the kernel of a page: link the files that pages use into its empty directory."""

from pathlib import Path as _Path

for _name in ("examples", "options", "train.py"):
    _Path(_name).symlink_to(_Path(__file__).resolve().parents[1] / _name)
del _Path, _name
