"""Moments of a spectrum, and of its logarithm: integrals along the curve, off the support."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._curve import Curve, Point
from ._misc import complex_dtype, reciprocal
from ._solver import solve


@eqx.filter_jit
def log_moment(curve: Curve, k: int) -> Float[Array, ""]:
    """`log m_k`, `m_k = (1/2 pi i) int z^k M dlog z`, on a circle of `omega` around every singularity of the curve.

    The circle grows until the first two moments come out as propagated; NaN if they never do.
    """
    frozen = jax.lax.stop_gradient(curve)
    cumulants = frozen.cumulants
    num_nodes = 96 + 2 * k
    angle = jnp.pi * (jnp.arange(num_nodes, dtype=curve.rank.dtype) + 0.5) / num_nodes
    circle = jax.lax.complex(jnp.cos(angle), jnp.sin(angle))
    tolerance = float(jnp.finfo(angle.dtype).eps) ** 0.5

    def power(point: Point, k: int) -> Array:
        return jnp.mean((point.z**k * point.side * point.m * point.dz).real)

    def encloses(unknowns: Array, omega: Array) -> Array:
        point = frozen.point(omega, unknowns)
        mean = jnp.exp(cumulants.log_mean - point.log_scale)
        first, second = power(point, 1) / mean, power(point, 2) / jnp.square(mean)
        return (jnp.abs(first - 1) < tolerance) & (jnp.abs(second / (1 + cumulants.spread) - 1) < tolerance)

    def grow(state: tuple[Array, Array, Array, Array]):
        j, omega, *_ = state
        omega = 2 * omega
        unknowns = frozen.settle(omega)
        return j + 1, omega, unknowns, encloses(unknowns, omega)

    def too_small(state: tuple[Array, Array, Array, Array]) -> Array:
        j, _, _, enclosed = state
        return (j < 40) & ~enclosed

    omega = 0.5 * frozen.reach() * circle
    unknowns = jnp.ones((curve.num_layers, curve.num_unknowns, num_nodes), omega.dtype)
    start = (jnp.asarray(0), omega, unknowns, jnp.asarray(False))
    _, omega, unknowns, enclosed = jax.lax.while_loop(too_small, grow, start)
    point = curve.point(omega, unknowns)
    return jnp.where(enclosed, k * point.log_scale + jnp.log(power(point, k)), jnp.nan)


@eqx.filter_jit
def mean_log(curve: Curve) -> Float[Array, ""]:
    """`Phi(z) - mu({0}) log z` as `z -> 0-`: logarithms of `z` cancel."""
    zero = curve.atoms().zero
    eps = float(jnp.finfo(curve.rank.dtype).eps)
    if curve.has_shifts:  # log z is the steeper, and its derivatives the less exact, the closer z is to 0
        z = -(eps ** (1 / 3)) * jnp.exp(curve.cumulants.log_floor) * jnp.arange(1, 4)
        roots = solve(curve, jax.lax.complex(z, jnp.zeros_like(z)))
        omega, unknowns, certified = roots.omega, roots.unknowns, jnp.all(roots.certified)
    else:  # omega -> 0- with z, and more slowly
        near = jnp.where((curve.rank < 1) | (curve.num_unknowns == 0), eps**0.5, eps)
        omega = (-near * jnp.arange(1, 4)).astype(complex_dtype(curve.rank.dtype))
        unknowns, certified = jax.lax.stop_gradient(curve).settle(omega), jnp.asarray(True)
    _, phi, log_z = curve.potential(omega, unknowns)
    value = (phi.real - zero * log_z.real) / (1 - zero)
    # Analytic in z, or as far as all is explicit in omega: the linear and the quadratic term cancel.
    at_zero = 3 * value[0] - 3 * value[1] + value[2]
    return jnp.where(certified & (1 - zero > eps**0.5), at_zero, jnp.nan)


@eqx.filter_jit
def log_moments(curve: Curve) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean and variance of log t over t > 0, by quadrature along the negative axis.

    `-M(-y) = int t / (t + y) mu(dt)` is the mass above `log y` of log t with logistic noise, of variance pi^2/3.
    NaN where a tenth of the variance is not resolved, or points of more weight than a root of the rounding not found.
    """
    dtype = curve.rank.dtype
    eps = float(jnp.finfo(dtype).eps)
    reach = -math.log(eps)
    if curve.has_shifts:
        c = jax.lax.stop_gradient(curve.cumulants)
        log_y = jnp.linspace(c.log_floor - reach, c.log_mean + reach, 385, dtype=dtype)
        roots = solve(curve, jax.lax.complex(-jnp.exp(log_y), jnp.zeros_like(log_y)))
        point = curve.point(roots.omega, roots.unknowns)
        density, found = (point.side * point.dm * reciprocal(point.dz)).real, roots.certified
    else:
        s = jnp.linspace(-reach, reach, _num_nodes(curve), dtype=dtype)
        omega = jax.lax.complex(-jnp.exp(s), jnp.zeros_like(s))
        unknowns = jax.lax.stop_gradient(curve).settle(omega)
        # Derivatives divide by fourth powers; of NaN it is no more than false.
        found = jnp.all(jnp.abs(unknowns.real) > jnp.finfo(dtype).tiny ** 0.2, axis=(0, 1))
        middle = s.size // 2
        omega, unknowns = (jnp.where(found, x, x[..., middle, None]) for x in (omega, unknowns))
        log_y = curve.potential(omega, unknowns)[2].real
        density = jax.nn.sigmoid(s) * jax.nn.sigmoid(-s)

    lost = jnp.sum(jnp.where(found, 0, density)) / jnp.sum(density)
    density = jnp.where(found, density, 0)

    def moments(log_y: Array, density: Array) -> tuple[Array, Array]:
        density = density / jnp.sum(density)
        mean = jnp.sum(density * log_y)
        return mean, jnp.sum(density * jnp.square(log_y - mean)) - jnp.pi**2 / 3

    (mean, fine), (_, coarse) = moments(log_y, density), moments(log_y[::2], density[::2])
    known = (jnp.abs(fine - coarse) <= 0.1 * (1 + jnp.abs(fine))) & (lost <= eps**0.5)
    return jnp.where(known, mean, jnp.nan), jnp.where(known, fine, jnp.nan)


def _num_nodes(curve: Curve) -> int:
    """A law of few points, far apart, makes log y jump as a function of log omega, which takes many nodes to see."""
    return 1201 if any(operation.has_few_points for operation in curve.operations) else 121
