"""The residual block as an operation."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float

from .._numerics.complex import exponential, log_lower, log_upper, logarithm, magnitude, reciprocal, squared
from .._numerics.implicit import at_extremum, bisect, implicit_root, with_slope
from .atoms import Atoms
from .curve import Curve
from .operation import AbstractOperation, Moments, Step
from .point import Point, Signs


class _Split(eqx.Module):
    """`m = b + c`, the shares of the identity and of `Y`, in the ratio `c / b`."""

    b: Complex[Array, " lanes"]
    c: Complex[Array, " lanes"]
    one_b: Complex[Array, " lanes"]
    one_c: Complex[Array, " lanes"]

    @staticmethod
    def of(m: Array, one: Array, ratio: Array) -> "_Split":
        whole = reciprocal(1 + ratio)
        b = m * whole
        return _Split(b, ratio * b, (ratio + one) * whole, (1 + ratio * one) * whole)

    def branch_start(self) -> Point:
        """The point of the identity that `c` belongs to, with tangents along `log c`."""
        one, per_one = self.one_c, reciprocal(self.one_c)
        unit = jnp.ones_like(self.c.real[0])
        rate = jnp.ones_like(self.c)
        return Point(
            z=one * reciprocal(self.c),
            m=self.c,
            n=one,
            dz=-per_one,
            rate=rate,
            rank=unit,
            side=unit,
            log_scale=0 * unit,
        )


class ResidualBlock(AbstractOperation):
    """Free multiplication by `(I + Y) (I + Y)^T`, `count` times, `Y` R-diagonal and `branch` the curve of `Y Y^T`.

    With `b` and `c` the values of `M` of the identity and of `Y Y^T` at their subordination points, `m = b + c` and
    `b (b + 1) = c (c + 1) S_Y(c) = t`, `S(m) = t / (m (m + 1))` (Ling, He and Qiu, Section 4). The unknown is `c / b`,
    which keeps both accurate however different they are; then come those of the branch.
    """

    branch: Curve
    count: Float[Array, "*blocks"]
    layers_per_block: int = eqx.field(static=True)

    starts_far = True
    blurs_atoms = True

    @property
    def num_points(self):
        return self.branch.num_points

    @property
    def num_unknowns(self):
        return 1 + self.layers_per_block * self.branch.num_unknowns

    @property
    def _log_mean(self) -> Float[Array, "*blocks"]:
        """Of one block: `1 + y_1`, with `y_1` the mean of `Y Y^T`."""
        return jnp.log1p(jnp.exp(self.branch.moments.log_mean))

    def guess(self, point: Point) -> Array:
        """`c / b` at large `z`; nearer, of branches below 1, as if all eigenvalues of `Y Y^T` were their mean: the
        equations are quadratic then, and this keeps their root.
        """
        mean = jnp.exp(self.branch.moments.log_mean)
        m, _, one = point.on_side()
        root = exponential(log_upper(jnp.square(1 - mean) + 4 * mean * one * one) / 2)
        root = jnp.where(root.real < 0, -root, root)
        above, below = root + (mean - 1 + 2 * one), root - (mean - 1 + 2 * one)
        # Of two equal expressions the one that does not cancel.
        above = jnp.where(magnitude(above) >= magnitude(below), above, 4 * (mean - 1) * m * one * reciprocal(below))
        near = mean * above * reciprocal(root + (1 - mean + 2 * mean * one))
        ratio = jnp.where(mean < 1, near, mean)
        return jnp.zeros((self.num_unknowns, *ratio.shape), ratio.dtype).at[0].set(ratio)

    def _of_branch(self, unknowns: Array) -> Array:
        return unknowns[1:].reshape(self.layers_per_block, self.branch.num_unknowns, unknowns.shape[-1])

    def advance(self, point: Point, unknowns: Array) -> Step:
        # Where there is no block, its equations need not have a solution that is right: they are asked for nothing.
        there = jnp.broadcast_to(self.count > 0, point.z.shape)
        inner = self._of_branch(unknowns)
        m, dm, one = point.on_side()
        known = jnp.where(there, unknowns[0], 1)  # it must not go astray elsewhere
        ratio = implicit_root(_block_gap, known, (self.branch, inner, m, one))
        old = _Split.of(m, one, ratio)

        def visit(
            carry: tuple[Signs, Array, Array, Array, Array], before: Point, operation: AbstractOperation, step: Step
        ):
            signs, correction, mismatch, near, rough = carry
            near = jnp.maximum(near, jnp.maximum(step.closeness, step.closeness_to_zeros))
            if operation.num_unknowns:
                correction, mismatch = jnp.maximum(correction, step.correction), jnp.maximum(mismatch, step.mismatch)
                rough = jnp.maximum(rough, step.roughness)
            return signs & step.signs, correction, mismatch, near, rough

        start, zero = old.branch_start(), jnp.zeros_like(m.real)
        end, carry, (inner, tangents) = self.branch.fold(
            visit, (start.own_signs(), zero, zero, zero, zero), start, inner
        )
        signs, correction, mismatch, near, rough = carry

        # Newton's step for log(c / b): c moves by `gain` times it, b by minus that.
        per_b, per_c = _per_part(old, end)
        gain = ratio * old.b * reciprocal(1 + ratio)
        steepness = gain * (per_c - per_b)
        # Where z of Y Y^T vanishes, at -rank, it does so linearly: next to an atom at 1.
        found = _block_ratio(old, end)
        steep = magnitude(steepness) > 4
        change = jnp.where(steep, 1 - reciprocal(found), logarithm(found))
        step = -change * reciprocal(steepness)
        size = magnitude(jax.lax.stop_gradient(step))
        # Next to that atom c is the rank, and b, all that counts, hardly feels its rounding.
        felt = jnp.maximum(self.count, 1) * magnitude(jax.lax.stop_gradient(per_b * gain * step))
        felt = jnp.where(steep, jnp.minimum(size, felt), size)
        correction, mismatch = jnp.maximum(correction, felt), jnp.maximum(mismatch, size)
        step = step * jnp.minimum(1, 1 / jnp.maximum(size, 1))
        ratio = ratio * exponential(step)
        inner = inner * exponential(tangents * (reciprocal(1 + ratio) * step))

        new = _Split.of(m, one, ratio)
        share = dm * reciprocal(per_c - per_b)
        db, dc = per_c * share * reciprocal(new.b), -per_b * share * reciprocal(new.c)
        dratio = dc - db
        t = new.b * new.one_b
        dt = db + new.b * db * reciprocal(new.one_b)
        growth = m * one * reciprocal(t) * jnp.exp(-self._log_mean)
        done = dm * reciprocal(one)
        slope = point.rate + done - dt

        own, negative, flipped = _block_signs(point, one, done, new, db, dc, t, dt)
        # The z of Y Y^T and all before it lie in the lower half plane together with the square of omega_2. On the
        # negative axis that square need not rise with z, only they with it.
        together = ((new.c * dc).real > 0) == (dm.real > 0)
        signs = own & Signs.known(signs.rising, zero.dtype).where(negative, signs.seen(flipped, together))
        power = logarithm(growth)
        # Of many blocks together, z must not have turned past the half plane and back into it.
        turned = log_upper(point.z).imag + self.count * power.imag
        turned = jax.lax.complex(jnp.zeros_like(turned), jnp.clip(turned, -jnp.pi / 2, 1.5 * jnp.pi))
        after = point.multiplied(
            jnp.where(self.count == 1, growth, exponential(self.count * power)),
            self.count * slope,
            self.count * self._log_mean,
        )
        signs = signs & after.own_signs() & point.signs(exponential(turned), after.dz)
        # That place is singular: c is known as long as its distance from there is.
        closeness = jnp.where(magnitude(change) < 0.157, _block_closeness(m, old, per_c, near), jnp.inf)
        found = jnp.concatenate([ratio[None], inner.reshape(-1, *ratio.shape)])
        dinner = tangents * dc
        tangents = jnp.concatenate([dratio[None], dinner.reshape(-1, *ratio.shape)])
        closeness = jnp.where(there, closeness, 0)
        return Step(
            point=after,
            unknowns=found,
            tangents=tangents,
            signs=signs.where(there, Signs.none(point.z)),
            correction=jnp.where(there, correction, 0),
            mismatch=jnp.where(there, mismatch, 0),
            closeness=closeness,
            curvature=self.count * closeness,
            closeness_to_zeros=zero,
            roughness=jnp.where(there, rough, 0),
        )

    def potential(self, psi: Array, log_z: Array, before: Point, step: Step) -> tuple[Array, Array]:
        m, one = before.side * before.m, before.one_plus(1)
        split = _Split.of(m, one, step.unknowns[0])
        inner = self._of_branch(step.unknowns)
        omega_1, omega_2, _ = _subordination(one, split, split.b * split.one_b)
        below_1, below_2 = _in_lower(omega_1), _in_lower(omega_2)

        def mirrored(x: Array, where: Array) -> Array:
            return jax.lax.complex(x.real, jnp.where(where, -x.imag, x.imag))

        mirror = jax.tree.map(lambda x: mirrored(x, below_2), split)
        end, (of_branch, _) = self.branch.potential_from(mirror.branch_start(), mirrored(inner, below_2))
        zero = jnp.zeros_like(m.real)
        turn = jax.lax.complex(zero, jnp.where(below_2, 2 * jnp.pi, zero))
        of_branch = mirrored(of_branch + end.log_scale, below_2) + turn
        log_one_b = mirrored(log_lower(mirrored(split.one_b, below_1)), below_1)
        change = self.count * (log_lower(m) + log_one_b + of_branch - self._log_mean)
        new_log_z = log_upper(step.point.z)
        return psi + (change - (1 - before.side) * (new_log_z - log_z)) / before.side, new_log_z

    def moments(self, c: Moments) -> Moments:
        y = self.branch.moments
        mean = jnp.exp(y.log_mean)
        relative_variance = (2 * mean + y.relative_variance * jnp.square(mean)) / jnp.square(1 + mean)
        return c.times(self.count * self._log_mean, self.count * relative_variance)

    def log_volume(self, rank: Array) -> Array:
        """Of a product without mass at 0: that of `I + Y` is the most that `Y Y^T` has up to any rank, as its
        eigenvalues are spread alike in all directions (Haagerup and Larsen, Theorem 4.4).
        """
        branch, whole = self.branch, self.branch.atoms().rank

        def volume(share: Array, branch: Curve) -> Array:
            return share * branch.log_volume(share)[0]

        slope = with_slope(volume)
        falling = with_slope(lambda share, branch: -slope(share, branch)[1])
        frozen, end = jax.lax.stop_gradient((branch, whole))
        share = bisect(lambda share: falling(share, frozen)[0], 0 * end, end)
        nearly = 1 - 64 * jnp.finfo(rank.dtype).eps
        none, all_of_it = share == 0, share > nearly * end
        inside = at_extremum(volume, falling, jnp.where(none, end / 2, share), (branch,), ~(none | all_of_it))
        most = jnp.where(none, 0, jnp.where(all_of_it, volume(whole, branch), inside))
        known = (rank > nearly) | (self.count == 0)
        return jnp.where(known, self.count * most, jnp.nan)

    def atoms(self, atoms: Atoms) -> Atoms:
        missing = jnp.minimum(1, 2 * self.branch.atoms().rank)
        mass = jnp.maximum(0, 1 - self.count * missing)
        none = jnp.zeros_like(atoms.log_locations)
        return atoms.times(Atoms(0 * mass + 1, none, none.at[0].set(mass)))

    def together(self):
        first = jax.tree.map(lambda x: x[:1], self)
        return eqx.tree_at(lambda b: b.count, first, jnp.sum(self.count, keepdims=True))

    def neutral(self):
        return eqx.tree_at(lambda b: b.count, self, jnp.zeros_like(self.count))


def _block_ratio(split: _Split, end: Point) -> Array:
    """1 where `b (1 + b) = (1 + c)^2 / z`, `z` the point of `Y Y^T` at `c`."""
    inverse = reciprocal(split.one_c)
    return end.z * jnp.exp(end.log_scale) * split.b * split.one_b * inverse * inverse


def _per_part(split: _Split, end: Point) -> tuple[Array, Array]:
    """Derivatives of `log(b (1 + b))` in `b` and of `-log((1 + c)^2 / z)` in `c`."""
    per_c = end.dz * reciprocal(split.c) - 2 * reciprocal(split.one_c)
    return reciprocal(split.b) + reciprocal(split.one_b), per_c


def _block_gap(ratio: Array, branch: Curve, inner: Array, m: Array, one: Array) -> tuple[Array, Array]:
    split = _Split.of(m, one, ratio)
    end = branch.fold(lambda carry, *_: carry, None, split.branch_start(), jax.lax.stop_gradient(inner))[0]
    per_b, per_c = _per_part(split, end)
    found = _block_ratio(split, end)
    return found - 1, found * (per_c - per_b) * split.b * reciprocal(1 + ratio)


def _subordination(one: Array, split: _Split, t: Array) -> tuple[Array, Array, Array]:
    """`omega_1 = (1 + b) / g`, `omega_2 = (1 + c) / g` and `1 / g`, `g = (1 + m) / zeta`, `zeta^2 = (1 + m)^2 / t`."""
    zeta = exponential(log_upper(one * one * reciprocal(t)) / 2)
    inverse = zeta * reciprocal(one)
    return split.one_b * inverse, split.one_c * inverse, inverse


def _in_lower(omega: Array) -> Bool[Array, " lanes"]:
    """Where the square of a point of the upper half plane lies below the axis."""
    return (omega.real < 0) & (jnp.abs(omega.real) > 1e-6 * magnitude(omega))


def _block_signs(
    point: Point, one: Array, done: Array, split: _Split, db: Array, dc: Array, t: Array, dt: Array
) -> tuple[Signs, Bool[Array, " lanes"], Bool[Array, " lanes"]]:
    """Of `W = zeta^2`, `1 / g` and both `omega`; where `W` is negative, and the square of `omega_2` below the axis."""
    omega_1, omega_2, inverse = _subordination(one, split, t)
    square = one * one * reciprocal(t)
    down = -dt / 2  # d log (1/g), as zeta / (1 + m) = t^(-1/2)
    d1 = split.b * db * reciprocal(split.one_b) + down
    d2 = split.c * dc * reciprocal(split.one_c) + down
    # On the negative axis zeta is imaginary, and so are the others, inside their half planes.
    negative = (square.imag == 0) & (square.real < 0)
    inside = (inverse.imag > 0) & (omega_1.imag > 0) & (omega_2.imag > 0)
    signs = point.signs(inverse, down) & point.signs(omega_1, d1) & point.signs(omega_2, d2)
    signs = Signs.known(inside, one.real.dtype).where(negative, signs)
    return signs & point.signs(square, 2 * done - dt), negative, ~negative & _in_lower(omega_2)


def _block_closeness(m: Array, split: _Split, per_c: Array, near: Array) -> Array:
    """`m = c + b(c)` is analytic in `c` up to where `1 + 2 b = 0` or a singularity of the branch, `near` being one over
    its squared distance in units of `c`; its inverse is so in a disk of Smale's radius.
    """
    t_slope = -split.b * split.one_b * per_c
    double = 1 + 2 * split.b
    rise = t_slope * reciprocal(double)
    per_distance = jnp.maximum(4 * magnitude(t_slope) / squared(double), jnp.sqrt(near) / magnitude(split.c))
    return squared(m) * jnp.square((1 + magnitude(rise)) / (0.17 * squared(1 + rise)) * per_distance)
