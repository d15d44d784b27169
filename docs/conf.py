"""Sphinx configuration. Python code of the Markdown pages runs at each build (`make docs`)."""

from __future__ import annotations

import os
import re
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

about = metadata("trueode")
project = about["Name"]
version = release = about["Version"]
html_show_copyright = False

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "myst-nb"}
exclude_patterns = ["_build"]

# Pages are Markdown with directives, and formulas are code. No extension needs the network.
myst_heading_anchors = 3  # page.md#a-heading

# Each page runs at every build, in an empty directory to which docs/kernel.py adds links.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 120  # seconds for one cell
nb_output_stderr = "warn"  # a page that warns does not build
nb_merge_streams = True
os.environ["PYTHONSTARTUP"] = str(HERE / "kernel.py")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# API: docstrings in Google style; a name in single backticks links to the documented object.
default_role = "any"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_display_short_literal_types = True
python_use_unqualified_type_names = True

# Every reference must resolve, except to other packages (their inventories would need a network)
# and to types that only annotations name, because users never construct them.
nitpicky = True
others = (
    "collections|contextlib|matplotlib|nn|numpy|os|pathlib|pydantic|pytorch_lightning|rich|torch"
    "|typing"
)
inner = r"Ending|Output|Part|Paths|Ranks|Reduce|State|Tensor|Course"
nitpick_ignore_regex = [
    ("any|py:.*", rf"({others})\..*"),
    ("py:class", rf"(trueode\..*\.)?({inner})"),
]

html_theme = "furo"
html_static_path, html_css_files = ["_static"], ["site.css"]
html_title = f"{project} {version}"
html_copy_source = html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5fa5", "color-brand-content": "#0b5fa5"},
    "dark_css_variables": {"color-brand-primary": "#79b8ff", "color-brand-content": "#79b8ff"},
}


LINK = re.compile(r"(!?)\[([^\]]+)\]\((?![a-z]+:|#)([^)]+)\)")


def _keep_inside(app: Any, path: Path, page: str, content: list[str]) -> None:
    """Adapt the links of an included file: links into docs/ lead to pages, others become text."""

    def kept(link: re.Match[str]) -> str:
        image, text, target = link.groups()
        return (
            f"{image}[{text}]({target.removeprefix('docs/')})"
            if target.startswith("docs/")
            else text
        )

    content[0] = LINK.sub(kept, content[0])


def _as_text(app: Any, kind: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Keep docstrings of properties and data as text.

    Without this, napoleon takes the part before a colon for a type.
    """
    if kind in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _as_text, priority=1)  # before napoleon
    app.connect("include-read", _keep_inside)
