"""Training a network of given weights, to see what an initialisation is worth."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from .._networks.mlp import MLP
from ..activations._base import AbstractActivation

Matrix = Array | np.ndarray
Weights = Sequence[tuple[Matrix, Matrix]]
Activations = tuple[AbstractActivation, ...]
Run = tuple[tuple[Any, Any], AbstractActivation]  # equal layers in a row, stacked


def stacked(weights: Weights, activations: Activations, stack: Callable[..., Any] = jnp.stack) -> list[Run]:
    layers = zip(weights, activations, strict=True)
    runs = itertools.groupby(layers, lambda layer: (layer[0][0].shape, jax.tree.structure(layer[1])))
    return [jax.tree.map(lambda *leaves: stack(leaves), *run) for _, run in runs]


def forward(weights: Weights, activations: Activations, x: Float[Array, "rows N_0"]) -> Array:
    """Outputs, one row per input; equal layers in a row are scanned."""
    return _through(stacked(weights, activations), x)


def _through(runs: list[Run], x: Any) -> Array:
    def apply(x: Array, layer: Run) -> tuple[Array, None]:
        (weight, bias), activation = layer
        return activation(x @ weight.T + bias), None

    for run in runs:
        if run[0][0].shape[0] == 1:
            x, _ = apply(x, jax.tree.map(lambda leaf: leaf[0], run))
        else:
            x, _ = jax.lax.scan(apply, x, run)
    return x


def equinox_default(net: MLP, seed: int) -> list[Any]:
    """Weights and biases uniform on `+-1/sqrt(N_in)`, as `eqx.nn.Linear` has them."""
    rng = np.random.default_rng(seed)
    sizes = itertools.pairwise(np.asarray(net.widths, int).tolist())
    draw = lambda num_in, *shape: rng.uniform(-1, 1, shape) * num_in**-0.5  # noqa: E731
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
    inputs, classes = np.asarray(x[order], np.float32), np.asarray(y[order], np.int32)
    cut = max(1, len(x) * 4 // 5)
    picks = np.random.default_rng(seed + 1).integers(0, cut, (steps, min(batch, cut)))
    rest = slice(cut, None) if cut < len(x) else slice(None)
    known, unknown = (inputs[:cut], classes[:cut]), (inputs[rest], classes[rest])
    single = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), (weights, activations))
    losses, loss, accuracy = _train(stacked(*single, stack=np.stack), known, unknown, picks, optimizer)
    return Training(np.asarray(losses), float(loss), float(accuracy), int(y.max()) + 1)


Rows = tuple[Float[Array | np.ndarray, "rows N_0"], Int[Array | np.ndarray, " rows"]]


def _loss(weights: list[Any], activations: list[AbstractActivation], rows: Rows) -> Array:
    outputs = _through(list(zip(weights, activations, strict=True)), rows[0])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, rows[1]))


@eqx.filter_jit
def _train(
    runs: list[Run],
    known: Rows,
    unknown: Rows,
    picks: Int[Array | np.ndarray, "steps batch"],
    optimizer: optax.GradientTransformation,
) -> tuple[Float[Array, " steps"], Array, Array]:
    """Losses on the way, and at the end that of all rows and the accuracy on those that were not seen."""
    weights: Any = [run[0] for run in runs]
    activations = [run[1] for run in runs]
    (x, y), picks = (jnp.asarray(part) for part in known), jnp.asarray(picks)

    def step(state: tuple[Any, optax.OptState], pick: Array) -> tuple[tuple[Any, optax.OptState], Array]:
        weights, memory = state
        loss, grad = jax.value_and_grad(_loss)(weights, activations, (x[pick], y[pick]))
        updates, memory = optimizer.update(grad, memory, weights)
        return (optax.apply_updates(weights, updates), memory), loss

    (weights, _), losses = jax.lax.scan(step, (weights, optimizer.init(weights)), picks)
    outputs = _through(list(zip(weights, activations, strict=True)), unknown[0])
    accuracy = jnp.mean(jnp.argmax(outputs, axis=1) == unknown[1])
    return losses, _loss(weights, activations, known), accuracy
