"""Jacobians and dual Fisher matrices of sampled networks, as one matrix each."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._layers.dense import Dense, draw
from .._layers.layer import AbstractLayer
from .._layers.weights import AbstractWeights
from .._networks.mlp import MLP
from .._networks.network import Network
from .._networks.resnet import ResNet
from .._networks.stacked import unrolled
from .._numerics.arrays import Keys
from .._numerics.compile import much, quickly
from ..activations._base import AbstractActivation
from .sampling import few_threads, laws_of_layers, scale_of, with_all_scales

_BATCH = 2**25  # numbers that samples worked on at once take; more do not make it faster


def in_batches(
    eigenvalues: Callable[[Keys], Array], key: PRNGKeyArray, num_samples: int, num_numbers: int, width: int
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


def squared_singular_values(
    net: MLP | ResNet | Network, widths: list[int], size: int, keys: Keys
) -> Float[Array, "samples N"]:
    """Of Jacobians of sampled networks, as many as `size`, ascending."""
    if isinstance(net, Network):
        return _squares_of(_jacobians_of_layers(net, widths, keys), size)
    return _of_dense_layers(with_all_scales(net), tuple(widths), size, keys)


def fisher_eigenvalues_of_layers(net: Network, widths: list[int], keys: Keys) -> Float[Array, "samples N"]:
    """Of `(1 / N_L) J_theta J_theta^T` of sampled networks, ascending."""
    return jnp.maximum(jnp.linalg.eigvalsh(_fishers_of_layers(net, widths, keys)), 0)


@quickly(eqx.filter_jit, much)
def _of_dense_layers(net: MLP | ResNet, widths: tuple[int, ...], size: int, keys: Keys) -> Float[Array, "samples N"]:
    jacobians = _jacobians_of_blocks(net, widths, keys) if isinstance(net, ResNet) else _jacobians(net, widths, keys)
    return _squares_of(jacobians, size)


@quickly(eqx.filter_jit, much)
def fisher_eigenvalues_of_inputs(
    net: MLP, widths: tuple[int, ...], num_inputs: int, block_diagonal: bool, keys: Keys
) -> Float[Array, "samples N"]:
    """Of the dual Fisher information of several inputs, `net` with its scales for all layers; ascending."""
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


@quickly(eqx.filter_jit, much)
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


def _squares_of(jacobians: Array, size: int) -> Array:
    return squared(jnp.linalg.svd(jacobians, compute_uv=False), size)


def squared(singular_values: Float[Array, "rows values"], size: int) -> Float[Array, "rows {size}"]:
    """Ascending, as many as `size`: zeros where there are more than singular values."""
    values = jnp.square(singular_values)[:, ::-1][:, -size:]
    return jnp.pad(values, ((0, 0), (size - values.shape[1], 0)))
