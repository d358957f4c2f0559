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

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from ..._calculus.extremes import Extremes
from ..._layers.kinds import Kinds
from .chain import Chain
from .layers import layers_of
from .search import extremes
from .stream import Stream

# `sigma_w^2` of layers that are missing. Where `omega = 2` they have `t = 1 / (_NEUTRAL omega) = 2` and `b = 1`: a
# root, which does not count.
_NEUTRAL = 0.25


def extremes_of_chain(dense: Kinds[Any], activations: Kinds[Any] | None, square: Array, widths: Array) -> Extremes:
    """Of weights and activations, or none, one after the other, behind mean squares and widths."""
    layers = layers_of(dense, activations, square)
    if layers is None:
        return Extremes.unknown(square.dtype)
    behind = dense.every(lambda layer: layer.width)()
    same = jnp.abs(behind / widths - 1) < jnp.finfo(square.dtype).eps ** 0.5
    known = layers.known & jnp.all(same | (layers.haar == 0) | ~layers.there)
    return extremes(Chain(layers._replace(known=known), jnp.stack([widths, behind]) / widths[0]))


def extremes_of_stream(dense: Kinds[Any], activations: Kinds[Any], square: Array, mean: Array) -> Extremes:
    """Of blocks `x + phi(W x + b)`, behind mean squares and means."""
    layers = layers_of(dense, activations, square)
    if layers is None:
        return Extremes.unknown(square.dtype)
    there = layers.there
    phi, slope = (jnp.where(there[:, None], x, 0) for x in (layers.phi, layers.slope))
    haar, variance = jnp.where(there, layers.haar, 0), jnp.where(there, layers.variance, _NEUTRAL)
    return extremes(Stream(layers._replace(phi=phi, slope=slope, haar=haar, variance=variance), mean))
