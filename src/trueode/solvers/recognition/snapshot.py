"""What a field consists of, where its code is not read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

from torch import Tensor, nn

from trueode.solvers.recognition.hooks import is_unwatched
from trueode.solvers.recognition.values import RecognitionError

_PLAIN = (int, float, bool, str, type(None))


class Snapshot:
    """The modules of a field with their parameters, buffers, hooks and plain attributes.

    Attributes:
        tensors: the tensors that the field may use.

    Raises:
        RecognitionError: the field is no module, or has hooks.
    """

    trusted = True

    def __init__(self, field: Callable[..., Any]) -> None:
        root = field.__self__ if isinstance(field, MethodType) else field
        if not isinstance(root, nn.Module):
            raise RecognitionError("it is not an nn.Module")
        self._root = tuple(root.modules())
        self.tensors = [*root.parameters(), *root.buffers()]
        for module in self._root:
            self.tensors += [x for x in vars(module).values() if isinstance(x, Tensor)]
            if not is_unwatched(module):
                raise RecognitionError(f"{type(module).__name__} has hooks")
        self._before = self._after = dict(self._entries())

    def settle(self) -> None:
        """Call this after the field was called: plain attributes that this changed, such as
        counters of evaluations, do not count.
        """
        after = dict(self._entries())
        self._after = {key: value for key, value in after.items() if self._before.get(key) is value}

    def holds(self) -> bool:
        """Whether nothing has changed since, but for the numbers in tensors."""
        if not is_unwatched(*self._root):
            return False
        now = dict(self._entries())
        return all(now.get(key) is value for key, value in self._after.items())

    def _entries(self) -> Iterator[tuple[tuple[int, str], Any]]:
        for module in self._root:
            for contents in (module._parameters, module._buffers, module._modules):
                for name, value in contents.items():
                    yield (id(module), name), value
                yield (id(contents), "len"), len(contents)
            for name, value in vars(module).items():
                if isinstance(value, (*_PLAIN, Tensor)):
                    yield (id(module), name), value
