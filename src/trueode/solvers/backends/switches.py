"""Environment variables that switch backends on."""

from __future__ import annotations

import os
import warnings
from functools import cached_property


class Switch:
    """An environment variable that is ``on`` or ``off``; off unless it is set.

    Args:
        variable: its name.
    """

    def __init__(self, variable: str) -> None:
        self.variable = variable

    def is_on(self) -> bool:
        """Whether it is on."""
        return self._is_on

    @cached_property
    def _is_on(self) -> bool:
        value = os.environ.get(self.variable, "off")
        if value not in ("on", "off"):
            warnings.warn(
                f"{self.variable}={value!r} is neither on nor off; it counts as off.",
                RuntimeWarning,
                stacklevel=2,
            )
        return value == "on"
