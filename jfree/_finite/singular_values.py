"""Extreme singular values of matrices that are known by their products with vectors."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


class ExtremeSingularValues(eqx.Module):
    """The smallest and the largest singular values of a Jacobian, dimensionless and ascending, and how far off they are.

    A value is NaN where its bound exceeds the tolerance: the bound is the reason, and more steps the remedy.

    - `smallest`, `largest`: `smallest[0]` is the smallest of all, `largest[-1]` the largest.
    - `smallest_bound`, `largest_bound`: some singular value is no farther from the value than this.
    - `complete`: whether the whole space was searched, so that no singular value can be missed.
    - `num_steps`: how many were taken.
    """

    smallest: Float[Array, "*batch values"]
    largest: Float[Array, "*batch values"]
    smallest_bound: Float[Array, "*batch values"]
    largest_bound: Float[Array, "*batch values"]
    complete: Bool[Array, "*batch"]
    num_steps: Int[Array, "*batch"]

    def condition_number(self) -> Float[Array, "*batch"]:
        """The largest over the smallest singular value; NaN if one of them is, infinite if the smallest is 0."""
        return self.largest[..., -1] / self.smallest[..., 0]


class Products(NamedTuple):
    """A matrix `A` of `N_out x N_in`, by its products with vectors, and those of its transpose."""

    forward: Callable[[Float[Array, " N_in"]], Float[Array, " N_out"]]
    backward: Callable[[Float[Array, " N_out"]], Float[Array, " N_in"]]
    num_inputs: int
    num_outputs: int
    dtype: jnp.dtype

    def tall(self) -> "Products":
        """The matrix or its transpose, whichever has as many columns as there are singular values."""
        if self.num_inputs <= self.num_outputs:
            return self
        return Products(self.backward, self.forward, self.num_outputs, self.num_inputs, self.dtype)


class _Bidiagonal(NamedTuple):
    """`A V = U B` and `A^T U = V B^T + beside[-1] v e^T`; the rows of `left` and `right` are those of `U^T` and `V^T`.

    `B` has `diagonal`, and `beside` above it but for its last entry; `v` is orthogonal to all before.
    """

    left: Float[Array, "steps N_out"]
    right: Float[Array, "steps N_in"]
    diagonal: Float[Array, " steps"]
    beside: Float[Array, " steps"]
    v: Float[Array, " N_in"]
    count: Int[Array, ""]


class _Triples(NamedTuple):
    """Singular values of `B`, the smallest and then the largest, with their vectors in terms of `U` and `V`."""

    values: Float[Array, " triples"]
    left: Float[Array, "triples steps"]
    right: Float[Array, "triples steps"]
    residuals: Float[Array, " triples"]
    largest: Float[Array, ""]


_CHUNK = 32  # steps between two looks at what has converged: one costs about as much as some steps


def extremes_of(
    matrix: Products, key: PRNGKeyArray, num_values: int, num_steps: int, tolerance: Float[Array, ""]
) -> ExtremeSingularValues:
    """By Golub and Kahan's bidiagonalisation (1965) with full reorthogonalisation, from a random vector.

    It ends when all values have converged, or after `num_steps`. Where these are all there are it takes them all: it is
    complete. For unit vectors with `|A v - s u|^2 + |A^T u - s v|^2 = r^2`, `s` is a singular value of a matrix no
    farther than `r` from `A`; so `A` has one within `r` of `s` (Weyl).
    """
    matrix = matrix.tall()
    complete = num_steps == matrix.num_inputs
    found = _bidiagonalised(matrix, key, num_values, num_steps, tolerance, complete)
    triples = _triples(found, num_values)
    bounds = _bounds(matrix, found, triples)
    # Those of a part of `A` are no smaller, so what noise hides from below lies between 0 and the value.
    bounds = jnp.where(bounds <= tolerance * triples.values, bounds, jnp.maximum(bounds, triples.values))
    known = bounds <= _allowed(matrix, triples, tolerance)
    # Unless all that lie farther out are known, nobody knows the place of one in the order.
    smallest, largest = jnp.split(known, 2)
    known = jnp.concatenate([jnp.cumprod(smallest), jnp.cumprod(largest[::-1])[::-1]]) > 0
    values = jnp.where(known, triples.values, jnp.nan)
    halves = (*jnp.split(values, 2), *jnp.split(bounds, 2))
    return ExtremeSingularValues(*halves, jnp.asarray(complete), found.count)


def _bidiagonalised(
    matrix: Products, key: PRNGKeyArray, num_values: int, num_steps: int, tolerance: Array, complete: bool
) -> _Bidiagonal:
    start = _start(matrix, key, num_steps)

    def further(found: _Bidiagonal, to: Array | int) -> _Bidiagonal:
        return jax.lax.fori_loop(found.count, to, lambda _, found: _step(matrix, key, found), found)

    if complete:
        return further(start, num_steps)

    def unsettled(state: tuple[_Bidiagonal, Array]) -> Array:
        found, settled = state
        return (found.count < num_steps) & ~settled

    def chunk(state: tuple[_Bidiagonal, Array]) -> tuple[_Bidiagonal, Array]:
        found = further(state[0], jnp.minimum(state[0].count + _CHUNK, num_steps))
        triples = _triples(found, num_values)
        # Estimates of the residuals; half of what is allowed leaves room for rounding.
        return found, jnp.all(2 * triples.residuals <= _allowed(matrix, triples, tolerance))

    return jax.lax.while_loop(unsettled, chunk, (start, jnp.asarray(False)))[0]


def _start(matrix: Products, key: PRNGKeyArray, num_steps: int) -> _Bidiagonal:
    zeros = lambda *shape: jnp.zeros(shape, matrix.dtype)  # noqa: E731
    v = jax.random.normal(key, (matrix.num_inputs,), matrix.dtype)
    left, right = zeros(num_steps, matrix.num_outputs), zeros(num_steps, matrix.num_inputs)
    return _Bidiagonal(left, right, zeros(num_steps), zeros(num_steps), v / _norm(v), jnp.asarray(0))


def _step(matrix: Products, key: PRNGKeyArray, found: _Bidiagonal) -> _Bidiagonal:
    k = found.count
    keys = jax.random.split(jax.random.fold_in(key, k))
    right = found.right.at[k].set(found.v)
    u, alpha = _orthonormal(matrix.forward(found.v), found.left, keys[0])
    v, beta = _orthonormal(matrix.backward(u), right, keys[1])
    return _Bidiagonal(
        found.left.at[k].set(u), right, found.diagonal.at[k].set(alpha), found.beside.at[k].set(beta), v, k + 1
    )


def _orthonormal(vector: Array, basis: Float[Array, "steps N"], key: PRNGKeyArray) -> tuple[Array, Array]:
    """What `vector` has that is orthogonal to the basis, normalised, and its length.

    Where nothing is left, any direction will do, at length 0: a random one. Where only rounding is left, it is one. Both
    are far from orthogonal at first, therefore the passes behind (`matfree.decomp.bidiag` divides by 0 there).
    """
    rest = _projected(vector, basis)
    length = _norm(rest)
    lost = length <= jnp.finfo(vector.dtype).eps * _norm(vector)
    random = jax.random.normal(key, vector.shape, vector.dtype)
    direction = jnp.where(lost, random / _norm(random), rest / jnp.where(lost, 1, length))
    for _ in range(2):
        direction = _projected(direction, basis)
        direction = direction / _norm(direction)
    return direction, jnp.where(lost, 0, length)


def _projected(vector: Array, basis: Float[Array, "steps N"]) -> Array:
    return vector - (basis @ vector) @ basis


def _norm(vectors: Float[Array, "*batch N"]) -> Float[Array, "*batch"]:
    """Of vectors however short: those of a Jacobian that vanishes have squares below the smallest number."""
    size = jnp.max(jnp.abs(vectors), axis=-1, keepdims=True)
    size = jnp.where(size == 0, 1, size)
    return size[..., 0] * jnp.linalg.norm(vectors / size, axis=-1)


def _triples(found: _Bidiagonal, num_values: int) -> _Triples:
    """Places of steps not taken yet hold a number larger than `|B|`, which come first and are left out."""
    places = jnp.arange(found.diagonal.size)
    bound = 2 * (jnp.max(found.diagonal) + jnp.max(found.beside))
    diagonal = jnp.where(places < found.count, found.diagonal, jnp.where(bound == 0, 1, bound))
    beside = jnp.where(places < found.count - 1, found.beside, 0)[:-1]
    left, values, right = jnp.linalg.svd(jnp.diag(diagonal) + jnp.diag(beside, 1))
    each, first = jnp.arange(num_values), found.diagonal.size - found.count
    chosen = jnp.concatenate([places[-1] - each, first + each[::-1]])
    vectors = left[:, chosen].T, right[chosen]
    residuals = found.beside[found.count - 1] * jnp.abs(vectors[0][:, found.count - 1])
    return _Triples(values[chosen], *vectors, residuals, values[first])


def _bounds(matrix: Products, found: _Bidiagonal, triples: _Triples) -> Float[Array, " triples"]:
    """Residuals from the matrix itself, whatever happened on the way, and what they may owe to rounding."""
    u, v = triples.left @ found.left, triples.right @ found.right
    u, v = u / _norm(u)[:, None], v / _norm(v)[:, None]
    forward = jax.lax.map(matrix.forward, v) - triples.values[:, None] * u
    backward = jax.lax.map(matrix.backward, u) - triples.values[:, None] * v
    rounding = 4 * jnp.finfo(u.dtype).eps * triples.largest
    return jnp.hypot(_norm(forward), _norm(backward)) + rounding


def _allowed(matrix: Products, triples: _Triples, tolerance: Array) -> Float[Array, " triples"]:
    """`tolerance` times the value, but what cannot be told from 0 need not be known: `N` errors add up as `sqrt(N)`."""
    noise = 8 * matrix.num_outputs**0.5 * jnp.finfo(matrix.dtype).eps * triples.largest
    return jnp.maximum(tolerance * triples.values, noise)
