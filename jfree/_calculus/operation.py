"""What an operation on spectra is."""

import abc
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Complex, Float, Inexact

from .atoms import Atoms
from .point import like, Point, Signs


class Step(eqx.Module):
    """What one operation makes of a point.

    `unknowns` are the operation's own, corrected by one Newton step, with their logarithmic tangents. `signs` are
    those of its subordination points, and of the new `z`. `correction` is the size of the Newton step, and `mismatch`
    that of the equations it solves, both in logarithms: next to an atom, a pole of `M`, only the second tells how far
    the solution is. As functions of `1/m`, and relative to it, `closeness` bounds one over the squared distance to the
    operation's next singularities and `curvature` the second derivative of its `log z`, but for zeros of `z`, singular
    for `log z` only, which have their own closeness; `roughness` is the quadrature's relative error.
    """

    point: Point
    unknowns: Inexact[Array, "unknowns lanes"]
    tangents: Inexact[Array, "unknowns lanes"]
    signs: Signs
    correction: Float[Array, " lanes"]
    mismatch: Float[Array, " lanes"]
    closeness: Float[Array, " lanes"]
    curvature: Float[Array, " lanes"]
    closeness_to_zeros: Float[Array, " lanes"]
    roughness: Float[Array, " lanes"]

    @staticmethod
    def explicit(
        point: Point,
        signs: Signs,
        closeness: Array | float = 0.0,
        curvature: Array | float = 0.0,
        closeness_to_zeros: Array | float = 0.0,
    ) -> "Step":
        """Without unknowns: nothing is corrected, and nothing rough."""
        none, zero = no_unknowns(point.z), jnp.zeros_like(point.z.real)
        return Step(
            point=point,
            unknowns=none,
            tangents=none,
            signs=signs,
            correction=zero,
            mismatch=zero,
            closeness=like(zero, closeness),
            curvature=like(zero, curvature),
            closeness_to_zeros=like(zero, closeness_to_zeros),
            roughness=zero,
        )


def no_unknowns(like: Inexact[Array, "*layers lanes"]) -> Inexact[Array, "*layers 0 lanes"]:
    return jnp.zeros((*like.shape[:-1], 0, like.shape[-1]), like.dtype)


class Moments(eqx.Module):
    """The first two moments of a spectrum, and the units of its points.

    `log_mean` is the logarithm of the mean, `relative_variance` the variance over the squared mean, and `log_scale`
    that of the points. `log_floor` is the logarithm of what the last shift adds to the mean, `-inf` without shifts: for
    `|z|` below it distances in `log z` mean nothing, and are taken from minus the floor.
    """

    log_mean: Float[Array, ""]
    relative_variance: Float[Array, ""]
    log_scale: Float[Array, ""]
    log_floor: Float[Array, ""]

    def times(self, log_mean: Array, relative_variance: Array) -> "Moments":
        """After free multiplication by a law with these two."""
        return Moments(
            log_mean=self.log_mean + log_mean,
            relative_variance=self.relative_variance + relative_variance,
            log_scale=self.log_scale + log_mean,
            log_floor=self.log_floor + log_mean,
        )


class AbstractOperation(eqx.Module):
    """A matrix operation, as it acts on a curve. Leaves carry a leading axis over layers; methods see one layer."""

    moves_points: ClassVar[bool] = True  # or else changes their units only
    moves_zeros: ClassVar[bool] = False  # of z, so that those before it are no longer singular; others leave m alone
    starts_far: ClassVar[bool] = False  # on the negative axis guesses are good far from 0 only
    blurs_atoms: ClassVar[bool] = False  # next to them most of the digits are lost

    @property
    def num_unknowns(self) -> int:
        """Unknowns of every layer; 0 for explicit operations."""
        return 0

    @property
    def num_points(self) -> int:
        """Of a layer's law; 0 for explicit operations."""
        return 0

    @property
    def num_atoms(self) -> int:
        """Of a layer's law, but for that at 0."""
        return 1

    def fitted(self, num_points: int, num_atoms: int, dtype: DTypeLike) -> "AbstractOperation":
        """The same with room for so many points, of that dtype, and atoms, so that unlike layers stack."""
        return self

    @property
    def reach(self) -> Float[Array, ""] | float:
        """A radius of `omega` that singularities of the unknowns hardly exceed."""
        return 0.0

    def guess(self, point: Point) -> Inexact[Array, "unknowns lanes"]:
        """The unknowns at infinity."""
        return no_unknowns(point.z)

    @abc.abstractmethod
    def advance(self, point: Point, unknowns: Inexact[Array, "unknowns lanes"]) -> Step:
        """Maps points, given the current guess of the operation's unknowns."""

    @abc.abstractmethod
    def potential(
        self, psi: Complex[Array, " lanes"], log_z: Complex[Array, " lanes"], before: Point, step: Step
    ) -> tuple[Complex[Array, " lanes"], Complex[Array, " lanes"]]:
        """Maps `Psi` and `log z`, both less `log_scale`: `Phi = side Psi + (1 - side) log z`.

        `Psi` is the potential of the nonzero eigenvalues as counted at the start: a change of side leaves it alone,
        and rounding is not magnified by a ratio of widths.
        """

    @abc.abstractmethod
    def moments(self, c: Moments) -> Moments:
        """What the operation makes of them."""

    @abc.abstractmethod
    def atoms(self, atoms: Atoms) -> Atoms:
        """Maps the atoms of the measure."""

    def beyond(self, rank: Float[Array, ""]) -> Float[Array, ""]:
        """Maps the share of what is not at zero."""
        return rank

    @property
    def adds_logs(self) -> bool:
        """Whether `log_volume` may be known."""
        return True

    def log_volume(self, rank: Float[Array, ""]) -> Float[Array, ""]:
        """What it adds to `-int_0^rank log S(-u) du` of a measure, NaN where that is not known; with shifts there is no
        such sum.
        """
        raise NotImplementedError

    def together(self) -> "AbstractOperation":
        """All layers, which are alike, as one layer."""
        raise NotImplementedError

    @abc.abstractmethod
    def neutral(self) -> "AbstractOperation":
        """As many layers of it that leave every curve as it is."""
