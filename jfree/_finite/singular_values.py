"""Extreme singular values of matrices that are known by their products with vectors."""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


class ExtremeSingularValues(eqx.Module):
    """The smallest and the largest singular value of a Jacobian, dimensionless, and how far off they may be.

    A value is NaN where its bound exceeds the tolerance: the bound is the reason, and more steps the remedy.

    - `smallest_bound`, `largest_bound`: of the errors, but for a chance of one in a million. But for rounding, the
        smallest is found too large, the largest too small.
    - `complete`: whether the whole space was searched, so that bounds are of rounding alone, and hold always.
    - `num_steps`: how many were taken.
    """

    smallest: Float[Array, "*batch"]
    largest: Float[Array, "*batch"]
    smallest_bound: Float[Array, "*batch"]
    largest_bound: Float[Array, "*batch"]
    complete: Bool[Array, "*batch"]
    num_steps: Int[Array, "*batch"]

    def condition_number(self) -> Float[Array, "*batch"]:
        """The largest over the smallest singular value; NaN if one of them is, infinite if the smallest is 0."""
        return self.largest / self.smallest


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


class _Bidiagonal(eqx.Module):
    """`A V = U B` and `A^T U = V B^T + beside[-1] v e^T`; the rows of `left` and `right` are those of `U^T` and `V^T`.

    `B` has `diagonal`, and `beside` above it but for its last entry; `v` is orthogonal to all before.
    """

    left: Float[Array, "steps N_out"]
    right: Float[Array, "steps N_in"]
    diagonal: Float[Array, " steps"]
    beside: Float[Array, " steps"]
    v: Float[Array, " N_in"]
    count: Int[Array, ""]


class _Extremes(NamedTuple):
    """The smallest and the largest singular value of `B`, with vectors in terms of `U` and `V`, and what `A` may have
    beyond.
    """

    values: Float[Array, "2"]
    left: Float[Array, "2 steps"]
    right: Float[Array, "2 steps"]
    beyond: Float[Array, "2"]


_CHUNK = 32  # steps between two looks at what has converged: one costs about as much as some steps
_CHANCE = 1e-6  # that a bound fails


def extremes_of(
    matrix: Products, key: PRNGKeyArray, num_steps: int, tolerance: Float[Array, ""]
) -> ExtremeSingularValues:
    """By Golub and Kahan's bidiagonalisation (1965) with full reorthogonalisation, from a random vector.

    It ends when both have converged, or after `num_steps`. Where these are all there are, it takes them all. Bounds add
    what may lie beyond (`_beyond`) to the residuals: for unit vectors with `|A v - s u|^2 + |A^T u - s v|^2 = r^2`, `s`
    is a singular value of a matrix no farther than `r` from `A`.
    """
    matrix = matrix.tall()
    complete = num_steps == matrix.num_inputs
    found = _bidiagonalised(matrix, key, num_steps, tolerance, complete)
    extremes = _extremes(found, matrix.num_inputs)
    bounds = _residuals(matrix, found, extremes) + (0 if complete else extremes.beyond)
    values = jnp.where(bounds <= _allowed(matrix, extremes, tolerance), extremes.values, jnp.nan)
    (smallest, largest), (smallest_bound, largest_bound) = values, bounds
    return ExtremeSingularValues(smallest, largest, smallest_bound, largest_bound, jnp.asarray(complete), found.count)


def _bidiagonalised(
    matrix: Products, key: PRNGKeyArray, num_steps: int, tolerance: Array, complete: bool
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
        extremes = _extremes(found, matrix.num_inputs)
        # Half of what is allowed leaves room for residuals.
        return found, jnp.all(2 * extremes.beyond <= _allowed(matrix, extremes, tolerance))

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

    Where nothing is left but rounding, which a second projection tells, any direction will do, at length 0: a random
    one (`matfree.decomp.bidiag` divides by 0 there). It is far from orthogonal at first, therefore two passes more.
    """
    rest = _projected(vector, basis)
    length = _norm(rest)
    direction = _projected(rest / jnp.where(length == 0, 1, length), basis)
    left = _norm(direction)
    lost = left < 0.5

    def found(_: PRNGKeyArray) -> Array:
        return direction / jnp.where(lost, 1, left)

    def drawn(key: PRNGKeyArray) -> Array:
        def again(_: Array, drawn: Array) -> Array:
            drawn = _projected(drawn, basis)
            return drawn / _norm(drawn)

        return jax.lax.fori_loop(0, 2, again, jax.random.normal(key, vector.shape, vector.dtype))

    return jax.lax.cond(lost, drawn, found, key), jnp.where(lost, 0, length)


def _projected(vector: Array, basis: Float[Array, "steps N"]) -> Array:
    return vector - (basis @ vector) @ basis


def _norm(vectors: Float[Array, "*batch N"]) -> Float[Array, "*batch"]:
    """Of vectors however short: those of a Jacobian that vanishes have squares below the smallest number."""
    size = jnp.max(jnp.abs(vectors), axis=-1, keepdims=True)
    size = jnp.where(size == 0, 1, size)
    return size[..., 0] * jnp.linalg.norm(vectors / size, axis=-1)


def _extremes(found: _Bidiagonal, num_inputs: int) -> _Extremes:
    """Places of steps not taken yet hold numbers larger than `|B|`, which come first and are left out."""
    places = jnp.arange(found.diagonal.size)
    bound = 2 * (jnp.max(found.diagonal) + jnp.max(found.beside))
    scale = jnp.where(bound == 0, 1, bound)
    taken = places < found.count
    diagonal = jnp.where(taken, found.diagonal / scale, 1)
    beside = jnp.where(taken, found.beside / scale, 0)
    inner = jnp.where(places < found.count - 1, beside, 0)[:-1]
    left, values, right = jnp.linalg.svd(jnp.diag(diagonal) + jnp.diag(inner, 1))
    first = found.diagonal.size - found.count
    chosen = jnp.stack([places[-1], first])
    eps = jnp.finfo(diagonal.dtype).eps
    # Where the recurrence ends, or only rounding is left, it is that of a matrix which differs by rounding.
    logs = jnp.log(jnp.maximum(diagonal, eps)) + jnp.log(jnp.maximum(beside, eps))
    length = jnp.sum(jnp.where(taken, logs, 0))
    beyond = _beyond(values, places >= first, chosen, length, num_inputs)
    return _Extremes(scale * values[chosen], left[:, chosen].T, right[chosen], scale * beyond)


def _beyond(values: Array, taken: Array, chosen: Array, length: Array, num_inputs: int) -> Float[Array, "2"]:
    """How far beyond the singular values of `B` those of `A` may lie, but for a chance.

    Lanczos' polynomial, `p(t) = prod(t - s_j^2)` over the singular values `s_j` of `B`, has
    `|p(A^T A) v| = prod(alpha_j beta_j)` at the first vector `v`: the product of what stands on and above the diagonal.
    Therefore `|p(s^2)| <= prod(alpha_j beta_j) / |c|` for any singular value `s` of `A` and the component `c` of `v`
    along its vector. Of a random `v` of length 1, `|c|` is below `chance sqrt(pi / 2N)` with that chance at most.
    Beyond all `s_j` the polynomial is monotone, and is inverted by bisection (van Dorsselaer, Hochstenbach and van der
    Vorst 2001).

    **Arguments:** `taken` marks the values that are those of `B`, `chosen` where its smallest and its largest stand,
    and `length` is the logarithm of the product.
    """
    least = length - math.log(_CHANCE * math.sqrt(math.pi / (2 * num_inputs)))
    ends, signs = values[chosen], jnp.asarray([-1, 1], values.dtype)
    tiny = jnp.log(jnp.finfo(values.dtype).tiny)

    def polynomial(distance: Array) -> Array:
        """Its logarithm at singular values `distance` beyond both ends."""
        differences = jnp.abs(ends[:, None] - values) + distance[:, None]
        sums = ends[:, None] + signs[:, None] * distance[:, None] + values
        each = jnp.log(differences) + jnp.log(jnp.maximum(sums, jnp.finfo(values.dtype).tiny))
        return jnp.sum(jnp.where(taken, each, 0), axis=1)

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        inside = polynomial(jnp.exp(middle)) <= least
        return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

    # Singular values lie above 0, and below what doubles the logarithm.
    largest = jnp.stack([jnp.log(jnp.maximum(ends[0], jnp.exp(tiny))), -tiny / 4])
    _, high = jax.lax.fori_loop(0, 40, halve, (jnp.full_like(ends, tiny), largest))
    return jnp.exp(high)


def _residuals(matrix: Products, found: _Bidiagonal, extremes: _Extremes) -> Float[Array, "2"]:
    """From the matrix itself, whatever happened on the way, and what they may owe to rounding."""
    u, v = extremes.left @ found.left, extremes.right @ found.right
    u, v = u / _norm(u)[:, None], v / _norm(v)[:, None]
    forward = jax.lax.map(matrix.forward, v) - extremes.values[:, None] * u
    backward = jax.lax.map(matrix.backward, u) - extremes.values[:, None] * v
    rounding = 4 * jnp.finfo(u.dtype).eps * extremes.values[1]
    return jnp.hypot(_norm(forward), _norm(backward)) + rounding


def _allowed(matrix: Products, extremes: _Extremes, tolerance: Array) -> Float[Array, "2"]:
    """`tolerance` times the value, but what cannot be told from 0 need not be known: `N` errors add up as `sqrt(N)`."""
    noise = 8 * matrix.num_outputs**0.5 * jnp.finfo(matrix.dtype).eps * extremes.values[1]
    return jnp.maximum(tolerance * extremes.values, noise)
