"""Norms: to the calculus, multiples of the identity."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .._calculus.factor import point_mass
from .._calculus.operation import AbstractOperation
from .._numerics.checks import is_finite
from .._numerics.show import number
from .layer import AbstractLayer, Change, checked_number, checked_positive, Entries, Signal


class RMSNorm(AbstractLayer):
    """`gain x / sqrt(mean x^2)`. The Jacobian's direction along `x` is lost in the limit: a multiple of the identity.

    **Raises:** `ValueError` if `gain` is not positive and finite.
    """

    gain: Float[Array, ""]

    def __init__(self, gain: ArrayLike = 1.0):
        self.gain = checked_positive("gain", gain)

    def forward(self, signal: Signal) -> Signal:
        rate = self.gain / jnp.sqrt(signal.square)
        return signal.passed(jnp.square(self.gain) * jnp.ones_like(signal.square), lambda mean: rate * mean)

    def change(self, signal: Signal, change: Change) -> Change:
        along = jnp.square(change.overlap) / signal.square
        behind = super().change(signal, change)
        return Change(behind.overlap, behind.mean, jnp.square(self.gain) * (change.square - along) / signal.square)

    def operations(self, signal: Signal, refine: float) -> tuple[AbstractOperation | None, ...]:
        return (point_mass(jnp.square(self.gain) / signal.square),)

    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> eqx.nn.RMSNorm:
        return _with_gain(eqx.nn.RMSNorm(size, eps=_EPS, use_bias=False, dtype=dtype), self.gain)

    def row(self) -> tuple[str, str]:
        return "RMS norm", f"gain {number(self.gain)}"


class LayerNorm(AbstractLayer):
    """`gain (x - mean x) / std x + offset`, with the means over the layer.

    **Arguments:** the gain, and the offset of all entries. An `Activation` cannot follow an offset that is not 0.

    **Raises:** `ValueError` if `gain` is not positive, or one is not finite.
    """

    gain: Float[Array, ""]
    offset: Float[Array, ""] | None

    reads_mean: ClassVar[bool] = True

    def __init__(self, gain: ArrayLike = 1.0, offset: ArrayLike = 0.0):
        self.gain = checked_positive("gain", gain)
        none = isinstance(offset, int | float) and offset == 0
        self.offset = None if none else checked_number("offset", offset, is_finite, "finite")

    def receive(self, entries: Entries) -> Entries:
        return entries if self.offset is None else Entries(gaussian=False, bent=entries.bent)

    def forward(self, signal: Signal) -> Signal:
        square, offset = jnp.square(self.gain), self.offset
        if offset is None:
            return signal.passed(square)
        return signal.passed(square + jnp.square(offset), lambda _: offset)

    def change(self, signal: Signal, change: Change) -> Change:
        assert signal.mean is not None
        overlap = change.overlap - signal.mean * change.mean
        rest = change.square - jnp.square(change.mean) - jnp.square(overlap) / signal.variance
        behind = super().change(signal, change)
        return Change(behind.overlap, behind.mean, jnp.square(self.gain) * rest / signal.variance)

    def operations(self, signal: Signal, refine: float) -> tuple[AbstractOperation | None, ...]:
        return (point_mass(jnp.square(self.gain) / signal.variance),)

    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> eqx.nn.LayerNorm:
        norm = _with_gain(eqx.nn.LayerNorm(size, eps=_EPS, dtype=dtype), self.gain)
        offset = jnp.zeros((), dtype) if self.offset is None else self.offset
        return eqx.tree_at(lambda n: n.bias, norm, jnp.full_like(norm.bias, 1) * offset)

    def row(self) -> tuple[str, str]:
        offset = "" if self.offset is None else f", offset {number(self.offset)}"
        return "layer norm", f"gain {number(self.gain)}{offset}"


# Of norms that are sampled: so small that no signal feels it.
_EPS = 1e-12


def _with_gain(norm: Any, gain: Array) -> Any:
    return eqx.tree_at(lambda n: n.weight, norm, jnp.ones_like(norm.weight) * gain)
