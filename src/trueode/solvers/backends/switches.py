"""Environment variables that switch backends on."""

from __future__ import annotations

import os
import warnings


class Switch:
    """An environment variable that is ``on`` or ``off``; off unless it is set.

    Args:
        variable: its name.
    """

    def __init__(self, variable: str) -> None:
        self.variable = variable
        self._refused = ""

    def is_on(self) -> bool:
        """Whether it is on; another value counts as off, with one warning."""
        value = os.environ.get(self.variable) or "off"
        if value not in ("on", "off", self._refused):
            self._refused = value
            warnings.warn(
                f"{self.variable}={value!r} is not known: choose on or off. It counts as off.",
                RuntimeWarning,
                stacklevel=2,
            )
        return value == "on"
