"""Activations that are others, stretched."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._calculus.law import Law
from ._base import AbstractManySlopes, positive
from ._piecewise import ELU
from ._smooth import SiLU


class AbstractStretched(AbstractManySlopes):
    """`phi(beta x) / beta` for another activation `phi`: its law is that of `phi` at `beta^2 q`."""

    beta: eqx.AbstractVar[Float[Array, ""]]

    @property
    @abc.abstractmethod
    def base(self) -> AbstractManySlopes:
        """`phi`."""

    @property
    def breaks(self) -> tuple[ArrayLike, ...]:
        return tuple(place / self.beta for place in self.base.breaks)

    def __call__(self, x: Array) -> Array:
        return self.base(self.beta * x) / self.beta

    def derivative(self, x: Array) -> Array:
        return self.base.derivative(self.beta * x)

    def second_moment(self, q: Array) -> Array:
        return self.base.second_moment(q * jnp.square(self.beta)) / jnp.square(self.beta)

    def mean(self, q: Array) -> Array:
        return self.base.mean(q * jnp.square(self.beta)) / self.beta

    def slope_moment(self, q: Array) -> Array:
        return self.base.slope_moment(q * jnp.square(self.beta))

    def slope_law(self, q: Array, refine: float = 1) -> Law:
        return self.base.slope_law(q * jnp.square(self.beta), refine)


class CELU(AbstractStretched):
    """`x` where positive, `alpha * (exp(x / alpha) - 1)` where not.

    **Raises:** `ValueError` if `alpha` is not positive.
    """

    beta: Float[Array, ""]

    def __init__(self, alpha: ArrayLike = 1.0):
        self.beta = 1 / positive("alpha", alpha)

    @property
    def base(self) -> ELU:
        one = jnp.ones_like(self.beta)
        return ELU(one, one)


class Swish(AbstractStretched):
    """`x / (1 + exp(-beta x))`.

    **Raises:** `ValueError` if `beta` is not positive.
    """

    beta: Float[Array, ""]

    def __init__(self, beta: ArrayLike = 1.0):
        self.beta = positive("beta", beta)

    @property
    def base(self) -> SiLU:
        return SiLU()
