"""Spectra of Jacobians too wide to be written down, from products with vectors."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray
from matfree.decomp import hessenberg

from .._numerics.arrays import inexact_asarray, Reals
from .._numerics.checks import check, integer, is_finite
from .._numerics.memory import check_memory


class LanczosDensity(eqx.Module):
    """Eigenvalues of `J^T J` as Gauss quadratures, one per random vector: `sum_k weights_k f(nodes_k)` is
    `v^T f(J^T J) v`, of which the mean over `v` is `tr f(J^T J) / N`.

    A node that has `converged` is an eigenvalue itself, such as an atom; the others stand for what lies around them.
    """

    nodes: Float[Array, "vectors nodes"]
    weights: Float[Array, "vectors nodes"]
    converged: Bool[Array, "vectors nodes"]

    def cdf(self, x: Reals) -> Float[Array, "..."]:
        """The mean over the vectors of their distribution functions.

        Each rises by the weight of a converged node there, and is linear elsewhere, through what lies below the other
        nodes and half their own weight, from the first node to the last.

        **Raises:** `ValueError` if some `x` is not finite.
        """
        x = check(inexact_asarray(x), is_finite, "`x` must be finite.")
        total = jnp.cumsum(self.weights, axis=1)
        left = total - jnp.where(self.converged, 1, 0.5) * self.weights
        right = jnp.where(self.converged, total, left)

        def one(nodes: Array, left: Array, right: Array) -> Array:
            heights = jnp.stack([left, right], axis=1).ravel()
            return jnp.where(x >= nodes[-1], 1, jnp.interp(x, jnp.repeat(nodes, 2), heights, left=0))

        return jnp.mean(jax.vmap(one)(self.nodes, left, right), axis=0)

    def density(self, x: Reals, smoothing: ArrayLike) -> Float[Array, "..."]:
        """Smoothed with a Cauchy law of scale `smoothing`, as `Spectrum.density(x, smoothing)` is.

        **Raises:** `ValueError` if some `x` is not finite, or `smoothing` is not positive.
        """
        x = check(inexact_asarray(x), is_finite, "`x` must be finite.")
        y = check(jnp.asarray(smoothing, x.dtype), lambda y: (y > 0) & (y < np.inf), "`smoothing` must be positive.")
        x, y = jnp.broadcast_arrays(x, y)
        x, y = x[..., None, None], y[..., None, None]
        kernel = y / (jnp.square(x - self.nodes) + jnp.square(y)) / jnp.pi
        return jnp.mean(jnp.sum(self.weights * kernel, axis=-1), axis=-1)


def jacobian_density_lanczos(
    model: Callable[[Float[Array, " N_0"]], Float[Array, " N_L"]],
    x: Float[ArrayLike, " N_0"],
    key: PRNGKeyArray,
    num_steps: int = 128,
    num_vectors: int = 4,
) -> LanczosDensity:
    """Spectral density of `J^T J` of a model at one input, by stochastic Lanczos quadrature.

    Nothing of the size of `J` is formed: a step costs one JVP and one VJP of the model for every vector, all vectors at
    once. Moments up to order `2 num_steps - 1` are those of the vectors, whose scatter is `O(1 / sqrt(N_0))` (Ubaru,
    Chen and Saad 2017). Eigenvalues far below `1 / num_steps^2` times the largest are not told apart.

    **Arguments:**

    - `model`: any differentiable function of a vector, such as an `eqx.nn.MLP`.
    - `x`: the input.
    - `key`: of `jax.random`, for the Gaussian vectors.
    - `num_steps`: of Lanczos' method, with full reorthogonalisation; at most `N_0`.
    - `num_vectors`: over how many it is averaged.

    **Returns:** nodes, dimensionless squared singular values, and their weights, with `cdf(x)` and
    `density(x, smoothing)`.

    **Raises:** `ValueError` naming the argument, if `x` is not a finite vector, `num_steps` or `num_vectors` not a
    positive integer, or `num_steps` larger than `N_0`; `MemoryError` if the vectors would not fit.
    """
    x = check(inexact_asarray(x), is_finite, "`x` must be finite.")
    if x.ndim != 1:
        raise ValueError(f"`x` must be a vector, got shape {x.shape}.")
    num_steps, num_vectors = integer("num_steps", num_steps), integer("num_vectors", num_vectors)
    if num_steps > x.size:
        raise ValueError(f"`num_steps` must be at most {x.size}, the size of `x`, got {num_steps}.")
    num_numbers = num_vectors * num_steps * (2 * x.size + 6 * num_steps)
    check_memory("`num_steps` times `num_vectors`", num_numbers * x.dtype.itemsize)
    vectors = jax.random.normal(key, (num_vectors, x.size), x.dtype)
    return LanczosDensity(*_quadrature(model, x, vectors, num_steps))


@eqx.filter_jit
def _quadrature(
    model: Callable[[Array], Array], x: Array, vectors: Array, num_steps: int
) -> tuple[Array, Array, Array]:
    _, push = jax.linearize(model, x)
    pull = jax.linear_transpose(push, x)
    eps = float(jnp.finfo(x.dtype).eps)
    decompose = hessenberg(num_steps, reortho="full", custom_vjp=False)

    def one(vector: Array) -> tuple[Array, Array, Array]:
        found = decompose(lambda v: pull(push(v))[0], vector / jnp.linalg.norm(vector))
        assert isinstance(found.J_small, Array)
        diagonal = jnp.diagonal(found.J_small)
        beside = jnp.append(jnp.diagonal(found.J_small, -1), jnp.linalg.norm(found.residual))
        # The vectors end where the next one vanishes: what the method finds after that is rounding.
        size = jax.lax.cummax(jnp.where(jnp.isfinite(diagonal), jnp.abs(diagonal), 0))
        more = jnp.cumprod(beside > eps**0.5 * size) > 0
        diagonal = jnp.where(jnp.append(True, more[:-1]), diagonal, 0)
        beside = jnp.where(more, beside, 0)
        tridiagonal = jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
        nodes, basis = jnp.linalg.eigh(tridiagonal)
        converged = beside[-1] * jnp.abs(basis[-1]) <= eps**0.5 * nodes[-1]  # the residual of a Ritz vector
        nodes = jnp.where(nodes <= x.size * eps * nodes[-1], 0, nodes)
        return nodes, jnp.square(basis[0]), converged

    return jax.vmap(one)(vectors)
