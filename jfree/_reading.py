"""What is read off the roots: values, densities, cdfs and log-potentials."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Int

from ._certificate import as_results, RESULTS
from ._curve import Curve
from ._laws import Atoms
from ._misc import log_max, reciprocal
from ._moments import mean_log
from ._solver import differentiable, find_roots as search, Guess, Roots


class Solution(eqx.Module):
    """What the solver found, per point: `m = M(z)`, `G(z) = (m+1)/z`, the verdict, and Newton steps spent.

    `m` and `G` are NaN where `result` is not `RESULTS.successful`.
    """

    m: Complex[Array, "..."]
    G: Complex[Array, "..."]
    result: RESULTS  # pyright: ignore[reportInvalidTypeForm]
    num_steps: Int[Array, "..."]


def over_lanes(idle: float) -> Callable[[Callable[[Any, Array], Any]], Callable[[Any, Array], Any]]:
    """Lets `method(curve, lanes)` take arrays of any shape: at most eight sizes per doubling are compiled.

    Lanes that are `idle` ask for no work. They come first, where what is not solved stands in a sorted grid.
    """

    def over(method: Callable[[Any, Array], Any]):
        def wrapped(curve: Any, x: Array) -> Any:
            if x.size == 0:
                raise ValueError("At least one point is needed, got an empty array.")
            grain = max(16, 2 ** (x.size - 1).bit_length() // 8)
            padding = -x.size % grain
            if padding == 0 and x.ndim == 1:
                return method(curve, x)
            return _unpadded(method(curve, jnp.pad(x.ravel(), (padding, 0), constant_values=idle)), x.shape)

        return wrapped

    return over


@partial(jax.jit, static_argnums=1)
def _unpadded(tree: Any, shape: tuple[int, ...]) -> Any:
    return jax.tree.map(lambda y: y[y.shape[0] - math.prod(shape) :].reshape(shape), tree)


_search = jax.jit(search)


def find_roots(curve: Curve, z: Array, guess: Guess | None = None, search: bool = True) -> Roots:
    """Compiled apart from what is read off the roots, and so once for all of it; without derivatives."""
    return _search(*jax.lax.stop_gradient((curve, z, guess)), search)


@jax.jit
def find_atoms(curve: Curve) -> Atoms:
    return curve.atoms()


@jax.jit
def _read_values(curve: Curve, z: Array, roots: Roots) -> tuple[Array, Array]:
    """`m` and `G`, NaN where they are not certified."""
    roots = differentiable(curve, z, roots)
    point = curve.point(roots.omega, roots.unknowns)
    scale = jnp.exp(-point.log_scale)
    G = point.one_plus(1) * reciprocal(jnp.where(roots.certified, z, 1) * scale) * scale
    nan = jnp.asarray(complex(np.nan, np.nan), z.dtype)
    return jnp.where(roots.certified, point.side * point.m, nan), jnp.where(roots.certified, G, nan)


@over_lanes(idle=0.0)
def solution(curve: Curve, z: Array) -> Solution:
    roots = find_roots(curve, z)
    m, G = _read_values(curve, z, roots)
    return Solution(m, G, as_results(roots.code), roots.num_steps)


def on_axis(x: Array) -> Array:
    """Positive points as they are, others at 0, where nothing is solved: their values are known."""
    return jax.lax.complex(jnp.maximum(x, 0), jnp.zeros_like(x))


@jax.jit
def _density_points(curve: Curve, x: Array) -> Array:
    """At 0 the density is infinite or 0, as the bulk reaches it or not."""
    near_zero = jnp.exp(curve.cumulants.log_mean - 0.2 * log_max(x.dtype))
    return on_axis(jnp.where(x == 0, near_zero, x))


@jax.jit
def _read_density(curve: Curve, x: Array, z: Array, roots: Roots) -> Array:
    _, G = _read_values(curve, z, roots)
    density = jnp.maximum(-G.imag, 0) / jnp.pi
    density = jnp.where((x == 0) & (density > 0), jnp.inf, density)
    return jnp.where(x < 0, 0, density)


@over_lanes(idle=-1.0)
def density(curve: Curve, x: Array) -> Array:
    z = _density_points(curve, x)
    return _read_density(curve, x, z, find_roots(curve, z))


@jax.jit
def _above_axis(x: Array, y: Array) -> Array:
    return jax.lax.complex(*jnp.broadcast_arrays(x, y))


@jax.jit
def _read_smoothed_density(curve: Curve, z: Array, roots: Roots) -> Array:
    _, G = _read_values(curve, z, roots)
    return -G.imag / jnp.pi


@over_lanes(idle=0.0)
def _smoothed_density(curve: Curve, z: Array) -> Array:
    return _read_smoothed_density(curve, z, find_roots(curve, z))


def smoothed_density(curve: Curve, x: Array, y: Array) -> Array:
    return _smoothed_density(curve, _above_axis(x, y))


def _atom_at(curve: Curve, x: Array) -> tuple[Array, Array]:
    """The mass of the atom that `x` lies on, 0 if there is none, and a point just below it, or `x`."""
    eps = jnp.finfo(x.dtype).eps
    atoms = curve.atoms()
    places = jnp.where(atoms.masses > 0, jnp.exp(jax.lax.stop_gradient(atoms.log_locations)), jnp.inf)
    nearest = jnp.argmin(jnp.abs(x[:, None] - places), axis=1)
    there = (atoms.masses[nearest] > 0) & (jnp.abs(x - places[nearest]) <= 8 * eps * places[nearest])
    below = jnp.where(there, places[nearest], 1) * (1 - curve.next_to_atoms())
    return jnp.where(there, atoms.masses[nearest], 0), jnp.where(there, below, x)


@jax.jit
def off_atoms(curve: Curve, x: Array) -> Array:
    """The curve is singular at an atom, and certified up to some distance from it."""
    return on_axis(_atom_at(curve, x)[1])


@jax.jit
def read_cdf(curve: Curve, x: Array, roots: Roots) -> Array:
    roots = differentiable(curve, off_atoms(curve, x), roots)
    point, phi, _ = curve.potential(roots.omega, roots.unknowns)
    mass, below = _atom_at(curve, x)
    up_to_atom = jnp.maximum(-point.one_plus(1).imag, 0) * jnp.where(mass > 0, 1 - below / jnp.where(mass > 0, x, 1), 0)
    cdf = 1 - (phi.imag - up_to_atom) / jnp.pi + mass
    cdf = jnp.where(roots.certified, jnp.clip(cdf, 0, 1), jnp.nan)
    return jnp.where(x < 0, 0, jnp.where(x == 0, curve.atoms().zero, cdf))


@over_lanes(idle=-1.0)
def cdf(curve: Curve, x: Array) -> Array:
    return read_cdf(curve, x, find_roots(curve, off_atoms(curve, x)))


@jax.jit
def _read_log_potential(curve: Curve, x: Array, roots: Roots) -> Array:
    roots = differentiable(curve, jax.lax.complex(x, jnp.zeros_like(x)), roots)
    phi = curve.potential(roots.omega, roots.unknowns)[1]
    potential = jnp.where(roots.certified, phi.real, jnp.nan)
    at_zero = jnp.where(curve.atoms().zero > 0, -jnp.inf, mean_log(curve))
    return jnp.where(x == 0, at_zero, potential)


@over_lanes(idle=0.0)
def log_potential(curve: Curve, x: Array) -> Array:
    z = jax.lax.complex(x, jnp.zeros_like(x))
    return _read_log_potential(curve, x, find_roots(curve, z))
