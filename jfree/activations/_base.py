"""Activations, with what the wide limit asks of them: Gaussian moments and the law of the squared derivative."""

import abc
import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Inexact

from .._calculus.atoms import Atoms
from .._calculus.factor import Factor
from .._calculus.law import Law
from .._calculus.law_factor import LawFactor
from .._calculus.operation import AbstractOperation
from .._numerics.arrays import inexact_asarray
from .._numerics.checks import check, is_finite


class AbstractActivation(eqx.Module):
    """A scalar function `phi`, applied entrywise to preactivations `h ~ N(0, q)`."""

    @property
    def breaks(self) -> tuple[ArrayLike, ...]:
        """Where quadratures on the real line have ends, in increasing order: kinks, and maxima of `phi'^2`; by default
        at 0.
        """
        return (0.0,)

    @abc.abstractmethod
    def __call__(self, x: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
        """`phi(x)`."""

    @abc.abstractmethod
    def derivative(self, x: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
        """`phi'(x)`, one-sided at kinks."""

    @abc.abstractmethod
    def second_moment(self, q: Float[Array, ""]) -> Float[Array, ""]:
        """`E phi(sqrt(q) Z)^2`."""

    @abc.abstractmethod
    def mean(self, q: Float[Array, ""]) -> Float[Array, ""]:
        """`E phi(sqrt(q) Z)`."""

    @abc.abstractmethod
    def slope_moment(self, q: Float[Array, ""]) -> Float[Array, ""]:
        """`E phi'(sqrt(q) Z)^2`."""

    @abc.abstractmethod
    def slope_factor(self, q: Float[Array, ""], refine: float = 1) -> AbstractOperation | None:
        """Free multiplication by the law of `phi'(sqrt(q) Z)^2`, `q > 0`: a `Factor`, or a `LawFactor` by `refine`
        times the usual number of points, half of them at least, where it has a choice; None where all slopes are of
        size 1. It need not be an integer, so that numbers of points are to be rounded.

        A network in which no other layer has such a law needs more points: its subordination points come down to the
        axis.
        """


class AbstractTwoSlopes(AbstractActivation):
    """`phi'^2` is `gamma` with probability `alpha` and 0 otherwise: `S(m) = (1+m) / (gamma (alpha+m))`."""

    @abc.abstractmethod
    def slopes(self, q: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """`(alpha, gamma)`."""

    def slope_moment(self, q: Array) -> Array:
        alpha, gamma = self.slopes(q)
        return alpha * gamma

    def slope_factor(self, q: Array, refine: float = 1) -> Factor | None:
        alpha, gamma = (jnp.asarray(x, q.dtype) for x in self.slopes(q))
        atoms = Atoms(alpha, jnp.log(gamma)[None], alpha[None])
        return Factor(alpha * gamma, jnp.ones_like(q), 1 / alpha, atoms)


class AbstractManySlopes(AbstractActivation):
    """`phi'^2` has a law without an elementary S-transform: it is held by points and weights."""

    @abc.abstractmethod
    def slope_law(self, q: Float[Array, ""], refine: float = 1) -> Law:
        """The law of `phi'(sqrt(q) Z)^2`, `q > 0`."""

    def slope_moment(self, q: Array) -> Array:
        return jnp.exp(self.slope_law(q).log_mean)

    def slope_factor(self, q: Array, refine: float = 1) -> LawFactor:
        return LawFactor(self.slope_law(q, refine))


def limited(height: float, q: Array) -> Array:
    """`height`, but at most of the order of `sqrt(q)`, beyond which the Gaussian would grow along the contour."""
    return height * jnp.sqrt(q / (q + height**2))


def normal(x: Array) -> Array:
    return jnp.exp(-jnp.square(x) / 2) / math.sqrt(2 * math.pi)


def finite(name: str, value: ArrayLike) -> Array:
    return check(inexact_asarray(value), is_finite, f"`{name}` must be finite.")


def positive(name: str, value: ArrayLike) -> Array:
    return check(inexact_asarray(value), lambda x: (x > 0) & (x < np.inf), f"`{name}` must be positive and finite.")
