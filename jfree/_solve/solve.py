"""Certified solutions of `z(omega) = z` on a curve, for many `z` in parallel.

Lanes are sorted by distance from 0 and worked on in tiles. The first tile has the anchors, to which paths are followed;
the others start from between those, and follow paths only where that fails.
"""

from functools import lru_cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Int

from .._calculus.atoms import Atoms
from .._calculus.curve import Curve
from .._numerics.arrays import at_once, frozen, is_concrete
from .._numerics.compile import quickly
from .._numerics.complex import exponential, log_max, log_upper, logarithm, magnitude, reciprocal
from .certificate import OK
from .path import Lanes, walk

# Lanes that are worked on at once. On a CPU a tile waits for its slowest lane, and fits into a cache; fewer lanes would
# not pay for the calls of compiled pieces. An accelerator wants all lanes at once.
_TILE, _WIDE_TILE = 32, 65536


# Up to so many lanes are worked on in small tiles: they are batched by what is around them, or soon done. And so are
# any where laws have more than so many points, as calls are nothing to sums over these; the last is the small tile.
_FEW, _MANY_POINTS, _SMALL_TILE = 256, 256, 16


# Of more lanes than this so many are solved first, evenly, and the others start from between them.
_NODES = 4096


class Roots(eqx.Module):
    """One per lane: curve parameter, layers' unknowns, verdict, and evaluations spent.

    Where no root is certified, `omega` and `unknowns` are a constant at which everything is finite.
    """

    omega: Complex[Array, " lanes"]
    unknowns: Complex[Array, "layers unknowns lanes"]
    code: Int[Array, " lanes"]
    num_steps: Int[Array, " lanes"]

    @property
    def certified(self) -> Bool[Array, " lanes"]:
        return self.code == OK


Guess = tuple[Complex[Array, " lanes"], Complex[Array, "layers unknowns lanes"]]


def _take(tree: Any, index: Int[Array, " some"]) -> Any:
    return jax.tree.map(lambda x: jnp.take(x, index, axis=-1, mode="clip"), tree)


class _Places(eqx.Module):
    """In which order lanes are worked on, some more than once: of each its rank, and the places it starts between.

    First come the anchors, evenly spread over all, which start from nothing; then, of many lanes, the nodes; then all,
    from place `all_from` on.
    """

    rank: Int[Array, " places"]
    left: Int[Array, " places"]
    right: Int[Array, " places"]
    all_from: int = eqx.field(static=True)

    @staticmethod
    def of(num_lanes: int, idle: Int[Array, ""], tile: int) -> "_Places":
        """`idle` lanes, the first of all, need no work; the last tile is filled up with the last lane."""
        last = jnp.maximum(num_lanes - 1 - idle, 0)
        sizes = [tile] * (num_lanes > tile) + [_NODES] * (num_lanes > 2 * _NODES)
        ranks, lefts, rights, before = [], [], [], None
        for size in (*sizes, num_lanes):
            place = jnp.arange(-(-size // tile) * tile)
            stride = 1 if size == num_lanes else -(-last // (size - 1))
            ahead = place - idle if size == num_lanes else jnp.minimum(place * stride, last)
            left = right = place - place
            if before is not None:
                start, end, gap = before
                left = start + jnp.clip(ahead // jnp.maximum(gap, 1), 0, end - start - 1)
                right = jnp.minimum(left + 1, end - 1)
            first = sum(part.size for part in ranks)
            before = first, first + size, stride
            ranks.append(jnp.clip(idle + ahead, 0, num_lanes - 1))
            lefts.append(left)
            rights.append(right)
        rank, left, right = (jnp.concatenate(part) for part in (ranks, lefts, rights))
        return _Places(rank=rank, left=left, right=right, all_from=sum(part.size for part in ranks[:-1]))


def _between(first: Lanes, last: Lanes, span: Array, part: Array) -> tuple[Array, Array]:
    """A root between two others, `span` apart in `log z`, at a `part` of it: cubic interpolation of the logarithms.

    Where one is not certified the other stands for both; where none is, nothing is known.
    """
    fine = first.code == OK, last.code == OK
    first, last = (
        jax.tree.map(lambda x, y, ok=ok: jnp.where(ok, x, y), one, other)
        for ok, one, other in ((fine[0], first, last), (fine[1], last, first))
    )
    apart = fine[0] & fine[1] & (span != 0)
    span, t = jnp.where(apart, span, 0), jnp.where(apart, part, 0)
    first_rate, last_rate = span * reciprocal(first.slope), span * reciprocal(last.slope)

    def interpolated(start: Array, end: Array, first_rate: Array, last_rate: Array) -> Array:
        rise = logarithm(end * reciprocal(start))
        change = t * (rise + (1 - t) * ((1 - t) * (first_rate - rise) - t * (last_rate - rise)))
        return jnp.where(apart & (start != 0), start * exponential(change), start)  # neutral layers have no unknowns

    omega = interpolated(first.omega, last.omega, first_rate, last_rate)
    omega = jnp.where(fine[0] | fine[1], omega, 0)
    rates = first.tangents * first_rate, last.tangents * last_rate
    return omega, interpolated(first.unknowns, last.unknowns, *rates)


def _work_through(
    curve: Curve, z: Array, lanes: Lanes, idle: Int[Array, ""], search: Bool[Array, ""], tile: int
) -> Lanes:
    """Solves lanes in the order of their distance, of which the first are `idle`."""
    num_lanes = z.shape[0]
    places = _Places.of(num_lanes, idle, tile)
    log_z = log_upper(z - curve.origin())[places.rank]
    z, lanes = z[places.rank], _take(lanes, places.rank)
    first_tile = places.all_from + idle // tile * tile

    def work(state: tuple[Array, Lanes]) -> tuple[Array, Lanes]:
        first, lanes = state
        here = lambda x: jax.lax.dynamic_slice_in_dim(x, first, tile, axis=-1)  # noqa: E731
        own, left, right = jax.tree.map(here, (lanes, places.left, places.right))

        def guessed() -> tuple[Array, Array]:
            start, span = log_z[left], log_z[right] - log_z[left]
            part = (here(log_z) - start) * reciprocal(jnp.where(span == 0, 1, span))
            return _between(_take(lanes, left), _take(lanes, right), span, part)

        known = (own.omega != 0) | (first == 0)
        guess = jax.lax.cond(jnp.all(known), lambda: (own.omega, own.unknowns), guessed)
        guess = jax.tree.map(lambda x, y: jnp.where(known, x, y), (own.omega, own.unknowns), guess)
        own = eqx.tree_at(lambda own: (own.omega, own.unknowns), own, guess)
        found = walk(curve, here(z), own, search)
        put = lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, first, axis=-1)  # noqa: E731
        following = jnp.maximum(first + tile, jnp.where(first + tile >= places.all_from, first_tile, 0))
        return following, jax.tree.map(put, lanes, found)

    end = places.rank.size
    lanes = jax.lax.while_loop(lambda state: state[0] < end, work, (jnp.asarray(0), lanes))[1]
    return jax.tree.map(lambda x: x[..., places.all_from : places.all_from + num_lanes], lanes)


def find_roots(
    curve: Curve, z: Complex[Array, " lanes"], guess: Guess | None = None, search: Array | bool = True
) -> Roots:
    """Certified roots `omega` of `z(omega) = z`; real positive `z` is the limit from above. They are constants to
    derivatives, and so compiled once for whatever is made of them: `Curve.point_at` has the derivatives.

    A guess of `omega` and unknowns, such as the roots of points next to these, may save the search; where its `omega`
    is 0 there is none. Without `search` no other roots are found than those next to a guess.
    """
    curve, z, guess = frozen((curve, z, guess))
    concrete = is_concrete(curve.rank) and is_concrete(z)
    if guess is None:
        unknowns = curve.num_layers, curve.num_unknowns, z.shape[0]
        guess = _zeros(z.shape, z.dtype), _zeros(unknowns, z.dtype)
    platform = next(iter(curve.rank.devices())).platform if concrete else None
    return _find_roots(curve, z, guess, search, platform)


@lru_cache(8)
def _zeros(shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    with jax.ensure_compile_time_eval():
        return jnp.zeros(shape, dtype)


# Points of laws, in all layers and lanes, that are solved for in a few tenths of a second, the effort of one call.
_POINTS_PER_CALL = 1e6


def _effort(curve: Curve, z: Array, *_: Any) -> float:
    return max(1.0, z.size * curve.num_layers * (1 + curve.num_points) / _POINTS_PER_CALL)


@quickly(partial(jax.jit, static_argnums=4), _effort, fused=True)
def _find_roots(curve: Curve, z: Array, guess: Guess, search: Array | bool, platform: str | None) -> Roots:
    """For a platform, or for that which it is lowered for."""
    target, valid = _target(curve, z)
    distance = jnp.where(valid, magnitude(target), 0)
    order = jnp.arange(z.shape[0])
    in_order = jnp.all(distance[1:] >= distance[:-1])  # as grids are: sorting is slow
    order, back = jax.lax.cond(in_order, lambda: (order, order), lambda: _sorted(distance))
    lanes = eqx.tree_at(lambda lanes: (lanes.omega, lanes.unknowns), Lanes.unknown(curve, valid), guess)
    target, lanes = _take((target, lanes), order)
    work = curve, target, lanes, jnp.sum(~valid), jnp.asarray(search)
    few = z.shape[0] <= _FEW or curve.num_points > _MANY_POINTS
    narrow = partial(_work_through, tile=min(z.shape[0], _SMALL_TILE if few else _TILE))
    wide = partial(_work_through, tile=min(z.shape[0], _WIDE_TILE))
    if platform is None:
        found = jax.lax.platform_dependent(*work, cpu=narrow, default=wide)
    else:
        found = narrow(*work) if platform == "cpu" else wide(*work)
    found = _take(found, back)
    certified = found.code == OK
    harmless = jax.lax.complex(-curve.reach(), jnp.zeros_like(curve.rank))
    omega, unknowns = (jnp.where(certified, x, harmless) for x in (found.omega, found.unknowns))
    return Roots(omega, unknowns, found.code, found.num_steps)


def _sorted(distance: Array) -> tuple[Array, Array]:
    """Lanes in their order, and of each its rank."""
    order = jnp.argsort(distance)
    return order, jnp.argsort(order)


@at_once
@quickly(jax.jit)
def find_atoms(curve: Curve) -> Atoms:
    return curve.atoms()


def _target(curve: Curve, z: Array) -> tuple[Array, Array]:
    """`z` in units of the last points, and where that and its square are in the range of floats."""
    target = z * jnp.exp(-curve.moments.log_scale)
    size = jnp.maximum(jnp.abs(target.real), jnp.abs(target.imag))
    valid = jnp.isfinite(size) & (jnp.abs(jnp.log(size)) < log_max(size.dtype) / 2)
    return jnp.where(valid, target, -1), valid
