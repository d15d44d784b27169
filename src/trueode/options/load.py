"""Options from flags and a file: flags override the file, the file overrides the defaults."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from trueode.errors import OptionError, nearest, printable
from trueode.options.description import Description, describe
from trueode.options.schema import ALIASES, EITHER_OR, Options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(message[0].upper() + message[1:] + ".")


def make_parser(
    prog: str, description: str = "", formatter: Any = argparse.HelpFormatter
) -> argparse.ArgumentParser:
    """The parser of all flags. It returns texts, which the schema converts into values."""
    parser = _Parser(
        prog=prog,
        usage=f"{prog} [--option value …]",
        description=description,
        allow_abbrev=False,
        formatter_class=formatter,
    )
    groups: dict[str, Any] = {}
    file_group = parser.add_argument_group("file")
    file_group.add_argument(
        "--options_file",
        metavar="path",
        help="a YAML file of options; flags override it",
    )
    for item in describe():
        group = groups.setdefault(item.group, None) or parser.add_argument_group(item.group)
        groups[item.group] = group
        default = " ".join(map(str, item.default)) if item.several else str(item.default).lower()
        default = item.default if item.kind == "str" and not item.several else default
        arity: Any = (
            {"nargs": "?", "const": "true"}
            if item.kind == "bool"
            else {"nargs": "+"}
            if item.several
            else {}
        )
        group.add_argument(
            f"--{item.name}",
            *(f"--{alias}" for alias in item.aliases),
            dest=item.name,
            default=argparse.SUPPRESS,
            metavar=item.kind,
            help=f"{item.text} ({item.expected}; default: {default})".replace("%", "%%"),
            **arity,
        )
    return parser


def load_options(
    argv: Sequence[str], parser: argparse.ArgumentParser | None = None
) -> tuple[Options, frozenset[str]]:
    """Read options from flags and from the file of ``--options_file``.

    Returns:
        The options, and the names that the user gave, by flag or in the file.

    Raises:
        OptionError: an option is unknown, out of range, of the wrong type or contradicts another
            one.
    """
    parsed, unknown = (parser or make_parser("trueode train")).parse_known_args(list(argv))
    known = [name for item in describe() for name in (item.name, *item.aliases)]
    for text in unknown:
        name = text.lstrip("-").split("=")[0]
        if not text.startswith("-"):
            hint = nearest(name, known)
            raise OptionError(f"{text!r} is not an option: options are written --name value.{hint}")
        flag = text.split("=")[0]
        raise OptionError(
            f"Unknown option {flag}.{nearest(name, known)} See --help for all options."
        )
    flags = vars(parsed)
    if "step_size" in flags and flags.get("n_steps") is not None:
        given = f"--n_steps {flags['n_steps']} and --step_size {flags['step_size']}"
        raise OptionError(f"{given} contradict each other: give one of them.")
    path = flags.pop("options_file", None)
    file_values = read_file(path) if path else {}
    return merge(file_values, flags), frozenset(file_values) | frozenset(flags)


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> Options:
    """Options of two layers: values of the upper layer replace those of the lower one."""
    return make_options(layered(lower, upper))


def layered(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """The values of two layers in one mapping; see `merge`."""
    replaced = {name for pair in EITHER_OR if any(x in upper for x in pair) for name in pair}
    return {**{name: value for name, value in lower.items() if name not in replaced}, **upper}


def make_options(values: Mapping[str, Any]) -> Options:
    """Validated options from plain values.

    Raises:
        OptionError: a value is not allowed; the message names the option, the value and the allowed
            values.
    """
    items = {item.name: item for item in describe()}
    for name in values:
        if name not in items:
            raise OptionError(
                f"Unknown option {name!r}.{nearest(str(name), items)} See --help for all options."
            )
    try:
        return Options.model_validate(dict(values))
    except ValidationError as failure:
        raise OptionError(_message(failure, items)) from None


def _message(failure: ValidationError, items: Mapping[str, Description]) -> str:
    first = failure.errors()[0]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, OptionError):  # its message is complete
        return str(inner)
    name = str(first["loc"][0])
    item, value = items[name], first["input"]
    word = (
        "none"
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else printable(value)
    )
    return f"--{name} {word}: expected {item.expected}."


def read_file(path: str | Path) -> dict[str, Any]:
    """The options in a YAML file, under their standard names.

    Raises:
        OptionError: the file cannot be read, is not a YAML mapping or holds an unknown key.
    """
    from trueode.options.yaml_text import read_yaml

    return canonical(read_yaml(path, "--options_file"), str(path))


def canonical(values: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Options under their standard names: aliases are replaced.

    Args:
        values: by option or alias.
        where: their source, for messages.

    Raises:
        OptionError: a key is unknown, or an option and its alias have different values.
    """
    known = [name for item in describe() for name in (item.name, *item.aliases)]
    for name in values:
        if name not in known:
            raise OptionError(
                f"Unknown option {printable(name)!r} in {where}.{nearest(str(name), known)}"
            )
    found: dict[str, Any] = {}
    for name, value in values.items():
        option = ALIASES.get(str(name), str(name))
        if found.setdefault(option, value) != value:
            raise OptionError(
                f"{where} gives {option} two values, {found[option]} and {value}: "
                f"{name} is another name for it."
            )
    return found
