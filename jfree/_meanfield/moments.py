"""Moments of activations behind preactivations of any variance, however small."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from ..activations._base import AbstractActivation


def in_range(q: Array) -> Array:
    """`q`, or a variance at which activations are already homogeneous, to the last digit, where it is below that.

    Derivatives of moments at a much smaller one leave the range of floats.
    """
    return jnp.maximum(q, homogeneous(q.dtype))


def homogeneous(dtype: DTypeLike) -> float:
    return 100 * float(jnp.finfo(dtype).eps) ** 2


def second_moment(activation: AbstractActivation, q: Float[Array, ""]) -> Float[Array, ""]:
    """`E phi(sqrt(q) Z)^2` for `q` as small as floats go."""
    return _continued(q, activation.second_moment(in_range(q)), jnp.square(activation(jnp.zeros_like(q))), 1.0)


def first_moment(activation: AbstractActivation, q: Float[Array, ""]) -> Float[Array, ""]:
    """`E phi(sqrt(q) Z)` for `q` as small as floats go."""
    return _continued(q, activation.mean(in_range(q)), activation(jnp.zeros_like(q)), 0.5)


def _continued(q: Array, value: Array, at_zero: Array, power: float) -> Array:
    smallest = homogeneous(q.dtype)
    small = q < smallest
    share = jnp.where(small, q, smallest) / smallest
    return jnp.where(small, at_zero + (value - at_zero) * share**power, value)


def seen_moment(over: Callable[..., Any], centred: Bool[Array, " layers"] | None) -> Callable[..., Array]:
    """`E phi^2`, less the squared mean where the next layer is centred, or this one is the last and centred; over
    layers as `Kinds.at` or `Kinds.every` goes over them.
    """
    square, mean = over(second_moment), over(first_moment)
    if centred is None:
        return square
    unseen = jnp.append(centred[1:], centred[-1:])
    return lambda *at: square(*at) - jnp.where(unseen[at[:-1]], jnp.square(mean(*at)), 0)
