"""Initialisations that look at images, a batch or more, and at drawn weights."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ._models import (
    activation,
    Architecture,
    block,
    cross_entropy,
    Dense,
    dense,
    drawn,
    Law,
    Model,
    norm,
    readout,
    same,
    Weights,
)
from ._starts import Draw, Problem

_STEPS, _BATCH = 100, 64


class Factors(NamedTuple):
    """By which matrices are multiplied."""

    first: Float[Array, ""]
    hidden: tuple[Float[Array, " blocks"], ...]
    last: Float[Array, ""]


def scaled(model: Model, factors: Factors) -> Model:
    def times(layer: Dense, factor: Array) -> Dense:
        return layer._replace(w=jnp.asarray(layer.w) * factor[..., None, None])

    hidden = tuple(map(times, model.hidden, factors.hidden))
    return model._replace(first=times(model.first, factors.first), hidden=hidden, last=times(model.last, factors.last))


def _ones(model: Model) -> Factors:
    one = jnp.ones((), jnp.float32)
    return Factors(one, tuple(jnp.ones(layer.w.shape[0], jnp.float32) for layer in model.hidden), one)


def lsuv(problem: Problem) -> Draw:
    """Mishkin and Matas 2016, algorithm 1: orthonormal, then layer by layer unit variance of what comes out. Without
    biases one step is enough.
    """
    arch = problem.arch

    def draw(seed: int) -> Model:
        return _unit_variances(arch, drawn(arch, "orthogonal", same(arch, 1.0), seed), _batch(problem, seed))

    return draw


@functools.partial(jax.jit, static_argnums=0)
def _unit_variances(arch: Architecture, model: Model, x: Array) -> Model:
    def unit(layer: Dense, x: Array) -> Dense:
        return layer._replace(w=layer.w / jnp.std(dense(layer, x)))

    def step(x: Array, given: Any) -> tuple[Array, tuple[Dense, ...]]:
        layers, factor = given
        if arch.family == "mlp":
            found = (unit(layers[0], activation(arch.activation, model.shape, x)),)
        else:
            inner = norm(x) if arch.family == "pre-norm" else x
            first = unit(layers[0], inner)
            found = first, unit(layers[1], activation(arch.activation, model.shape, dense(first, inner)))
        return block(arch, model.shape, x, found, factor), found

    first = unit(model.first, x)
    x, hidden = jax.lax.scan(step, dense(first, x), (model.hidden, model.factor))
    last = model.last._replace(w=model.last.w / jnp.std(readout(arch, model, x)))
    return model._replace(first=first, hidden=hidden, last=last)


def autoinit(problem: Problem, law: Law) -> Draw:
    """He, Doshi and Gromov 2022, equations 5 and 6: gradient steps on half the sum over layers of `log^2` of the mean
    squared Jacobian from a layer to the next. Adam takes them here, on the logarithms of one factor per matrix.
    """
    return _by_steps(problem, law, 1.0, _jacobian_loss, optax.adam(0.03), logs=True)


def _jacobian_loss(arch: Architecture, model: Model, x: Array, y: Array, key: Array) -> Array:
    """Estimated with one random direction per layer and image (Hutchinson)."""

    def log_square(function: Callable[[Array], Array], x: Array, key: Array) -> tuple[Array, Array]:
        direction = jax.random.rademacher(key, x.shape, x.dtype)
        y, moved = jax.jvp(function, (x,), (direction,))
        return y, jnp.square(jnp.log(jnp.mean(jnp.square(moved))))

    def step(x: Array, given: Any) -> tuple[Array, Array]:
        layer, key = given
        return log_square(lambda x: block(arch, model.shape, x, *layer), x, key)

    keys = jax.random.split(key, arch.num_hidden + 1)
    x, losses = jax.lax.scan(step, dense(model.first, x), ((model.hidden, model.factor), keys[1:]))
    _, last = log_square(lambda x: readout(arch, model, x), x, keys[0])
    return 0.5 * (jnp.sum(losses) + last)


def gradinit(problem: Problem) -> Draw:
    """Zhu et al. 2021, algorithm 1, in its form for SGD, from He's scale: the loss after a step, or the norm of the
    gradient where that is above 1, is minimised over a factor per matrix by Adam; no factor below 0.01.
    """
    return _by_steps(problem, "gaussian", 2**0.5, _loss_after_step, optax.adam(1e-2), logs=False)


def _loss_after_step(arch: Architecture, model: Model, x: Array, y: Array, key: Array) -> Array:
    """The second batch has half of the first, as published."""
    half = len(x) // 2
    grad = jax.grad(cross_entropy, 1)(arch, model, x[: 2 * half], y[: 2 * half])._replace(
        shape=jnp.zeros_like(model.shape)
    )
    size = optax.global_norm(grad)

    def after() -> Array:
        moved = jax.tree.map(lambda p, g: p - 0.1 * g / size, model, grad)
        return cross_entropy(arch, moved, jnp.roll(x, half, 0)[:half], jnp.roll(y, half, 0)[:half])

    return jax.lax.cond(size > 1, lambda: size, after)


def metainit(problem: Problem) -> Draw:
    """Dauphin and Schoenholz 2019, equation 2 and algorithm 1: the gradient quotient, on random inputs and classes, is
    minimised over one factor per matrix by the signs of gradients with momentum, from He's scale.
    """
    signs = optax.chain(optax.scale_by_sign(), optax.trace(0.9), optax.scale(-2e-3))
    return _by_steps(problem, "gaussian", 2**0.5, _gradient_quotient, signs, logs=False)


def _gradient_quotient(arch: Architecture, model: Model, x: Array, y: Array, key: Array) -> Array:
    noise = jax.random.normal(key, x.shape, x.dtype)
    classes = jax.random.randint(key, y.shape, 0, arch.num_out)
    gradient = jax.grad(lambda model: cross_entropy(arch, model, noise, classes))
    grad, curved = jax.jvp(gradient, (model,), (_matrices_only(gradient(model)),))

    def quotient(g: Array, hg: Array) -> Array:
        return jnp.sum(jnp.abs((g - hg) / (g + jnp.where(g >= 0, 1e-5, -1e-5)) - 1))

    pairs = list(zip(_weights(grad), _weights(curved), strict=True))
    return sum((quotient(*pair) for pair in pairs), jnp.zeros(())) / sum(g.size for g, _ in pairs)


def _weights(model: Model) -> list[Any]:
    return [layer.w for layer in (model.first, *model.hidden, model.last)]


def _matrices_only(model: Model) -> Model:
    """With 0 for all else."""
    zeros = jax.tree.map(jnp.zeros_like, model)
    return scaled(zeros, _ones(model))._replace(
        first=zeros.first._replace(w=model.first.w),
        hidden=tuple(z._replace(w=layer.w) for z, layer in zip(zeros.hidden, model.hidden, strict=True)),
        last=zeros.last._replace(w=model.last.w),
    )


Loss = Callable[[Architecture, Model, Array, Array, Array], Array]


def _by_steps(
    problem: Problem, law: Law, sigma: float, loss: Loss, optimizer: optax.GradientTransformation, logs: bool
) -> Draw:
    def draw(seed: int) -> Model:
        model = drawn(problem.arch, law, same(problem.arch, sigma), seed)
        rng = np.random.default_rng(seed)
        picks = rng.integers(0, len(problem.x), (_STEPS, _BATCH))
        return stepped(problem.arch, model, problem.x, problem.y, picks, jax.random.key(seed))

    @functools.partial(jax.jit, static_argnums=0)
    def stepped(arch: Architecture, model: Model, x: Array, y: Array, picks: Array, key: Array) -> Model:
        def factors_of(moved: Factors) -> Factors:
            return jax.tree.map(jnp.exp if logs else lambda f: jnp.maximum(f, 0.01), moved)

        def step(state: tuple[Factors, Any], now: tuple[Array, Array]) -> tuple[tuple[Factors, Any], None]:
            moved, memory = state
            pick, key = now
            grad = jax.grad(lambda m: loss(arch, scaled(model, factors_of(m)), x[pick], y[pick], key))(moved)
            finite = jnp.all(jnp.asarray([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grad)]))
            updates, memory = optimizer.update(jax.tree.map(lambda g: jnp.where(finite, g, 0), grad), memory)
            moved: Any = optax.apply_updates(moved, updates)
            return (moved if logs else factors_of(moved), memory), None

        start = jax.tree.map(jnp.zeros_like, _ones(model)) if logs else _ones(model)
        keys = jax.random.split(key, _STEPS)
        (moved, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), (picks, keys))
        return scaled(model, factors_of(moved))

    return draw


def _batch(problem: Problem, seed: int) -> Weights:
    pick = np.random.default_rng(seed).integers(0, len(problem.x), 512)
    return problem.x[pick]
