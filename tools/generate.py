"""Write the generated files (``make generate``); a test asserts that they are up to date."""

from __future__ import annotations

import re
from pathlib import Path

from trueode.options import Options, dump_yaml

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("images", "tensorboard")


def requirements(pyproject: str) -> str:
    """The requirements file: the core dependencies and those of `EXTRAS`."""
    lines = ["# Generated from pyproject.toml by `make generate`: core, images and tensorboard."]
    for name in ("dependencies", *EXTRAS):
        block = re.search(rf"^{name} = \[(.*?)\]", pyproject, re.MULTILINE | re.DOTALL)
        assert block, f"pyproject.toml has no list {name}"
        lines += re.findall(r'"([^"]+)"', block[1])
    return "\n".join(lines) + "\n"


def generated() -> dict[Path, str]:
    """The content of each generated file."""
    return {
        ROOT / "options" / "default_config.yaml": dump_yaml(Options()),
        ROOT / "requirements.txt": requirements(
            (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        ),
    }


if __name__ == "__main__":
    for path, text in generated().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
