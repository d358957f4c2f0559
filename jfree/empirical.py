"""Finite random networks, to hold limiting spectra against."""

from collections.abc import Iterator
from itertools import islice
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ._misc import integer
from ._networks import AbstractNetwork, MLP
from ._resnet import ResNet
from ._sampling import integer_widths, sample_layers
from ._spectrum import Spectrum


def jacobian_eigenvalues(
    net: AbstractNetwork,
    key: PRNGKeyArray,
    width: int | None = None,
    num_samples: int = 1,
    side: Literal["input", "output"] = "input",
) -> Float[Array, "samples N"]:
    """Eigenvalues of `J^T J` or `J J^T` of sampled networks of finite width, at a random input (host).

    **Arguments:**

    - `net`: what to sample. The input is Gaussian, scaled such that `|x_0|^2 / N_0 = q0`.
    - `key`: of `jax.random`.
    - `width`: the largest width; the others keep their ratios to it, rounded. By default `net.widths` are the widths;
        a `ResNet` has none, and needs it.
    - `num_samples`: how many networks, all drawn independently.
    - `side`: `"input"` for the `N_0` eigenvalues of `J^T J`, `"output"` for the `N_L` of `J J^T`, zeros included.

    **Returns:** the squared singular values of `J = D_L W_L ... D_1 W_1`, ascending, one row per network.

    **Raises:** `ValueError` if `side` is neither, `num_samples` or `width` is not a positive integer, or a width is
    not an integer or rounds to 0.
    """
    if side not in ("input", "output"):
        raise ValueError(f"`side` must be 'input' or 'output', got {side!r}.")
    widths = _checked(net, width, num_samples)
    size = widths[0 if side == "input" else -1]
    jacobians = (_sample_jacobian(net, widths, k) for k in jax.random.split(key, num_samples))
    return jnp.stack([_squared_singular_values(jacobian, size) for jacobian in jacobians])


def fisher_eigenvalues(
    net: MLP, key: PRNGKeyArray, width: int | None = None, num_samples: int = 1
) -> Float[Array, "samples N"]:
    """Eigenvalues of `(1/N_L) J_theta J_theta^T` of sampled MLPs of finite width, at a random input (host).

    Arguments as for `jacobian_eigenvalues`; `theta` are the weights, without the biases.

    **Returns:** `N_L` eigenvalues per network, ascending, zeros included.

    **Raises:** `ValueError` as `jacobian_eigenvalues`, and if `net` is not an `MLP`.
    """
    if not isinstance(net, MLP):
        raise ValueError(f"`net` must be an MLP, got {type(net).__name__}: no other Fisher spectrum is available.")
    widths = _checked(net, width, num_samples)
    fishers = (_sample_fisher(net, widths, k) for k in jax.random.split(key, num_samples))
    return jnp.stack([jnp.maximum(jnp.linalg.eigvalsh(fisher), 0) for fisher in fishers])


def ks_distance(eigenvalues: Float[Array | np.ndarray, "..."], spectrum: Spectrum) -> Float[Array, ""]:
    """The Kolmogorov-Smirnov distance of pooled eigenvalues from a spectrum: `sup |F_empirical - cdf|` (host).

    Eigenvalues that rounding cannot tell from an atom count as lying on it, and those that it cannot tell from 0, below
    `N eps` times the largest, as one point. Places where the solver did not certify the cdf are left out.

    **Arguments:**

    - `eigenvalues`: of any shape; rows of length `N` are pooled.
    - `spectrum`: what to hold them against, of the same side.

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


def _checked(net: AbstractNetwork, width: int | None, num_samples: int) -> list[int]:
    integer("num_samples", num_samples)
    return integer_widths(net, width)


def _sample_jacobian(net: AbstractNetwork, widths: list[int], key: PRNGKeyArray) -> Array:
    match net:
        case MLP():
            return _sample_plain(net, widths, key)
        case ResNet():
            return _sample_residual(net, widths, key)
    raise ValueError(f"`net` must be an MLP or a ResNet, got {type(net).__name__}.")


def _sample_plain(net: MLP, widths: list[int], key: PRNGKeyArray) -> Array:
    jacobian = jnp.eye(widths[0], dtype=net.sigma_w.dtype)
    for _, weight, slopes in _forward(net, widths, key):
        jacobian = slopes[:, None] * (weight @ jacobian)
    return jacobian


def _sample_fisher(net: MLP, widths: list[int], key: PRNGKeyArray) -> Array:
    """`H_l = D_l (W_l H_{l-1} W_l^T + |x_{l-1}|^2 / N_L) D_l`."""
    fisher = jnp.zeros((widths[0], widths[0]), net.sigma_w.dtype)
    for x, weight, slopes in _forward(net, widths, key):
        share = jnp.sum(jnp.square(x)) / widths[-1]
        fisher = weight @ fisher @ weight.T + share * jnp.eye(slopes.size, dtype=fisher.dtype)
        fisher = slopes[:, None] * fisher * slopes
    return fisher


def _forward(net: MLP, widths: list[int], key: PRNGKeyArray) -> Iterator[tuple[Array, Array, Array]]:
    """Per layer: its input, its weights, and the slopes of its activation."""
    input_key, key = jax.random.split(key)
    x = jax.random.normal(input_key, widths[:1], net.sigma_w.dtype)
    x = x * jnp.sqrt(net.q0 * widths[0] / jnp.sum(jnp.square(x)))
    for activation, (weight, bias) in zip(net.activations, sample_layers(net, widths, key), strict=True):
        h = weight @ x + bias
        yield x, weight, activation.derivative(h)
        x = activation(h)


def _sample_residual(net: ResNet, widths: list[int], key: PRNGKeyArray) -> Array:
    """One forward pass, the Jacobian carried along; the entries of the input have the mean of the network's."""
    input_key, key = jax.random.split(key)
    x = jax.random.normal(input_key, widths[:1], net.sigma_w.dtype)
    x = (x - jnp.mean(x)) / jnp.std(x) * jnp.sqrt(net.q0 - jnp.square(net.mean0)) + net.mean0
    jacobian = jnp.eye(x.size, dtype=x.dtype)
    layers = zip(net.activations, sample_layers(net, widths, key), strict=True)
    for _ in range(net.depth):
        y, branch = x, jacobian
        for activation, (weight, bias) in islice(layers, net.layers_per_block):
            h = weight @ y + bias
            y, branch = activation(h), activation.derivative(h)[:, None] * (weight @ branch)
        x, jacobian = x + y, jacobian + branch
    return jacobian


def _squared_singular_values(jacobian: Array, size: int) -> Array:
    """Ascending, as many as `size`: zeros where there are more than singular values."""
    values = jnp.square(jnp.linalg.svd(jacobian, compute_uv=False))[::-1][-size:]
    return jnp.pad(values, (size - values.size, 0))
