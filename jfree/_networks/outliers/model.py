"""What a model of a Jacobian is, and the equations that its places solve."""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from .layers import Layers

# Where `s` starts, at eigenvalues 1e20 times as large as the bulk, or as small.
FAR = -46.0

# `log |omega / g - 1|` on the ways off the support of a law lies within, and takes so many steps at most: Newton's
# method converges in a few; every third step is a halving.
_REACH, _MOST_STEPS, _EVERY = 75.0, 90, 3


class Place(NamedTuple):
    """A real point of the free model: `log lambda`, its slope in `s`, whether there is one; and what it is made of."""

    log_value: Float[Array, ""]
    slope: Float[Array, ""]
    exists: Bool[Array, ""]
    m: Float[Array, ""]
    parts: tuple[Array, ...]


class AbstractModel(eqx.Module):
    """The free model of a network's Jacobian, and the rows by which the signal perturbs it."""

    layers: eqx.AbstractVar[Layers]
    error: ClassVar[float]  # of eigenvalues, relative, for what the model leaves out

    @abc.abstractmethod
    def place(self, s: Float[Array, ""], side: Float[Array, ""]) -> Place:
        """Of the free model."""

    @abc.abstractmethod
    def far(self, side: Float[Array, ""]) -> Float[Array, ""]:
        """Where the way to the bulk starts."""

    @abc.abstractmethod
    def matrix(self, place: Place) -> Float[Array, "rows rows"]:
        """`S - K`."""


def m_at(s: Array, side: Array) -> tuple[Array, Array, Array]:
    """`m`, `1 + m` and `dm / ds`."""
    step = jnp.exp(s)
    return jnp.where(side > 0, step, -1 - step), jnp.where(side > 0, 1 + step, -step), side * step


def settled(fn: Any, target: Array) -> Array:
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


class Blocks(NamedTuple):
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
