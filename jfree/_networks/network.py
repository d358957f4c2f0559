"""Networks made of any layers, one after the other."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._calculus.curve import Curve
from .._calculus.extremes import Extremes
from .._layers.activation import Activation
from .._layers.conv import AbstractConv
from .._layers.dense import Dense
from .._layers.layer import AbstractLayer, Entries
from .._meanfield.mean_field import MeanField
from .._numerics.arrays import common_dtype, is_concrete
from .._numerics.checks import cast, mean_of_input, positive, scalar, square_of_input
from .._numerics.show import counted, number, runs, Table
from ..activations._base import AbstractActivation
from ..activations._linear_pieces import Linear
from .abstract import AbstractNetwork
from .mlp import MLP
from .stacked import joined, StackedNetwork, unrolled


class Network(AbstractNetwork):
    """Layers, one after the other, from an input of `width` entries with mean square `q0` and mean `mean0`.

    **Arguments:**

    - `width`: `N_0`; of this and the layers' widths only the ratios matter.
    - `layers`: from input to output, of `jfree.layers`.
    - `q0`, `mean0`: mean square and mean of the input's entries.
    - `shape`: of one example, if the network stands for a model that takes arrays.

    **Raises:** `ValueError` naming the argument, for layers that are none or do not fit together, and values out of
    range.
    """

    width: Float[Array, ""]
    layers: tuple[AbstractLayer, ...]
    q0: Float[Array, ""]
    mean0: Float[Array, ""]
    shape: tuple[int, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        width: ArrayLike,
        layers: Sequence[AbstractLayer],
        q0: ArrayLike = 1.0,
        mean0: ArrayLike = 0.0,
        *,
        shape: tuple[int, ...] | None = None,
    ):
        if not isinstance(layers, Sequence) or not all(isinstance(layer, AbstractLayer) for layer in layers):
            raise ValueError(f"`layers` must be a sequence of layers of `jfree.layers`, got {layers!r}.")
        if not layers:
            raise ValueError("`layers` must not be empty.")
        dtype = common_dtype(width, q0, mean0, *(x for x in jax.tree.leaves(tuple(layers)) if eqx.is_inexact_array(x)))
        self.width = scalar("width", width, dtype, positive, "positive and finite")
        self.layers = cast(tuple(layers), dtype)
        self.q0 = square_of_input(q0, dtype)
        self.mean0 = mean_of_input(mean0, self.q0)
        self.shape = shape
        _check_positions(self.layers)
        _check_entries(joined(self.layers))
        _check_widths(unrolled(self.layers), self._widths())

    def _stacked(self, pad: bool = False) -> StackedNetwork:
        return StackedNetwork.of(joined(self.layers), self.width, self.q0, self.mean0, pad)

    @property
    def depth(self) -> int:
        """The number of layers."""
        return len(unrolled(self.layers))

    @property
    def widths(self) -> Float[Array, " widths"]:
        """`N_0` and the widths behind all layers."""
        return jnp.stack(self._widths())

    def _widths(self) -> list[Array]:
        widths = [self.width]
        for layer in unrolled(self.layers):
            widths.append(layer.width_behind(widths[-1]))
        return widths

    def as_mlp(self) -> MLP | None:
        """The same network, if it is an MLP: dense layers, each with an activation behind it at most."""
        dense: list[Dense] = []
        activations: list[AbstractActivation] = []
        for layer in unrolled(self.layers):
            match layer:
                case Dense():
                    dense.append(layer)
                    activations.append(Linear())
                case Activation(activation=activation, keep=None) if activations and isinstance(
                    activations[-1], Linear
                ):
                    activations[-1] = activation
                case _:
                    return None
        if dense[0].weights.centred and not (is_concrete(self.mean0) and bool(self.mean0 == 0)):
            return None  # an MLP knows no mean of its input
        sigma_w, sigma_b = (jnp.stack([getattr(layer, name) for layer in dense]) for name in ("sigma_w", "sigma_b"))
        return MLP(
            jnp.stack([self.width, *(layer.width for layer in dense)]),
            activations,
            [layer.weights for layer in dense],
            sigma_w,
            sigma_b,
            self.q0,
        )

    def propagate(self) -> MeanField:
        """Layer by layer; an `Activation` and a `Dropout` behind it are one.

        - `q`, the mean square of what comes in, and `phi2`, that of what goes out;
        - `chi` and `chi_q`, the factors by which squared gradients and differences of the mean square grow;
        - `elasticity`, by what relative differences have grown behind the last layer.
        """
        return self._stacked().propagate()

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

    def padded(self) -> "StackedNetwork":
        return self._stacked(pad=True)

    def _table(self):
        if self.width.ndim:
            return None
        title = f"Network, {counted(self.depth, 'layer')}, width {number(self.width)}, q0 = {number(self.q0)}"
        return Table(title, ("layer", "kind", ""), runs([layer.row() for layer in self.layers]))


# Both ask a layer that is there again and again once for all that comes in alike.


def _check_entries(layers: Sequence[AbstractLayer]) -> None:
    entries, known = Entries(), {}
    for layer in layers:
        case = id(layer), entries
        known[case] = entries = known.get(case) or layer.receive(entries)


def _check_widths(layers: Sequence[AbstractLayer], widths: Sequence[Array]) -> None:
    pairs = {(id(layer), id(before)): (layer, before) for layer, before in zip(layers, widths, strict=False)}
    for layer, before in pairs.values():
        layer.check_width(before)


def _check_positions(layers: Sequence[AbstractLayer]) -> None:
    """**Raises:** `ValueError` if widths would be units of one position here and of all there."""
    parts = [part for layer in layers for part in layer.parts() if isinstance(part, AbstractConv)]
    if len({part.positions is None for part in parts}) > 1:
        raise ValueError("`positions` must be given to all `Conv` and `Patches` of a network, or to none.")
