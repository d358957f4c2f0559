"""Edges of spectra: critical points of the real curve, found by the solver's own verdicts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float

from ._curve import Curve
from ._follow import Roots, solve
from ._implicit import implicit_root
from ._laws import Atoms
from ._misc import log_max, magnitude, reciprocal

_NUM_SECTIONS = 32


def outside(curve: Curve, log_x: Float[Array, " lanes"]) -> tuple[Bool[Array, " lanes"], Float[Array, " lanes"], Roots]:
    """Which points are certified to lie off the support, the mass above each, and their roots."""
    x = jnp.exp(log_x)
    roots = solve(curve, jax.lax.complex(x, jnp.zeros_like(x)))
    _, phi, _ = curve.potential(roots.omega, roots.unknowns)
    return roots.certified & (roots.omega.imag == 0), phi.imag / jnp.pi, roots


def edges(curve: Curve, atoms: Atoms) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Smallest and largest point of the support away from 0; the smallest is 0 where the bulk reaches it.

    It does as far as can be told if the farthest certified point lies in the bulk; NaN if none lies there or off it.

    Sections, first ever wider ones and then ever narrower, close in, in log x, on where the mass beyond a certified
    point off the support vanishes; from there Newton's method goes to the critical point of the curve, unless an atom
    stands in the last section.
    """
    frozen, atoms_now = jax.lax.stop_gradient((curve, atoms))
    log_mean = frozen.cumulants.log_mean
    dtype = log_mean.dtype
    negligible = min(1e5 * float(jnp.finfo(dtype).eps), 1e-3)
    total = atoms_now.rank
    # The mean of what is not at 0 lies between the edges. Lower end first.
    inside = jnp.stack([log_mean, log_mean]) - jnp.log(total)
    outward = jnp.asarray([-1, 1], dtype)
    limit = log_mean + 0.45 * log_max(dtype) * outward
    fractions = jnp.linspace(0, 1, _NUM_SECTIONS + 1, dtype=dtype)[1:]
    ends = jnp.arange(2)

    def section(state):
        k, inside, beyond, enclosed, roots_beyond, in_bulk = state
        log_x = inside[:, None] + (beyond - inside)[:, None] * fractions
        off, above, roots = outside(frozen, log_x.ravel())
        off, above = off.reshape(log_x.shape), above.reshape(log_x.shape)
        missed = jnp.stack([total - above[0], above[1]])
        free = off & (jnp.abs(missed) < negligible)
        found = jnp.any(free, 1)
        first = jnp.where(found, jnp.argmax(free, 1), _NUM_SECTIONS - 1)
        points = jnp.concatenate([inside[:, None], log_x], axis=1)
        farther = beyond + 4 * (beyond - inside)
        farther = jnp.where(outward * farther > outward * limit, limit, farther)
        lane = first + _NUM_SECTIONS * ends
        now = (roots.omega[lane], roots.unknowns[..., lane])
        certified = roots.certified.reshape(log_x.shape)
        farthest = jnp.max(jnp.where(certified, jnp.arange(_NUM_SECTIONS), -1), 1)
        in_bulk = jnp.where(farthest < 0, in_bulk, roots.omega[farthest + _NUM_SECTIONS * ends].imag > 0)
        # What was free of the support once is so, whatever becomes of it among other points.
        return (
            k + 1,
            jnp.where(found | enclosed, points[ends, first], beyond),
            jnp.where(found | enclosed, points[ends, first + 1], farther),
            found | enclosed,
            jax.tree.map(lambda new, old: jnp.where(found, new, old), now, roots_beyond),
            in_bulk,
        )

    def unfinished(state):
        k, inside, beyond, *_ = state
        return (k < 12) & jnp.any(jnp.abs(beyond - inside) > 1e-6)

    omega = jnp.ones(2, jnp.result_type(dtype, jnp.complex64))
    unknowns = jnp.zeros((frozen.num_layers, frozen.num_unknowns, 2), omega.dtype)
    no = jnp.zeros(2, bool)
    state = (jnp.asarray(0), inside, inside + 10 * outward, no, (omega, unknowns), no)
    _, inside, beyond, free, roots, in_bulk = jax.lax.while_loop(unfinished, section, state)

    omega, unknowns = _critical_point(frozen, *roots)
    omega = implicit_root(_slope, omega, (curve, unknowns))
    point = curve.point(omega, unknowns)
    critical = point.log_scale + jnp.log(magnitude(point.z))
    # An atom at the end of the spectrum is where the sections closed in.
    width = 2 * jnp.abs(beyond - inside) + 1e-4
    distance = jnp.where(atoms_now.masses > 0, jnp.abs(atoms_now.log_locations - beyond[:, None]), jnp.inf)
    nearest = jnp.argmin(distance, axis=1)
    at_atom = jnp.min(distance, axis=1) < width
    sharp = jnp.abs(critical - beyond) < width
    value = jnp.exp(jnp.where(at_atom, atoms.log_locations[nearest], jnp.where(sharp, critical, beyond)))
    lower = jnp.where(free[0], value[0], jnp.where(in_bulk[0], 0, jnp.nan))
    return lower, jnp.where(free[1], value[1], jnp.nan)


def _slope(omega: Complex[Array, " lanes"], curve: Curve, unknowns: Array) -> Complex[Array, " lanes"]:
    return curve.point(omega, unknowns).dz


def _critical_point(curve: Curve, omega: Array, unknowns: Array, num_steps: int = 12) -> tuple[Array, Array]:
    """Newton's method for `d log z / du = 0` from a real root just off the support."""

    def correct(_, state):
        omega, unknowns = state
        slope, curvature = jax.jvp(lambda o: _slope(o, curve, unknowns), (omega,), (omega,))
        step = -slope * reciprocal(curvature)
        step = step * jnp.minimum(1, 0.3 / jnp.maximum(magnitude(step), 1e-30))
        omega = omega * jnp.exp(step.real)
        return omega, jax.lax.fori_loop(0, 4, lambda _, w: curve.corrected(omega, w), unknowns)

    return jax.lax.fori_loop(0, num_steps, correct, (omega, unknowns))
