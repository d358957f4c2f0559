"""Layers again and again."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray

from .._calculus.operation import AbstractOperation
from .._numerics.checks import integer
from .layer import AbstractLayer, behind, Change, sample_all, Signal


class Repeat(AbstractLayer):
    """The same layers, one after the other, `number` times.

    **Arguments:**

    - `number`: how often.
    - `layers`: what is repeated. An array in them whose first axis has the length `number` holds one value for each
        time, such as `Dense(64, sigma_w=sigma_w)` with `sigma_w` of shape `(number,)`; all others are shared.

    **Raises:** `ValueError` naming the argument, if `number` is not a positive integer, and for layers that are none.
    """

    number: int = eqx.field(static=True)
    layers: tuple[AbstractLayer, ...]

    def __init__(self, number: int, layers: Sequence[AbstractLayer]):
        self.number = integer("number", number)
        if not isinstance(layers, Sequence) or not all(isinstance(layer, AbstractLayer) for layer in layers):
            raise ValueError(f"`layers` must be a sequence of layers of `jfree.layers`, got {layers!r}.")
        if not layers:
            raise ValueError("`layers` of a `Repeat` must not be empty.")
        self.layers = tuple(layers)

    def own_and_shared(self) -> tuple[tuple[AbstractLayer, ...], tuple[AbstractLayer, ...]]:
        """The layers with nothing but the leaves that hold one value for each time, and with all others."""

        def differs(leaf: object) -> bool:
            return eqx.is_array_like(leaf) and getattr(leaf, "shape", ())[:1] == (self.number,)

        return eqx.partition(self.layers, differs)

    def _times(self) -> tuple[list[tuple[AbstractLayer, ...]], int]:
        """The layers of every time, and how often: where no time differs from another, one stands for all."""
        own, shared = self.own_and_shared()
        if not jax.tree.leaves(own):
            return [self.layers], self.number
        return [eqx.combine(jax.tree.map(lambda x, k=k: x[k], own), shared) for k in range(self.number)], 1

    def unrolled(self) -> tuple[AbstractLayer, ...]:
        times, number = self._times()
        return tuple(one for layers in times for layer in layers for one in layer.unrolled()) * number

    @property
    def reads_mean(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(layer.reads_mean for layer in self.layers)

    @property
    def has_weights(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(layer.has_weights for layer in self.layers)

    @property
    def skips(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(layer.skips for layer in self.layers)

    @property
    def num_laws(self) -> int:
        return sum(layer.num_laws for layer in self.unrolled())

    def parts(self) -> tuple[AbstractLayer, ...]:
        times, number = self._times()
        return tuple(part for layers in times for layer in layers for part in layer.parts()) * number

    def new_width(self) -> Array | None:
        widths = (layer.new_width() for layer in self.unrolled())
        return next((width for width in reversed([*widths]) if width is not None), None)

    def check_width(self, width: Array) -> None:
        for layer in self.unrolled():
            layer.check_width(width)
            width = layer.width_behind(width)

    def forward(self, signal: Signal) -> Signal:
        for layer in self.unrolled():
            signal = behind(layer, signal)
        return signal

    def change(self, signal: Signal, change: Change) -> Change:
        for layer in self.unrolled():
            change = layer.change(signal, change)
            signal = behind(layer, signal)
        return change

    def operations(self, signal: Signal, refine: float) -> tuple[AbstractOperation | None, ...]:
        found: list[AbstractOperation | None] = []
        for layer in self.unrolled():
            found += layer.operations(signal, refine)
            signal = behind(layer, signal)
        return tuple(found)

    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> Callable[..., Array]:
        return eqx.nn.Sequential(sample_all(self.unrolled(), size, scale, key, dtype))

    def row(self) -> tuple[str, str]:
        return "repeat", f"{self.number} times " + " > ".join(" ".join(layer.row()) for layer in self.layers)
