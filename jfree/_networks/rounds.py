"""Mean squares and means through rounds of layers, forward and with derivatives."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._layers.kinds import Kinds, where_layers
from .._layers.layer import AbstractLayer, Signal
from .._numerics.implicit import instantiated


def parts_of(signal: Signal) -> tuple[Array, ...]:
    return tuple(jax.tree.leaves(signal))


def state_of(signal: Signal) -> Float[Array, " moments"]:
    return jnp.stack(parts_of(signal)[1:])


def signal_of(state: Float[Array, " moments"], width: Array) -> Signal:
    return Signal(width, *state)


def all_forward(place: Kinds[AbstractLayer], signals: Signal) -> Signal:
    """All rounds at once."""
    new = place.every(lambda layer, *at: layer.forward(Signal(*at)))(*parts_of(signals))
    return where_layers(place.there, new, signals) if place.gaps else new


def after_round(state: Array, places: tuple[Kinds[AbstractLayer], ...]) -> Float[Array, " moments"]:
    for place in places:
        at = parts_of(signal_of(state, jnp.ones_like(state[0])))
        new = state_of(place.here(lambda layer, *at: layer.forward(Signal(*at)))(*at))
        state = jnp.where(place.there, new, state) if place.gaps else new
    return state


@eqx.filter_custom_jvp
def after_rounds(places: tuple[Kinds[AbstractLayer], ...], start: Array) -> Float[Array, "rounds moments"]:
    def one(state: Array, places: tuple[Kinds[AbstractLayer], ...]) -> tuple[Array, Array]:
        state = after_round(state, places)
        return state, state

    return jax.lax.scan(one, start, places)[1]


@after_rounds.def_jvp
def _after_rounds_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    """All rounds' own derivatives at once: the loop that is transposed has nothing but their products."""
    places, start = primals
    after = after_rounds(places, start)
    before = jnp.concatenate([start[None], after[:-1]])
    dynamic, static = eqx.partition(places, eqx.is_inexact_array)

    def all_after(before: Array, dynamic: Any) -> Array:
        states = before
        for place in eqx.combine(dynamic, static):
            signals = jax.vmap(signal_of)(states, jnp.ones_like(states[:, 0]))
            states = jax.vmap(state_of)(all_forward(place, signals))
        return states

    slopes = along_basis(lambda before: all_after(before, dynamic), before, jnp.eye(start.size, dtype=start.dtype))
    change, start_change = instantiated((dynamic, start), tuple(tangents))
    first = jnp.zeros_like(before).at[0].set(start_change)
    _, direct = jax.jvp(all_after, (before, dynamic), (first, change))

    def onwards(tangent: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        tangent = step[0] @ tangent + step[1]
        return tangent, tangent

    return after, jax.lax.scan(onwards, jnp.zeros_like(start), (slopes, direct))[1]


def along_basis(fn: Callable[[Array], Array], at: Array, basis: Array) -> Float[Array, "rounds moments moments"]:
    """Row by row, all derivatives; `fn` is traced once."""

    def one(direction: Array) -> Array:
        return jax.jvp(fn, (at,), (jnp.broadcast_to(direction, at.shape),))[1]

    return jax.vmap(one, out_axes=-1)(basis)
