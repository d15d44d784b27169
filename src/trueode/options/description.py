"""What there is to say of each option: for the help, the options file and messages."""

from __future__ import annotations

from typing import Any, NamedTuple

from trueode.options.schema import ALIASES, Options


class Description(NamedTuple):
    """One option as a reader needs it."""

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
        """What values are allowed, in words."""
        if self.choices:
            what = f"{'one or more' if self.several else 'one'} of {', '.join(self.choices)}"
        else:
            words = {
                "int": "whole number",
                "float": "number",
                "bool": "true or false",
                "str": "text",
            }
            what = words[self.kind]
            what = (
                f"{what}s"
                if self.several
                else what
                if self.kind in ("bool", "str")
                else f"a {what}"
            )
        return (
            what
            + (f" {self.limits}" if self.limits else "")
            + (", or none" if self.optional else "")
        )


def describe() -> list[Description]:
    """All options in their order."""
    signs = {"gt": "above", "ge": "of at least", "le": "and at most", "lt": "and below"}
    found = []
    for name, info in Options.model_fields.items():
        annotation = str(info.annotation).replace("<class '", "").rstrip("'>")
        kind = next(k for k in ("bool", "int", "float", "str") if k in annotation)
        limits = [
            f"{signs[key]} {getattr(m, key)}"
            for m in info.metadata
            for key in signs
            if hasattr(m, key)
        ]
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
                " ".join(limits),
                tuple(alias for alias, target in ALIASES.items() if target == name),
            )
        )
    return found


def dump_yaml(options: Options, *, comments: bool = True) -> str:
    """The options as YAML, complete, with what each one means as a comment."""
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
