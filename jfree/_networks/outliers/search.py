"""The outermost eigenvalues of a model, by counting signs on the way to the bulk."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..._calculus.extremes import Extremes
from .model import AbstractModel

# Where ends of bulks are looked for, in what steps; beyond lie bulks that end with an atom, within 1e-6.
_FIRST, _LAST, _STRIDE = -25.0, 14.0, 0.75

# Halvings of a stride: an end of the bulk is stationary in `s`, which need not be known to the last digit.
_HALVINGS = 26

# Halvings of the way to an eigenvalue, to 0.01, and steps of the secant method from there, to the last digit.
_HALVINGS_OF_WAY, _SECANTS = 12, 8

# Where the way starts, half of all eigenvalues of `S - K` are negative, and `lambda` has gone to infinity or 0: its
# logarithm at least as far as this.
_GROWS = 2.0


class _Bracket(NamedTuple):
    """Between two places, and where to look next."""

    low: Float[Array, ""]
    high: Float[Array, ""]
    s: Float[Array, ""]


def _to_bulk(model: AbstractModel, side: Float[Array, ""]) -> Float[Array, ""]:
    """The end of the bulk, where `lambda` turns, by strides and halvings of the last one; infinite if there is none."""
    first, infinity = jnp.maximum(_FIRST, model.far(side)), jnp.asarray(jnp.inf, side.dtype)
    resolved = _STRIDE * max(2.0**-_HALVINGS, 64 * float(jnp.finfo(side.dtype).eps))

    def step(bracket: _Bracket) -> _Bracket:
        place = model.place(bracket.s, side)
        outside = place.exists & (side * place.slope < 0)
        low, high = jnp.where(outside, bracket.s, bracket.low), jnp.where(outside, bracket.high, bracket.s)
        return _Bracket(low, high, jnp.where(high == jnp.inf, low + _STRIDE, (low + high) / 2))

    def unfinished(bracket: _Bracket) -> Array:
        some = jnp.isfinite(bracket.low) | (bracket.s == first)
        return some & (bracket.high - bracket.low > resolved) & (bracket.low < _LAST)

    return lax.while_loop(unfinished, step, _Bracket(-infinity, infinity, first)).low


class _Way(NamedTuple):
    """The way from far away to the bulk. One eigenvalue of `S - K`, with a sign, is `below` 0 at its beginning, and
    `above` at its end.
    """

    bracket: _Bracket
    below: Float[Array, ""]
    above: Float[Array, ""]
    was_low: Bool[Array, ""]
    num_far: Int[Array, ""]
    num_near: Int[Array, ""]
    log_far: Float[Array, ""]
    log_near: Float[Array, ""]
    log_value: Float[Array, ""]


def _outermost(model: AbstractModel, side: Float[Array, ""]) -> tuple[Array, Array]:
    """The outermost eigenvalue on one side, and the end of the bulk there, NaN where they are not known."""
    near = _to_bulk(model, side)

    def step(state: tuple[Array, _Way]) -> tuple[Array, _Way]:
        """Looks at both ends, halves what is between them, and takes steps of the secant method."""
        k, way = state
        low, high, s = way.bracket
        place = model.place(s, side)
        values = jnp.linalg.eigvalsh(model.matrix(place))
        number = jnp.sum(values < 0)
        num_far, num_near = jnp.where(k == 0, number, way.num_far), jnp.where(k == 1, number, way.num_near)
        # In order of size those that change sign are next to each other: the first of them is the outermost.
        rises = num_near > num_far
        value = jnp.where(rises, -1, 1) * values[jnp.where(rises, num_far, num_far - 1)]
        is_low = jnp.where(k < 2, k == 0, value <= 0)
        low, high = jnp.where(is_low, s, low), jnp.where(is_low, high, s)
        # Illinois: an end that stays again counts half.
        share = jnp.where((k > _HALVINGS_OF_WAY) & (is_low == way.was_low), 0.5, 1)
        below, above = jnp.where(is_low, value, way.below * share), jnp.where(is_low, way.above * share, value)
        secant = jnp.clip(low - below * (high - low) / (above - below), low, high)
        middle = jnp.where(k > _HALVINGS_OF_WAY, secant, (low + high) / 2)
        return k + 1, _Way(
            bracket=_Bracket(low, high, jnp.where(k == 0, near, middle)),
            below=below,
            above=above,
            was_low=is_low,
            num_far=num_far,
            num_near=num_near,
            log_far=jnp.where(k == 0, place.log_value, way.log_far),
            log_near=jnp.where(k == 1, place.log_value, way.log_near),
            log_value=place.log_value,
        )

    def unfinished(state: tuple[Array, _Way]) -> Array:
        k, way = state
        return (k < 2) | (way.num_near != way.num_far) & (k < 2 + _HALVINGS_OF_WAY + _SECANTS)

    zero, none = jnp.zeros_like(side), jnp.zeros((), int)
    far = model.far(side)
    start = _Way(
        bracket=_Bracket(far, near, far),
        below=zero - 1,
        above=zero + 1,
        was_low=none > 0,
        num_far=none,
        num_near=none,
        log_far=zero,
        log_near=zero,
        log_value=zero,
    )
    way = lax.while_loop(unfinished, step, (none, start))[1]
    known = model.layers.known & jnp.isfinite(near) & (way.num_far == model.layers.there.size)
    known &= side * (way.log_far - way.log_near) > _GROWS
    value, end = jnp.where(known, jnp.exp(jnp.stack([way.log_value, way.log_near])), jnp.nan)
    return value, end


def extremes(model: AbstractModel) -> Extremes:
    model = lax.stop_gradient(model)
    sides = jnp.asarray([-1, 1], model.layers.square.dtype)
    values, ends = lax.map(lambda side: jnp.stack(_outermost(model, side)), sides).T
    return Extremes(values, ends, jnp.asarray(model.error, sides.dtype))
