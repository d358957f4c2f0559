"""Finite random networks, to hold limiting spectra against."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast, Literal, NamedTuple, overload, TYPE_CHECKING, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from ._finite.lanczos import jacobian_density_lanczos as jacobian_density_lanczos, LanczosDensity as LanczosDensity
from ._finite.sampling import few_threads, integer_widths, laws_of_layers, scale_of, with_all_scales, with_positions
from ._finite.singular_values import ExtremeSingularValues as ExtremeSingularValues
from ._interop.jacobians import extreme_singular_values as extreme_singular_values, singular_values_of_model
from ._layers.dense import Dense, draw
from ._layers.layer import AbstractLayer
from ._layers.weights import AbstractWeights
from ._networks.abstract import AbstractNetwork
from ._networks.mlp import MLP
from ._networks.network import Network
from ._networks.resnet import ResNet
from ._networks.stacked import check_fisher, unrolled
from ._numerics.arrays import Keys
from ._numerics.checks import integer
from ._numerics.compile import quickly
from ._numerics.memory import check_memory
from ._spectrum.spectrum import Spectrum
from .activations._base import AbstractActivation

if TYPE_CHECKING:
    import torch


@overload
def jacobian_eigenvalues(
    net: AbstractNetwork,
    key: PRNGKeyArray,
    width: int | None = None,
    num_samples: int = 1,
    side: Literal["input", "output"] = "input",
) -> Float[Array, "samples N"]: ...


@overload
def jacobian_eigenvalues(
    model: "Callable[..., Any] | torch.nn.Module",
    x: "ArrayLike | torch.Tensor",
    /,
    *,
    side: Literal["input", "output"] = "input",
    batched: bool | None = None,
) -> Float[Array, "examples N"]: ...


def jacobian_eigenvalues(
    net: "AbstractNetwork | Callable[..., Any] | torch.nn.Module",
    key: "PRNGKeyArray | ArrayLike | torch.Tensor",
    width: int | None = None,
    num_samples: int = 1,
    side: Literal["input", "output"] = "input",
    batched: bool | None = None,
) -> Float[Array, "rows N"]:
    """Eigenvalues of `J^T J` or `J J^T` of sampled networks of finite width, or of a model, at an input (host).

    `jacobian_eigenvalues(net, key)` samples networks, and takes each at a random input.
    `jacobian_eigenvalues(model, x)` takes a model as it is, at examples: any differentiable function of one example, or
    a PyTorch module whose steps `jfree.from_torch` knows. Its Jacobian is formed, in forward or in reverse mode,
    whichever has fewer directions; where it does not fit, `jacobian_density_lanczos` and `extreme_singular_values` do
    without.

    **Arguments:**

    - `net`: what to sample. The input is Gaussian, scaled such that `|x_0|^2 / N_0 = q0`. Or the `model`.
    - `key`: of `jax.random`. Or `x`: one example of any shape, or several along a first axis.
    - `width`: the largest width; the others keep their ratios to it, rounded. By default `net.widths` are the widths;
        a `ResNet` has none, and needs it. Of convolutions without positions they are channels.
    - `num_samples`: how many networks, all drawn independently.
    - `side`: `"input"` for the `N_0` eigenvalues of `J^T J`, `"output"` for the `N_L` of `J J^T`, zeros included.
    - `batched`: of a model, whether `x` has several examples. By default it has if the model takes only one of them.

    **Returns:** the squared singular values of `J = D_L W_L ... D_1 W_1`, or of the model's Jacobian, dimensionless and
    ascending, one row per network or example.

    **Raises:** `ValueError` if `side` is neither, `num_samples` or `width` is not a positive integer, or a width is
    not an integer or rounds to 0; if a model does not take `x`, takes both `x` and parts of it while `batched` is not
    given, or does not return one array of real numbers; `MemoryError` if the matrices would not fit.
    """
    if side not in ("input", "output"):
        raise ValueError(f"`side` must be 'input' or 'output', got {side!r}.")
    if isinstance(net, AbstractNetwork):
        if batched is not None:
            raise ValueError("`batched` is for examples of a model: a network is sampled.")
        return _eigenvalues_of_samples(net, cast(Array, key), width, num_samples, side)
    if width is not None or num_samples != 1:
        raise ValueError("`width` and `num_samples` are for networks that are sampled: a model is taken as it is.")
    values, *sizes = singular_values_of_model(net, key, batched)
    return _squared(values, sizes[0 if side == "input" else 1])


def _eigenvalues_of_samples(
    net: AbstractNetwork, key: PRNGKeyArray, width: int | None, num_samples: int, side: Literal["input", "output"]
) -> Float[Array, "samples N"]:
    net, width = with_positions(net, width)
    widths = _checked(net, width, num_samples)
    assert isinstance(net, MLP | ResNet | Network)
    size = widths[0 if side == "input" else -1]
    num_numbers = 6 * max(widths) ** 2
    check_memory("`width`", num_numbers * net.q0.dtype.itemsize)

    def eigenvalues(keys: Keys) -> Array:
        if isinstance(net, Network):
            return _squared_singular_values(_jacobians_of_layers(net, widths, keys), size)
        return _jacobian_eigenvalues(with_all_scales(net), tuple(widths), size, keys)

    return _in_batches(eigenvalues, key, num_samples, num_numbers, max(widths))


def fisher_eigenvalues(
    net: MLP | Network, key: PRNGKeyArray, width: int | None = None, num_samples: int = 1
) -> Float[Array, "samples N"]:
    """Eigenvalues of `(1/N_L) J_theta J_theta^T` of sampled networks of finite width, at a random input (host).

    Arguments as for `jacobian_eigenvalues`; `theta` are the weights, without the biases.

    **Returns:** `N_L` eigenvalues per network, ascending, zeros included.

    **Raises:** `ValueError` as `jacobian_eigenvalues`, and if `net` is neither an `MLP` nor a `Network` without
    `Residual`.
    """
    if not isinstance(net, Network):
        return full_fisher_eigenvalues(net, key, 1, width, num_samples)
    check_fisher(unrolled(net.layers))
    widths = _checked(net, width, num_samples)
    num_numbers = 6 * max(widths) ** 2
    check_memory("`width`", num_numbers * net.q0.dtype.itemsize)

    def eigenvalues(keys: Keys) -> Array:
        return jnp.maximum(jnp.linalg.eigvalsh(_fishers_of_layers(net, widths, keys)), 0)

    return _in_batches(eigenvalues, key, num_samples, num_numbers, max(widths))


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

    def eigenvalues(keys: Keys) -> Array:
        return _fisher_eigenvalues(with_all_scales(net), tuple(widths), n, block_diagonal, keys)

    return _in_batches(eigenvalues, key, num_samples, num_numbers, n * max(widths))


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
    at = _at_distinct(spectrum.cdf, values)
    return values, at, np.where(values == noise, 0, at - jump)


def _at_distinct(fun: Callable[[np.ndarray], Array], values: np.ndarray) -> np.ndarray:
    """`fun` once for every distinct value, filled up to a power of two: other numbers of them compile nothing new."""
    distinct, places = np.unique(values, return_inverse=True)
    filled = np.pad(distinct, (0, 2 ** max(6, (distinct.size - 1).bit_length()) - distinct.size), mode="edge")
    return np.asarray(fun(filled))[places.reshape(values.shape)]


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


def _checked(net: AbstractNetwork, width: int | None, num_samples: int) -> list[int]:
    integer("num_samples", num_samples)
    return integer_widths(net, width)


_BATCH = 2**25  # numbers that samples worked on at once take; more do not make it faster


def _in_batches(
    eigenvalues: Callable[[PRNGKeyArray], Array], key: PRNGKeyArray, num_samples: int, num_numbers: int, width: int
) -> Array:
    """`eigenvalues` of so many samples, of `num_numbers` each, as many at once as is worth it, always equally many."""
    keys, most = jax.random.split(key, num_samples), max(1, _BATCH // num_numbers)
    size = math.ceil(num_samples / math.ceil(num_samples / most))
    with few_threads(width):
        if size == num_samples:
            return jax.block_until_ready(eigenvalues(keys))
        starts = [min(k, num_samples - size) for k in range(0, num_samples, size)]
        rows = [eigenvalues(keys[start : start + size]) for start in starts]
        rows[-1] = rows[-1][len(rows) * size - num_samples :]  # the others are in the batch before
        return jax.block_until_ready(jnp.concatenate(rows))


@quickly(eqx.filter_jit)
def _jacobian_eigenvalues(
    net: MLP | ResNet, widths: tuple[int, ...], size: int, keys: Keys
) -> Float[Array, "samples N"]:
    jacobians = _jacobians_of_blocks(net, widths, keys) if isinstance(net, ResNet) else _jacobians(net, widths, keys)
    return _squared_singular_values(jacobians, size)


@quickly(eqx.filter_jit)
def _fisher_eigenvalues(
    net: MLP, widths: tuple[int, ...], num_inputs: int, block_diagonal: bool, keys: Keys
) -> Float[Array, "samples N"]:
    n = num_inputs
    first, second = (np.arange(n), np.arange(n)) if block_diagonal else np.triu_indices(n)
    blocks = _fishers(net, widths, keys, n, first, second) / n
    if block_diagonal:
        eigenvalues = jnp.sort(jnp.linalg.eigvalsh(blocks).reshape(keys.shape[0], -1), axis=1)
    else:
        eigenvalues = jnp.linalg.eigvalsh(_assembled(blocks, n, first, second))
    return jnp.maximum(eigenvalues, 0)


class _Layer(NamedTuple):
    """A layer still to be sampled; the leaves of several in a row have a leading axis."""

    law: AbstractWeights
    activation: AbstractActivation
    sigma_w: Array
    sigma_b: Array
    keys: Keys

    def applied(self, num_out: int, x: Float[Array, "samples inputs N_in"]) -> tuple[Array, Array, Array]:
        """Weights, outputs, and slopes."""
        shape = (num_out, x.shape[-1])
        one = lambda key: draw(self.law, shape, self.sigma_w, self.sigma_b, key)  # noqa: E731
        weights, biases = jax.vmap(one)(_after(x, self.keys))
        h = x @ jnp.swapaxes(weights, 1, 2) + biases[:, None]
        return weights, self.activation(h), self.activation.derivative(h)


def _after(x: Array, keys: Keys) -> Keys:
    """The keys, which wait for `x`. JAX factorises a batch of matrices on the threads of a pool, on one of which it
    waits for the others: two batches at once, of layers that do not wait for each other, may wait forever.
    """
    one = x.ravel()[0]
    never = jnp.isnan(one) & jnp.isinf(one)  # which XLA does not know
    return jnp.where(never, keys[::-1], keys)


def _layers(net: MLP | ResNet, keys: Keys) -> list[_Layer]:
    sigma_w, sigma_b = (scale.ravel() for scale in net.scales)
    keys = jax.vmap(lambda key: jax.random.split(key, sigma_w.size), out_axes=1)(keys)
    parts = (laws_of_layers(net), net.activations, sigma_w, sigma_b, keys)
    return [_Layer(*layer) for layer in zip(*parts, strict=True)]


_Carried = TypeVar("_Carried")


def _through(
    step: Callable[[_Carried, Any, tuple[int, ...]], _Carried],
    carried: _Carried,
    layers: Sequence[Any],
    shapes: Sequence[tuple[int, ...]],
) -> _Carried:
    """`step` through all layers, or blocks of them; equal ones in a row are scanned."""

    def kind(pair: tuple[Any, tuple[int, ...]]) -> Any:
        layer, shape = pair
        return shape, jax.tree.structure(layer), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(layer)]

    for (shape, *_), run in itertools.groupby(zip(layers, shapes, strict=True), kind):
        each = [layer for layer, _ in run]
        if len(each) == 1:
            carried = step(carried, each[0], shape)
            continue
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        carried, _ = jax.lax.scan(lambda c, layer, shape=shape: (step(c, layer, shape), None), carried, stacked)
    return carried


def _jacobians(net: MLP, widths: tuple[int, ...], keys: Keys) -> Float[Array, "samples N_L N_0"]:
    def step(carried: tuple[Array, Array], layer: _Layer, shape: tuple[int, ...]) -> tuple[Array, Array]:
        x, jacobians = carried
        weights, x, slopes = layer.applied(shape[1], x)
        return x, slopes[:, 0, :, None] * (weights @ jacobians)

    input_keys, keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    start = _random_inputs(net, 1, widths[0], input_keys), _identities(net, widths[0], keys)
    return _through(step, start, _layers(net, keys), list(itertools.pairwise(widths)))[1]


def _jacobians_of_blocks(net: ResNet, widths: tuple[int, ...], keys: Keys) -> Float[Array, "samples N N"]:
    def step(carried: tuple[Array, Array], block: list[_Layer], shape: tuple[int, ...]) -> tuple[Array, Array]:
        (x, jacobians), (y, branch) = carried, carried
        for layer in block:
            weights, y, slopes = layer.applied(shape[0], y)
            branch = slopes[:, 0, :, None] * (weights @ branch)
        return x + y, jacobians + branch

    input_keys, keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    start = _random_inputs(net, 1, widths[0], input_keys), _identities(net, widths[0], keys)
    layers, size = _layers(net, keys), net.layers_per_block
    blocks = [layers[k : k + size] for k in range(0, len(layers), size)]
    return _through(step, start, blocks, [widths[:1]] * net.depth)[1]


def _jacobians_of_layers(net: Network, widths: list[int], keys: Keys) -> Float[Array, "samples N_L N_0"]:
    return _through_layers(net, widths, keys, _identities(net, widths[0], keys), _pushed)


def _fishers_of_layers(net: Network, widths: list[int], keys: Keys) -> Float[Array, "samples N_L N_L"]:
    """`(1 / N_L) J_theta J_theta^T`: all layers push it forward, from both sides, and weights add `|x|^2 / N_L`."""
    return _through_layers(net, widths, keys, 0 * _identities(net, widths[0], keys), _pushed_fisher(widths[-1]))


_Push = Callable[[Array], Array]  # a layer's Jacobian times the columns of a matrix


def _pushed(layer: AbstractLayer, push: _Push, x: Array, jacobian: Array) -> Array:
    return push(jacobian)


@functools.cache  # one function for one width: programs are compiled once for it
def _pushed_fisher(num_outputs: int) -> Callable[[AbstractLayer, _Push, Array, Array], Array]:
    def pushed(layer: AbstractLayer, push: _Push, x: Array, fisher: Array) -> Array:
        fisher = push(push(fisher).T)
        if not isinstance(layer, Dense):
            return fisher
        return fisher + jnp.sum(jnp.square(x)) / num_outputs * jnp.eye(fisher.shape[0], dtype=fisher.dtype)

    return pushed


def _through_layers(
    net: Network,
    widths: list[int],
    keys: Keys,
    matrices: Float[Array, "samples N N"],
    onwards: Callable[[AbstractLayer, _Push, Array, Array], Array],
) -> Float[Array, "samples N_L N"]:
    """Matrices through all layers; one program for all of a structure and size, layer after layer (host)."""
    keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
    x = _random_inputs(net, 1, widths[0], keys[0])[:, 0]
    layers = unrolled(net.layers)
    layer_keys = jax.vmap(lambda key: jax.random.split(key, len(layers)), out_axes=1)(keys[2])
    scale = scale_of(net, widths)
    for layer, own in zip(layers, layer_keys, strict=True):
        size, dtype = x.shape[1], x.dtype
        modules = eqx.filter_vmap(
            lambda key, size=size, layer=layer, dtype=dtype: layer.sample(size, scale, key, dtype)
        )(own)
        x, matrices = jax.block_until_ready(_advanced(layer, modules, x, matrices, own, onwards))
    return matrices


@quickly(eqx.filter_jit)
def _advanced(
    layer: AbstractLayer,
    modules: Callable[..., Array],
    x: Array,
    matrices: Array,
    keys: Keys,
    onwards: Callable[[AbstractLayer, _Push, Array, Array], Array],
) -> tuple[Array, Array]:
    def one(module: Callable[..., Array], x: Array, matrix: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        y, push = jax.linearize(lambda x: module(x, key=key), x)
        return y, onwards(layer, jax.vmap(push, in_axes=1, out_axes=1), x, matrix)

    return eqx.filter_vmap(one)(modules, x, matrices, keys)


def _identities(net: MLP | ResNet | Network, size: int, keys: Keys) -> Float[Array, "samples N N"]:
    return jnp.broadcast_to(jnp.eye(size, dtype=net.q0.dtype), (keys.shape[0], size, size))


def _fishers(
    net: MLP, widths: tuple[int, ...], keys: Keys, num_inputs: int, first: np.ndarray, second: np.ndarray
) -> Float[Array, "samples pairs N_L N_L"]:
    """Blocks `(1 / N_L) J_theta(x) J_theta(y)^T` of pairs of inputs."""

    def step(carried: tuple[Array, Array], layer: _Layer, shape: tuple[int, ...]) -> tuple[Array, Array]:
        x, blocks = carried
        weights, after, slopes = layer.applied(shape[1], x)
        share = jnp.sum(x[:, first] * x[:, second], axis=-1) / widths[-1]
        return after, _next_blocks(weights, slopes[:, first], slopes[:, second], share, blocks)

    input_keys, keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    x = _random_inputs(net, num_inputs, widths[0], input_keys)
    blocks = jnp.zeros((keys.shape[0], first.size, widths[0], widths[0]), net.sigma_w.dtype)
    return _through(step, (x, blocks), _layers(net, keys), list(itertools.pairwise(widths)))[1]


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


def _random_inputs(
    net: MLP | ResNet | Network, num_inputs: int, size: int, keys: Keys
) -> Float[Array, "samples inputs N_0"]:
    """Gaussian, then scaled: their entries have the mean square and the mean that the network's input has."""
    x = jax.vmap(lambda key: jax.random.normal(key, (num_inputs, size), net.q0.dtype))(keys)
    if isinstance(net, MLP):
        return x * jnp.sqrt(net.q0 / jnp.mean(jnp.square(x), axis=-1, keepdims=True))
    x = (x - jnp.mean(x, axis=-1, keepdims=True)) / jnp.std(x, axis=-1, keepdims=True)
    return x * jnp.sqrt(net.q0 - jnp.square(net.mean0)) + net.mean0


def _squared_singular_values(jacobians: Array, size: int) -> Array:
    return _squared(jnp.linalg.svd(jacobians, compute_uv=False), size)


def _squared(singular_values: Float[Array, "rows values"], size: int) -> Float[Array, "rows {size}"]:
    """Ascending, as many as `size`: zeros where there are more than singular values."""
    values = jnp.square(singular_values)[:, ::-1][:, -size:]
    return jnp.pad(values, ((0, 0), (size - values.shape[1], 0)))
