"""What the explorer shows: everything about one network, by one compiled function for all positions of its sliders.

Widths and scales are arrays, so that they never cause a compilation; here the depth is one, too.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from .. import objectives
from .._calculus.curve import Curve
from .._layers.kinds import Kinds
from .._meanfield.fixed_points import critical_sigma_w, fixed_point
from .._meanfield.mean_field import MeanField
from .._meanfield.moments import in_range
from .._networks.abstract import AbstractNetwork
from .._networks.mlp import MLP
from .._spectra import jacobian_spectrum
from .._spectrum.moments import log_moments
from .._tune import tune
from ..activations._base import AbstractActivation, AbstractManySlopes
from ..activations._names import as_activation
from ..empirical import jacobian_eigenvalues

SIGMA_W, SIGMA_B = (0.5, 3.0), (0.0, 1.0)


RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)


# Layers that are compiled, and points of the density: as many as take no longer than a slider may.
_EXPLICIT, _MANY_SLOPES = (100, 192), (12, 128)


_CELLS = (50, 16)  # of the phase diagram


_OPTIMISATION = "xla_backend_optimization_level"  # which `jfree explore` sets to 0: much is compiled, little is run


_STEP = 0.2  # the largest change of log sigma in one gradient step


_SAMPLED_WIDTH = 256


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where the sliders stand. Widths go from 1 to `ratio` in equal steps of their logarithm; the last is linear."""

    activation: str = "hard_tanh"
    weights: str = "orthogonal"
    depth: int = 10
    ratio: float = 1.0
    sigma_w: float = 1.2
    sigma_b: float = 0.1

    def network(self) -> MLP:
        """The network, of widths that only have the right ratios."""
        widths = self.ratio ** (np.arange(self.depth + 1) / self.depth)
        return MLP(widths, self.activation, self.weights, self.sigma_w, self.sigma_b)


class PaddedMLP(AbstractNetwork):
    """The first `depth` layers of an MLP, and a linear activation on the last: of a depth that may be traced.

    The layers beyond are there, as the identity.
    """

    net: MLP
    depth: Int[Array, ""]

    @staticmethod
    def of(settings: Settings) -> "PaddedMLP":
        layers = deepest(settings.activation)
        widths = settings.ratio ** (np.minimum(np.arange(layers + 1), settings.depth) / settings.depth)
        scales = (np.asarray(settings.sigma_w), np.asarray(settings.sigma_b))  # strongly typed, as gradient steps are
        activation = settings.activation
        net = MLP(widths, activation, settings.weights, *scales, final_activation=activation)
        return PaddedMLP(net, jnp.asarray(settings.depth))

    def propagate(self) -> MeanField:
        """Of all layers, those beyond the last included."""
        return self.net.propagate()

    def jacobian_curve(self, side: str) -> Curve:
        whole, layer = self.net.layers, jnp.arange(self.net.depth)
        weights, activations = (
            Kinds(place.members, jnp.where(layer < number, place.kind, -1), gaps=True)
            for place, number in zip(whole.places, (self.depth, self.depth - 1), strict=True)
        )
        kept = eqx.tree_at(lambda s: s.places, whole, (weights, activations))
        return eqx.tree_at(lambda s: s.depth, kept, self.depth, is_leaf=lambda x: x is None).jacobian_curve(side)


class Outline(eqx.Module):
    """The numbers that are shown of a network. Logarithms are those of singular values, to base 10, and masses are
    shares of the singular values that are not 0. NaN where the solver did not certify a number.
    """

    x: Float[Array, " points"]
    log_edges: Float[Array, "2"]
    mass_at_zero: Float[Array, ""]
    atoms: Float[Array, " atoms"]
    masses: Float[Array, " atoms"]
    isometry: Float[Array, ""]
    q: Float[Array, "2"]
    chi: Float[Array, ""]
    fixed_q: Float[Array, ""]
    fixed_chi: Float[Array, ""]
    fixed_chi_q: Float[Array, ""]


class Picture(NamedTuple):
    """An outline, and the density of `x = log10` of a singular value at the points `outline.x`."""

    outline: Outline
    density: np.ndarray


def _jit(fun: Callable[..., Any]) -> Callable[..., Any]:
    """`fun` of a network, compiled as everything is, or with some care where many slopes make it worth the while."""
    compiled, with_care = jax.jit(fun), jax.jit(fun, compiler_options={_OPTIMISATION: 1})

    def of_network(net: PaddedMLP, *args: Array) -> Any:
        return (with_care if _has_many_slopes(net.net.activations[0]) else compiled)(net, *args)

    return of_network


@_jit
def _outline(net: PaddedMLP) -> Outline:
    spectrum, field = jacobian_spectrum(net), net.propagate()
    lower, upper = spectrum.edges()
    places, masses = spectrum.atoms()
    mean_log, log_variance = log_moments(spectrum.curve)
    # Where the bulk reaches down to 0 its tail is exponential in x: beyond this there is hardly any of it.
    tail = jnp.exp(mean_log - 6 * jnp.sqrt(log_variance))
    start = jnp.where(lower > 0, lower, jnp.where(tail > 0, tail, 1e-12 * upper))
    activation, sigma_w, sigma_b = net.net.activations[0], net.net.sigma_w, net.net.sigma_b
    num_points = _sizes(activation)[1]
    share = 0.5 - 0.5 * jnp.cos(jnp.pi * (jnp.arange(num_points) + 0.5) / num_points)
    fixed_q = fixed_point(activation, sigma_w, sigma_b)
    return Outline(
        x=jnp.log10(start) / 2 + share * (jnp.log10(upper) - jnp.log10(start)) / 2,
        log_edges=jnp.log10(jnp.stack([lower, upper])) / 2,
        mass_at_zero=masses[0],
        atoms=jnp.log10(places[1:]) / 2,
        masses=masses[1:] / (1 - masses[0]),
        isometry=0.25 * (jnp.square(mean_log) + log_variance),
        q=field.q[jnp.stack([jnp.zeros_like(net.depth), net.depth - 1])],
        chi=jnp.where(net.depth > 1, field.chi[net.depth - 2], jnp.nan),
        fixed_q=fixed_q,
        fixed_chi=_chi(activation, sigma_w, fixed_q),
        fixed_chi_q=_chi_q(activation, sigma_w, fixed_q),
    )


@_jit
def _density(net: PaddedMLP, x: Float[Array, " points"]) -> Float[Array, " points"]:
    spectrum = jacobian_spectrum(net)
    t = 10 ** (2 * x)
    return spectrum.density(t) * t * (2 * np.log(10)) / (1 - spectrum.mass_at_zero())


def _chi(activation: AbstractActivation, sigma_w: Array, q: Array) -> Array:
    """`chi` at a fixed point, 0 and those beyond all bounds (NaN) included."""
    return jnp.square(sigma_w) * activation.slope_moment(_bounded(q))


def _chi_q(activation: AbstractActivation, sigma_w: Array, q: Array) -> Array:
    q = _bounded(q)
    return jnp.square(sigma_w) * jax.jvp(activation.second_moment, (q,), (jnp.ones_like(q),))[1]


def _bounded(q: Array) -> Array:
    return in_range(jnp.where(jnp.isnan(q), np.exp(30), q))


_compiling = threading.Lock()  # the same program twice at once would take twice as long


_compiled: set[tuple[str, str]] = set()


def is_compiled(settings: Settings) -> bool:
    return (settings.activation, settings.weights) in _compiled


def picture(settings: Settings) -> Picture:
    """What is to be shown, on the host. Its two programs are compiled side by side."""
    net = PaddedMLP.of(settings)
    with _compiling, ThreadPoolExecutor(1) as aside:
        if not is_compiled(settings):
            aside.submit(_density, net, jnp.zeros(_sizes(net.net.activations[0])[1]))
        outline = _outline(net)
    density = _density(net, outline.x)
    _compiled.add((settings.activation, settings.weights))
    return Picture(*jax.device_get((outline, density)))


def deepest(activation: str) -> int:
    return _sizes(as_activation(activation))[0]


def _sizes(activation: AbstractActivation) -> tuple[int, int]:
    return _MANY_SLOPES if _has_many_slopes(activation) else _EXPLICIT


def _has_many_slopes(activation: AbstractActivation) -> bool:
    return isinstance(activation, AbstractManySlopes)


class Phases(eqx.Module):
    """The phase diagram of an activation: `log chi` at the fixed point on a grid of cells, rows of one `sigma_b` each,
    and the line `chi = 1`, NaN where there is no `sigma_w`.
    """

    log_chi: Float[Array, "sigma_b sigma_w"]
    critical_sigma_w: Float[Array, " points"]
    critical_sigma_b: Float[Array, " points"]


@functools.cache
def phases(activation: str) -> Phases:
    with _compiling:
        return jax.device_get(_phases(as_activation(activation)))


@eqx.filter_jit
def _phases(activation: AbstractActivation) -> Phases:
    sigma_w, sigma_b = _cells(SIGMA_W, _CELLS[0]), _cells(SIGMA_B, _CELLS[1])
    line = jnp.linspace(*SIGMA_B, 41)

    def log_chi(sigma_w: Array, sigma_b: Array) -> Array:
        return jnp.log(_chi(activation, sigma_w, fixed_point(activation, sigma_w, sigma_b)))

    grid = jax.vmap(lambda b: jax.vmap(lambda w: log_chi(w, b))(sigma_w))(sigma_b)
    return Phases(grid, jax.vmap(lambda b: critical_sigma_w(activation, b)[0])(line), line)


def _cells(ends: tuple[float, float], number: int) -> Array:
    """Their middles."""
    return ends[0] + (ends[1] - ends[0]) * (jnp.arange(number) + 0.5) / number


class Sample(NamedTuple):
    """`log10` of the nonzero singular values of a finite network, as far as rounding lets them be told, and how many
    there are.
    """

    settings: Settings
    x: np.ndarray
    number: float


def sample(settings: Settings, seed: int) -> Sample:
    """One network, of at most 256 units in a layer."""
    rows = jacobian_eigenvalues(settings.network(), jax.random.key(seed), width=_SAMPLED_WIDTH)
    t = np.asarray(rows).ravel()
    known = t > t.max() * (t.size * np.finfo(t.dtype).eps) ** 2
    return Sample(settings, np.log10(t[known]) / 2, float(1 - picture(settings).outline.mass_at_zero) * t.size)


_descent = optax.chain(
    optax.normalize_by_update_norm(scale_factor=-_STEP),
    optax.scale_by_backtracking_linesearch(max_backtracking_steps=10),
)


def _sigma_w(net: PaddedMLP) -> Array:
    return net.net.sigma_w


def _sigma_w_and_b(net: PaddedMLP) -> tuple[Array, Array]:
    return net.net.sigma_w, net.net.sigma_b


def gradient_step(settings: Settings, both: bool) -> tuple[Settings, str]:
    """One step down the gradient of `objectives.isometry` in `log sigma_w`, or in that and `log sigma_b`, as far as
    the sliders go and to four decimals, and what to say of it. It is halved until the objective falls; `sigma_b = 0`
    stays.
    """
    net = PaddedMLP.of(settings)
    where = _sigma_w_and_b if both else _sigma_w
    try:
        with _compiling:
            result = tune(net, objectives.isometry, where, optimizer=_descent, steps=1, progress=False)
            best: Any = result.net
    except ValueError:
        return settings, "The objective or its gradient is not certified here."
    sigma_w = round(float(np.clip(best.net.sigma_w, *SIGMA_W)), 4)
    sigma_b = round(float(np.clip(best.net.sigma_b, *SIGMA_B)), 4)
    before, after = result.history
    note = f"Isometry {before:.4g}, then {after:.4g}." if after < before else f"Isometry {before:.4g}: a minimum."
    return dataclasses.replace(settings, sigma_w=sigma_w, sigma_b=sigma_b), note
