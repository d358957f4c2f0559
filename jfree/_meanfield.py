"""The wide limit of the forward pass: variances of the preactivations, layer by layer."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from ._activations import AbstractActivation, as_activation
from ._implicit import implicit_root, with_slope
from ._kinds import Kinds
from ._misc import check, inexact_asarray
from ._show import counted, number, runs, Shown, Table


class MeanField(Shown):
    """Per layer: `q` the variance of the preactivations, `phi2 = E phi(h)^2`, `chi = sigma_w^2 E phi'(h)^2`."""

    q: Float[Array, " layers"]
    phi2: Float[Array, " layers"]
    chi: Float[Array, " layers"]

    def _table(self):
        if self.q.ndim > 1:
            return None
        title = f"Mean field, {counted(self.q.shape[0], 'layer')}"
        return Table(title, ("layer", "q", "phi2", "chi"), runs(self.rows))

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """What tables say of each layer."""
        columns = (np.asarray(column).tolist() for column in (self.q, self.phi2, self.chi))
        return [tuple(map(number, row)) for row in zip(*columns, strict=True)]


def in_range(q: Array) -> Array:
    """`q`, or a variance at which activations are already homogeneous, to the last digit, where it is below that.

    Derivatives of moments at a much smaller one leave the range of floats.
    """
    return jnp.maximum(q, _homogeneous(q.dtype))


def _homogeneous(dtype: DTypeLike) -> float:
    return 100 * float(jnp.finfo(dtype).eps) ** 2


def second_moment(activation: AbstractActivation, q: Float[Array, ""]) -> Float[Array, ""]:
    """`E phi(sqrt(q) Z)^2` for `q` as small as floats go."""
    return _continued(q, activation.second_moment(in_range(q)), jnp.square(activation(jnp.zeros_like(q))), 1.0)


def first_moment(activation: AbstractActivation, q: Float[Array, ""]) -> Float[Array, ""]:
    """`E phi(sqrt(q) Z)` for `q` as small as floats go."""
    return _continued(q, activation.mean(in_range(q)), activation(jnp.zeros_like(q)), 0.5)


def _continued(q: Array, value: Array, at_zero: Array, power: float) -> Array:
    smallest = _homogeneous(q.dtype)
    small = q < smallest
    share = jnp.where(small, q, smallest) / smallest
    return jnp.where(small, at_zero + (value - at_zero) * share**power, value)


def forward(
    kinds: Kinds[AbstractActivation],
    sigma_w: Float[Array, " layers"],
    sigma_b: Float[Array, " layers"],
    q0: Float[Array, ""],
) -> MeanField:
    """`q_l = sigma_w^2 E phi_{l-1}(sqrt(q_{l-1}) Z)^2 + sigma_b^2` from `E x_0^2 = q0`."""
    variances = jnp.square(sigma_w), jnp.square(sigma_b)
    phi2 = _second_moments(kinds, variances, q0)
    q = _preactivations(jnp.append(q0, phi2[:-1]), *variances)
    slopes = kinds.every(lambda phi, q: phi.slope_moment(q))(in_range(q))
    return MeanField(q, phi2, variances[0] * slopes)


def _preactivations(phi2: Array, variance_w: Array, variance_b: Array) -> Array:
    return jnp.maximum(variance_w * phi2 + variance_b, jnp.finfo(phi2.dtype).tiny)  # it may decay out of range


@eqx.filter_custom_jvp
def _second_moments(
    kinds: Kinds[AbstractActivation], variances: tuple[Array, Array], q0: Array
) -> Float[Array, " layers"]:
    moment = kinds.at(second_moment)

    def layer(phi2: Array, xs: tuple[Array, Array, Array]):
        index, *variance = xs
        phi2 = moment(index, _preactivations(phi2, *variance))
        return phi2, phi2

    return jax.lax.scan(layer, q0, (jnp.arange(kinds.kind.size), *variances))[1]


@_second_moments.def_jvp
def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    """All layers' own derivatives at once, and their product by an associative scan: no loop to be transposed."""
    kinds, variances, q0 = primals
    phi2 = _second_moments(*primals)
    before = jnp.append(q0, phi2[:-1])
    dynamic, static = eqx.partition(kinds, eqx.is_inexact_array)

    def after(before: Array, dynamic: Any, variances: tuple[Array, Array]) -> Array:
        moments = eqx.combine(dynamic, static).every(second_moment)
        return moments(_preactivations(before, *variances))

    _, slope = jax.jvp(lambda before: after(before, dynamic, variances), (before,), (jnp.ones_like(before),))
    args = (dynamic, variances, q0)
    changes = jax.tree.map(
        lambda x, t: None if x is None else jnp.zeros_like(x) if t is None else t,
        args,
        tangents,
        is_leaf=lambda x: x is None,
    )
    start = jnp.zeros_like(before).at[0].set(changes[2])
    _, direct = jax.jvp(after, (before, dynamic, variances), (start, *changes[:2]))

    def join(first: tuple[Array, Array], last: tuple[Array, Array]) -> tuple[Array, Array]:
        return first[0] * last[0], last[0] * first[1] + last[1]

    return phi2, jax.lax.associative_scan(join, (slope, direct))[1]


def _variance_map(log_q: Array, activation: AbstractActivation, sigma_w: Array, sigma_b: Array) -> Array:
    q = jnp.exp(log_q)
    return jnp.log(jnp.square(sigma_w) * activation.second_moment(q) + jnp.square(sigma_b)) - log_q


def fixed_point(activation: str | AbstractActivation, sigma_w: ArrayLike, sigma_b: ArrayLike) -> Float[Array, ""]:
    """The variance `q*` that layers of one kind settle to: `q = sigma_w^2 E phi(sqrt(q) Z)^2 + sigma_b^2`.

    The largest solution between `exp(-50)` and `exp(50)`, differentiable in all arguments; NaN where `q` grows beyond,
    or where every `q` is fixed, 0 where it decays below (Poole et al. 2016).

    **Arguments:** an activation or its name, and the scales of weights and biases, scalars.

    **Raises:** `ValueError` for an unknown activation or an argument that is negative or not finite.
    """
    activation = as_activation(activation)
    sigma_w, sigma_b = _sigma("sigma_w", sigma_w), _sigma("sigma_b", sigma_b)
    args = (activation, sigma_w, sigma_b)
    grid = jnp.linspace(-50.0, 50.0, 101, dtype=jnp.result_type(sigma_w, sigma_b))
    gain = jax.vmap(lambda v: _variance_map(v, *jax.lax.stop_gradient(args)))(grid)
    rounding = 64 * jnp.finfo(grid.dtype).eps * jnp.maximum(1, jnp.abs(grid))
    last = jnp.max(jnp.where(gain > rounding, jnp.arange(grid.size), -1))
    last = jnp.where(jnp.all(jnp.abs(gain) <= rounding), grid.size - 1, last)
    low = grid[jnp.maximum(last, 0)]
    root = bisect(lambda v: -_variance_map(v, *jax.lax.stop_gradient(args)), low, low + (grid[1] - grid[0]))
    q = jnp.exp(implicit_root(with_slope(_variance_map), root, args))
    return jnp.where(last < 0, 0, jnp.where(last == grid.size - 1, jnp.nan, q))


def bisect(fn: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """The sign change of a scalar function that goes from negative to positive."""

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        below = fn(middle) < 0
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    return jax.lax.fori_loop(0, 60, halve, (low, high))[0]


def _criticality(log_q: Array, activation: AbstractActivation, sigma_b: Array) -> Array:
    """Positive where `chi > 1` at the `sigma_w` that makes `q` a fixed point."""
    q = jnp.exp(log_q)
    variance_w = (q - jnp.square(sigma_b)) / activation.second_moment(q)
    return variance_w * activation.slope_moment(q) - 1


def critical_sigma_w(
    activation: str | AbstractActivation, sigma_b: ArrayLike
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The edge of chaos: `(sigma_w, q*)` with `q*` a fixed point and `chi = sigma_w^2 E phi'(sqrt(q*) Z)^2 = 1`.

    For `sigma_b = 0` and an activation with `phi(0) = 0` whose critical point is the limit `q* -> 0`, that limit.
    NaN where no `sigma_w` is critical (Schoenholz et al. 2017).

    **Arguments:** an activation or its name, and the scale of the biases, a scalar.

    **Raises:** `ValueError` for an unknown activation or a `sigma_b` that is negative or not finite.
    """
    activation = as_activation(activation)
    sigma_b = _sigma("sigma_b", sigma_b)
    args = (activation, sigma_b)
    frozen = jax.lax.stop_gradient(args)
    tiny = 2 * jnp.log(jnp.maximum(frozen[1], 1e-9)) + 1e-6
    grid = tiny + jnp.linspace(0.0, 1.0, 241, dtype=sigma_b.dtype) * jnp.maximum(30, 25 - tiny)
    value = jax.vmap(lambda v: _criticality(v, *frozen))(grid)
    flat = jnp.abs(value[0]) < 1e-6
    crossing = jnp.argmax((value[1:] > 0) & (value[:-1] <= 0))
    found = jnp.any((value[1:] > 0) & (value[:-1] <= 0))
    root = bisect(lambda v: _criticality(v, *frozen), grid[crossing], grid[crossing + 1])
    q = jnp.exp(implicit_root(with_slope(_criticality), root, args))
    q = jnp.where(flat, jnp.exp(grid[0]), q)
    sigma_w = jnp.sqrt((q - jnp.where(flat, 0, jnp.square(sigma_b))) / activation.second_moment(q))
    valid = found | flat
    return jnp.where(valid, sigma_w, jnp.nan), jnp.where(valid, jnp.where(flat, jnp.square(sigma_b), q), jnp.nan)


def _sigma(name: str, value: ArrayLike) -> Array:
    value = inexact_asarray(value)
    return check(value, lambda x: (x >= 0) & (x < np.inf), f"`{name}` must be nonnegative and finite.")
