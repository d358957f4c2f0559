"""Edges of spectra, critical points of the real curve, and gaps, from the solver's verdicts."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Complex, Float

from ._certificate import rises, tolerated_roughness
from ._curve import AbstractOperation, Curve, Point, Signs, Step
from ._implicit import implicit_root, with_slope
from ._laws import Atoms
from ._misc import complex_dtype, magnitude, reciprocal
from ._solver import solve

_DOWN, _UP, _NEGATIVE = range(3)


def _on_way(way: Array, s: Array) -> Array:
    """Real `omega` on its way down to 1, up from 0 to 1, or up to 0, as `s` grows."""
    return jnp.select([way == _DOWN, way == _UP], [1 + jnp.exp(-s), jax.nn.sigmoid(s)], -jnp.exp(-s))


def _along_way(omega: Array) -> Array:
    """Its inverse, off the rounding around 0 and 1."""
    beyond = jnp.where(omega > 1, omega - 1, -omega)
    within = (omega > 0) & (omega < 1)
    return jnp.where(within, jnp.log(omega / (1 - omega)), -jnp.log(jnp.where(within, 1, beyond)))


class _Place(eqx.Module):
    """Real points of the curve, and which are certified to lie off the support with all mass on one side."""

    omega: Complex[Array, " lanes"]
    unknowns: Complex[Array, "layers unknowns lanes"]
    tangents: Complex[Array, "layers unknowns lanes"]
    log_z: Float[Array, " lanes"]
    slope: Float[Array, " lanes"]
    positive: Bool[Array, " lanes"]
    free: Bool[Array, " lanes"]


_Carry = tuple[Signs, Array, Array, tuple[Array, Array]]


def _place(curve: Curve, total: Array, upper: Bool[Array, " lanes"], omega: Array, unknowns: Array) -> _Place:
    """What is at `omega`, from a guess of the unknowns next to them; `total` is the mass off 0."""
    eps = float(jnp.finfo(omega.real.dtype).eps)
    for _ in range(2 if curve.num_unknowns else 0):
        unknowns = curve.corrected(omega, unknowns)

    def visit(carry: _Carry, before: Point, operation: AbstractOperation, step: Step) -> _Carry:
        signs, rough, correction, potential = carry
        rough, correction = jnp.maximum(rough, step.roughness), jnp.maximum(correction, step.correction)
        return signs & step.signs, rough, correction, operation.potential(*potential, before, step)

    start, zero = curve.start(omega), jnp.zeros_like(omega.real)
    carry = (start.signs(omega, jnp.ones_like(omega)), zero, zero, curve.initial_potential(start))
    point, carry, (unknowns, tangents) = curve.fold(visit, carry, start, unknowns)
    signs, rough, correction, potential = carry
    above = curve.full_potential(point, *potential)[0].imag / jnp.pi
    positive = point.z.real > 0
    missed = jnp.abs(jnp.where(upper, above, jnp.where(positive, total, 1) - above))
    real = jnp.all(unknowns.imag == 0, axis=(0, 1))
    known = real & (correction < eps**0.4) & (rough <= tolerated_roughness(eps))
    free = rises(point, signs) & known & (missed < min(1e5 * eps, 1e-3))
    log_z = point.log_scale + jnp.log(magnitude(point.z))
    return _Place(omega, unknowns, tangents, log_z, point.dz.real, positive, free)


def _precision(dtype: DTypeLike) -> float:
    return max(1e-6, float(jnp.finfo(dtype).eps) ** 0.5)


def _march(curve: Curve, total: Array, way: Array, s: Array, last: Array, place: _Place) -> tuple[_Place, Array]:
    """The last places free of the support on each way from `s` to `last`, to `_precision` in `s`, and `s` there."""
    # Explicit curves can be looked at anywhere; unknowns are carried along from the last place.
    number = 1 if curve.num_unknowns else 16
    shares = jnp.arange(1, number + 1, dtype=s.dtype) / number
    upper = jnp.repeat(way == _DOWN, number)

    def step(state: tuple[Array, Array, Array, _Place]):
        k, s, stride, place = state
        ahead = jnp.minimum(s[:, None] + stride[:, None] * shares, last[:, None])
        omega = _on_way(way[:, None], ahead).ravel().astype(place.omega.dtype)
        here = jax.tree.map(lambda x: jnp.repeat(x, number, axis=-1), place)
        change = (here.tangents * jnp.log((omega / here.omega).real)).real
        ratio = jnp.exp(jnp.clip(change, -2, 2))
        if curve.has_shifts:  # unknowns vanish on the way, each where its layer's z does
            ratio = jnp.where(change < -1, 1 + change, ratio)
        there = _place(curve, total, upper, omega, here.unknowns * ratio)
        free = there.free.reshape(ahead.shape)
        count = jnp.where(jnp.all(free, 1), number, jnp.argmin(free, 1))
        lane = jnp.maximum(count - 1, 0) + number * jnp.arange(s.size)
        place = jax.tree.map(lambda new, old: jnp.where(count > 0, new[..., lane], old), there, place)
        s = jnp.where(count > 0, ahead.ravel()[lane], s)
        stride = jnp.where(count == number, stride * max(number, 2), stride / max(number, 4))
        return k + 1, s, jnp.minimum(stride, last - s), place

    def unfinished(state: tuple[Array, Array, Array, _Place]):
        k, _, stride, _ = state
        return (k < 300) & jnp.any(stride > _precision(s.dtype))

    stride = jnp.where(place.free, (last - s) if number > 1 else jnp.minimum(1, last - s), 0)
    _, s, _, place = jax.lax.while_loop(unfinished, step, (jnp.asarray(0), s, stride, place))
    return place, s


def _outermost(curve: Curve, total: Array) -> _Place:
    """The last places below and above the support that are free of it."""
    eps = float(jnp.finfo(total.dtype).eps)
    far, half = -jnp.log(100 * curve.reach()), jnp.full(1, -0.5 * math.log(eps), total.dtype)
    whole = 1.5 * half
    down, up, negative = (jnp.full(1, way) for way in (_DOWN, _UP, _NEGATIVE))

    def start(way: Array) -> _Place:
        omega = _on_way(way, far).astype(complex_dtype(far.dtype))
        return _place(curve, total, way == _DOWN, omega, curve.settle(omega))

    lower, s = _march(curve, total, negative, far[None], half, start(negative))
    # Off a gap at 0 the curve is analytic at `omega = 0`, its unknowns like powers there.
    odd = jnp.round(lower.tangents.real) % 2 == 1
    beyond = _place(curve, total, jnp.zeros(1, bool), -lower.omega, jnp.where(odd, -lower.unknowns, lower.unknowns))
    gap = (s > half - _precision(s.dtype)) & beyond.free & beyond.positive
    lower = jax.tree.map(lambda x, y: jnp.where(gap, x, y), beyond, lower)
    way = jnp.concatenate([jnp.where(gap, up, negative), down])
    s, last = jnp.append(jnp.where(gap, -half, s), far), jnp.append(jnp.where(gap, whole, s), whole)
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=-1), lower, start(down))
    return _march(curve, total, way, s, last, both)[0]


@eqx.filter_jit
def edges(curve: Curve) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Smallest and largest point of the support away from 0; the smallest is 0 where the bulk reaches it.

    Off the support the curve is real, and its critical points are the edges. Marches from both infinities come up to
    them while points are certified to have all mass on one side; from there Newton's method goes to the critical point,
    unless an atom stands in the way. Where laws are not resolved so far, the march's end is returned; NaN where it
    cannot start.
    """
    atoms = curve.atoms()
    frozen, now = jax.lax.stop_gradient((curve, atoms))
    place = _outermost(frozen, now.rank)
    omega, unknowns = _critical_point(frozen, place)
    near = 8 * _precision(curve.rank.dtype)
    distance = jnp.abs(_along_way(omega.real) - _along_way(place.omega.real))
    critical = place.free & (distance < near) & ((omega.real > 1) == (place.omega.real > 1))
    omega, unknowns = (jnp.where(critical, x, -frozen.reach()) for x in (omega, unknowns))
    omega = implicit_root(with_slope(_slope), omega, (curve, unknowns), critical)
    point = curve.point(omega, unknowns)
    log_edge = jnp.where(critical, point.log_scale + jnp.log(magnitude(point.z)), place.log_z)
    apart = jnp.where(now.masses > 0, jnp.abs(now.log_locations - place.log_z[:, None]), jnp.inf)
    at_atom = ~critical & (jnp.min(apart, axis=1) < near * (1e-2 + jnp.abs(place.slope)))
    log_edge = jnp.where(at_atom, atoms.log_locations[jnp.argmin(apart, axis=1)], log_edge)
    lower, upper = jnp.where(place.free, jnp.where(place.positive, jnp.exp(log_edge), 0), jnp.nan)
    return lower, upper


def _slope(omega: Complex[Array, " lanes"], curve: Curve, unknowns: Array) -> Complex[Array, " lanes"]:
    return curve.point(omega, unknowns).dz


def _critical_point(curve: Curve, place: _Place, num_steps: int = 5) -> tuple[Array, Array]:
    """Newton's method for `d log z / du = 0`, from next to it."""

    def correct(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        omega, unknowns = state
        slope, curvature = jax.jvp(lambda o: _slope(o, curve, unknowns), (omega,), (omega,))
        step = -slope * reciprocal(curvature)
        omega = omega * jnp.exp(jnp.clip(step.real, -0.01, 0.01))
        return omega, jax.lax.fori_loop(0, 2, lambda _, w: curve.corrected(omega, w), unknowns)

    return jax.lax.fori_loop(0, num_steps, correct, (place.omega, place.unknowns))


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
    x = jnp.exp(log_x)
    roots = solve(curve, jax.lax.complex(x, jnp.zeros_like(x)))
    _, phi, _ = curve.potential(roots.omega, roots.unknowns)
    off = roots.certified & (roots.omega.imag == 0)
    return ~off, phi.imag / jnp.pi, roots.certified


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
