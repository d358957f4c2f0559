"""What layers are to a model of their Jacobian: moments over preactivations, by quadrature."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from ..._layers.activation import Activation
from ..._layers.dense import Dense
from ..._layers.kinds import Kinds, where_layers
from ..._layers.weights import Gaussian, Orthogonal
from ..._meanfield.moments import in_range
from ..._numerics.quadrature import gaussian_density, piece_nodes
from ...activations._base import AbstractActivation
from ...activations._linear_pieces import Linear

# Nodes in all, and at least between two breaks: to 1e-9 for activations with structure of size 1.
_NUM_NODES, _FEWEST = 192, 64

# To so much, or to so many roundings, nodes have to give the moments of the activation, and roots to solve their
# equations.
_TRUSTED, _MOST_ROUNDINGS = 1e-6, 1000

# Slopes that grow between these distances, in units of 1 and a standard deviation, are not bounded.
_DISTANCES = (1e2, 1e4)


class Layers(NamedTuple):
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


def layers_of(dense: Kinds[Any], activations: Kinds[Any] | None, square: Float[Array, " layers"]) -> Layers | None:
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
    return Layers(
        weights=weights,
        phi=phi,
        slope=slope,
        k=k,
        k2=k2,
        variance=variance,
        square=square,
        haar=haar,
        there=there,
        known=jnp.all(known | ~there),
    )


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
    return jnp.all(jnp.abs(found - exact) <= trusted(q.dtype) * exact)


def _is_bounded(activation: AbstractActivation, q: Array, slope: Array) -> Bool[Array, ""]:
    """Whether slopes grow no more far away."""
    near, far = (jnp.abs(activation.derivative(jnp.asarray([-r, r]) * (1 + jnp.sqrt(q)))) for r in _DISTANCES)
    return jnp.max(far) <= 1.5 * jnp.maximum(jnp.max(near), jnp.max(jnp.abs(slope)))


def trusted(dtype: DTypeLike) -> float:
    return max(_TRUSTED, _MOST_ROUNDINGS * float(jnp.finfo(dtype).eps))
