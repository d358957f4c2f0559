"""The wide limit of the forward pass: variances of the preactivations, layer by layer."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from .._numerics.show import counted, number, runs, Shown, Table
from ..activations._base import AbstractActivation


class MeanField(Shown):
    """Per layer: `q` the variance of the preactivations, `phi2 = E phi(h)^2`, `chi = sigma_w^2 E phi'(h)^2`, and how
    variances are passed on, `chi_q = d q_{l+1} / d q_l = sigma_w^2 E[phi'(h)^2 + phi(h) phi''(h)]`, with `sigma_w` of
    the next layer, of the last as if another like it followed (Schoenholz et al. 2017, equation 5).

    With `chi_q` above 1 in layer after layer, inputs whose norms differ a little, or samples of finite width, have
    variances that differ much: the forward pass is unstable. `elasticity` is `d log q_L / d log q_l`. In a residual
    network both are those of the mean square of the stream, block by block.
    """

    q: Float[Array, " layers"]
    phi2: Float[Array, " layers"]
    chi: Float[Array, " layers"]
    chi_q: Float[Array, " layers"]
    elasticity: Float[Array, " layers"]

    def _table(self):
        if self.q.ndim > 1:
            return None
        title = f"Mean field, {counted(self.q.shape[0], 'layer')}"
        return Table(title, ("layer", *COLUMNS), runs(self.rows))

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """What tables say of each layer."""
        columns = (np.asarray(getattr(self, name)).tolist() for name in COLUMNS)
        return [tuple(map(number, row)) for row in zip(*columns, strict=True)]


COLUMNS = ("q", "phi2", "chi", "chi_q", "elasticity")


def elasticities(q: Float[Array, " layers"], chi_q: Float[Array, " layers"]) -> Float[Array, " layers"]:
    """`d log q_L / d log q_l`, from those of one layer to the next."""
    onwards = q[:-1] / q[1:] * chi_q[:-1]
    return jnp.append(jnp.cumprod(onwards[::-1])[::-1], jnp.ones_like(q[-1:]))


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
