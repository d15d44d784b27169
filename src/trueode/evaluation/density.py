"""The task of a density: outputs are log densities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log, prod

from torch import Tensor

from trueode.data import Batch
from trueode.errors import UsageError
from trueode.evaluation.task import Task, comparable, keep, mean_over_ranks
from trueode.solvers.control import Reduce

BITS = 0.01  # per dimension, by which the mean log density may change
UNKNOWN = (
    "The number of dimensions of the density cannot be told from the data, because its inputs are "
    "no tensor: pass dimensions=…, how many numbers a sample of x has."
)


@dataclass(frozen=True)
class Density(Task):
    """Log densities of the samples, ``(batch,)``, in nats. There are no targets.

    A model is judged by the mean change of the log density.

    Attributes:
        margin: the mean change that is allowed, in bits per dimension.
        absolute: the same in nats for a sample; it replaces ``margin``.
        dimensions: numbers of a sample; None: not known yet, see `fitted`.
    """

    margin: float = BITS
    absolute: float | None = None
    dimensions: int | None = None

    name = "density"
    needs_targets = False
    instead = (
        " The mean log density is judged: margin=… allows it to change by so many bits per "
        "dimension, absolute=… by so many nats."
    )

    def __post_init__(self) -> None:
        for name in ("margin", "absolute", "dimensions"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name} must be a positive number, got {value!r}.")

    @property
    def metric_name(self) -> str:
        return "bits_per_dim"

    @property
    def nats(self) -> float:
        """The mean change that is allowed, in nats for a sample.

        Raises:
            UsageError: the number of dimensions is unknown.
        """
        return self.absolute if self.absolute is not None else self.margin * self.bit

    @property
    def bit(self) -> float:
        """One bit per dimension, in nats for a sample.

        Raises:
            UsageError: the number of dimensions is unknown.
        """
        if self.dimensions is None:
            raise UsageError(UNKNOWN)
        return self.dimensions * log(2)

    def fitted(self, shape: Sequence[int] | None, margin: float | None = None) -> Density:
        """See `Task`; the dimensions are the numbers of a sample, unless they are known already."""
        dimensions = self.dimensions or (None if shape is None else max(prod(shape), 1))
        if dimensions is None:
            raise UsageError(UNKNOWN)
        return replace(
            self, margin=self.margin if margin is None else margin, dimensions=dimensions
        )

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """The negative log densities in nats, ``(batch,)``."""
        return -_one_each(output)

    def metrics(self, output: Tensor, batch: Batch) -> Tensor:
        """The negative log densities in bits per dimension, ``(batch,)``."""
        return self.losses(output, batch) / self.fitted(batch.x.shape[1:]).bit

    def allowed(
        self, reference: Tensor, residual: Tensor | None = None, reduce: Reduce | None = None
    ) -> Tensor:
        """The allowed change in nats, ``(1,)``."""
        return reference.new_full((1,), self.nats)

    def difference(self, own: Tensor, reference: Tensor, reduce: Reduce = keep) -> float:
        """The mean absolute change in bits per dimension.

        It bounds the mean change from above, and errors of opposite sign do not cancel in it, so
        that it falls with the error of a solver.
        """
        change = self.distance(own, reference) / self.bit
        return mean_over_ranks(change, comparable(own, reference), reduce)

    def distance(self, own: Tensor, other: Tensor) -> Tensor:
        """The absolute difference in nats, averaged over a sample's outputs."""
        return _one_each((own - other).abs())

    def target(self, fidelity: float) -> float:
        """The mean change itself: ``fidelity`` is in bits per dimension."""
        return fidelity

    def _flipped(self, own: Tensor, reference: Tensor, allowed: Tensor | None) -> Tensor:
        """The log density changes by more than is allowed for the mean."""
        allowed = self.allowed(reference) if allowed is None else allowed
        return ~(self.distance(own, reference) <= allowed)[:, None]

    def _settled(
        self, before: Tensor, after: Tensor, allowed: Tensor | None, share: float
    ) -> Tensor:
        """The change is less than a share of the one that is allowed for the mean."""
        allowed = self.allowed(after) if allowed is None else allowed
        return (self.distance(before, after) < share * allowed)[:, None]


def _one_each(values: Tensor) -> Tensor:
    """The mean of each sample's values: ``(batch,)``."""
    return values if values.dim() == 1 else values.flatten(1).mean(1)
