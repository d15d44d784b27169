"""Descriptions of the options for the help, the options file and messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from trueode.options.schema import ALIASES, Options

KINDS = {"int": "whole number", "float": "number", "bool": "true or false", "str": "text"}


class Description(NamedTuple):
    """What a reader needs to know about an option."""

    name: str
    group: str
    text: str
    default: Any
    kind: str  # "int", "float", "bool", "str"
    optional: bool
    several: bool
    choices: tuple[str, ...]
    limits: str
    aliases: tuple[str, ...]

    @property
    def expected(self) -> str:
        """The allowed values in words."""
        if self.choices:
            what = f"{'one or more' if self.several else 'one'} of {', '.join(self.choices)}"
        elif self.several:
            what = f"{KINDS[self.kind]}s"
        else:
            what = KINDS[self.kind]
            what = what if self.kind in ("bool", "str") else f"a {what}"
        limits = f" {self.limits}" if self.limits else ""
        return f"{what}{limits}{', or none' if self.optional else ''}"


def describe() -> list[Description]:
    """All options in their order."""
    found = []
    for name, info in Options.model_fields.items():
        annotation = str(info.annotation).replace("<class '", "").rstrip("'>")
        kind = next(k for k in ("bool", "int", "float", "str") if k in annotation)
        extra: Any = info.json_schema_extra
        found.append(
            Description(
                name,
                extra["group"],
                info.description or "",
                info.default,
                kind,
                "None" in annotation,
                "tuple" in annotation,
                tuple(extra["choices"]),
                _limits(info.metadata),
                tuple(alias for alias, target in ALIASES.items() if target == name),
            )
        )
    return found


def _limits(constraints: Iterable[Any]) -> str:
    """The limits of a number in words."""
    words = {"gt": "above", "ge": "of at least", "le": "and at most", "lt": "and below"}
    bounds = {key: getattr(c, key) for c in constraints for key in words if hasattr(c, key)}
    if bounds.keys() == {"ge", "le"}:
        return f"from {bounds['ge']} to {bounds['le']}"
    return " ".join(f"{words[key]} {bound}" for key, bound in bounds.items())


def dump_yaml(options: Options, *, comments: bool = True) -> str:
    """All options as YAML, each with its description as a comment."""
    import yaml

    lines = ["# Options of trueode: python train.py --options_file THIS_FILE"] if comments else []
    group = ""
    for item in describe():
        if comments and item.group != group:
            group = item.group
            lines += ["", f"# --- {group} ---"]
        if comments:
            lines.append(f"# {item.text} ({item.expected})")
        value = getattr(options, item.name)
        value = list(value) if isinstance(value, tuple) else value
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000)
        lines.append(f"{item.name}: {text.removesuffix('...' + chr(10)).strip()}")
    return "\n".join(lines) + "\n"
