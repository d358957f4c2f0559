"""Residual blocks as layers."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .._calculus.curve import Curve
from .._calculus.factor import point_mass
from .._calculus.operation import AbstractOperation
from .._calculus.sum_of_branches import SumOfBranches
from .._layers.layer import AbstractLayer, Entries, sample_all, Signal
from .._numerics.arrays import is_concrete
from .._numerics.checks import check, is_finite
from .._numerics.show import number
from .stacked import joined, StackedNetwork


class Residual(AbstractLayer):
    """`x -> skip x + scale f(x)`, `f` being layers one after the other, which end with the width they begin with.

    Exact in the limit where `f` begins and ends with weights. Where its last layer acts entry by entry, the slopes of
    several blocks on one stream commute, and are not quite free: in the fourth moment by parts in a thousand.

    **Arguments:**

    - `layers`: those of `f`, at least one with weights.
    - `skip`, `scale`: what the input and the branch are multiplied by, not 0.

    **Raises:** `ValueError` naming the argument, for layers that are none or do not fit together, and values out of
    range.
    """

    layers: tuple[AbstractLayer, ...] | StackedNetwork
    skip: Float[Array, ""] | None
    scale: Float[Array, ""] | None

    reads_mean: ClassVar[bool] = True
    skips: ClassVar[bool] = True

    def __init__(self, layers: Sequence[AbstractLayer], skip: ArrayLike = 1.0, scale: ArrayLike = 1.0):
        if not isinstance(layers, Sequence) or not all(isinstance(layer, AbstractLayer) for layer in layers):
            raise ValueError(f"`layers` must be a sequence of layers of `jfree.layers`, got {layers!r}.")
        if all(layer.new_width() is None for layer in layers):
            raise ValueError("`layers` of a `Residual` must have weights, such as `Dense`.")
        self.layers = tuple(layers)
        self.skip, self.scale = _factor("skip", skip), _factor("scale", scale)

    @staticmethod
    def given(branch: StackedNetwork) -> "Residual":
        """One or many, of stacked layers."""
        block = object.__new__(Residual)
        for name, value in (("layers", branch), ("skip", None), ("scale", None)):
            object.__setattr__(block, name, value)
        return block

    def branch(self, signal: Signal) -> StackedNetwork:
        """The layers, behind a signal."""
        assert signal.mean is not None
        if isinstance(self.layers, StackedNetwork):
            return eqx.tree_at(lambda n: (n.q0, n.mean0), self.layers, (signal.square, signal.mean))
        return StackedNetwork.of(joined(self.layers), signal.width, signal.square, signal.mean)

    @property
    def num_laws(self) -> int:
        return sum(layer.num_laws for layer in self.layers) if isinstance(self.layers, tuple) else 0

    def parts(self) -> tuple[AbstractLayer, ...]:
        assert isinstance(self.layers, tuple)
        return tuple(part for layer in self.layers for part in layer.parts())

    def receive(self, entries: Entries) -> Entries:
        assert isinstance(self.layers, tuple)
        inner = Entries(gaussian=False, bent=entries.bent)
        for layer in joined(self.layers):
            inner = layer.receive(inner)
        return Entries(gaussian=False, bent=entries.bent or inner.bent)

    def check_width(self, width: Array) -> None:
        """**Raises:** `ValueError` if the branch ends with another width."""
        assert isinstance(self.layers, tuple)
        end = width
        for layer in self.layers:
            layer.check_width(end)
            new = layer.new_width()
            end = end if new is None else new
        if is_concrete(end) and is_concrete(width) and not abs(float(end) - float(width)) <= 1e-6 * float(width):
            raise ValueError(
                f"`layers` of a `Residual` must end with the width they begin with, {number(width)}, got {number(end)}."
            )

    def forward(self, signal: Signal) -> Signal:
        (square, mean), skip, scale = self.branch(signal).end(), self._or_one(self.skip), self._or_one(self.scale)
        assert signal.mean is not None
        new = jnp.square(skip) * signal.square + jnp.square(scale) * square + 2 * skip * scale * signal.mean * mean
        return signal.passed(new, lambda before: skip * before + scale * mean)

    def _or_one(self, factor: Array | None) -> Array | float:
        return 1.0 if factor is None else factor

    def operations(self, signal: Signal, refine: int) -> tuple[AbstractOperation | None, ...]:
        branch = self.branch(signal)
        signals = branch.signals()
        layers = tuple(operation for found in branch.operations(signals, refine) for operation in found)
        scales = self.skip is not None or self.scale is not None
        relative = jnp.square(self._or_one(self.scale) / jnp.asarray(self._or_one(self.skip), signal.square.dtype))
        last = (point_mass(relative),) if scales else ()
        one = jnp.ones_like(signal.square)
        num_atoms = max(operation.num_atoms for operation in layers)
        block = SumOfBranches((Curve(layers, last, one, num_atoms),), one, None, (branch.places[0].kind.size,))
        return (block,) if self.skip is None else (block, point_mass(jnp.square(self.skip)))

    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> "Block":
        assert isinstance(self.layers, tuple)
        modules, one = sample_all(self.layers, size, scale, key, dtype), jnp.ones((), dtype)
        return Block(modules, self._or_one(self.skip) * one, self._or_one(self.scale) * one)

    def row(self) -> tuple[str, str]:
        assert isinstance(self.layers, tuple)
        factors = [f"{name} {number(x)}" for name, x in (("skip", self.skip), ("scale", self.scale)) if x is not None]
        return "residual", ", ".join([*factors, " > ".join(" ".join(layer.row()) for layer in self.layers)])


class Block(eqx.Module):
    """`skip x + scale f(x)`, an Equinox module."""

    layers: tuple[Callable[..., Array], ...]
    skip: Float[Array, ""]
    scale: Float[Array, ""]

    def __call__(self, x: Array, *, key: PRNGKeyArray | None = None) -> Array:
        keys: Any = [None] * len(self.layers) if key is None else jax.random.split(key, len(self.layers))
        y = x
        for layer, own in zip(self.layers, keys, strict=True):
            y = layer(y, key=own)
        return self.skip * x + self.scale * y


def _factor(name: str, value: ArrayLike) -> Array | None:
    """None for 1, which costs nothing."""
    if isinstance(value, int | float) and value == 1:
        return None
    array = jnp.asarray(float(value) if isinstance(value, int) else value)
    return check(array, lambda x: (x != 0) & is_finite(x), f"`{name}` must be finite and not 0.")
