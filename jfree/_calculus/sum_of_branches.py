"""Sums of branches as an operation; a residual block is one."""

from functools import partial, reduce

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float

from .._numerics.complex import (
    exponential,
    log_lower,
    log_upper,
    logarithm,
    magnitude,
    mirrored,
    reciprocal,
    scaled,
    squared,
)
from .._numerics.implicit import at_extremum, bisect, of_correction, with_slope
from .atoms import Atoms
from .curve import Curve
from .operation import AbstractOperation, Moments, Step
from .point import Point, Signs

# A change of the largest share that Newton's method makes in one step is trusted below this, in logarithms.
_NEAR = 0.157

# Radius of the disk in which a function has an inverse, over that in which it is known to be analytic (Smale).
_SMALE = 0.17


class _Shares(eqx.Module):
    """`m` as the sum of `parts`, which are to the first as `ratios`; `ones` are 1 more. Both keep their digits, however
    different the parts are.
    """

    parts: tuple[Complex[Array, " lanes"], ...]
    ones: tuple[Complex[Array, " lanes"], ...]
    ratios: tuple[Complex[Array, " lanes"], ...]

    @staticmethod
    def of(m: Array, one: Array, ratios: Array | list[Array]) -> "_Shares":
        each = (jnp.ones_like(m), *ratios)
        whole = reciprocal(sum(each[1:], each[0]))
        first = m * whole
        ones = [(ratio * one + rest) * whole for ratio, rest in zip(each, _without_each(each), strict=True)]
        return _Shares((first, *(ratio * first for ratio in each[1:])), tuple(ones), each[1:])


def _without_each(terms: tuple[Array, ...]) -> list[Array]:
    """Sums of all but one."""
    zero = jnp.zeros_like(terms[0])
    return [sum((x for j, x in enumerate(terms) if j != k), zero) for k in range(len(terms))]


class _Looked(eqx.Module):
    """What the certificate saw on the way through a branch."""

    signs: Signs
    correction: Float[Array, " lanes"]
    mismatch: Float[Array, " lanes"]
    closeness: Float[Array, " lanes"]
    roughness: Float[Array, " lanes"]

    @staticmethod
    def visit(seen: "_Looked", before: Point, operation: AbstractOperation, step: Step) -> "_Looked":
        closeness = jnp.maximum(seen.closeness, jnp.maximum(step.closeness, step.closeness_to_zeros))
        correction, mismatch, roughness = seen.correction, seen.mismatch, seen.roughness
        if operation.num_unknowns:
            correction, mismatch = jnp.maximum(correction, step.correction), jnp.maximum(mismatch, step.mismatch)
            roughness = jnp.maximum(roughness, step.roughness)
        return _Looked(seen.signs & step.signs, correction, mismatch, closeness, roughness)


class _Term(eqx.Module):
    """One of the terms at its own `s`: one over the `t` that all have in common, how `s` changes with `log t`, and
    `1 + side s`, what `1 + s` is on the other side.
    """

    inverse: Complex[Array, " lanes"]
    per_log_t: Complex[Array, " lanes"]
    other: Complex[Array, " lanes"]
    side: Float[Array, ""]

    @staticmethod
    def identity(s: Array, one: Array) -> "_Term":
        """`t = s (1 + s)`."""
        product = s * one
        return _Term(reciprocal(product), product * reciprocal(s + one), one, jnp.ones_like(s.real[0]))

    @staticmethod
    def of_branch(s: Array, one: Array, end: Point) -> "_Term":
        """`t = (1 + s) (1 + side s) / z`, where the branch ends."""
        other, per_one = end.one_plus(1), reciprocal(one)
        per_other = reciprocal(other)
        slope = per_one + scaled(end.side, per_other) - end.dz * reciprocal(s)
        inverse = end.z * jnp.exp(end.log_scale) * per_one * per_other
        return _Term(inverse, reciprocal(slope), other, end.side)


def _start(s: Array, one: Array) -> Point:
    """The point of the identity that `s` belongs to, with tangents along `log s`."""
    unit = jnp.ones_like(s.real[0])
    return Point(
        z=one * reciprocal(s),
        m=s,
        n=one,
        dz=-reciprocal(one),
        rate=jnp.ones_like(s),
        rank=unit,
        side=unit,
        log_scale=0 * unit,
    )


def _changes(
    missing: tuple[Array, ...], terms: tuple[tuple[Array, ...], tuple[Array, ...]]
) -> tuple[list[Array], Array]:
    """Relative changes of all shares, `m` being what it is, for which `log t` of the first gains so much on the others,
    and that of `log t` itself.
    """
    parts, per_log_t = terms
    gained = sum((x * per for x, per in zip(missing, per_log_t[1:], strict=True)), jnp.zeros_like(per_log_t[0]))
    log_t = gained * reciprocal(sum(per_log_t[1:], per_log_t[0]))
    changes = log_t * per_log_t[0], *((log_t - x) * per for x, per in zip(missing, per_log_t[1:], strict=True))
    return [change * reciprocal(part) for change, part in zip(changes, parts, strict=True)], log_t


class SumOfBranches(AbstractOperation):
    """Free multiplication by `A^T A`, `count` times, `A` being a sum of free terms: of the identity, unless there is a
    `ratio`, and of `branches`, the curves of `Y Y^T` of R-diagonal `Y`, as functions of `M` of `Y^T Y`.

    Let `s` be what `M` of a term is at its subordination point. All `s` add up to `m`, and all terms have in common
    `t = (1 + s) (1 + ratio s) / z`, `ratio` being that of the widths before and behind; for the identity that is
    `s (1 + s)`. Then `S(m) = t / (m (1 + ratio m))` (Ling, He and Qiu, Section 4; Benaych-Georges 2009 for rectangular
    matrices). The unknowns are all `s` but the first, over that; then come those of the branches.
    """

    branches: tuple[Curve, ...]
    count: Float[Array, "*blocks"]
    ratio: Float[Array, "*blocks"] | None
    layers_of_branches: tuple[int, ...] = eqx.field(static=True)

    starts_far = True
    blurs_atoms = True

    @property
    def num_points(self):
        return max(branch.num_points for branch in self.branches)

    @property
    def _num_ratios(self) -> int:
        return len(self.branches) - (self.ratio is not None)

    @property
    def num_unknowns(self):
        inner = zip(self.layers_of_branches, self.branches, strict=True)
        return self._num_ratios + sum(layers * branch.num_unknowns for layers, branch in inner)

    @property
    def _means(self) -> list[Float[Array, "*blocks"]]:
        """Of `Y^T Y`."""
        log_ratio = 0.0 if self.ratio is None else jnp.log(self.ratio)
        return [jnp.exp(branch.moments.log_mean - log_ratio) for branch in self.branches]

    @property
    def _log_mean(self) -> Float[Array, "*blocks"]:
        """Of one block: the terms' means add up."""
        total = sum(self._means[1:], self._means[0])
        return jnp.log1p(total) if self.ratio is None else jnp.log(total)

    def guess(self, point: Point) -> Array:
        """The ratios of the means, as at large `z`; beside the identity, and of branches below 1, as if all eigenvalues
        of `Y Y^T` were their mean: the equations are quadratic then, and this keeps their root.
        """
        means = self._means
        if self.ratio is not None:
            return self._filled(point, [mean / means[0] * jnp.ones_like(point.z) for mean in means[1:]])
        mean = sum(means[1:], means[0])
        m, _, one = point.on_side()
        axis = point.z.imag < 0
        root = jnp.square(1 - mean) + 4 * mean * one * one
        root = mirrored(exponential(log_upper(mirrored(root, axis)) / 2), axis)
        above, below = root + (mean - 1 + 2 * one), root - (mean - 1 + 2 * one)
        # Of two equal expressions the one that does not cancel.
        above = jnp.where(magnitude(above) >= magnitude(below), above, 4 * (mean - 1) * m * one * reciprocal(below))
        near = mean * above * reciprocal(root + (1 - mean + 2 * mean * one))
        ratio = jnp.where(mean < 1, near, mean)
        return self._filled(point, [ratio] if len(means) == 1 else [own / mean * ratio for own in means])

    def _filled(self, point: Point, ratios: list[Array]) -> Array:
        """With zeros behind the ratios, which leave the others to the branches' own guesses."""
        unknowns = jnp.zeros((self.num_unknowns, *point.z.shape), point.z.dtype)
        return unknowns.at[: len(ratios)].set(jnp.stack(ratios)) if ratios else unknowns

    def _of_branches(self, unknowns: Array) -> list[Array]:
        found, start = [], self._num_ratios
        for branch, layers in zip(self.branches, self.layers_of_branches, strict=True):
            shape = layers, branch.num_unknowns
            end = start + shape[0] * shape[1]
            found.append(unknowns[start:end].reshape(*shape, unknowns.shape[-1]))
            start = end
        return found

    def advance(self, point: Point, unknowns: Array) -> Step:
        # Where there is no block, its equations need not have a solution that is right: they are asked for nothing.
        there = jnp.broadcast_to(self.count > 0, point.z.shape)
        inner, skips = self._of_branches(unknowns), self.ratio is None
        m, dm, one = point.on_side()
        ratios = jnp.where(there, unknowns[: self._num_ratios], 1)  # they must not go astray elsewhere
        old = _Shares.of(m, one, ratios)

        zero = jnp.zeros_like(m.real)
        looked: list[_Looked] = []
        tangents: list[Array] = []
        terms = [_Term.identity(old.parts[0], old.ones[0])] if skips else []
        for k, branch in enumerate(self.branches):
            start = _start(old.parts[k + skips], old.ones[k + skips])
            seen = _Looked(start.own_signs(), zero, zero, zero, zero)
            end, seen, (inner[k], tangent) = branch.fold(_Looked.visit, seen, start, inner[k])
            terms.append(_Term.of_branch(start.m, start.n, end))
            looked.append(seen)
            tangents.append(tangent)

        newton = _Newton.step(old, terms)
        # Next to an atom s is the rank, and the others, all that count, hardly feel its rounding.
        felt = jnp.maximum(self.count, 1) * magnitude(jax.lax.stop_gradient(newton.log_t))
        correction = mismatch = zero
        for size, steep in zip(newton.sizes, newton.steep, strict=True):
            correction = jnp.maximum(correction, jnp.where(steep, jnp.minimum(size, felt), size))
            mismatch = jnp.maximum(mismatch, size)
        for seen in looked:
            correction, mismatch = jnp.maximum(correction, seen.correction), jnp.maximum(mismatch, seen.mismatch)
        found = [ratio * exponential(step) for ratio, step in zip(ratios, newton.ratios, strict=True)]
        inner = [
            known * exponential(tangent * step)
            for known, tangent, step in zip(inner, tangents, newton.shares[skips:], strict=True)
        ]

        new = _Shares.of(m, one, found)
        per_log_t = [term.per_log_t for term in terms]
        whole = sum(per_log_t[1:], per_log_t[0])
        d_log_t = dm * reciprocal(whole)
        rates = [d_log_t * per * reciprocal(part) for per, part in zip(per_log_t, new.parts, strict=True)]
        d_one = dm * reciprocal(one)
        if self.ratio is None:
            other, d_other, t = one, d_one, new.parts[0] * new.ones[0]
        else:
            other = point.one_plus(self.ratio)
            d_other = scaled(self.ratio, dm * reciprocal(other))
            t = reciprocal(terms[0].inverse) * exponential(newton.log_t)
        growth = m * other * reciprocal(t) * jnp.exp(-self._log_mean)
        slope = point.rate + d_other - d_log_t

        power = logarithm(growth)
        after = point.multiplied(
            jnp.where(self.count == 1, growth, exponential(self.count * power)),
            self.count * slope,
            self.count * self._log_mean,
        )
        signs = self._signs(
            *jax.lax.stop_gradient((point, after, (one, other, t), (d_one, d_other, d_log_t), power)),
            *jax.lax.stop_gradient((terms, old, new, rates, looked)),
        )
        closeness = _closeness(
            *jax.lax.stop_gradient((m, terms, new.parts)), [seen.closeness for seen in looked], skips
        )
        # Where t has a pole it is singular, too, but known as long as its distance from there is.
        closeness = jnp.where(newton.near, closeness, jnp.inf)
        closeness = jnp.where(there, closeness, 0)
        outer = [rate - rates[0] for rate in rates[1:]]
        inner_rates = [tangent * rate for tangent, rate in zip(tangents, rates[skips:], strict=True)]
        roughness = reduce(jnp.maximum, [seen.roughness for seen in looked])
        return Step(
            point=after,
            unknowns=_rows(found, inner, unknowns),
            tangents=_rows(outer, inner_rates, unknowns),
            signs=signs.where(there, Signs.none(point.z)),
            correction=jnp.where(there, correction, 0),
            mismatch=jnp.where(there, mismatch, 0),
            closeness=closeness,
            curvature=self.count * closeness,
            closeness_to_zeros=zero,
            roughness=jnp.where(there, roughness, 0),
        )

    def _signs(
        self,
        point: Point,
        after: Point,
        ends: tuple[Array, Array, Array],
        slopes: tuple[Array, Array, Array],
        power: Array,
        terms: list[_Term],
        old: _Shares,
        new: _Shares,
        rates: list[Array],
        looked: list[_Looked],
    ) -> Signs:
        """`ends` are `1 + m`, `1 + ratio m` and `t`, with their `slopes`; `power` is the logarithm of the growth of `z`
        by one block.
        """
        skips = self.ratio is None
        moved = zip(terms, old.parts, new.parts, strict=True)
        others = new.ones if skips else [term.other + scaled(term.side, now - before) for term, before, now in moved]
        ones = list(zip(new.ones, others, strict=True))
        moves = [part * rate for part, rate in zip(new.parts, rates, strict=True)]
        # In a branch of another sum all may lie below the axis: half planes are told of what is seen in it.
        below = point.z.imag < 0
        d_one, d_other, turn, ones, moves = jax.tree.map(lambda x: mirrored(x, below), (*slopes, ones, moves))
        planes = _HalfPlanes.of(*(mirrored(x, below) for x in ends), rectangular=not skips)
        signs, negative = planes.signs(point, d_one, d_other, turn, ones, moves, self.ratio)
        for seen, own, move in zip(looked, ones[skips:], moves[skips:], strict=True):
            # The z of Y Y^T and all before it lie in the lower half plane together with that of the branch. On the
            # negative axis that need not rise with z, only they with it.
            together = (move.real > 0) == (point.dm.real > 0)
            inside = seen.signs.mirrored(below).seen(planes.in_lower(*own) & ~negative, together)
            signs = signs & Signs.known(signs.rising, point.z.real.dtype).where(negative, inside)
        # Of many blocks together, z must not have turned past the half plane and back into it.
        turned = log_upper(mirrored(point.z, below)).imag + self.count * mirrored(power, below).imag
        turned = jax.lax.complex(jnp.zeros_like(turned), jnp.clip(turned, -jnp.pi / 2, 1.5 * jnp.pi))
        signs = signs & point.signs(exponential(turned), mirrored(after.dz, below))
        return signs.mirrored(below) & after.own_signs()

    def potential(self, psi: Array, log_z: Array, before: Point, step: Step) -> tuple[Array, Array]:
        """`Phi` of a sum is the sum of the terms' own, and all but one times `log t`; where its sides differ, `log(1 +
        ratio m)`, less those of the terms, times `1 - 1 / ratio` comes to it.
        """
        m, one, skips = before.side * before.m, before.one_plus(1), self.ratio is None
        shares = _Shares.of(m, one, list(step.unknowns[: self._num_ratios]))
        zero = jnp.zeros_like(m.real)
        if self.ratio is None:
            other, others, t = one, shares.ones, shares.parts[0] * shares.ones[0]
        else:
            other, others = before.one_plus(self.ratio), [1 + self.ratio * s for s in shares.parts]
            t = m * other * before.z * reciprocal(step.point.z) * jnp.exp(-self._log_mean)
        planes = _HalfPlanes.of(one, other, t, not skips)
        below = [planes.in_lower(*ones) for ones in zip(shares.ones, others, strict=True)]
        log_t = log_lower(one) + log_lower(other) - log_upper(one * other * reciprocal(t))

        def log_one(x: Array, where: Array) -> Array:
            return mirrored(log_lower(mirrored(x, where)), where)

        total = log_lower(m) + (len(self.branches) - 1) * log_t
        if self.ratio is None:
            total = total + log_one(shares.ones[0], below[0])
        else:
            sides = log_lower(other) - sum((log_one(x, b) for x, b in zip(others, below, strict=True)), 0 * other)
            total = total + scaled(1 - 1 / self.ratio, sides)
        inner = self._of_branches(step.unknowns)
        for k, branch in enumerate(self.branches):
            where = below[k + skips]
            start = _start(*(mirrored(x[k + skips], where) for x in (shares.parts, shares.ones)))
            end, (of_branch, _) = branch.potential_from(start, mirrored(inner[k], where))
            turn = jax.lax.complex(zero, jnp.where(where, 2 * jnp.pi, zero))
            total = total + mirrored(of_branch + end.log_scale, where) + turn
        change = self.count * (total - self._log_mean)
        new_log_z = log_upper(step.point.z)
        return psi + (change - (1 - before.side) * (new_log_z - log_z)) / before.side, new_log_z

    def moments(self, c: Moments) -> Moments:
        """`s = mean t (1 + (v - ratio) mean t + ...)` for a term of relative variance `v`, and these add up."""
        one = jnp.ones_like(self.count)
        ratio, total, square = (one, one, -one) if self.ratio is None else (self.ratio, 0 * one, 0 * one)
        for mean, branch in zip(self._means, self.branches, strict=True):
            variance = (1 + branch.moments.relative_variance) * ratio - 1
            total, square = total + mean, square + (variance - ratio) * jnp.square(mean)
        relative_variance = ratio + square / jnp.square(total)
        return c.times(self.count * self._log_mean, self.count * relative_variance)

    @property
    def adds_logs(self) -> bool:
        return self.ratio is None and len(self.branches) == 1 and self.branches[0].adds_logs

    def log_volume(self, rank: Array) -> Array:
        """Of a product without mass at 0, and one branch beside the identity: that of `I + Y` is the most that `Y Y^T`
        has up to any rank, as its eigenvalues are spread alike in all directions (Haagerup and Larsen, Theorem 4.4).
        """
        (branch,) = self.branches
        whole = branch.atoms().rank

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

    @property
    def num_atoms(self):
        return 1 if self.ratio is None else max(branch.num_atoms for branch in self.branches)

    def atoms(self, atoms: Atoms) -> Atoms:
        identity = Atoms.identity(1, atoms.masses.dtype)
        if self.ratio is None:
            whole = reduce(partial(_of_sum, 1.0), [identity, *(branch.atoms() for branch in self.branches)])
        else:
            own = [branch.atoms().other_side(1 / self.ratio) for branch in self.branches]
            whole = reduce(partial(_of_sum, jnp.minimum(1, 1 / self.ratio)), own)
        # Of many blocks each takes its share away.
        left = jnp.maximum(0, 1 - self.count * (1 - whole.masses))
        left = jnp.where(whole.masses > 0, left, 0)
        none = self.count == 0
        left = jnp.where(none, identity.resized(whole.size).masses, left)
        return atoms.times(Atoms(jnp.where(none, 1, whole.rank), self.count * whole.log_locations, left))

    def together(self):
        first = jax.tree.map(lambda x: x[:1], self)
        return eqx.tree_at(lambda b: b.count, first, jnp.sum(self.count, keepdims=True))

    def neutral(self):
        return eqx.tree_at(lambda b: b.count, self, jnp.zeros_like(self.count))


class _Newton(eqx.Module):
    """A step of Newton's method for the shares, of which the sum is kept, in logarithms: the steps of all `shares` and
    `ratios`, and of `log_t`, shortened where they are long. `sizes` are those of the ratios' steps before that, `steep`
    where `t` of a term is near a pole, at its rank, and `near` where all equations nearly hold.
    """

    shares: list[Complex[Array, " lanes"]]
    ratios: list[Complex[Array, " lanes"]]
    log_t: Complex[Array, " lanes"]
    sizes: list[Float[Array, " lanes"]]
    steep: list[Bool[Array, " lanes"]]
    near: Bool[Array, " lanes"]

    @staticmethod
    def step(old: _Shares, terms: list[_Term]) -> "_Newton":
        per_log_t = tuple(term.per_log_t for term in terms)
        whole = reciprocal(sum(old.parts[1:], old.parts[0]))
        missing, steep, near = [], [], jnp.ones(whole.shape, bool)
        for k, (rest, rest_per) in enumerate(zip(_without_each(old.parts), _without_each(per_log_t), strict=True)):
            if k == 0:
                continue
            quotient = terms[k].inverse * reciprocal(terms[0].inverse)
            steepness = old.parts[k] * rest * whole * (reciprocal(per_log_t[k]) + reciprocal(rest_per))
            steep.append(magnitude(steepness) > 4)
            change = jnp.where(steep[-1], 1 - reciprocal(quotient), logarithm(quotient))
            near = near & (magnitude(change) < _NEAR)
            missing.append(-change)
        shares, log_t = of_correction(_changes, tuple(missing), (old.parts, per_log_t))
        ratios = [share - shares[0] for share in shares[1:]]
        sizes = [magnitude(jax.lax.stop_gradient(step)) for step in ratios]
        largest = reduce(jnp.maximum, sizes, jnp.ones_like(whole.real))
        shares, ratios, log_t = jax.tree.map(lambda x: scaled(1 / largest, x), (shares, ratios, log_t))
        return _Newton(shares, ratios, log_t, sizes, steep, near)


def _rows(ratios: list[Array], inner: list[Array], like: Array) -> Array:
    rows = [x.reshape(-1, like.shape[-1]) for x in inner]
    return jnp.concatenate([jnp.stack(ratios), *rows] if ratios else rows)


class _HalfPlanes(eqx.Module):
    """`z` of the sum, and one over `g_1 = (1 + m) / zeta` and `g_2 = (1 + ratio m) / zeta`, `zeta^2` being that. A term
    has the subordination points `(1 + s) / g_1` and `(1 + ratio s) / g_2`, and its `z` is their product. All of them
    lie in the upper half plane (Belinschi, Mai and Speicher 2017); where no widths change the two are one.
    """

    z: Complex[Array, " lanes"]
    first: Complex[Array, " lanes"]
    second: Complex[Array, " lanes"]

    @staticmethod
    def of(one: Array, other: Array, t: Array, rectangular: bool) -> "_HalfPlanes":
        z = one * other * reciprocal(t)
        zeta = exponential(log_upper(z) / 2)
        first = zeta * reciprocal(one)
        return _HalfPlanes(z, first, zeta * reciprocal(other) if rectangular else first)

    def in_lower(self, one: Array, other: Array) -> Bool[Array, " lanes"]:
        """Where `z` of a term lies below the axis, by more than rounding."""
        first, second = one * self.first, other * self.second
        turned = log_upper(first).imag + log_upper(second).imag
        return turned > (1 + 32 * jnp.finfo(turned.dtype).eps) * jnp.pi

    def signs(
        self,
        point: Point,
        d_one: Array,
        d_other: Array,
        d_log_t: Array,
        ones: list[tuple[Array, Array]],
        moves: list[Array],
        ratio: Array | None,
    ) -> tuple[Signs, Bool[Array, " lanes"]]:
        """Of all these, `moves` being the tangents of all `s`; and where `z` is negative."""
        d_z = d_one + d_other - d_log_t
        sides = [(self.first, d_z / 2 - d_one, jnp.ones_like(point.side), [own[0] for own in ones])]
        if ratio is not None:
            sides.append((self.second, d_z / 2 - d_other, ratio, [own[1] for own in ones]))
        negative = (self.z.imag == 0) & (self.z.real < 0)
        signs, inside = Signs.none(point.z), negative
        for inverse, slope, side, of_terms in sides:
            signs, inside = signs & point.signs(inverse, slope), inside & (inverse.imag > 0)
            for one, move in zip(of_terms, moves, strict=True):
                place = one * inverse
                inside = inside & (place.imag > 0)
                signs = signs & point.signs(place, scaled(side, move * reciprocal(one)) + slope)
        # On the negative axis zeta is imaginary, and so are the others, inside their half planes.
        signs = Signs.known(inside, point.z.real.dtype).where(negative, signs)
        return signs & point.signs(self.z, d_z), negative


def _closeness(m: Array, terms: list[_Term], parts: tuple[Array, ...], near: list[Array], skips: bool) -> Array:
    """`m` is an analytic function of `t` up to a singularity of a term: where `1 + 2 s = 0` for the identity, and for a
    branch where it has its own, `near` being one over their squared distance in units of `s`. Its inverse is so in a
    disk of Smale's radius; and so is `s` of a branch, but for one of them, which may stand for `t`.
    """
    whole = reciprocal(sum((term.per_log_t for term in terms[1:]), terms[0].per_log_t))
    spread = sum((magnitude(term.per_log_t) for term in terms[1:]), magnitude(terms[0].per_log_t))
    closest, others = jnp.zeros_like(spread), jnp.zeros_like(spread)
    for term, part, distance in zip(terms[skips:], parts[skips:], near, strict=True):
        own = jnp.sqrt(distance) * magnitude(term.per_log_t) / magnitude(part)
        closest, others = jnp.maximum(closest, own), jnp.maximum(others, jnp.minimum(closest, own))
    closest = jnp.maximum(closest, others / _SMALE)
    if skips:
        double = 1 + 2 * parts[0]
        closest = jnp.maximum(closest, 4 * magnitude(parts[0]) * magnitude(1 + parts[0]) / squared(double))
    return squared(m) * jnp.square(spread * squared(whole) * closest / _SMALE)


def _of_sum(most: Array | float, first: Atoms, second: Atoms) -> Atoms:
    """Of two free terms, one of them R-diagonal: an atom of one that the other does not reach from either side."""
    rank = jnp.minimum(most, first.rank + second.rank)
    locations = jnp.concatenate([first.log_locations, second.log_locations])
    masses = jnp.concatenate([first.masses - 2 * second.rank, second.masses - 2 * first.rank])
    there = masses > 64 * jnp.finfo(masses.dtype).eps
    return Atoms(rank, jnp.where(there, locations, 0), jnp.where(there, masses, 0))
