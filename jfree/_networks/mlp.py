"""Multilayer perceptrons."""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._calculus.curve import Curve
from .._calculus.extremes import Extremes
from .._layers.activation import Activation
from .._layers.dense import Dense
from .._layers.kinds import extended, Kinds
from .._layers.weights import AbstractWeights, BY_NAME as WEIGHTS, weight_laws
from .._meanfield.mean_field import elasticities, MeanField
from .._meanfield.moments import in_range
from .._numerics.arrays import common_dtype, Reals
from .._numerics.checks import cast, check, floats, nonnegative, per_layer, positive, several, square_of_input
from .._numerics.show import counted, name_of, number, runs, Table
from ..activations._base import AbstractActivation
from ..activations._names import as_activation, BY_NAME as ACTIVATIONS
from .abstract import AbstractNetwork, num_padded_layers
from .stacked import StackedNetwork


class MLP(AbstractNetwork):
    """`x_l = phi_l(W_l x_{l-1} + b_l)`, `l = 1..L`, from an input with `|x_0|^2 / N_0 = q0`.

    **Arguments:**

    - `widths`: `N_0..N_L`, real-valued and positive; only their ratios matter.
    - `activation`: a name or an activation for all layers but the last, or a sequence of `L`, one per layer.
    - `weights`: `"gaussian"`, `"orthogonal"` or a weight law for all layers, or a sequence of `L`.
    - `sigma_w`, `sigma_b`: scale of weights (at fan-in) and biases, scalar or of shape `(L,)`.
    - `q0`: mean square of the input's entries.
    - `final_activation`: the last layer's; not along with a sequence of activations, of which the last is that.

    **Raises:** `ValueError` naming the argument, for wrong lengths, unknown names, and values that are negative, zero
    where that is not allowed, or not finite.
    """

    widths: Float[Array, " widths"]
    activation: AbstractActivation | tuple[AbstractActivation, ...]
    final_activation: AbstractActivation | None
    weights: tuple[AbstractWeights, ...]
    sigma_w: Float[Array, "..."]
    sigma_b: Float[Array, "..."]
    q0: Float[Array, ""]

    def __init__(
        self,
        widths: Reals,
        activation: str | AbstractActivation | Sequence[str | AbstractActivation] = "tanh",
        weights: str | AbstractWeights | Sequence[str | AbstractWeights] = "orthogonal",
        sigma_w: Reals = 1.0,
        sigma_b: Reals = 0.0,
        q0: ArrayLike = 1.0,
        final_activation: str | AbstractActivation = "linear",
    ):
        dtype = common_dtype(widths, sigma_w, sigma_b, q0)
        widths = floats("widths", widths, dtype)
        if widths.ndim != 1 or widths.shape[0] < 2:
            raise ValueError("`widths` must be a sequence N_0..N_L of at least two widths.")
        self.widths = check(widths, positive, "`widths` must be positive and finite.")
        depth = widths.shape[0] - 1
        if isinstance(activation, str | AbstractActivation):
            self.activation = as_activation(activation)
            self.final_activation = as_activation(final_activation, "final_activation")
        elif final_activation != "linear":
            raise ValueError("`final_activation` is the last of a sequence of activations: give one or the other.")
        else:
            self.activation = several("activation", activation, as_activation, depth, "layer")
            self.final_activation = None
        self.activation, self.final_activation = cast((self.activation, self.final_activation), dtype)
        self.weights = weight_laws(weights, depth, "layer")
        self.sigma_w = per_layer("sigma_w", floats("sigma_w", sigma_w, dtype), depth, positive, "positive")
        self.sigma_b = per_layer("sigma_b", floats("sigma_b", sigma_b, dtype), depth, nonnegative, "nonnegative")
        self.q0 = square_of_input(q0, dtype)

    @property
    def depth(self) -> int:
        """The number of layers, `L`."""
        return self.widths.shape[-1] - 1

    @property
    def activations(self) -> tuple[AbstractActivation, ...]:
        """One activation per layer."""
        if isinstance(self.activation, tuple):
            return self.activation
        assert self.final_activation is not None
        return (self.activation,) * (self.depth - 1) + (self.final_activation,)

    @property
    def scales(self) -> tuple[Array, Array]:
        """`sigma_w` and `sigma_b` of every layer, of shape `(L,)`."""
        return jnp.broadcast_to(self.sigma_w, (self.depth,)), jnp.broadcast_to(self.sigma_b, (self.depth,))

    @property
    def layers(self) -> StackedNetwork:
        """Weights and activations, one after the other."""
        return self._stacked()

    def _stacked(self, missing: int = 0) -> StackedNetwork:
        """With so many rounds behind the last in which both are missing."""
        none = (None,) * missing
        laws, activations = Kinds.of((*self.weights, *none)), Kinds.of((*self.activations, *none))
        parts = [(self.widths, self.depth + 1), (self.sigma_w, self.depth), (self.sigma_b, self.depth)]
        widths, *scales = (extended(x, number, missing) for x, number in parts)
        return StackedNetwork.made(
            places=(
                laws.each(lambda law: Dense.given(widths[1:], law, *scales)),
                activations.each(Activation.given),
            ),
            widths=(widths[:-1], widths[1:]),
            last_width=widths[-1, ...],
            q0=self.q0,
            mean0=np.zeros((), self.q0.dtype),  # pyright: ignore[reportArgumentType]
            depth=self.depth if missing else None,
            order=None,
        )

    def propagate(self) -> MeanField:
        """Per layer, see `MeanField`; `q` is that of the preactivations."""
        stacked = self._stacked()
        _, preactivations = signals = stacked.signals()
        q = preactivations.square
        phi2 = stacked.after_rounds(signals).square
        weights, activations = jnp.moveaxis(stacked.slopes(signals), 1, 0)
        following = jnp.concatenate([weights[1:], weights[-1:]])
        chi_q = (following @ activations)[:, 0, 0]
        slopes = Kinds.of(self.activations).every(lambda phi, q: phi.slope_moment(q))(in_range(q))
        return MeanField(
            q=q,
            phi2=phi2,
            chi=jnp.square(self.scales[0]) * slopes,
            chi_q=chi_q,
            elasticity=elasticities(q, chi_q),
        )

    def ritz_values(self) -> Float[Array, "2"]:
        return self._stacked().ritz_values()

    def coarse(self) -> StackedNetwork:
        return self._stacked().coarse()

    def extremes(self) -> Extremes:
        return self._stacked().extremes()

    def jacobian_curve(self, side: str) -> Curve:
        return self._stacked().jacobian_curve(side)

    def fisher_curve(self) -> Curve:
        return self._stacked().fisher_curve().whole()

    def padded(self) -> StackedNetwork:
        return self._stacked(num_padded_layers(self.depth) - self.depth)

    def _table(self):
        if self.widths.ndim > 1:
            return None
        layers = zip(
            (f"{number(a)} -> {number(b)}" for a, b in itertools.pairwise(self.widths.tolist())),
            (name_of(activation, ACTIVATIONS) for activation in self.activations),
            (name_of(law, WEIGHTS) for law in self.weights),
            *(map(number, scale.tolist()) for scale in self.scales),
            strict=True,
        )
        header = ("layer", "widths", "activation", "weights", "sigma_w", "sigma_b")
        return Table(f"MLP, {counted(self.depth, 'layer')}, q0 = {number(self.q0)}", header, runs([*layers]))
