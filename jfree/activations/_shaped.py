"""Activations that are shifted and scaled, before and behind."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._calculus.law import Law
from .._numerics.arrays import are_concrete, asarray, common_dtype
from .._numerics.checks import check
from .._numerics.compile import much, quickly
from .._numerics.implicit import bisect
from .._numerics.quadrature import gaussian_density, gaussian_measure, panel_nodes
from ._base import AbstractActivation, AbstractManySlopes, finite, positive
from ._linear_pieces import Clip, HardTanh
from ._names import as_activation
from ._smooth import AbstractSmooth
from ._stretched import Swish

_NUM_NODES = 400


class Shaped(AbstractManySlopes):
    """`output_scale * (activation(input_scale * x + input_shift) + output_shift)` for a smooth activation (Martens et
    al. 2021, "Rapid training of deep neural networks without skip connections or normalization layers using Deep Kernel
    Shaping", Section 8). `jfree.activations.shaped` finds the numbers.

    **Raises:** `ValueError` if `activation` is not smooth, a scale is not positive, or a shift is not finite.
    """

    activation: AbstractSmooth
    input_scale: Float[Array, ""]
    input_shift: Float[Array, ""]
    output_scale: Float[Array, ""]
    output_shift: Float[Array, ""]

    def __init__(
        self,
        activation: str | AbstractActivation,
        input_scale: ArrayLike = 1.0,
        input_shift: ArrayLike = 0.0,
        output_scale: ArrayLike = 1.0,
        output_shift: ArrayLike = 0.0,
    ):
        self.activation = _smooth(activation)
        self.input_scale, self.input_shift = positive("input_scale", input_scale), finite("input_shift", input_shift)
        self.output_scale = positive("output_scale", output_scale)
        self.output_shift = finite("output_shift", output_shift)

    @property
    def breaks(self) -> tuple[ArrayLike, ...]:
        return tuple((place - self.input_shift) / self.input_scale for place in self.activation.breaks)

    def __call__(self, x: Array) -> Array:
        return self.output_scale * (self.activation(self.input_scale * x + self.input_shift) + self.output_shift)

    def derivative(self, x: Array) -> Array:
        inner = self.activation.derivative(self.input_scale * x + self.input_shift)
        return self.output_scale * self.input_scale * inner

    def second_moment(self, q: Array) -> Array:
        x, measure = gaussian_measure(q * jnp.square(self.input_scale), _NUM_NODES)
        return jnp.sum(measure * jnp.square(self._behind(x)))

    def mean(self, q: Array) -> Array:
        x, measure = gaussian_measure(q * jnp.square(self.input_scale), _NUM_NODES)
        return jnp.sum(measure * self._behind(x))

    def _behind(self, x: Array) -> Array:
        """Of what is scaled already."""
        return self.output_scale * (self.activation(x + self.input_shift) + self.output_shift)

    def slope_law(self, q: Array, refine: float = 1) -> Law:
        law = self.activation.shifted_slope_law(self.input_shift, q * jnp.square(self.input_scale), refine)
        gain = 2 * jnp.log(self.input_scale * self.output_scale)
        return eqx.tree_at(lambda law: law.log_mean, law, law.log_mean + gain)


def _smooth(activation: str | AbstractActivation) -> AbstractSmooth:
    base = as_activation(activation)
    if not isinstance(base, AbstractSmooth):
        raise ValueError(f"`activation` must be analytic, such as tanh or GELU, got {activation}.")
    return base


def shaped(activation: str | AbstractActivation, nonlinearity: ArrayLike, q: ArrayLike = 1.0) -> Shaped | Clip:
    """The activation, shifted and scaled such that of preactivations of variance `q` the mean behind it is 0, the mean
    square again `q`, differences of which neither grow nor fade (`chi_q = 1` at `sigma_w = 1`, without biases), and a
    given share of the variance is nonlinear, as `jfree.nonlinearity` counts it.

    Networks of such layers are isometric up to about that share each, for inputs of different mean squares, too. Deep
    kernel shaping (Martens et al. 2021) asks for the same, but for a given growth of angles through all layers in place
    of the share.

    **Arguments:**

    - `activation`: a name or an activation, analytic (tanh, erf, sigmoid, SiLU, swish, GELU, softplus, Mish, ...) or a
      clipped line (hard tanh, ReLU6, ...), which has its centre where the mean is, and `chi_q` below 1.
    - `nonlinearity`: from 1e-6 to 0.1; about `0.5 / depth` trains deep networks fast ("What it is worth" in the docs).
    - `q`: variance of the preactivations, that of all layers.

    **Returns:** a `Shaped` activation, of a clipped line another `Clip`.

    **Raises:** `ValueError` if the activation is of another kind, an argument is out of its range or traced, or there
    are no such numbers.
    """
    base = _shapeable(activation)
    dtype = common_dtype(*jax.tree.leaves((base, nonlinearity, q)))
    share, q = finite("nonlinearity", asarray(nonlinearity, dtype)), positive("q", asarray(q, dtype))
    if not are_concrete(base, share, q):
        raise ValueError("`activation`, `nonlinearity` and `q` must be known: `shaped` is not differentiable.")
    allowed = f"`nonlinearity` must be from {_LEAST:g} to {_MOST:g}."
    share = check(share, lambda x: (x >= _LEAST) & (x <= _MOST), allowed)
    with jax.ensure_compile_time_eval():
        shift, known = _stable_shift(base, share) if isinstance(base, AbstractSmooth) else _centre(base)
        if not known:
            raise ValueError(
                f"`activation` must have a shift that makes its mean square stable; {activation} has none."
            )
        return _completed(base, _scale_at(base, share, shift), shift, q)


def _shapeable(activation: str | AbstractActivation) -> AbstractSmooth | Clip:
    base = as_activation(activation)
    if isinstance(base, Swish):
        return base.base
    if isinstance(base, HardTanh):
        return Clip(-base.limit / base.gain, base.limit / base.gain, base.gain)
    if not isinstance(base, AbstractSmooth | Clip):
        raise ValueError(
            "`activation` must be one of tanh, erf, sigmoid, log_sigmoid, softplus, squareplus, silu, gelu, gelu_tanh, "
            f"mish, or a clipped line such as hard_tanh, got {activation}."
        )
    return base


def _centre(base: Clip) -> tuple[Array, bool]:
    return (base.low + base.high) / 2, True


def _completed(base: AbstractSmooth | Clip, scale: Array, shift: Array, q: Array) -> Shaped | Clip:
    """With what makes the mean behind it 0 and the mean square `q`."""
    x, measure = _measure(base, scale, shift)
    values = base(x)
    mean = jnp.sum(measure * values)
    gain = jnp.sqrt(q / jnp.sum(measure * jnp.square(values - mean)))
    scale = scale / jnp.sqrt(q)
    if isinstance(base, AbstractSmooth):
        return Shaped(base, scale, shift, gain, -mean)
    low, high = (base.low - shift) / scale, (base.high - shift) / scale
    return Clip(low, high, gain * base.slope * scale, gain * (base.slope * shift + base.offset - mean))


# Nonlinear shares of the variance: below, rounding shows in them; beyond, some activations have no stable shift.
_LEAST, _MOST = 1e-6, 0.1

# Shifts are looked for so far to either side, at so many places each; scales, as logarithms, between those.
_FARTHEST, _NUM_SHIFTS = 2.0, 80
_LOG_SCALES = (-9.0, 3.0)


@quickly(eqx.filter_jit, much)
def _stable_shift(base: AbstractSmooth, share: Float[Array, ""]) -> tuple[Array, Array]:
    """Of the possible shifts the least, and whether there is one."""

    def unstable(shift: Array) -> Array:
        return _shares(base, _scale_at(base, share, shift), shift)[1]

    shifts = _FARTHEST * jnp.arange(_NUM_SHIFTS, -_NUM_SHIFTS - 1, -1, dtype=share.dtype) / _NUM_SHIFTS
    values = jax.lax.map(unstable, shifts)
    high, low = shifts[:-1], shifts[1:]
    crosses = (values[:-1] < 0) != (values[1:] < 0)
    from_zero = jnp.abs(jnp.arange(_NUM_SHIFTS - 0.5, -_NUM_SHIFTS, -1))  # of two alike the positive one
    nearest = jnp.argmin(jnp.where(crosses, from_zero, jnp.inf))
    sign = jnp.where(values[nearest] < 0, -1, 1)
    return bisect(lambda shift: sign * unstable(shift), low[nearest], high[nearest]), jnp.any(crosses)


@quickly(eqx.filter_jit, much)
def _scale_at(base: AbstractActivation, share: Float[Array, ""], shift: Float[Array, ""]) -> Array:
    low, high = (jnp.full_like(share, end) for end in _LOG_SCALES)
    return jnp.exp(bisect(lambda log_scale: _shares(base, jnp.exp(log_scale), shift)[0] - share, low, high))


def _shares(base: AbstractActivation, scale: Array, shift: Array) -> tuple[Array, Array]:
    """Of the variance behind: the share that is nonlinear, and by how much it grows faster than that before: `d E f^2 /
    d q = E f^2 (x^2 - 1) / 2` at `q = 1`, `f` being less its mean there.
    """
    x, measure = _measure(base, scale, shift)
    values, x = base(x), (x - shift) / scale
    values = values - jnp.sum(measure * values)
    squares = measure * jnp.square(values)
    variance = jnp.sum(squares)
    linear = jnp.sum(measure * x * values)
    rest = jnp.sum(measure * jnp.square(values - linear * x))
    return rest / variance, 0.5 * jnp.sum(squares * (jnp.square(x) - 1)) / variance - 1


def _measure(base: AbstractActivation, scale: Array, shift: Array) -> tuple[Array, Array]:
    """Nodes and weights of the expectation over `N(shift, scale^2)`, exact for what is smooth between its breaks."""
    variance = jnp.square(scale)
    ends = tuple(place - shift for place in base.breaks)
    x, weights, _ = panel_nodes(variance, ends, _NUM_NODES // (1 + len(ends)))
    measure = (weights * gaussian_density(x, variance)).ravel()
    return x.ravel() + shift, measure / jnp.sum(measure)
