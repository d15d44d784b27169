"""The gradients of solves by the compiled kernel: the discrete ones, those of the steps taken
(Sandu, 2006, eq. 8).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trueode.solvers.backends.native.library import Solve
from trueode.solvers.backends.native.task import STATES, Steps, Task
from trueode.solvers.gradients.replay import Given


class Kept(NamedTuple):
    """See `trueode.solvers.gradients.recorded`."""

    task: Task
    steps: Steps
    solve: Solve

    def given(self) -> Given:
        """The solve, for gradients that autograd must compute."""
        task, steps, _ = self
        known = task.stack, task.tableau, task.clock, task.counter, steps.grid
        return Given(*known, steps.saved.fractions(steps.grid))

    def pull_back(
        self, z: Tensor, tensors: Sequence[Tensor | None], gradients: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Gradients of the initial state and the layers, from those of the final and saved
        states.
        """
        (task, steps, done), (gradient, *entering) = self, [g.contiguous() for g in gradients]
        start = torch.empty_like(gradient)
        found = [None if x is None else x.new_empty(x.shape) for x in tensors]
        solve, layers = Solve.from_buffer_copy(done), task.layers(tensors, found)
        solve.layers, solve.g1, solve.g0 = (
            layers.buffer_info()[0],
            gradient.data_ptr(),
            start.data_ptr(),
        )
        if entering:
            solve.gs = entering[0].data_ptr()
        if steps.keep == STATES:
            task.counter.add((len(steps.grid) - 1) * solve.n_stages)
        task.kernel.backward(task.double, solve)
        return [start, *found]
