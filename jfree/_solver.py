"""Certified solutions of `z(omega) = z` on a curve, for many `z` in parallel.

Paths are followed to a few of them; the others start from their interpolation, and Newton's method ends all. What fails
is followed itself.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Int

from ._certificate import (
    as_good_as_real,
    as_results,
    certify,
    INVALID,
    MAX_STEPS,
    NO_ROOT,
    OK,
    RESULTS,
    UNRESOLVED,
    WRONG_BRANCH,
)
from ._curve import Curve
from ._follow import follow, limited, moved, without_imaginary
from ._implicit import implicit_root
from ._misc import exponential, log_max, log_upper, logarithm, magnitude, reciprocal


class Roots(eqx.Module):
    """One per lane: curve parameter, layers' unknowns, verdict, and Newton steps spent.

    Where no root is certified, `omega` and `unknowns` are a constant at which everything is finite.
    """

    omega: Complex[Array, " lanes"]
    unknowns: Complex[Array, "layers unknowns lanes"]
    certified: Bool[Array, " lanes"]
    result: RESULTS  # pyright: ignore[reportInvalidTypeForm]
    num_steps: Int[Array, " lanes"]


class _Work(eqx.Module):
    """Every lane's best so far, with slope and tangents there; `attempts` counts the paths followed to it."""

    omega: Complex[Array, " lanes"]
    unknowns: Complex[Array, "layers unknowns lanes"]
    slope: Complex[Array, " lanes"]
    tangents: Complex[Array, "layers unknowns lanes"]
    code: Int[Array, " lanes"]
    attempts: Int[Array, " lanes"]
    num_steps: Int[Array, " lanes"]

    @property
    def pending(self) -> Bool[Array, " lanes"]:
        return (self.code != OK) & (self.attempts < 2)


def _take(tree: Any, index: Int[Array, " some"]) -> Any:
    return jax.tree.map(lambda x: x[..., index], tree)


def _in_tiles(
    update: Callable[[_Work, Int[Array, " tile"], Bool[Array, " tile"]], _Work],
    work: _Work,
    chosen: Bool[Array, " lanes"],
    width: int,
) -> _Work:
    """`update(tile, index, chosen)` for the chosen lanes, `width` at a time: no tile waits for another."""
    num_lanes, count = chosen.shape[0], jnp.sum(chosen)
    lanes = jnp.pad(jnp.nonzero(chosen, size=num_lanes)[0], (0, -num_lanes % width))

    def update_tile(state: tuple[Array, _Work]) -> tuple[Array, _Work]:
        first, work = state
        index = jax.lax.dynamic_slice(lanes, (first,), (width,))
        there = first + jnp.arange(width) < count
        new = update(_take(work, index), index, there)
        place = jnp.where(there, index, num_lanes)
        return first + width, jax.tree.map(lambda x, y: x.at[..., place].set(y, mode="drop"), work, new)

    return jax.lax.while_loop(lambda state: state[0] < count, update_tile, (jnp.asarray(0), work))[1]


def _spread(waiting: Bool[Array, " lanes"], number: Int[Array, ""] | int) -> Bool[Array, " lanes"]:
    """So many of the waiting lanes, evenly, first and last among them."""
    rank = jnp.cumsum(waiting)
    gaps = jnp.maximum(rank[-1] - 1, 1)
    number = jnp.minimum(number, rank[-1])
    passed = (rank - 1) * (number - 1) // gaps > (rank - 2) * (number - 1) // gaps
    return waiting & (passed | (rank == 1)) & (number > 0)


def _search(curve: Curve, z: Array, work: _Work, chosen: Bool[Array, " lanes"], max_steps: int) -> _Work:
    """Follows paths to the chosen lanes: first in long strides, where that has failed in short ones."""
    trust = jnp.where(work.attempts == 0, 0.3, 0.02).astype(z.real.dtype)
    path = follow(curve, z, chosen, trust, max_steps)
    code = jnp.where(path.arrived, NO_ROOT, MAX_STEPS)
    num_steps = work.num_steps + path.num_steps
    return _Work(path.omega, path.unknowns, path.slope, path.tangents, code, work.attempts + 1, num_steps)


def _neighbours(anchors: Bool[Array, " lanes"]) -> tuple[Int[Array, " lanes"], Int[Array, " lanes"]]:
    """Of every lane the nearest anchors, left and right, itself if it is one; where one lacks, the other twice."""
    num_lanes = anchors.shape[0]
    index = jnp.arange(num_lanes)
    left = jax.lax.cummax(jnp.where(anchors, index, -1))
    right = jax.lax.cummin(jnp.where(anchors, index, num_lanes), reverse=True)
    left, right = jnp.where(left < 0, right, left), jnp.where(right == num_lanes, left, right)
    return jnp.clip(left, 0, num_lanes - 1), jnp.clip(right, 0, num_lanes - 1)


class _Nodes(eqx.Module):
    """Lanes to start others from, and of every other the nearest two, left and right."""

    log_z: Complex[Array, " nodes"]
    work: _Work
    left: Int[Array, " lanes"]
    right: Int[Array, " lanes"]

    def between(self, log_z: Array, index: Array) -> tuple[Array, Array]:
        """Roots of some lanes by cubic interpolation in `log z`, as seen from the origin."""
        left, right = self.left[index], self.right[index]
        first, last = _take(self.work, left), _take(self.work, right)
        log_left, span = self.log_z[left], self.log_z[right] - self.log_z[left]
        t = (log_z - log_left) * reciprocal(jnp.where(span == 0, 1, span))
        first_rate, last_rate = span * reciprocal(first.slope), span * reciprocal(last.slope)

        def interpolated(start: Array, end: Array, first_rate: Array, last_rate: Array) -> Array:
            rise = logarithm(end * reciprocal(start))
            change = t * (rise + (1 - t) * ((1 - t) * (first_rate - rise) - t * (last_rate - rise)))
            return jnp.where(span == 0, start, start * exponential(change))

        omega = interpolated(first.omega, last.omega, first_rate, last_rate)
        rates = first.tangents * first_rate, last.tangents * last_rate
        return omega, interpolated(first.unknowns, last.unknowns, *rates)


def _polish(curve: Curve, z: Array, work: _Work, pending: Bool[Array, " lanes"], max_steps: int = 10) -> _Work:
    """Newton's method on the pending lanes, until certified; without the imaginary part where that is rounding only."""

    def advance(state: tuple[Array | int, Array, Array, _Work]) -> tuple[Array | int, Array, Array, _Work]:
        k, active, real, work = state
        newton, settled, code = certify(curve, z, work.omega, work.unknowns, real)
        step = limited(newton.step, newton.tangents, 1.0)
        omega, unknowns = moved(work.omega, newton.unknowns, newton.tangents, step)
        # Next to an atom the last rounding decides whether the alpha test holds.
        settled = (settled & ((code != NO_ROOT) | (k >= 8))) | ((k >= 4) & (code == OK))
        strip = active & (settled | (k >= 3)) & ~real & as_good_as_real(z, newton.slope, omega)
        omega, unknowns = without_imaginary(real | strip, omega), without_imaginary(real | strip, unknowns)

        def pick(new: Array, old: Array) -> Array:
            return jnp.where(active, new, old)

        new = _Work(
            pick(omega, work.omega),
            pick(unknowns, work.unknowns),
            pick(newton.slope, work.slope),
            pick(newton.tangents, work.tangents),
            pick(code, work.code),
            work.attempts,
            work.num_steps + active,
        )
        return k + 1, active & (strip | ~settled), real | strip, new

    def unfinished(state: tuple[Array | int, Array, Array, _Work]) -> Array:
        k, active, *_ = state
        return (k < max_steps) & jnp.any(active)

    start = (0, pending, jnp.zeros(z.shape, bool), work)
    _, active, _, found = advance(start) if max_steps == 1 else jax.lax.while_loop(unfinished, advance, start)
    code = jnp.where(active & (found.code == OK), NO_ROOT, found.code)
    nothing = (code == NO_ROOT) | (code == WRONG_BRANCH)
    code = jnp.where(nothing & ((work.code == MAX_STEPS) | (work.code == UNRESOLVED)), work.code, code)
    return eqx.tree_at(lambda w: w.code, found, code)


def _residual(omega: Array, curve: Curve, unknowns: Array, z: Array) -> tuple[Array, Array]:
    point = curve.point(omega, unknowns)
    return logarithm(point.z * reciprocal(z * jnp.exp(-point.log_scale))), point.dz * reciprocal(omega)


_ANCHORS = 16


def _widths() -> tuple[int, int]:
    """How many lanes share anchors, and how many are worked on at once.

    A tile waits for its slowest lane, and fits into a cache; an accelerator wants all lanes at once.
    """
    return (4096, 32) if jax.default_backend() == "cpu" else (65536, 65536)


def _work_on(curve: Curve, z: Array, valid: Array, guess: tuple[Array, Array] | None) -> _Work:
    """All lanes before any path was followed: pending, but for those that the guess settles."""
    count, slope = jnp.zeros(z.shape, int), jnp.ones_like(z)
    code, attempts = jnp.where(valid, MAX_STEPS, INVALID), jnp.where(valid, count, 2)
    unknowns = jnp.ones((curve.num_layers, curve.num_unknowns, z.shape[0]), z.dtype)
    if guess is None:
        return _Work(z, unknowns, slope, unknowns, code, attempts, count)
    return _polish(curve, z, _Work(*guess, slope, unknowns, code, attempts, count), valid)


def _work_through(curve: Curve, z: Array, work: _Work, max_steps: int, nodes: _Nodes | None = None) -> _Work:
    """Solves sorted lanes: from between certified nodes, if there are any; then follows paths to a few of those that
    are pending, fills in more between them, and the rest.

    Whatever fails is pending in the next round, which follows paths to more of them.
    """
    num_lanes = z.shape[0]
    some = min(num_lanes, max(4 * _ANCHORS, num_lanes // 16))
    _, tile = _widths()
    width = min(num_lanes, tile)
    log_z = log_upper(z - curve.origin())

    def search(tile: _Work, index: Array, chosen: Array) -> _Work:
        return _search(curve, z[index], tile, chosen, max_steps)

    def fill_in(work: _Work, nodes: _Nodes, chosen: Array) -> _Work:
        """Newton's method on the chosen lanes, from between the nodes."""

        def guessed(tile: _Work, index: Array, chosen: Array) -> _Work:
            guess = nodes.between(log_z[index], index)
            guess = jax.tree.map(lambda x, y: jnp.where(chosen, x, y), guess, (tile.omega, tile.unknowns))
            return eqx.tree_at(lambda w: (w.omega, w.unknowns), tile, guess)

        def polish(tile: _Work, index: Array, chosen: Array) -> _Work:
            return _polish(curve, z[index], tile, chosen)

        if curve.num_unknowns > 0:
            return _in_tiles(lambda tile, *lanes: polish(guessed(tile, *lanes), *lanes), work, chosen, width)
        # One step is so cheap that finding out who needs it costs more.
        once = guessed(work, jnp.arange(num_lanes), chosen)
        most = 2 * jnp.sum(chosen) > num_lanes
        once = jax.lax.cond(most, lambda w: _polish(curve, z, w, chosen, 1), lambda w: w, once)
        return _in_tiles(polish, once, chosen & (once.code != OK), width)

    known = jnp.asarray(False) if nodes is None else jnp.any(nodes.work.code == OK)

    def round_of(state: tuple[Array, _Work]) -> tuple[Array, _Work]:
        k, work = state
        pending, before = work.pending, work.attempts
        number = jnp.where(k == 0, 0, jnp.where(k == 1, _ANCHORS, some))
        work = _in_tiles(search, work, _spread(pending, number), min(some, tile // 2))
        arrived = (work.attempts > before) & (work.code != MAX_STEPS)

        def fill(level: Array, work: _Work) -> _Work:
            waiting = pending & (work.code != OK)
            anchors = (work.code == OK) | (arrived & (level == 0))
            between = _Nodes(log_z, work, *_neighbours(anchors))
            if nodes is not None:
                between = jax.tree.map(lambda x, y: jnp.where(k == 0, x, y), nodes, between)
            return fill_in(work, between, waiting & ((level == 1) | arrived | _spread(waiting, some)))

        return k + 1, jax.lax.fori_loop(jnp.where(k == 0, 1, 0), 2, fill, work)

    state = (jnp.where(known, 0, 1), work)
    return jax.lax.while_loop(lambda state: jnp.any(state[1].pending), round_of, state)[1]


def _in_rows(num_lanes: int) -> tuple[Int[Array, "rows chunk"], int]:
    """Lanes in rows that are worked on one after the other, and a stride: first all at this distance, then the rest.

    The last row is filled up with lanes that are not there.
    """
    chunk, _ = _widths()
    stride = -(-num_lanes // chunk)
    if stride == 1:
        return jnp.arange(num_lanes)[None], stride
    num_rows = -(-(num_lanes - -(-num_lanes // stride)) // chunk)
    rank = jnp.arange(num_rows * chunk)
    between = rank // (stride - 1) * stride + rank % (stride - 1) + 1
    return jnp.concatenate([stride * jnp.arange(chunk), between]).reshape(-1, chunk), stride


def _work_through_rows(
    curve: Curve, z: Complex[Array, "rows chunk"], work: _Work, lanes: Int[Array, "rows chunk"], stride: int, most: int
) -> _Work:
    """Solves the first row, then every other from between its lanes."""

    def as_nodes(z: Array, work: _Work) -> _Nodes:
        return _Nodes(log_upper(z - curve.origin()), work, *_neighbours(work.code == OK))

    def row_of(few: _Nodes, row: tuple[Array, Array, Array, _Work]) -> tuple[_Nodes, _Work]:
        first, lanes, z, work = row
        left, right = lanes // stride, jnp.minimum(-(-lanes // stride), z.size - 1)
        work = _work_through(curve, z, work, most, _Nodes(few.log_z, few.work, few.left[left], few.right[right]))
        return jax.tree.map(lambda x, y: jnp.where(first, x, y), as_nodes(z, work), few), work

    rows = jax.tree.map(lambda x: jnp.moveaxis(x, -2, 0), work)
    first = jax.tree.map(lambda x: x[0], rows)
    if stride == 1:
        return _work_through(curve, z[0], first, most)
    _, rows = jax.lax.scan(row_of, as_nodes(z[0], first), (jnp.arange(z.shape[0]) == 0, lanes, z, rows))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], z.size), rows)


def solve(
    curve: Curve, z: Complex[Array, " lanes"], guess: tuple[Array, Array] | None = None, max_steps: int = 100
) -> Roots:
    """Certified roots `omega` of `z(omega) = z`; real positive `z` is the limit from above.

    A guess of `omega` and unknowns, such as the roots of points next to these, may save the search. The roots carry the
    derivatives of the implicit function; the search itself is not differentiated.
    """
    frozen, guess = jax.lax.stop_gradient((curve, guess))
    target, valid = _target(frozen, z)
    num_lanes = z.shape[0]
    distance = jnp.where(valid, magnitude(target), 0)
    in_order = jnp.all(distance[1:] >= distance[:-1])  # as grids are: sorting is slow
    order = jax.lax.cond(in_order, lambda: jnp.arange(num_lanes), lambda: jnp.argsort(distance))
    lanes, stride = _in_rows(num_lanes)
    there, lanes = lanes < num_lanes, jnp.minimum(lanes, num_lanes - 1)
    target, work = _take((target, _work_on(frozen, target, valid, guess)), order[lanes])
    work = eqx.tree_at(lambda w: w.attempts, work, jnp.where(there, work.attempts, 2))
    work = _work_through_rows(frozen, target, work, lanes, stride, max_steps)
    places = jnp.where(there, order[lanes], num_lanes).ravel()
    back = jnp.zeros(num_lanes, order.dtype).at[places].set(jnp.arange(places.size), mode="drop")
    return _as_roots(curve, z, _take(work, back))


def polish(curve: Curve, z: Complex[Array, " lanes"], guess: tuple[Array, Array]) -> Roots:
    """The roots next to a guess of `omega` and unknowns, as far as they are certified; nothing is searched for."""
    frozen, guess = jax.lax.stop_gradient((curve, guess))
    return _as_roots(curve, z, _work_on(frozen, *_target(frozen, z), guess))


def _target(curve: Curve, z: Array) -> tuple[Array, Array]:
    """`z` in units of the last points, and where that and its square are in the range of floats."""
    target = jax.lax.stop_gradient(z) * jnp.exp(-curve.cumulants.log_scale)
    size = jnp.maximum(jnp.abs(target.real), jnp.abs(target.imag))
    valid = jnp.isfinite(size) & (jnp.abs(jnp.log(size)) < log_max(size.dtype) / 2)
    return jnp.where(valid, target, -1), valid


def _as_roots(curve: Curve, z: Array, work: _Work) -> Roots:
    frozen, certified = jax.lax.stop_gradient(curve), work.code == OK
    harmless = jax.lax.complex(-frozen.reach(), jnp.zeros_like(frozen.rank))
    omega, unknowns = (jnp.where(certified, x, harmless) for x in (work.omega, work.unknowns))
    omega = implicit_root(_residual, omega, (curve, unknowns, jnp.where(certified, z, 1)), certified)
    return Roots(omega, unknowns, certified, as_results(work.code), work.num_steps)
