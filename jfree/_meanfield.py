"""The wide limit of the forward pass: variances of the preactivations, layer by layer."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from ._activations import AbstractActivation
from ._kinds import Kinds
from ._show import counted, number, runs, Shown, Table


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


def forward(
    kinds: Kinds[AbstractActivation],
    sigma_w: Float[Array, " layers"],
    sigma_b: Float[Array, " layers"],
    q0: Float[Array, ""],
    centred: Bool[Array, " layers"] | None = None,
) -> MeanField:
    """`q_l = sigma_w^2 E phi_{l-1}(sqrt(q_{l-1}) Z)^2 + sigma_b^2` from `E x_0^2 = q0`, of centred weights without the
    squared mean of `phi`, and of the input, whose mean is taken to be 0.
    """
    variances = jnp.square(sigma_w), jnp.square(sigma_b)
    seen = _seen_moments(kinds, variances, q0, centred)
    q = _preactivations(jnp.append(q0, seen[:-1]), *variances)
    slopes = kinds.every(lambda phi, q: phi.slope_moment(q))(in_range(q))
    _, passed_on = jax.jvp(seen_moment(kinds.every, centred), (q,), (jnp.ones_like(q),))
    chi_q = jnp.append(variances[0][1:], variances[0][-1:]) * passed_on
    phi2 = seen if centred is None else kinds.every(second_moment)(q)
    return MeanField(q, phi2, variances[0] * slopes, chi_q, elasticities(q, chi_q))


def _preactivations(phi2: Array, variance_w: Array, variance_b: Array) -> Array:
    return jnp.maximum(variance_w * phi2 + variance_b, jnp.finfo(phi2.dtype).tiny)  # it may decay out of range


def seen_moment(over: Callable[..., Any], centred: Bool[Array, " layers"] | None) -> Callable[..., Array]:
    """`E phi^2`, less the squared mean where the next layer is centred, or this one is the last and centred; over
    layers as `Kinds.at` or `Kinds.every` goes over them.
    """
    square, mean = over(second_moment), over(first_moment)
    if centred is None:
        return square
    unseen = jnp.append(centred[1:], centred[-1:])
    return lambda *at: square(*at) - jnp.where(unseen[at[:-1]], jnp.square(mean(*at)), 0)


@eqx.filter_custom_jvp
def _seen_moments(
    kinds: Kinds[AbstractActivation], variances: tuple[Array, Array], q0: Array, centred: Array | None
) -> Float[Array, " layers"]:
    moment = seen_moment(kinds.at, centred)

    def layer(phi2: Array, xs: tuple[Array, Array, Array]):
        index, *variance = xs
        phi2 = moment(index, _preactivations(phi2, *variance))
        return phi2, phi2

    return jax.lax.scan(layer, q0, (jnp.arange(kinds.kind.size), *variances))[1]


@_seen_moments.def_jvp
def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    """All layers' own derivatives at once, and their product by an associative scan: no loop to be transposed."""
    kinds, variances, q0, centred = primals
    phi2 = _seen_moments(*primals)
    before = jnp.append(q0, phi2[:-1])
    dynamic, static = eqx.partition(kinds, eqx.is_inexact_array)

    def after(before: Array, dynamic: Any, variances: tuple[Array, Array]) -> Array:
        moments = seen_moment(eqx.combine(dynamic, static).every, centred)
        return moments(_preactivations(before, *variances))

    _, slope = jax.jvp(lambda before: after(before, dynamic, variances), (before,), (jnp.ones_like(before),))
    args = (dynamic, variances, q0)
    changes = jax.tree.map(
        lambda x, t: None if x is None else jnp.zeros_like(x) if t is None else t,
        args,
        tangents[:3],
        is_leaf=lambda x: x is None,
    )
    start = jnp.zeros_like(before).at[0].set(changes[2])
    _, direct = jax.jvp(after, (before, dynamic, variances), (start, *changes[:2]))

    def join(first: tuple[Array, Array], last: tuple[Array, Array]) -> tuple[Array, Array]:
        return first[0] * last[0], last[0] * first[1] + last[1]

    return phi2, jax.lax.associative_scan(join, (slope, direct))[1]
