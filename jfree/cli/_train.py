"""Training a sampled network, to see what an initialisation is worth."""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._finite.sampling import sample_weights
from .._interop.equinox import to_equinox
from .._networks.mlp import MLP
from .._networks.network import Network
from .._numerics.compile import much, quickly
from ..activations._base import AbstractActivation

Run = tuple[Any, Any, int]  # equal modules in a row: arrays that are stacked, all else, and how many


def sampled(net: MLP | Network, seed: int) -> eqx.nn.Sequential:
    """A finite network of these widths, module by module."""
    key = jax.random.key(seed)
    if isinstance(net, Network):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the diagnosis says it
            model = to_equinox(net, key)
        assert isinstance(model, eqx.nn.Sequential)
        return model
    modules: list[Any] = []
    for layer, phi in zip(sample_weights(net, key), net.activations, strict=True):
        num_out, num_in = layer[0].shape
        shape = eqx.filter_eval_shape(eqx.nn.Linear, num_in, num_out, key=key)
        modules += [eqx.tree_at(lambda linear: (linear.weight, linear.bias), shape, layer), eqx.nn.Lambda(phi)]
    return eqx.nn.Sequential(modules)


def linears(model: eqx.Module) -> list[eqx.nn.Linear]:
    """Its weights and biases, in the order in which they act."""
    nodes = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, eqx.nn.Linear))
    return [node for node in nodes if isinstance(node, eqx.nn.Linear)]


def equinox_default(model: eqx.nn.Sequential, seed: int) -> eqx.nn.Sequential:
    """The same with weights and biases uniform on `+-1/sqrt(N_in)`, as `eqx.nn.Linear` has them."""
    rng = np.random.default_rng(seed)
    drawn = []
    for linear in linears(model):
        num_out, num_in = linear.weight.shape
        drawn += [rng.uniform(-1, 1, shape) * num_in**-0.5 for shape in ((num_out, num_in), (num_out,))]
    return eqx.tree_at(lambda m: [x for linear in linears(m) for x in (linear.weight, linear.bias)], model, drawn)


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
    model: eqx.nn.Sequential,
    x: np.ndarray,
    y: np.ndarray,
    steps: int,
    optimizer: optax.GradientTransformation,
    seed: int,
    batch: int = 128,
) -> Training:
    """Trains in single precision on four fifths of the data, in batches drawn anew every step. Parameters of
    activations stay as they are.
    """
    order = np.random.default_rng(seed).permutation(len(x))
    inputs, classes = np.asarray(x[order], np.float32), np.asarray(y[order], np.int32)
    cut = max(1, len(x) * 4 // 5)
    picks = np.random.default_rng(seed + 1).integers(0, cut, (steps, min(batch, cut)))
    rest = slice(cut, None) if cut < len(x) else slice(None)
    known, unknown = (inputs[:cut], classes[:cut]), (inputs[rest], classes[rest])
    losses, loss, accuracy = _train(runs(model), known, unknown, picks, jax.random.key(seed), optimizer)
    return Training(np.asarray(losses), float(loss), float(accuracy), int(y.max()) + 1)


def runs(model: eqx.nn.Sequential) -> list[Run]:
    """Its parts, each from a module with a matrix to the next such one; equal parts in a row are one."""
    found = []
    for (others, _), run in itertools.groupby(map(_split, _parts(model.layers)), lambda part: part[1:]):
        arrays = [part[0] for part in run]
        found.append((jax.tree.map(lambda *leaves: np.stack(leaves), *arrays), others, len(arrays)))
    return found


def _parts(modules: Sequence[Any]) -> Iterator[eqx.nn.Sequential]:
    starts = [k for k, module in enumerate(modules) if any(np.ndim(leaf) > 1 for leaf in jax.tree.leaves(module))]
    cuts = sorted({0, *starts, len(modules)})
    return (eqx.nn.Sequential(modules[a:b]) for a, b in itertools.pairwise(cuts))


def _split(part: eqx.nn.Sequential) -> tuple[Any, Any, list[tuple[int, ...]]]:
    """Arrays in single precision, all else, and the shapes of the arrays."""
    arrays, others = eqx.partition(part, lambda leaf: isinstance(leaf, jax.Array | np.ndarray))
    single = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), arrays)
    return single, others, [leaf.shape for leaf in jax.tree.leaves(single)]


Rows = tuple[Float[Array | np.ndarray, "_ N_0"], Int[Array | np.ndarray, " _"]]


def _is_activation(node: Any) -> bool:
    return isinstance(node, AbstractActivation)


def _is_trained(node: Any) -> bool:
    return eqx.is_inexact_array(node) and not _is_activation(node)


def outputs(runs: list[Run], x: Array, key: PRNGKeyArray | None = None) -> Array:
    """One row per input; equal parts are scanned. Without a key nothing is dropped."""
    for index, (arrays, others, number) in enumerate(runs):
        keys = None if key is None else jax.random.split(jax.random.fold_in(key, index), (number, len(x)))
        apply = partial(_apply, others)
        if number == 1:
            x, _ = apply(x, jax.tree.map(lambda leaf: leaf[0], (arrays, keys)))
        else:
            x, _ = jax.lax.scan(apply, x, (arrays, keys))
    return x


def _apply(others: Any, x: Array, given: tuple[Any, Any]) -> tuple[Array, None]:
    arrays, keys = given
    part = eqx.combine(arrays, others)
    if keys is None:
        return jax.vmap(eqx.nn.inference_mode(part))(x), None
    return jax.vmap(lambda x, key: part(x, key=key))(x, keys), None


def _loss(trained: Any, fixed: Any, rows: Rows, key: PRNGKeyArray | None = None) -> Array:
    y = outputs(eqx.combine(trained, fixed), jnp.asarray(rows[0]), key)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(y, rows[1]))


@quickly(eqx.filter_jit, much)
def _train(
    runs: list[Run],
    known: Rows,
    unknown: Rows,
    picks: Int[Array | np.ndarray, "steps batch"],
    key: PRNGKeyArray,
    optimizer: optax.GradientTransformation,
) -> tuple[Float[Array, " steps"], Array, Array]:
    """Losses on the way, and at the end that of all rows and the accuracy on those that were not seen."""
    which = jax.tree.map(_is_trained, runs, is_leaf=_is_activation)
    trained, fixed = eqx.partition(runs, which)
    drops = any(isinstance(node, eqx.nn.Dropout) for node in jax.tree.leaves(runs, is_leaf=_is_dropout))
    (x, y), picks = (jnp.asarray(part) for part in known), jnp.asarray(picks)

    def step(state: tuple[Any, optax.OptState], now: tuple[Array, Any]) -> tuple[tuple[Any, optax.OptState], Array]:
        (trained, memory), (pick, key) = state, now
        loss, grad = jax.value_and_grad(_loss)(trained, fixed, (x[pick], y[pick]), key)
        updates, memory = optimizer.update(grad, memory, trained)
        return (optax.apply_updates(trained, updates), memory), loss

    keys = jax.random.split(key, len(picks)) if drops else None
    (trained, _), losses = jax.lax.scan(step, (trained, optimizer.init(trained)), (picks, keys))
    found = outputs(eqx.combine(trained, fixed), jnp.asarray(unknown[0]))
    accuracy = jnp.mean(jnp.argmax(found, axis=1) == unknown[1])
    return losses, _loss(trained, fixed, known), accuracy


def _is_dropout(node: Any) -> bool:
    return isinstance(node, eqx.nn.Dropout)
