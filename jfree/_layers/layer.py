"""What a layer is: it says what it does to a signal, to a curve, and to real vectors."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .._calculus.operation import AbstractOperation, Moments
from .._numerics.arrays import is_concrete
from .._numerics.checks import check, is_finite


class Signal(eqx.Module):
    """Entries of a wide layer: how many (relative to other layers), their mean square, and their mean, None where no
    layer of the network reads it.
    """

    width: Float[Array, ""]
    square: Float[Array, ""]
    mean: Float[Array, ""] | None = None

    def passed(self, square: Array, mean: Callable[[Array], Array] | None = None) -> "Signal":
        """The signal behind a layer, given its mean square and what becomes of the mean, 0 if not given."""
        if self.mean is None:
            return Signal(self.width, square)
        return Signal(self.width, square, jnp.zeros_like(square) if mean is None else mean(self.mean))

    @property
    def variance(self) -> Float[Array, ""]:
        """Of the entries."""
        assert self.mean is not None
        return self.square - jnp.square(self.mean)


class Change(eqx.Module):
    """How the entries `x` of a wide layer change, by `v` each, as the input does along one direction: `E x v`, `E v`
    and `E v^2`.
    """

    overlap: Float[Array, ""]
    mean: Float[Array, ""]
    square: Float[Array, ""]

    def moments(self, signal: Signal) -> Signal:
        """How the moments of the signal change."""
        mean = None if signal.mean is None else self.mean
        return Signal(jnp.zeros_like(signal.width), 2 * self.overlap, mean)


class Entries(NamedTuple):
    """What is known of the entries that come into a layer: whether they are Gaussian of mean 0, independent of each
    other, as they are behind weights; and whether a layer that acts entry by entry has acted on them since the last
    weights, of which another one would not be free.
    """

    gaussian: bool = False
    bent: bool = False


class AbstractLayer(eqx.Module):
    """One layer of a `jfree.Network`."""

    reads_mean: ClassVar[bool] = False  # whether `forward` or `operations` depend on the signal's mean

    has_weights: ClassVar[bool] = False  # those that the Fisher information is of

    skips: ClassVar[bool] = False  # whether its input goes on beside what it makes of it

    @property
    def positions_per_position(self) -> int:
        """How many positions before it become one behind it, where widths are those of one position."""
        return 1

    @property
    def num_laws(self) -> int:
        """How many laws without an elementary S-transform it brings."""
        return 0

    def receive(self, entries: Entries) -> Entries:
        """What is known of the entries behind it.

        **Raises:** `ValueError` if the calculus does not hold for what comes in.
        """
        return entries

    def new_width(self) -> Float[Array, ""] | None:
        """The width behind it, None if it leaves that as it is."""
        return None

    def width_behind(self, width: Array) -> Array:
        """The width behind it, given that before it."""
        new = self.new_width()
        return width if new is None else new

    def parts(self) -> tuple["AbstractLayer", ...]:
        """The layers that it consists of, in the order in which they act: by default itself."""
        return (self,)

    def unrolled(self) -> tuple["AbstractLayer", ...]:
        """The layers one after the other that it stands for: by default itself."""
        return (self,)

    def check_width(self, width: Float[Array, ""]) -> None:
        """**Raises:** `ValueError` if it does not fit behind this width."""

    def bent_branch(self) -> tuple[Any, Any] | None:
        """Weights and activation, if it adds one such layer to its input; or their `Kinds`."""
        return None

    @abc.abstractmethod
    def forward(self, signal: Signal) -> Signal:
        """The signal behind it, but for the width."""

    @abc.abstractmethod
    def operations(self, signal: Signal, refine: float) -> tuple[AbstractOperation | None, ...]:
        """What it does to the curve of `J J^T`, `J` being the Jacobian so far; None stands for nothing. Leaves have no
        axis over layers; `refine` as in `AbstractActivation.slope_factor`.
        """

    def change(self, signal: Signal, change: Change) -> Change:
        """The change behind it. This one holds for functions of Gaussian entries, of which the part along `x` has
        slopes of its own, and for weights, which it does not matter to.
        """

        def behind(signal: Signal) -> tuple[Signal, Array]:
            return self.forward(signal), self.growth(signal)

        (_, gain), (moved, turned) = jax.jvp(behind, (signal,), (change.moments(signal),))
        mean = jnp.zeros_like(change.mean) if moved.mean is None else moved.mean
        return Change(moved.square / 2, mean, gain * change.square + turned * change.overlap)

    def growth(self, signal: Signal) -> Float[Array, ""]:
        """What it multiplies the mean of `J J^T` by."""
        operations = [operation for operation in self.operations(signal, 1) if operation is not None]
        return jnp.exp(log_growth(operations, jnp.zeros_like(signal.square)))

    @abc.abstractmethod
    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> Callable[..., Array]:
        """An Equinox module that maps vectors of this size, with `scale` times the layer's width as output size."""

    @abc.abstractmethod
    def row(self) -> tuple[str, str]:
        """Name and details, for tables (host)."""


def log_growth(operations: Sequence[AbstractOperation], zero: Float[Array, ""]) -> Float[Array, ""]:
    """The logarithm of what operations one after the other multiply the mean of `J J^T` by."""
    moments = Moments(zero, zero, zero, zero - jnp.inf)
    for operation in operations:
        moments = operation.moments(moments)
    return moments.log_mean


def behind(layer: AbstractLayer, signal: Signal) -> Signal:
    """The signal behind a layer, with its width."""
    after = layer.forward(signal)
    return Signal(layer.width_behind(signal.width), after.square, after.mean)


def sampled_size(width: Array, scale: float) -> int:
    return max(1, round(float(width) * scale))


def sample_all(
    layers: Sequence[AbstractLayer], size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike
) -> tuple[Callable[..., Array], ...]:
    """Modules of layers one after the other, the first of which maps vectors of this size."""
    modules = []
    for layer, own in zip(layers, jax.random.split(key, len(layers)), strict=True):
        modules.append(layer.sample(size, scale, own, dtype))
        width = layer.new_width()
        size = size if width is None else sampled_size(width, scale)
    return tuple(modules)


def python_number(rate: Array) -> Any:
    """For modules that take no arrays, where that is known."""
    return float(rate) if is_concrete(rate) else rate


def checked_positive(name: str, value: ArrayLike) -> Array:
    return checked_number(name, value, lambda x: (x > 0) & is_finite(x), "positive and finite")


def checked_number(name: str, value: ArrayLike, allowed: Callable[[Any], Any], adjective: str) -> Array:
    array = jnp.asarray(value) if not isinstance(value, int) else jnp.asarray(float(value))
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"`{name}` must be a number, got {value!r}.")
    return check(array, lambda x: allowed(x) & is_finite(x), f"`{name}` must be {adjective}.")
