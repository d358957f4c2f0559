"""Weights and biases."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .._calculus.operation import AbstractOperation
from .._calculus.side_and_shift import ChangeSide
from .._numerics.arrays import HostArray
from .._numerics.show import name_of, number
from .layer import AbstractLayer, Change, checked_number, checked_positive, Entries, sampled_size, Signal
from .weights import AbstractWeights, as_weights, BY_NAME as WEIGHTS


class AbstractWeighted(AbstractLayer):
    """Weights and biases, and what they do to signals and curves."""

    width: Float[Array, ""]
    weights: AbstractWeights
    sigma_w: Float[Array, ""]
    sigma_b: Float[Array, ""]

    has_weights: ClassVar[bool] = True

    def __init__(self, width: ArrayLike, weights: str | AbstractWeights, sigma_w: ArrayLike, sigma_b: ArrayLike):
        self.width = checked_positive("width", width)
        self.weights = as_weights(weights)
        self.sigma_w = checked_positive("sigma_w", sigma_w)
        self.sigma_b = checked_number("sigma_b", sigma_b, lambda x: x >= 0, "nonnegative and finite")

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

    def change(self, signal: Signal, change: Change) -> Change:
        seen = change.square - jnp.square(change.mean) if self.weights.centred else change.square
        behind = super().change(signal, change)
        return Change(behind.overlap, behind.mean, jnp.square(self.sigma_w) * seen)

    def operations(self, signal: Signal, refine: float) -> tuple[AbstractOperation | None, ...]:
        ratio = self.positions_per_position * signal.width / self.width
        return self.weights.factor(ratio, self.sigma_w), ChangeSide(ratio)


class Dense(AbstractWeighted):
    """`W x + b` with `W` of `width x N_in`, entries of mean square `sigma_w^2 / N_in`, and `b ~ N(0, sigma_b^2)`.

    **Arguments:** the width behind it; `"gaussian"`, `"orthogonal"` or another weight law; and both scales.

    **Raises:** `ValueError` naming the argument, for an unknown law, or values out of range.
    """

    def __init__(
        self,
        width: ArrayLike,
        weights: str | AbstractWeights = "orthogonal",
        sigma_w: ArrayLike = 1.0,
        sigma_b: ArrayLike = 0.0,
    ):
        super().__init__(width, weights, sigma_w, sigma_b)

    @staticmethod
    def given(width: HostArray, weights: AbstractWeights, sigma_w: HostArray, sigma_b: HostArray) -> "Dense":
        """One or many, of checked parts."""
        dense = object.__new__(Dense)
        for name, value in (("width", width), ("weights", weights), ("sigma_w", sigma_w), ("sigma_b", sigma_b)):
            object.__setattr__(dense, name, value)
        return dense

    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> eqx.nn.Linear:
        num_out = sampled_size(self.width, scale)
        return linear(self.weights, size, num_out, self.sigma_w, self.sigma_b, key, dtype)

    def row(self) -> tuple[str, str]:
        scales = f"sigma_w {number(self.sigma_w)}, sigma_b {number(self.sigma_b)}"
        return "dense", f"width {number(self.width)}, {name_of(self.weights, WEIGHTS)}, {scales}"


def linear(
    law: AbstractWeights, num_in: int, num_out: int, sigma_w: Array, sigma_b: Array, key: PRNGKeyArray, dtype: DTypeLike
) -> eqx.nn.Linear:
    """An Equinox module with weights and biases drawn."""
    drawn = draw(law, (num_out, num_in), sigma_w, sigma_b, key)
    blank = eqx.nn.Linear(num_in, num_out, dtype=dtype, key=key)
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), blank, drawn)


def draw(
    law: AbstractWeights, shape: tuple[int, int], sigma_w: Array, sigma_b: Array, key: PRNGKeyArray
) -> tuple[Float[Array, "N_out N_in"], Float[Array, " N_out"]]:
    """Weights and biases."""
    weight_key, bias_key = jax.random.split(key)
    weight = law.sample(shape, weight_key, sigma_w.dtype)
    if law.centred and shape[1] > 1:
        weight = (weight - jnp.mean(weight, 1, keepdims=True)) / (1 - 1 / shape[1]) ** 0.5
    weight = weight * sigma_w
    return weight, sigma_b * jax.random.normal(bias_key, shape[:1], weight.dtype)
