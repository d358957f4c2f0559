"""Multiplication by a number."""

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .._calculus.factor import point_mass
from .._calculus.operation import AbstractOperation
from .._numerics.checks import is_finite
from .._numerics.show import number
from .layer import AbstractLayer, checked_number, Signal


class Scale(AbstractLayer):
    """`factor x`.

    **Raises:** `ValueError` if `factor` is 0 or not finite.
    """

    factor: Float[Array, ""]

    def __init__(self, factor: ArrayLike):
        self.factor = checked_number("factor", factor, lambda x: (x != 0) & is_finite(x), "finite and not 0")

    def forward(self, signal: Signal) -> Signal:
        return signal.passed(jnp.square(self.factor) * signal.square, lambda mean: self.factor * mean)

    def operations(self, signal: Signal, refine: float) -> tuple[AbstractOperation | None, ...]:
        return (point_mass(jnp.square(self.factor)),)

    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> "Times":
        return Times(self.factor)

    def row(self) -> tuple[str, str]:
        return "scale", number(self.factor)


class Times(eqx.Module):
    """Multiplies by a number, which is trained."""

    factor: Float[Array, ""]

    def __call__(self, x: Array, *, key: PRNGKeyArray | None = None) -> Array:
        return self.factor * x
