"""Weight laws: what `W^T W` is to the calculus, at fan-in scaling."""

import abc
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .._calculus.atoms import Atoms
from .._calculus.factor import Factor
from .._calculus.operation import AbstractOperation
from .._numerics.checks import several
from .kinds import Kinds


class AbstractWeights(eqx.Module):
    """The law of a random matrix `W` of shape `N_out x N_in` with `E|Wx|^2 / N_out = sigma_w^2 |x|^2 / N_in`.

    If `centred`, rows sum to 0, as those of standardised weights: of `x` they see how it differs from its mean.
    """

    centred: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def factor(self, ratio: Float[Array, ""], sigma_w: Float[Array, ""]) -> AbstractOperation:
        """Free multiplication by the law of `W^T W`, `ratio = N_in / N_out`: a `Factor`, a `LawFactor`, or another
        operation that leaves `m` as it is.
        """

    @abc.abstractmethod
    def sample(self, shape: tuple[int, int], key: PRNGKeyArray, dtype: DTypeLike) -> Float[Array, "N_out N_in"]:
        """One such matrix, with `sigma_w = 1`, but for `centred`."""


class Gaussian(AbstractWeights):
    """Independent entries `N(0, sigma_w^2 / N_in)`: `W^T W` is Marchenko-Pastur.

    **Arguments:** `centred`, whether rows sum to 0.
    """

    centred: bool = eqx.field(static=True, default=False)

    def factor(self, ratio: Array, sigma_w: Array) -> Factor:
        zero = jnp.zeros_like(ratio)
        return Factor(jnp.square(sigma_w) / ratio, zero, ratio, _one_atom(ratio, sigma_w, zero))

    def sample(self, shape: tuple[int, int], key: PRNGKeyArray, dtype: DTypeLike) -> Array:
        return jax.random.normal(key, shape, dtype) / shape[1] ** 0.5


class Orthogonal(AbstractWeights):
    """Haar distributed orthonormal rows or columns, times `sigma_w sqrt(max(1, N_out / N_in))`.

    **Arguments:** `centred`, whether rows sum to 0.
    """

    centred: bool = eqx.field(static=True, default=False)

    def factor(self, ratio: Array, sigma_w: Array) -> Factor:
        narrowing = ratio > 1
        a, b = jnp.where(narrowing, 1, jnp.zeros_like(ratio)), jnp.where(narrowing, ratio, 0)
        return Factor(jnp.square(sigma_w) / ratio, a, b, _one_atom(ratio, sigma_w, jnp.minimum(1, 1 / ratio)))

    def sample(self, shape: tuple[int, int], key: PRNGKeyArray, dtype: DTypeLike) -> Array:
        num_out, num_in = shape
        normal = jax.random.normal(key, shape, dtype)
        q, r = jnp.linalg.qr(normal if num_out >= num_in else normal.T)
        q = q * jnp.where(jnp.diagonal(r) < 0, -1, 1)  # without these signs Q would not be Haar distributed
        return (q if num_out >= num_in else q.T) * max(1, num_out / num_in) ** 0.5


def _one_atom(ratio: Array, sigma_w: Array, mass: Array) -> Atoms:
    """What is not 0, and an atom where an orthogonal matrix has one."""
    location = jnp.log(jnp.square(sigma_w) * jnp.maximum(1, 1 / ratio))
    return Atoms(1 / jnp.maximum(1, ratio), location[None], mass[None])


def centred_layers(laws: Kinds[AbstractWeights]) -> Bool[Array, "*layers"] | None:
    """Which ones are, None if none is."""
    centred = [law.centred for law in laws.members]
    return jnp.asarray(centred)[jnp.asarray(laws.kind)] if any(centred) else None


BY_NAME: dict[str, Callable[[], AbstractWeights]] = {
    "gaussian": Gaussian,
    "orthogonal": Orthogonal,
    "centred_gaussian": lambda: Gaussian(centred=True),
    "centred_orthogonal": lambda: Orthogonal(centred=True),
}


def as_weights(weights: str | AbstractWeights) -> AbstractWeights:
    if isinstance(weights, AbstractWeights):
        return weights
    if isinstance(weights, str) and weights in BY_NAME:
        return BY_NAME[weights]()
    names = ", ".join(map(repr, BY_NAME))
    raise ValueError(f"`weights` must be one of {names} or a weight law, one or one per layer, got {weights!r}.")


def weight_laws(
    weights: str | AbstractWeights | Sequence[str | AbstractWeights], number: int, unit: str
) -> tuple[AbstractWeights, ...]:
    if isinstance(weights, str | AbstractWeights):
        return (as_weights(weights),) * number
    return several("weights", weights, as_weights, number, unit)
