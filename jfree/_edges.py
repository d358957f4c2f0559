"""Edges of spectra: critical points of the real curve, found by the solver's own verdicts."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from ._curve import Curve
from ._follow import solve
from ._implicit import implicit_root
from ._laws import Atoms
from ._misc import reciprocal

_NUM_SECTIONS = 32


def outside(curve: Curve, log_x: Float[Array, " lanes"]) -> tuple[Array, Array, Array]:
    """Whether points are certified to lie off the support, and the mass above them and above 0."""
    x = jnp.exp(log_x)
    roots = solve(curve, jax.lax.complex(x, jnp.zeros_like(x)))
    _, phi, _ = curve.potential(roots.omega, roots.unknowns)
    off = roots.certified & (roots.omega.imag == 0)
    return off, phi.imag / jnp.pi, roots


def edges(curve: Curve, atoms: Atoms) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Smallest and largest point of the support away from 0."""
    frozen = jax.lax.stop_gradient(curve)
    log_mean, _ = frozen.cumulants()
    dtype = log_mean.dtype
    reach = 0.95 * math.log(float(jnp.finfo(dtype).max))
    tiny = 1e3 * float(jnp.finfo(dtype).eps)
    total = 1 - jax.lax.stop_gradient(atoms.zero)
    # Everything in [inside, beyond] per end, in log x; the lower end first.
    inside = jnp.stack([log_mean, log_mean])
    beyond = jnp.stack([jnp.maximum(-reach, log_mean - reach), jnp.minimum(reach, log_mean + reach)])
    fractions = jnp.linspace(0, 1, _NUM_SECTIONS + 1, dtype=dtype)[1:-1]

    def section(_, bracket):
        inside, beyond = bracket
        log_x = inside[:, None] + (beyond - inside)[:, None] * fractions
        off, above, _ = outside(frozen, log_x.ravel())
        off, above = off.reshape(log_x.shape), above.reshape(log_x.shape)
        missed = jnp.stack([total - above[0], above[1]])
        free = off & (jnp.abs(missed) < tiny * 100)
        # The first free point from the inside, with all points beyond it free or not known.
        first = jnp.argmax(free, axis=1)
        found = jnp.any(free, axis=1)
        points = jnp.concatenate([inside[:, None], log_x, beyond[:, None]], axis=1)
        index = jnp.where(found, first + 1, points.shape[1] - 1)
        pick = jnp.arange(2)
        return points[pick, index - 1], points[pick, index]

    inside, beyond = jax.lax.fori_loop(0, 6, section, (inside, beyond))
    off, _, roots = outside(frozen, beyond)
    omega = _critical_point(frozen, roots.omega, roots.unknowns)
    unknowns = _settled_from(frozen, omega, roots.unknowns)
    omega = implicit_root(_slope, omega, (curve, unknowns))
    point = curve.point(omega, unknowns)
    value = point.log_mean + jnp.log(jnp.abs(point.z))
    width = jnp.abs(beyond - inside)
    sharp = off & (jnp.abs(value - beyond) < 1e-3 + 2 * width) & jnp.isfinite(value)
    # An atom at the end of the spectrum is where the bracket closed.
    distance = jnp.where(atoms.masses > 0, jnp.abs(atoms.log_locations - beyond[:, None]), jnp.inf)
    nearest = jnp.argmin(distance, axis=1)
    at_atom = off & (distance[jnp.arange(2), nearest] < 1e-4)
    ends = jnp.where(at_atom, atoms.log_locations[nearest], value)
    lower = jnp.where(off[0] & (at_atom[0] | sharp[0]), jnp.exp(ends[0]), 0)
    upper = jnp.exp(jnp.where(at_atom[1] | sharp[1], ends[1], beyond[1]))
    return lower, jnp.where(off[1], upper, jnp.nan)


def _slope(omega: Complex[Array, " lanes"], curve: Curve, unknowns: Array) -> Complex[Array, " lanes"]:
    return curve.point(omega, unknowns).dz


def _settled_from(curve, omega, unknowns):
    def correct(_, unknowns):
        return curve.fold(lambda carry, *_: carry, None, omega, unknowns)[2][0]

    return jax.lax.fori_loop(0, 4, correct, unknowns)


def _critical_point(curve: Curve, omega: Array, unknowns: Array, num_steps: int = 12) -> Array:
    """Newton's method for `d log z / du = 0` from a real root just off the support."""

    def correct(_, state):
        omega, unknowns = state
        slope, curvature = jax.jvp(lambda o: _slope(o, curve, unknowns), (omega,), (omega,))
        step = -slope * reciprocal(curvature)
        step = step * jnp.minimum(1, 0.3 / jnp.maximum(jnp.abs(step), 1e-30))
        omega = omega * jnp.exp(step)
        return omega, _settled_from(curve, omega, unknowns)

    return jax.lax.fori_loop(0, num_steps, correct, (omega, unknowns))[0]
