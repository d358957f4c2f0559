"""Edges of spectra: critical points of the real curve."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Complex, Float, Int

from .._calculus.atoms import Atoms
from .._calculus.curve import Curve
from .._calculus.operation import AbstractOperation, Step
from .._calculus.point import Point, Signs
from .._calculus.reader import reader
from .._numerics.arrays import at_once
from .._numerics.compile import quickly
from .._numerics.complex import complex_dtype, magnitude
from .._numerics.implicit import at_extremum, with_slope
from .._solve.certificate import rises, tolerated_roughness
from .._solve.solve import find_atoms

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
    settled: Bool[Array, " lanes"]
    outside: Bool[Array, " lanes"]


_Carry = tuple[Signs, Array, Array, tuple[Array, Array]]


def _place(curve: Curve, total: Array, upper: Bool[Array, " lanes"], omega: Array, unknowns: Array) -> _Place:
    """What is at `omega`, from a guess of the unknowns next to them; `total` is the mass off 0."""
    eps = float(jnp.finfo(omega.real.dtype).eps)

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
    settled = correction < eps**0.4
    known = real & settled & (rough <= tolerated_roughness(eps))
    log_z = point.log_scale + jnp.log(magnitude(point.z))
    return _Place(
        omega=omega,
        unknowns=unknowns,
        tangents=tangents,
        log_z=log_z,
        slope=point.dz.real,
        positive=positive,
        settled=settled,
        outside=rises(point, signs) & known & (missed < min(1e5 * eps, 1e-3)),
    )


def _precision(dtype: DTypeLike) -> float:
    """How near marches come to the support, in `s`; the critical points lie closer than a few times that."""
    return max(1e-6, float(jnp.finfo(dtype).eps) ** 0.5)


# Places per step of a march: explicit curves can be looked at anywhere, unknowns are carried along from the last place.
_NUM_PLACES = 16


# Steps of all marches, corrections of unknowns at one place, the first and others, and steps of the secant method.
_MOST_STEPS, _MOST_AT_FIRST, _MOST_CORRECTED, _MOST_SECANTS = 600, 100, 3, 6


_FAR = 0.01  # the longest step of the secant method


# The last one, in units of a march's precision: what it moves an edge is of the order of its square.
_AT_EDGE = 1e-3


# How far beyond all singularities marches start.
_FAR_OFF = 100


_FIRST, _MARCH, _JUMP, _CRITICAL, _ENDED = range(5)


class _SlopeAt(eqx.Module):
    """The slope of `log z` at places on the ways."""

    s: Float[Array, " 2"]
    slope: Float[Array, " 2"]


class _March(eqx.Module):
    """The two marches, from below and from above.

    `place` is the last one outside the support, at `s` on the `way`, and `stride` how far the next ones go. The slope
    `here` and at the place `before` lead the secant method to the critical point, a step `beyond`. `trial` are
    unknowns that are being corrected, for the `corrected`-th time.
    """

    phase: Int[Array, " 2"]
    way: Int[Array, " 2"]
    s: Float[Array, " 2"]
    stride: Float[Array, " 2"]
    place: _Place
    before: _SlopeAt
    here: _SlopeAt
    beyond: Float[Array, " 2"]
    critical: _Place
    trial: Complex[Array, "layers unknowns places"]
    corrected: Int[Array, " 2"]
    secants: Int[Array, " 2"]

    @staticmethod
    def start(curve: Curve) -> "_March":
        """Far from all singularities, on both sides."""
        dtype, number = curve.rank.dtype, _num_places(curve)
        zero, count = jnp.zeros(2, dtype), jnp.zeros(2, int)
        omega = jnp.full(2, -curve.reach()).astype(complex_dtype(dtype))
        nothing = jnp.zeros((curve.num_layers, curve.num_unknowns, 2), omega.dtype)
        no = count > 0
        none = _Place(
            omega=omega,
            unknowns=nothing,
            tangents=nothing,
            log_z=zero,
            slope=zero,
            positive=no,
            settled=no,
            outside=no,
        )
        return _March(
            phase=count + _FIRST,
            way=jnp.asarray([_NEGATIVE, _DOWN]),
            s=jnp.full(2, -jnp.log(_FAR_OFF * curve.reach()), dtype),
            stride=zero,
            place=none,
            before=_SlopeAt(zero, zero),
            here=_SlopeAt(zero, zero),
            beyond=zero,
            critical=none,
            trial=jnp.zeros((curve.num_layers, curve.num_unknowns, 2 * number), omega.dtype),
            corrected=count,
            secants=count,
        )

    @property
    def way_ahead(self) -> Int[Array, " 2"]:
        return jnp.where(self.phase == _JUMP, _UP, self.way)

    @property
    def last(self) -> Float[Array, " 2"]:
        """The end of the way ahead, in `s`."""
        half = _way_to_zero(self.s.dtype)
        return jnp.where(self.way_ahead == _NEGATIVE, half, 1.5 * half).astype(self.s.dtype)

    def ahead(self, number: int) -> Float[Array, "2 places"]:
        """Where to look next, in `s`: along the stride, across 0, or where the secant method leads."""
        marching, jumping, ending = (self.phase == p for p in (_MARCH, _JUMP, _CRITICAL))
        shares = jnp.arange(1, number + 1, dtype=self.s.dtype) / number
        s = self.s[:, None] + jnp.where(marching, self.stride, 0)[:, None] * shares
        s = jnp.where(ending[:, None], (self.here.s + self.beyond)[:, None], s)
        s = jnp.where(jumping[:, None], -_way_to_zero(self.s.dtype), s)
        return jnp.minimum(s, self.last[:, None])


class _Seen(eqx.Module):
    """What was ahead: whether it is looked at `again`, as unknowns are not settled; the last `place` outside the
    support, at `s`; whether that is `taken`, and whether the `whole` stride was outside.
    """

    again: Bool[Array, " 2"]
    place: _Place
    s: Float[Array, " 2"]
    taken: Bool[Array, " 2"]
    whole: Bool[Array, " 2"]


def _num_places(curve: Curve) -> int:
    return 1 if curve.num_unknowns else _NUM_PLACES


def _way_to_zero(dtype: DTypeLike) -> float:
    """How near marches come to 0 on the negative axis, and where they go on beyond it, in `s`."""
    return -0.5 * math.log(float(jnp.finfo(dtype).eps))


def _where(which: Bool[Array, " 2"], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(which, x, y), new, old)


def _secant(before: _SlopeAt, here: _SlopeAt, first: Array, precision: float) -> Array:
    """The step from `s` here to where the slope vanishes; a long one where the slope does not change, and a `first` one
    where there are no two places.
    """
    distance = here.s - before.s
    apart = (distance != 0) & (here.slope != before.slope)
    step = jnp.clip(-here.slope * distance / jnp.where(apart, here.slope - before.slope, 1), -_FAR, _FAR)
    ended = (here.slope == 0) | (jnp.abs(distance) < _AT_EDGE * precision)
    other = jnp.where(first & (distance == 0), precision, jnp.where(ended, 0, _FAR))
    return jnp.where(apart, step, other)


def _marched(curve: Curve, total: Array) -> _March:
    """The last places below and above the support that are outside it, and the critical points beyond them."""

    def step(state: tuple[Array, _March]) -> tuple[Array, _March]:
        k, march = state
        s = march.ahead(_num_places(curve))
        there = _looked_at(curve, total, march, s)
        return k + 1, _moved_on(march, _seen(march, s, there), there.unknowns)

    unfinished = lambda state: (state[0] < _MOST_STEPS) & jnp.any(state[1].phase != _ENDED)  # noqa: E731
    return jax.lax.while_loop(unfinished, step, (jnp.asarray(0), _March.start(curve)))[1]


def _looked_at(curve: Curve, total: Array, march: _March, s: Float[Array, "2 places"]) -> _Place:
    number = s.shape[1]
    omega = _on_way(march.way_ahead[:, None], s).ravel().astype(complex_dtype(s.dtype))
    unknowns = _carried(curve, march, omega, number) if curve.num_unknowns else march.trial
    return _place(curve, total, jnp.repeat(march.way_ahead == _DOWN, number), omega, unknowns)


def _seen(march: _March, s: Float[Array, "2 places"], there: _Place) -> _Seen:
    number, num_unknowns = s.shape[1], march.trial.shape[1]
    most = jnp.where(march.phase == _FIRST, _MOST_AT_FIRST, _MOST_CORRECTED)
    again = ~jnp.all(there.settled.reshape(2, number), 1) & (march.corrected < most) & (num_unknowns > 0)
    outside = there.outside.reshape(2, number)
    count = jnp.where(jnp.all(outside, 1), number, jnp.argmin(outside, 1))
    lane = jnp.maximum(count - 1, 0) + number * jnp.arange(2)
    place = jax.tree.map(lambda x: x[..., lane], there)
    moving = (march.phase != _CRITICAL) & (march.phase != _ENDED)
    taken = ~again & (count > 0) & ((march.phase != _JUMP) | place.positive) & moving
    return _Seen(again=again, place=place, s=s.ravel()[lane], taken=taken, whole=count == number)


def _moved_on(march: _March, seen: _Seen, trial: Array) -> _March:
    """The marches after a look ahead."""
    number, precision = trial.shape[-1] // 2, _precision(march.s.dtype)
    s = jnp.where(seen.taken, seen.s, march.s)
    rest = march.last - s
    # The support begins within a share of the stride of several places; a single place is tried nearer.
    longer = march.stride * jnp.where(seen.whole, max(number, 2), 1 / max(number, 4))
    fresh = rest if number > 1 else jnp.minimum(1, rest)
    stride = jnp.where(march.phase == _MARCH, jnp.minimum(longer, rest), fresh)
    stride = jnp.where(seen.again, march.stride, stride)

    at_critical = (march.phase == _CRITICAL) & ~seen.again
    now = _SlopeAt(jnp.where(march.phase == _CRITICAL, march.here.s + march.beyond, s), seen.place.slope)
    moved = seen.taken | at_critical
    before, here = _where(moved, march.here, march.before), _where(moved, now, march.here)
    secants = march.secants + at_critical
    beyond = _secant(before, here, secants == 0, precision)
    at_edge = (secants >= _MOST_SECANTS) | ((secants > 1) & (jnp.abs(beyond) < _AT_EDGE * precision))
    return _March(
        phase=_next_phase(march, seen, s, stride <= precision, at_edge),
        way=jnp.where(seen.taken, march.way_ahead, march.way),
        s=s,
        stride=stride,
        place=_where(seen.taken, seen.place, march.place),
        before=before,
        here=here,
        beyond=beyond,
        critical=_where(at_critical, seen.place, march.critical),
        trial=trial,
        corrected=jnp.where(seen.again, march.corrected + 1, 0),
        secants=secants,
    )


def _next_phase(march: _March, seen: _Seen, s: Array, at_support: Array, at_edge: Array) -> Int[Array, " 2"]:
    """A march starts, goes to the support, or to 0 and from there to the support, and ends at a critical point."""
    at_zero = (march.way == _NEGATIVE) & (s > _way_to_zero(s.dtype) - _precision(s.dtype))
    return jnp.select(
        [seen.again, march.phase == _FIRST, (march.phase == _MARCH) & at_support, march.phase == _JUMP, at_edge],
        [
            march.phase,
            jnp.where(seen.taken, _MARCH, _ENDED),
            jnp.where(at_zero, _JUMP, _CRITICAL),
            jnp.where(seen.taken, _MARCH, _CRITICAL),
            _ENDED,
        ],
        march.phase,
    )


def _carried(curve: Curve, march: _March, omega: Array, number: int) -> Array:
    """Unknowns at new places from those of the last one; those on trial as they are."""
    ending = march.phase == _CRITICAL
    last = jax.tree.map(lambda x, y: jnp.where(ending & (march.secants > 0), x, y), march.critical, march.place)
    here = jax.tree.map(lambda x: jnp.repeat(x, number, axis=-1), last)
    change = (here.tangents * jnp.log(jnp.abs((omega / here.omega).real))).real
    ratio = jnp.exp(jnp.clip(change, -2, 2))
    if curve.has_shifts:  # unknowns vanish on the way, each where its layer's z does
        ratio = jnp.where(change < -1, 1 + change, ratio)
    # Off a gap at 0 the curve is analytic at `omega = 0`, its unknowns like powers there.
    odd = jnp.round(here.tangents.real) % 2 == 1
    jumping = jnp.repeat(march.phase == _JUMP, number)
    carried = here.unknowns * jnp.where(jumping & odd, -1, ratio)
    on_trial = jnp.repeat((march.corrected > 0) | (march.phase == _FIRST), number)
    return jnp.where(on_trial, march.trial, carried)


@quickly(jax.jit)
def _find_edges(curve: Curve, total: Array) -> tuple[_Place, _Place, Bool[Array, " 2"]]:
    """The last places outside the support, the critical points, and whether these are the edges."""
    march = _marched(curve, total)
    place, critical = march.place, march.critical
    distance = jnp.abs(_along_way(critical.omega.real) - _along_way(place.omega.real))
    precision = _precision(curve.rank.dtype)
    near = (distance < _NEAR * precision) & (jnp.abs(march.beyond) < 0.1 * precision)
    same = (critical.omega.real > 1) == (place.omega.real > 1)
    return place, critical, place.outside & near & same & (march.secants > 0)


_NEAR = 8  # times the precision of a march lies what it has come to


@at_once
def edges(curve: Curve) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Smallest and largest point of the support away from 0; the smallest is 0 where the bulk reaches it.

    Off the support the curve is real, and its critical points are the edges. Marches from both infinities come up to
    them while points are certified to have all mass on one side; from there the secant method goes to the critical
    point, unless an atom stands in the way. Where laws are not resolved so far, the march's end is returned; NaN where
    it cannot start.
    """
    atoms = find_atoms(curve)
    return _read_edges(curve, atoms, *_find_edges(*jax.lax.stop_gradient((curve, atoms.rank))))


@reader
def _read_edges(
    curve: Curve, atoms: Atoms, place: _Place, critical: _Place, is_critical: Bool[Array, " 2"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    place, critical, now = jax.lax.stop_gradient((place, critical, atoms))
    reach = jax.lax.stop_gradient(-curve.reach())
    omega, unknowns = (jnp.where(is_critical, x, reach) for x in (critical.omega, critical.unknowns))
    log_edge = at_extremum(_log_z, with_slope(_slope), omega, (curve, unknowns), is_critical)
    log_edge = jnp.where(is_critical, log_edge, place.log_z)
    apart = jnp.where(now.masses > 0, jnp.abs(now.log_locations - place.log_z[:, None]), jnp.inf)
    near = _NEAR * _precision(curve.rank.dtype) * (1e-2 + jnp.abs(place.slope))
    at_atom = ~is_critical & (jnp.min(apart, axis=1) < near)
    log_edge = jnp.where(at_atom, atoms.log_locations[jnp.argmin(apart, axis=1)], log_edge)
    lower, upper = jnp.where(place.outside, jnp.where(place.positive, jnp.exp(log_edge), 0), jnp.nan)
    return lower, upper


def _log_z(omega: Complex[Array, " lanes"], curve: Curve, unknowns: Array) -> Float[Array, " lanes"]:
    point = curve.point(omega, unknowns)
    return point.log_scale + jnp.log(magnitude(point.z))


def _slope(omega: Complex[Array, " lanes"], curve: Curve, unknowns: Array) -> Complex[Array, " lanes"]:
    return curve.point(omega, unknowns, slopes=True).dz
