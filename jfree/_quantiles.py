"""Quantiles: Newton's method on the cdf, from a table of it."""

from collections.abc import Callable
from functools import partial
polish = lambda curve, z, guess: solve(curve, z, guess, False)
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._curve import Curve
from ._edges import edges
from ._implicit import implicit_root, with_slope
from ._misc import exponential, log_max, magnitude, reciprocal
from ._reading import find_atoms, find_roots, off_atoms, on_axis, over_lanes, read_cdf
from ._solver import Roots, solve


def _above_p(log_x: Array, curve: Curve, p: Array, guess: tuple[Array, Array]) -> Array:
    """`cdf(exp(log_x)) - p`, whose root is the quantile."""
    z = on_axis(jnp.exp(log_x))
    roots = solve(curve, z, guess)
    return 1 - curve.potential(roots.omega, roots.unknowns)[1].imag / jnp.pi - p


def quantile(curve: Curve, p: Array) -> Array:
    """Newton's method on the cdf in log x, kept in a bracket that a table of the cdf between the edges gives it."""
    tiny = float(jnp.finfo(p.dtype).tiny)
    lower, upper = edges(curve)
    atoms = find_atoms(curve)
    frozen, now, ends = jax.lax.stop_gradient((curve, atoms, jnp.stack([lower, upper])))
    ends = ends.at[0].set(jnp.where(lower > tiny, ends[0], tiny))  # of NaN, too: the table goes as far as it can
    log_ends = jnp.log(jnp.maximum(ends, tiny))
    log_ends = log_ends.at[0].max(log_ends[1] - 0.45 * log_max(p.dtype))
    # Graded towards the upper edge: where the bulk reaches down to 0, the table spans hundreds of decades.
    span = log_ends[1] - log_ends[0]
    s = jnp.linspace(1, 0, 62, dtype=p.dtype)[1:-1]
    table = log_ends[1] - span * s ** jnp.where(span > 50, 4, 1)
    x = jnp.exp(jnp.concatenate([table, now.log_locations]))
    roots = find_roots(frozen, off_atoms(frozen, x))
    heights = read_cdf(frozen, x, roots)
    places = jnp.concatenate([log_ends[:1], table, log_ends[1:]])
    tabulated = roots.omega[: table.size], roots.unknowns[..., : table.size]
    slack = 64 * float(jnp.finfo(p.dtype).eps)
    top = heights[table.size :]
    level = p[..., None]
    inside = (atoms.masses > 0) & (level <= top + slack) & (level > top - atoms.masses + slack)
    on_atom = jnp.any(inside, axis=-1)
    known = on_atom | (p <= now.zero) | (p >= 1)
    inner = _quantile_between((curve, places, heights[: table.size], *tabulated), jnp.where(known, _KNOWN, p))
    found = jnp.where(on_atom, jnp.exp(atoms.log_locations)[jnp.argmax(inside, axis=-1)], inner)
    found = jnp.where(p >= 1, upper, found)
    return jnp.where(p <= now.zero, jnp.where(now.zero > 0, 0, lower), found)


_KNOWN = -1.0  # stands for a level whose quantile is known


@over_lanes(idle=_KNOWN)
@eqx.filter_jit
def _quantile_between(tabulated: tuple[Any, ...], p: Array) -> Array:
    curve, places, heights, *roots = tabulated
    dtype = p.dtype
    eps, tiny = float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).tiny)
    known = p == _KNOWN
    p = jnp.where(known, 0.5, p)
    frozen, target = jax.lax.stop_gradient((curve, p))
    heights = jax.lax.cummax(jnp.where(jnp.isfinite(heights), heights, 0))
    index = jnp.searchsorted(heights, target)
    heights = jnp.concatenate([frozen.atoms().zero[None], heights, jnp.ones(1, dtype)])
    low, high = places[index], places[index + 1]
    share = (target - heights[index]) / jnp.maximum(heights[index + 1] - heights[index], tiny)
    guess = low + (high - low) * jnp.clip(share, 0.02, 0.98)
    nearest = jnp.clip(index - (share < 0.5), 0, places.size - 3)
    omega, unknowns = (x[..., nearest] for x in roots)

    noise = 4 * eps * (1 + frozen.num_layers / 16)  # of the cdf

    def correct(find: Callable[[Curve, Array, tuple[Array, Array]], Roots], state: tuple[Any, ...]):
        k, x, (omega, unknowns), low, high, done, _ = state
        found = find(frozen, on_axis(jnp.exp(x)), (omega, unknowns))
        point, phi, _ = frozen.potential(found.omega, found.unknowns)
        per_log_x = -point.one_plus(1).imag / jnp.pi
        error = jnp.where(found.certified, 1 - phi.imag / jnp.pi - target, jnp.nan)
        low, high = jnp.where(error < 0, x, low), jnp.where(error >= 0, x, high)
        newton = x - error / jnp.maximum(per_log_x, tiny)
        rounding = 4 * eps * jnp.maximum(1, jnp.abs(x))
        inside = (newton >= low - rounding) & (newton <= high + rounding)
        # A point that is not certified tells no side: on towards one that is.
        aside = jnp.where(found.certified, 0.5 * (low + high), 0.5 * (low + x))
        new = jnp.where(done, x, jnp.where(inside, newton, aside))
        ahead = (new - x) * reciprocal(point.dz)
        ahead = jnp.where(found.certified & (magnitude(ahead) < 1), ahead, 0)
        next_guess = jnp.where(found.certified, found.omega * exponential(ahead), omega)
        roots = next_guess, jnp.where(found.certified, found.unknowns, unknowns)
        ended = (jnp.abs(new - x) <= rounding) | (jnp.abs(error) <= noise)
        done |= ended & (found.certified | (find is solve))
        return k + 1, new, roots, low, high, done, error

    def unfinished(most: int, state: tuple[Any, ...]) -> Array:
        k, *_, done, _ = state
        return (k < most) & ~jnp.all(done)

    # Next to the table hardly anything has to be searched for.
    state = (jnp.asarray(0), guess, (omega, unknowns), low, high, known, jnp.zeros_like(p))
    state = jax.lax.while_loop(partial(unfinished, 20), partial(correct, polish), state)
    k, x, roots, low, high, done, error = state
    state = (k, jnp.where(jnp.isnan(error), 0.5 * (low + high), x), roots, low, high, done, error)
    state = jax.lax.while_loop(partial(unfinished, 120), partial(correct, solve), state)
    _, x, (omega, unknowns), *_, error = state
    # On an atom the cdf jumps past p, and below the table's end, out of the range of floats, it cannot reach p.
    found = ~known & (jnp.abs(error) < 10 * eps**0.5)
    x = jnp.where(found, x, places[-1] + 1)  # where nothing is singular
    quantile = jnp.exp(implicit_root(with_slope(_above_p), x, (curve, p, (omega, unknowns)), found))
    return jnp.where(found, quantile, jnp.nan)
