"""Layers: each says what it does to a signal, to a curve, and to real vectors."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from ._activations import AbstractActivation, AbstractManySlopes, AbstractTwoSlopes
from ._curve import AbstractOperation
from ._meanfield import first_moment, in_range, second_moment
from ._misc import check, inexact_asarray, is_concrete, is_finite
from ._names import as_activation, BY_NAME as ACTIVATIONS
from ._operations import ChangeSide, Factor, LawFactor, point_mass
from ._show import name_of, number
from ._weights import AbstractWeights, as_weights, BY_NAME as WEIGHTS


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

    skips: ClassVar[bool] = False  # whether its input goes on beside what it makes of it

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

    def check_width(self, width: Float[Array, ""]) -> None:
        """**Raises:** `ValueError` if it does not fit behind this width."""

    @abc.abstractmethod
    def forward(self, signal: Signal) -> Signal:
        """The signal behind it, but for the width."""

    @abc.abstractmethod
    def operations(self, signal: Signal, refine: int) -> tuple[AbstractOperation | None, ...]:
        """What it does to the curve of `J J^T`, `J` being the Jacobian so far; None stands for nothing. Leaves have no
        axis over layers; `refine` as in `AbstractActivation.slope_factor`.
        """

    @abc.abstractmethod
    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> Callable[..., Array]:
        """An Equinox module that maps vectors of this size, the layer's own width being `scale` times its own."""

    @abc.abstractmethod
    def row(self) -> tuple[str, str]:
        """Name and details, for tables (host)."""


class Dense(AbstractLayer):
    """`W x + b` with `W` of `width x N_in`, entries of mean square `sigma_w^2 / N_in`, and `b ~ N(0, sigma_b^2)`.

    **Arguments:** the width behind it; `"gaussian"`, `"orthogonal"` or another weight law; and both scales.

    **Raises:** `ValueError` naming the argument, for an unknown law, or values out of range.
    """

    width: Float[Array, ""]
    weights: AbstractWeights
    sigma_w: Float[Array, ""]
    sigma_b: Float[Array, ""]

    def __init__(
        self,
        width: ArrayLike,
        weights: str | AbstractWeights = "orthogonal",
        sigma_w: ArrayLike = 1.0,
        sigma_b: ArrayLike = 0.0,
    ):
        self.width = _positive("width", width)
        self.weights = as_weights(weights)
        self.sigma_w = _positive("sigma_w", sigma_w)
        self.sigma_b = _number("sigma_b", sigma_b, lambda x: x >= 0, "nonnegative and finite")

    @staticmethod
    def given(width: Array, weights: AbstractWeights, sigma_w: Array, sigma_b: Array) -> "Dense":
        """One or many, of checked parts."""
        dense = object.__new__(Dense)
        for name, value in (("width", width), ("weights", weights), ("sigma_w", sigma_w), ("sigma_b", sigma_b)):
            object.__setattr__(dense, name, value)
        return dense

    @property
    def reads_mean(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.weights.centred

    def receive(self, entries: Entries) -> Entries:
        return Entries(gaussian=True, bent=False)

    def new_width(self) -> Array:
        return self.width

    def forward(self, signal: Signal) -> Signal:
        seen = signal.variance if self.weights.centred else signal.square
        square = jnp.square(self.sigma_w) * seen + jnp.square(self.sigma_b)
        square = jnp.maximum(square, jnp.finfo(square.dtype).tiny)  # it may decay out of range
        return signal.passed(square)

    def operations(self, signal: Signal, refine: int) -> tuple[AbstractOperation | None, ...]:
        ratio = signal.width / self.width
        return self.weights.factor(ratio, self.sigma_w), ChangeSide(ratio)

    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> eqx.nn.Linear:
        num_out = sampled_size(self.width, scale)
        weight, bias = draw(self.weights, (num_out, size), self.sigma_w, self.sigma_b, key)
        linear = eqx.nn.Linear(size, num_out, dtype=dtype, key=key)
        return eqx.tree_at(lambda layer: (layer.weight, layer.bias), linear, (weight, bias))

    def row(self) -> tuple[str, str]:
        scales = f"sigma_w {number(self.sigma_w)}, sigma_b {number(self.sigma_b)}"
        return "dense", f"width {number(self.width)}, {name_of(self.weights, WEIGHTS)}, {scales}"


class Activation(AbstractLayer):
    """`phi(x)`, entry by entry, behind weights.

    **Arguments:** a name or an activation of `jfree.activations`.

    **Raises:** `ValueError` for an unknown name.
    """

    activation: AbstractActivation
    keep: Float[Array, ""] | None

    def __init__(self, activation: str | AbstractActivation, *, keep: ArrayLike | None = None):
        self.activation = as_activation(activation)
        self.keep = None if keep is None else inexact_asarray(keep)

    @staticmethod
    def given(activation: AbstractActivation) -> "Activation":
        """One or many."""
        return Activation(activation)

    @property
    def num_laws(self) -> int:
        if isinstance(self.activation, AbstractTwoSlopes | AbstractManySlopes):
            return int(isinstance(self.activation, AbstractManySlopes))
        factor = jax.eval_shape(lambda phi: phi.slope_factor(jnp.ones(())), self.activation)
        return int(isinstance(factor, LawFactor))

    def receive(self, entries: Entries) -> Entries:
        if not entries.gaussian:
            raise ValueError(
                "`layers`: an `Activation` must follow weights, such as `Dense`, with at most norms and scales between "
                "them: its input has to be Gaussian of mean 0."
            )
        return Entries(gaussian=False, bent=True)

    def dropped(self, rate: Array) -> "Activation":
        """With a share of its entries set to 0: one law, since two that act entry by entry are not free."""
        return Activation(self.activation, keep=(1 - rate) * (1 if self.keep is None else self.keep))

    def forward(self, signal: Signal) -> Signal:
        keep = 1 if self.keep is None else self.keep
        square = second_moment(self.activation, signal.square) / keep
        return signal.passed(square, lambda _: first_moment(self.activation, signal.square))

    def operations(self, signal: Signal, refine: int) -> tuple[AbstractOperation | None, ...]:
        factor = self.activation.slope_factor(in_range(signal.square), refine)
        if self.keep is None:
            return (factor,)
        one = jnp.ones_like(signal.square)
        factor = point_mass(one) if factor is None else factor
        if not isinstance(factor, Factor | LawFactor):
            raise ValueError(f"`Dropout` must not follow an activation whose slopes are a {type(factor).__name__}.")
        return (factor.masked(self.keep),)

    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> Callable[..., Array]:
        values = eqx.nn.Lambda(self.activation)
        return values if self.keep is None else eqx.nn.Sequential([values, eqx.nn.Dropout(_python(1 - self.keep))])

    def row(self) -> tuple[str, str]:
        return "activation", name_of(self.activation, ACTIVATIONS)


class RMSNorm(AbstractLayer):
    """`gain x / sqrt(mean x^2)`. The Jacobian's direction along `x` is lost in the limit: a multiple of the identity.

    **Raises:** `ValueError` if `gain` is not positive and finite.
    """

    gain: Float[Array, ""]

    def __init__(self, gain: ArrayLike = 1.0):
        self.gain = _positive("gain", gain)

    def forward(self, signal: Signal) -> Signal:
        rate = self.gain / jnp.sqrt(signal.square)
        return signal.passed(jnp.square(self.gain) * jnp.ones_like(signal.square), lambda mean: rate * mean)

    def operations(self, signal: Signal, refine: int) -> tuple[AbstractOperation | None, ...]:
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
        self.gain = _positive("gain", gain)
        none = isinstance(offset, int | float) and offset == 0
        self.offset = None if none else _number("offset", offset, is_finite, "finite")

    def receive(self, entries: Entries) -> Entries:
        return entries if self.offset is None else Entries(gaussian=False, bent=entries.bent)

    def forward(self, signal: Signal) -> Signal:
        square, offset = jnp.square(self.gain), self.offset
        if offset is None:
            return signal.passed(square)
        return signal.passed(square + jnp.square(offset), lambda _: offset)

    def operations(self, signal: Signal, refine: int) -> tuple[AbstractOperation | None, ...]:
        return (point_mass(jnp.square(self.gain) / signal.variance),)

    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> eqx.nn.LayerNorm:
        norm = _with_gain(eqx.nn.LayerNorm(size, eps=_EPS, dtype=dtype), self.gain)
        offset = jnp.zeros((), dtype) if self.offset is None else self.offset
        return eqx.tree_at(lambda n: n.bias, norm, jnp.full_like(norm.bias, 1) * offset)

    def row(self) -> tuple[str, str]:
        offset = "" if self.offset is None else f", offset {number(self.offset)}"
        return "layer norm", f"gain {number(self.gain)}{offset}"


class Scale(AbstractLayer):
    """`factor x`.

    **Raises:** `ValueError` if `factor` is 0 or not finite.
    """

    factor: Float[Array, ""]

    def __init__(self, factor: ArrayLike):
        self.factor = _number("factor", factor, lambda x: (x != 0) & is_finite(x), "finite and not 0")

    def forward(self, signal: Signal) -> Signal:
        return signal.passed(jnp.square(self.factor) * signal.square, lambda mean: self.factor * mean)

    def operations(self, signal: Signal, refine: int) -> tuple[AbstractOperation | None, ...]:
        return (point_mass(jnp.square(self.factor)),)

    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> "Times":
        return Times(self.factor)

    def row(self) -> tuple[str, str]:
        return "scale", number(self.factor)


class Times(eqx.Module):
    """Multiplies by a number, which is trained."""

    factor: Float[Array, ""]

    def __call__(self, x: Array, *, key: PRNGKeyArray | None = None) -> Array:
        return self.factor * x


class Dropout(AbstractLayer):
    """Sets a share of the entries to 0, at random, and divides the others by what is kept: as in training.

    **Arguments:** `rate`, the share that is set to 0.

    **Raises:** `ValueError` if `rate` is not at least 0 and less than 1.
    """

    rate: Float[Array, ""]

    def __init__(self, rate: ArrayLike):
        self.rate = _number("rate", rate, lambda x: (x >= 0) & (x < 1), "at least 0 and less than 1")

    def receive(self, entries: Entries) -> Entries:
        if entries.bent:
            raise ValueError(
                "`layers`: a `Dropout` must stand right behind an `Activation`, or where no other layer has acted "
                "entry by entry since the last weights."
            )
        return Entries(gaussian=False, bent=True)

    def forward(self, signal: Signal) -> Signal:
        return signal.passed(signal.square / (1 - self.rate), lambda mean: mean)

    def operations(self, signal: Signal, refine: int) -> tuple[AbstractOperation | None, ...]:
        return (point_mass(jnp.ones_like(signal.square)).masked(1 - self.rate),)

    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> eqx.nn.Dropout:
        return eqx.nn.Dropout(_python(self.rate))

    def row(self) -> tuple[str, str]:
        return "dropout", f"rate {number(self.rate)}"


# Of norms that are sampled: so small that no signal feels it.
_EPS = 1e-12


def _with_gain(norm: Any, gain: Array) -> Any:
    return eqx.tree_at(lambda n: n.weight, norm, jnp.ones_like(norm.weight) * gain)


def draw(
    law: AbstractWeights, shape: tuple[int, int], sigma_w: Array, sigma_b: Array, key: PRNGKeyArray
) -> tuple[Float[Array, "N_l N_l-1"], Float[Array, " N_l"]]:
    """Weights and biases."""
    weight_key, bias_key = jax.random.split(key)
    weight = law.sample(shape, weight_key, sigma_w.dtype)
    if law.centred and shape[1] > 1:
        weight = (weight - jnp.mean(weight, 1, keepdims=True)) / (1 - 1 / shape[1]) ** 0.5
    weight = weight * sigma_w
    return weight, sigma_b * jax.random.normal(bias_key, shape[:1], weight.dtype)


def sampled_size(width: Array, scale: float) -> int:
    return max(1, round(float(width) * scale))


def _python(rate: Array) -> Any:
    """For modules that take no arrays, where that is known."""
    return float(rate) if is_concrete(rate) else rate


def _positive(name: str, value: ArrayLike) -> Array:
    return _number(name, value, lambda x: (x > 0) & is_finite(x), "positive and finite")


def _number(name: str, value: ArrayLike, allowed: Callable[[Any], Any], adjective: str) -> Array:
    array = jnp.asarray(value) if not isinstance(value, int) else jnp.asarray(float(value))
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"`{name}` must be a number, got {value!r}.")
    return check(array, lambda x: allowed(x) & is_finite(x), f"`{name}` must be {adjective}.")
