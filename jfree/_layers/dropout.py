"""Dropout, as in training."""

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .._calculus.factor import point_mass
from .._calculus.operation import AbstractOperation
from .._numerics.show import number
from .layer import AbstractLayer, checked_number, Entries, python_number, Signal


class Dropout(AbstractLayer):
    """Sets a share of the entries to 0, at random, and divides the others by what is kept: as in training.

    **Arguments:** `rate`, the share that is set to 0.

    **Raises:** `ValueError` if `rate` is not at least 0 and less than 1.
    """

    rate: Float[Array, ""]

    def __init__(self, rate: ArrayLike):
        self.rate = checked_number("rate", rate, lambda x: (x >= 0) & (x < 1), "at least 0 and less than 1")

    def receive(self, entries: Entries) -> Entries:
        if entries.bent:
            raise ValueError(
                "`layers`: a `Dropout` must stand right behind an `Activation`, or where no other layer has acted "
                "entry by entry since the last weights."
            )
        return Entries(gaussian=False, bent=True)

    def forward(self, signal: Signal) -> Signal:
        return signal.passed(signal.square / (1 - self.rate), lambda mean: mean)

    def operations(self, signal: Signal, refine: float) -> tuple[AbstractOperation | None, ...]:
        return (point_mass(jnp.ones_like(signal.square)).masked(1 - self.rate),)

    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> eqx.nn.Dropout:
        return eqx.nn.Dropout(python_number(self.rate))

    def row(self) -> tuple[str, str]:
        return "dropout", f"rate {number(self.rate)}"
