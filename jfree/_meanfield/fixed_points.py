"""Where networks of many like layers settle: variances, correlations, and the scales at which they stay there."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from .._numerics.arrays import inexact_asarray, is_concrete
from .._numerics.checks import check
from .._numerics.implicit import bisect, implicit_root, with_slope
from .._numerics.show import counted, number, runs, Shown, Table
from ..activations._base import AbstractActivation
from ..activations._names import as_activation
from .correlation import hermite_shares, mapped, settled
from .moments import first_moment, homogeneous, in_range, second_moment


class FixedPoints(Shown):
    """Variances that layers of one kind leave as they are, in increasing order; NaN fills up.

    `stable` are those that others nearby go to. Where `chi > 1` inputs that are alike grow apart, until their
    correlation is `c`, where the slope of its map is `chi_c`; elsewhere these are 1 and `chi`.
    """

    sigma_w: Float[Array, "*points"]
    q: Float[Array, "*points"]
    chi: Float[Array, "*points"]
    chi_q: Float[Array, "*points"]
    c: Float[Array, "*points"]
    chi_c: Float[Array, "*points"]
    stable: Bool[Array, "*points"]

    @property
    def depth_scales(self) -> tuple[Float[Array, "*points"], Float[Array, "*points"]]:
        """Layers in which differences of variance fall by `e`, and those of correlation: `1 / |log chi_q|` and
        `1 / |log chi_c|` (Schoenholz et al. 2017, Section 3). With `chi_q` above 1 variances grow apart by as much.
        """

        def layers(slope: Array) -> Array:
            rate = jnp.abs(jnp.log(jnp.abs(slope)))
            return jnp.where(rate < 64 * jnp.finfo(rate.dtype).eps, jnp.inf, 1 / rate)

        return layers(self.chi_q), layers(self.chi_c)

    @property
    def best(self) -> "FixedPoints":
        """The first that is stable, or else the first; NaN where there is none. All leaves are scalars."""
        index = jnp.argmax(2 * self.stable + jnp.isfinite(self.sigma_w))
        return jax.tree.map(lambda x: x[index], self)

    def _table(self):
        if self.q.ndim != 1:
            return None
        there = np.flatnonzero(np.isfinite(np.asarray(self.q)))
        numbers = (self.sigma_w, self.q, self.chi, self.chi_q, self.c, *self.depth_scales)
        columns = (np.asarray(column)[there].tolist() for column in numbers)
        words = ["yes" if self.stable[k] else "no" for k in there]
        rows = [(*map(number, row), word) for *row, word in zip(*columns, words, strict=True)]
        header = ("sigma_w", "q", "chi", "chi_q", "c", "depth of q", "depth of c")
        title = f"{counted(there.size, 'fixed point')} of the variance"
        return Table(title, ("", *header, "stable"), runs(rows))


# Fixed points that are kept, by far more than were ever seen.
_MOST_POINTS = 4


# A variance next to a fixed point at 0, and how much farther than others one is to be seen from which they may grow.
_NEXT_TO_ZERO, _NEXT = 1e-4, 1.01


# By how much variances may grow where they stay as they are but for rounding, as with homogeneous activations.
_MARGINAL = 1e-9


def _fixed_at(activation: AbstractActivation, sigma_w: Array, sigma_b: Array, q: Array) -> FixedPoints:
    """One of them, NaN where `q` or `sigma_w` is."""
    known = jnp.isfinite(q) & jnp.isfinite(sigma_w)
    safe, variance = in_range(jnp.where(known, q, 1)), jnp.square(sigma_w)
    _, passed_on = jax.jvp(activation.second_moment, (safe,), (jnp.ones_like(safe),))
    chi, chi_q = variance * activation.slope_moment(safe), variance * passed_on
    beyond = jnp.log(_NEXT * jnp.where(safe < homogeneous(q.dtype) ** 0.4, _NEXT_TO_ZERO, safe))
    grows = _variance_map(beyond, activation, sigma_w, sigma_b) > _MARGINAL
    stable = known & ~grows & (jnp.abs(chi_q) < 1 + _MARGINAL**0.5)
    c, chi_c = settled(activation, sigma_w, sigma_b, safe, chi)
    found = (jnp.where(known, x, jnp.nan) for x in (sigma_w, q, chi, chi_q, c, chi_c))
    return FixedPoints(*found, stable=stable)


class _Crossings(eqx.Module):
    """Where a function on a grid changes sign, upwards or downwards, what is rounding left out."""

    grid: Float[Array, " points"]
    sign: Float[Array, " points"]
    changes: Bool[Array, " points"]

    @staticmethod
    def of(value: Callable[[Array], Array], grid: Float[Array, " points"]) -> "_Crossings":
        values = jax.vmap(value)(grid)
        rounding = 64 * jnp.finfo(grid.dtype).eps * jnp.maximum(1, jnp.abs(grid))
        sign = jnp.where(jnp.abs(values) <= rounding, 0, jnp.sign(values))
        following = jax.lax.associative_scan(lambda near, far: jnp.where(far != 0, far, near), sign[::-1])[::-1]
        return _Crossings(grid, sign, sign * jnp.append(following[1:], 0) < 0)

    def root(self, residual: Callable[..., Array], place: Array, args: tuple[Any, ...], found: Array) -> Array:
        """Right after a place of the grid, differentiable in the arguments."""
        upwards, frozen = -self.sign[place], jax.lax.stop_gradient(args)
        ends = self.grid[place], self.grid[jnp.minimum(place + 1, self.grid.size - 1)]
        root = bisect(lambda x: upwards * residual(x, *frozen), *ends)
        return implicit_root(with_slope(residual), root, args, found)

    def roots(self, residual: Callable[..., Array], args: tuple[Any, ...], size: int) -> tuple[Array, Array]:
        """The first ones, and which of them there are."""
        (places,) = jnp.nonzero(self.changes, size=size, fill_value=-1)
        found = places >= 0
        places = jnp.maximum(places, 0)
        return jax.vmap(lambda place, found: self.root(residual, place, args, found))(places, found), found


def _variance_map(log_q: Array, activation: AbstractActivation, sigma_w: Array, sigma_b: Array) -> Array:
    q = jnp.exp(log_q)
    return jnp.log(jnp.square(sigma_w) * activation.second_moment(q) + jnp.square(sigma_b)) - log_q


def _growth(args: tuple[AbstractActivation, Array, Array]) -> _Crossings:
    """Where layers make a variance larger, and where smaller."""
    grid = jnp.linspace(-50.0, 50.0, 101, dtype=jnp.result_type(*args[1:]))
    return _Crossings.of(lambda v: _variance_map(v, *jax.lax.stop_gradient(args)), grid)


def _decays(growth: _Crossings) -> Bool[Array, ""]:
    """Whether small variances go to 0."""
    return growth.sign[jnp.argmax(growth.sign != 0)] < 0


def fixed_point(activation: str | AbstractActivation, sigma_w: ArrayLike, sigma_b: ArrayLike) -> Float[Array, ""]:
    """The variance `q*` that layers of one kind settle to: `q = sigma_w^2 E phi(sqrt(q) Z)^2 + sigma_b^2`.

    The largest stable solution between `exp(-50)` and `exp(50)`, differentiable in all arguments; 0 where small `q`
    decay and there is none, NaN where `q` grows beyond, or where every `q` is fixed (Poole et al. 2016).
    `fixed_points` gives all of them.

    **Arguments:** an activation or its name, and the scales of weights and biases, scalars.

    **Raises:** `ValueError` for an unknown activation or an argument that is negative or not finite.
    """
    args = as_activation(activation), _sigma("sigma_w", sigma_w), _sigma("sigma_b", sigma_b)
    growth = _growth(args)
    last = jnp.max(jnp.where(growth.changes & (growth.sign > 0), jnp.arange(growth.grid.size), -1))
    found = last >= 0
    q = jnp.exp(growth.root(_variance_map, jnp.maximum(last, 0), args, found))
    return jnp.where(found, q, jnp.where(_decays(growth), 0, jnp.nan))


def fixed_points(activation: str | AbstractActivation, sigma_w: ArrayLike, sigma_b: ArrayLike) -> FixedPoints:
    """All variances that layers of one kind leave as they are, between `exp(-50)` and `exp(50)`, and 0 where small
    ones decay; with `chi`, `chi_q` and whether they are stable.

    **Arguments:** an activation or its name, and the scales of weights and biases, scalars.

    **Raises:** `ValueError` for an unknown activation or an argument that is negative or not finite.
    """
    args = as_activation(activation), _sigma("sigma_w", sigma_w), _sigma("sigma_b", sigma_b)
    growth = _growth(args)
    roots, found = growth.roots(_variance_map, args, _MOST_POINTS)
    q = jnp.append(jnp.where(_decays(growth), 0, jnp.nan), jnp.where(found, jnp.exp(roots), jnp.nan))
    return jax.vmap(lambda q: _fixed_at(args[0], jnp.where(jnp.isnan(q), jnp.nan, args[1]), args[2], q))(q)


def correlation_map(
    activation: str | AbstractActivation, sigma_w: ArrayLike, sigma_b: ArrayLike, c: ArrayLike
) -> Float[Array, "..."]:
    """The correlation that the preactivations of two inputs have after a layer, of one `c` before it, both of the
    variance `fixed_point` (Poole et al. 2016, equation 6).

    `fixed_points` has where it settles, `c`, and the slope there. To some `1e-6` where `phi` has kinks.

    **Arguments:** an activation or its name, the scales of weights and biases, scalars, and any number of correlations.

    **Raises:** `ValueError` for an unknown activation, a scale that is negative or not finite, or a `c` not from -1
    to 1.
    """
    activation, c = as_activation(activation), inexact_asarray(c)
    c = check(c, lambda c: (c >= -1) & (c <= 1), "`c` must lie in [-1, 1].")
    sigma_w, sigma_b = _sigma("sigma_w", sigma_w), _sigma("sigma_b", sigma_b)
    q = fixed_point(activation, sigma_w, sigma_b)
    shares = hermite_shares(activation, q)
    found = jax.vmap(lambda c: mapped(c, shares, jnp.square(sigma_w), jnp.square(sigma_b)))(c.ravel())
    return jnp.where(q > 0, found.reshape(c.shape), jnp.nan)


def _criticality(log_q: Array, activation: AbstractActivation, sigma_b: Array) -> Array:
    """Positive where `chi > 1` at the `sigma_w` that makes `q` a fixed point."""
    q = jnp.exp(log_q)
    variance_w = (q - jnp.square(sigma_b)) / activation.second_moment(q)
    return variance_w * activation.slope_moment(q) - 1


def critical_points(activation: str | AbstractActivation, sigma_b: ArrayLike) -> FixedPoints:
    """All `(sigma_w, q)` with `q` a fixed point and `chi = sigma_w^2 E phi'(sqrt(q) Z)^2 = 1`, the edge of chaos.

    For `sigma_b = 0` and an activation with `phi(0) = 0`, the first may be the limit `q -> 0`.

    **Arguments:** an activation or its name, and the scale of the biases, a scalar.

    **Raises:** `ValueError` for an unknown activation or a `sigma_b` that is negative or not finite.
    """
    args = as_activation(activation), _sigma("sigma_b", sigma_b)
    activation, sigma_b = args
    frozen = jax.lax.stop_gradient(args)
    tiny = 2 * jnp.log(jnp.maximum(frozen[1], 1e-9)) + 1e-6
    grid = tiny + jnp.linspace(0.0, 1.0, 241, dtype=sigma_b.dtype) * jnp.maximum(30, 25 - tiny)
    crossings = _Crossings.of(lambda v: _criticality(v, *frozen), grid)
    roots, found = crossings.roots(_criticality, args, _MOST_POINTS)
    limit = jnp.abs(_criticality(grid[0], *frozen)) < 1e-6
    q = jnp.append(jnp.exp(grid[0]), jnp.exp(roots))
    there = jnp.append(limit, found)
    variance_b = jnp.square(sigma_b) * jnp.append(0, jnp.ones_like(roots))
    sigma_w = jnp.sqrt((q - variance_b) / jax.vmap(activation.second_moment)(q))
    sigma_w = jnp.where(there, sigma_w, jnp.nan)
    points = jax.vmap(lambda sigma_w, q: _fixed_at(activation, sigma_w, sigma_b, q))(sigma_w, q)
    at_limit = jnp.where(limit, jnp.square(sigma_b), jnp.nan)
    return eqx.tree_at(lambda p: p.q, points, points.q.at[0].set(at_limit))


def critical_sigma_w(
    activation: str | AbstractActivation, sigma_b: ArrayLike
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The edge of chaos: `(sigma_w, q*)` with `q*` a fixed point and `chi = sigma_w^2 E phi'(sqrt(q*) Z)^2 = 1`.

    The first that is stable, `chi_q < 1`, of `critical_points`; where none is, the first, with a warning (not under
    `jit`). For `sigma_b = 0` and an activation with `phi(0) = 0` whose critical point is the limit `q* -> 0`, that
    limit. NaN where no `sigma_w` is critical (Schoenholz et al. 2017).

    **Arguments:** an activation or its name, and the scale of the biases, a scalar.

    **Raises:** `ValueError` for an unknown activation or a `sigma_b` that is negative or not finite.
    """
    best = critical_points(activation, sigma_b).best
    if is_concrete(best.sigma_w) and bool(jnp.isfinite(best.sigma_w)) and not bool(best.stable):
        where = f"sigma_w = {number(best.sigma_w)}, q = {number(best.q)}"
        warnings.warn(
            f"The critical point {where} is unstable, chi_q = {number(best.chi_q)}: "
            "variances move away from it, to 0 or without bound. Larger biases may have a stable one; or normalise "
            "layers, or take an activation that is bounded.",
            stacklevel=2,
        )
    return best.sigma_w, best.q


class Gain(NamedTuple):
    """A scale of weights, and what it makes of derivatives and variances from layer to layer."""

    gain: Float[Array, ""]
    chi: Float[Array, ""]
    chi_q: Float[Array, ""]


def gain(activation: str | AbstractActivation, q: ArrayLike = 1.0, centred: bool = False) -> Gain:
    """The `sigma_w` with which layers without biases keep the variance `q` of their preactivations: `q / E phi^2`, of
    which the root is taken; dimensionless.

    `chi = sigma_w^2 E phi'^2` is by what squared gradients grow from layer to layer, `chi_q` by what small differences
    of variance do: only with `chi_q` below 1, or at it, will `q` stay. For ReLU the gain is `sqrt(2)` whatever `q` (He
    et al. 2015), for others it belongs to `q`.

    **Arguments:**

    - `activation`: one, or its name.
    - `q`: the variance to keep.
    - `centred`: for weights whose rows sum to 0, as standardised ones do, which see only the variance of `phi`.

    **Raises:** `ValueError` for an unknown activation, or a `q` that is not positive and finite.
    """
    activation, q = as_activation(activation), inexact_asarray(q)
    q = check(q, lambda q: (q > 0) & (q < np.inf), "`q` must be positive and finite.")

    def passed_on(q: Array) -> Array:
        return second_moment(activation, q) - (jnp.square(first_moment(activation, q)) if centred else 0)

    moment, slope = jax.jvp(passed_on, (q,), (jnp.ones_like(q),))
    return Gain(jnp.sqrt(q / moment), q / moment * activation.slope_moment(in_range(q)), q / moment * slope)


def _sigma(name: str, value: ArrayLike) -> Array:
    value = inexact_asarray(value)
    return check(value, lambda x: (x >= 0) & (x < np.inf), f"`{name}` must be nonnegative and finite.")
