"""The framework of a model under test: how its data are read, and how it is called.

The audit computes on tensors. A model of JAX gets arrays, and its outputs become tensors again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from hashlib import sha256
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor, nn

from trueode.auditing.arrays import is_array, is_jax, to_array, to_tensor
from trueode.auditing.samples import mapped
from trueode.data import Dataset, Split
from trueode.errors import DataError, TrueodeError, UsageError, told

Call = Callable[[Any, Any], Any]
"""``call(model, batch)`` calls a model for a batch and returns the outputs, samples first."""
COMPILING = ("jaxpr_to_mlir_module_duration", "backend_compile_duration")


class Framework:
    """PyTorch: tensors in, tensors out.

    Args:
        model: the model.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def training(self) -> bool:
        """Whether the model was in training mode, as far as its modules do not tell it."""
        return False

    def outputs(self, call: Call, batch: Any, double: bool) -> Any:
        """Call the model for a batch of tensors.

        Raises:
            UsageError: the model returns an array of JAX.
        """
        found = call(self.model, batch)
        if is_jax(found):
            raise UsageError(
                "The model returns an array of JAX for tensors of PyTorch: pass the data as arrays "
                "of JAX or NumPy."
            )
        return found

    def hint(self, batch: Any, failure: Exception) -> str:
        """What may have caused the failure of the first call."""
        return " Is this the data that the model takes? Pass call=… if it is not model(x)."

    def facts(self) -> dict[str, Any]:
        """What is known of the model beside its modules, for the record."""
        return {}

    def spent(self) -> dict[str, Any]:
        """The seconds that were not spent on the audit itself, for the record."""
        return {}


class Jax(Framework):
    """JAX: arrays in, arrays out, and 64 bits for double precision.

    Raises:
        UsageError: JAX does not compute on the CPU.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        if (backend := sys.modules["jax"].default_backend()) != "cpu":
            raise UsageError(
                f"Models of JAX are audited on the CPU, but JAX computes on {backend}: set "
                "JAX_PLATFORMS=cpu in the environment."
            )
        self._before = _compiling()

    @property
    def training(self) -> bool:
        """See `Framework`."""
        return "equinox" in sys.modules and any(
            getattr(part, "inference", None) is False for part in _leaves(self.model, _has_mode)
        )

    def outputs(self, call: Call, batch: Any, double: bool) -> Any:
        """See `Framework`."""
        if not double:
            return _tensor(call(self._evaluated, mapped(batch, to_array)))
        with _in_64_bits():
            return _tensor(call(self._doubled(), mapped(batch, to_array)))

    @cached_property
    def _evaluated(self) -> Any:
        """The model in evaluation mode."""
        return sys.modules["equinox"].nn.inference_mode(self.model) if self.training else self.model

    def _doubled(self) -> Any:
        """The model with its arrays in double precision."""
        numpy = sys.modules["jax"].numpy

        def double(x: Any) -> Any:
            if not is_array(x) or not numpy.issubdtype(x.dtype, numpy.inexact):
                return x
            return x.astype(numpy.promote_types(x.dtype, "float64"))

        return sys.modules["jax"].tree.map(double, self._evaluated)

    def hint(self, batch: Any, failure: Exception) -> str:
        """See `Framework`."""
        if "non-deterministic mode" in str(failure) or "inference" in str(failure):
            return " Its layers are in training mode: apply eqx.nn.inference_mode to the model."
        jax, x = sys.modules["jax"], batch[0] if isinstance(batch, tuple | list) else batch
        try:
            jax.eval_shape(jax.vmap(self._evaluated), mapped(x, to_array))
        except Exception:  # the model may need other data
            return super().hint(batch, failure)
        return (
            " The model takes one sample, not a batch: pass "
            "call=lambda model, batch: jax.vmap(model)(batch[0]) (for inputs alone, "
            "jax.vmap(model)(batch))."
        )

    def facts(self) -> dict[str, Any]:
        """See `Framework`."""
        jax = sys.modules["jax"]
        digest, count, dtypes = sha256(), 0, set[str]()
        for path, leaf in jax.tree_util.tree_flatten_with_path(self.model)[0]:
            if is_array(leaf):
                name = jax.tree_util.keystr(path)
                digest.update(f"{name} {leaf.dtype} {leaf.shape}".encode())
                numbers = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
                values = np.asarray(jax.random.key_data(leaf) if numbers else leaf)
                digest.update(values.tobytes())
                if jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact):
                    count, dtypes = count + leaf.size, dtypes | {str(leaf.dtype)}
        versions = {
            name: sys.modules[name].__version__
            for name in ("jax", "jaxlib", "equinox")
            if name in sys.modules
        }
        known = {"weights": digest.hexdigest(), "dtype": min(dtypes)} if dtypes else {}
        return {**known, "parameters": count, "versions": versions}

    def spent(self) -> dict[str, Any]:
        """See `Framework`."""
        return {"compilation": _compiling() - self._before}


def framework_of(model: Any, data: Any) -> tuple[Framework, Any]:
    """The framework of a model, and its data as tensors.

    A model is of JAX if it holds arrays of JAX or is a module of Equinox, and a function if its
    data are arrays of JAX or NumPy.

    Raises:
        DataError: model and data are of different frameworks.
    """
    if "jax" not in sys.modules or isinstance(model, nn.Module):
        return Framework(model), data
    of_jax = is_model(model)
    first, data = _peeked(data)
    tensors, arrays = _holds(first, lambda x: isinstance(x, Tensor)), _holds(first, is_array)
    if tensors and arrays:
        raise DataError(
            "The data mix tensors of PyTorch with arrays of JAX or NumPy: convert all of them, for "
            "a model of JAX with numpy.asarray(…), else with torch.tensor(…)."
        )
    if tensors and of_jax:
        raise DataError(
            "The model is of JAX, but the data are tensors of PyTorch: convert them with "
            "numpy.asarray(…); a loader of PyTorch does so with collate_fn=…."
        )
    if arrays or of_jax:
        return Jax(model), _converted(data)
    return Framework(model), data


def is_model(x: Any) -> bool:
    """Whether an object is a model, and not only a function: a module of PyTorch or Equinox, or a
    pytree with arrays of JAX.
    """
    equinox = sys.modules.get("equinox")
    return isinstance(x, nn.Module) or (
        "jax" in sys.modules
        and (
            (equinox is not None and isinstance(x, equinox.Module)) or any(map(is_jax, _leaves(x)))
        )
    )


def _leaves(model: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[Any]:
    found: list[Any] = sys.modules["jax"].tree.leaves(model, is_leaf=is_leaf)
    return found


def _has_mode(x: Any) -> bool:
    return isinstance(getattr(x, "inference", None), bool)


def _tensor(output: Any) -> Any:
    return to_tensor(output) if is_array(output) else output


def _is_whole(data: Any) -> bool:
    """Whether data has no batches, or is no data."""
    return (
        not isinstance(data, Iterable)
        or isinstance(data, str | bytes | Mapping | Dataset | Split | Tensor)
        or is_array(data)
        or hasattr(data, "batch")
        or (isinstance(data, tuple) and any(is_array(x) or isinstance(x, Tensor) for x in data))
    )


def _peeked(data: Any) -> tuple[Any, Any]:
    """The first batch of the data, or all of it if it has no batches, and the same data."""
    if _is_whole(data):
        return data, data
    try:
        batches = iter(data)
    except TypeError:  # the reader of the data says what they must be
        return None, data
    try:
        first = next(batches, None)
    except TrueodeError:
        raise
    except Exception as failure:
        raise DataError(f"The data cannot be read: {told(failure)}.") from failure
    return first, chain([first], batches) if batches is data else data


def _holds(batch: Any, of_kind: Callable[[Any], bool]) -> bool:
    if isinstance(batch, Mapping):
        return any(_holds(part, of_kind) for part in batch.values())
    if isinstance(batch, tuple | list):
        return any(_holds(part, of_kind) for part in batch)
    return of_kind(batch)


def _converted(data: Any) -> Any:
    """Data of arrays as data of tensors."""
    if is_array(data) or isinstance(data, tuple):
        return _as_tensors(data)
    return data if _is_whole(data) else _Batches(data)


class _Batches:
    """Batches of arrays as batches of tensors."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return map(_as_tensors, self._batches)


def _as_tensors(batch: Any) -> Any:
    if _holds(batch, lambda x: isinstance(x, Tensor)):
        raise DataError(
            "The data mix tensors of PyTorch with arrays of JAX or NumPy: convert the tensors with "
            "numpy.asarray(…)."
        )
    try:
        return mapped(batch, to_tensor, is_array)
    except (TypeError, ValueError) as failure:
        raise DataError(f"The data hold an array that is no tensor: {told(failure)}.") from failure


def _in_64_bits() -> Any:
    """A block in which JAX computes in 64 bits."""
    jax = sys.modules["jax"]
    return (jax if hasattr(jax, "enable_x64") else jax.experimental).enable_x64(True)


_compilations: list[float] = []


def _compiling() -> float:
    """The seconds that JAX has spent on compilation since the first audit of a model of it."""
    if not _compilations:
        _compilations.append(0.0)

        def note(event: str, duration: float, **_: Any) -> None:
            if event.endswith(COMPILING):
                _compilations[0] += duration

        sys.modules["jax"].monitoring.register_event_duration_secs_listener(note)
    return _compilations[0]
