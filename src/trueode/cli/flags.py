"""Parts that the parsers of all commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from trueode.errors import OptionError, nearest, printable
from trueode.options import describe, make_parser
from trueode.options.combinations import LEAST_SIZE, MOST, MOST_SIZE


class Parser(argparse.ArgumentParser):
    """A parser that raises errors of this package, and takes no abbreviations."""

    def __init__(self, prog: str, description: str, formatter_class: Any) -> None:
        super().__init__(
            prog, description=description, formatter_class=formatter_class, allow_abbrev=False
        )

    def error(self, message: str) -> Any:
        """Report a wrong command line.

        Raises:
            OptionError: always.
        """
        end = "" if message.endswith("?") else "."
        raise OptionError(f"{message.rstrip('.')}{end} See --help for all options.")


def flag(text: str) -> bool:
    """``true`` or ``false``."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text}")
    return text.lower() == "true"


def add_flag(parser: argparse.ArgumentParser, name: str, text: str) -> None:
    """Add a flag that is written as ``--name true``, or as ``--name``."""
    parser.add_argument(
        name, type=flag, nargs="?", const=True, default=False, metavar="BOOL", help=text
    )


def share(text: str) -> float:
    """A number between 0 and 1."""
    return number(text, "a share between 0 and 1, such as 0.01", lambda value: 1e-6 <= value < 1)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return whole(text, 1)


def whole(text: str, least: int = -MOST) -> int:
    """A whole number of at least ``least``."""
    expected = f"a whole number of at least {least} and at most {MOST}"
    return int(number(text, expected, lambda value: least <= value <= MOST and value == int(value)))


def positive_number(text: str) -> float:
    """A number above 0."""
    return number(
        text,
        f"a number above 0, up to {MOST_SIZE:g}",
        lambda value: LEAST_SIZE <= value <= MOST_SIZE,
    )


def numbers(text: str) -> tuple[float, ...]:
    """Numbers separated by commas."""
    expected = "numbers separated by commas, such as 0.5,2.0"
    return tuple(
        number(part, expected, lambda value: abs(value) <= MOST_SIZE) for part in text.split(",")
    )


def number(text: str, expected: str, good: Callable[[float], bool]) -> float:
    """A number that fulfils a condition."""
    try:
        value = float(text)
        valid = good(value)
    except (ValueError, OverflowError):
        valid = False
    if not valid:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {printable(text)}")
    return value


def training_options(words: Sequence[str], own: argparse.ArgumentParser) -> dict[str, Any]:
    """Read options of `trueode train` from the words that the command itself does not know.

    Raises:
        OptionError: a word is no option of either; the message names the nearest flag.
    """
    parsed, unknown = make_parser(own.prog).parse_known_args(list(words))
    known = [name for item in describe() for name in (item.name, *item.aliases)]
    known += [
        text[2:]
        for action in own._actions
        for text in action.option_strings
        if text.startswith("--")
    ]
    for text in unknown:
        name = text.lstrip("-").split("=")[0]
        if not text.startswith("-"):
            hint = nearest(name, known)
            raise OptionError(f"{text!r} is not an option: options are written --name value.{hint}")
        flag = text.split("=")[0]
        raise OptionError(
            f"Unknown option {flag}.{nearest(name, known)} See --help for all options."
        )
    kinds = {item.name: item.kind for item in describe()}
    given = {name: value for name, value in vars(parsed).items() if name != "options_file"}
    return {
        name: value if kinds[name] == "str" else _value(name, value)
        for name, value in given.items()
    }


def _value(name: str, words: Any) -> Any:
    """Numbers and booleans as YAML reads them, because the saved plan holds them in YAML."""
    from trueode.options.yaml_text import parse_yaml

    if isinstance(words, list):
        return [parse_yaml(word, f"--{name} {word}") for word in words]
    return parse_yaml(words, f"--{name} {words}")
