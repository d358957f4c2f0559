"""Layers one after the other."""

import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .layers import Layers, trusted
from .model import AbstractModel, Blocks, FAR, m_at, Place, settled


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


class Chain(AbstractModel):
    """`phi(W x + b)` again and again; `ratios` are `N_l / N_0`, behind all layers those of the second row."""

    layers: Layers
    ratios: Float[Array, "2 layers"]
    error: ClassVar[float] = 0.0

    def place(self, s: Float[Array, ""], side: Float[Array, ""]) -> Place:
        """Of the free model."""
        layers, g = self.layers, self.layers.squares
        m, one_plus, rise = m_at(s, side)
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

        x = settled(transform, target)
        (omega, _, rate), (found, slope) = way.at(x), transform(x)
        turned = jnp.where(layers.haar > 0, before / plus_before, before)
        ratio = jnp.where(layers.there, layers.variance * turned * omega, 1)
        exists = jnp.all(ratio > 0) & jnp.all(jnp.abs(found / target - 1) < trusted(s.dtype))
        # d log omega / d m, and d log mu / d m, of every layer's own m.
        of_omega = jnp.sign(behind) * rate / (omega * slope) / self.ratios[1]
        of_mu = (1 / before - jnp.where(layers.haar > 0, 1 / plus_before, 0)) / self.ratios[0]
        change = rise * (1 / one_plus - 1 / m + jnp.sum(jnp.where(layers.there, of_omega + of_mu, 0)))
        log_value = jnp.log(one_plus / m) + jnp.sum(jnp.log(jnp.where(ratio > 0, ratio, 1)))
        return Place(log_value, change, exists, m, (omega, turned, ratio))

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
        return jnp.where(side > 0, FAR, math.log(jnp.finfo(side.dtype).eps) / 3).astype(side.dtype)

    def matrix(self, place: Place) -> Float[Array, "rows rows"]:
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
        blocks = Blocks(
            yy=jnp.diag(jnp.where(there, layers.haar * signal * turned - yy, 0)),
            py=jnp.diag(jnp.where(there, signal * jnp.sqrt(ratio), layers.square)).at[i[:-1], i[1:]].add(-across[:-1]),
            pp=jnp.diag(jnp.where(there, signal * ratio - pp, 0)),
        )
        return blocks.joined(jnp.sqrt(layers.square))
