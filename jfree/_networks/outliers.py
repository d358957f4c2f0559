"""Extreme eigenvalues in the limit of large widths, those outside the bulk among them.

Weights and their own slopes depend on each other along one direction, that of the signal: given the forward pass,
`W_l = h_l x_{l-1}^T / |x_{l-1}|^2 + W~_l P`, `W~_l` fresh and `P` the projection off `x_{l-1}`. So `J` is what the free
model makes of it, and a perturbation of rank two per weight matrix at most. Its eigenvalues outside the bulk are the
zeros of `det(S - K)`, of a symmetric matrix with two rows per weight matrix: `y`, along the signal that comes in, and
`p`, along the preactivations. Its entries are expectations over `h ~ N(0, q)` and points of the free model at a real
`m = M(lambda)` outside the bulk, `m > 0` above it and `m < -1` below.

All eigenvalues of `S - K` pass 0 in one direction between infinity, or 0, and the bulk. So their signs far away and at
the bulk's end tell how many lie between, and the outermost is found by bisection.

Symbols, beside those of `Point`: `phi`, `D = phi'`, `g = D^2`; `x`, of mean square `Q`, comes into a layer;
`k = W x` has variance `sigma_w^2 Q`, `h = k + b`. `omega` is the subordination point of the law of `g`, off its
support, and `c = E g / (omega - g)`. `side` is 1 above the bulk and -1 below, where `m = e^s` and `m = -1 - e^s`; `s`
is the coordinate of all searches. Rows are scaled such that no product over layers is left in `S - K`.

**Chains**, `phi_l(W_l x + b_l)`, exact in the limit. With `m_l = m N_0 / N_l`: `c = m_l`, and
`lambda = (1 + m) / m prod_l r_l`, `r_l = sigma_w^2 mu omega`, where `mu` is `m_{l-1}`, and `m_{l-1} / (1 + m_{l-1})` of
orthogonal matrices. With `i = N_l / N_0`, and expectations over `h_l`,

- `K_pp = i E g k^2 / (1 - g / omega)`, `K_py = i E D k phi / (1 - g / omega)` with the `y` of the next layer, whose
  `K_yy = i E g phi^2 / (omega - g)`; of the first layer `K_yy = q_0 m`;
- `S_yp = Q sqrt(r) / d`, `S_pp = Q r / d`, where `Q` counts `N_{l-1} / N_0` times; of Gaussian matrices `S_yy = 0` and
  `d = 1`, of orthogonal ones `S_yy = Q mu / d` and `d = 1 - mu`.

**Streams**, `x + phi_l(W_l x + b_l)`. The free model has `m = b + c`, `t = b (b + 1)`, which is
`(1 + c) / (sigma_w^2 omega)`, and `1 + c` times that of orthogonal matrices; and `lambda = (1 + m) / m prod_l rho_l`,
`rho = m (1 + m) / t`. Between two rows its resolvent is `m theta_b / theta_a` from a `y` on, and
`(1 + m) theta_b / theta_a` from a `p` on, `theta_l / theta_{l-1} = 1 / ((1 - A) sqrt(rho))`. One neuron scatters once,
by `v = a (g - abar)` with `abar = omega c / (1 + c)`, `A = a abar` and `a = sigma_w^2 m / rho`, which is `1 + c` times
smaller of orthogonal matrices; on and on by itself, by `v / (1 - (1 + m) v)`. `K` has one scattering on the way into
`x`, one on the way out of it, and both at once. What comes back to a neuron by way of others is left out, an error of
about 0.1 %: slopes that act on one stream are not free. `S_yp = Q sqrt(rho) / d`, `S_pp = Q c rho / (m d)`; of Gaussian
matrices `S_yy = 0` and `d = 1`, of orthogonal ones `S_yy = Q m / ((1 + c) d)` and `d = 1 / (1 + c)`.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from .._calculus.extremes import Extremes
from .._layers.activation import Activation
from .._layers.dense import Dense
from .._layers.kinds import Kinds, where_layers
from .._layers.weights import Gaussian, Orthogonal
from .._meanfield.moments import in_range
from .._numerics.quadrature import gaussian_density, piece_nodes
from ..activations._base import AbstractActivation
from ..activations._two_slopes import Linear

# Nodes in all, and at least between two breaks: to 1e-9 for activations with structure of size 1.
_NUM_NODES, _FEWEST = 192, 64

# To so much, or to so many roundings, nodes have to give the moments of the activation, and roots to solve their
# equations.
_TRUSTED, _MOST_ROUNDINGS = 1e-6, 1000

# Slopes that grow between these distances, in units of 1 and a standard deviation, are not bounded.
_DISTANCES = (1e2, 1e4)

# Where `s` starts, at eigenvalues 1e20 times as large as the bulk, or as small; where ends of bulks are looked for, in
# what steps; beyond lie bulks that end with an atom, within 1e-6.
_FAR, _FIRST, _LAST, _STRIDE = -46.0, -25.0, 14.0, 0.75

# Halvings of a stride: an end of the bulk is stationary in `s`, which need not be known to the last digit.
_HALVINGS = 26

# Halvings of the way to an eigenvalue, to 0.01, and steps of the secant method from there, to the last digit.
_HALVINGS_OF_WAY, _SECANTS = 12, 8

# `log |omega / g - 1|` on the ways off the support of a law lies within, and takes so many steps at most: Newton's
# method converges in a few; every third step is a halving.
_REACH, _MOST_STEPS, _EVERY = 75.0, 90, 3

# What streams leave out, with a margin.
_ERROR_OF_STREAMS = 5e-3

# The factor of layers that are missing. Where `omega = 2` they have `t = 1 / (_NEUTRAL omega) = 2` and `b = 1`: a root,
# which does not count.
_NEUTRAL = 0.25

# Where the way starts, half of all eigenvalues of `S - K` are negative, and `lambda` has gone to infinity or 0: its
# logarithm at least as far as this.
_GROWS = 2.0


class _Layers(NamedTuple):
    """Of all layers: nodes of `h` with weights, `phi`, `D`, and `E[k | h]` and `E[k^2 | h]` there; numbers."""

    weights: Float[Array, "layers nodes"]
    phi: Float[Array, "layers nodes"]
    slope: Float[Array, "layers nodes"]
    k: Float[Array, "layers nodes"]
    k2: Float[Array, "layers nodes"]
    variance: Float[Array, " layers"]  # sigma_w^2
    square: Float[Array, " layers"]  # Q
    haar: Float[Array, " layers"]  # 1 of orthogonal matrices, 0 of others
    there: Bool[Array, " layers"]
    known: Bool[Array, ""]

    def expect(self, values: Float[Array, "layers nodes"]) -> Float[Array, " layers"]:
        return jnp.sum(self.weights * values, 1)

    @property
    def squares(self) -> Float[Array, "layers nodes"]:
        """`g`, 0 where there is no weight."""
        return jnp.where(self.weights > 0, jnp.square(self.slope), 0)

    @property
    def largest(self) -> Float[Array, " layers"]:
        """The largest `g`, 1 where there is none."""
        largest = jnp.max(self.squares, 1)
        return jnp.where(largest > 0, largest, 1)


class _Place(NamedTuple):
    """A real point of the free model: `log lambda`, its slope in `s`, whether there is one; and what it is made of."""

    log_value: Float[Array, ""]
    slope: Float[Array, ""]
    exists: Bool[Array, ""]
    m: Float[Array, ""]
    parts: tuple[Array, ...]


def _trusted(dtype: DTypeLike) -> float:
    return max(_TRUSTED, _MOST_ROUNDINGS * float(jnp.finfo(dtype).eps))


def _m_at(s: Array, side: Array) -> tuple[Array, Array, Array]:
    """`m`, `1 + m` and `dm / ds`."""
    step = jnp.exp(s)
    return jnp.where(side > 0, step, -1 - step), jnp.where(side > 0, 1 + step, -step), side * step


def _settled(fn: Any, target: Array) -> Array:
    """The last place where `fn(x)`, a value and its slope, falls to `target > 0`; of values too low, their maximum."""
    tolerance = 4 * _REACH * jnp.finfo(target.dtype).eps

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        k, x, low, high, _ = state
        value, slope = fn(x)
        left = (slope >= 0) | (value > target)
        low, high = jnp.where(left, x, low), jnp.where(left, high, x)
        falls = (slope < 0) & (value > 0)
        safe = jnp.where(falls, value, 1)
        newton = x - jnp.log(safe / target) * safe / jnp.where(falls, slope, -1)
        good = falls & (newton > low) & (newton < high) & (k % _EVERY != _EVERY - 1)
        there = falls & (jnp.abs(newton - x) < tolerance)
        new = jnp.where(good | there, newton, (low + high) / 2)
        done = there | (high - low < tolerance)
        return k + 1, new, low, high, jnp.all(done)

    low, high = jnp.full_like(target, -_REACH), jnp.full_like(target, _REACH)
    start = (jnp.zeros((), int), jnp.zeros_like(target), low, high, jnp.zeros((), bool))
    return lax.while_loop(lambda state: (state[0] < _MOST_STEPS) & ~state[-1], step, start)[1]


class _Off(NamedTuple):
    """Off the support of a law, from an end of it to infinity, or to 0 if `bounded`."""

    base: Float[Array, " layers"]
    size: Float[Array, " layers"]
    bounded: Bool[Array, " layers"]

    def at(self, x: Float[Array, " layers"]) -> tuple[Array, Array, Array]:
        """`omega`, how far it is from the base, and the slope of that."""
        share, left = jax.nn.sigmoid(x), jax.nn.sigmoid(-x)
        offset = self.size * jnp.where(self.bounded, share, jnp.exp(x))
        omega = jnp.where(self.bounded, self.base * left, self.base + offset)
        return omega, offset, offset * jnp.where(self.bounded, left, 1)


class _Chain(eqx.Module):
    """`phi(W x + b)` again and again; `ratios` are `N_l / N_0`, behind all layers those of the second row."""

    layers: _Layers
    ratios: Float[Array, "2 layers"]
    error = 0.0

    def place(self, s: Float[Array, ""], side: Float[Array, ""]) -> _Place:
        """Of the free model."""
        layers, g = self.layers, self.layers.squares
        m, one_plus, rise = _m_at(s, side)
        before, behind = m / self.ratios
        plus_before, plus_behind = jnp.where(self.ratios == 1, one_plus, 1 + m / self.ratios)
        way = self._way(behind, plus_behind)
        target = jnp.where(way.bounded, -plus_behind, jnp.abs(behind))

        def transform(x: Array) -> tuple[Array, Array]:
            """`|c|`, or `-1 - c` on the bounded way, and its slope."""
            omega, offset, rate = way.at(x)
            distance = (way.base[:, None] - g) + offset[:, None]
            value = jnp.where(way.bounded, -omega * layers.expect(1 / distance), jnp.abs(layers.expect(g / distance)))
            return value, -jnp.abs(rate) * layers.expect(g / distance / distance)

        x = _settled(transform, target)
        (omega, _, rate), (found, slope) = way.at(x), transform(x)
        turned = jnp.where(layers.haar > 0, before / plus_before, before)
        ratio = jnp.where(layers.there, layers.variance * turned * omega, 1)
        exists = jnp.all(ratio > 0) & jnp.all(jnp.abs(found / target - 1) < _trusted(s.dtype))
        # d log omega / d m, and d log mu / d m, of every layer's own m.
        of_omega = jnp.sign(behind) * rate / (omega * slope) / self.ratios[1]
        of_mu = (1 / before - jnp.where(layers.haar > 0, 1 / plus_before, 0)) / self.ratios[0]
        change = rise * (1 / one_plus - 1 / m + jnp.sum(jnp.where(layers.there, of_omega + of_mu, 0)))
        log_value = jnp.log(one_plus / m) + jnp.sum(jnp.log(jnp.where(ratio > 0, ratio, 1)))
        return _Place(log_value, change, exists, m, (omega, turned, ratio))

    def _way(self, m: Float[Array, " layers"], one_plus: Float[Array, " layers"]) -> "_Off":
        """Above all `g` if `m > 0`, below 0 if `m > -1`, else between 0 and the least `g`."""
        weights, largest = self.layers.weights, self.layers.largest
        least = jnp.min(jnp.where(weights > 0, self.layers.squares, jnp.inf), 1)
        above, within = m > 0, one_plus < 0
        base = jnp.where(above, largest, jnp.where(within, least, 0))
        return _Off(base, jnp.where(above, largest, jnp.where(within, -least, -largest)), within)

    def far(self, side: Float[Array, ""]) -> Float[Array, ""]:
        """Where the way to the bulk starts. Below it rows of orthogonal matrices vanish as `e^s`; what is left of them
        must not be rounding.
        """
        return jnp.where(side > 0, _FAR, math.log(jnp.finfo(side.dtype).eps) / 3).astype(side.dtype)

    def matrix(self, place: _Place) -> Float[Array, "rows rows"]:
        """`S - K`."""
        layers, (omega, turned, ratio) = self.layers, place.parts
        g, (before, behind) = layers.squares, self.ratios
        follows = jnp.append(layers.there[1:], False)
        weight = behind[:, None] / (1 - g / omega[:, None])
        pp = layers.expect(g * layers.k2 * weight)
        across = jnp.where(follows, layers.expect(layers.slope * layers.k * layers.phi * weight), 0)
        next_yy = layers.expect(g * jnp.square(layers.phi) * weight) / omega
        yy = jnp.concatenate([(layers.square[0] * place.m)[None], jnp.where(follows, next_yy, 0)[:-1]])
        d = 1 - layers.haar * turned
        signal = before * layers.square / d
        there, i = layers.there, jnp.arange(ratio.size)
        blocks = _Blocks(
            yy=jnp.diag(jnp.where(there, layers.haar * signal * turned - yy, 0)),
            py=jnp.diag(jnp.where(there, signal * jnp.sqrt(ratio), layers.square)).at[i[:-1], i[1:]].add(-across[:-1]),
            pp=jnp.diag(jnp.where(there, signal * ratio - pp, 0)),
        )
        return blocks.joined(jnp.sqrt(layers.square))


def _onwards(values: Float[Array, " layers"]) -> Float[Array, "layers layers"]:
    """How much farther on the values are, from the earlier to the later of two."""
    rise = jnp.triu(values - values[:, None])
    return rise + rise.T


class _Blocks(NamedTuple):
    """Parts of a symmetric matrix; rows of `py` are those of `p`."""

    yy: Float[Array, "layers layers"]
    py: Float[Array, "layers layers"]
    pp: Float[Array, "layers layers"]

    def joined(self, size: Float[Array, " layers"]) -> Float[Array, "rows rows"]:
        """In units of the signal; then rows as large as one another."""
        units = jnp.concatenate([size, size])
        whole = jnp.block([[self.yy, self.py.T], [self.py, self.pp]]) / units[:, None] / units
        rows = jnp.sqrt(jnp.max(jnp.abs(whole), 1))
        return whole / rows[:, None] / rows


class _Stream(eqx.Module):
    """`x + phi(W x + b)` again and again; `mean` is that of `x`, before every layer."""

    layers: _Layers
    mean: Float[Array, " layers"]
    error = _ERROR_OF_STREAMS

    def _shares(self, x: Float[Array, " layers"], side: Array) -> tuple[Array, ...]:
        """`b + side c` and its slope, `omega`, `c`, `t` and the slope of `log t`, where `omega` is `e^x` above all `g`,
        relative to them.
        """
        layers, g, top = self.layers, self.layers.squares, self.layers.largest
        above = top * jnp.exp(x)
        distance = (top[:, None] - g) + above[:, None]
        omega, c = top + above, layers.expect(g / distance)
        c_slope = -layers.expect(g / distance * (above[:, None] / distance))
        t = (1 + c) ** (1 + layers.haar) / (layers.variance * omega)
        log_slope = (1 + layers.haar) * c_slope / (1 + c) - above / omega
        root = jnp.sqrt(1 + 4 * t)
        b = 2 * t / (1 + root)
        return b + side * c, t * log_slope / root + side * c_slope, omega, c, t, log_slope

    def place(self, s: Float[Array, ""], side: Float[Array, ""]) -> _Place:
        """Of the free model."""
        m, one_plus, rise = _m_at(s, side)
        target = jnp.where(self.layers.there, jnp.exp(s), 1)
        x = _settled(lambda x: self._shares(x, side)[:2], target)
        found, slope, omega, c, t, log_slope = self._shares(x, side)
        ratio = jnp.where(self.layers.there, m * one_plus / t, 1)
        exists = jnp.all(jnp.abs(found / target - 1) < _trusted(s.dtype))
        each = rise * (1 / m + 1 / one_plus) - log_slope * target / slope
        change = rise * (1 / one_plus - 1 / m) + jnp.sum(jnp.where(self.layers.there, each, 0))
        log_value = jnp.log(one_plus / m) + jnp.sum(jnp.log(ratio))
        return _Place(log_value, change, exists, m, (one_plus, omega, c, ratio))

    def far(self, side: Float[Array, ""]) -> Float[Array, ""]:
        """Where the way to the bulk starts."""
        return jnp.full_like(side, _FAR)

    def matrix(self, place: _Place) -> Float[Array, "rows rows"]:
        """`S - K`."""
        layers, (one_plus, omega, c, ratio) = self.layers, place.parts
        g, m, haar = layers.squares, place.m, layers.haar
        a = layers.variance * m / ratio / (1 + c) ** haar
        average = omega * c / (1 + c)  # omega - 1 / E (1 / (omega - g))
        v = a[:, None] * (g - average[:, None])
        v = v / (1 - one_plus * v)
        log_theta = -jnp.cumsum(jnp.log1p(-a * average) + jnp.log(ratio) / 2)
        K = self._kernel(log_theta, v, m, one_plus)
        d = 1 - haar * c / (1 + c)
        signal = layers.square / d
        blocks = _Blocks(
            yy=jnp.diag(haar * signal * m / (1 + c)) - K.yy,
            py=jnp.diag(signal * jnp.sqrt(ratio)) - K.py,
            pp=jnp.diag(signal * c * ratio / m) - K.pp,
        )
        return blocks.joined(jnp.sqrt(layers.square))

    def _kernel(self, log_theta: Array, v: Array, m: Array, one_plus: Array) -> _Blocks:
        """`K`. Row `l` is the `y` before, the `p` behind the layer `l`."""
        layers, x, expect = self.layers, self.mean, self.layers.expect
        i = jnp.arange(x.size)
        later = (i[:, None] > i).astype(x.dtype)  # the `phi` of the column is part of the `x` of the row
        log_y, log_p = jnp.concatenate([jnp.zeros_like(log_theta[:1]), log_theta[:-1]]), log_theta
        rising = jnp.exp(_onwards(log_y))
        yy, off = m * rising, one_plus * (jnp.exp(_onwards(log_p)) - jnp.eye(x.size, dtype=x.dtype))
        gap = log_y - log_p[:, None]
        py = jnp.exp(jnp.where(later.T > 0, gap, -gap)) * jnp.where(later.T > 0, one_plus, m)

        local = 1 + one_plus * v
        phi, Dk = layers.phi, layers.slope * layers.k
        phi_mean, once, twice = expect(phi), expect(phi * v), expect(jnp.square(phi) * v)
        bent, bent_phi = expect(Dk * local), expect(Dk * phi * local)
        own = expect(layers.squares * layers.k2 * local) * one_plus

        back = later * py.T
        scattered = back * once
        cross = scattered @ (py * x) - (scattered * phi_mean) @ back.T
        variance = layers.square - jnp.square(x)
        Kyy = (jnp.outer(x, x) + variance[jnp.minimum(i[:, None], i)]) * yy + (back * twice) @ back.T
        Kyy = Kyy + cross + cross.T + scattered @ off @ scattered.T
        # The two scatterings in the other order.
        swapped = jnp.cumsum(py.T * (scattered @ off) * once, 1)
        swapped = jnp.concatenate([jnp.zeros_like(swapped[:, :1]), swapped[:, :-1]], 1) * rising
        Kyy = Kyy + jnp.triu(swapped) + jnp.triu(swapped, 1).T
        Kpy = py * (bent[:, None] * (x - phi_mean[:, None] * later.T) + bent_phi[:, None] * later.T)
        Kpy = Kpy + bent[:, None] * (off @ (once[:, None] * py * later.T))
        Kpp = jnp.outer(bent, bent) * off + jnp.diag(own)
        return _Blocks(Kyy, Kpy, Kpp)


class _Bracket(NamedTuple):
    """Between two places, and where to look next."""

    low: Float[Array, ""]
    high: Float[Array, ""]
    s: Float[Array, ""]


def _to_bulk(model: "_Chain | _Stream", side: Float[Array, ""]) -> Float[Array, ""]:
    """The end of the bulk, where `lambda` turns, by strides and halvings of the last one; infinite if there is none."""
    first, infinity = jnp.maximum(_FIRST, model.far(side)), jnp.asarray(jnp.inf, side.dtype)
    resolved = _STRIDE * max(2.0**-_HALVINGS, 64 * float(jnp.finfo(side.dtype).eps))

    def step(bracket: _Bracket) -> _Bracket:
        place = model.place(bracket.s, side)
        outside = place.exists & (side * place.slope < 0)
        low, high = jnp.where(outside, bracket.s, bracket.low), jnp.where(outside, bracket.high, bracket.s)
        return _Bracket(low, high, jnp.where(high == jnp.inf, low + _STRIDE, (low + high) / 2))

    def unfinished(bracket: _Bracket) -> Array:
        some = jnp.isfinite(bracket.low) | (bracket.s == first)
        return some & (bracket.high - bracket.low > resolved) & (bracket.low < _LAST)

    return lax.while_loop(unfinished, step, _Bracket(-infinity, infinity, first)).low


class _Way(NamedTuple):
    """The way from far away to the bulk. One eigenvalue of `S - K`, with a sign, is `below` 0 at its beginning, and
    `above` at its end.
    """

    bracket: _Bracket
    below: Float[Array, ""]
    above: Float[Array, ""]
    was_low: Bool[Array, ""]
    num_far: Int[Array, ""]
    num_near: Int[Array, ""]
    log_far: Float[Array, ""]
    log_near: Float[Array, ""]
    log_value: Float[Array, ""]


def _outermost(model: "_Chain | _Stream", side: Float[Array, ""]) -> tuple[Array, Array]:
    """The outermost eigenvalue on one side, and the end of the bulk there, NaN where they are not known."""
    near = _to_bulk(model, side)

    def step(state: tuple[Array, _Way]) -> tuple[Array, _Way]:
        """Looks at both ends, halves what is between them, and takes steps of the secant method."""
        k, way = state
        low, high, s = way.bracket
        place = model.place(s, side)
        values = jnp.linalg.eigvalsh(model.matrix(place))
        number = jnp.sum(values < 0)
        num_far, num_near = jnp.where(k == 0, number, way.num_far), jnp.where(k == 1, number, way.num_near)
        # In order of size those that change sign are next to each other: the first of them is the outermost.
        rises = num_near > num_far
        value = jnp.where(rises, -1, 1) * values[jnp.where(rises, num_far, num_far - 1)]
        is_low = jnp.where(k < 2, k == 0, value <= 0)
        low, high = jnp.where(is_low, s, low), jnp.where(is_low, high, s)
        # Illinois: an end that stays again counts half.
        share = jnp.where((k > _HALVINGS_OF_WAY) & (is_low == way.was_low), 0.5, 1)
        below, above = jnp.where(is_low, value, way.below * share), jnp.where(is_low, way.above * share, value)
        secant = jnp.clip(low - below * (high - low) / (above - below), low, high)
        middle = jnp.where(k > _HALVINGS_OF_WAY, secant, (low + high) / 2)
        return k + 1, _Way(
            bracket=_Bracket(low, high, jnp.where(k == 0, near, middle)),
            below=below,
            above=above,
            was_low=is_low,
            num_far=num_far,
            num_near=num_near,
            log_far=jnp.where(k == 0, place.log_value, way.log_far),
            log_near=jnp.where(k == 1, place.log_value, way.log_near),
            log_value=place.log_value,
        )

    def unfinished(state: tuple[Array, _Way]) -> Array:
        k, way = state
        return (k < 2) | (way.num_near != way.num_far) & (k < 2 + _HALVINGS_OF_WAY + _SECANTS)

    zero, none = jnp.zeros_like(side), jnp.zeros((), int)
    far = model.far(side)
    start = _Way(_Bracket(far, near, far), zero - 1, zero + 1, none > 0, none, none, zero, zero, zero)
    way = lax.while_loop(unfinished, step, (none, start))[1]
    known = model.layers.known & jnp.isfinite(near) & (way.num_far == model.layers.there.size)
    known &= side * (way.log_far - way.log_near) > _GROWS
    value, end = jnp.where(known, jnp.exp(jnp.stack([way.log_value, way.log_near])), jnp.nan)
    return value, end


def _extremes(model: "_Chain | _Stream") -> Extremes:
    model = lax.stop_gradient(model)
    sides = jnp.asarray([-1, 1], model.layers.square.dtype)
    values, ends = lax.map(lambda side: jnp.stack(_outermost(model, side)), sides).T
    return Extremes(values, ends, jnp.asarray(model.error, sides.dtype))


def extremes_of_chain(dense: Kinds[Any], activations: Kinds[Any] | None, square: Array, widths: Array) -> Extremes:
    """Of weights and activations, or none, one after the other, behind mean squares and widths."""
    layers = _layers(dense, activations, square)
    if layers is None:
        return Extremes.unknown(square.dtype)
    behind = dense.every(lambda layer: layer.width)()
    same = jnp.abs(behind / widths - 1) < jnp.finfo(square.dtype).eps ** 0.5
    known = layers.known & jnp.all(same | (layers.haar == 0) | ~layers.there)
    return _extremes(_Chain(layers._replace(known=known), jnp.stack([widths, behind]) / widths[0]))


def extremes_of_stream(dense: Kinds[Any], activations: Kinds[Any], square: Array, mean: Array) -> Extremes:
    """Of blocks `x + phi(W x + b)`, behind mean squares and means."""
    layers = _layers(dense, activations, square)
    if layers is None:
        return Extremes.unknown(square.dtype)
    there = layers.there
    phi, slope = (jnp.where(there[:, None], x, 0) for x in (layers.phi, layers.slope))
    haar, variance = jnp.where(there, layers.haar, 0), jnp.where(there, layers.variance, _NEUTRAL)
    return _extremes(_Stream(layers._replace(phi=phi, slope=slope, haar=haar, variance=variance), mean))


def _layers(dense: Kinds[Any], activations: Kinds[Any] | None, square: Float[Array, " layers"]) -> _Layers | None:
    """None if some are of a class that nothing is known of."""
    laws = [layer.weights if isinstance(layer, Dense) else None for layer in dense.members]
    bent = [] if activations is None else activations.members
    plain = all(isinstance(layer, Activation) and layer.keep is None for layer in bent)
    if not plain or not all(isinstance(law, Gaussian | Orthogonal) and not law.centred for law in laws):
        return None
    haar = jnp.asarray([isinstance(law, Orthogonal) for law in laws], square.dtype)[jnp.asarray(dense.kind)]
    variance, bias = dense.every(lambda layer: (jnp.square(layer.sigma_w), jnp.square(layer.sigma_b)))()
    weighted = variance * square
    q = in_range(weighted + bias)
    h, weights, phi, slope, known = _nodes(activations, q)
    known &= q == weighted + bias  # or else the signal is too small, or too large, for floats
    share = (weighted / (weighted + bias))[:, None]
    k = share * h
    k2 = jnp.square(k) + weighted[:, None] * (1 - share)
    there = dense.there
    return _Layers(weights, phi, slope, k, k2, variance, square, haar, there, jnp.all(known | ~there))


_Nodes = tuple[Array, Array, Array, Array, Array]


def _nodes(activations: Kinds[Any] | None, q: Float[Array, " layers"]) -> _Nodes:
    """`h`, weights, `phi` and `phi'` of all layers, and which are known; where there is no activation, of none."""
    members = [] if activations is None else [layer.activation for layer in activations.members]
    most = max(_nodes_per_piece(phi) * (len(phi.breaks) + 1) for phi in [Linear(), *members])
    plain = jax.vmap(lambda q: _nodes_of(Linear(), q, most))(q)
    if activations is None:
        return plain
    found = activations.every(lambda layer, q: _nodes_of(layer.activation, q, most))(q)
    return where_layers(activations.there, found, plain) if activations.gaps else found


def _nodes_per_piece(activation: AbstractActivation) -> int:
    return max(_FEWEST, _NUM_NODES // (len(activation.breaks) + 1))


def _nodes_of(activation: AbstractActivation, q: Float[Array, ""], most: int) -> _Nodes:
    ends = (-math.inf, *activation.breaks, math.inf)
    h, weights, _ = piece_nodes(q, ends, _nodes_per_piece(activation), ())
    weights = weights * gaussian_density(h, q)
    weights = (weights / jnp.sum(weights)).ravel()
    h, missing = h.ravel(), most - h.size
    phi, slope = activation(h), activation.derivative(h)
    known = _is_resolved(activation, q, weights, phi, slope) & _is_bounded(activation, q, slope)
    h, phi, slope = (jnp.pad(x, (0, missing), mode="edge") for x in (h, phi, slope))
    return h, jnp.pad(weights, (0, missing)), phi, slope, known


def _is_resolved(activation: AbstractActivation, q: Array, weights: Array, phi: Array, slope: Array) -> Bool[Array, ""]:
    found = jnp.stack([weights @ jnp.square(phi), weights @ jnp.square(slope)])
    exact = jnp.stack([activation.second_moment(q), activation.slope_moment(q)])
    return jnp.all(jnp.abs(found - exact) <= _trusted(q.dtype) * exact)


def _is_bounded(activation: AbstractActivation, q: Array, slope: Array) -> Bool[Array, ""]:
    """Whether slopes grow no more far away."""
    near, far = (jnp.abs(activation.derivative(jnp.asarray([-r, r]) * (1 + jnp.sqrt(q)))) for r in _DISTANCES)
    return jnp.max(far) <= 1.5 * jnp.maximum(jnp.max(near), jnp.max(jnp.abs(slope)))
