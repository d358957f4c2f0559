"""The free deterministic equivalent of one given network: measured laws in place of those of an ensemble."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .._calculus.atoms import Atoms
from .._calculus.curve import Curve
from .._calculus.factor import Factor
from .._calculus.law import Law
from .._calculus.law_factor import LawFactor
from .._calculus.operation import AbstractOperation
from .._calculus.side_and_shift import ChangeSide
from .._meanfield.moments import COLUMNS, elasticities, MeanField
from .._numerics.arrays import common_dtype
from .._numerics.checks import check, floats, is_finite, several
from .._numerics.show import counted, number, runs, Table
from ..activations._base import AbstractActivation
from ..activations._names import as_activation
from ..activations._two_slopes import Linear
from .abstract import AbstractNetwork, curve_of

# More atoms of one law seldom outlive the product with another.
_MAX_ATOMS = 4


class _Spectra(eqx.Module):
    """Of one matrix per layer: the share of eigenvalues that are not 0, and the law of those."""

    rank: Float[Array, " layers"]
    law: Law

    @staticmethod
    def of(values: list[Array]) -> "_Spectra":
        size = max(x.size for x in values)
        laws = [_nonzero_law(x).resized(size, _MAX_ATOMS, x.dtype) for x in values]
        rank = jnp.stack([jnp.mean(x > 0, dtype=x.dtype) for x in values])
        return _Spectra(rank, jax.tree.map(lambda *leaves: jnp.stack(leaves), *laws))

    @property
    def operations(self) -> tuple[AbstractOperation, ...]:
        """A projection, and the law on its range, which together keep the digits of the rank."""
        one = jnp.ones_like(self.rank)
        atoms = Atoms(self.rank, 0 * self.rank[:, None], self.rank[:, None]).resized(_MAX_ATOMS)
        projection = Factor(self.rank, one, 1 / self.rank, atoms)
        return projection, ChangeSide(1 / self.rank), LawFactor(self.law), ChangeSide(self.rank)


class MeasuredMLP(AbstractNetwork):
    """An MLP at one input: laws of the eigenvalues of `W_l^T W_l`, and of the squared slopes `phi_l'(h_l)^2`."""

    ratio: Float[Array, " layers"]
    weights: _Spectra
    slopes: _Spectra
    field: MeanField

    def propagate(self) -> MeanField:
        """As measured: `q` and `phi2` are means over units, `chi` has `sigma_w^2 = mean(W^2) N_in`."""
        return self.field

    def jacobian_curve(self, side: str) -> Curve:
        input_per_output = jnp.prod(self.ratio)
        operations = (*self.weights.operations, ChangeSide(self.ratio), *self.slopes.operations)
        last = (ChangeSide(1 / input_per_output[None]),) if side == "input" else ()
        per_output = input_per_output if side == "output" else jnp.ones_like(input_per_output)
        return curve_of(operations, last, per_output, _MAX_ATOMS)

    def _table(self):
        if self.ratio.ndim > 1:
            return None
        rows = [(number(ratio), *row) for ratio, row in zip(self.ratio.tolist(), self.field.rows, strict=True)]
        title = f"MLP with given weights, {counted(len(rows), 'layer')}"
        return Table(title, ("layer", "inputs per output", *COLUMNS), runs(rows))

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

    slopes, moments = [], []
    for weight, bias, activation in forward:
        h = weight @ x + bias
        x = activation(h)
        slopes.append(_not_all_zero("activations", jnp.square(activation.derivative(h))))
        variance = jnp.mean(jnp.square(weight)) * weight.shape[1]
        q, passed_on = jnp.mean(jnp.square(h)), jnp.mean(x * activation.derivative(h) * h)
        moments.append((q, jnp.mean(jnp.square(x)), variance * jnp.mean(slopes[-1]), variance, passed_on / q))
    eigenvalues = [_eigenvalues(_not_all_zero("weights", weight)) for weight in weights]
    sizes = jnp.asarray(widths, dtype)
    q, phi2, chi, variance, passed_on = (jnp.stack(moment) for moment in zip(*moments, strict=True))
    chi_q = jnp.append(variance[1:], variance[-1:]) * passed_on
    field = MeanField(q, phi2, chi, chi_q, elasticities(q, chi_q))
    return MeasuredMLP(sizes[:-1] / sizes[1:], _Spectra.of(eigenvalues), _Spectra.of(slopes), field)


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


def _eigenvalues(weight: Float[Array, "out in"]) -> Float[Array, " in"]:
    """Of `W^T W`; what is rounding is 0."""
    singular = jnp.linalg.svd(weight, compute_uv=False)
    rounding = max(weight.shape) * jnp.finfo(weight.dtype).eps * singular[0]
    squares = jnp.square(jnp.where(singular > rounding, singular, 0))
    return jnp.pad(squares, (0, weight.shape[1] - squares.size))


def _nonzero_law(values: Float[Array, " N"]) -> Law:
    alive = (values > 0).astype(values.dtype)
    return Law.from_points(values, alive, alive, _atoms(values))


def _atoms(values: Float[Array, " N"]) -> Atoms:
    """The nonzero values that most of the others equal, but for rounding."""
    rounding = values.size * jnp.finfo(values.dtype).eps
    log_values = jnp.sort(jnp.log(values))
    first = jnp.searchsorted(log_values, log_values - rounding)
    count = jnp.searchsorted(log_values, log_values + rounding, side="right") - first
    distinct = jnp.isfinite(log_values) & (first == jnp.arange(values.size))
    masses = jnp.where(distinct, count, 0).astype(values.dtype) / jnp.sum(values > 0)
    masses, index = jax.lax.top_k(masses, min(_MAX_ATOMS, values.size))
    return Atoms(jnp.ones((), values.dtype), jnp.where(masses > 0, log_values[index], 0), masses)
