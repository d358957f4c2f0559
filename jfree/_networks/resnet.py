"""Residual networks, all of whose layers are alike in width."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._calculus.curve import Curve
from .._calculus.extremes import Extremes
from .._layers.activation import Activation
from .._layers.dense import Dense
from .._layers.kinds import extended, Kinds
from .._layers.layer import Signal
from .._layers.weights import AbstractWeights, BY_NAME as WEIGHTS, weight_laws
from .._meanfield.mean_field import elasticities, MeanField
from .._meanfield.moments import in_range
from .._numerics.arrays import common_dtype, Reals
from .._numerics.checks import (
    cast,
    check,
    floats,
    integer,
    mean_of_input,
    nonnegative,
    positive,
    several,
    square_of_input,
)
from .._numerics.show import counted, name_of, number, runs, Table
from ..activations._base import AbstractActivation
from ..activations._linear_pieces import LeakyReLU, Linear, ReLU
from ..activations._names import as_activation, BY_NAME as ACTIVATIONS
from .abstract import AbstractNetwork, num_padded_layers
from .branches import Residual
from .stacked import StackedNetwork


class ResNet(AbstractNetwork):
    """`x <- x + f(x)`, `depth` times, `f` of `layers_per_block` layers `phi(W x + b)`, all of one width.

    **Arguments:**

    - `depth`: the number of blocks.
    - `activation`, `weights`: one, or a sequence of `depth`, one per block.
    - `sigma_w`, `sigma_b`: scalar, or of shape `(depth,)` or `(depth, layers_per_block)`.
    - `layers_per_block`: at least 1.
    - `q0`, `mean0`: mean square and mean of the input's entries.

    **Raises:** `ValueError` naming the argument, for wrong shapes, unknown names, and values out of range.
    """

    depth: int = eqx.field(static=True)
    layers_per_block: int = eqx.field(static=True)
    activation: AbstractActivation | tuple[AbstractActivation, ...]
    weights: tuple[AbstractWeights, ...]
    sigma_w: Float[Array, "..."]
    sigma_b: Float[Array, "..."]
    q0: Float[Array, ""]
    mean0: Float[Array, ""]

    def __init__(
        self,
        depth: int,
        activation: str | AbstractActivation | Sequence[str | AbstractActivation] = "tanh",
        weights: str | AbstractWeights | Sequence[str | AbstractWeights] = "orthogonal",
        sigma_w: Reals = 1.0,
        sigma_b: Reals = 0.0,
        layers_per_block: int = 1,
        q0: ArrayLike = 1.0,
        mean0: ArrayLike = 0.0,
    ):
        self.depth = integer("depth", depth)
        self.layers_per_block = integer("layers_per_block", layers_per_block)
        dtype = common_dtype(sigma_w, sigma_b, q0, mean0)
        if isinstance(activation, str | AbstractActivation):
            self.activation = cast(as_activation(activation), dtype)
        else:
            self.activation = cast(several("activation", activation, as_activation, self.depth, "block"), dtype)
        self.weights = weight_laws(weights, self.depth, "block")
        self.sigma_w = self._scales("sigma_w", floats("sigma_w", sigma_w, dtype), positive, "positive")
        self.sigma_b = self._scales("sigma_b", floats("sigma_b", sigma_b, dtype), nonnegative, "nonnegative")
        self.q0 = square_of_input(q0, dtype)
        self.mean0 = mean_of_input(mean0, self.q0)

    def _scales(self, name: str, value: Array, allowed: Callable[[Any], Any], adjective: str) -> Array:
        shapes = ((), (self.depth,), (self.depth, self.layers_per_block))
        if value.shape not in shapes:
            raise ValueError(f"`{name}` must be a scalar or of shape {shapes[1]} or {shapes[2]}, got {value.shape}.")
        return check(value, allowed, f"`{name}` must be {adjective} and finite.")

    @property
    def activations(self) -> tuple[AbstractActivation, ...]:
        """One activation per layer, blocks one after the other."""
        blocks = self.activation if isinstance(self.activation, tuple) else (self.activation,) * self.depth
        return tuple(a for a in blocks for _ in range(self.layers_per_block))

    @property
    def scales(self) -> tuple[Array, Array]:
        """`sigma_w` and `sigma_b` of every layer, of shape `(depth, layers_per_block)`."""
        shape = (self.depth, self.layers_per_block)

        def for_all(x: Array) -> Array:
            return jnp.broadcast_to(x[:, None] if x.ndim == 1 else x, shape)

        return for_all(self.sigma_w), for_all(self.sigma_b)

    @property
    def layers(self) -> StackedNetwork:
        """Residual blocks of weights and activations, one after the other."""
        return self._stacked()

    def _stacked(self, missing: int = 0) -> StackedNetwork:
        """With so many missing blocks behind the last."""
        per_block, none = self.layers_per_block, (None,) * (missing * self.layers_per_block)
        laws = Kinds.of([*(law for law in self.weights for _ in range(per_block)), *none])
        activations = Kinds.of((*self.activations, *none))
        number = self.depth + missing
        scales = [extended(x, self.depth, missing).ravel() for x in self.scales]
        ones: Any = np.ones(number * per_block, self.q0.dtype)
        layers = laws.each(lambda law: Dense.given(ones, law, *scales)), activations.each(Activation.given)
        places = jax.tree.map(lambda x: x.reshape(number, per_block, *x.shape[1:]), layers)
        ones = ones.reshape(number, per_block)
        one = ones[:, 0]
        branch = StackedNetwork.made(places, None, None, (ones, ones), last_width=one, q0=one, mean0=one)
        kind = np.where(np.arange(number) < self.depth, 0, -1)
        return StackedNetwork.made(
            places=(Kinds((Residual.given(branch),), kind, gaps=missing > 0),),
            depth=self.depth if missing else None,
            order=None,
            widths=(one,),
            last_width=one[0, ...],
            q0=self.q0,
            mean0=self.mean0,
            refine=branch.refine,
            alike=self.alike,
        )

    def propagate(self) -> MeanField:
        """Per layer, see `MeanField`; `q` is that of the preactivations."""
        stacked = self._stacked()
        (place,), (stream,) = stacked.places, stacked.signals()
        chi_q = stacked.slopes((stream,))[:, 0, 0, 0]
        found = jax.vmap(_of_block)(place.members[0], stream)
        q, phi2, slopes = (x.ravel() for x in found)
        chi = jnp.square(self.scales[0].ravel()) * slopes
        chi_q, elasticity = (jnp.repeat(x, self.layers_per_block) for x in (chi_q, elasticities(stream.square, chi_q)))
        return MeanField(q=q, phi2=phi2, chi=chi, chi_q=chi_q, elasticity=elasticity)

    def ritz_values(self) -> Float[Array, "2"]:
        return self._stacked().ritz_values()

    def coarse(self) -> StackedNetwork:
        return self._stacked().coarse()

    def extremes(self) -> Extremes:
        return self._stacked().extremes()

    def jacobian_curve(self, side: str) -> Curve:
        """Both sides are alike: all widths are one."""
        return self._stacked().jacobian_curve("output")

    def padded(self) -> StackedNetwork:
        return self._stacked(num_padded_layers(self.depth) - self.depth)

    def _table(self):
        if self.q0.ndim:
            return None
        step = self.layers_per_block
        blocks = zip(
            (name_of(activation, ACTIVATIONS) for activation in self.activations[::step]),
            (name_of(law, WEIGHTS) for law in self.weights),
            *([" ".join(map(number, row)) for row in scale.tolist()] for scale in self.scales),
            strict=True,
        )
        title = f"ResNet, {counted(self.depth, 'block')} of {counted(step, 'layer')}, q0 = {number(self.q0)}"
        return Table(title, ("block", "activation", "weights", "sigma_w", "sigma_b"), runs([*blocks]))

    @property
    def alike(self) -> bool:
        """Whether all blocks have one law, whatever the variances: then one stands for all."""
        homogeneous = isinstance(self.activation, Linear | ReLU | LeakyReLU)
        numbers, structures = jax.tree.leaves(self.weights), {jax.tree.structure(law) for law in self.weights}
        return homogeneous and self.sigma_w.ndim == 0 and not numbers and len(structures) == 1


def _of_block(block: Any, signal: Signal) -> tuple[Array, Array, Array]:
    """`q`, `phi2` and `E phi'^2` of all its layers."""
    branch = block.stacked(signal)[0]
    _, preactivations = signals = branch.signals()
    slopes = branch.places[1].every(lambda layer, q: layer.activation.slope_moment(q))(in_range(preactivations.square))
    return preactivations.square, branch.after_rounds(signals).square, slopes
