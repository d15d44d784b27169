"""Fields of other people's modules, as layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trueode.errors import UsageError
from trueode.layers import LayerStack
from trueode.solvers import FixedStep
from trueode.solvers.backends import backend_of
from trueode.solvers.problem import Problem
from trueode.solvers.recognition import Reading, Recognition, RecognitionError, Snapshot


class RecognisedField(nn.Module):
    """A module whose layers solvers compute instead of calling it; see `recognise`.

    Where the module was changed such that it computes something else than layers, it is called.

    Args:
        field: the module, ``field(t, z)``.
    """

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field
        self._recognition: Recognition | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_recognition": None}  # a copy has tensors of its own

    def forward(self, t: Tensor, z: Tensor) -> Any:
        """Call the module."""
        return self.field(t, z)

    def layer_stack(self, state_shape: Iterable[int]) -> LayerStack | None:
        """The layers for states of a shape; None if the module does not compute layers."""
        like = next(
            (p for p in self.field.parameters() if p.is_floating_point()),
            torch.empty(0, device="cpu"),
        )
        found = self.layers_or_refusal(like.new_zeros(tuple(state_shape)))
        return None if isinstance(found, str) else found

    def layers_or_refusal(self, z: Tensor) -> LayerStack | str:
        """The layers for states like z with the current parameters, or why there are none."""
        try:
            if self._recognition is None or not self._recognition.holds():
                self._recognition = Recognition(Snapshot(self.field))
            return self._recognition.layers(self.field, z, lambda: z.new_tensor(0.25))
        except RecognitionError as refusal:
            return str(refusal)


def recognise(field: nn.Module, z: Tensor | None = None) -> RecognisedField:
    """Have the layers of a module computed by solvers, which is faster than calling it.

    Solvers recognise by themselves a module whose code does nothing but compute layers. Use this
    function for one whose code does more, such as count its calls. You state that the module need
    not be called: what it does besides computing will not be done. Solvers still notice if hooks,
    submodules, parameters or attributes change.

    Args:
        field: computes ``field(t, z)`` by linear layers or convolutions, with
            activations between them; the time may be joined or added.
        z: a state, ``(batch, …)``; if None, one is derived from the first layer.

    Returns:
        A module with the same parameters, that computes the same.

    Raises:
        UsageError: the module computes something else; the message says what.
    """
    if not isinstance(field, nn.Module):
        raise UsageError(f"recognise takes an nn.Module, got {type(field).__name__}.")
    found, refusals = RecognisedField(field), []
    for state in [z] if z is not None else _states(field):
        why = found.layers_or_refusal(state)
        if not isinstance(why, str):
            return found
        refusals.append(why)
    refusals.sort(key=lambda why: why.startswith("it raises"))  # of a state that does not fit
    why = refusals[0] if refusals else "it has no layer from which to derive a state; pass one"
    raise UsageError(f"{type(field).__name__} is no chain of layers: {why}.")


def explain(field: Callable[..., Any], z: Tensor) -> str:
    """Say in a sentence what computes a field when it is solved, and why.

    Args:
        field: the field, ``field(t, z)``.
        z: a state, ``(batch, …)``.
    """
    problem = Problem(field, z, solver=FixedStep("euler", n_steps=1))
    name = backend_of(problem).NAME
    if problem.layers is not None:
        layers = ", ".join(
            f"{layer.weight.shape[1]} to {layer.weight.shape[0]}"
            + ("" if layer.activation == "identity" else f" ({layer.activation})")
            for layer in problem.layers.layers
        )
        traced = "" if problem.layers.coupling is None else ", with their divergence"
        return f"{name}: layers {layers}{traced}."
    if hasattr(field, "layer_stack"):
        return f"{name}."
    try:
        Recognition(Reading(field)).layers(field, z, lambda: z.new_tensor(0.25))
    except RecognitionError as refusal:
        return f"{name}, because {refusal}."
    if problem.layers is None:
        name += ", because fields like it were made anew for every solve so far"
    return f"{name}."


def _states(field: nn.Module) -> Iterable[Tensor]:
    """States that may fit the first layer of a module, without and with the time as an input."""
    for layer in field.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            size = layer.weight.shape[1]
            rest = (3,) * (layer.weight.dim() - 2)
            return [layer.weight.new_zeros(2, n, *rest) for n in (size, size - 1) if n]
    return []
