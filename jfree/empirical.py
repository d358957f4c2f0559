"""Finite random networks, to hold limiting spectra against."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ._networks import MLP
from ._spectrum import Spectrum
from ._weights import AbstractWeights, Gaussian, Orthogonal


def jacobian_eigenvalues(
    net: MLP,
    key: PRNGKeyArray,
    width: int | None = None,
    num_samples: int = 1,
    side: Literal["input", "output"] = "input",
) -> Float[Array, "samples N"]:
    """Eigenvalues of `J^T J` or `J J^T` of sampled networks of finite width, at a random input (host).

    **Arguments:**

    - `net`: what to sample. The input is Gaussian, scaled such that `|x_0|^2 / N_0 = q0`.
    - `key`: of `jax.random`.
    - `width`: the largest width; the others keep their ratios to it, rounded. By default `net.widths` are the widths.
    - `num_samples`: how many networks, all drawn independently.
    - `side`: `"input"` for the `N_0` eigenvalues of `J^T J`, `"output"` for the `N_L` of `J J^T`, zeros included.

    **Returns:** the squared singular values of `J = D_L W_L ... D_1 W_1`, ascending, one row per network.

    **Raises:** `ValueError` if `side` is neither, `num_samples` or `width` is not a positive integer, or a width is
    not an integer or rounds to 0.
    """
    if side not in ("input", "output"):
        raise ValueError(f"`side` must be 'input' or 'output', got {side!r}.")
    if not _positive_integer(num_samples):
        raise ValueError(f"`num_samples` must be a positive integer, got {num_samples!r}.")
    widths = _integer_widths(net, width)
    size = widths[0 if side == "input" else -1]
    jacobians = (_sample_jacobian(net, widths, k) for k in jax.random.split(key, num_samples))
    return jnp.stack([_squared_singular_values(jacobian, size) for jacobian in jacobians])


def ks_distance(eigenvalues: Float[Array | np.ndarray, "..."], spectrum: Spectrum) -> Float[Array, ""]:
    """The Kolmogorov-Smirnov distance of pooled eigenvalues from a spectrum: `sup |F_empirical - cdf|` (host).

    Eigenvalues that rounding cannot tell from an atom count as lying on it, and those that it cannot tell from 0, below
    `N eps` times the largest, as one point. Places where the solver did not certify the cdf are left out.

    **Arguments:** `eigenvalues`, of any shape; rows of length `N` are pooled.

    **Returns:** the distance, in `[0, 1]`; NaN if no place was certified.

    **Raises:** `ValueError` if there are no eigenvalues, or some are not finite.
    """
    rows = np.asarray(eigenvalues) + 0.0
    values = np.sort(rows.ravel())
    if not values.size or not np.all(np.isfinite(values)):
        raise ValueError("`eigenvalues` must be finite, and at least one.")
    rounding = float(np.finfo(values.dtype).eps) * (rows.shape or (1,))[-1]
    noise = rounding * np.abs(values).max()
    values = np.where(np.abs(values) <= noise, noise, values)
    jump = np.zeros_like(values)
    for place, mass in zip(*(np.asarray(a) for a in spectrum.atoms()), strict=True):
        if place > 0 and mass > 0:
            near = np.abs(values - place) <= max(1e-8, rounding) * place
            values, jump = np.where(near, place, values), np.where(near, mass, jump)
    above = np.asarray(spectrum.cdf(values))
    below = np.where(values == noise, 0, above - jump)
    distances = [
        np.abs(above - np.searchsorted(values, values, "right") / values.size),
        np.abs(below - np.searchsorted(values, values, "left") / values.size),
    ]
    return jnp.asarray(np.nanmax(distances) if np.any(np.isfinite(above)) else np.nan)


def _positive_integer(n: object) -> bool:
    return isinstance(n, int | np.integer) and not isinstance(n, bool) and int(n) > 0


def _integer_widths(net: MLP, width: int | None) -> list[int]:
    widths = np.asarray(net.widths, np.float64)
    if width is not None:
        if not _positive_integer(width):
            raise ValueError(f"`width` must be a positive integer, got {width!r}.")
        widths = widths * (width / widths.max())
    rounded = np.round(widths)
    if width is None and not np.allclose(widths, rounded, rtol=1e-6, atol=0):
        raise ValueError("`widths` of `net` must be integers to be sampled; or give the largest as `width`.")
    if rounded.min() < 1:
        raise ValueError("`width` is too small: a layer would have no units.")
    return [int(n) for n in rounded]


def _sample_weight(law: AbstractWeights, shape: tuple[int, int], sigma_w: Array, key: PRNGKeyArray) -> Array:
    num_out, num_in = shape
    normal = jax.random.normal(key, shape, sigma_w.dtype)
    match law:
        case Gaussian():
            return normal * (sigma_w / num_in**0.5)
        case Orthogonal():
            tall = normal if num_out >= num_in else normal.T
            q, r = jnp.linalg.qr(tall)
            q = q * jnp.where(jnp.diagonal(r) < 0, -1, 1)  # without these signs Q would not be Haar distributed
            return (q if num_out >= num_in else q.T) * (sigma_w * max(1, num_out / num_in) ** 0.5)
    raise ValueError(f"`weights` of type {type(law).__name__} cannot be sampled.")


def _sample_jacobian(net: MLP, widths: list[int], key: PRNGKeyArray) -> Array:
    """One forward pass, the Jacobian carried along."""
    dtype = jnp.result_type(net.sigma_w, net.sigma_b, net.q0, net.widths)
    sigma_w, sigma_b = (jnp.broadcast_to(s, net.depth).astype(dtype) for s in (net.sigma_w, net.sigma_b))
    input_key, key = jax.random.split(key)
    x = jax.random.normal(input_key, widths[:1], dtype)
    x = x * jnp.sqrt(net.q0 * widths[0] / jnp.sum(jnp.square(x)))
    jacobian = jnp.eye(widths[0], dtype=dtype)
    layers = zip(net.activations, net.weights, sigma_w, sigma_b, jax.random.split(key, net.depth), strict=True)
    for (activation, law, scale, bias_scale, layer_key), num_out in zip(layers, widths[1:], strict=True):
        weight_key, bias_key = jax.random.split(layer_key)
        weight = _sample_weight(law, (num_out, x.size), scale, weight_key)
        h = weight @ x + bias_scale * jax.random.normal(bias_key, (num_out,), dtype)
        jacobian = activation.derivative(h)[:, None] * (weight @ jacobian)
        x = activation(h)
    return jacobian


def _squared_singular_values(jacobian: Array, size: int) -> Array:
    """Ascending, as many as `size`: zeros where there are more than singular values."""
    values = jnp.square(jnp.linalg.svd(jacobian, compute_uv=False))[::-1][-size:]
    return jnp.pad(values, (size - values.size, 0))
