"""Finite random networks, to hold limiting spectra against."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ._activations import AbstractActivation
from ._lanczos import jacobian_density_lanczos as jacobian_density_lanczos, LanczosDensity as LanczosDensity
from ._memory import check_memory
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
    not an integer or rounds to 0; `MemoryError` if the matrices would not fit.
    """
    if side not in ("input", "output"):
        raise ValueError(f"`side` must be 'input' or 'output', got {side!r}.")
    if not isinstance(net, MLP | ResNet):
        raise ValueError(f"`net` must be an MLP or a ResNet to be sampled, got {type(net).__name__}.")
    widths = _checked(net, width, num_samples)
    size = widths[0 if side == "input" else -1]
    num_numbers = 6 * max(widths) ** 2
    check_memory("`width`", num_numbers * net.sigma_w.dtype.itemsize)

    def eigenvalues(keys: PRNGKeyArray) -> Array:
        return _squared_singular_values(_sample_jacobians(net, widths, keys), size)

    return _in_batches(eigenvalues, key, num_samples, num_numbers)


def fisher_eigenvalues(
    net: MLP, key: PRNGKeyArray, width: int | None = None, num_samples: int = 1
) -> Float[Array, "samples N"]:
    """Eigenvalues of `(1/N_L) J_theta J_theta^T` of sampled MLPs of finite width, at a random input (host).

    Arguments as for `jacobian_eigenvalues`; `theta` are the weights, without the biases.

    **Returns:** `N_L` eigenvalues per network, ascending, zeros included.

    **Raises:** `ValueError` as `jacobian_eigenvalues`, and if `net` is not an `MLP`.
    """
    return full_fisher_eigenvalues(net, key, 1, width, num_samples)


def full_fisher_eigenvalues(
    net: MLP,
    key: PRNGKeyArray,
    num_inputs: int,
    width: int | None = None,
    num_samples: int = 1,
    block_diagonal: bool = False,
) -> Float[Array, "samples N"]:
    """Eigenvalues of the dual Fisher information of several inputs, `(1 / (N_L n)) J_theta J_theta^T` (host).

    They are those of the Fisher information of the mean loss over `n` inputs, but for zeros. The matrix has a block of
    `N_L x N_L` for every pair of inputs; those of one input with itself, times `n`, are the dual Fisher informations
    per sample, which `jfree.fisher_spectrum` gives the limit of (Hayase and Karakida 2021, Section 4.3).

    **Arguments:** as for `jacobian_eigenvalues`, and

    - `num_inputs`: `n`, drawn independently, all with `|x_0|^2 / N_0 = q0`.
    - `block_diagonal`: leaves out the blocks of different inputs.

    **Returns:** `n N_L` eigenvalues per network, ascending, zeros included.

    **Raises:** `ValueError` as `jacobian_eigenvalues`, if `num_inputs` is not a positive integer, and if `net` is not
    an `MLP`; `MemoryError` if the matrix would not fit.
    """
    if not isinstance(net, MLP):
        raise ValueError(f"`net` must be an MLP, got {type(net).__name__}: no other Fisher spectrum is available.")
    widths, n = _checked(net, width, num_samples), integer("num_inputs", num_inputs)
    num_numbers = 4 * (n if block_diagonal else n**2) * max(widths) ** 2
    check_memory("`num_inputs` or `width`", num_numbers * net.sigma_w.dtype.itemsize)
    first, second = (np.arange(n), np.arange(n)) if block_diagonal else np.triu_indices(n)

    def eigenvalues(keys: PRNGKeyArray) -> Array:
        blocks = _sample_fishers(net, widths, keys, n, first, second) / n
        if block_diagonal:
            return jnp.sort(jnp.linalg.eigvalsh(blocks).reshape(keys.shape[0], -1), axis=1)
        return jnp.linalg.eigvalsh(_assembled(blocks, n, first, second))

    return jnp.maximum(_in_batches(eigenvalues, key, num_samples, num_numbers), 0)


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
    return jnp.asarray(_distance(*_limit_at(eigenvalues, spectrum)))


def _limit_at(eigenvalues: Array | np.ndarray, spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The eigenvalues, on atoms where they cannot be told from them, and the limit's cdf at and just below each."""
    values = np.asarray(eigenvalues) + 0.0
    if not values.size or not np.all(np.isfinite(values)):
        raise ValueError("`eigenvalues` must be finite, and at least one.")
    rounding = float(np.finfo(values.dtype).eps) * (values.shape or (1,))[-1]
    noise = rounding * np.abs(values).max()
    values = np.where(np.abs(values) <= noise, noise, values)
    jump = np.zeros_like(values)
    for place, mass in zip(*(np.asarray(a) for a in spectrum.atoms()), strict=True):
        if place > 0 and mass > 0:
            near = np.abs(values - place) <= max(1e-8, rounding) * place
            values, jump = np.where(near, place, values), np.where(near, mass, jump)
    at = np.asarray(spectrum.cdf(values))
    return values, at, np.where(values == noise, 0, at - jump)


def _distance(values: np.ndarray, at: np.ndarray, below: np.ndarray) -> float:
    """The largest from the empirical distribution function of all values."""
    values, at, below = values.ravel(), at.ravel(), below.ravel()
    ranked = np.sort(values)
    distances = [
        np.abs(at - np.searchsorted(ranked, values, "right") / values.size),
        np.abs(below - np.searchsorted(ranked, values, "left") / values.size),
    ]
    return np.nanmax(distances) if np.any(np.isfinite(at)) else np.nan


class Convergence(eqx.Module):
    """How far single samples lie from a limit, on average, and all of one width pooled; `slope` is the exponent of the
    width that the averages grow with.
    """

    widths: Int[Array, " widths"]
    single: Float[Array, " widths"]
    pooled: Float[Array, " widths"]
    slope: Float[Array, ""]


def convergence(
    sample: Callable[[PRNGKeyArray, int, int], Float[Array, "samples N"]],
    spectrum: Spectrum,
    key: PRNGKeyArray,
    widths: Sequence[int] = (50, 100, 200, 400),
    num_samples: int = 16,
) -> Convergence:
    """Kolmogorov-Smirnov distances of samples from a spectrum as the width grows (host).

    Eigenvalues of one matrix are rigid, `O(1/N)`; but each network's own variances `q_l` fluctuate by `O(1/sqrt(N))`,
    and shift its spectrum. Pooling averages the shifts out.

    **Arguments:**

    - `sample`: of a key, a width and a number of samples, such as `functools.partial(jacobian_eigenvalues, net)`.
    - `spectrum`: what to hold the samples against.
    - `key`: of `jax.random`.
    - `widths`: two at least, of the widest layer.
    - `num_samples`: for every width.

    **Returns:** distances, in `[0, 1]`, and the slope of `log distance` over `log width`.

    The slope is NaN where fewer than two distances are positive.

    **Raises:** `ValueError` if there are fewer than two widths, one is not a positive integer, or `sample` does not
    return one row per sample; and as `sample` does.
    """
    widths = [integer("widths", width) for width in widths]
    if len(set(widths)) < 2:
        raise ValueError(f"`widths` must be two different ones at least, got {widths!r}.")
    single, pooled = [], []
    for width, own_key in zip(widths, jax.random.split(key, len(widths)), strict=True):
        rows = sample(own_key, width, num_samples)
        if rows.ndim != 2:
            raise ValueError(f"`sample` must return one row of eigenvalues per sample, got shape {rows.shape}.")
        limit = _limit_at(rows, spectrum)
        single.append(np.mean([_distance(*row) for row in zip(*limit, strict=True)]))
        pooled.append(_distance(*limit))
    known = np.greater(single, 0)
    slope = np.nan
    if known.sum() > 1:
        slope, _ = np.polyfit(np.log(widths)[known], np.log(np.asarray(single)[known]), 1)
    return Convergence(*(jnp.asarray(x) for x in (widths, single, pooled, slope)))


def _checked(net: MLP | ResNet, width: int | None, num_samples: int) -> list[int]:
    integer("num_samples", num_samples)
    return integer_widths(net, width)


_BATCH = 2**25  # numbers that samples worked on at once take; more do not make it faster


def _in_batches(
    eigenvalues: Callable[[PRNGKeyArray], Array], key: PRNGKeyArray, num_samples: int, num_numbers: int
) -> Array:
    """`eigenvalues` of so many samples, of `num_numbers` each, as many at once as is worth it."""
    keys, size = jax.random.split(key, num_samples), max(1, _BATCH // num_numbers)
    return jnp.concatenate([eigenvalues(keys[k : k + size]) for k in range(0, num_samples, size)])


def _sample_jacobians(net: MLP | ResNet, widths: list[int], keys: PRNGKeyArray) -> Float[Array, "samples N_L N_0"]:
    return _sample_plain(net, widths, keys) if isinstance(net, MLP) else _sample_residual(net, widths, keys)


def _sample_plain(net: MLP, widths: list[int], keys: PRNGKeyArray) -> Array:
    jacobians = jnp.broadcast_to(jnp.eye(widths[0], dtype=net.sigma_w.dtype), (keys.shape[0], widths[0], widths[0]))
    for _, weights, slopes in _forward(net, widths, keys, 1):
        jacobians = _times_layer(weights, slopes[:, 0], jacobians)
    return jacobians


def _sample_fishers(
    net: MLP, widths: list[int], keys: PRNGKeyArray, num_inputs: int, first: np.ndarray, second: np.ndarray
) -> Float[Array, "samples pairs N_L N_L"]:
    """Blocks `(1 / N_L) J_theta(x) J_theta(y)^T` of pairs of inputs."""
    shape = (keys.shape[0], first.size, widths[0], widths[0])
    blocks = jnp.zeros(shape, net.sigma_w.dtype)
    for x, weights, slopes in _forward(net, widths, keys, num_inputs):
        share = jnp.sum(x[:, first] * x[:, second], axis=-1) / widths[-1]
        blocks = _next_blocks(weights, slopes[:, first], slopes[:, second], share, blocks)
    return blocks


@jax.jit
def _next_blocks(weights: Array, left: Array, right: Array, share: Array, blocks: Array) -> Array:
    """`D_l(x) (W_l H_{l-1}(x, y) W_l^T + x_{l-1} . y_{l-1} / N_L) D_l(y)`."""
    eye = jnp.eye(weights.shape[1], dtype=weights.dtype)
    blocks = weights[:, None] @ blocks @ jnp.swapaxes(weights, 1, 2)[:, None] + share[..., None, None] * eye
    return left[..., :, None] * blocks * right[..., None, :]


def _assembled(blocks: Array, num_inputs: int, first: np.ndarray, second: np.ndarray) -> Float[Array, "samples N N"]:
    """The symmetric matrix of which `blocks` are those on and above the diagonal."""
    samples, _, size, _ = blocks.shape
    matrix = jnp.zeros((samples, num_inputs, size, num_inputs, size), blocks.dtype)
    matrix = matrix.at[:, first, :, second, :].set(jnp.moveaxis(blocks, 1, 0))
    matrix = matrix.at[:, second, :, first, :].set(jnp.swapaxes(jnp.moveaxis(blocks, 1, 0), 2, 3))
    return matrix.reshape(samples, num_inputs * size, num_inputs * size)


def _forward(net: MLP, widths: list[int], keys: PRNGKeyArray, num_inputs: int) -> Iterator[tuple[Array, Array, Array]]:
    """Per layer: its inputs, its weights, and the slopes of its activation."""
    input_keys, keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    x = _random_inputs(net, num_inputs, widths[0], input_keys)
    for activation, (weights, biases) in zip(net.activations, sample_layers(net, widths, keys), strict=True):
        after, slopes = _applied(activation, weights, biases, x)
        yield x, weights, slopes
        x = after


@eqx.filter_jit
def _random_inputs(
    net: MLP | ResNet, num_inputs: int, size: int, keys: PRNGKeyArray
) -> Float[Array, "samples inputs N_0"]:
    """Gaussian, then scaled: their entries have the mean square and the mean that the network's input has."""
    x = jax.vmap(lambda key: jax.random.normal(key, (num_inputs, size), net.sigma_w.dtype))(keys)
    if isinstance(net, MLP):
        return x * jnp.sqrt(net.q0 / jnp.mean(jnp.square(x), axis=-1, keepdims=True))
    x = (x - jnp.mean(x, axis=-1, keepdims=True)) / jnp.std(x, axis=-1, keepdims=True)
    return x * jnp.sqrt(net.q0 - jnp.square(net.mean0)) + net.mean0


@eqx.filter_jit
def _applied(activation: AbstractActivation, weights: Array, biases: Array, x: Array) -> tuple[Array, Array]:
    """Outputs and slopes of a layer, for inputs of shape `(samples, inputs, N)`."""
    h = x @ jnp.swapaxes(weights, 1, 2) + biases[:, None]
    return activation(h), activation.derivative(h)


@jax.jit
def _times_layer(weights: Array, slopes: Array, jacobians: Array) -> Array:
    return slopes[..., None] * (weights @ jacobians)


def _sample_residual(net: ResNet, widths: list[int], keys: PRNGKeyArray) -> Array:
    """One forward pass, the Jacobian carried along."""
    input_keys, keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    x = _random_inputs(net, 1, widths[0], input_keys)
    jacobians = jnp.broadcast_to(jnp.eye(widths[0], dtype=x.dtype), (keys.shape[0], widths[0], widths[0]))
    layers = zip(net.activations, sample_layers(net, widths, keys), strict=True)
    for _ in range(net.depth):
        y, branch = x, jacobians
        for activation, (weights, biases) in islice(layers, net.layers_per_block):
            y, slopes = _applied(activation, weights, biases, y)
            branch = _times_layer(weights, slopes[:, 0], branch)
        x, jacobians = x + y, jacobians + branch
    return jacobians


def _squared_singular_values(jacobians: Array, size: int) -> Array:
    """Ascending, as many as `size`: zeros where there are more than singular values."""
    values = jnp.square(jnp.linalg.svd(jacobians, compute_uv=False))[:, ::-1][:, -size:]
    return jnp.pad(values, ((0, 0), (size - values.shape[1], 0)))
