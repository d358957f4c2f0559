"""Finite random networks, to hold limiting spectra against."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ._networks import AbstractNetwork, MLP
from ._resnet import ResNet
from ._spectrum import Spectrum
from ._weights import AbstractWeights, Gaussian, Orthogonal


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


def _checked(net: AbstractNetwork, width: int | None, num_samples: int) -> list[int]:
    if not _positive_integer(num_samples):
        raise ValueError(f"`num_samples` must be a positive integer, got {num_samples!r}.")
    if isinstance(net, MLP):
        return _integer_widths(net, width)
    if width is None or not _positive_integer(width):
        raise ValueError(f"`width` of a {type(net).__name__} must be a positive integer, got {width!r}.")
    return [int(width)] * 2


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


def _forward(net: MLP, widths: list[int], key: PRNGKeyArray):
    """Per layer: the mean square of its input, its weights, and the slopes of its activation."""
    sigma_w, sigma_b = (jnp.broadcast_to(s, net.depth) for s in (net.sigma_w, net.sigma_b))
    input_key, key = jax.random.split(key)
    x = jax.random.normal(input_key, widths[:1], sigma_w.dtype)
    x = x * jnp.sqrt(net.q0 * widths[0] / jnp.sum(jnp.square(x)))
    layers = zip(net.activations, net.weights, sigma_w, sigma_b, jax.random.split(key, net.depth), strict=True)
    for (activation, law, scale, bias_scale, layer_key), num_out in zip(layers, widths[1:], strict=True):
        weight_key, bias_key = jax.random.split(layer_key)
        weight = _sample_weight(law, (num_out, x.size), scale, weight_key)
        h = weight @ x + bias_scale * jax.random.normal(bias_key, (num_out,), sigma_w.dtype)
        yield jnp.mean(jnp.square(x)), weight, activation.derivative(h)
        x = activation(h)


def _sample_jacobian(net: AbstractNetwork, widths: list[int], key: PRNGKeyArray) -> Array:
    match net:
        case MLP():
            return _sample_plain(net, widths, key)
        case ResNet():
            return _sample_residual(net, widths[0], key)
    raise ValueError(f"`net` must be an MLP or a ResNet, got {type(net).__name__}.")


def _sample_plain(net: MLP, widths: list[int], key: PRNGKeyArray) -> Array:
    jacobian = jnp.eye(widths[0], dtype=net.sigma_w.dtype)
    for _, weight, slopes in _forward(net, widths, key):
        jacobian = slopes[:, None] * (weight @ jacobian)
    return jacobian


def _sample_fisher(net: MLP, widths: list[int], key: PRNGKeyArray) -> Array:
    """`H_l = D_l (W_l H_{l-1} W_l^T + |x_{l-1}|^2 / N_L) D_l`."""
    fisher = jnp.zeros((widths[0], widths[0]), net.sigma_w.dtype)
    for (square, weight, slopes), num_in in zip(_forward(net, widths, key), widths[:-1], strict=True):
        fisher = weight @ fisher @ weight.T + num_in / widths[-1] * square * jnp.eye(slopes.size, dtype=fisher.dtype)
        fisher = slopes[:, None] * fisher * slopes
    return fisher


def _sample_residual(net: ResNet, size: int, key: PRNGKeyArray) -> Array:
    """One forward pass, the Jacobian carried along; the entries of the input have the mean of the network's."""
    shape = (net.depth, net.layers_per_block)
    sigma_w, sigma_b = ((s[:, None] if s.ndim == 1 else s) for s in (net.sigma_w, net.sigma_b))
    sigma_w, sigma_b = jnp.broadcast_to(sigma_w, shape), jnp.broadcast_to(sigma_b, shape)
    input_key, *keys = jax.random.split(key, 1 + net.depth * net.layers_per_block)
    x = jax.random.normal(input_key, (size,), sigma_w.dtype)
    x = (x - jnp.mean(x)) / jnp.std(x) * jnp.sqrt(net.q0 - jnp.square(net.mean0)) + net.mean0
    jacobian = jnp.eye(size, dtype=sigma_w.dtype)
    for block in range(net.depth):
        y, branch = x, jacobian
        for layer in range(net.layers_per_block):
            index = block * net.layers_per_block + layer
            weight_key, bias_key = jax.random.split(keys[index])
            weight = _sample_weight(net.weights[block], (size, size), sigma_w[block, layer], weight_key)
            h = weight @ y + sigma_b[block, layer] * jax.random.normal(bias_key, (size,), sigma_w.dtype)
            activation = net.activations[index]
            y, branch = activation(h), activation.derivative(h)[:, None] * (weight @ branch)
        x, jacobian = x + y, jacobian + branch
    return jacobian


def _squared_singular_values(jacobian: Array, size: int) -> Array:
    """Ascending, as many as `size`: zeros where there are more than singular values."""
    values = jnp.square(jnp.linalg.svd(jacobian, compute_uv=False))[::-1][-size:]
    return jnp.pad(values, (size - values.size, 0))
