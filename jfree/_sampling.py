"""Finite networks drawn from the laws of their layers."""

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ._misc import integer
from ._networks import AbstractNetwork, MLP
from ._resnet import ResNet
from ._weights import AbstractWeights, Gaussian, Orthogonal


def sample_weights(
    net: MLP | ResNet, key: PRNGKeyArray, width: int | None = None
) -> list[tuple[Float[Array, "N_l N_l-1"], Float[Array, " N_l"]]]:
    """Weights and biases of a finite network (host).

    **Arguments:**

    - `net`: what to sample, an `MLP` or a `ResNet`.
    - `key`: of `jax.random`.
    - `width`: the largest width; the others keep their ratios to it, rounded. By default `net.widths` are the widths;
        a `ResNet` has none, and needs it.

    **Returns:** `(W_l, b_l)` for every layer, those of a `ResNet` block by block, in the dtype of `net`. `W_l` has
    entries `N(0, sigma_w^2 / N_{l-1})`, or is Haar orthogonal with entries of that variance; `b_l ~ N(0, sigma_b^2)`.

    **Raises:** `ValueError` if `net` is neither, `width` is not a positive integer, or a width is not an
    integer or rounds to 0.
    """
    layers = sample_layers(net, integer_widths(net, width), key[None])
    return [(weight[0], bias[0]) for weight, bias in layers]


def integer_widths(net: AbstractNetwork, width: int | None) -> list[int]:
    """`N_0..N_L` of a finite network, the largest of them `width`."""
    if not isinstance(net, MLP | ResNet):
        raise ValueError(f"`net` must be an MLP or a ResNet to be sampled, got {type(net).__name__}.")
    if isinstance(net, MLP) and width is None:
        return _rounded(net.widths)
    if width is None:
        raise ValueError(f"`width` must be given for a {type(net).__name__}, which has none of its own.")
    width = integer("width", width)
    relative = np.asarray(net.widths, np.float64) if isinstance(net, MLP) else np.ones(1 + len(net.activations))
    widths = np.round(relative * (width / relative.max()))
    if widths.min() < 1:
        raise ValueError("`width` is too small: a layer would have no units.")
    return [int(n) for n in widths]


def _rounded(widths: Array) -> list[int]:
    rounded = np.round(np.asarray(widths, np.float64))
    if rounded.min() < 1 or not np.allclose(widths, rounded, rtol=1e-6, atol=0):
        raise ValueError("`widths` of `net` must be integers to be sampled; or give the largest as `width`.")
    return [int(n) for n in rounded]


def sample_layers(
    net: MLP | ResNet, widths: list[int], keys: PRNGKeyArray
) -> Iterator[tuple[Float[Array, "samples N_l N_l-1"], Float[Array, "samples N_l"]]]:
    """One layer's `W` and `b` after the other, so that a deep network need not be held at once; a sample per key."""
    sigma_w, sigma_b = (scale.ravel() for scale in net.scales)
    laws = [law for law in net.weights for _ in range(sigma_w.size // len(net.weights))]
    keys = jax.vmap(lambda key: jax.random.split(key, sigma_w.size), out_axes=1)(keys)
    layers = zip(laws, sigma_w, sigma_b, keys, strict=True)
    for (law, scale, bias_scale, layer_keys), num_in, num_out in zip(layers, widths[:-1], widths[1:], strict=True):
        yield _sample_layer(law, (num_out, num_in), scale, bias_scale, layer_keys)


@eqx.filter_jit
def _sample_layer(
    law: AbstractWeights, shape: tuple[int, int], sigma_w: Array, sigma_b: Array, keys: PRNGKeyArray
) -> tuple[Array, Array]:
    def one(key: PRNGKeyArray) -> tuple[Array, Array]:
        weight_key, bias_key = jax.random.split(key)
        weight = _sample_weight(law, shape, sigma_w, weight_key)
        return weight, sigma_b * jax.random.normal(bias_key, shape[:1], weight.dtype)

    return jax.vmap(one)(keys)


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
        case _:
            raise ValueError(f"`weights` of type {type(law).__name__} cannot be sampled.")
