"""How values are read off a curve: compiled apart from the search, over all layers only where that is asked for."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._numerics.arrays import are_concrete
from .._numerics.compile import quickly
from .curve import Curve

# Lanes that are read at once where some may be idle.
_READ_TILE = 64


def reader(read: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles `read(curve, ...)`, which may be differentiated where something is traced: then over the whole curve."""
    compiled = quickly(jax.jit)(read)

    @functools.wraps(read)
    def door(curve: Curve, *args: Any) -> Any:
        return compiled(curve if are_concrete(curve, args) else curve.whole(), *args)

    return door


def lane_reader(read: Callable[..., Any], idle: float = math.nan) -> Callable[..., Any]:
    """`reader` of one value per lane, `read(curve, z, ...)`. Where nothing is traced, tiles of lanes with `z = 0` are
    passed over, and are `idle`, or false.
    """

    def of_tile(curve: Curve, first: Array, args: Any, found: Any) -> Any:
        own = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, _READ_TILE, axis=-1), args)
        put = lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, first, axis=-1)  # noqa: E731
        return jax.lax.cond(jnp.any(own[0] != 0), lambda: jax.tree.map(put, found, read(curve, *own)), lambda: found)

    @quickly(functools.partial(jax.jit, static_argnums=0))
    def compiled(in_tiles: bool, curve: Curve, *args: Any) -> Any:
        if not in_tiles:
            return read(curve, *args)
        shapes = jax.eval_shape(read, curve, *args)
        nothing = jax.tree.map(lambda x: jnp.full(x.shape, False if x.dtype == bool else idle, x.dtype), shapes)
        num_tiles = args[0].size // _READ_TILE
        return jax.lax.fori_loop(0, num_tiles, lambda k, found: of_tile(curve, k * _READ_TILE, args, found), nothing)

    @functools.wraps(read)
    def door(curve: Curve, *args: Any) -> Any:
        if are_concrete(curve, args):
            return compiled(args[0].size % _READ_TILE == 0, curve, *args)
        return compiled(False, curve.whole(), *args)

    return door
