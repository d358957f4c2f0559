"""Quantiles: Newton's method on the cdf, from a table of it."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._calculus.atoms import Atoms
from .._calculus.curve import Curve
from .._calculus.reader import reader
from .._numerics.arrays import are_concrete, at_once
from .._numerics.compile import quickly
from .._numerics.complex import exponential, log_max, magnitude, reciprocal
from .._numerics.implicit import implicit_root
from .._solve.solve import find_atoms, find_roots, Guess, Roots
from .edges import edges
from .reading import cdf_of, num_padded, off_atoms, on_axis, read_potential, Reading

_NUM_PLACES = 60  # of the table, between the edges


_TABLE_EXPONENT, _WIDE = 4, 50  # where the table spans more e-foldings, it is graded towards the upper edge


# Rounds next to the table, in which hardly anything has to be searched for, and all.
_MOST_POLISHED, _MOST_ROUNDS = 20, 120


class _Levels(eqx.Module):
    """Of every level `p` the quantile so far, as `log x`, between `low` and `high`, with a guess of its root.

    In the first round the places of the table stand in place of quantiles. A level in the jump of an `atom` has it for
    its quantile, -1 being none.
    """

    rounds: Int[Array, ""]
    log_x: Float[Array, " lanes"]
    guess: Guess
    low: Float[Array, " lanes"]
    high: Float[Array, " lanes"]
    done: Bool[Array, " lanes"]
    error: Float[Array, " lanes"]
    atom: Int[Array, " lanes"]


@at_once
def quantile(curve: Curve, p: Array) -> Array:
    """Newton's method on the cdf in log x, kept in a bracket that a table of the cdf between the edges gives it."""
    ends, atoms = edges(curve), find_atoms(curve)
    frozen, now, level = jax.lax.stop_gradient((curve, (ends, atoms), p.ravel()))
    num_lanes = max(p.size, _NUM_PLACES + atoms.size)
    concrete = are_concrete(frozen, level)
    num_lanes = num_padded(num_lanes) if concrete else num_lanes
    level = jnp.pad(level, (num_lanes - level.size, 0), constant_values=1)  # lanes without a level come first
    places, levels = _table(frozen, *now, num_lanes)

    def unfinished(levels: _Levels) -> Array:
        return (levels.rounds < _MOST_ROUNDS) & ~jnp.all(levels.done)

    def improved(levels: _Levels) -> _Levels:
        search = (levels.rounds == 0) | (levels.rounds > _MOST_POLISHED)
        z = _points(frozen, now[1], levels)
        roots = find_roots(frozen, z, levels.guess, search)
        reading = read_potential(frozen, z, roots)
        return _improved(frozen, now[1], places, level, levels, roots, reading)

    if concrete:
        while unfinished(levels):
            levels = improved(levels)
    else:
        levels = jax.lax.while_loop(unfinished, improved, levels)
    return _read_quantiles(curve, ends, atoms, p, levels)


@quickly(eqx.filter_jit)
def _table(curve: Curve, ends: tuple[Array, Array], atoms: Atoms, num_lanes: int) -> tuple[Array, _Levels]:
    """Places of the cdf's table with both ends, as `log x`, and the round that fills it in, at atoms, too."""
    lower, upper = ends
    dtype = upper.dtype
    tiny = float(jnp.finfo(dtype).tiny)
    log_lower = jnp.log(jnp.where(lower > tiny, lower, tiny))  # of NaN, too: the table goes as far as it can
    log_upper = jnp.log(jnp.maximum(upper, tiny))
    log_lower = jnp.maximum(log_lower, log_upper - 0.45 * log_max(dtype))
    span = log_upper - log_lower
    s = jnp.linspace(1, 0, _NUM_PLACES + 2, dtype=dtype)
    # Where the bulk reaches down to 0, the table spans hundreds of decades.
    places = log_upper - span * s ** jnp.where(span > _WIDE, _TABLE_EXPONENT, 1)
    log_x = jnp.concatenate([places[1:-1], atoms.log_locations])
    size = num_lanes - log_x.size
    zero = jnp.zeros(num_lanes, dtype)
    omega = zero.astype(jnp.result_type(dtype, jnp.complex64))
    unknowns = jnp.zeros((curve.num_layers, curve.num_unknowns, num_lanes), omega.dtype)
    return places, _Levels(
        rounds=jnp.asarray(0),
        log_x=jnp.pad(log_x, (size, 0)),
        guess=(omega, unknowns),
        low=zero,
        high=zero,
        done=jnp.arange(num_lanes) < size,
        error=zero,
        atom=jnp.full(num_lanes, -1, int),
    )


@quickly(jax.jit)
def _points(curve: Curve, atoms: Atoms, levels: _Levels) -> Array:
    """Where the cdf is asked for; lanes that are done are idle."""
    x = jnp.exp(levels.log_x)
    z = jnp.where(levels.rounds == 0, off_atoms(curve, atoms, x), on_axis(x))
    return jnp.where(levels.done, 0, z)


@quickly(jax.jit)
def _improved(
    curve: Curve, atoms: Atoms, places: Array, p: Array, levels: _Levels, roots: Roots, reading: Reading
) -> _Levels:
    """The next round's levels: after the first from the table, then by a step of Newton's method."""
    first = _from_table(curve, atoms, places, p, levels, roots, reading)
    later = _corrected(curve, p, levels, roots, reading)
    return jax.tree.map(lambda x, y: jnp.where(levels.rounds == 0, x, y), first, later)


def _from_table(
    curve: Curve, atoms: Atoms, places: Array, p: Array, levels: _Levels, roots: Roots, reading: Reading
) -> _Levels:
    heights = cdf_of(curve, atoms, jnp.exp(levels.log_x), reading)
    first = p.size - _NUM_PLACES - atoms.size
    heights, at_atoms = heights[first : p.size - atoms.size], heights[p.size - atoms.size :]
    heights = jax.lax.cummax(jnp.where(jnp.isfinite(heights), heights, 0))
    index = jnp.searchsorted(heights, p - _noise(curve), method="compare_all")  # where it is first as good as p
    heights = jnp.concatenate([atoms.zero[None], heights, jnp.ones(1, p.dtype)])
    low, high = places[index], places[index + 1]
    share = (p - heights[index]) / jnp.maximum(heights[index + 1] - heights[index], jnp.finfo(p.dtype).tiny)
    nearest = first + jnp.clip(index - (share < 0.5), 0, _NUM_PLACES - 1)
    found = roots.certified[nearest]
    jumps = _on_atoms(atoms, at_atoms, p)
    on_atom = jnp.any(jumps, axis=-1)
    return _Levels(
        rounds=levels.rounds + 1,
        log_x=low + (high - low) * jnp.clip(share, 0.02, 0.98),
        guess=(jnp.where(found, roots.omega[nearest], 0), roots.unknowns[..., nearest]),
        low=low,
        high=high,
        done=on_atom | (p <= atoms.zero) | (p >= 1),
        error=jnp.full_like(p, jnp.nan),
        atom=jnp.where(on_atom, jnp.argmax(jumps, axis=-1), -1),
    )


def _noise(curve: Curve) -> Float[Array, ""]:
    """Of the cdf."""
    return 4 * float(jnp.finfo(curve.rank.dtype).eps) * curve.num_roundings


def _on_atoms(atoms: Atoms, heights: Array, p: Array) -> Bool[Array, "lanes atoms"]:
    """Which levels lie inside the jump of which atom, `heights` being the cdf there."""
    slack = 64 * float(jnp.finfo(p.dtype).eps)
    level = p[..., None]
    return (atoms.masses > 0) & (level <= heights + slack) & (level > heights - atoms.masses + slack)


def _corrected(curve: Curve, p: Array, levels: _Levels, roots: Roots, reading: Reading) -> _Levels:
    eps, tiny = float(jnp.finfo(p.dtype).eps), float(jnp.finfo(p.dtype).tiny)
    noise = _noise(curve)
    x, certified = levels.log_x, reading.certified
    error = jnp.where(certified, 1 - reading.phi.imag / jnp.pi - p, jnp.nan)
    density = -reading.one.imag / jnp.pi
    # A level that the cdf has all along a gap has its quantile at the gap's lower end.
    gap = (jnp.abs(error) <= noise) & (density < eps**0.5)
    low, high = jnp.where((error < 0) & ~gap, x, levels.low), jnp.where((error >= 0) | gap, x, levels.high)
    newton = x - error / jnp.maximum(density, tiny)
    rounding = 4 * eps * jnp.maximum(1, jnp.abs(x))
    inside = (newton >= low - rounding) & (newton <= high + rounding) & ~gap
    # A point that is not certified tells no side: on towards one that is.
    aside = jnp.where(certified, 0.5 * (low + high), 0.5 * (low + x))
    new = jnp.where(levels.done, x, jnp.where(inside, newton, aside))
    ahead = (new - x) * reciprocal(reading.slope)
    ahead = jnp.where(certified & (magnitude(ahead) < 1), ahead, 0)
    omega, unknowns = levels.guess
    guess = jnp.where(certified, roots.omega * exponential(ahead), omega)
    searched = levels.rounds > _MOST_POLISHED
    ended = ((jnp.abs(new - x) <= rounding) | (jnp.abs(error) <= noise) & ~gap) & (certified | searched)
    # Where the last of the rounds next to the table found nothing, a search starts from the middle.
    last = (levels.rounds == _MOST_POLISHED) & jnp.isnan(error) & ~levels.done
    return _Levels(
        rounds=levels.rounds + 1,
        log_x=jnp.where(last, 0.5 * (low + high), new),
        guess=(guess, jnp.where(certified, roots.unknowns, unknowns)),
        low=low,
        high=high,
        done=levels.done | ended,
        error=jnp.where(levels.done, levels.error, error),
        atom=levels.atom,
    )


@reader
def _read_quantiles(curve: Curve, ends: tuple[Array, Array], atoms: Atoms, p: Array, levels: _Levels) -> Array:
    lower, upper = ends
    found = levels.log_x, levels.guess, levels.error, levels.atom
    log_x, guess, error, atom = jax.lax.stop_gradient(jax.tree.map(lambda x: x[..., x.shape[-1] - p.size :], found))
    now, level = jax.lax.stop_gradient((atoms, p.ravel()))
    on_atom = atom >= 0
    # On an atom the cdf jumps past p, and below the table's end, out of the range of floats, it cannot reach p.
    found = ~on_atom & (jnp.abs(error) < 10 * jnp.finfo(p.dtype).eps ** 0.5)
    omega, unknowns = (jnp.where(found, x, -jax.lax.stop_gradient(curve.reach())) for x in guess)
    log_x = implicit_root(_above_p, log_x, (curve, p.ravel(), omega, unknowns, found), found)
    inner = jnp.where(found, jnp.exp(log_x), jnp.nan)
    quantile = jnp.where(on_atom, jnp.exp(atoms.log_locations)[jnp.maximum(atom, 0)], inner)
    quantile = jnp.where(level >= 1, upper, quantile)
    quantile = jnp.where(level <= now.zero, jnp.where(now.zero > 0, 0, lower), quantile)
    return quantile.reshape(p.shape)


def _above_p(log_x: Array, curve: Curve, p: Array, omega: Array, unknowns: Array, found: Array) -> tuple[Array, Array]:
    """`cdf(exp(log_x)) - p`, whose root is the quantile, and its slope, where `omega` was found."""
    x = jnp.exp(jnp.where(found, log_x, 0))
    point, phi = curve.potential_at(on_axis(x), omega, unknowns, found)
    return 1 - phi.imag / jnp.pi - p, -point.one_plus(1).imag / jnp.pi
