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
from .._layers.activation import Activation
from .._layers.dense import Dense
from .._layers.kinds import Kinds
from .._layers.normalisation import RMSNorm
from .._layers.repeat import Repeat
from .._meanfield.fixed_points import critical_sigma_w, fixed_point
from .._meanfield.mean_field import MeanField
from .._meanfield.moments import in_range
from .._networks.abstract import AbstractNetwork
from .._networks.branches import Residual
from .._networks.mlp import MLP
from .._networks.network import Network
from .._networks.stacked import joined, StackedNetwork
from .._spectra import jacobian_spectrum
from .._spectrum.moments import log_moments
from .._tune import tune
from ..activations._base import AbstractActivation, AbstractManySlopes
from ..activations._names import as_activation
from ..empirical import jacobian_eigenvalues

KINDS = MLPS, BLOCKS = "MLP", "pre-norm blocks"


SIGMA_W, SIGMA_B, SCALE = (0.5, 3.0), (0.0, 1.0), (0.005, 2.0)


RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)


# Layers or blocks that are compiled, and points of the density: as many as take no longer than a slider may.
_EXPLICIT, _MANY_SLOPES = (100, 192), (12, 128)
_EXPLICIT_BLOCKS, _MANY_SLOPES_BLOCKS = (60, 128), (12, 96)


_CELLS = (50, 16)  # of the phase diagram


_OPTIMISATION = "xla_backend_optimization_level"  # which `jfree explore` sets to 0: much is compiled, little is run


_STEP = 0.2  # the largest change of log sigma in one gradient step


_SAMPLED_WIDTH = 256


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where the sliders stand.

    Widths of an MLP go from 1 to `ratio` in equal steps of their logarithm; the last layer is linear. Of blocks `x <- x
    + scale W_2 phi(W_1 norm(x) + b)`, `depth` of them, `ratio` is the width inside over that of the stream.
    """

    activation: str = "hard_tanh"
    weights: str = "orthogonal"
    depth: int = 10
    ratio: float = 1.0
    sigma_w: float = 1.2
    sigma_b: float = 0.1
    kind: str = MLPS
    scale: float = 1.0

    def network(self) -> MLP | Network:
        """The network, of widths that only have the right ratios."""
        if self.kind == BLOCKS:
            return _blocks(
                self.depth, self.activation, self.weights, self.ratio, self.sigma_w, self.sigma_b, self.scale
            )
        widths = self.ratio ** (np.arange(self.depth + 1) / self.depth)
        return MLP(widths, self.activation, self.weights, self.sigma_w, self.sigma_b)


def _blocks(depth: int, activation: str, weights: str, ratio: Any, sigma_w: Any, sigma_b: Any, scale: Any) -> Network:
    inner = Dense(ratio, weights, sigma_w, sigma_b)
    branch = [RMSNorm(), inner, Activation(activation), Dense(1.0, weights, sigma_w)]
    return Network(1.0, [Repeat(depth, [Residual(branch, scale=scale)])])


class Padded(AbstractNetwork):
    """The network of some settings: its first `depth` layers or blocks, which may be traced, as all numbers may.

    The layers beyond are there, as the identity. The last layer of an MLP is linear.
    """

    kind: str = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    weights: str = eqx.field(static=True)
    depth: Int[Array, ""]
    ratio: Float[Array, ""]
    sigma_w: Float[Array, ""]
    sigma_b: Float[Array, ""]
    scale: Float[Array, ""]

    @staticmethod
    def of(settings: Settings) -> "Padded":
        def number(value: float) -> Array:
            return jnp.asarray(np.asarray(value))  # strongly typed, as what gradient steps make of it

        return Padded(
            kind=settings.kind,
            activation=settings.activation,
            weights=settings.weights,
            depth=jnp.asarray(settings.depth),
            ratio=number(settings.ratio),
            sigma_w=number(settings.sigma_w),
            sigma_b=number(settings.sigma_b),
            scale=number(settings.scale),
        )

    def network(self) -> MLP | Network:
        """All layers, those beyond the last included."""
        layers, scales = _sizes(self.kind, self.activation)[0], (self.sigma_w, self.sigma_b)
        if self.kind == BLOCKS:
            return _blocks(layers, self.activation, self.weights, self.ratio, *scales, self.scale)
        widths = self.ratio ** (jnp.minimum(jnp.arange(layers + 1), self.depth) / self.depth)
        return MLP(widths, self.activation, self.weights, *scales, final_activation=self.activation)

    def propagate(self) -> MeanField:
        """Of all layers, those beyond the last included."""
        return self.network().propagate()

    def jacobian_curve(self, side: str) -> Curve:
        net = self.network()
        if isinstance(net, MLP):
            whole, numbers = net.layers, (self.depth, self.depth - 1)
        else:
            whole, numbers = StackedNetwork.of(joined(net.layers), net.width, net.q0, net.mean0), (self.depth,)
        rounds = jnp.arange(whole.places[0].kind.size)
        places = tuple(
            Kinds(place.members, jnp.where(rounds < number, place.kind, -1), gaps=True)
            for place, number in zip(whole.places, numbers, strict=True)
        )
        kept = eqx.tree_at(lambda s: s.places, whole, places)
        return eqx.tree_at(lambda s: s.depth, kept, self.depth, is_leaf=lambda x: x is None).jacobian_curve(side)


class Outline(eqx.Module):
    """The numbers that are shown of a network. Logarithms are those of singular values, to base 10, and masses are
    shares of the singular values that are not 0. `q` is the variance in the first layer and the last, or the stream's
    before and behind all blocks, `chi` that of the last hidden layer, or block. NaN where the solver did not certify a
    number, and for fixed points of blocks.
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

    def of_network(net: Padded, *args: Array) -> Any:
        return (with_care if _has_many_slopes(net.activation) else compiled)(net, *args)

    return of_network


@_jit
def _outline(net: Padded) -> Outline:
    spectrum, field = jacobian_spectrum(net), net.propagate()
    lower, upper = spectrum.edges()
    places, masses = spectrum.atoms()
    mean_log, log_variance = log_moments(spectrum.curve)
    # Where the bulk reaches down to 0 its tail is exponential in x: beyond this there is hardly any of it.
    tail = jnp.exp(mean_log - 6 * jnp.sqrt(log_variance))
    start = jnp.where(lower > 0, lower, jnp.where(tail > 0, tail, 1e-12 * upper))
    num_points = _sizes(net.kind, net.activation)[1]
    share = 0.5 - 0.5 * jnp.cos(jnp.pi * (jnp.arange(num_points) + 0.5) / num_points)
    if net.kind == BLOCKS:
        last, chi = field.phi2[net.depth - 1], field.chi[net.depth - 1]
        fixed = jnp.full((3,), jnp.nan, last.dtype)
    else:
        last, chi = field.q[net.depth - 1], jnp.where(net.depth > 1, field.chi[net.depth - 2], jnp.nan)
        fixed = _fixed(as_activation(net.activation), net.sigma_w, net.sigma_b)
    return Outline(
        x=jnp.log10(start) / 2 + share * (jnp.log10(upper) - jnp.log10(start)) / 2,
        log_edges=jnp.log10(jnp.stack([lower, upper])) / 2,
        mass_at_zero=masses[0],
        atoms=jnp.log10(places[1:]) / 2,
        masses=masses[1:] / (1 - masses[0]),
        isometry=0.25 * (jnp.square(mean_log) + log_variance),
        q=jnp.stack([field.q[0], last]),
        chi=chi,
        fixed_q=fixed[0],
        fixed_chi=fixed[1],
        fixed_chi_q=fixed[2],
    )


@_jit
def _density(net: Padded, x: Float[Array, " points"]) -> Float[Array, " points"]:
    spectrum = jacobian_spectrum(net)
    t = 10 ** (2 * x)
    return spectrum.density(t) * t * (2 * np.log(10)) / (1 - spectrum.mass_at_zero())


def _fixed(activation: AbstractActivation, sigma_w: Array, sigma_b: Array) -> Float[Array, "3"]:
    """The fixed point, with `chi` and `chi_q` there."""
    q = fixed_point(activation, sigma_w, sigma_b)
    return jnp.stack([q, _chi(activation, sigma_w, q), _chi_q(activation, sigma_w, q)])


def _chi(activation: AbstractActivation, sigma_w: Array, q: Array) -> Array:
    """`chi` at a fixed point, 0 and those beyond all bounds (NaN) included."""
    return jnp.square(sigma_w) * activation.slope_moment(_bounded(q))


def _chi_q(activation: AbstractActivation, sigma_w: Array, q: Array) -> Array:
    q = _bounded(q)
    return jnp.square(sigma_w) * jax.jvp(activation.second_moment, (q,), (jnp.ones_like(q),))[1]


def _bounded(q: Array) -> Array:
    return in_range(jnp.where(jnp.isnan(q), np.exp(30), q))


_compiling = threading.Lock()  # the same program twice at once would take twice as long


_compiled: set[tuple[str, str, str]] = set()


def _program(settings: Settings) -> tuple[str, str, str]:
    return settings.kind, settings.activation, settings.weights


def is_compiled(settings: Settings) -> bool:
    return _program(settings) in _compiled


def picture(settings: Settings) -> Picture:
    """What is to be shown, on the host. Its two programs are compiled side by side."""
    net = Padded.of(settings)
    with _compiling, ThreadPoolExecutor(1) as aside:
        if not is_compiled(settings):
            aside.submit(_density, net, jnp.zeros(_sizes(settings.kind, settings.activation)[1]))
        outline = _outline(net)
    density = _density(net, outline.x)
    _compiled.add(_program(settings))
    return Picture(*jax.device_get((outline, density)))


def deepest(kind: str, activation: str) -> int:
    return _sizes(kind, activation)[0]


def _sizes(kind: str, activation: str) -> tuple[int, int]:
    if kind == BLOCKS:
        return _MANY_SLOPES_BLOCKS if _has_many_slopes(activation) else _EXPLICIT_BLOCKS
    return _MANY_SLOPES if _has_many_slopes(activation) else _EXPLICIT


def _has_many_slopes(activation: str) -> bool:
    return isinstance(as_activation(activation), AbstractManySlopes)


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


def _sigma_w(net: Padded) -> Array:
    return net.sigma_w


def _sigma_w_and_b(net: Padded) -> tuple[Array, Array]:
    return net.sigma_w, net.sigma_b


def gradient_step(settings: Settings, both: bool) -> tuple[Settings, str]:
    """One step down the gradient of `objectives.isometry` in `log sigma_w`, or in that and `log sigma_b`, as far as
    the sliders go and to four decimals, and what to say of it. It is halved until the objective falls; `sigma_b = 0`
    stays.
    """
    net = Padded.of(settings)
    where = _sigma_w_and_b if both else _sigma_w
    try:
        with _compiling:
            result = tune(net, objectives.isometry, where, optimizer=_descent, steps=1, progress=False)
            best: Any = result.net
    except (ValueError, eqx.EquinoxRuntimeError):
        return settings, "The objective or its gradient is not certified here."
    sigma_w = round(float(np.clip(best.sigma_w, *SIGMA_W)), 4)
    sigma_b = round(float(np.clip(best.sigma_b, *SIGMA_B)), 4)
    before, after = result.history
    note = f"Isometry {before:.4g}, then {after:.4g}." if after < before else f"Isometry {before:.4g}: a minimum."
    return dataclasses.replace(settings, sigma_w=sigma_w, sigma_b=sigma_b), note
