"""The spectral-curve calculus: every spectrum is one curve, every matrix operation one map of its points.

A measure `mu` is held as the set of points `(z, m)` with `m = M(z) = int t/(z-t) mu(dt)`, together with an
antiderivative `Phi` of `G = (m+1)/z`. Free multiplication, a change of side, a shift act on the points; nothing is
inverted on the way. A network is a sequence of such operations, scanned over its layers.

Scales are kept apart from points, as real logarithms, so that a thousand layers neither overflow nor underflow; and
next to `m` stands `n = m + rank`, so that `1 + b m` keeps its relative accuracy where it vanishes, at `z = 0`.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Complex, Float

from ._implicit import implicit_root
from ._laws import Atoms, Law, Transform
from ._misc import exponential, log_lower, log_upper, logarithm, magnitude, reciprocal, squared


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
        return jnp.where(far, 1, _snap(at_zero)) + b * jnp.where(far, self.m, self.n)

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
        rise = jnp.sign((w * dw).real)
        return Signs(-height, height, rise, rise)

    @staticmethod
    def none(like: Complex[Array, " lanes"]) -> "Signs":
        """Of no points."""
        far = jnp.full_like(like.real, jnp.inf)
        return Signs(-far, -far, far, -far)

    def __and__(self, other: "Signs") -> "Signs":
        return Signs(
            jnp.maximum(self.below, other.below),
            jnp.maximum(self.above, other.above),
            jnp.minimum(self.low, other.low),
            jnp.maximum(self.high, other.high),
        )

    def along(self, dv: Complex[Array, " lanes"]) -> "Signs":
        """For a parameter `u` in place of `v`, which rises with it or falls as `dv / du` says."""
        falling = Signs(self.below, self.above, -self.high, -self.low)
        return jax.tree.map(lambda x, y: jnp.where(dv.real < 0, x, y), falling, self)

    def flipped(self, where: Bool[Array, " lanes"]) -> "Signs":
        """As seen from the lower half plane."""
        upside_down = Signs(self.above, self.below, -self.high, -self.low)
        return jax.tree.map(lambda x, y: jnp.where(where, x, y), upside_down, self)


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

    moves_zeros: ClassVar[bool] = False  # of z, so that those before it are no longer singular
    starts_far: ClassVar[bool] = False  # on the negative axis guesses are good far from 0 only

    @property
    def num_unknowns(self) -> int:
        """Unknowns of every layer; 0 for explicit operations."""
        return 0

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


class Factor(AbstractOperation):
    """Free multiplication by a law with `S(m) = (1 + a m) / (mean (1 + b m))`.

    Gaussian weights have `a = 0`, orthogonal ones `a = b = 0` or `a = 1`, two atoms `{0, gamma}` have `a = 1`,
    `b = 1/alpha`: every explicit factor of the theory is of this form.
    """

    mean: Float[Array, " layers"]
    a: Float[Array, " layers"]
    b: Float[Array, " layers"]
    law_atoms: Atoms

    def advance(self, point, unknowns):
        num, den = point.one_plus(self.b), point.one_plus(self.a)
        inverse = reciprocal(num * den)
        ratio = num * num * inverse
        m, dm = point.side * point.m, point.side * point.dm
        slope = (self.b - self.a) * inverse * dm
        one = point.one_plus(1)
        own = one * ratio * reciprocal(m)
        down = _relative(dm, one) - _relative(dm, m) + slope
        size = magnitude(m) * (self.a != self.b)
        pole, zero = size / magnitude(den), size / magnitude(num)
        new = point.multiplied(ratio, slope, jnp.log(self.mean))
        signs = Signs.of(own, down) & Signs.of(new.z, new.dz)
        return Step.explicit(new, signs, pole, jnp.square(pole), zero)

    def potential(self, psi, log_z, before, step):
        log_ratio = log_lower(before.one_plus(self.b)) - log_lower(before.one_plus(self.a))
        return psi - _log_moebius(self.a, before) + _log_moebius(self.b, before), log_z + log_ratio

    def cumulants(self, c):
        return c.times(jnp.log(self.mean), self.b - self.a)

    def atoms(self, atoms):
        return atoms.times(self.law_atoms)


def _log_moebius(a: Array, point: Point) -> Array:
    """`(m+1) log(1 + a m) - int_0^m log(1 + a m') dm'`, with `m` and `a` as counted at the start."""
    safe = jnp.where(a == 0, 1, a)
    inverse = 1 / (safe * point.side)
    value = (1 - inverse) * _log_one_plus(safe * point.side * point.m, point.one_plus(safe)) + point.m
    return jnp.where(a == 0, 0, value)


def _log_one_plus(x: Array, one: Array) -> Array:
    """`log(1 + x)` on the closed lower half plane, `one = 1 + x`, to full relative accuracy."""
    small = squared(x) < 0.1
    y = jnp.where(small, x, 0)
    size = 0.5 * jnp.log1p(y.real * (2 + y.real) + jnp.square(y.imag))
    near = jax.lax.complex(size, jnp.arctan2(jnp.minimum(y.imag, 0), 1 + y.real))
    return jnp.where(small, near, log_lower(jnp.where(small, 1, one)))


class LawFactor(AbstractOperation):
    """Free multiplication by a law known by its points and weights: one unknown `w` with `M_law(w) = m`."""

    law: Law

    @property
    def num_unknowns(self):
        return 1

    def guess(self, point):
        return (point.one_plus(1) * reciprocal(point.side * point.m))[None]

    def advance(self, point, unknowns):
        (unknown,) = unknowns
        m, dm, one = point.side * point.m, point.side * point.dm, point.one_plus(1)
        w = implicit_root(_law_gap, unknown, (self.law, m, one))
        moments = self.law.transform(w)
        # Newton's step for log w, in whichever of log M and log (1 + M) is the steeper; next to a pole, in 1/M.
        have, want = _either(moments, w, m, one)
        stiffness = -have * reciprocal(w * moments.slope)
        change = jnp.where(magnitude(have) > 1, 1 - have * reciprocal(want), logarithm(want * reciprocal(have)))
        step = change * stiffness
        step = jax.lax.stop_gradient(step)  # w has its derivatives already
        correction = magnitude(step)
        limit = jnp.where(unknown.imag == 0, 8, 2)
        w = w * exponential(step * jnp.minimum(1, limit / jnp.maximum(correction, limit / 2)))
        dw = _relative(dm, want) * stiffness
        slope = _relative(dm, m) - _relative(dm, one) + dw
        new = point.multiplied(m * w * reciprocal(one), slope, self.law.log_mean)
        # The inverse of M is analytic in a disk of this radius: Smale's bound for M, whose k-th Taylor coefficient
        # at w is at most total / distance^(k-1), with 0.13 for his 0.17 since those of the inverse may grow like k.
        closeness = squared(m) * moments.total / (0.13 * squared(moments.slope) * moments.distance)
        # It is univalent there: |w''| <= 4 closeness |w'|, and w' stays of the size of w next to a pole of M.
        rate = magnitude(dw) * squared(m) / magnitude(dm)
        curvature = jnp.minimum(jnp.square(closeness), rate * (4 * closeness + rate))
        mismatch = magnitude(change)
        signs = Signs.of(w, dw) & Signs.of(new.z, new.dz)
        # Where w does not vanish with it, 1 + m leaves a pole.
        to_pole = jnp.where(self.law.atoms.rank < 1, magnitude(m) / magnitude(one), 0)
        bounds = (closeness, curvature, to_pole)
        return Step(new, w[None], dw[None], signs, correction, mismatch, *bounds, moments.roughness)

    def potential(self, psi, log_z, before, step):
        (w,) = step.unknowns
        log_one = _log_one_plus(before.side * before.m, before.one_plus(1))
        log_ratio = log_lower(before.side * before.m) + log_upper(w) - log_one
        own = self.law.log_transform(w) + log_one
        return psi + own / before.side + log_ratio, log_z + log_ratio

    def cumulants(self, c):
        return c.times(self.law.log_mean, self.law.spread)

    def atoms(self, atoms):
        return atoms.times(self.law.atoms)


def _either(moments: Transform, w: Array, m: Array, one: Array) -> tuple[Array, Array]:
    """`M(w)` and `m`, or `1 + M(w)` and `1 + m`: the pair that is small, accurate, and steep in log w."""
    rest = w * moments.g
    near_zero = magnitude(rest) < magnitude(moments.m)
    return jnp.where(near_zero, rest, moments.m), jnp.where(near_zero, one, m)


def _law_gap(w, law, m, one):
    have, want = _either(law.transform(w), w, m, one)
    return have - want


def _relative(tangent: Array, value: Array) -> Array:
    return tangent * reciprocal(value)


class ChangeSide(AbstractOperation):
    """`A` of size N seen as the matrix of size `N / ratio` with the same nonzero eigenvalues: `m -> ratio m`."""

    ratio: Float[Array, " layers"]

    def advance(self, point, unknowns):
        new = eqx.tree_at(lambda p: p.side, point, point.side * self.ratio)
        return Step.explicit(new, Signs.none(point.z))

    def potential(self, psi, log_z, before, step):
        return psi, log_z

    def cumulants(self, c):
        return Cumulants(c.log_mean + jnp.log(self.ratio), (c.spread + 1) / self.ratio - 1, c.log_scale, c.log_floor)

    def atoms(self, atoms):
        return atoms.other_side(self.ratio)


class Shift(AbstractOperation):
    """`A + a I`: `z -> z + a`, `m -> m + a (m + 1) / z`; the units become those of the side it happens on."""

    amount: Float[Array, " layers"]

    moves_zeros = True
    starts_far = True

    def advance(self, point, unknowns):
        share = self.amount * jnp.exp(-point.log_scale) * reciprocal(point.z)
        one, growth = point.one_plus(1), 1 + share
        growth = jnp.where(growth == 0, jnp.finfo(share.dtype).eps, growth)
        rest = one * growth
        dm = point.side * point.dm * growth - share * one * point.dz
        dz = _relative(point.dz, growth)
        unit = jnp.ones_like(point.rank)
        m = point.side * point.m + share * one
        new = Point(point.z * growth, m, rest, dz, dm, unit, unit, point.log_scale)
        return Step.explicit(new, Signs.of(new.z, new.dz))

    def potential(self, psi, log_z, before, step):
        return before.side * psi + (1 - before.side) * log_z, log_upper(step.point.z)

    def cumulants(self, c):
        log_amount = jnp.where(self.amount > 0, jnp.log(jnp.where(self.amount > 0, self.amount, 1)), -jnp.inf)
        log_mean = jnp.logaddexp(c.log_mean, log_amount)
        floor = jnp.where(self.amount > 0, log_amount, c.log_floor)
        return Cumulants(log_mean, c.spread * jnp.exp(2 * (c.log_mean - log_mean)), c.log_scale, floor)

    def atoms(self, atoms):
        return atoms.plus(self.amount)


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

    def _propagated(self, apply, state):
        def layer(state, operations):
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

    @property
    def num_unknowns(self) -> int:
        """Unknowns of every layer."""
        return sum(operation.num_unknowns for operation in self.operations)

    @property
    def has_shifts(self) -> bool:
        """Whether the end of the curve at `z = 0` lies at some `omega < 0`, rather than at 0."""
        return any(isinstance(operation, Shift) for operation in self.operations)

    def start(self, omega: Complex[Array, " lanes"]) -> Point:
        rank = self.rank
        m = rank * reciprocal(omega - 1)
        n = omega * m
        dm = -m * n / rank
        one = _snap(1 - rank) + n
        inverse = reciprocal(m)
        unit = jnp.ones_like(rank)
        return Point(one * inverse, m, n, dm * (reciprocal(one) - inverse), dm, rank, unit, jnp.zeros_like(rank))

    def initial_unknowns(self, start: Point) -> Complex[Array, "layers unknowns lanes"]:
        """Exact at infinity, and where every guess starts."""

        def layer(point, operations):
            guesses = []
            for operation in operations:
                guesses.append(operation.guess(point))
                point = operation.advance(point, guesses[-1]).point
            return point, jnp.concatenate(guesses)

        return jax.lax.scan(layer, start, self.operations)[1]

    def fold(self, visit, carry, start: Point, unknowns: Complex[Array, "layers unknowns lanes"]):
        """Runs points through all operations; `visit(carry, before, operation, step) -> carry` sees each.

        **Returns:** the last points, the last carry, and the corrected unknowns with their tangents.
        """

        def apply(operation, point, carry, guesses):
            step = operation.advance(point, guesses)
            return step.point, visit(carry, point, operation, step), step.unknowns, step.tangents

        def layer(state, xs):
            point, carry = state
            operations, guesses = xs
            found, tangents, k = [], [], 0
            for operation in operations:
                mine = guesses[k : k + operation.num_unknowns]
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

        NaN where they are not found.
        """
        start = self.start(omega)
        unknowns = self.initial_unknowns(start)
        tolerance = jnp.finfo(omega.dtype).eps ** 0.5  # of the last correction: the rest is its square

        def largest(size, before, operation, step):
            return jnp.maximum(size, step.correction)

        def correct(state):
            k, unknowns, _ = state
            _, size, (unknowns, _) = self.fold(largest, jnp.zeros_like(omega.real), start, unknowns)
            return k + 1, unknowns, size

        def unfinished(state):
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

    def reach(self) -> Float[Array, ""]:
        """A radius of `omega` that all singularities of the curve lie within."""
        reach = 1.5 + self.cumulants.spread + self.far()
        for operation in self.operations:
            if isinstance(operation, LawFactor):
                reach = jnp.maximum(reach, 3 * jnp.max(jnp.abs(operation.law.points)))
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
        start = self.start(omega)
        point, (psi, log_z) = self.potential_from(start, jax.lax.stop_gradient(unknowns))
        phi = point.side * psi + (1 - point.side) * log_z
        return point, phi + point.log_scale, log_z + point.log_scale

    def potential_from(self, start: Point, unknowns: Array) -> tuple[Point, tuple[Array, Array]]:
        """The last point with `Psi` and `log z`, both less `log_scale`, from a point on the curve of the identity."""

        def visit(carry, before, operation, step):
            return operation.potential(*carry, before, step)

        log_m = log_lower(start.m)
        carry = (-log_m, log_lower(start.one_plus(1)) - log_m)
        return self.fold(visit, carry, start, unknowns)[:2]

    def atoms(self) -> Atoms:
        """Atoms by propagation: zero first, then at most `num_atoms` others."""
        identity = Atoms.identity(self.num_atoms, self.rank.dtype)
        return self._propagated(lambda operation, atoms: operation.atoms(atoms), identity)
