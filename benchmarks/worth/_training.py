"""Training of many starts at once, on equal terms."""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ._models import Architecture, cross_entropy, logits, Model, Weights

Optimizer = Literal["sgd", "adam"]
RATES: dict[Optimizer, np.ndarray] = {"sgd": np.geomspace(1e-4, 1e-1, 7), "adam": np.geomspace(1e-5, 1e-2, 7)}

_OPTIMIZERS = {"sgd": functools.partial(optax.sgd, momentum=0.9), "adam": optax.adam}


class Data(NamedTuple):
    """In single precision; the last rows are held out."""

    x: Float[Weights, "train pixels"]
    y: Int[Weights, " train"]
    x_rest: Float[Weights, "rest pixels"]
    y_rest: Int[Weights, " rest"]


class Run(NamedTuple):
    """What to train; the seed gives the order of the data."""

    model: Model
    rate: float
    seed: int


class Outcome(NamedTuple):
    """Cross-entropy per step, at the end that of the whole training set, and the accuracy on what was held out."""

    losses: Float[np.ndarray, " steps"]
    loss: float
    accuracy: float

    @property
    def diverged(self) -> bool:
        return not self.loss <= 2 * np.log(10)

    @property
    def capped(self) -> float:
        """The loss, of what diverged twice that of guessing."""
        return float(2 * np.log(10)) if self.diverged else self.loss

    @property
    def steps_to_tenth(self) -> int | None:
        """Until the running mean of ten losses is a tenth of that of guessing."""
        below = np.nonzero(np.convolve(self.losses, np.full(10, 0.1), "valid") <= 0.1 * np.log(10))[0]
        return int(below[0]) + 10 if below.size else None


def train(
    arch: Architecture, optimizer: Optimizer, data: Data, runs: Sequence[Run], steps: int, batch: int
) -> list[Outcome]:
    """One program for all runs. On CPUs they go one by one, on all cores, as products of many small matrices at once
    take more time than one after the other; elsewhere in batches.
    """
    on_cpu = jax.default_backend() == "cpu"
    size = 1 if on_cpu else 64
    on_device = Data(*map(jnp.asarray, data))

    def work(first: int) -> list[Outcome]:
        some = [runs[min(first + k, len(runs) - 1)] for k in range(size)]  # the last again, to keep the shape
        models = jax.tree.map(lambda *leaves: np.stack(leaves), *(run.model for run in some))
        rates = np.asarray([run.rate for run in some], np.float32)
        picks = np.stack([order(len(data.x), run.seed, steps, batch) for run in some])
        losses, loss, accuracy = map(np.asarray, _trained(arch, optimizer, on_device, models, rates, picks))
        return [Outcome(losses[k], float(loss[k]), float(accuracy[k])) for k in range(min(size, len(runs) - first))]

    with ThreadPoolExecutor(os.cpu_count() if on_cpu else 1) as pool:
        return [outcome for some in pool.map(work, range(0, len(runs), size)) for outcome in some]


def order(num: int, seed: int, steps: int, batch: int) -> Int[np.ndarray, "steps batch"]:
    """Rows of every step: one random order of all after the other."""
    rng = np.random.default_rng(seed)
    epochs = -(-steps * batch // num)
    return np.concatenate([rng.permutation(num) for _ in range(epochs)])[: steps * batch].reshape(steps, batch)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _trained(
    arch: Architecture, optimizer: Optimizer, data: Data, models: Model, rates: Array, picks: Array
) -> tuple[Array, Array, Array]:
    def one(model: Model, rate: Array, picks: Array) -> tuple[Array, Array, Array]:
        update = _OPTIMIZERS[optimizer](rate)
        shape = model.shape

        def loss(trained: Model, x: Weights, y: Weights) -> Array:
            return cross_entropy(arch, trained._replace(shape=shape), x, y)

        def step(state: tuple[Model, optax.OptState], pick: Array) -> tuple[tuple[Model, optax.OptState], Array]:
            trained, memory = state
            value, grad = jax.value_and_grad(loss)(trained, data.x[pick], data.y[pick])
            updates, memory = update.update(grad, memory, trained)
            moved: Any = optax.apply_updates(trained, updates)
            return (moved, memory), value

        (trained, _), losses = jax.lax.scan(step, (model, update.init(model)), picks)
        trained = trained._replace(shape=shape)
        guessed = jnp.argmax(logits(arch, trained, data.x_rest), axis=1)
        return losses, loss(trained, data.x, data.y), jnp.mean(guessed == data.y_rest)

    return jax.vmap(one)(models, rates, picks)
