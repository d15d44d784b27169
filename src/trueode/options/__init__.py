"""Options: a validated schema with defaults, read from files and flags, without torch."""

from trueode.options.description import Description, describe, dump_yaml
from trueode.options.load import (
    canonical,
    layered,
    load_options,
    make_options,
    make_parser,
    merge,
    read_file,
)
from trueode.options.roles import DEVICES, EVALUATION, LOGGING, PLACES, RESULT
from trueode.options.schema import Options

__all__ = [
    "DEVICES",
    "EVALUATION",
    "LOGGING",
    "PLACES",
    "RESULT",
    "Description",
    "Options",
    "canonical",
    "describe",
    "dump_yaml",
    "layered",
    "load_options",
    "make_options",
    "make_parser",
    "merge",
    "read_file",
]
