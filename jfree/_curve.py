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
from jaxtyping import Array, ArrayLike, Complex, Float

from ._implicit import implicit_root
from ._laws import Atoms, Law, Transform
from ._misc import complex_dtype, exponential, log_lower, log_upper, logarithm, magnitude, reciprocal

_UNROLL = 1


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
        return _snap(1 - b * self.rank) + b * self.n

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


class Step(eqx.Module):
    """What one operation makes of a point.

    `unknown` is the operation's own subordination point, corrected by one Newton step where it is an unknown of its
    own, and `dunknown` its logarithmic tangent; both are what the half-plane certificate looks at. `correction` is the
    size of that step, and `mismatch` that of the equation it solves, both in logarithms: next to an atom, a pole of
    `M`, only the second tells how far the solution is. `closeness` bounds one over the distance, in `1/m`, to the
    next singularities of the operation, and `roughness` the relative quadrature error behind it.
    """

    point: Point
    unknown: Complex[Array, " lanes"]
    dunknown: Complex[Array, " lanes"]
    correction: Float[Array, " lanes"]
    mismatch: Float[Array, " lanes"]
    closeness: Float[Array, " lanes"]
    roughness: Float[Array, " lanes"]


class AbstractOperation(eqx.Module):
    """A matrix operation, as it acts on a curve. Leaves carry a leading axis over layers; methods see one layer."""

    has_unknown: ClassVar[bool]

    @abc.abstractmethod
    def advance(self, point: Point, unknown: Complex[Array, " lanes"]) -> Step:
        """Maps points, given the current guess of the operation's unknown (ignored by explicit operations)."""

    @abc.abstractmethod
    def potential(
        self, phi: Complex[Array, " lanes"], log_z: Complex[Array, " lanes"], point: Point, unknown: Array
    ) -> tuple[Complex[Array, " lanes"], Complex[Array, " lanes"]]:
        """Maps `Phi` and `log z`, both less `log_scale`, from `point` (before the operation)."""

    @abc.abstractmethod
    def cumulants(self, log_mean: Array, spread: Array, log_scale: Array) -> tuple[Array, Array, Array]:
        """Maps `(log mean, variance / mean^2, log_scale)`."""

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

    has_unknown = False

    def advance(self, point, unknown):
        num, den = point.one_plus(self.b), point.one_plus(self.a)
        inverse = reciprocal(num * den)
        ratio = num * num * inverse
        m, dm = point.side * point.m, point.side * point.dm
        slope = (self.b - self.a) * inverse * dm
        one = point.one_plus(1)
        own = one * ratio * reciprocal(m)
        down = _relative(dm, one) - _relative(dm, m) + slope
        closeness = magnitude(m) * magnitude(inverse) * (magnitude(den) + magnitude(num)) * (self.a != self.b)
        zero = jnp.zeros_like(closeness)
        return Step(point.multiplied(ratio, slope, jnp.log(self.mean)), own, down, zero, zero, closeness, zero)

    def potential(self, phi, log_z, point, unknown):
        a_term = _log_moebius(self.a, point)
        b_term = _log_moebius(self.b, point)
        log_ratio = log_lower(point.one_plus(self.b)) - log_lower(point.one_plus(self.a))
        return phi - a_term + b_term, log_z + log_ratio

    def cumulants(self, log_mean, spread, log_scale):
        log = jnp.log(self.mean)
        return log_mean + log, spread + self.b - self.a, log_scale + log

    def atoms(self, atoms):
        return atoms.times(self.law_atoms)


def _log_moebius(a: Array, point: Point) -> Array:
    """`(m+1) log(1 + a m) - int_0^m log(1 + a m') dm'`."""
    safe = jnp.where(a == 0, 1, a)
    value = (1 - 1 / safe) * log_lower(point.one_plus(safe)) + point.side * point.m
    return jnp.where((a == 0), 0, value)


class LawFactor(AbstractOperation):
    """Free multiplication by a law known by its points and weights: one unknown `w` with `M_law(w) = m`."""

    law: Law

    has_unknown = True

    def advance(self, point, unknown):
        m, dm, one = point.side * point.m, point.side * point.dm, point.one_plus(1)
        w = implicit_root(_law_gap, unknown, (self.law, m, one))
        moments = self.law.transform(w)
        # Newton's step for log w, in whichever of log M and log (1 + M) is the steeper; next to a pole, in 1/M.
        have, want = _either(moments, w, m, one)
        stiffness = -have * reciprocal(w * moments.slope)
        change = jnp.where(magnitude(have) > 1, 1 - have * reciprocal(want), logarithm(want * reciprocal(have)))
        step = change * stiffness
        correction = magnitude(jax.lax.stop_gradient(step))
        w = w * exponential(step * jnp.minimum(1, 2 / jnp.maximum(correction, 1)))
        dw = _relative(dm, want) * stiffness
        slope = _relative(dm, m) - _relative(dm, one) + dw
        new = point.multiplied(m * w * reciprocal(one), slope, self.law.log_mean)
        # The inverse of M is analytic in a disk of this radius: Smale's bound for M, whose k-th Taylor coefficient
        # at w is at most total / distance^(k-1).
        derivative = magnitude(moments.slope)
        closeness = jnp.square(magnitude(m)) * moments.total / (0.17 * jnp.square(derivative) * moments.distance)
        return Step(new, w, dw, correction, magnitude(change), closeness, moments.roughness)

    def potential(self, phi, log_z, point, unknown):
        log_m = log_lower(point.side * point.m)
        phi = phi + log_m + self.law.log_transform(unknown)
        return phi, log_z + log_m + log_upper(unknown) - log_lower(point.one_plus(1))

    def cumulants(self, log_mean, spread, log_scale):
        return log_mean + self.law.log_mean, spread + self.law.spread, log_scale + self.law.log_mean

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

    has_unknown = False

    def advance(self, point, unknown):
        new = eqx.tree_at(lambda p: p.side, point, point.side * self.ratio)
        zero = jnp.zeros_like(point.m.real)
        return Step(new, point.z, point.dz, zero, zero, zero, zero)

    def potential(self, phi, log_z, point, unknown):
        return self.ratio * phi + (1 - self.ratio) * log_z, log_z

    def cumulants(self, log_mean, spread, log_scale):
        return log_mean + jnp.log(self.ratio), (spread + 1) / self.ratio - 1, log_scale

    def atoms(self, atoms):
        return atoms.other_side(self.ratio)


class Curve(eqx.Module):
    """A sequence of operations, applied to the identity layer after layer, and what stands after the last layer.

    The parameter of the curve is `omega = 1 + rank/m` at the start, `log omega = u`: it keeps to the upper half plane
    with `z`, is negative exactly when `z` is, and is proportional to `z` at infinity.
    """

    operations: tuple[AbstractOperation, ...]
    last: tuple[AbstractOperation, ...]
    rank: Float[Array, ""]

    @property
    def num_layers(self) -> int:
        return jax.tree.leaves(self.operations)[0].shape[0]

    @property
    def num_unknowns(self) -> int:
        return sum(operation.has_unknown for operation in self.operations)

    def start(self, omega: Complex[Array, " lanes"]) -> Point:
        rank = self.rank
        m = rank * reciprocal(omega - 1)
        n = omega * m
        dm = -m * n / rank
        one = _snap(1 - rank) + n
        inverse = reciprocal(m)
        unit = jnp.ones_like(rank)
        return Point(one * inverse, m, n, dm * (reciprocal(one) - inverse), dm, rank, unit, jnp.zeros_like(rank))

    def initial_unknowns(self, omega: Complex[Array, " lanes"]) -> Complex[Array, "layers unknowns lanes"]:
        """Subordination points of point masses: exact at infinity, and where every guess starts."""
        point = self.start(omega)

        def layer(point, operations):
            guesses = []
            for operation in operations:
                guess = point.one_plus(1) * reciprocal(point.side * point.m)
                if operation.has_unknown:
                    guesses.append(guess)
                point = operation.advance(point, guess).point
            return point, _stack(guesses, omega)

        return jax.lax.scan(layer, point, self.operations)[1]

    def fold(self, visit, carry, omega, unknowns):
        """Runs all points through all operations; `visit(carry, before, operation, step) -> carry` sees each."""

        def layer(state, xs):
            point, carry = state
            operations, guesses = xs
            found, tangents, k = [], [], 0
            for operation in operations:
                guess = guesses[k] if operation.has_unknown else point.z
                step = operation.advance(point, guess)
                carry = visit(carry, point, operation, step)
                point = step.point
                if operation.has_unknown:
                    found.append(step.unknown)
                    tangents.append(step.dunknown)
                    k += 1
            return (point, carry), (_stack(found, omega), _stack(tangents, omega))

        state = (self.start(omega), carry)
        (point, carry), found = jax.lax.scan(layer, state, (self.operations, unknowns), unroll=_UNROLL)
        for operation in self.last:
            step = operation.advance(point, point.z)
            carry = visit(carry, point, operation, step)
            point = step.point
        return point, carry, found

    def settle(self, omega: Complex[Array, " lanes"], max_steps: int = 100) -> Complex[Array, "layers unknowns lanes"]:
        """The unknowns at given `omega`: the equations of the layers' laws, without one for `z`."""
        unknowns = self.initial_unknowns(omega)
        tolerance = 64 * jnp.finfo(omega.dtype).eps

        def largest(size, before, operation, step):
            return jnp.maximum(size, step.correction)

        def correct(state):
            k, unknowns, _ = state
            _, size, (unknowns, _) = self.fold(largest, jnp.zeros_like(omega.real), omega, unknowns)
            return k + 1, unknowns, size

        def unfinished(state):
            k, _, size = state
            return (k < max_steps) & jnp.any(size > tolerance)

        start = (jnp.asarray(0), unknowns, jnp.full_like(omega.real, jnp.inf))
        return jax.lax.while_loop(unfinished, correct, start)[1]

    def reach(self) -> Float[Array, ""]:
        """A radius of `omega` within which lie the singularities that laws without elementary transform add."""
        reach = jnp.zeros_like(self.rank)
        for operation in self.operations:
            if isinstance(operation, LawFactor):
                reach = jnp.maximum(reach, 3 * jnp.max(jnp.abs(operation.law.points)))
        return reach

    def corrected(self, omega: Array, unknowns: Array) -> Array:
        """The unknowns after one Newton step each, at fixed `omega`."""
        return self.fold(lambda carry, *_: carry, None, omega, unknowns)[2][0]

    def point(self, omega: Complex[Array, " lanes"], unknowns: Complex[Array, "layers unknowns lanes"]) -> Point:
        """The point at `omega`, differentiable in it and in the curve, for unknowns that solve their equations."""
        return self.fold(lambda carry, *_: carry, None, omega, jax.lax.stop_gradient(unknowns))[0]

    def potential(
        self, omega: Complex[Array, " lanes"], unknowns: Complex[Array, "layers unknowns lanes"]
    ) -> tuple[Point, Complex[Array, " lanes"], Complex[Array, " lanes"]]:
        """The point, `Phi` and `log z`, with their branches continuous from infinity in the upper half plane."""

        def visit(carry, before, operation, step):
            return operation.potential(*carry, before, step.unknown)

        start = self.start(omega)
        log_m = log_lower(start.m)
        carry = (-log_m, log_lower(start.one_plus(1)) - log_m)
        point, (phi, log_z), _ = self.fold(visit, carry, omega, jax.lax.stop_gradient(unknowns))
        return point, phi + point.log_scale, log_z + point.log_scale

    def cumulants(self) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
        """Logarithm of the mean, variance / mean^2, and `log_scale` of the last point, by propagation."""

        def layer(state, operations):
            for operation in operations:
                state = operation.cumulants(*state)
            return state, None

        zero = jnp.zeros_like(self.rank)
        state, _ = jax.lax.scan(layer, (zero, zero, zero), self.operations)
        for operation in self.last:
            state = operation.cumulants(*state)
        return state

    def atoms(self, size: int) -> Atoms:
        """Atoms by propagation: zero first, then at most `size` others."""

        def layer(atoms, operations):
            for operation in operations:
                atoms = operation.atoms(atoms)
            return atoms, None

        atoms, _ = jax.lax.scan(layer, Atoms.identity(size, self.rank.dtype), self.operations)
        for operation in self.last:
            atoms = operation.atoms(atoms)
        return atoms


def _stack(arrays: list, like: Array) -> Array:
    return jnp.stack(arrays) if arrays else jnp.zeros((0, *like.shape), complex_dtype(like.dtype))
