"""Spectra of Jacobians too wide to be written down, from products with vectors."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray
from matfree.decomp import tridiag_sym

from ._memory import check_memory
from ._misc import check, inexact_asarray, integer, is_finite, Reals


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

        One rises by the weight of a converged node there, and is linear elsewhere, through what lies below the other
        nodes and half their own weight: that is in error by less than the weight.
        """
        x = inexact_asarray(x)
        total = jnp.cumsum(self.weights, axis=1)
        left = total - jnp.where(self.converged, 1, 0.5) * self.weights
        right = jnp.where(self.converged, total, left)

        def one(nodes, left, right):
            heights = jnp.stack([left, right], axis=1).ravel()
            return jnp.interp(x, jnp.repeat(nodes, 2), heights, left=0, right=1)

        return jnp.mean(jax.vmap(one)(self.nodes, left, right), axis=0)

    def density(self, x: Reals, smoothing: ArrayLike) -> Float[Array, "..."]:
        """Smoothed with a Cauchy law of scale `smoothing`, as `Spectrum.density(x, smoothing)` is.

        **Raises:** `ValueError` if `smoothing` is not positive.
        """
        x = inexact_asarray(x)
        y = check(jnp.asarray(smoothing, x.dtype), lambda y: y > 0, "`smoothing` must be positive.")
        kernel = y / (jnp.square(x[..., None, None] - self.nodes) + jnp.square(y)) / jnp.pi
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
    check_memory("`num_steps` times `num_vectors`", 2 * num_steps * num_vectors * x.size * x.dtype.itemsize)
    vectors = jax.random.normal(key, (num_vectors, x.size), x.dtype)
    return LanczosDensity(*_quadrature(model, x, vectors, num_steps))


@eqx.filter_jit
def _quadrature(model: Callable, x: Array, vectors: Array, num_steps: int) -> tuple[Array, Array, Array]:
    _, push = jax.linearize(model, x)
    pull = jax.linear_transpose(push, x)
    tridiagonal = tridiag_sym(num_steps, reortho="full", custom_vjp=False)

    def one(vector):
        found = tridiagonal(lambda v: pull(push(v))[0], vector / jnp.linalg.norm(vector))
        nodes, basis = jnp.linalg.eigh(found.J_small)
        # The residual of a Ritz vector.
        residual = jnp.linalg.norm(found.residual) * jnp.abs(basis[-1])
        converged = residual <= jnp.finfo(x.dtype).eps ** 0.5 * jnp.abs(nodes[-1])
        return jnp.maximum(nodes, 0), jnp.square(basis[0]), converged

    return jax.vmap(one)(vectors)
