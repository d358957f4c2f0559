"""Blocks that add to one stream."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from .layers import Layers, trusted
from .model import AbstractModel, Blocks, FAR, m_at, Place, settled

# What streams leave out, with a margin.
_ERROR_OF_STREAMS = 5e-3


class Stream(AbstractModel):
    """`x + phi(W x + b)` again and again; `mean` is that of `x`, before every layer."""

    layers: Layers
    mean: Float[Array, " layers"]
    error: ClassVar[float] = _ERROR_OF_STREAMS

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

    def place(self, s: Float[Array, ""], side: Float[Array, ""]) -> Place:
        """Of the free model."""
        m, one_plus, rise = m_at(s, side)
        target = jnp.where(self.layers.there, jnp.exp(s), 1)
        x = settled(lambda x: self._shares(x, side)[:2], target)
        found, slope, omega, c, t, log_slope = self._shares(x, side)
        ratio = jnp.where(self.layers.there, m * one_plus / t, 1)
        exists = jnp.all(jnp.abs(found / target - 1) < trusted(s.dtype))
        each = rise * (1 / m + 1 / one_plus) - log_slope * target / slope
        change = rise * (1 / one_plus - 1 / m) + jnp.sum(jnp.where(self.layers.there, each, 0))
        log_value = jnp.log(one_plus / m) + jnp.sum(jnp.log(ratio))
        return Place(log_value, change, exists, m, (one_plus, omega, c, ratio))

    def far(self, side: Float[Array, ""]) -> Float[Array, ""]:
        """Where the way to the bulk starts."""
        return jnp.full_like(side, FAR)

    def matrix(self, place: Place) -> Float[Array, "rows rows"]:
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
        blocks = Blocks(
            yy=jnp.diag(haar * signal * m / (1 + c)) - K.yy,
            py=jnp.diag(signal * jnp.sqrt(ratio)) - K.py,
            pp=jnp.diag(signal * c * ratio / m) - K.pp,
        )
        return blocks.joined(jnp.sqrt(layers.square))

    def _kernel(self, log_theta: Array, v: Array, m: Array, one_plus: Array) -> Blocks:
        """`K`. Row `l` is the `y` before, the `p` behind the layer `l`."""
        layers, x, expect = self.layers, self.mean, self.layers.expect
        i = jnp.arange(x.size)
        later = (i[:, None] > i).astype(x.dtype)  # the `phi` of the column is part of the `x` of the row
        log_y, log_p = jnp.concatenate([jnp.zeros_like(log_theta[:1]), log_theta[:-1]]), log_theta
        rising = jnp.exp(_onwards(log_y))
        yy, off = m * rising, one_plus * (jnp.exp(_onwards(log_p)) - jnp.eye(x.size, dtype=x.dtype))
        gap = log_y - log_p[:, None]
        py = jnp.exp(jnp.where(later.T > 0, gap, -gap)) * jnp.where(later.T > 0, one_plus, m)

        # Expectations over one neuron: `phi` at one end of a scattering, at both; `local` is what it does by itself.
        local = 1 + one_plus * v
        phi, Dk = layers.phi, layers.slope * layers.k
        phi_mean, once, twice = expect(phi), expect(phi * v), expect(jnp.square(phi) * v)
        bent, bent_phi = expect(Dk * local), expect(Dk * phi * local)
        own = expect(layers.squares * layers.k2 * local) * one_plus

        back = later * py.T
        scattered = back * once
        cross = scattered @ (py * x) - (scattered * phi_mean) @ back.T
        variance = layers.square - jnp.square(x)
        # None; one at each end, by the same neuron; one at either end; one at each end, by two neurons.
        Kyy = (jnp.outer(x, x) + variance[jnp.minimum(i[:, None], i)]) * yy + (back * twice) @ back.T
        Kyy = Kyy + cross + cross.T + scattered @ off @ scattered.T
        # The two scatterings in the other order.
        swapped = jnp.cumsum(py.T * (scattered @ off) * once, 1)
        swapped = jnp.concatenate([jnp.zeros_like(swapped[:, :1]), swapped[:, :-1]], 1) * rising
        Kyy = Kyy + jnp.triu(swapped) + jnp.triu(swapped, 1).T
        Kpy = py * (bent[:, None] * (x - phi_mean[:, None] * later.T) + bent_phi[:, None] * later.T)
        Kpy = Kpy + bent[:, None] * (off @ (once[:, None] * py * later.T))
        Kpp = jnp.outer(bent, bent) * off + jnp.diag(own)
        return Blocks(Kyy, Kpy, Kpp)


def _onwards(values: Float[Array, " layers"]) -> Float[Array, "layers layers"]:
    """How much farther on the values are, from the earlier to the later of two."""
    rise = jnp.triu(values - values[:, None])
    return rise + rise.T
