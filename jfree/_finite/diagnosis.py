"""What finite widths do to a network, to first order in one over them, and what may be said of it in words."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from .._layers.kinds import Kinds
from .._layers.weights import Gaussian, Orthogonal
from .._meanfield.mean_field import MeanField
from .._meanfield.moments import in_range
from .._networks.abstract import AbstractNetwork, as_network, propagate
from .._networks.mlp import MLP
from .._networks.network import Network
from .._networks.resnet import ResNet
from .._numerics.checks import check, floats, integer, positive
from .._numerics.compile import quickly
from .._numerics.quadrature import gaussian_measure
from .._numerics.show import number, Shown, Table
from .._spectra import jacobian_spectrum
from .._spectrum.moments import log_moments
from ..activations._base import AbstractActivation

# Of a trapezoid rule for fourth moments: activations may have kinks between its nodes.
_NUM_NODES = 2000


# How far samples may be from the limit, in standard deviations of log t. At a quarter, a tenth of them lie elsewhere,
# or at a sixth, where log t is crowded as in deep networks of SiLU.
_TRUSTED = 0.15


# The least standard deviation of log t that this is held against.
_NARROWEST = 0.2


# How far inputs or samples may be apart in log q_L where chi_q exceeds 1 by this margin.
_ALIKE, _MARGIN = 1.0, 1e-3


# How much larger, or smaller, inputs are that are about as large as one.
_ABOUT = 1.25


# The least and largest variance at which signals are seen, and how far log t may be from 0.
_FAINT, _LOUD, _ISOMETRIC = 1e-3, 1e3, 1.0


def signal_spread(net: AbstractNetwork, width: int | None = None) -> Float[Array, ""]:
    """The standard deviation of `log q_L` over samples of finite widths, `q_L` the variance that the preactivations of
    the last layer have given the layer before (dimensionless).

    Layer by layer, the mean of `phi(h)^2` over `N_l` units is off by a relative variance `(E phi^4 / (E phi^2)^2 - 1) /
    N_l`, less where orthogonal weights keep the norm, and the layers after it pass that on: to first order the squares
    of these add up, times those of `d log q_L / d log E phi_l^2`. Within 10% of samples where it is below 0.5.

    **Arguments:** an `MLP`, or a `Network` that is one, and its largest width, the others in their ratios to it; by
    default `net.widths` are meant.

    **Raises:** `ValueError` if `net` is none, or `width` is not a positive integer.
    """
    plain = _sized(net, width)
    return _signal_spread(plain, plain.propagate())


def _signal_spread(net: MLP, field: MeanField) -> Float[Array, ""]:
    noise, passed_on = _noise(net, field)
    return jnp.sqrt(jnp.sum(noise * jnp.square(passed_on * field.elasticity[1:])))


def slope_spread(net: AbstractNetwork, width: int | None = None) -> Float[Array, ""]:
    """The standard deviation over samples of the logarithm of the mean squared singular value, as far as it is due to
    variances that differ from the limit, to first order: 0 where slopes do not depend on them, as of ReLU.

    **Arguments** and **Raises:** as for `signal_spread`.
    """
    plain = _sized(net, width)
    return _slope_spread(plain, plain.propagate())


def _slope_spread(net: MLP, field: MeanField) -> Float[Array, ""]:
    noise, passed_on = _noise(net, field)
    q = in_range(field.q)
    moments = Kinds.of(net.activations).every(lambda phi, q: phi.slope_moment(q))
    moment, slope = jax.jvp(moments, (q,), (jnp.ones_like(q),))
    felt = q * slope / moment
    onwards = jnp.append(field.chi_q[:-1] * q[:-1] / q[1:], 0)

    def further(later: Array, xs: tuple[Array, Array]) -> tuple[Array, Array]:
        felt, onwards = xs
        later = felt + onwards * later
        return later, later

    _, later = jax.lax.scan(further, jnp.zeros_like(q[0]), (felt, onwards), reverse=True)
    return jnp.sqrt(jnp.sum(noise * jnp.square(passed_on * later[1:])))


def _as_mlp(net: AbstractNetwork) -> MLP | None:
    """The same network, if it is an MLP."""
    return net.as_mlp() if isinstance(net, Network) else net if isinstance(net, MLP) else None


def _sized(net: AbstractNetwork, width: int | None) -> MLP:
    plain = _as_mlp(net)
    if plain is None:
        raise ValueError(f"`net` must be an MLP, got {type(net).__name__}.")
    if width is not None:
        widths = plain.widths * (integer("width", width) / jnp.max(plain.widths))
        plain = eqx.tree_at(lambda n: n.widths, plain, widths)
    return plain


def _noise(net: MLP, field: MeanField) -> tuple[Float[Array, " hidden"], Float[Array, " hidden"]]:
    """Relative variances of the mean of `phi(h)^2` in all layers but the last, and how `log q` of the next follows."""
    sigma_w, sigma_b = net.scales
    before, units = net.widths[:-2], net.widths[1:-1]
    orthogonal = jnp.asarray([isinstance(law, Orthogonal) for law in net.weights[:-1]], bool)
    kept = jnp.where(orthogonal, jnp.minimum(1, units / before), 0)
    q, variance_w = field.q[:-1], jnp.square(sigma_w[1:])
    # Of phi, less its mean where the next layer does not see that; and what goes with the square of W x, which is kept.
    centred = jnp.asarray([law.centred for law in net.weights[1:]], bool)
    plain, about_mean = Kinds.of(net.activations).every(_even_moments)(in_range(field.q))
    second, fourth = jnp.where(centred, about_mean[:-1].T, plain[:-1].T)
    along = 2 * jnp.square((q - jnp.square(sigma_b[:-1])) * field.chi_q[:-1] / variance_w)
    noise = (fourth - jnp.square(second) - kept * along) / (jnp.square(second) * units)
    return jnp.maximum(noise, 0), 1 - jnp.square(sigma_b[1:]) / field.q[1:]


def _even_moments(activation: AbstractActivation, q: Float[Array, ""]) -> tuple[Array, Array]:
    """The second and the fourth of `phi`, and those about its mean."""
    x, measure = gaussian_measure(q, _NUM_NODES)
    value = activation(x)

    def moments(value: Array) -> Array:
        return jnp.stack([jnp.sum(measure * value**2), jnp.sum(measure * value**4)])

    return moments(value), moments(value - jnp.sum(measure * value))


def _log_loss(net: MLP, field: MeanField) -> Float[Array, ""]:
    """By how much the mean of `log t` of finite widths falls short of the limit, to first order: the growth of a
    vector's squared norm from layer to layer has a variance, of which its mean logarithm loses half.
    """
    q, units = in_range(field.q), net.widths[1:]
    moments = Kinds.of(net.activations).every(_slope_moments)(q)
    ratio = moments[1] / jnp.square(moments[0])
    gaussian = jnp.asarray([isinstance(law, Gaussian) for law in net.weights])
    return 0.5 * jnp.sum((3 * (ratio - 1) + 2 * gaussian) / units)


def _slope_moments(activation: AbstractActivation, q: Float[Array, ""]) -> tuple[Array, Array]:
    x, measure = gaussian_measure(q, _NUM_NODES)
    square = jnp.square(activation.derivative(x))
    return jnp.sum(measure * square), jnp.sum(measure * jnp.square(square))


@quickly(eqx.filter_jit)
def _of_these_widths(net: MLP) -> tuple[Array, Array, Array]:
    """Both spreads, and what the mean logarithm loses."""
    field = net.propagate()
    return _signal_spread(net, field), _slope_spread(net, field), _log_loss(net, field)


class Diagnosis(Shown):
    """What is to be expected of a network, and of samples of it (dimensionless).

    - `q`: variance of the last preactivations for each of the inputs' mean squares.
    - `chi_q`: the geometric mean of all layers' `|chi_q|`: above 1 differences of variances grow, and if
        variances themselves grow less, they run away, see `drift`.
    - `drift`: by how much more `log q` of the inputs differs in the last layer than at the start.
    - `signal_spread`: standard deviation over samples of `log q` of the last layer; `slope_spread`: of the logarithm of
        the mean squared singular value, as far as that is why. NaN if `net` is no MLP.
    - `log_loss`: by how much less than the limit the mean `log t` of samples is; NaN if `net` is no MLP.
    - `mean_log`, `log_spread`: mean and standard deviation of `log t`, `t` the squared singular values.
    """

    q: Float[Array, " inputs"]
    chi_q: Float[Array, ""]
    drift: Float[Array, ""]
    signal_spread: Float[Array, ""]
    slope_spread: Float[Array, ""]
    log_loss: Float[Array, ""]
    mean_log: Float[Array, ""]
    log_spread: Float[Array, ""]

    @property
    def doubt(self) -> Float[Array, ""]:
        """How far `log t` of samples of these widths may be from the limit, in standard deviations of it. What differs
        from sample to sample counts half.
        """
        return jnp.hypot(self.log_loss, self.slope_spread / 2) / jnp.maximum(self.log_spread, _NARROWEST)

    @property
    def trusted(self) -> Bool[Array, ""]:
        """Whether less than about a tenth of the eigenvalues of samples may be expected elsewhere than in the limit."""
        return ~(self.doubt > _TRUSTED)

    @property
    def words(self) -> list[str]:
        """One sentence each: on the signal, on samples, on the singular values (host)."""
        return [self._signal(), *self._samples(), self._singular_values()]

    def _signal(self) -> str:
        stable = f"The signal is stable: {_last(self.q)}, chi_q = {number(self.chi_q)}."
        return _fault(self.q, self.chi_q, self.drift, self.signal_spread) or stable

    def _samples(self) -> list[str]:
        if jnp.isnan(self.signal_spread):
            return []
        spread = f"log q of the last layer differs by {number(self.signal_spread)} from sample to sample"
        if self.trusted:
            return [f"Samples of these widths follow the limit: {spread}."]
        if self.slope_spread / 2 > self.log_loss:
            cause, remedy = "as their variances do", "Make the signal stable, or layers wider or fewer."
        else:
            cause = "as each layer turns few directions"
            remedy = "Take fewer or wider layers, or orthogonal weights if they are not."
        apart = number(jnp.hypot(self.log_loss, self.slope_spread))
        return [f"Samples of these widths will NOT follow the limit: log t differs by {apart}, {cause}. {remedy}"]

    def _singular_values(self) -> str:
        middle, spread = float(self.mean_log) / 2, float(self.log_spread) / 2
        if not np.isfinite(middle) or not np.isfinite(spread):
            return "Singular values are so far apart that their logarithms have no moments in floating point."
        typical = f"{number(np.exp(middle))}, within a factor {number(np.exp(min(spread, 700)))}"
        if abs(middle) <= _ISOMETRIC / 2 and spread <= _ISOMETRIC / 2:
            return f"Singular values are near 1: typically {typical}."
        if spread > _ISOMETRIC / 2 and spread > abs(middle):
            return (
                f"Singular values are spread out: typically {typical}. Nonlinear layers do that, and Gaussian weights."
            )
        return f"Singular values are {'small' if middle < 0 else 'large'}: typically {typical}. Tune sigma_w."

    def _table(self):
        return None if self.mean_log.ndim else Table("\n".join(self.words))


def _fault(q: Array, chi_q: Array, drift: Array, spread: Array | float) -> str | None:
    """What is wrong with the signal of inputs that have these variances in the end, and what to do."""
    if chi_q > 1 + _MARGIN and (drift > _ALIKE or spread > _ALIKE) and jnp.min(q) < _LOUD:
        return (
            f"The signal is unstable: {_last(q)}, and differences of variance grow by chi_q = {number(chi_q)} a layer. "
            "Take larger biases with a smaller sigma_w, a bounded activation, or normalise layers."
        )
    if not jnp.max(q) <= _LOUD:
        return f"The signal explodes: {_last(q)}. Take a smaller sigma_w, or normalise layers."
    return f"The signal fades: {_last(q)}. Take a larger sigma_w, or biases." if jnp.min(q) < _FAINT else None


def _last(q: Array) -> str:
    return f"the last layer's variance is {number(jnp.min(q))}" + (f" to {number(jnp.max(q))}" if q.size > 1 else "")


def alarm(net: AbstractNetwork, q0: Float[Array, " inputs"]) -> str | None:
    """What is wrong with the signal of these inputs, or of some about as large as one (host)."""
    q0 = q0 if q0.size > 1 else q0 * jnp.asarray([1 / _ABOUT, 1, _ABOUT], q0.dtype)
    return _fault(*_last_variances(net, q0), 0.0)


def sample_alarm(net: MLP | ResNet | Network, width: int | None) -> str | None:
    """The same of finite widths, and how much samples differ where that is much (host)."""
    fault = alarm(net, jnp.atleast_1d(net.q0))
    if fault or _as_mlp(net) is None:
        return fault
    spread = signal_spread(net, width)
    if not spread > _ALIKE:
        return None
    return (
        f"log q of the last layer differs by {number(spread)} from sample to sample. Take larger biases, or wider or "
        "fewer layers; `jfree.diagnose` says more."
    )


@quickly(eqx.filter_jit)
def _last_variances(net: AbstractNetwork, q0: Float[Array, " inputs"]) -> tuple[Array, Array, Array]:
    """For every input; the geometric mean of all layers' `|chi_q|` for the network's own; and the drift."""
    last = jax.vmap(lambda q: eqx.tree_at(lambda n: n.q0, net, q).propagate())(q0).q[:, -1]
    return last, _typical(net.propagate().chi_q), _range(jnp.log(last)) - _range(jnp.log(q0))


def _range(x: Array) -> Array:
    return jnp.max(x) - jnp.min(x)


def _typical(chi_q: Float[Array, " layers"]) -> Float[Array, ""]:
    inner = jnp.abs(chi_q[:-1]) if chi_q.size > 1 else jnp.ones_like(chi_q)
    return jnp.exp(jnp.mean(jnp.log(jnp.maximum(inner, jnp.finfo(inner.dtype).tiny))))


def diagnose(net: AbstractNetwork, q0: ArrayLike | Sequence[float] | None = None) -> Diagnosis:
    """What is to be expected of a network, in numbers and words: whether its signal is stable, samples follow the
    limit, and singular values are near 1.

    **Arguments:** a network, an `MLP` with widths that are meant for everything to be said; and mean squares of inputs,
    such as quantiles of those of data, by default the network's own.

    **Raises:** `ValueError` if some `q0` is not positive and finite.
    """
    net = as_network(net)
    plain = _as_mlp(net)
    net = net if plain is None else plain
    field = propagate(net)
    q, chi_q, drift = field.q[-1:], _typical(field.chi_q), jnp.zeros_like(field.q[0])
    if q0 is not None:
        inputs = check(floats("q0", q0, jnp.result_type(float)), positive, "`q0` must be positive and finite.")
        q, chi_q, drift = _last_variances(net, jnp.atleast_1d(inputs))
    signal = slope = loss = jnp.full_like(field.q[0], jnp.nan)
    if plain is not None:
        signal, slope, loss = _of_these_widths(plain)
    spectrum = jacobian_spectrum(net)
    _, variance = log_moments(spectrum.curve)
    return Diagnosis(
        q=q,
        chi_q=chi_q,
        drift=drift,
        signal_spread=signal,
        slope_spread=slope,
        log_loss=loss,
        mean_log=spectrum.mean_log(),
        log_spread=jnp.sqrt(variance),
    )
