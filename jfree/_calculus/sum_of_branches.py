"""Sums of branches as an operation; a residual block is one."""

import dataclasses
from functools import partial, reduce
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._numerics.complex import (
    as_complex,
    exponential,
    log_lower,
    log_upper,
    logarithm,
    magnitude,
    mirrored,
    reciprocal,
    scaled,
)
from .._numerics.implicit import at_extremum, bisect, with_slope
from .atoms import Atoms
from .curve import Curve
from .operation import AbstractOperation, Moments, Step
from .point import Point, Signs
from .shares import closeness_of, curvature_beside_identity, HalfPlanes, NewtonOfShares, Shares, Term


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


class _Folded(NamedTuple):
    """All terms, what was seen on the way through the branches, and their own unknowns, corrected, with tangents."""

    terms: list[Term]
    looked: list[_Looked]
    unknowns: list[Array]
    tangents: list[Array]


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
    many: bool = eqx.field(static=True, default=False)  # whether a count may be more than 1

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
        skips = self.ratio is None
        m, dm, one = point.on_side()
        ratios = jnp.where(there, unknowns[: self._num_ratios], 1)  # they must not go astray elsewhere
        old = Shares.of(m, one, ratios)
        folded = self._folded(old, self._of_branches(unknowns))
        terms, looked = folded.terms, folded.looked
        newton = NewtonOfShares.step(old, terms)
        correction, mismatch = self._errors(newton, looked)
        found = [ratio * exponential(step) for ratio, step in zip(ratios, newton.ratios, strict=True)]
        inner = [
            known * exponential(tangent * step)
            for known, tangent, step in zip(folded.unknowns, folded.tangents, newton.shares[skips:], strict=True)
        ]

        new = Shares.of(m, one, found)
        per_log_t = [term.per_log_t for term in terms]
        d_log_t = dm * reciprocal(sum(per_log_t[1:], per_log_t[0]))
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
        of_one = growth if self.many else None
        if of_one is None:
            growth = jnp.where(there, growth, 1)
        else:
            growth = jnp.where(self.count == 1, growth, exponential(self.count * logarithm(growth)))
        after = point.multiplied(growth, self.count * slope, self.count * self._log_mean)

        signs = self._signs(
            *jax.lax.stop_gradient((point, after, (one, other, t), (d_one, d_other, d_log_t), of_one)),
            *jax.lax.stop_gradient((terms, old, new, rates, looked)),
        )
        near = [seen.closeness for seen in looked]
        closeness = closeness_of(*jax.lax.stop_gradient((m, terms, new.parts)), near, skips)
        # Where t has a pole it is singular, too, but known as long as its distance from there is.
        closeness = jnp.where(newton.near, closeness, jnp.inf)
        closeness = curvature = jnp.where(there, closeness, 0)
        if skips:
            moves = jax.lax.stop_gradient((new, rates, point.rate, d_one))
            curvature = jnp.minimum(curvature, curvature_beside_identity(*moves, closeness))
        outer = [rate - rates[0] for rate in rates[1:]]
        inner_rates = [tangent * rate for tangent, rate in zip(folded.tangents, rates[skips:], strict=True)]
        roughness = reduce(jnp.maximum, [seen.roughness for seen in looked])
        return Step(
            point=after,
            unknowns=_rows(found, inner, unknowns),
            tangents=_rows(outer, inner_rates, unknowns),
            signs=signs.where(there, Signs.none(point.z)),
            correction=jnp.where(there, correction, 0),
            mismatch=jnp.where(there, mismatch, 0),
            closeness=closeness,
            curvature=self.count * curvature,
            closeness_to_zeros=jnp.zeros_like(closeness),
            roughness=jnp.where(there, roughness, 0),
        )

    def _folded(self, shares: Shares, unknowns: list[Array]) -> "_Folded":
        """All terms at their shares, given the branches' own unknowns."""
        skips = self.ratio is None
        terms = [Term.identity(shares.parts[0], shares.ones[0])] if skips else []
        looked, corrected, tangents = [], [], []
        for branch, part, one, own in zip(
            self.branches, shares.parts[skips:], shares.ones[skips:], unknowns, strict=True
        ):
            start, zero = _start(part, one), jnp.zeros_like(part.real)
            seen = _Looked(signs=start.own_signs(), correction=zero, mismatch=zero, closeness=zero, roughness=zero)
            end, seen, (new, tangent) = branch.fold(_Looked.visit, seen, start, own)
            terms.append(Term.of_branch(part, one, end))
            looked.append(seen)
            corrected.append(new)
            tangents.append(tangent)
        return _Folded(terms=terms, looked=looked, unknowns=corrected, tangents=tangents)

    def _errors(self, newton: NewtonOfShares, looked: list[_Looked]) -> tuple[Array, Array]:
        """Correction and mismatch, the sum's own and those of the branches."""
        # Next to an atom s is the rank, and the others, all that count, hardly feel its rounding.
        felt = jnp.maximum(self.count, 1) * magnitude(jax.lax.stop_gradient(newton.log_t))
        correction = mismatch = jnp.zeros_like(felt)
        for size, steep in zip(newton.sizes, newton.steep, strict=True):
            correction = jnp.maximum(correction, jnp.where(steep, jnp.minimum(size, felt), size))
            mismatch = jnp.maximum(mismatch, size)
        for seen in looked:
            correction, mismatch = jnp.maximum(correction, seen.correction), jnp.maximum(mismatch, seen.mismatch)
        return correction, mismatch

    def _signs(
        self,
        point: Point,
        after: Point,
        ends: tuple[Array, Array, Array],
        slopes: tuple[Array, Array, Array],
        growth: Array | None,
        terms: list[Term],
        old: Shares,
        new: Shares,
        rates: list[Array],
        looked: list[_Looked],
    ) -> Signs:
        """`ends` are `1 + m`, `1 + ratio m` and `t`, with their `slopes`. `growth` is what one block multiplies `z` by,
        if there may be many.
        """
        skips = self.ratio is None
        moved = zip(terms, old.parts, new.parts, strict=True)
        others = new.ones if skips else [term.other + scaled(term.side, now - before) for term, before, now in moved]
        ones = list(zip(new.ones, others, strict=True))
        moves = [part * rate for part, rate in zip(new.parts, rates, strict=True)]
        # In a branch of another sum all may lie below the axis: half planes are told of what is seen in it.
        z = as_complex(point.z)
        below = z.imag < 0
        d_one, d_other, turn, ones, moves = jax.tree.map(lambda x: mirrored(x, below), (*slopes, ones, moves))
        planes = HalfPlanes.of(*(mirrored(as_complex(x), below) for x in ends), rectangular=not skips)
        signs, negative = planes.signs(point, d_one, d_other, turn, ones, moves, self.ratio)
        for seen, own, move in zip(looked, ones[skips:], moves[skips:], strict=True):
            # The z of Y Y^T and all before it lie in the lower half plane together with that of the branch. On the
            # negative axis that need not rise with z, only they with it.
            together = (move.real > 0) == (point.dm.real > 0)
            inside = seen.signs.mirrored(below).seen(planes.in_lower(*own) & ~negative, together)
            signs = signs & Signs.known(signs.rising, point.z.real.dtype).where(negative, inside)
        if growth is not None:  # of many blocks together: z must not have turned past the half plane and back into it
            turns = mirrored(logarithm(as_complex(growth)), below).imag
            turned = log_upper(mirrored(z, below)).imag + self.count * turns
            turned = jax.lax.complex(jnp.zeros_like(turned), jnp.clip(turned, -jnp.pi / 2, 1.5 * jnp.pi))
            signs = signs & point.signs(exponential(turned), mirrored(after.dz, below))
        return signs.mirrored(below) & after.own_signs()

    def potential(self, psi: Array, log_z: Array, before: Point, step: Step) -> tuple[Array, Array]:
        """`Phi` of a sum is the sum of the terms' own, and all but one times `log t`; where its sides differ, `log(1 +
        ratio m)`, less those of the terms, times `1 - 1 / ratio` comes to it.
        """
        m, one, skips = before.side * before.m, before.one_plus(1), self.ratio is None
        shares = Shares.of(m, one, list(step.unknowns[: self._num_ratios]))
        zero = jnp.zeros_like(m.real)
        if self.ratio is None:
            other, others, t = one, shares.ones, shares.parts[0] * shares.ones[0]
        else:
            other, others = before.one_plus(self.ratio), [1 + self.ratio * s for s in shares.parts]
            t = m * other * before.z * reciprocal(step.point.z) * jnp.exp(-self._log_mean)
        planes = HalfPlanes.of(one, other, t, not skips)
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
        NaN where that of `Y Y^T` is known at some ranks only, as it is of sums in the branch.
        """
        (branch,) = self.branches
        whole = branch.atoms().rank

        def volume(share: Array, branch: Curve) -> Array:
            return share * branch.log_volume(share)[0]

        slope = with_slope(volume)
        falling = with_slope(lambda share, branch: -slope(share, branch)[1])
        frozen, end = jax.lax.stop_gradient((branch, whole))
        known = ~jnp.isnan(falling(end / 2, frozen)[0])
        share = bisect(lambda share: falling(share, frozen)[0], 0 * end, end)
        nearly = 1 - 64 * jnp.finfo(rank.dtype).eps
        none, all_of_it = share == 0, share > nearly * end
        inside = at_extremum(volume, falling, jnp.where(none, end / 2, share), (branch,), ~(none | all_of_it))
        most = jnp.where(none, 0, jnp.where(all_of_it, volume(whole, branch), inside))
        known &= rank > nearly
        return jnp.where(known | (self.count == 0), self.count * most, jnp.nan)

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
        return dataclasses.replace(first, count=jnp.sum(self.count, keepdims=True), many=True)

    def neutral(self):
        return eqx.tree_at(lambda b: b.count, self, jnp.zeros_like(self.count))


def _rows(ratios: list[Array], inner: list[Array], like: Array) -> Array:
    rows = [x.reshape(-1, like.shape[-1]) for x in inner]
    return jnp.concatenate([jnp.stack(ratios), *rows] if ratios else rows)


def _of_sum(most: Array | float, first: Atoms, second: Atoms) -> Atoms:
    """Of two free terms, one of them R-diagonal: an atom of one that the other does not reach from either side."""
    rank = jnp.minimum(most, first.rank + second.rank)
    locations = jnp.concatenate([first.log_locations, second.log_locations])
    masses = jnp.concatenate([first.masses - 2 * second.rank, second.masses - 2 * first.rank])
    there = masses > 64 * jnp.finfo(masses.dtype).eps
    return Atoms(rank, jnp.where(there, locations, 0), jnp.where(there, masses, 0))
