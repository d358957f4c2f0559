"""The free deterministic equivalent of one given network: measured laws in place of those of an ensemble."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike

from .._calculus.curve import Curve
from .._layers.layer import AbstractLayer
from .._layers.measured import fitted, MeasuredLaw, MeasuredSlopes, MeasuredWeights, Passed, squared_singular_values
from .._meanfield.mean_field import COLUMNS, elasticities, MeanField
from .._numerics.arrays import common_dtype
from .._numerics.checks import check, floats, is_finite, several
from .._numerics.show import counted, number, runs, Table
from ..activations._base import AbstractActivation
from ..activations._linear_pieces import Linear
from ..activations._names import as_activation
from .abstract import AbstractNetwork
from .network import Network


class MeasuredMLP(AbstractNetwork):
    """An MLP at one input: laws of the eigenvalues of `W_l^T W_l`, and of the squared slopes `phi_l'(h_l)^2`."""

    network: Network  # weights and slopes by turns

    def propagate(self) -> MeanField:
        """As measured: `q` and `phi2` are means over units, `chi` has `sigma_w^2 = mean(W^2) N_in`."""
        field = self.network.propagate()
        weights, slopes = (jax.tree.map(lambda x, first=first: x[first::2], field) for first in (0, 1))
        chi_q = slopes.chi_q * jnp.append(weights.chi_q[1:], weights.chi_q[-1:])
        return MeanField(
            q=slopes.q,
            phi2=slopes.phi2,
            chi=weights.chi * slopes.chi,
            chi_q=chi_q,
            elasticity=elasticities(slopes.q, chi_q),
        )

    def jacobian_curve(self, side: str) -> Curve:
        return self.network.jacobian_curve(side)

    def _table(self):
        if self.network.width.ndim:
            return None
        widths = self.network.widths[::2]
        rows = zip((widths[:-1] / widths[1:]).tolist(), self.propagate().rows, strict=True)
        lines = [(number(ratio), *row) for ratio, row in rows]
        title = f"MLP with given weights, {counted(len(lines), 'layer')}"
        return Table(title, ("layer", "inputs per output", *COLUMNS), runs(lines))

    def fisher_curve(self) -> Curve:
        raise ValueError("`net` must be an `MLP`: the Fisher spectrum of a measured network is not available.")


def from_weights(
    weights: Sequence[ArrayLike],
    biases: Sequence[ArrayLike | None],
    activations: str | AbstractActivation | Sequence[str | AbstractActivation],
    x: ArrayLike,
) -> MeasuredMLP:
    """The network whose Jacobian has the spectrum that given weights would have if their layers were free.

    For a trained network it tells apart what the single layers contribute, which it keeps as they are, from how their
    singular vectors are aligned, which it forgets: the difference from the spectrum of the network's own Jacobian.
    Of an `eqx.nn.MLP`:

    ```python
    layers, activations = model.layers, jfree.from_equinox(model).activations
    net = jfree.from_weights([layer.weight for layer in layers], [layer.bias for layer in layers], activations, x)
    spectrum = jfree.jacobian_spectrum(net)
    ```

    **Arguments:**

    - `weights`: `W_l` of shape `(N_l, N_{l-1})`, one per layer.
    - `biases`: `b_l` of shape `(N_l,)` or `None`, one per layer.
    - `activations`: one for all layers but the last, which is linear, or a sequence of one per layer, as in `MLP`.
    - `x`: the input, of shape `(N_0,)`.

    **Returns:** a network for `jfree.jacobian_spectrum`. Where every other matrix is a multiple of the identity, its
    spectrum is that of the one which is not, point by point: the density is 0 between the atoms and, but for rounding,
    NaN on them.

    **Raises:** `ValueError` naming the argument, for shapes that do not fit, values that are not finite, or a Jacobian
    that vanishes.
    """
    if not isinstance(biases, Sequence):
        raise ValueError(f"`biases` must be a sequence of one per layer, each an array or `None`, got {biases!r}.")
    dtype = common_dtype(*weights, *(bias for bias in biases if bias is not None), x)
    weights = [_finite("weights", weight, dtype) for weight in weights]
    x = _finite("x", x, dtype)
    widths = _widths(weights, x)
    forward = zip(weights, _biases(biases, widths[1:], dtype), _activations(activations, len(weights)), strict=True)

    layers: list[AbstractLayer] = []
    q0 = jnp.mean(jnp.square(x))
    for weight, bias, activation in forward:
        h = weight @ x + bias
        variance = jnp.mean(jnp.square(weight)) * weight.shape[1]
        eigenvalues = squared_singular_values(_not_all_zero("weights", weight))
        passed = Passed(jnp.mean(jnp.square(x)), jnp.mean(jnp.square(h)), jnp.mean(h), variance)
        layers.append(MeasuredWeights(passed, jnp.asarray(weight.shape[0], dtype), MeasuredLaw.of(eigenvalues)))
        x = activation(h)
        slopes = activation.derivative(h)
        squares = _not_all_zero("activations", jnp.square(slopes))
        growth = jnp.mean(x * slopes * h) / jnp.mean(jnp.square(h))
        passed = Passed(jnp.mean(jnp.square(h)), jnp.mean(jnp.square(x)), jnp.mean(x), growth)
        layers.append(MeasuredSlopes(passed, MeasuredLaw.of(squares)))
    return MeasuredMLP(Network(jnp.asarray(widths[0], dtype), fitted(layers), q0))


def _finite(name: str, value: ArrayLike, dtype: DTypeLike) -> Array:
    return check(floats(name, value, dtype), is_finite, f"`{name}` must be finite.")


def _not_all_zero(name: str, values: Array) -> Array:
    message = f"`{name}` must not make the Jacobian vanish at `x`: in some layer they are, or their slopes are, all 0."
    return check(values, lambda values: (values != 0).any(), message)


def _widths(weights: list[Array], x: Array) -> list[int]:
    if not weights or x.ndim != 1:
        raise ValueError("`weights` must be one matrix per layer, at least one, and `x` of shape (N_0,).")
    widths = [x.size]
    for layer, weight in enumerate(weights, 1):
        if weight.ndim != 2 or weight.shape[1] != widths[-1]:
            raise ValueError(f"`weights` of layer {layer} must be of shape (N, {widths[-1]}), got {weight.shape}.")
        widths.append(weight.shape[0])
    return widths


def _biases(biases: Sequence[ArrayLike | None], sizes: list[int], dtype: DTypeLike) -> list[Array]:
    if len(biases) != len(sizes):
        raise ValueError(f"`biases` must have one entry per layer: {len(sizes)}, got {len(biases)}.")
    filled = [
        jnp.zeros(n, dtype) if b is None else _finite("biases", b, dtype) for b, n in zip(biases, sizes, strict=True)
    ]
    for bias, size in zip(filled, sizes, strict=True):
        if bias.shape != (size,):
            raise ValueError(f"`biases` must be `None` or of shape (N_l,): ({size},), got {bias.shape}.")
    return filled


def _activations(
    activations: str | AbstractActivation | Sequence[str | AbstractActivation], depth: int
) -> tuple[AbstractActivation, ...]:
    if isinstance(activations, str | AbstractActivation):
        return (as_activation(activations, "activations"),) * (depth - 1) + (Linear(),)
    return several("activations", activations, lambda a: as_activation(a, "activations"), depth, "layer")
