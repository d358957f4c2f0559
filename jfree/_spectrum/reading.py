"""What is read off the roots: values, densities, cdfs and log-potentials.

The search for roots, and the evaluation of the curve there, are compiled apart from what is made of them: quantities
that are asked for one after the other share both.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Int

from .._calculus.atoms import Atoms
from .._calculus.curve import Curve
from .._calculus.reader import lane_reader
from .._numerics.arrays import are_concrete, at_once
from .._numerics.compile import quickly
from .._numerics.complex import log_max, reciprocal
from .._solve.certificate import as_results, RESULTS
from .._solve.solve import find_atoms, find_roots, Roots
from .moments import mean_log


class Solution(eqx.Module):
    """What the solver found, per point: `m = M(z)`, `G(z) = (m+1)/z`, the verdict, and Newton steps spent.

    `m` and `G` are NaN where `result` is not `RESULTS.successful`.
    """

    m: Complex[Array, "..."]
    G: Complex[Array, "..."]
    result: RESULTS  # pyright: ignore[reportInvalidTypeForm]
    num_steps: Int[Array, "..."]


def num_padded(size: int) -> int:
    """How many lanes are compiled for so many points: idle ones cost next to nothing."""
    padded = 1024
    while padded < size:
        padded *= 4
    return padded


def over_lanes(idle: float) -> Callable[[Callable[[Any, Array], Any]], Callable[[Any, Array], Any]]:
    """Lets `method(curve, lanes)` take arrays of any shape; what is not traced is padded to one of few sizes.

    Lanes that are `idle` ask for no work. They come first, where what is not solved stands in a sorted grid.
    """

    def over(method: Callable[[Any, Array], Any]):
        def wrapped(curve: Any, x: Array) -> Any:
            if x.size == 0:
                raise ValueError("At least one point is needed, got an empty array.")
            if not are_concrete(x, curve):
                return jax.tree.map(lambda y: y.reshape(x.shape), method(curve, x.ravel()))
            padding = num_padded(x.size) - x.size
            padded = np.pad(np.asarray(x).ravel(), (padding, 0), constant_values=idle) if padding else x.ravel()
            return _unpadded(method(curve, jnp.asarray(padded)), x.shape)

        return at_once(wrapped)

    return over


def _unpadded(tree: Any, shape: tuple[int, ...]) -> Any:
    return jax.tree.map(lambda y: jnp.asarray(np.asarray(y)[y.shape[0] - math.prod(shape) :].reshape(shape)), tree)


class Reading(eqx.Module):
    """At the roots: `1 + M(z)` and `Phi(z)`, with their derivatives, and `d log z / d log omega`, without."""

    one: Complex[Array, " lanes"]
    slope: Complex[Array, " lanes"]
    phi: Complex[Array, " lanes"]
    certified: Bool[Array, " lanes"]


@lane_reader
def read_potential(curve: Curve, z: Array, roots: Roots) -> Reading:
    point, phi = curve.potential_at(z, roots.omega, roots.unknowns, roots.certified)
    return Reading(one=point.one_plus(1), slope=point.dz, phi=phi, certified=roots.certified)


def _values(curve: Curve, z: Array, roots: Roots) -> tuple[Array, Array]:
    """`m` and `G`, NaN where they are not certified."""
    point = curve.point_at(z, roots.omega, roots.unknowns, roots.certified)
    scale = jnp.exp(-point.log_scale)
    G = point.one_plus(1) * reciprocal(jnp.where(roots.certified, z, 1) * scale) * scale
    nan = jnp.asarray(complex(np.nan, np.nan), z.dtype)
    return jnp.where(roots.certified, point.side * point.m, nan), jnp.where(roots.certified, G, nan)


_read_values = lane_reader(_values)


@over_lanes(idle=0.0)
def solution(curve: Curve, z: Array) -> Solution:
    roots = find_roots(curve, z)
    m, G = _read_values(curve, z, roots)
    return Solution(m, G, _as_results(roots.code), roots.num_steps)


_as_results = quickly(jax.jit)(as_results)


def on_axis(x: Array) -> Array:
    """Positive points as they are, others at 0, where nothing is solved: their values are known."""
    return jax.lax.complex(jnp.maximum(x, 0), jnp.zeros_like(x))


@quickly(jax.jit)
def _density_points(curve: Curve, x: Array) -> Array:
    """At 0 the density is infinite or 0, as the bulk reaches it or not."""
    near_zero = jnp.exp(curve.moments.log_mean - 0.2 * log_max(x.dtype))
    return on_axis(jnp.where(x == 0, near_zero, x))


@partial(lane_reader, idle=0.0)
def _read_density(curve: Curve, z: Array, roots: Roots, x: Array) -> Array:
    G = _values(curve, z, roots)[1]
    density = jnp.maximum(-G.imag, 0) / jnp.pi
    reached = (x == 0) & (density > 0)
    density = jnp.where(x == 0, jax.lax.stop_gradient(density), density)
    return jnp.where(x < 0, 0, jnp.where(reached, jnp.inf, density))


@over_lanes(idle=-1.0)
def density(curve: Curve, x: Array) -> Array:
    z = _density_points(curve, x)
    return _read_density(curve, z, find_roots(curve, z), x)


@quickly(jax.jit)
def _above_axis(x: Array, y: Array) -> Array:
    return jax.lax.complex(*jnp.broadcast_arrays(x, y))


def smoothed_density(curve: Curve, x: Array, y: Array) -> Array:
    return -solution(curve, _above_axis(x, y)).G.imag / jnp.pi


def _atom_at(atoms: Atoms, x: Array, next_to: Float[Array, ""]) -> tuple[Array, Array]:
    """The mass of the atom that `x` lies on, 0 if there is none, and a point just below it, or `x`.

    The curve is singular at an atom, and certified up to some distance from it, `next_to`.
    """
    eps = jnp.finfo(x.dtype).eps
    places = jnp.where(atoms.masses > 0, jnp.exp(jax.lax.stop_gradient(atoms.log_locations)), jnp.inf)
    nearest = jnp.argmin(jnp.abs(x[:, None] - places), axis=1)
    there = (atoms.masses[nearest] > 0) & (jnp.abs(x - places[nearest]) <= 8 * eps * places[nearest])
    below = jnp.where(there, places[nearest], 1) * (1 - next_to)
    return jnp.where(there, atoms.masses[nearest], 0), jnp.where(there, below, x)


@quickly(jax.jit)
def off_atoms(curve: Curve, atoms: Atoms, x: Array) -> Array:
    return on_axis(_atom_at(atoms, x, curve.next_to_atoms())[1])


@quickly(jax.jit)
def cdf_of(curve: Curve, atoms: Atoms, x: Array, reading: Reading) -> Array:
    mass, below = _atom_at(atoms, x, curve.next_to_atoms())
    up_to_atom = jnp.maximum(-reading.one.imag, 0) * jnp.where(mass > 0, 1 - below / jnp.where(mass > 0, x, 1), 0)
    cdf = 1 - (reading.phi.imag - up_to_atom) / jnp.pi + mass
    cdf = jnp.where(reading.certified, jnp.clip(cdf, 0, 1), jnp.nan)
    return jnp.where(x < 0, 0, jnp.where(x == 0, atoms.zero, cdf))


@over_lanes(idle=-1.0)
def cdf(curve: Curve, x: Array) -> Array:
    atoms = find_atoms(curve)
    z = off_atoms(curve, atoms, x)
    return cdf_of(curve, atoms, x, read_potential(curve, z, find_roots(curve, z)))


@quickly(jax.jit)
def _log_potential_of(x: Array, reading: Reading, at_zero: Array) -> Array:
    return jnp.where(x == 0, at_zero, jnp.where(reading.certified, reading.phi.real, jnp.nan))


@over_lanes(idle=0.0)
def log_potential(curve: Curve, x: Array) -> Array:
    z = jax.lax.complex(x, jnp.zeros_like(x))
    at_zero = jnp.where(find_atoms(curve).zero > 0, -jnp.inf, mean_log(curve))
    return _log_potential_of(x, read_potential(curve, z, find_roots(curve, z)), at_zero)
