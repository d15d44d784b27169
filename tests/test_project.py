"""Generated files are up to date, and the repository describes only the software."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import yaml

from trueode import __version__
from trueode.options import Options, make_options

ROOT = Path(__file__).resolve().parents[1]


def test_generated_files_are_up_to_date() -> None:
    for path, text in runpy.run_path(str(ROOT / "tools" / "generate.py"))["generated"]().items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name} is out of date: make generate"
        )


def test_default_config_is_the_schema() -> None:
    values = yaml.safe_load((ROOT / "options" / "default_config.yaml").read_text(encoding="utf-8"))
    assert set(values) == set(Options.model_fields)
    assert make_options(values) == Options()


def test_one_version() -> None:
    for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md"):
        assert __version__ in (ROOT / name).read_text(encoding="utf-8"), name


def test_licences_of_all_requirements_are_listed() -> None:
    listed = (ROOT / "3rd-party-licenses.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name = re.split(r"[<>=]", line)[0].lower().replace("_", "-")
            assert f"\n{name} " in listed, name
