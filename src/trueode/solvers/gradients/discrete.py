"""Gradients of the numerical solution itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Backprop:
    """Back-propagation through the steps of the solver; everything the backward pass needs is kept."""


@dataclass(frozen=True)
class Checkpoint:
    """The gradient of `Backprop`, keeping only the state at the start of each step and computing one step at a time anew.

    Source: Griewank & Walther, Evaluating Derivatives, 2nd ed., 2008, ch. 12 (every step is a checkpoint).
    """
