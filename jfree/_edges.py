"""Edges of spectra, critical points of the real curve, and gaps: both found by the solver's own verdicts."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
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
    found = free & jnp.isfinite(omega.real)
    omega, unknowns = (jnp.where(found, x, -frozen.reach()) for x in (omega, unknowns))
    omega = implicit_root(_slope, omega, (curve, unknowns), found)
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


def support(curve: Curve, atoms: Atoms, lower: float, upper: float) -> list[tuple[float, float]]:
    """The intervals of the bulk: a scan between the edges, and bisection of every change to a gap (host)."""
    pad = 1e-6
    low = np.log(lower) if lower > 0 else float(curve.cumulants.log_mean) - 60.0
    scan = _refined(curve, atoms, np.linspace(low + pad, np.log(upper) - pad, 1001))
    changes = np.flatnonzero(scan.bulk[1:] != scan.bulk[:-1])
    low_ends, high_ends, left = scan.log_x[changes], scan.log_x[changes + 1], scan.bulk[changes]
    for _ in range(46 if len(changes) else 0):
        middle = 0.5 * (low_ends + high_ends)
        same = np.asarray(_verdicts(curve, jnp.asarray(middle, curve.rank.dtype))[0]) == left
        low_ends, high_ends = np.where(same, middle, low_ends), np.where(same, high_ends, middle)
    cuts = np.exp(0.5 * (low_ends + high_ends))
    ends = [lower] * bool(scan.bulk[:1].any()) + [float(c) for c in cuts] + [upper] * bool(scan.bulk[-1:].any())
    return list(zip(ends[::2], ends[1::2], strict=True))


class _Scan(NamedTuple):
    """Certified points in increasing order, which of them lie in the bulk, and the mass above each."""

    log_x: np.ndarray
    bulk: np.ndarray
    above: np.ndarray


@eqx.filter_jit
def _verdicts(curve: Curve, log_x: Float[Array, " lanes"]) -> tuple[Array, Array, Array]:
    """Which points are not off the support, the mass above each, and which of these verdicts are certified."""
    off, above, roots = outside(curve, log_x)
    return ~off, above, roots.certified


def _scan(curve: Curve, log_x: np.ndarray) -> _Scan:
    bulk, above, certified = (np.asarray(v) for v in _verdicts(curve, jnp.asarray(log_x, curve.rank.dtype)))
    return _Scan(log_x[certified], bulk[certified], above[certified])


def _refined(curve: Curve, atoms: Atoms, log_x: np.ndarray) -> _Scan:
    """A scan, finer wherever mass goes missing between two points that are not in the bulk."""
    masses = np.asarray(atoms.masses)
    places = np.where(masses > 0, np.asarray(atoms.log_locations), 0)
    slack = 1e3 * float(np.finfo(masses.dtype).eps) ** 0.75
    shares = np.arange(1, 16) / 16
    scan = _scan(curve, log_x)
    for _ in range(12):
        left, right = scan.log_x[:-1, None], scan.log_x[1:, None]
        missing = scan.above[:-1] - scan.above[1:] - np.sum(((left < places) & (places < right)) * masses, axis=1)
        hidden = ~scan.bulk[:-1] & ~scan.bulk[1:] & (missing > slack)
        if not hidden.any():
            break
        found = _scan(curve, (left + (right - left) * shares)[hidden].ravel())
        order = np.argsort(np.append(scan.log_x, found.log_x))
        scan = _Scan(*(np.append(old, new)[order] for old, new in zip(scan, found, strict=True)))
    return scan
