"""The spectral-curve calculus: every spectrum is one curve, every matrix operation one map of its points.

A measure `mu` is held as the set of points `(z, m)` with `m = M(z) = int t/(z-t) mu(dt)`, together with an
antiderivative `Phi` of `G = (m+1)/z`. Free multiplication, a change of side, a shift act on the points; nothing is
inverted on the way. A network is a sequence of such operations, scanned over its layers.

Scales are kept apart from points, as real logarithms, so that a thousand layers neither overflow nor underflow; and
next to `m` stands `n = m + rank`, so that `1 + b m` keeps its relative accuracy where it vanishes, at `z = 0`.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Complex, Float

from ._laws import Atoms
from ._misc import log_lower, reciprocal, scaled


class Point(eqx.Module):
    """Points of a curve, one per lane, with their tangents along the curve parameter `u`.

    In units of its own: the point is `exp(log_scale) z` and `side m`, `n = m + rank`; `dz` is `d log z / du`, `dm` is
    `dm / du`. A change of side, or of scale, touches no lane.
    """

    z: Complex[Array, " lanes"]
    m: Complex[Array, " lanes"]
    n: Complex[Array, " lanes"]
    dz: Complex[Array, " lanes"]
    dm: Complex[Array, " lanes"]
    rank: Float[Array, ""]
    side: Float[Array, ""]
    log_scale: Float[Array, ""]

    def one_plus(self, b: ArrayLike) -> Complex[Array, " lanes"]:
        """`1 + b M(z)`."""
        b = jnp.asarray(b) * self.side
        at_zero = 1 - b * self.rank
        # Far from vanishing at m = -rank: there n, next to rank, would lose the digits of a small m.
        far = at_zero < -1
        step = scaled(b, jnp.where(far, self.m, self.n))
        return jax.lax.complex(jnp.where(far, 1, _snap(at_zero)) + step.real, step.imag)

    def on_side(self) -> tuple[Complex[Array, " lanes"], Complex[Array, " lanes"], Complex[Array, " lanes"]]:
        """`m`, `dm` and `1 + m` in units of the side."""
        return scaled(self.side, self.m), scaled(self.side, self.dm), self.one_plus(1.0)

    def multiplied(self, ratio: Array, slope: Array, log_scale: Array) -> "Point":
        """The point with `z` times `exp(log_scale) ratio`, `slope = d log ratio / du`, at the same `m`."""
        return Point(
            self.z * ratio,
            self.m,
            self.n,
            self.dz + slope,
            self.dm,
            self.rank,
            self.side,
            self.log_scale + log_scale,
        )


def _snap(x: Array) -> Array:
    """Takes away the rounding that `1 - b rank` leaves where it is zero, but not its derivative."""
    return x - jax.lax.stop_gradient(jnp.where(jnp.abs(x) < 8 * jnp.finfo(x.dtype).eps, x, 0))


class Signs(eqx.Module):
    """Where subordination points lie: how far `below` and `above` the real axis at most, in units of what a rounding of
    `u` could move them, and between which signs they rise with `u` along it. The half-plane certificate asks no more.
    """

    below: Float[Array, " lanes"]
    above: Float[Array, " lanes"]
    low: Float[Array, " lanes"]
    high: Float[Array, " lanes"]

    @staticmethod
    def of(w: Complex[Array, " lanes"], dw: Complex[Array, " lanes"]) -> "Signs":
        """Of points `w` with `dw = d log w / du`."""
        height = w.imag / ((jnp.abs(w.real) + jnp.abs(w.imag)) * (1 + jnp.abs(dw.real) + jnp.abs(dw.imag)))
        rise = jnp.sign(w.real * dw.real - w.imag * dw.imag)
        return Signs(-height, height, rise, rise)

    @staticmethod
    def known(right: Bool[Array, " lanes"]) -> "Signs":
        """Of points known to lie right, or not to."""
        far = jnp.where(right, jnp.inf, -jnp.inf)
        return Signs(-far, -far, far, -far)

    @staticmethod
    def none(like: Complex[Array, " lanes"]) -> "Signs":
        """Of no points."""
        return Signs.known(jnp.ones(like.shape, bool))

    def rises_with(self, dz: Complex[Array, " lanes"]) -> Bool[Array, " lanes"]:
        """Whether all points rise where `z` does, real with `dz / du`."""
        direction = jnp.sign(dz.real)
        return (self.low >= direction) & (self.high <= direction)

    def where(self, there: Bool[Array, " lanes"], other: "Signs") -> "Signs":
        return jax.tree.map(lambda x, y: jnp.where(there, x, y), self, other)

    def __and__(self, other: "Signs") -> "Signs":
        return Signs(
            jnp.maximum(self.below, other.below),
            jnp.maximum(self.above, other.above),
            jnp.minimum(self.low, other.low),
            jnp.maximum(self.high, other.high),
        )

    def along(self, dv: Complex[Array, " lanes"]) -> "Signs":
        """For a parameter `u` in place of `v`, which rises with it or falls as `dv / du` says."""
        return Signs(self.below, self.above, -self.high, -self.low).where(dv.real < 0, self)

    def flipped(self, where: Bool[Array, " lanes"]) -> "Signs":
        """As seen from the lower half plane."""
        return Signs(self.above, self.below, -self.high, -self.low).where(where, self)


class Step(eqx.Module):
    """What one operation makes of a point.

    `unknowns` are the operation's own, corrected by one Newton step, with their logarithmic tangents. `signs` are
    those of its subordination points, and of the new `z`. `correction` is the size of the Newton step, and `mismatch`
    that of the equations it solves, both in logarithms: next to an atom, a pole of `M`, only the second tells how far
    the solution is. As functions of `1/m`, `closeness` bounds one over the distance to the operation's next
    singularities and `curvature` the second derivative of its `log z`, but for zeros of `z`, singular for `log z` only,
    which have their own closeness; `roughness` is the quadrature's relative error.
    """

    point: Point
    unknowns: Complex[Array, "unknowns lanes"]
    tangents: Complex[Array, "unknowns lanes"]
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
        closeness: Array | float = 0,
        curvature: Array | float = 0,
        closeness_to_zeros: Array | float = 0,
    ) -> "Step":
        """Without unknowns."""
        none, zero = jnp.zeros((0, *point.z.shape), point.z.dtype), jnp.zeros_like(point.z.real)
        pole, bend, root = zero + closeness, zero + curvature, zero + closeness_to_zeros
        return Step(point, none, none, signs, zero, zero, pole, bend, root, zero)


class Cumulants(eqx.Module):
    """Logarithm of the mean, variance / mean^2, `log_scale` of the points, and the logarithm of what the last shift
    adds to the mean, `-inf` without shifts: below that, `log z` is no measure of anything.
    """

    log_mean: Float[Array, ""]
    spread: Float[Array, ""]
    log_scale: Float[Array, ""]
    log_floor: Float[Array, ""]

    def times(self, log_mean: Array, spread: Array) -> "Cumulants":
        """After free multiplication by a law with these two."""
        return Cumulants(
            self.log_mean + log_mean, self.spread + spread, self.log_scale + log_mean, self.log_floor + log_mean
        )


class AbstractOperation(eqx.Module):
    """A matrix operation, as it acts on a curve. Leaves carry a leading axis over layers; methods see one layer."""

    moves_points: ClassVar[bool] = True  # or else changes their units only
    moves_zeros: ClassVar[bool] = False  # of z, so that those before it are no longer singular
    starts_far: ClassVar[bool] = False  # on the negative axis guesses are good far from 0 only
    blurs_atoms: ClassVar[bool] = False  # next to them most of the digits are lost

    @property
    def num_unknowns(self) -> int:
        """Unknowns of every layer; 0 for explicit operations."""
        return 0

    @property
    def has_few_points(self) -> bool:
        """Whether it has laws of few points only, which may lie far apart."""
        return False

    @property
    def reach(self) -> Float[Array, ""] | float:
        """A radius of `omega` that singularities of the unknowns hardly exceed."""
        return 0.0

    def guess(self, point: Point) -> Complex[Array, "unknowns lanes"]:
        """The unknowns at infinity."""
        return jnp.zeros((0, *point.z.shape), point.z.dtype)

    @abc.abstractmethod
    def advance(self, point: Point, unknowns: Complex[Array, "unknowns lanes"]) -> Step:
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
    def cumulants(self, c: Cumulants) -> Cumulants:
        """What the operation makes of them."""

    @abc.abstractmethod
    def atoms(self, atoms: Atoms) -> Atoms:
        """Maps the atoms of the measure."""

    @abc.abstractmethod
    def neutral(self) -> "AbstractOperation":
        """As many layers of it that leave every curve as it is."""


class Curve(eqx.Module):
    """A sequence of operations, applied to the identity layer after layer, and what stands after the last layer.

    The parameter of the curve is `omega = 1 + rank/m` at the start, `log omega = u`: it keeps to the upper half plane
    with `z`, is negative exactly when `z` is, and is proportional to `z` at infinity. `cumulants` are those of the
    whole, found once.
    """

    operations: tuple[AbstractOperation, ...]
    last: tuple[AbstractOperation, ...]
    rank: Float[Array, ""]
    cumulants: Cumulants
    num_atoms: int = eqx.field(static=True)

    def __init__(
        self,
        operations: tuple[AbstractOperation, ...],
        last: tuple[AbstractOperation, ...],
        rank: Float[Array, ""],
        num_atoms: int,
    ):
        self.operations, self.last, self.rank, self.num_atoms = operations, last, rank, num_atoms
        zero = jnp.zeros_like(rank)
        identity = Cumulants(zero, zero, zero, zero - jnp.inf)
        self.cumulants = self._propagated(lambda operation, c: operation.cumulants(c), identity)

    def _propagated(self, apply: Callable[[AbstractOperation, Any], Any], state: Any) -> Any:
        def layer(state: Any, operations: tuple[AbstractOperation, ...]) -> tuple[Any, None]:
            for operation in operations:
                state = apply(operation, state)
            return state, None

        state, _ = jax.lax.scan(layer, state, self.operations)
        for operation in self.last:
            state = apply(operation, state)
        return state

    @property
    def num_layers(self) -> int:
        return jax.tree.leaves(self.operations)[0].shape[0]

    def padded(self, num_layers: int, num_atoms: int) -> "Curve":
        """The same spectrum, with neutral layers before the first, and room for more atoms."""
        extra = num_layers - self.num_layers

        def pad(x: Array, neutral: Array) -> Array:
            return jnp.concatenate([jnp.broadcast_to(neutral[:1], (extra, *x.shape[1:])), x])

        operations = tuple(jax.tree.map(pad, operation, operation.neutral()) for operation in self.operations)
        return Curve(operations, self.last, self.rank, num_atoms)

    @property
    def num_unknowns(self) -> int:
        """Unknowns of every layer."""
        return sum(operation.num_unknowns for operation in self.operations)

    @property
    def has_shifts(self) -> bool:
        """Whether the end of the curve at `z = 0` lies at some `omega < 0`, rather than at 0."""
        return any(operation.moves_zeros for operation in self.operations)

    def next_to_atoms(self) -> Float[Array, ""]:
        """How near to an atom points are certified, relative to it: closer than a bulk around it is wide."""
        eps = jnp.finfo(self.rank.dtype).eps
        far = eps**0.3 if any(operation.blurs_atoms for operation in self.operations) else eps**0.8
        width = jax.lax.stop_gradient(self.cumulants.spread) ** 0.5
        return jnp.clip(0.01 * width, eps**0.8, far)

    def start(self, omega: Complex[Array, " lanes"]) -> Point:
        rank = self.rank
        m = rank * reciprocal(omega - 1)
        n = omega * m
        dm = -m * n / rank
        one = _snap(1 - rank) + n
        inverse = reciprocal(m)
        unit = jnp.ones_like(rank)
        return Point(one * inverse, m, n, dm * (reciprocal(one) - inverse), dm, rank, unit, jnp.zeros_like(rank))

    def fold(
        self,
        visit: Callable[[Any, Point, AbstractOperation, Step], Any],
        carry: Any,
        start: Point,
        unknowns: Complex[Array, "layers unknowns lanes"],
    ) -> tuple[Point, Any, tuple[Array, Array]]:
        """Runs points through all operations; `visit(carry, before, operation, step) -> carry` sees each.

        An unknown that is 0 is not known: its operation's guess stands for it.

        **Returns:** the last points, the last carry, and the corrected unknowns with their tangents.
        """

        def apply(operation: AbstractOperation, point: Point, carry: Any, guesses: Array):
            step = operation.advance(point, guesses)
            carry = visit(carry, point, operation, step) if operation.moves_points else carry
            return step.point, carry, step.unknowns, step.tangents

        def layer(state: tuple[Point, Any], xs: tuple[tuple[AbstractOperation, ...], Array]):
            point, carry = state
            operations, guesses = xs
            found, tangents, k = [], [], 0
            for operation in operations:
                mine = guesses[k : k + operation.num_unknowns]
                if operation.num_unknowns:
                    mine = jnp.where(mine == 0, jax.lax.stop_gradient(operation.guess(point)), mine)
                point, carry, *new = apply(operation, point, carry, mine)
                found.append(new[0])
                tangents.append(new[1])
                k += operation.num_unknowns
            return (point, carry), (jnp.concatenate(found), jnp.concatenate(tangents))

        (point, carry), found = jax.lax.scan(
            jax.checkpoint(layer, prevent_cse=False), (start, carry), (self.operations, unknowns)
        )
        for operation in self.last:
            point, carry, *_ = apply(operation, point, carry, unknowns[0, :0])
        return point, carry, found

    def settle(self, omega: Complex[Array, " lanes"], max_steps: int = 100) -> Complex[Array, "layers unknowns lanes"]:
        """The unknowns at given `omega`: the equations of the layers' laws, without one for `z`.

        One Newton step short of full accuracy, which is taken where the curve is read; NaN where they are not found.
        """
        start = self.start(omega)
        unknowns = jnp.zeros((self.num_layers, self.num_unknowns, omega.size), omega.dtype)
        tolerance = jnp.finfo(omega.dtype).eps ** 0.3  # of the last correction: the rest is its square

        def largest(size: Array, before: Point, operation: AbstractOperation, step: Step) -> Array:
            return jnp.maximum(size, step.correction)

        def correct(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            k, unknowns, _ = state
            _, size, (unknowns, _) = self.fold(largest, jnp.zeros_like(omega.real), start, unknowns)
            return k + 1, unknowns, size

        def unfinished(state: tuple[Array, Array, Array]) -> Array:
            k, _, size = state
            return (k < max_steps) & jnp.any(size > tolerance)

        state = (jnp.asarray(0), unknowns, jnp.full_like(omega.real, jnp.inf))
        _, unknowns, size = jax.lax.while_loop(unfinished, correct, state)
        return jnp.where(size <= tolerance, unknowns, jnp.nan)

    def far(self) -> Float[Array, ""]:
        """Paths start on the negative axis, at least this far from 0; with some operations that is where the measure
        is hardly more than its mean. In units of the last points.
        """
        if not any(operation.starts_far for operation in self.operations):
            return jnp.zeros_like(self.rank)
        c = self.cumulants
        return 2 * (2 + c.spread) * jnp.exp(c.log_mean - c.log_scale)

    def floor(self) -> Float[Array, ""]:
        """What the last shift adds to the mean, in units of the last points: `|z|` has no smaller scale."""
        c = self.cumulants
        return jnp.exp(c.log_floor - c.log_scale)

    def origin(self) -> Complex[Array, ""]:
        """Where `z` is measured from, on logarithmic scale: 0, or with shifts a point as far below 0 as they reach."""
        floor = self.floor()
        return jax.lax.complex(jnp.zeros_like(floor), -floor)

    def reach(self) -> Float[Array, ""]:
        """A radius of `omega` that singularities of the curve hardly exceed."""
        reach = 1.5 + self.cumulants.spread + self.far()
        for operation in self.operations:
            reach = jnp.maximum(reach, operation.reach)
        return reach

    def corrected(self, omega: Array, unknowns: Array) -> Array:
        """The unknowns after one Newton step each, at fixed `omega`."""
        return self.fold(lambda carry, *_: carry, None, self.start(omega), unknowns)[2][0]

    def point(self, omega: Complex[Array, " lanes"], unknowns: Complex[Array, "layers unknowns lanes"]) -> Point:
        """The point at `omega`, differentiable in it and in the curve, for unknowns that solve their equations."""
        return self.fold(lambda carry, *_: carry, None, self.start(omega), jax.lax.stop_gradient(unknowns))[0]

    def potential(
        self, omega: Complex[Array, " lanes"], unknowns: Complex[Array, "layers unknowns lanes"]
    ) -> tuple[Point, Complex[Array, " lanes"], Complex[Array, " lanes"]]:
        """The point, `Phi` and `log z`, with their branches continuous from infinity in the upper half plane."""
        point, potential = self.potential_from(self.start(omega), jax.lax.stop_gradient(unknowns))
        return point, *self.full_potential(point, *potential)

    def potential_from(self, start: Point, unknowns: Array) -> tuple[Point, tuple[Array, Array]]:
        """The last point with `Psi` and `log z`, both less `log_scale`, from a point on the curve of the identity."""

        def visit(carry: tuple[Array, Array], before: Point, operation: AbstractOperation, step: Step):
            return operation.potential(*carry, before, step)

        return self.fold(visit, self.initial_potential(start), start, unknowns)[:2]

    def initial_potential(self, start: Point) -> tuple[Array, Array]:
        """`Psi` and `log z` of the identity."""
        log_m = log_lower(start.m)
        return -log_m, log_lower(start.one_plus(1)) - log_m

    def full_potential(self, point: Point, psi: Array, log_z: Array) -> tuple[Array, Array]:
        """`Phi` and `log z` at the last point."""
        phi = point.side * psi + (1 - point.side) * log_z
        return phi + point.log_scale, log_z + point.log_scale

    def atoms(self) -> Atoms:
        """Atoms by propagation: zero first, then at most `num_atoms` others."""
        identity = Atoms.identity(self.num_atoms, self.rank.dtype)
        return self._propagated(lambda operation, atoms: operation.atoms(atoms), identity)
