"""Residual networks as an Equinox module."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._finite.sampling import linears
from .._numerics.checks import integer
from .functions import Function


class _Block(eqx.Module):
    """`x + f(x)`."""

    layers: tuple[eqx.nn.Linear, ...]
    activation: Function

    def __call__(self, x: Float[Array, " width"]) -> Float[Array, " width"]:
        y = x
        for layer in self.layers:
            y = jax.vmap(self.activation)(layer(y))
        return x + y


class ResidualMLP(eqx.Module):
    """`x <- x + f(x)`, `depth` times, `f` of `layers_per_block` layers `phi(W x + b)`: a `jfree.ResNet` to train.

    **Arguments:**

    - `width`, `depth`: units of every layer, and the number of blocks.
    - `layers_per_block`: at least 1; each is followed by the activation, the last one, too.
    - `activation`: a function of a scalar, or a sequence of `depth`, one per block.
    - `use_bias`: whether the layers of the blocks have biases.
    - `in_size`, `out_size`: sizes of the data, mapped to and from `width` by a linear layer each; `None` for none.
    - `dtype`: of all weights and biases, JAX's default float unless given.
    - `key`: of `jax.random`; the initial weights are those of `eqx.nn.Linear`, see `jfree.reinitialize` for others.

    **Raises:** `ValueError` naming the argument, for sizes that are not positive integers, and activations that are not
    functions, one or one per block.
    """

    embedding: eqx.nn.Linear | None
    blocks: tuple[_Block, ...]
    readout: eqx.nn.Linear | None

    def __init__(
        self,
        width: int,
        depth: int,
        layers_per_block: int = 1,
        activation: Function | Sequence[Function] = jnp.tanh,
        use_bias: bool = True,
        in_size: int | None = None,
        out_size: int | None = None,
        dtype: DTypeLike | None = None,
        *,
        key: PRNGKeyArray,
    ):
        sizes = {"width": width, "depth": depth, "layers_per_block": layers_per_block}
        sizes |= {name: size for name, size in (("in_size", in_size), ("out_size", out_size)) if size is not None}
        for name, size in sizes.items():
            integer(name, size)
        activations = (activation,) * depth if callable(activation) else tuple(activation)
        if len(activations) != depth or not all(map(callable, activations)):
            raise ValueError(f"`activation` must be a function of a scalar, or {depth} of them, got {activation!r}.")
        in_key, out_key, *keys = jax.random.split(key, 2 + depth * layers_per_block)
        layers = [eqx.nn.Linear(width, width, use_bias, dtype, key=k) for k in keys]
        starts = range(0, len(layers), layers_per_block)
        self.blocks = tuple(
            _Block(tuple(layers[i : i + layers_per_block]), phi) for i, phi in zip(starts, activations, strict=True)
        )
        self.embedding = None if in_size is None else eqx.nn.Linear(in_size, width, dtype=dtype, key=in_key)
        self.readout = None if out_size is None else eqx.nn.Linear(width, out_size, dtype=dtype, key=out_key)

    def __call__(self, x: Float[Array, " in"], *, key: PRNGKeyArray | None = None) -> Float[Array, " out"]:
        """Maps `(in_size,)` to `(out_size,)`, which are `width` where not given; `key` is ignored."""
        x = x if self.embedding is None else self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return x if self.readout is None else self.readout(x)


def linears_of(model: eqx.Module) -> list[eqx.nn.Linear]:
    """The layers that a network consists of."""
    return linears(model.blocks if isinstance(model, ResidualMLP) else model)
