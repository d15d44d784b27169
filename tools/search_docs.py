"""Search the built documentation for ten topics, and check the first two results of each.

    make docs && python tools/search_docs.py

The search of the site runs in a headless Chromium (``--browser``) without network access. Exit
code: 0, or 1 if a right page is missing.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

SITE = Path(__file__).resolve().parents[1] / "docs" / "_build" / "html"
QUESTIONS = {
    "default step": ("train", "start", "solvers"),
    "resume": ("train",),
    "audit DataLoader": ("audit",),
    "cheapest solver": ("solvers", "audit"),
    "own images": ("data",),
    "Dask cluster": ("sweeps",),
    "certificate": ("adapt",),
    "GPU": ("devices",),
    "Figure 4": ("reproduce",),
    "Lightning callback": ("audit",),
}
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking "
    "--disable-component-update --disable-sync"
)
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"


def found(question: str, browser: str) -> list[str]:
    """The results of a search, best first."""
    with tempfile.TemporaryDirectory() as folder:
        page = f"file://{SITE / 'search.html'}?q={quote(question)}"
        how = [
            *FLAGS.split(),
            OFFLINE,
            "--allow-file-access-from-files",
            "--virtual-time-budget=8000",
            "--dump-dom",
        ]
        ran = subprocess.run(
            [browser, *how, f"--user-data-dir={folder}", page],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    results = re.search(r'<ul[^>]*class="search".*?</ul>', ran.stdout, re.DOTALL)
    links = re.findall(r'<li[^>]*><a href="([^"?#]+)\.html', results[0] if results else "")
    return list(dict.fromkeys(links))


def main() -> int:
    """Search for all topics; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--browser", default="chromium")
    browser, missed = parser.parse_args().browser, 0
    for question, wanted in QUESTIONS.items():
        first = found(question, browser)[:2]
        good = any(page in wanted for page in first)
        missed += not good
        print(f"{'found ' if good else 'MISSED'} {question!r}: {', '.join(first) or 'nothing'}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
