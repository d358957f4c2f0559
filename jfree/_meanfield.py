"""The wide limit of the forward pass: variances of the preactivations, layer by layer."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Bool, Float

from ._activations import AbstractActivation
from ._implicit import bisect, implicit_root, with_slope
from ._kinds import Kinds
from ._misc import check, inexact_asarray, is_concrete
from ._names import as_activation
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
    centred: Bool[Array, " layers"] | None = None,
) -> MeanField:
    """`q_l = sigma_w^2 E phi_{l-1}(sqrt(q_{l-1}) Z)^2 + sigma_b^2` from `E x_0^2 = q0`, of centred weights without the
    squared mean of `phi`, and of the input, whose mean is taken to be 0.
    """
    variances = jnp.square(sigma_w), jnp.square(sigma_b)
    before = None if centred is None else jnp.append(centred[1:], centred[-1:]).astype(q0.dtype)
    seen = _seen_moments(kinds, variances, q0, before)
    q = _preactivations(jnp.append(q0, seen[:-1]), *variances)
    slopes = kinds.every(lambda phi, q: phi.slope_moment(q))(in_range(q))
    _, passed_on = jax.jvp(_seen(kinds.every, before), (q,), (jnp.ones_like(q),))
    chi_q = jnp.append(variances[0][1:], variances[0][-1:]) * passed_on
    phi2 = seen if centred is None else kinds.every(second_moment)(q)
    return MeanField(q, phi2, variances[0] * slopes, chi_q, elasticities(q, chi_q))


def _preactivations(phi2: Array, variance_w: Array, variance_b: Array) -> Array:
    return jnp.maximum(variance_w * phi2 + variance_b, jnp.finfo(phi2.dtype).tiny)  # it may decay out of range


def _seen(over: Callable[..., Any], centred: Array | None) -> Callable[..., Array]:
    """What the next layer's weights see of the mean square of `phi`, over layers as `Kinds` goes over them."""
    square, mean = over(second_moment), over(first_moment)
    if centred is None:
        return square
    return lambda *at: square(*at) - centred[at[:-1]] * jnp.square(mean(*at))


@eqx.filter_custom_jvp
def _seen_moments(
    kinds: Kinds[AbstractActivation], variances: tuple[Array, Array], q0: Array, centred: Array | None
) -> Float[Array, " layers"]:
    moment = _seen(kinds.at, centred)

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
        moments = _seen(eqx.combine(dynamic, static).every, centred)
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


class FixedPoints(Shown):
    """Variances that layers of one kind leave as they are, in increasing order; NaN fills up.

    `stable` are those that others nearby go to. Where `chi > 1` inputs that are alike grow apart.
    """

    sigma_w: Float[Array, " points"]
    q: Float[Array, " points"]
    chi: Float[Array, " points"]
    chi_q: Float[Array, " points"]
    stable: Bool[Array, " points"]

    @property
    def depth_scales(self) -> tuple[Float[Array, " points"], Float[Array, " points"]]:
        """Layers in which differences of variance, and of direction, fall by `e`: `1 / |log chi_q|`, `1 / |log chi|`
        (Schoenholz et al. 2017, Section 3). Above 1 they grow by as much.
        """
        return 1 / jnp.abs(jnp.log(jnp.abs(self.chi_q))), 1 / jnp.abs(jnp.log(self.chi))

    def _table(self):
        if self.q.ndim > 1:
            return None
        there = np.flatnonzero(np.isfinite(np.asarray(self.q)))
        columns = (np.asarray(column)[there].tolist() for column in (self.sigma_w, self.q, self.chi, self.chi_q))
        words = ["yes" if self.stable[k] else "no" for k in there]
        rows = [(*map(number, row), word) for *row, word in zip(*columns, words, strict=True)]
        title = f"{counted(there.size, 'fixed point')} of the variance"
        return Table(title, ("", "sigma_w", "q", "chi", "chi_q", "stable"), runs(rows))


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
    beyond = jnp.log(_NEXT * jnp.where(safe < _homogeneous(q.dtype) ** 0.4, _NEXT_TO_ZERO, safe))
    grows = _variance_map(beyond, activation, sigma_w, sigma_b) > _MARGINAL
    stable = known & ~grows & (jnp.abs(chi_q) < 1 + _MARGINAL**0.5)
    sigma_w, q, chi, chi_q = (jnp.where(known, x, jnp.nan) for x in (sigma_w, q, chi, chi_q))
    return FixedPoints(sigma_w=sigma_w, q=q, chi=chi, chi_q=chi_q, stable=stable)


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
    points = critical_points(activation, sigma_b)
    there = jnp.isfinite(points.sigma_w)
    best = jnp.argmax(2 * points.stable + there)
    sigma_w, q, chi_q = points.sigma_w[best], points.q[best], points.chi_q[best]
    if is_concrete(sigma_w) and bool(there[best]) and not bool(points.stable[best]):
        warnings.warn(
            f"The critical point sigma_w = {number(sigma_w)}, q = {number(q)} is unstable, chi_q = {number(chi_q)}: "
            "variances move away from it, to 0 or without bound. Larger biases may have a stable one; or normalise "
            "layers, or take an activation that is bounded.",
            stacklevel=2,
        )
    return sigma_w, q


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
