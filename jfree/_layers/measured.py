"""Layers of one given network, at one input: laws of its own matrices and slopes, not of an ensemble."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._calculus.atoms import Atoms
from .._calculus.factor import Factor, point_mass
from .._calculus.law import Law
from .._calculus.law_factor import LawFactor
from .._calculus.operation import AbstractOperation
from .._calculus.side_and_shift import ChangeSide
from .._numerics.show import number
from .layer import AbstractLayer, Change, Entries, Signal

# More atoms of one law seldom outlive the product with another.
MAX_ATOMS = 4


class MeasuredLaw(eqx.Module):
    """The share of eigenvalues that are not 0, and the law of those."""

    rank: Float[Array, ""]
    law: Law

    @staticmethod
    def of(values: Float[Array, " N"]) -> "MeasuredLaw":
        """Of eigenvalues."""
        alive = (values > 0).astype(values.dtype)
        law = Law.from_points(values, alive, alive, _atoms(values))
        return MeasuredLaw(jnp.mean(alive), law)

    def resized(self, size: int) -> "MeasuredLaw":
        """With room for `size` points."""
        return MeasuredLaw(self.rank, self.law.resized(size, MAX_ATOMS, self.rank.dtype))

    @property
    def operations(self) -> tuple[AbstractOperation, ...]:
        """A projection, and the law on its range, which together keep the digits of the rank."""
        one = jnp.ones_like(self.rank)
        atoms = Atoms(self.rank, jnp.zeros_like(one)[None], self.rank[None]).resized(MAX_ATOMS)
        projection = Factor(self.rank, one, 1 / self.rank, atoms)
        return projection, ChangeSide(1 / self.rank), LawFactor(self.law), ChangeSide(self.rank)


class Passed(eqx.Module):
    """Mean squares of a layer's input and output at one input of the network, the output's mean, and by how much its
    mean square grows with the input's.
    """

    square_in: Float[Array, ""]
    square_out: Float[Array, ""]
    mean_out: Float[Array, ""]
    slope: Float[Array, ""]


class AbstractMeasured(AbstractLayer):
    """What a layer does at one input. Nothing is known of others, nor of directions."""

    passed: Passed

    def forward(self, signal: Signal) -> Signal:
        """What was measured, where that comes in which was measured."""
        passed = self.passed
        elasticity = passed.slope * passed.square_in / passed.square_out
        square = passed.square_out * (signal.square / passed.square_in) ** elasticity
        return signal.passed(square, lambda _: passed.mean_out)

    def change(self, signal: Signal, change: Change) -> Change:
        return jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), change)

    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> Callable[..., Array]:
        raise ValueError("`net` must be random to be sampled: its layers are measured, those of one given network.")


class MeasuredWeights(AbstractMeasured):
    """Given weights, by the eigenvalues of `W^T W`."""

    width: Float[Array, ""]
    values: MeasuredLaw
    positions: int = eqx.field(static=True, default=1)

    has_weights: ClassVar[bool] = True

    @property
    def positions_per_position(self) -> int:
        return self.positions

    @property
    def num_laws(self) -> int:
        return 1

    def receive(self, entries: Entries) -> Entries:
        return Entries()

    def new_width(self) -> Array:
        return self.width

    def operations(self, signal: Signal, refine: float) -> tuple[AbstractOperation | None, ...]:
        return *self.values.operations, ChangeSide(self.positions * signal.width / self.width)

    def row(self) -> tuple[str, str]:
        return "measured weights", f"width {number(self.width)}, rank {number(self.values.rank)}"


class MeasuredSlopes(AbstractMeasured):
    """A function of every entry, by its squared slopes."""

    values: MeasuredLaw

    @property
    def num_laws(self) -> int:
        return 1

    def receive(self, entries: Entries) -> Entries:
        if entries.bent:
            raise ValueError(
                "`layers`: two functions of every entry in a row have no measured law, as they are not free."
            )
        return Entries(bent=True)

    def operations(self, signal: Signal, refine: float) -> tuple[AbstractOperation | None, ...]:
        return self.values.operations

    def row(self) -> tuple[str, str]:
        return "measured slopes", f"{number(self.values.rank)} of them not 0"


class MeasuredGain(AbstractMeasured):
    """A multiple of the identity, as norms are, by its square."""

    square: Float[Array, ""]

    def operations(self, signal: Signal, refine: float) -> tuple[AbstractOperation | None, ...]:
        return (point_mass(self.square),)

    def row(self) -> tuple[str, str]:
        return "measured norm", f"factor {number(jnp.sqrt(self.square))}"


def fitted(layers: list[AbstractLayer]) -> list[AbstractLayer]:
    """With laws of one size, so that they stack."""

    def is_law(node: Any) -> bool:
        return isinstance(node, MeasuredLaw)

    laws = [node for node in jax.tree.leaves(layers, is_leaf=is_law) if is_law(node)]
    size = max((law.law.points.size for law in laws), default=1)
    return jax.tree.map(lambda node: node.resized(size) if is_law(node) else node, layers, is_leaf=is_law)


def squared_singular_values(weight: Float[Array, "*stack out in"]) -> Float[Array, " N"]:
    """Eigenvalues of `W^T W` of a matrix, or of the diagonal blocks of one; what is rounding is 0."""
    singular = jnp.linalg.svd(weight, compute_uv=False)
    rounding = max(weight.shape[-2:]) * jnp.finfo(singular.dtype).eps * jnp.max(singular)
    squares = jnp.square(jnp.where(singular > rounding, singular, 0))
    missing = weight.shape[-1] - squares.shape[-1]
    return jnp.pad(squares, [(0, 0)] * (squares.ndim - 1) + [(0, missing)]).ravel()


def _atoms(values: Float[Array, " N"]) -> Atoms:
    """The nonzero values that most of the others equal, but for rounding."""
    rounding = values.size * jnp.finfo(values.dtype).eps
    log_values = jnp.sort(jnp.log(values))
    first = jnp.searchsorted(log_values, log_values - rounding)
    count = jnp.searchsorted(log_values, log_values + rounding, side="right") - first
    distinct = jnp.isfinite(log_values) & (first == jnp.arange(values.size))
    masses = jnp.where(distinct, count, 0).astype(values.dtype) / jnp.sum(values > 0)
    masses, index = jax.lax.top_k(masses, min(MAX_ATOMS, values.size))
    return Atoms(jnp.ones((), values.dtype), jnp.where(masses > 0, log_values[index], 0), masses)
