"""One time variable for samples that a library solves on intervals of their own."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from trueode.errors import UsageError


class CommonTime:
    """One time variable s for all samples, even if their intervals differ.

    If all samples share an interval, s is their time t, or -t if time runs backwards. Otherwise s
    runs from 0 to the mean length of their intervals, and t(s) is the same fraction of each
    sample's own interval: ``dz/ds = (dt/ds) f(t(s), z)``.

    Args:
        start: the starts of the samples' intervals, ``(*batch,)``.
        end: their ends, ``(*batch,)``.
        t_eval: the times at which states are requested, ``(*batch, times)``; None: the ends.
        times: the dtype of the library's times.
        states: the dtype of the states. It is wider if a model of single precision is run in double
            precision.

    Attributes:
        shared: whether all samples share an interval.
        reversed: whether this runs backwards.
    """

    def __init__(
        self,
        start: Tensor,
        end: Tensor,
        t_eval: Tensor | None,
        times: torch.dtype,
        states: torch.dtype,
    ) -> None:
        self._t_eval = t_eval
        self._start = start.detach().double()
        self._length = end.detach().double() - self._start
        self._eps = torch.finfo(times).eps
        self._dtype = torch.promote_types(times, states)
        first, length = (float(x.flatten()[0]) for x in (self._start, self._length))
        self.shared = length != 0 and bool(
            (self._start == first).all() and (self._length == length).all()
        )
        sign = 1.0 if length > 0 else -1.0
        self.reversed = self.shared and length < 0
        self._from = sign * first if self.shared else 0.0
        self._span = float(self._length.abs().mean())
        if self.shared:
            self._rate = torch.full_like(self._length, sign)
        else:
            self._rate = self._length / self._span if self._span else self._length

    def times(self, s: Tensor) -> Tensor:
        """The samples' own times at one common time, ``(*batch,)``, or at one per row."""
        rows = s.reshape(-1, *[1] * (self._start.dim() - 1)) if s.dim() else s
        if self.shared:
            own = -rows if self.reversed else rows
            return (own if s.dim() else own.expand(self._start.shape)).to(self._dtype)
        return (self._start + self._rate * rows.double()).to(self._dtype)

    def stretch(self, dz: Tensor) -> Tensor:
        """Convert derivatives ``(*batch, …)`` by the samples' times to the common time."""
        if self.shared:
            return -dz if self.reversed else dz
        wide = self._rate.view(*self._rate.shape, *[1] * (dz.dim() - self._rate.dim()))
        return dz * wide.to(dz.dtype)

    def common(self, t: Tensor) -> list[float]:
        """The common times at which samples reach their own times ``(*batch, times)``."""
        rate = torch.where(self._rate == 0, torch.inf, self._rate)[..., None]
        first = self._start[..., None]
        s = (t.detach().double() - first) / rate + self._from
        return sorted(set(s.flatten().tolist()))

    def points(self) -> tuple[Tensor, Tensor]:
        """The common times ``(points,)`` of all requested states, including both ends, and their
        indices for each sample, ``(samples, times)``.

        Fractions that differ only by rounding become one.

        Raises:
            UsageError: a state is requested outside its sample's interval.
        """
        theta, slack = self._fractions()
        every = torch.cat([theta.new_tensor([0.0, 1.0]), theta.flatten()])
        values, inverse = every.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        new = values.diff() > slack
        cluster = torch.cat([new.new_zeros(1), new]).cumsum(0)
        points = values[torch.cat([new.new_ones(1), new])]
        points[-1] = 1.0
        index = cluster[inverse[2:]].view(prod(self._start.shape), -1)
        return self._from + points * self._span, index

    def _fractions(self) -> tuple[Tensor, float]:
        """The fractions of the samples' intervals at which states are requested,
        ``(*batch, times)``, and their rounding error.
        """
        if self._t_eval is None:
            return torch.ones_like(self._start)[..., None], 0.0
        length = torch.where(self._length == 0, torch.inf, self._length)[..., None]
        theta = (self._t_eval.detach().double() - self._start[..., None]) / length
        largest = torch.maximum(self._start.abs(), (self._start + self._length).abs())
        slack = min(float((8 * self._eps * largest / length[..., 0].abs()).amax()), 1e-4)
        if bool(((theta < -slack) | (theta > 1 + slack)).any()):
            raise UsageError(
                "The model asks for states outside a sample's interval: the times must lie between "
                "its start and its end."
            )
        theta = torch.where(theta < slack, 0.0, theta)
        return torch.where(theta > 1 - slack, 1.0, theta), slack
