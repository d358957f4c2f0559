"""Moments of a spectrum, and of its logarithm: integrals along the curve, off the support."""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from .._calculus.atoms import Atoms
from .._calculus.curve import Curve
from .._calculus.operation import AbstractOperation, Step
from .._calculus.point import Point
from .._calculus.reader import reader
from .._numerics.arrays import at_once, is_concrete
from .._numerics.compile import quickly
from .._numerics.complex import as_complex, complex_dtype, exponential, logarithm, reciprocal
from .._solve.solve import find_atoms, find_roots


@at_once
def log_moment(curve: Curve, k: int) -> Float[Array, ""]:
    """`log m_k`, `m_k = (1/2 pi i) int z^k M dlog z`, on a circle of `omega` around every singularity of the curve.

    The circle grows until the first two moments come out as propagated; NaN if they never do.
    """
    num_nodes = -(-(96 + 2 * k) // 128) * 128  # few sizes: more nodes than are needed cost little
    return _read_moment(curve, *_enclosing(jax.lax.stop_gradient(curve), num_nodes), jnp.asarray(k))


def _power(point: Point, k: Array | int) -> Array:
    """`m_k` in units of the last points."""
    return jnp.mean((exponential(k * logarithm(point.z)) * point.side * point.m * point.dz).real)


@quickly(eqx.filter_jit)
def _enclosing(curve: Curve, num_nodes: int) -> tuple[Array, Array, Array]:
    """A circle of `omega` outside every singularity of the curve, unknowns there, and whether it was found."""
    dtype, moments = curve.rank.dtype, curve.moments
    angle = jnp.pi * (jnp.arange(num_nodes, dtype=dtype) + 0.5) / num_nodes
    circle = jax.lax.complex(jnp.cos(angle), jnp.sin(angle))
    eps = float(jnp.finfo(dtype).eps)

    def largest(size: Array, before: Point, operation: AbstractOperation, step: Step) -> Array:
        return jnp.maximum(size, step.correction)

    def look(state: tuple[Array, Array, Array, Array, Array]):
        """At the circle: once more, until the unknowns are settled; then at one twice as large."""
        steps, tries, radius, unknowns, _ = state
        omega = radius * circle
        point, size, (found, _) = curve.fold(largest, jnp.zeros(num_nodes, dtype), curve.start(omega), unknowns)
        mean = jnp.exp(moments.log_mean - point.log_scale)
        first, second = _power(point, 1) / mean, _power(point, 2) / jnp.square(mean)
        enclosed = (jnp.abs(first - 1) < eps**0.5) & (jnp.abs(second / (1 + moments.relative_variance) - 1) < eps**0.5)
        settled = jnp.all(size <= eps**0.3)
        larger = (settled & ~enclosed) | (tries >= _MOST_CORRECTED)
        radius = jnp.where(larger, 2 * radius, radius)
        unknowns = jnp.where(larger, 0, found)
        return steps + 1, jnp.where(larger, 0, tries + 1), radius, unknowns, settled & enclosed

    def unfinished(state: tuple[Array, Array, Array, Array, Array]) -> Array:
        steps, *_, enclosed = state
        return (steps < _MOST_STEPS) & ~enclosed

    unknowns = jnp.zeros((curve.num_layers, curve.num_unknowns, num_nodes), circle.dtype)
    start = (jnp.asarray(0), jnp.asarray(0), curve.reach(), unknowns, jnp.asarray(False))
    _, _, radius, unknowns, enclosed = jax.lax.while_loop(unfinished, look, start)
    return radius * circle, unknowns, enclosed


# Of a circle: corrections of unknowns before it is too small, and evaluations of all circles.
_MOST_CORRECTED, _MOST_STEPS = 30, 300


@reader
def _read_moment(curve: Curve, omega: Array, unknowns: Array, enclosed: Array, k: Array) -> Array:
    point = curve.point(omega, unknowns, slopes=True)
    return jnp.where(enclosed, k * point.log_scale + jnp.log(_power(point, k)), jnp.nan)


@at_once
def mean_log(curve: Curve) -> Float[Array, ""]:
    """A sum over the layers, or a quadrature where none is known; with shifts `Phi(z) - mu({0}) log z` as `z -> 0-`,
    where logarithms of `z` cancel.
    """
    if not curve.has_shifts:
        exact = _sum_of_logs(curve) if curve.adds_logs else jnp.full_like(curve.rank, jnp.nan)
        known = is_concrete(exact) and not np.any(np.isnan(exact))
        return exact if known else jnp.where(jnp.isnan(exact), log_moments(curve)[0], exact)
    frozen = jax.lax.stop_gradient(curve)
    return _read_mean_log(curve, find_atoms(curve), *_below_shifts(frozen, _next_to_zero(frozen, np.arange(1, 4))))


@reader
def _sum_of_logs(curve: Curve) -> Array:
    return curve.mean_log()


@quickly(jax.jit)
def _next_to_zero(curve: Curve, places: Array | np.ndarray) -> Array:
    """Some `z` below 0: the closer they are, the steeper is `log z`, and the less exact are its derivatives."""
    eps = float(jnp.finfo(curve.rank.dtype).eps)
    near = eps ** (1 / 3) * jnp.exp(curve.moments.log_floor)
    return (-near * places).astype(complex_dtype(curve.rank.dtype))


def _below_shifts(curve: Curve, z: Array) -> tuple[Array, Array, Array, Array]:
    """`z` with `omega`, unknowns there, and which were found."""
    roots = find_roots(curve, z)
    return z, roots.omega, roots.unknowns, roots.certified


@reader
def _read_mean_log(curve: Curve, atoms: Atoms, z: Array, omega: Array, unknowns: Array, found: Array) -> Array:
    z, omega, unknowns, found = jax.lax.stop_gradient((z, omega, unknowns, found))
    _, phi = curve.potential_at(z, omega, unknowns, found)
    log_y = jnp.log(jnp.where(found, -z.real, 1))
    value = (phi.real - atoms.zero * log_y) / (1 - atoms.zero)
    # Analytic in z: the linear and the quadratic term cancel.
    at_zero = 3 * value[0] - 3 * value[1] + value[2]
    known = jnp.all(found) & (1 - atoms.zero > jnp.finfo(value.dtype).eps ** 0.5)
    return jnp.where(known, at_zero, jnp.nan)


# Of sums of branches the last digits are lost next to 0, where a branch has more zeros than the identity.
_KEPT = 0.8

_REACH = 0.9  # of the digits of a float: weights that are less than so many are left out
_SPACING = 0.3  # of the nodes, and wider where singularities of the curve reach beyond exp(_ROOM)
_ROOM = 3.0

# A law of few points, far apart, makes log y jump as a function of log omega, which takes many nodes to see.
_MANY_NODES = 4800


@at_once
def log_moments(curve: Curve, power: float = 0.0) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean and variance of log t over t > 0, where t counts `t^power` times, `0 <= power < 1`.

    A quadrature along the negative axis: `-M(-y) = int t / (t + y) mu(dt)` is the mass above `log y` of log t with
    logistic noise. `int -M(-y) y^power dlog y` is `pi / sin(pi power)` times the mean of `t^power`, whose logarithm has
    these as its derivatives by `power`. NaN where more than 1e-5 of the variance may not be resolved, or points of more
    weight than a root of the rounding are not found.
    """
    frozen, power = jax.lax.stop_gradient(curve), float(power)
    reach = -_REACH * math.log(float(jnp.finfo(curve.rank.dtype).eps))
    low, high = reach / (1 + power), reach / (1 - power)  # weights fall off that fast
    low = low if curve.adds_logs else _KEPT * low
    if curve.has_shifts:
        z = _along_negative_axis(frozen, low, high)
        return _read_below_shifts(curve, *_below_shifts(frozen, z), power)
    # What comes after the last node is summed but for 1 / omega of it, which falls off faster.
    return _read_along(curve, *_settled_along(frozen, power, low, reach / (2 - power)), power)


@quickly(eqx.filter_jit)
def _settled_along(curve: Curve, power: float, low: float, high: float) -> tuple[Array, Array]:
    """Nodes evenly spaced in `log|omega|`, one at 0, from `-low` to `high` beyond all singularities, and the unknowns
    there.
    """
    spacing = (low + high + _ROOM) / _MANY_NODES if curve.has_few_points else _SPACING
    first, last = -2 * round(low / (2 * spacing)), 2 * round((high + _ROOM) / (2 * spacing))
    end = jnp.log(curve.reach()) + high
    s = jnp.maximum(spacing, end / last) * jnp.arange(first, last + 1, dtype=end.dtype)
    omega = -jnp.exp(s)
    if omega.dtype != jnp.float64:  # in short floats real numbers overflow where complex ones do not
        omega = as_complex(omega)

    def in_variance(log_y: Array) -> Array:
        below = log_y[-1] - log_y
        return _logistic(s) * jnp.exp(-power * below) * jnp.square(below)

    return omega, curve.settle(omega, in_variance)


def _logistic(s: Array) -> Array:
    """Its density."""
    return jax.nn.sigmoid(s) * jax.nn.sigmoid(-s)


@quickly(jax.jit)
def _along_negative_axis(curve: Curve, low: ArrayLike, high: ArrayLike) -> Array:
    c = curve.moments
    y = jnp.exp(jnp.linspace(c.log_floor - low, c.log_mean + high, 385, dtype=c.log_mean.dtype))
    return jax.lax.complex(-y, jnp.zeros_like(y))


class _Nodes(NamedTuple):
    """Nodes evenly spaced in `s`, where `log y` has a density: as far as they are `found`."""

    s: Float[Array, " nodes"]
    log_y: Float[Array, " nodes"]
    density: Float[Array, " nodes"]
    found: Bool[Array, " nodes"]


@reader
def _read_below_shifts(
    curve: Curve, z: Array, omega: Array, unknowns: Array, found: Array, power: Array
) -> tuple[Array, Array]:
    """Log moments by nodes in `log y = log(-z)`."""
    z, omega, unknowns, found = jax.lax.stop_gradient((z, omega, unknowns, found))
    point = curve.point_at(z, omega, unknowns, found, slopes=True)
    log_y = jnp.log(jnp.where(found, -z.real, 1))
    density = (point.side * point.dm * reciprocal(point.dz)).real
    return _moments_of(_Nodes(s=log_y, log_y=log_y, density=density, found=found), power, _less_known_noise)


@reader
def _read_along(curve: Curve, omega: Array, unknowns: Array, power: Array) -> tuple[Array, Array]:
    """Log moments by nodes in `s = log(-omega)`, where the density is that of the logistic law, the noise."""
    omega, unknowns = jax.lax.stop_gradient((omega, unknowns))
    # Derivatives divide by fourth powers; of NaN it is no more than false.
    far = jnp.abs(unknowns.real) > jnp.finfo(curve.rank.dtype).tiny ** 0.24
    found = jnp.all(far | (unknowns == 0), axis=(0, 1))  # those of neutral layers are not asked for
    s = jnp.log(-omega.real)
    first = jnp.argmax(found)  # stands for those that are not: NaN would spread in derivatives
    omega, unknowns = (jnp.where(found, x, x[..., first, None]) for x in (omega, unknowns))
    log_y = curve.log_size(omega, unknowns)
    # It rises at least as fast as s: where it is not found it lies below a line from the next place.
    above = jax.lax.stop_gradient(jnp.where(found, log_y - s, jnp.inf))
    log_y = jnp.where(found, log_y, s + jax.lax.cummin(above, reverse=True))
    return _moments_of(_Nodes(s=s, log_y=log_y, density=_logistic(s), found=found), power, _less_noise_of_nodes)


# How far a rule may be from that of half its nodes, which has the root of its error; and the density's fall at the last
# node from what it is at infinity.
_COARSE, _FALL = 1e-3, 1e-4


def _moments_of(
    nodes: _Nodes, power: Array, rule: Callable[[_Nodes, Array], tuple[Array, Array]]
) -> tuple[Array, Array]:
    """Mean and variance of `log t`, of `log y` less its noise, by a rule; NaN where they are not resolved."""
    eps = float(jnp.finfo(nodes.s.dtype).eps)
    s, log_y, density, found = nodes
    weight = power * log_y
    weights = density * jnp.exp(weight - jax.lax.stop_gradient(jnp.max(jnp.where(found, weight, -jnp.inf))))
    lost = jnp.sum(jnp.where(found, 0, weights)) / jnp.sum(weights)
    mean, fine = rule(nodes, power)
    _, coarse = rule(jax.tree.map(lambda x: x[::2], nodes), power)

    known = (jnp.abs(fine - coarse) <= max(_COARSE, eps**0.4) * (1 + jnp.abs(fine))) & (lost <= eps**0.5)
    # y grows like omega at infinity, and the density falls like y^(power - 1).
    fall, expected = jax.lax.stop_gradient(jnp.log(weights[-2] / weights[-1])), (1 - power) * (s[-1] - s[-2])
    known &= jnp.abs(fall - expected) <= max(_FALL, eps**0.4) * expected + 8 * eps * jnp.abs(log_y[-1])
    return jnp.where(known, mean, jnp.nan), jnp.where(known, jnp.maximum(fine, 0), jnp.nan)


def _less_noise_of_nodes(nodes: _Nodes, power: Array) -> tuple[Array, Array]:
    """The noise is that of the same nodes: what the rule leaves out is left out of both, and of a narrow spectrum no
    digits cancel.
    """
    s, log_y, density, _ = nodes
    step = s[-1] - s[-2]
    mass, mean, variance = _beyond(step, power)
    noise = density * jnp.exp(power * s)
    noise = jnp.append(noise, noise[-1] * mass)
    noise = noise / jnp.sum(noise)
    change = log_y - s
    s, change = jnp.append(s, s[-1] + step * mean), jnp.append(change, change[-1])
    middle = jnp.sum(noise * change)
    change = change - middle
    tilt = power * change
    tilt = tilt - jax.scipy.special.logsumexp(tilt, b=noise)
    weights = noise * jnp.exp(tilt)
    more = jnp.where(tilt < 1, noise * jnp.expm1(jnp.minimum(tilt, 1)), weights - noise)
    more = more - noise * jnp.sum(more)  # all together are 0 but for rounding

    off = change - jnp.sum(weights * change)
    at_noise, moved = jnp.sum(noise * s), jnp.sum(more * s)
    square = jnp.sum(weights * off * (off + 2 * (s - (at_noise + moved))))
    square += jnp.sum(more * jnp.square(s - at_noise)) - jnp.square(moved)
    return middle + jnp.sum(weights * change) + moved, square + more[-1] * variance


def _less_known_noise(nodes: _Nodes, power: Array) -> tuple[Array, Array]:
    """The noise is the logistic law's, as it is known: for nodes where the spectrum has a density of its own."""
    s, log_y, density, found = nodes
    step = s[-1] - s[-2]
    mass, mean, variance = _beyond(step, power)
    weights = jnp.where(found, density * jnp.exp(power * (log_y - log_y[-1])), 0)
    weights = jnp.append(weights, weights[-1] * mass)
    weights = weights / jnp.sum(weights)
    log_y = jnp.append(log_y, log_y[-1] + step * mean)
    center = jnp.sum(weights * log_y)
    square = jnp.sum(weights * jnp.square(log_y - center)) + weights[-1] * variance
    offset, noise = _of_the_noise(power)
    return center + offset, square - noise


def _beyond(step: Array, power: Array) -> tuple[Array, Array, Array]:
    """Of nodes that would come after the last in equal steps, with weights that fall like `y^(power - 1)`, a geometric
    series: their weight over that of the last, how many steps after it they are in the mean, and their variance, in
    squares of `s`.
    """
    ratio = jnp.exp((power - 1) * step)
    mean = 1 / (1 - ratio)
    return ratio * mean, mean, ratio * jnp.square(step * mean)


def _of_the_noise(power: Array) -> tuple[Array, Array]:
    """The derivatives of `log sin(pi p) / p` and, negative, its second ones."""
    some = power > 0
    angle = jnp.pi * jnp.where(some, power, 0.5)
    per = jnp.pi / angle
    mean = jnp.pi / jnp.tan(angle) - per
    variance = jnp.square(jnp.pi / jnp.sin(angle)) - jnp.square(per)
    return jnp.where(some, mean, 0), jnp.where(some, variance, jnp.pi**2 / 3)
