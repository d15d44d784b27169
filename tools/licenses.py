"""Write 3rd-party-licenses.txt: name, version, licence and home page of every dependency."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("images", "tensorboard")


def closure(name: str, extras: tuple[str, ...]) -> set[str]:
    """The normalised names of the distributions that one needs, directly or indirectly."""
    from packaging.requirements import Requirement

    found: set[str] = set()
    pending = [(name, extras)]
    while pending:
        current, wanted = pending.pop()
        for text in metadata.requires(current) or []:
            requirement = Requirement(text)
            needed = any(
                requirement.marker is None or requirement.marker.evaluate({"extra": extra})
                for extra in ("", *wanted)
            )
            key = re.sub(r"[-_.]+", "-", requirement.name).lower()
            if needed and key not in found:
                found.add(key)
                pending.append((key, tuple(requirement.extras)))
    return found


def licence(dist: metadata.Distribution) -> str:
    """The licence of a distribution: expression, classifiers, or first line of the field."""
    meta = dist.metadata
    if meta.get("License-Expression"):
        return str(meta["License-Expression"])
    classifiers = [
        c.split(" :: ")[-1] for c in meta.get_all("Classifier") or [] if c.startswith("License ::")
    ]
    if classifiers and classifiers != ["OSI Approved"]:
        return ", ".join(classifiers)
    return (meta.get("License") or "not stated").strip().splitlines()[0]


def home(dist: metadata.Distribution) -> str:
    """The project's home page."""
    urls = dict(url.split(", ", 1) for url in dist.metadata.get_all("Project-URL") or [])
    lowered = {name.lower(): url for name, url in urls.items()}
    for name in ("homepage", "home", "repository", "source", "source code", "github"):
        if name in lowered:
            return lowered[name]
    return str(dist.metadata.get("Home-page") or next(iter(urls.values()), ""))


def main() -> None:
    rows = []
    for name in sorted(closure("trueode", EXTRAS)):
        try:
            dist = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # not needed on this platform
        rows.append(
            f"{dist.metadata['Name']} {dist.version}\n"
            f"  licence: {licence(dist)}\n  home: {home(dist)}\n"
        )
    head = (
        "Third-party software that trueode uses when installed with the extras images and "
        "tensorboard.\n"
        "None of it is part of this repository; each is installed from its own distribution under "
        "its own licence.\n"
        "Generated from the installed distributions by `make licenses`.\n"
    )
    (ROOT / "3rd-party-licenses.txt").write_text("\n".join([head, *rows]), encoding="utf-8")
    print(f"wrote 3rd-party-licenses.txt: {len(rows)} distributions")


if __name__ == "__main__":
    main()
