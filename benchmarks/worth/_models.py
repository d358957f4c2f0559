"""Networks to train: parameters stacked over layers, scanned, all starts of one structure."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Family = Literal["mlp", "pre-norm", "plain"]
Weights = Array | np.ndarray  # on the device, or drawn on the host

# Of `phi`'s input and output, see `activation`, and the slope of a leaky ReLU: what changes nothing.
UNCHANGED = np.array([1.0, 0.0, 1.0, 0.0, 0.0])

BASE: dict[str, Callable[[Array, Array], Array]] = {
    "tanh": lambda x, slope: jnp.tanh(x),
    "relu": lambda x, slope: jnp.where(x > 0, x, slope * x),
    "gelu": lambda x, slope: jax.nn.gelu(x, approximate=False),
    "silu": lambda x, slope: jax.nn.silu(x),
    "hard_tanh": lambda x, slope: jnp.clip(x, -1, 1),
}


class Architecture(NamedTuple):
    """`depth` counts matrices of an MLP, blocks of two matrices of a residual network."""

    family: Family
    activation: str
    depth: int
    width: int
    num_in: int
    num_out: int = 10

    @property
    def num_hidden(self) -> int:
        """Of what is scanned: blocks, or matrices but for the first and the last."""
        return self.depth - 2 if self.family == "mlp" else self.depth

    @property
    def matrices_per_block(self) -> int:
        return 1 if self.family == "mlp" else 2


class Dense(NamedTuple):
    w: Float[Weights, "*layers out in"]
    b: Float[Weights, "*layers out"]


class Model(NamedTuple):
    """`factor` multiplies branches, and is trained; `shape` transforms the activation, and is not."""

    first: Dense
    hidden: tuple[Dense, ...]
    last: Dense
    factor: Float[Weights, " blocks"]
    shape: Float[Weights, "5"]


def activation(name: str, shape: Weights, x: Array) -> Array:
    """`gamma (phi(alpha x + beta) + delta)`."""
    alpha, beta, gamma, delta, slope = shape
    return gamma * (BASE[name](alpha * x + beta, slope) + delta)


def dense(layer: Dense, x: Weights) -> Array:
    return jnp.asarray(x) @ layer.w.T + layer.b


def norm(x: Array) -> Array:
    """Layer norm without parameters."""
    return (x - jnp.mean(x, -1, keepdims=True)) / jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-5)


def block(arch: Architecture, shape: Weights, x: Array, layers: tuple[Dense, ...], factor: Array) -> Array:
    """What is scanned: `W phi(x) + b`, or `x + factor (W_2 phi(W_1 norm(x) + b_1) + b_2)`."""
    if arch.family == "mlp":
        return dense(layers[0], activation(arch.activation, shape, x))
    inner = dense(layers[0], norm(x) if arch.family == "pre-norm" else x)
    return x + factor * dense(layers[1], activation(arch.activation, shape, inner))


def readout(arch: Architecture, model: Model, x: Array) -> Array:
    """From the last hidden layer to logits."""
    if arch.family == "mlp":
        x = activation(arch.activation, model.shape, x)
    return dense(model.last, norm(x) if arch.family == "pre-norm" else x)


def logits(arch: Architecture, model: Model, x: Weights) -> Array:
    def step(x: Array, layer: Any) -> tuple[Array, None]:
        return block(arch, model.shape, x, *layer), None

    x, _ = jax.lax.scan(step, dense(model.first, x), (model.hidden, model.factor))
    return readout(arch, model, x)


def cross_entropy(arch: Architecture, model: Model, x: Weights, y: Weights) -> Array:
    log_p = jax.nn.log_softmax(logits(arch, model, x))
    return -jnp.mean(jnp.take_along_axis(log_p, jnp.asarray(y)[:, None], axis=1))


class Scales(NamedTuple):
    """Of weights at fan-in and of biases, matrix by matrix: `hidden_w` of shape (matrices per block, blocks)."""

    first_w: float
    hidden_w: np.ndarray
    last_w: float
    first_b: float = 0.0
    hidden_b: float | np.ndarray = 0.0
    last_b: float = 0.0
    factor: float = 1.0
    shape: np.ndarray = UNCHANGED


def same(arch: Architecture, sigma: float, **others: float | np.ndarray) -> Scales:
    """One scale for all matrices."""
    hidden = np.full((arch.matrices_per_block, arch.num_hidden), sigma)
    return Scales(first_w=sigma, hidden_w=hidden, last_w=sigma)._replace(**others)


Law = Literal["gaussian", "orthogonal"]


def drawn(arch: Architecture, law: Law, scales: Scales, seed: int) -> Model:
    """A model in single precision. The seed fixes what is drawn, whatever the scales."""
    rng = np.random.default_rng(seed)

    def layer(shape: tuple[int, ...], sigma_w: float | np.ndarray, sigma_b: float | np.ndarray) -> Dense:
        w, b = rng.standard_normal(shape), rng.standard_normal(shape[:-1])
        w = _orthonormal(w) if law == "orthogonal" else w / shape[-1] ** 0.5
        scale = [np.expand_dims(sigma, (-1, -2)) for sigma in (sigma_w, sigma_b)]
        return Dense(np.asarray(w * scale[0], np.float32), np.asarray(b * scale[1][..., 0], np.float32))

    square, blocks = (arch.num_hidden, arch.width, arch.width), range(arch.matrices_per_block)
    biases = np.broadcast_to(scales.hidden_b, scales.hidden_w.shape)
    return Model(
        layer((arch.width, arch.num_in), scales.first_w, scales.first_b),
        tuple(layer(square, scales.hidden_w[k], biases[k]) for k in blocks),
        layer((arch.num_out, arch.width), scales.last_w, scales.last_b),
        np.full(arch.num_hidden, scales.factor, np.float32),
        np.asarray(scales.shape, np.float32),
    )


def _orthonormal(w: np.ndarray) -> np.ndarray:
    """Orthonormal rows, or columns where there are fewer of them, uniformly distributed."""
    wide = w.shape[-1] > w.shape[-2]
    q, r = np.linalg.qr(np.swapaxes(w, -1, -2) if wide else w)
    q = q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]
    return np.swapaxes(q, -1, -2) if wide else q
