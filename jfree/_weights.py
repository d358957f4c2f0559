"""Weight laws: what `W^T W` is to the calculus, at fan-in scaling."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._kinds import Kinds
from ._laws import Atoms
from ._operations import Factor


class AbstractWeights(eqx.Module):
    """The law of a random matrix `W` of shape `N_out x N_in` with `E|Wx|^2 / N_out = sigma_w^2 |x|^2 / N_in`."""

    @abc.abstractmethod
    def moebius(self, ratio: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """`(a, b)` of `S(m) = (1 + a m) / (mean (1 + b m))` for `W^T W`, `ratio = N_in / N_out`."""

    @abc.abstractmethod
    def point_mass(self, ratio: Float[Array, ""]) -> Float[Array, ""]:
        """Mass of the one nonzero atom of `W^T W`, 0 if there is none."""


class Gaussian(AbstractWeights):
    """Independent entries `N(0, sigma_w^2 / N_in)`: `W^T W` is Marchenko-Pastur."""

    def moebius(self, ratio: Array) -> tuple[Array, Array]:
        return jnp.zeros_like(ratio), ratio

    def point_mass(self, ratio: Array) -> Array:
        return jnp.zeros_like(ratio)


class Orthogonal(AbstractWeights):
    """Haar distributed orthonormal rows or columns, times `sigma_w sqrt(max(1, N_out / N_in))`."""

    def moebius(self, ratio: Array) -> tuple[Array, Array]:
        narrowing = ratio > 1
        return jnp.where(narrowing, 1, jnp.zeros_like(ratio)), jnp.where(narrowing, ratio, 0)

    def point_mass(self, ratio: Array) -> Array:
        return jnp.minimum(1, 1 / ratio)


def weight_factor(laws: Kinds[AbstractWeights], ratio: Array, sigma_w: Array) -> Factor:
    """The free factors `W_l^T W_l`, as seen from the input side of every layer."""
    a, b = laws.every(lambda law, ratio: law.moebius(ratio))(ratio)
    mass = laws.every(lambda law, ratio: law.point_mass(ratio))(ratio)
    variance = jnp.square(sigma_w)
    location = jnp.log(variance * jnp.maximum(1, 1 / ratio))
    rank = 1 / jnp.maximum(1, ratio)
    return Factor(variance / ratio, a, b, Atoms(rank, location[:, None], mass[:, None]))


BY_NAME = {"gaussian": Gaussian, "orthogonal": Orthogonal}


def as_weights(weights: str | AbstractWeights) -> AbstractWeights:
    if isinstance(weights, AbstractWeights):
        return weights
    if isinstance(weights, str) and weights in BY_NAME:
        return BY_NAME[weights]()
    raise ValueError(f"`weights` must be 'gaussian' or 'orthogonal', one or one per layer, got {weights!r}.")
