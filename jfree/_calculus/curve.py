"""The curve that folds operations."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Complex, Float, Inexact

from .._numerics.complex import exponential, log_lower, logarithm, magnitude, reciprocal, scaled, x_log_x
from .._numerics.implicit import at_roots, of_correction, without_value
from .atoms import Atoms
from .operation import AbstractOperation, Moments, no_unknowns, Step
from .point import Point, without_rounding


def _joined(parts: tuple[Array, ...]) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def _known(operation: AbstractOperation, point: Point, unknowns: Array) -> Array:
    """The unknowns, and the operation's guess of those that are 0; sums over a law must not repeat it in every term."""
    operation, point = jax.lax.stop_gradient((operation, point))
    unknown = unknowns == 0

    def guessed() -> Array:
        return jnp.where(unknown, operation.guess(point), unknowns)

    return jax.lax.cond(jnp.any(unknown), guessed, lambda: unknowns)


# After so many steps Newton's method hardly comes to its end any more: most guesses take fewer than ten.
_PATIENCE, _MOST_STEPS = 40, 100


def _from_nearest(values: Array, known: Bool[Array, " lanes"]) -> Array:
    """Those of the nearest lane that is known, if there is one."""
    lanes = jnp.arange(known.size)
    before = jax.lax.cummax(jnp.where(known, lanes, -1))
    after = jax.lax.cummin(jnp.where(known, lanes, 2 * known.size), reverse=True)
    nearest = jnp.where((before >= 0) & (lanes - before <= after - lanes), before, after)
    return jnp.where(jnp.any(known), values[..., jnp.minimum(nearest, known.size - 1)], values)


class Curve(eqx.Module):
    """A sequence of operations, applied to the identity layer after layer, and what stands after the last layer.

    The parameter of the curve is `omega = 1 + rank/m` at the start, `log omega = u`: it keeps to the upper half plane
    with `z`, is negative exactly when `z` is, and is proportional to `z` at infinity. `moments` are those of the
    whole, found once.

    The layers from `depth` on are neutral: few numbers of layers are compiled. They are left out, unless `run_all`:
    a loop that ends where it is told to has no derivatives in reverse mode.
    """

    operations: tuple[AbstractOperation, ...]
    last: tuple[AbstractOperation, ...]
    rank: Float[Array, ""]
    moments: Moments
    depth: Float[Array, ""]
    num_atoms: int = eqx.field(static=True)
    run_all: bool = eqx.field(static=True)

    def __init__(
        self,
        operations: tuple[AbstractOperation, ...],
        last: tuple[AbstractOperation, ...],
        rank: Float[Array, ""],
        num_atoms: int,
        depth: ArrayLike | None = None,
        run_all: bool = False,
        moments: Moments | None = None,
    ):
        self.operations, self.last, self.rank = operations, last, rank
        self.num_atoms, self.run_all = num_atoms, run_all or depth is None
        self.depth = jnp.asarray(self.num_layers if depth is None else depth, rank.dtype)
        self.moments = self._propagated_moments() if moments is None else moments

    def _propagated_moments(self) -> Moments:
        zero = jnp.zeros_like(self.rank)
        identity = Moments(zero, zero, zero, zero - jnp.inf)
        return self._propagated(lambda operation, c: operation.moments(c), identity)

    def _propagated(self, apply: Callable[[AbstractOperation, Any], Any], state: Any) -> Any:
        def layer(state: Any, operations: tuple[AbstractOperation, ...]) -> tuple[Any, None]:
            for operation in operations:
                state = apply(operation, state)
            return state, None

        state, _ = jax.lax.scan(layer, state, self.operations)
        for operation in self.last:
            state = apply(operation, state)
        return state

    def _over_layers(self, layer: Callable[[Any, Any], tuple[Any, Any]], state: Any, xs: Any, found: Any) -> Any:
        """`jax.lax.scan` over the layers that count; `found` stands for what is not found by any."""
        if self.num_layers == 1:
            state, found = layer(state, jax.tree.map(lambda x: x[0], xs))
            return state, jax.tree.map(lambda x: x[None], found)
        if self.run_all:
            return jax.lax.scan(layer, state, xs)

        def one(k: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            state, found = carry
            here = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, k, keepdims=False), xs)
            state, new = layer(state, here)
            put = lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, k, 0)  # noqa: E731
            return state, jax.tree.map(put, found, new)

        return jax.lax.fori_loop(0, self.depth.astype(int), one, (state, found))

    @property
    def num_layers(self) -> int:
        """Those that are neutral included."""
        return jax.tree.leaves(self.operations)[0].shape[0]

    @property
    def num_roundings(self) -> Float[Array, ""]:
        """By how much more than its own a number is rounded on the way through the layers."""
        return 1 + self.depth / 16

    def whole(self) -> "Curve":
        """The same curve, all of whose layers are run: differentiable in reverse mode."""
        return Curve(self.operations, self.last, self.rank, self.num_atoms, self.depth, True, self.moments)

    def resized(self, num_layers: int, num_atoms: int) -> "Curve":
        """The same spectrum over so many layers, neutral ones at the end, with room for so many atoms."""
        missing = max(num_layers - self.num_layers, 0)

        def resize(x: Array, neutral: Array) -> Array:
            return jnp.concatenate([x[:num_layers], jnp.broadcast_to(neutral[:1], (missing, *x.shape[1:]))])

        operations = tuple(jax.tree.map(resize, operation, operation.neutral()) for operation in self.operations)
        return Curve(operations, self.last, self.rank, num_atoms, self.depth, True)

    @property
    def num_unknowns(self) -> int:
        """Unknowns of every layer."""
        return sum(operation.num_unknowns for operation in self.operations)

    @property
    def num_points(self) -> int:
        """The most that a law has."""
        return max(operation.num_points for operation in self.operations)

    @property
    def has_few_points(self) -> bool:
        """Whether a law has few points only, which may lie far apart."""
        return any(0 < operation.num_points <= 16 for operation in self.operations)

    @property
    def has_shifts(self) -> bool:
        """Whether the end of the curve at `z = 0` lies at some `omega < 0`, rather than at 0."""
        return any(operation.moves_zeros for operation in self.operations + self.last)

    @property
    def adds_logs(self) -> bool:
        """Whether mean logarithms may be known as sums over the operations."""
        return all(operation.adds_logs for operation in self.operations + self.last)

    def next_to_atoms(self) -> Float[Array, ""]:
        """How near to an atom points are certified, relative to it: closer than a bulk around it is wide."""
        eps = jnp.finfo(self.rank.dtype).eps
        far = eps**0.3 if any(operation.blurs_atoms for operation in self.operations) else eps**0.8
        width = jax.lax.stop_gradient(self.moments.relative_variance) ** 0.5
        return jnp.clip(0.01 * width, eps**0.8, far)

    def start(self, omega: Inexact[Array, " lanes"]) -> Point:
        rank = self.rank
        inverse = omega - 1
        m = scaled(rank, reciprocal(inverse))
        n = omega * m
        per_rank = 1 / rank
        rate = scaled(-per_rank, n)
        one = without_rounding(1 - rank) + n
        z, dz = scaled(per_rank, one * inverse), -rate * reciprocal(one)
        return Point(
            z=z, m=m, n=n, dz=dz, rate=rate, rank=rank, side=jnp.ones_like(rank), log_scale=jnp.zeros_like(rank)
        )

    def fold(
        self,
        visit: Callable[[Any, Point, AbstractOperation, Step], Any],
        carry: Any,
        start: Point,
        unknowns: Inexact[Array, "layers unknowns lanes"],
        own_units: bool = False,
    ) -> tuple[Point, Any, tuple[Array, Array]]:
        """Runs points through all operations; `visit(carry, before, operation, step) -> carry` sees each.

        An unknown that is 0 is not known: its operation's guess stands for it. In units of its own no point leaves the
        range of floats.

        **Returns:** the last points, the last carry, and the corrected unknowns with their tangents.
        """

        def apply(operation: AbstractOperation, point: Point, carry: Any, guesses: Array):
            step = operation.advance(point, guesses)
            carry = visit(carry, point, operation, step) if operation.moves_points else carry
            return step.point, carry, (step.unknowns, step.tangents)

        def layer(state: tuple[Point, Any], xs: tuple[tuple[AbstractOperation, ...], Array | None]):
            point, carry = state
            operations, guesses = xs
            found, k = [], 0
            for operation in operations:
                number = operation.num_unknowns
                mine = none
                if number and guesses is not None:
                    mine = guesses[k : k + number]
                    mine = _known(operation, point, mine)
                point, carry, new = apply(operation, point, carry, mine)
                found += [new] if number else []
                k += number
            point = point.in_own_units() if own_units else point
            return (point, carry), tuple(map(_joined, zip(*found, strict=True)))

        none, known = no_unknowns(start.z), self.num_unknowns > 0
        (point, carry), found = self._over_layers(
            layer if self.num_layers == 1 else jax.checkpoint(layer, prevent_cse=False),
            (start, carry),
            (self.operations, unknowns if known else None),
            (unknowns, jnp.zeros_like(unknowns)) if known else (),
        )
        for operation in self.last:
            point, carry, _ = apply(operation, point, carry, none)
        return point, carry, found if known else (unknowns, unknowns)

    def settle(
        self, omega: Inexact[Array, " lanes"], weigh: Callable[[Array], Array] = jnp.ones_like
    ) -> Inexact[Array, "layers unknowns lanes"]:
        """The unknowns at given `omega`, in order: the equations of the layers' laws, without one for `z`.

        One Newton step short of full accuracy, which is taken where the curve is read. NaN where they are not found:
        nobody waits for lanes that together weigh no more than `eps**0.75`, the last of all aside: what they leave open
        must not show in differences of values. `weigh` is a function of `log |z|`, which of lanes not found is that of
        the next beyond all these. Where Newton's method goes astray it starts again from the nearest that are found.
        """
        start = self.start(omega).in_own_units()
        unknowns = jnp.zeros((self.num_layers, self.num_unknowns, omega.size), omega.dtype)
        if not self.num_unknowns:
            return unknowns
        eps = float(jnp.finfo(omega.dtype).eps)
        tolerance = eps**0.3  # of the last correction: the rest is its square

        def largest(size: Array, before: Point, operation: AbstractOperation, step: Step) -> Array:
            size = jnp.maximum(size, step.correction)
            # Where guesses are good only far from 0, others may lead to another root. On the axis it shows.
            astray = ~step.signs.rising & (omega.imag == 0)
            return jnp.where(astray, jnp.inf, size) if operation.starts_far else size

        def correct(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            k, unknowns, size, _ = state
            unknowns = jnp.where(k % _PATIENCE == _PATIENCE - 1, _from_nearest(unknowns, size <= tolerance), unknowns)
            none = jnp.zeros_like(omega.real)
            point, size, (unknowns, _) = self.fold(largest, none, start, unknowns, own_units=True)
            return k + 1, unknowns, size, _log_size_of(point)

        def unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
            k, _, size, log_size = state
            found, lanes = size <= tolerance, jnp.arange(size.size)
            last = jnp.max(jnp.where(found, -1, lanes))
            bound = jnp.min(jnp.where(lanes > last, log_size, jnp.inf))  # away from 0 it rises
            weights = weigh(jnp.where(found, log_size, bound))
            enough = jnp.sum(jnp.where(found, 0, weights)) <= eps**0.75 * jnp.sum(weights)
            return (k < _MOST_STEPS) & ~(enough & found[-1])

        unknown = jnp.full_like(omega.real, jnp.inf)
        _, unknowns, size, _ = jax.lax.while_loop(unfinished, correct, (jnp.asarray(0), unknowns, unknown, unknown))
        return jnp.where(size <= tolerance, unknowns, jnp.nan)

    def far(self) -> Float[Array, ""]:
        """Paths start on the negative axis, at least this far from 0; with some operations that is where the measure
        is hardly more than its mean. In units of the last points.
        """
        if not any(operation.starts_far for operation in self.operations):
            return jnp.zeros_like(self.rank)
        c = self.moments
        return 2 * (2 + c.relative_variance) * jnp.exp(c.log_mean - c.log_scale)

    def floor(self) -> Float[Array, ""]:
        """What the last shift adds to the mean, in units of the last points: `|z|` has no smaller scale."""
        c = self.moments
        return jnp.exp(c.log_floor - c.log_scale)

    def origin(self) -> Complex[Array, ""]:
        """Where `z` is measured from, on logarithmic scale: 0, or with shifts a point as far below 0 as they reach."""
        floor = self.floor()
        return jax.lax.complex(jnp.zeros_like(floor), -floor)

    def reach(self) -> Float[Array, ""]:
        """A radius of `omega` that singularities of the curve hardly exceed."""
        reach = 1.5 + self.moments.relative_variance + self.far()
        for operation in self.operations:
            reach = jnp.maximum(reach, operation.reach)
        return reach

    def point(
        self, omega: Inexact[Array, " lanes"], unknowns: Inexact[Array, "layers unknowns lanes"], slopes: bool = False
    ) -> Point:
        """The point at `omega`, differentiable in it and in the curve, for unknowns that solve their equations; its
        tangents are so only where their `slopes` are asked for.
        """
        return at_roots(_point, _corrected, slopes, self, (omega,), (unknowns,))

    def log_size(
        self, omega: Inexact[Array, " lanes"], unknowns: Inexact[Array, "layers unknowns lanes"]
    ) -> Float[Array, " lanes"]:
        """`log |z|`, also where `z` is out of the range of floats; differentiable like the point at `omega`."""
        return at_roots(_log_size, _corrected, False, self, (omega,), (unknowns,))

    def point_at(
        self,
        z: Complex[Array, " lanes"],
        omega: Complex[Array, " lanes"],
        unknowns: Complex[Array, "layers unknowns lanes"],
        found: Bool[Array, " lanes"],
        slopes: bool = False,
    ) -> Point:
        """The point at `z`, differentiable in it and in the curve, for `omega` and unknowns that were found to solve
        the equations; elsewhere it is at `omega`. Of its tangents as for `point`.
        """
        return at_roots(_point_at, _corrected_at, slopes, self, (z, found), (omega, unknowns))

    def potential_at(
        self,
        z: Complex[Array, " lanes"],
        omega: Complex[Array, " lanes"],
        unknowns: Complex[Array, "layers unknowns lanes"],
        found: Bool[Array, " lanes"],
    ) -> tuple[Point, Complex[Array, " lanes"]]:
        """The point and `Phi` at `z`, with its branch continuous from infinity in the upper half plane; differentiable
        like the point.
        """
        return at_roots(_potential_at, _corrected_at, False, self, (z, found), (omega, unknowns))

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

    def mean_log(self) -> Float[Array, ""]:
        """The mean of `log t` over `t > 0`, NaN where no sum over the operations is known."""
        mean, rank = self.log_volume(self.rank)
        return mean - (x_log_x(rank) + x_log_x(1 - rank)) / rank

    def log_volume(self, rank: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The mean of `-log S(-u)` for `u` up to a rank, as counted at the start, and that rank at the end.

        It is a sum over the operations (Haagerup and Moeller, Theorem 2.2).
        """

        def layer(rank: Array, operations: tuple[AbstractOperation, ...]) -> tuple[Array, tuple[Array, ...]]:
            ranks = []
            for operation in operations:
                ranks.append(rank)
                rank = operation.beyond(rank)
            return rank, tuple(ranks)

        def mean(operation: AbstractOperation, rank: Array) -> Array:
            return operation.log_volume(rank) / rank

        rank, ranks = jax.lax.scan(layer, rank, self.operations)
        total = sum(jnp.sum(jax.vmap(mean)(*one)) for one in zip(self.operations, ranks, strict=True))
        for operation in self.last:
            total, rank = total + mean(operation, rank), operation.beyond(rank)
        return jnp.asarray(total), rank

    def atoms(self) -> Atoms:
        """Atoms by propagation: zero first, then at most `num_atoms` others."""
        identity = Atoms.identity(self.num_atoms, self.rank.dtype)
        return self._propagated(lambda operation, atoms: operation.atoms(atoms), identity)


def _passed(carry: Any, *_: Any) -> Any:
    return carry


def _point(curve: Curve, omega: Array, unknowns: Array) -> Point:
    return curve.fold(_passed, None, curve.start(omega), unknowns)[0]


def _log_size(curve: Curve, omega: Array, unknowns: Array) -> Array:
    return _log_size_of(curve.fold(_passed, None, curve.start(omega).in_own_units(), unknowns, own_units=True)[0])


def _log_size_of(point: Point) -> Array:
    return point.log_scale + jnp.log(magnitude(point.z))


def _corrected(curve: Curve, omega: Array, unknowns: Array) -> tuple[Array]:
    return (curve.fold(_passed, None, curve.start(omega), unknowns)[2][0],)


def _gap(point: Point, z: Array, found: Array | bool) -> Array:
    """What is missing to `log z`."""
    ratio = jnp.where(found, z, 1) * jnp.exp(-point.log_scale) * reciprocal(point.z)
    return logarithm(jnp.where(found, ratio, 1))


def _point_at(curve: Curve, z: Array, found: Array | bool, omega: Array, unknowns: Array) -> Point:
    point = _point(curve, omega, unknowns)
    return point.moved(of_correction(jnp.multiply, without_value(_gap(point, z, found)), reciprocal(point.dz)))


def _potential_at(curve: Curve, z: Array, found: Array | bool, omega: Array, unknowns: Array) -> tuple[Point, Array]:
    """`d Phi = (1 + m) d log z`."""
    point, potential = curve.potential_from(curve.start(omega), unknowns)
    gap = without_value(_gap(point, z, found))
    phi = curve.full_potential(point, *potential)[0] + of_correction(jnp.multiply, gap, point.one_plus(1))
    return point.moved(of_correction(jnp.multiply, gap, reciprocal(point.dz))), phi


def _corrected_at(curve: Curve, z: Array, found: Array | bool, omega: Array, unknowns: Array) -> tuple[Array, Array]:
    point, _, (unknowns, tangents) = curve.fold(_passed, None, curve.start(omega), unknowns)
    change = of_correction(jnp.multiply, _gap(point, z, found), reciprocal(point.dz))
    return omega * exponential(change), unknowns * exponential(tangents * change)
