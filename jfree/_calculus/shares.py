"""How `m` of a sum is shared by its terms: the shares, Newton's method for them, and the half planes they keep to."""

from functools import reduce

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, Inexact

from .._numerics.complex import logarithm, magnitude, reciprocal, scaled, sqrt_upper, squared
from .._numerics.implicit import of_correction
from .point import Point, Signs

# A change of the largest share that Newton's method makes in one step is trusted below this, in logarithms.
_NEAR = 0.157

# Arguments that differ from pi by no more roundings are on the axis.
_AXIS = 100

# Radius of the disk in which a function has an inverse, over that in which it is known to be analytic (Smale).
_SMALE = 0.17


class Shares(eqx.Module):
    """`m` as the sum of `parts`, which are to the first as `ratios`; `ones` are 1 more. Both keep their digits, however
    different the parts are.
    """

    parts: tuple[Inexact[Array, " lanes"], ...]
    ones: tuple[Inexact[Array, " lanes"], ...]
    ratios: tuple[Inexact[Array, " lanes"], ...]

    @staticmethod
    def of(m: Array, one: Array, ratios: Array | list[Array]) -> "Shares":
        each = (jnp.ones_like(m), *ratios)
        whole = reciprocal(sum(each[1:], each[0]))
        first = m * whole
        ones = [(ratio * one + rest) * whole for ratio, rest in zip(each, _without_each(each), strict=True)]
        return Shares((first, *(ratio * first for ratio in each[1:])), tuple(ones), each[1:])


def _without_each(terms: tuple[Array, ...]) -> list[Array]:
    """Sums of all but one."""
    zero = jnp.zeros_like(terms[0])
    return [sum((x for j, x in enumerate(terms) if j != k), zero) for k in range(len(terms))]


class Term(eqx.Module):
    """One of the terms at its own `s`: one over the `t` that all have in common, how `s` changes with `log t`, and
    `1 + side s`, what `1 + s` is on the other side.
    """

    inverse: Inexact[Array, " lanes"]
    per_log_t: Inexact[Array, " lanes"]
    other: Inexact[Array, " lanes"]
    side: Float[Array, ""]

    @staticmethod
    def identity(s: Array, one: Array) -> "Term":
        """`t = s (1 + s)`."""
        product = s * one
        return Term(reciprocal(product), product * reciprocal(s + one), one, jnp.ones_like(s.real[0]))

    @staticmethod
    def of_branch(s: Array, one: Array, end: Point) -> "Term":
        """`t = (1 + s) (1 + side s) / z`, where the branch ends."""
        other, per_one = end.one_plus(1), reciprocal(one)
        per_other = reciprocal(other)
        slope = per_one + scaled(end.side, per_other) - end.dz * reciprocal(s)
        inverse = end.z * jnp.exp(end.log_scale) * per_one * per_other
        return Term(inverse, reciprocal(slope), other, end.side)


class NewtonOfShares(eqx.Module):
    """A step of Newton's method for the shares, of which the sum is kept, in logarithms: the steps of all `shares` and
    `ratios`, and of `log_t`, shortened where they are long. `sizes` are those of the ratios' steps before that, `steep`
    where `t` of a term is near a pole, at its rank, and `near` where all equations nearly hold.
    """

    shares: list[Inexact[Array, " lanes"]]
    ratios: list[Inexact[Array, " lanes"]]
    log_t: Inexact[Array, " lanes"]
    sizes: list[Float[Array, " lanes"]]
    steep: list[Bool[Array, " lanes"]]
    near: Bool[Array, " lanes"]

    @staticmethod
    def step(old: Shares, terms: list[Term]) -> "NewtonOfShares":
        per_log_t = tuple(term.per_log_t for term in terms)
        whole = reciprocal(sum(old.parts[1:], old.parts[0]))
        missing, weights, steep, near = [], [], [], jnp.ones(whole.shape, bool)
        for k, (rest, rest_per) in enumerate(zip(_without_each(old.parts), _without_each(per_log_t), strict=True)):
            if k == 0:
                continue
            quotient = terms[k].inverse * reciprocal(terms[0].inverse)
            steepness = old.parts[k] * rest * whole * (reciprocal(per_log_t[k]) + reciprocal(rest_per))
            steep.append(magnitude(steepness) > 4)
            # Next to a pole of t, and behind it, where the quotient has turned, 1 / t is what changes steadily.
            pole = steep[-1] | (quotient.real < 0)
            change = jnp.where(pole, 1 - reciprocal(quotient), logarithm(quotient))
            weights.append(jnp.where(pole, reciprocal(quotient), 1))
            near = near & (magnitude(change) < _NEAR)
            missing.append(-change)
        shares, log_t = of_correction(_changes, tuple(missing), (old.parts, per_log_t, tuple(weights)))
        ratios = [share - shares[0] for share in shares[1:]]
        sizes = [magnitude(jax.lax.stop_gradient(step)) for step in ratios]
        largest = reduce(jnp.maximum, sizes, jnp.ones_like(whole.real))
        shares, ratios, log_t = jax.tree.map(lambda x: scaled(1 / largest, x), (shares, ratios, log_t))
        return NewtonOfShares(shares, ratios, log_t, sizes, steep, near)


def _changes(missing: tuple[Array, ...], terms: tuple[tuple[Array, ...], ...]) -> tuple[list[Array], Array]:
    """Relative changes of all shares, `m` being what it is, for which `log t` of the first, times a weight, gains so
    much on the others, and that of `log t` itself.
    """
    parts, per_log_t, weights = terms
    others = list(zip(missing, weights, per_log_t[1:], strict=True))
    gained = sum((x * per for x, _, per in others), jnp.zeros_like(per_log_t[0]))
    log_t = gained * reciprocal(sum((weight * per for _, weight, per in others), per_log_t[0]))
    changes = log_t * per_log_t[0], *((weight * log_t - x) * per for x, weight, per in others)
    return [change * reciprocal(part) for change, part in zip(changes, parts, strict=True)], log_t


class HalfPlanes(eqx.Module):
    """`z` of the sum, and one over `g_1 = (1 + m) / zeta` and `g_2 = (1 + ratio m) / zeta`, `zeta^2` being that. A term
    has the subordination points `(1 + s) / g_1` and `(1 + ratio s) / g_2`, and its `z` is their product. All of them
    lie in the upper half plane (Belinschi, Mai and Speicher 2017); where no widths change the two are one.
    """

    z: Complex[Array, " lanes"]
    first: Complex[Array, " lanes"]
    second: Complex[Array, " lanes"]

    @staticmethod
    def of(one: Array, other: Array, t: Array, rectangular: bool) -> "HalfPlanes":
        z = one * other * reciprocal(t)
        zeta = sqrt_upper(z)
        first = zeta * reciprocal(one)
        return HalfPlanes(z, first, zeta * reciprocal(other) if rectangular else first)

    def in_lower(self, one: Array, other: Array) -> Bool[Array, " lanes"]:
        """Where `z` of a term lies below the axis, by more than rounding: its factors' arguments, from 0 to pi, add up
        to more than pi.
        """
        ends = one * self.first, other * self.second
        first, second = (jax.lax.complex(x.real, jnp.maximum(x.imag, 0)) for x in ends)
        z = first * second
        beyond = z.imag < -_AXIS * float(jnp.finfo(z.real.dtype).eps) * jnp.abs(z.real)
        return beyond | ((first.real < 0) & (second.real < 0) & (z.real > 0))

    def signs(
        self,
        point: Point,
        d_one: Array,
        d_other: Array,
        d_log_t: Array,
        ones: list[tuple[Array, Array]],
        moves: list[Array],
        ratio: Array | None,
    ) -> tuple[Signs, Bool[Array, " lanes"]]:
        """Of all these, `moves` being the tangents of all `s`; and where `z` is negative."""
        d_z = d_one + d_other - d_log_t
        sides = [(self.first, d_z / 2 - d_one, jnp.ones_like(point.side), [own[0] for own in ones])]
        if ratio is not None:
            sides.append((self.second, d_z / 2 - d_other, ratio, [own[1] for own in ones]))
        negative = (self.z.imag == 0) & (self.z.real < 0)
        signs, inside = Signs.none(point.z), negative
        for inverse, slope, side, of_terms in sides:
            signs, inside = signs & point.signs(inverse, slope), inside & (inverse.imag > 0)
            for one, move in zip(of_terms, moves, strict=True):
                place = one * inverse
                inside = inside & (place.imag > 0)
                signs = signs & point.signs(place, scaled(side, move * reciprocal(one)) + slope)
        # On the negative axis zeta is imaginary, and so are the others, inside their half planes.
        signs = Signs.known(inside, point.z.real.dtype).where(negative, signs)
        return signs & point.signs(self.z, d_z), negative


def closeness_of(m: Array, terms: list[Term], parts: tuple[Array, ...], near: list[Array], skips: bool) -> Array:
    """`m` is an analytic function of `t` up to a singularity of a term: where `1 + 2 s = 0` for the identity, and for a
    branch where it has its own, `near` being one over their squared distance in units of `s`. Its inverse is so in a
    disk of Smale's radius; and so is `s` of a branch, but for one of them, which may stand for `t`.
    """
    whole = reciprocal(sum((term.per_log_t for term in terms[1:]), terms[0].per_log_t))
    spread = sum((magnitude(term.per_log_t) for term in terms[1:]), magnitude(terms[0].per_log_t))
    closest, others = jnp.zeros_like(spread), jnp.zeros_like(spread)
    for term, part, distance in zip(terms[skips:], parts[skips:], near, strict=True):
        own = jnp.sqrt(distance) * magnitude(term.per_log_t) / magnitude(part)
        closest, others = jnp.maximum(closest, own), jnp.maximum(others, jnp.minimum(closest, own))
    closest = jnp.maximum(closest, others / _SMALE)
    if skips:
        double = 1 + 2 * parts[0]
        closest = jnp.maximum(closest, 4 * magnitude(parts[0]) * magnitude(1 + parts[0]) / squared(double))
    return squared(m) * jnp.square(spread * squared(whole) * closest / _SMALE)


def curvature_beside_identity(
    shares: Shares, rates: list[Array], rate: Array, d_one: Array, closeness: Array
) -> Float[Array, " lanes"]:
    """Bounds the second derivative of `log (m (1 + m)) - log (s (1 + s))`, `s` being the identity's share, as
    `closeness` is meant: by how far `s` is from `m`. For the other shares are small then, with the derivatives that
    they have; and as functions of `1/m` that take no value twice in a disk their second derivatives are bounded by
    their first (Bieberbach). `rates` are the tangents of all `log s`, `rate` and `d_one` those of `log m` and
    `log (1 + m)`.
    """
    inverse = reciprocal(shares.ones[0])
    inner, outer = rates[0] - rate, shares.parts[0] * rates[0] * inverse - d_one
    per_rate = 1 / magnitude(rate)
    bent = 2 * magnitude(inner + outer) * per_rate
    for change, size in ((inner, 1.0), (outer, magnitude(d_one) * per_rate)):
        change = magnitude(change) * per_rate
        bent = bent + change * (2 * size + change)
    others = zip(shares.parts[1:], rates[1:], strict=True)
    moved = sum((magnitude(part * by) for part, by in others), jnp.zeros_like(bent)) * per_rate
    return bent + (4 * jnp.sqrt(closeness) + 2) * moved * (1 / magnitude(shares.parts[0]) + magnitude(inverse))
