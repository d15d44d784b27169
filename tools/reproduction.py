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
SECTION = "\n## "


def write(results: Path, docs: Path) -> list[str]:
    """Copy the files of each name and scale that exist, and write their sections of the page.

    The sections of other names and scales stay as they are.

    Returns:
        The names of the parts that were written.
    """
    docs.mkdir(parents=True, exist_ok=True)
    page = docs / "README.md"
    old = page.read_text(encoding="utf-8").split(SECTION)[1:] if page.is_file() else []
    kept = {text.partition("\n")[0]: text.partition("\n")[2] for text in old}
    parts, found = [HEAD], []
    for name, text in NAMES.items():
        for scale in reversed(SCALES):  # as published first
            title = f"{name}, {scale} scale"
            section = kept.get(title)
            if (results / f"{name}-{scale}.md").is_file():
                section = _section(results, f"{name}-{scale}", text, docs)
                found.append(f"{name}-{scale}")
            if section is not None:
                stripped = section.strip("\n")
                parts.append(f"## {title}\n\n{stripped}\n")
    page.write_text("\n".join(parts), encoding="utf-8")
    return found


def _section(results: Path, stem: str, text: str, docs: Path) -> str:
    """The section of a result; its files are copied."""
    files = [path for ending in COPIED if (path := results / f"{stem}{ending}").is_file()]
    for path in files:
        shutil.copy(path, docs / path.name)
    links = ", ".join(f"[{path.suffix[1:].upper()}]({path.name})" for path in files)
    picture = f"![{text}]({stem}.png)\n\n" if results / f"{stem}.png" in files else ""
    caption = (results / f"{stem}.md").read_text(encoding="utf-8")
    return f"{picture}{caption}\nFiles: {links}"


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
