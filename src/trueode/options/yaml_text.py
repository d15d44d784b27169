"""Read YAML files of users into plain values: options, plans and configurations."""

from __future__ import annotations

from collections import Counter
from math import inf
from pathlib import Path
from typing import Any

import yaml

from trueode.errors import OptionError, printable, told

LARGEST = 2**17  # bytes of a file, and values in it: reading takes a few seconds at most
LONGEST_NUMBER = 400  # characters
_KINDS = {
    f"tag:yaml.org,2002:{kind}"
    for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")
}


class _Loader(yaml.SafeLoader):
    """Reads dates as text, because they are names here."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as in the base class
        first: [(tag, pattern) for tag, pattern in known if tag in _KINDS]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_yaml(path: str | Path, what: str) -> dict[Any, Any]:
    """The mapping in a file; empty for an empty file.

    Args:
        path: of the file.
        what: kind of the file, for messages.

    Raises:
        OptionError: the file is not regular, cannot be read, is too large, is not plain YAML, or
            holds no mapping.
    """
    path, advice = Path(path), "Give the path of a YAML file."
    try:
        if path.exists() and not path.is_file():
            raise OptionError(f"{what} {path} is not a regular file. {advice}")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        text = content.decode()
    except (OSError, ValueError) as failure:  # a path with a NUL in it, bytes that are not UTF-8
        raise OptionError(f"{what} {path} cannot be read: {failure}. {advice}") from None
    if len(content) > LARGEST:
        raise OptionError(f"{what} {path} holds more than {LARGEST} bytes. {advice}")
    values = parse_yaml(text, f"{what} {path}")
    if not isinstance(values, dict | None):
        raise OptionError(
            f"{what} {path} must hold lines `key: value`, but holds {type(values).__name__}."
        )
    return values or {}


def parse_yaml(text: str, where: str) -> Any:
    """The plain values in a text: numbers, strings, booleans, lists and mappings.

    Args:
        text: the YAML.
        where: its source, for messages.

    Raises:
        OptionError: the text is not YAML, or holds other kinds of values.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > LARGEST:
            raise ValueError("its aliases stand for too many values")
        return loader.construct_document(node)
    except RecursionError:
        reason = "it is nested too deeply"
    except Exception as failure:  # PyYAML raises errors of all kinds for impossible numbers
        reason = (
            " ".join(str(failure).split())
            if isinstance(failure, yaml.YAMLError | ValueError)
            else told(failure)
        )
    raise OptionError(f"{where} is not valid YAML: {printable(reason)}.")


def _count(node: yaml.Node, known: dict[int, float]) -> float:
    """Count the values in a node; an alias counts each time. ``known`` holds the counts so far.

    Raises:
        ValueError: a value is not plain, a text cannot be encoded, or a key occurs twice.
    """
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = inf  # for an alias of a node that contains it
    if node.tag not in _KINDS:
        raise ValueError(f"the tag {node.tag} is not that of a plain value")
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.ScalarNode):
        node.value.encode()
        if len(node.value) > LONGEST_NUMBER and not node.tag.endswith("str"):
            raise ValueError(f"a number has {len(node.value)} characters")
    elif isinstance(node, yaml.MappingNode):
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for (_, name), times in Counter(keys).most_common(1):
            if times > 1:
                raise ValueError(f"the key {name!r} occurs twice")
        parts = [part for pair in node.value for part in pair]
    else:
        parts = node.value
    known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]
