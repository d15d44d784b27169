"""Write docs/reproduction/: pictures, numbers and captions of `trueode reproduce` on one page.

python tools/reproduction.py experiments/reproduction
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from trueode.cli.reproduce import NAMES, SCALES

ROOT = Path(__file__).resolve().parents[1]
COPIED = (".png", ".csv")  # PDF and SVG stay with the originals
HEAD = """# The paper, reproduced

*ResNet After All? Neural ODEs and Their Numerical Solution* (ICLR 2021), figure by figure. Each
section states its scale, how it differs from the paper, its command and its cost. The numbers of a
picture are in the CSV file next to it. Each row ends with the hashes of its runs:
`OUTPUT_DIR/runs/*-HASH/` holds the options, history, weights, test table and verdict of a run, and
`trueode audit` can audit it.

This page is written by `python tools/reproduction.py experiments/reproduction`, after
`trueode reproduce NAME --scale SCALE`.
"""


def write(results: Path, docs: Path) -> list[str]:
    """Copy the files of each name and scale that exist, and write the page.

    Returns:
        The names of the parts that exist.
    """
    docs.mkdir(parents=True, exist_ok=True)
    parts, found = [HEAD], []
    for name, text in NAMES.items():
        for scale in reversed(SCALES):  # as published first
            stem = results / f"{name}-{scale}"
            caption = stem.with_name(f"{stem.name}.md")
            if not caption.is_file():
                continue
            found.append(stem.name)
            files = [
                path for ending in COPIED if (path := stem.with_name(stem.name + ending)).is_file()
            ]
            for path in files:
                shutil.copy(path, docs / path.name)
            links = ", ".join(f"[{path.suffix[1:].upper()}]({path.name})" for path in files)
            picture = (
                f"![{text}]({stem.name}.png)\n\n"
                if (stem.with_name(f"{stem.name}.png")).is_file()
                else ""
            )
            parts.append(
                f"## {name}, {scale} scale\n\n{picture}{caption.read_text(encoding='utf-8')}\n"
                f"Files: {links}"
            )
    (docs / "README.md").write_text(
        "\n\n".join(part.strip("\n") for part in parts) + "\n", encoding="utf-8"
    )
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output_dir", type=Path, help="the OUTPUT_DIR of trueode reproduce")
    parser.add_argument(
        "--docs", type=Path, default=ROOT / "docs" / "reproduction", help="folder to write to"
    )
    arguments = parser.parse_args()
    found = write(arguments.output_dir / "results", arguments.docs)
    print(f"{arguments.docs / 'README.md'}: {', '.join(found) or 'nothing found'}")


if __name__ == "__main__":
    main()
