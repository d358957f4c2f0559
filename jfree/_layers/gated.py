"""Gates: the product of two dense layers, one of them behind an activation."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .._calculus.atoms import Atoms
from .._calculus.law import Law
from .._calculus.law_factor import LawFactor
from .._calculus.operation import AbstractOperation
from .._calculus.side_and_shift import ChangeSide
from .._meanfield.moments import in_range, second_moment
from .._numerics.complex import complex_dtype
from .._numerics.quadrature import gaussian_density, graded_nodes, panel_nodes
from .._numerics.show import name_of, number
from ..activations._base import AbstractActivation, limited
from ..activations._linear_pieces import LeakyReLU, Linear, ReLU
from ..activations._names import as_activation, BY_NAME as ACTIVATIONS
from ..activations._smooth import AbstractSmooth
from .dense import linear
from .layer import AbstractLayer, Change, checked_number, checked_positive, Entries, sampled_size, Signal
from .weights import Gaussian

# Nodes of the gate's preactivations, on either side of 0, where many activations have a kink, and of the values, on a
# half line. Weights behind the gates keep the unknown off the support, where these resolve all.
_NUM_GATES, _NUM_VALUES = 48, 24

# The values' half line is turned by this angle, so that their squares lie below the axis. Inside a residual block the
# unknown may lie there, too, but farther down: more would run into it.
_ANGLE = 0.2

# How far the gate's line is bent off the real one, at most, and what keeps the bend smooth where `phi` is small.
_HEIGHT, _SOFT = 0.3, 0.6

# By how much the mean of the law may be off.
_TOLERANCE = 1e-6


class Gated(AbstractLayer):
    """`phi(A x + a) (B x + b)`, entry by entry, with Gaussian weights: GLU (`"sigmoid"`), SwiGLU (`"silu"`), GeGLU
    (`"gelu"`), ReGLU (`"relu"`), or bilinear (`"linear"`).

    Given the preactivations, the rows of its Jacobian `diag(phi'(h) k) A + diag(phi(h)) B` are Gaussian: it is Gaussian
    weights behind which every row has the size `sigma_gate^2 (phi'(h) k)^2 + sigma_w^2 phi(h)^2`. Orthogonal weights
    do not have this form. Where no weights follow, much of the spectrum is reported as unresolved; and all of it, where
    the activation has kinks elsewhere than at 0.

    **Arguments:**

    - `width`: the width behind it.
    - `activation`: that of the gate, a name or one of `jfree.activations`.
    - `sigma_w`, `sigma_gate`: the scales of `B` and `A`, whose entries have mean squares `sigma^2 / N_in`.
    - `sigma_b`: that of both biases.

    **Raises:** `ValueError` naming the argument, for an unknown name, or values out of range.
    """

    width: Float[Array, ""]
    activation: AbstractActivation
    sigma_w: Float[Array, ""]
    sigma_gate: Float[Array, ""]
    sigma_b: Float[Array, ""]

    has_weights = True

    def __init__(
        self,
        width: ArrayLike,
        activation: str | AbstractActivation = "silu",
        sigma_w: ArrayLike = 1.0,
        sigma_gate: ArrayLike = 1.0,
        sigma_b: ArrayLike = 0.0,
    ):
        self.width = checked_positive("width", width)
        self.activation = as_activation(activation)
        self.sigma_w = checked_positive("sigma_w", sigma_w)
        self.sigma_gate = checked_positive("sigma_gate", sigma_gate)
        self.sigma_b = checked_number("sigma_b", sigma_b, lambda x: x >= 0, "nonnegative and finite")

    @property
    def num_laws(self) -> int:
        return 1

    def receive(self, entries: Entries) -> Entries:
        return Entries(gaussian=False, bent=True)

    def new_width(self) -> Array:
        return self.width

    def _variances(self, square: Array) -> tuple[Array, Array]:
        """Of the gate's preactivations, and of the values."""
        gate, value = (jnp.square(s) * square + jnp.square(self.sigma_b) for s in (self.sigma_gate, self.sigma_w))
        return in_range(gate), in_range(value)

    def forward(self, signal: Signal) -> Signal:
        gate, value = self._variances(signal.square)
        return signal.passed(second_moment(self.activation, gate) * value)

    def change(self, signal: Signal, change: Change) -> Change:
        """Along `x` gate and values change together: the part that both slopes have is counted once too often."""
        behind = super().change(signal, change)
        gate, _ = self._variances(signal.square)
        slopes = self.activation.slope_moment(gate)
        both = 2 * jnp.square(self.sigma_gate * self.sigma_w * change.overlap) * slopes
        return Change(behind.overlap, behind.mean, behind.square - both)

    def operations(self, signal: Signal, refine: float) -> tuple[AbstractOperation | None, ...]:
        ratio = signal.width / self.width
        return Gaussian().factor(ratio, jnp.ones_like(ratio)), ChangeSide(ratio), LawFactor(self._law(signal.square))

    def _law(self, square: Array) -> Law:
        """Of the rows' sizes, over gates and values on lines across which the law continues."""
        gate, value = self._variances(square)
        h, measure, coarse = self._gates(gate)
        steep = jnp.square(self.sigma_gate * self.activation.derivative(h)) * value
        flat = jnp.square(self.sigma_w * self.activation(h))

        k, k_weight, k_coarse = graded_nodes(jnp.ones_like(value), _NUM_VALUES, even=True)
        turn = jnp.exp(jnp.asarray(-1j * _ANGLE, complex_dtype(k.dtype)))
        turned = jnp.exp(-jnp.square(k * turn) / 2) * turn
        points = steep[:, None] * jnp.square(k * turn) + flat[:, None]
        weights = measure[:, None] * (k_weight * turned)
        rough = coarse[:, None] * (k_coarse * turned)
        # Its mean is known otherwise: a kink between nodes, or a function that is not analytic, would change it.
        mean = jnp.square(self.sigma_gate) * self.activation.slope_moment(gate) * value
        mean = mean + jnp.square(self.sigma_w) * second_moment(self.activation, gate)
        ratio = (jnp.sum(weights * points) / jnp.sum(weights)).real / mean
        tolerance = max(_TOLERANCE, 100 * float(jnp.finfo(gate.dtype).eps))
        points = jnp.where(jnp.abs(ratio - 1) <= tolerance, points, jnp.nan)
        none = (steep == 0) & (flat == 0)
        zero = jnp.zeros(1, gate.dtype)
        dead = jnp.sum(jnp.where(none, measure, 0)) / jnp.sum(measure)
        atoms = Atoms(1 - dead.real, zero, zero)
        return Law.from_points(points.ravel(), weights.ravel(), rough.ravel(), atoms)

    def _gates(self, variance: Array) -> tuple[Array, Array, Array]:
        """Preactivations of the gate, their weights and those of a coarser rule, on a line off the real one along which
        `phi^2` stays below the axis: it is bent against the slope of `phi^2`.
        """
        x, weights, coarse = (x.ravel() for x in panel_nodes(variance, (0.0,), _NUM_GATES))
        if not isinstance(self.activation, AbstractSmooth | Linear | ReLU | LeakyReLU):
            density = gaussian_density(x, variance)
            return x, weights * density, coarse * density
        most = limited(_HEIGHT, lax.stop_gradient(variance))

        def height(x: Array) -> Array:
            phi, slope = self.activation(x), self.activation.derivative(x)
            size = jnp.square(phi) + jnp.square(slope)
            return -2 * most * phi * slope / (size + _SOFT)

        bend, rise = jax.jvp(height, (x,), (jnp.ones_like(x),))
        h = lax.complex(x, bend)
        density = gaussian_density(h, variance) * lax.complex(jnp.ones_like(x), rise)
        return h, weights * density, coarse * density

    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> "GatedLinear":
        num_out = sampled_size(self.width, scale)
        gate_key, value_key = jax.random.split(key)
        gate, value = (
            linear(Gaussian(), size, num_out, sigma, self.sigma_b, own, dtype)
            for sigma, own in ((self.sigma_gate, gate_key), (self.sigma_w, value_key))
        )
        return GatedLinear(gate, value, self.activation)

    def row(self) -> tuple[str, str]:
        scales = f"sigma_w {number(self.sigma_w)}, sigma_gate {number(self.sigma_gate)}, sigma_b {number(self.sigma_b)}"
        return "gated", f"width {number(self.width)}, {name_of(self.activation, ACTIVATIONS)}, {scales}"


class GatedLinear(eqx.Module):
    """`phi(A x + a) (B x + b)`, an Equinox module."""

    gate: eqx.nn.Linear
    value: eqx.nn.Linear
    activation: Callable[[Array], Array]

    def __call__(self, x: Array, *, key: PRNGKeyArray | None = None) -> Array:
        return self.activation(self.gate(x)) * self.value(x)
