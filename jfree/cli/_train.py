"""Training a network of given weights, to see what an initialisation is worth."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from .._activations import AbstractActivation
from .._networks import MLP

Weights = list[tuple[Array, Array]]
Activations = tuple[AbstractActivation, ...]


def forward(weights: Weights, activations: Activations, x: Float[Array, "rows N_0"]) -> Array:
    """Outputs, one row per input; equal layers in a row are scanned."""
    layers = list(zip(weights, activations, strict=True))
    for _, run in itertools.groupby(layers, lambda layer: (layer[0][0].shape, jax.tree.structure(layer[1]))):

        def apply(x: Array, layer: tuple[tuple[Array, Array], AbstractActivation]) -> tuple[Array, None]:
            (weight, bias), activation = layer
            return activation(x @ weight.T + bias), None

        first, *rest = run
        x, _ = apply(x, first)
        if rest:
            x, _ = jax.lax.scan(apply, x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rest))
    return x


def equinox_default(net: MLP, seed: int) -> Weights:
    """Weights and biases uniform on `+-1/sqrt(N_in)`, as `eqx.nn.Linear` has them."""
    rng = np.random.default_rng(seed)
    sizes = itertools.pairwise(np.asarray(net.widths, int).tolist())
    draw = lambda num_in, *shape: jnp.asarray(rng.uniform(-1, 1, shape) * num_in**-0.5)  # noqa: E731
    return [(draw(num_in, num_out, num_in), draw(num_in, num_out)) for num_in, num_out in sizes]


class Training(eqx.Module):
    """Cross-entropy per step, and at the end the loss on all of the training set and the accuracy on the rest."""

    losses: Float[np.ndarray, " steps"]
    loss: float
    accuracy: float
    num_classes: int

    @property
    def steps_to_tenth(self) -> int | None:
        """Until the running mean of ten losses is a tenth of that of guessing, `log(num_classes)`."""
        mean = np.convolve(self.losses, np.full(10, 0.1), "valid")
        below = np.nonzero(mean <= 0.1 * np.log(self.num_classes))[0]
        return int(below[0]) + 10 if below.size else None

    def summary(self) -> dict[str, float | int | None]:
        return {"loss": self.loss, "accuracy": self.accuracy, "steps_to_tenth": self.steps_to_tenth}


def train(
    weights: Weights,
    activations: Activations,
    x: np.ndarray,
    y: np.ndarray,
    steps: int,
    optimizer: optax.GradientTransformation,
    seed: int,
    batch: int = 128,
) -> Training:
    """Trains in single precision on four fifths of the data, in batches drawn anew every step."""
    order = np.random.default_rng(seed).permutation(len(x))
    inputs, classes = jnp.asarray(x[order], jnp.float32), jnp.asarray(y[order], jnp.int32)
    cut = max(1, len(x) * 4 // 5)
    weights = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), weights)
    activations = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), activations)
    picks = np.random.default_rng(seed + 1).integers(0, cut, (steps, min(batch, cut)))
    weights, losses = _train(weights, activations, inputs[:cut], classes[:cut], jnp.asarray(picks), optimizer)
    loss = _loss(weights, activations, inputs[:cut], classes[:cut])
    rest = slice(cut, None) if cut < len(x) else slice(None)
    right = jnp.argmax(forward(weights, activations, inputs[rest]), axis=1) == classes[rest]
    return Training(np.asarray(losses), float(loss), float(jnp.mean(right)), int(y.max()) + 1)


@eqx.filter_jit
def _loss(weights: Weights, activations: Activations, x: Float[Array, "rows N_0"], y: Int[Array, " rows"]) -> Array:
    outputs = forward(weights, activations, x)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, y))


@eqx.filter_jit
def _train(
    weights: Weights,
    activations: Activations,
    x: Float[Array, "rows N_0"],
    y: Int[Array, " rows"],
    picks: Int[Array, "steps batch"],
    optimizer: optax.GradientTransformation,
) -> tuple[Weights, Float[Array, " steps"]]:
    def step(state: tuple[Any, optax.OptState], pick: Array) -> tuple[tuple[Any, optax.OptState], Array]:
        weights, memory = state
        loss, grad = jax.value_and_grad(_loss)(weights, activations, x[pick], y[pick])
        updates, memory = optimizer.update(grad, memory, weights)
        return (optax.apply_updates(weights, updates), memory), loss

    (weights, _), losses = jax.lax.scan(step, (weights, optimizer.init(weights)), picks)
    return weights, losses
