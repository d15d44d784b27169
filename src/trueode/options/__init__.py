"""Options: a validated schema with defaults, read from files and flags. Imports no torch."""

from trueode.options.describe import Description, describe, dump_yaml
from trueode.options.load import load_options, make_options, make_parser, merge, read_file
from trueode.options.schema import Options

__all__ = [
    "Description",
    "Options",
    "describe",
    "dump_yaml",
    "load_options",
    "make_options",
    "make_parser",
    "merge",
    "read_file",
]
