"""Residual networks: the block `I + Y` as an operation, and the networks made of it."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Complex, Float, Int

from ._activations import (
    AbstractActivation,
    AbstractManySlopes,
    LeakyReLU,
    Linear,
    ReLU,
)
from ._arguments import cast, floats, nonnegative, positive, scalar, several
from ._curve import AbstractOperation, Cumulants, Curve, Point, Signs, Step
from ._factors import slope_atoms, slope_factors
from ._implicit import at_extremum, bisect, implicit_root, with_slope
from ._kinds import extended, Kinds
from ._laws import Atoms
from ._meanfield import elasticities, first_moment, in_range, MeanField, second_moment
from ._misc import (
    check,
    common_dtype,
    exponential,
    integer,
    is_finite,
    log_lower,
    log_upper,
    logarithm,
    magnitude,
    Reals,
    reciprocal,
    squared,
)
from ._names import as_activation, BY_NAME as ACTIVATIONS
from ._networks import AbstractNetwork, num_padded_layers
from ._show import counted, name_of, number, runs, Table
from ._weights import AbstractWeights, BY_NAME as WEIGHTS, centred_layers, weight_factors, weight_laws


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
        return Point(one * reciprocal(self.c), self.c, one, -per_one, rate, unit, unit, 0 * unit)


class ResidualBlock(AbstractOperation):
    """Free multiplication by `(I + Y) (I + Y)^T`, `count` times, `Y` R-diagonal and `branch` the curve of `Y Y^T`.

    With `b` and `c` the values of `M` of the identity and of `Y Y^T` at their subordination points, `m = b + c` and
    `b (b + 1) = c (c + 1) S_Y(c) = t`, `S(m) = t / (m (m + 1))` (Ling, He and Qiu, Section 4). The unknown is `c / b`,
    which keeps both accurate however different they are; then come those of the branch.
    """

    branch: Curve
    count: Float[Array, " blocks"]
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
    def _log_mean(self) -> Float[Array, " blocks"]:
        """Of one block: `1 + y_1`, with `y_1` the mean of `Y Y^T`."""
        return jnp.log1p(jnp.exp(self.branch.cumulants.log_mean))

    def guess(self, point: Point) -> Array:
        mean = jnp.exp(self.branch.cumulants.log_mean)
        ratio = jnp.broadcast_to(mean, point.z.shape).astype(point.z.dtype)
        return jnp.zeros((self.num_unknowns, *ratio.shape), ratio.dtype).at[0].set(ratio)

    def _of_branch(self, unknowns: Array) -> Array:
        return unknowns[1:].reshape(self.layers_per_block, self.branch.num_unknowns, unknowns.shape[-1])

    def advance(self, point: Point, unknowns: Array) -> Step:
        inner = self._of_branch(unknowns)
        m, dm, one = point.on_side()
        ratio = implicit_root(_block_gap, unknowns[0], (self.branch, inner, m, one))
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
        closeness = jnp.where(self.count > 0, closeness, 0)
        bounds = (closeness, self.count * closeness, zero)
        return Step(after, found, tangents, signs, correction, mismatch, *bounds, rough)

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
        turn = jax.lax.complex(jnp.zeros_like(m.real), jnp.where(below_2, 2 * jnp.pi, 0))
        of_branch = mirrored(of_branch + end.log_scale, below_2) + turn
        log_one_b = mirrored(log_lower(mirrored(split.one_b, below_1)), below_1)
        change = self.count * (log_lower(m) + log_one_b + of_branch - self._log_mean)
        new_log_z = log_upper(step.point.z)
        return psi + (change - (1 - before.side) * (new_log_z - log_z)) / before.side, new_log_z

    def cumulants(self, c: Cumulants) -> Cumulants:
        y = self.branch.cumulants
        mean = jnp.exp(y.log_mean)
        spread = (2 * mean + y.spread * jnp.square(mean)) / jnp.square(1 + mean)
        return c.times(self.count * self._log_mean, self.count * spread)

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
        return jnp.where(rank > nearly, self.count * most, jnp.nan)

    def atoms(self, atoms: Atoms) -> Atoms:
        missing = jnp.minimum(1, 2 * self.branch.atoms().rank)
        mass = jnp.maximum(0, 1 - self.count * missing)
        none = jnp.zeros_like(atoms.log_locations)
        return atoms.times(Atoms(0 * mass + 1, none, none.at[0].set(mass)))

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


class UniversalFactor(AbstractOperation):
    """`S(m) = exp(-theta (2 m + 1))`: what very many blocks with very small branches amount to."""

    theta: Float[Array, " layers"]

    def advance(self, point: Point, unknowns: Array) -> Step:
        m, dm, one = point.on_side()
        ratio, slope = exponential(2 * self.theta * m), 2 * self.theta * dm
        new = point.multiplied(ratio, slope, self.theta)
        own = one * jax.lax.conj(m) * ratio  # (1 + m) / (m S(m)), but for a positive factor
        signs = point.signs(own, slope - point.rate * reciprocal(one)) & new.own_signs()
        return Step.explicit(new, signs, 1.0, jnp.maximum(1, 4 * self.theta * magnitude(m)))

    def potential(self, psi: Array, log_z: Array, before: Point, step: Step) -> tuple[Array, Array]:
        m = before.side * before.m
        change = self.theta * m * (m + 2)
        log_ratio = 2 * self.theta * m
        return psi + (change - (1 - before.side) * log_ratio) / before.side, log_z + log_ratio

    def cumulants(self, c: Cumulants) -> Cumulants:
        return c.times(self.theta, 2 * self.theta)

    def atoms(self, atoms: Atoms) -> Atoms:
        return Atoms(atoms.rank, atoms.log_locations, jnp.zeros_like(atoms.masses))

    def log_volume(self, rank: Array) -> Array:
        return self.theta * rank * (1 - rank)

    def neutral(self):
        return UniversalFactor(jnp.zeros_like(self.theta))


def universal_curve(theta: Float[Array, ""]) -> Curve:
    return Curve((UniversalFactor(theta[None]),), (), jnp.ones_like(theta), 1)


class ResNet(AbstractNetwork):
    """`x <- x + f(x)`, `depth` times, `f` of `layers_per_block` layers `phi(W x + b)`, all of one width.

    **Arguments:**

    - `depth`: the number of blocks.
    - `activation`, `weights`: one, or a sequence of `depth`, one per block.
    - `sigma_w`, `sigma_b`: scalar, or of shape `(depth,)` or `(depth, layers_per_block)`.
    - `layers_per_block`: at least 1.
    - `q0`, `mean0`: mean square and mean of the input's entries.

    **Raises:** `ValueError` naming the argument, for wrong shapes, unknown names, and values out of range.
    """

    depth: int = eqx.field(static=True)
    layers_per_block: int = eqx.field(static=True)
    activation: AbstractActivation | tuple[AbstractActivation, ...]
    weights: tuple[AbstractWeights, ...]
    sigma_w: Float[Array, "..."]
    sigma_b: Float[Array, "..."]
    q0: Float[Array, ""]
    mean0: Float[Array, ""]

    def __init__(
        self,
        depth: int,
        activation: str | AbstractActivation | Sequence[str | AbstractActivation] = "tanh",
        weights: str | AbstractWeights | Sequence[str | AbstractWeights] = "orthogonal",
        sigma_w: Reals = 1.0,
        sigma_b: Reals = 0.0,
        layers_per_block: int = 1,
        q0: ArrayLike = 1.0,
        mean0: ArrayLike = 0.0,
    ):
        self.depth = integer("depth", depth)
        self.layers_per_block = integer("layers_per_block", layers_per_block)
        dtype = common_dtype(sigma_w, sigma_b, q0, mean0)
        if isinstance(activation, str | AbstractActivation):
            self.activation = cast(as_activation(activation), dtype)
        else:
            self.activation = cast(several("activation", activation, as_activation, self.depth, "block"), dtype)
        self.weights = weight_laws(weights, self.depth, "block")
        self.sigma_w = self._scales("sigma_w", floats("sigma_w", sigma_w, dtype), positive, "positive")
        self.sigma_b = self._scales("sigma_b", floats("sigma_b", sigma_b, dtype), nonnegative, "nonnegative")
        self.q0 = scalar("q0", q0, dtype, positive, "positive and finite")
        self.mean0 = scalar("mean0", mean0, dtype, is_finite, "finite")
        check(
            jnp.square(self.mean0) / self.q0,
            lambda share: share <= 1 + 1e-6,
            "`mean0` must be at most sqrt(q0): the mean square of the input is at least its squared mean.",
        )

    def _scales(self, name: str, value: Array, allowed: Callable[[Any], Any], adjective: str) -> Array:
        shapes = ((), (self.depth,), (self.depth, self.layers_per_block))
        if value.shape not in shapes:
            raise ValueError(f"`{name}` must be a scalar or of shape {shapes[1]} or {shapes[2]}, got {value.shape}.")
        return check(value, allowed, f"`{name}` must be {adjective} and finite.")

    @property
    def activations(self) -> tuple[AbstractActivation, ...]:
        """One activation per layer, blocks one after the other."""
        blocks = self.activation if isinstance(self.activation, tuple) else (self.activation,) * self.depth
        return tuple(a for a in blocks for _ in range(self.layers_per_block))

    @property
    def scales(self) -> tuple[Array, Array]:
        """`sigma_w` and `sigma_b` of every layer, of shape `(depth, layers_per_block)`."""
        shape = (self.depth, self.layers_per_block)

        def spread(x: Array) -> Array:
            return jnp.broadcast_to(x[:, None] if x.ndim == 1 else x, shape)

        return spread(self.sigma_w), spread(self.sigma_b)

    def propagate(self) -> MeanField:
        return _Blocks.of(self).propagate()

    def jacobian_curve(self, side: str) -> Curve:
        """Both sides are alike: all widths are one."""
        return _Blocks.of(self).jacobian_curve(side)

    def padded(self) -> "_Blocks":
        return _Blocks.of(self, num_padded_layers(self.depth) - self.depth)

    def _table(self):
        if self.q0.ndim:
            return None
        step = self.layers_per_block
        blocks = zip(
            (name_of(activation, ACTIVATIONS) for activation in self.activations[::step]),
            (name_of(law, WEIGHTS) for law in self.weights),
            *([" ".join(map(number, row)) for row in scale.tolist()] for scale in self.scales),
            strict=True,
        )
        title = f"ResNet, {counted(self.depth, 'block')} of {counted(step, 'layer')}, q0 = {number(self.q0)}"
        return Table(title, ("block", "activation", "weights", "sigma_w", "sigma_b"), runs([*blocks]))

    @property
    def alike(self) -> bool:
        """Whether all blocks have one law, whatever the variances: then one stands for all."""
        homogeneous = isinstance(self.activation, Linear | ReLU | LeakyReLU)
        return homogeneous and self.sigma_w.ndim == 0 and len(set(self.weights)) == 1


class _Blocks(AbstractNetwork):
    """A residual network, block by block; those from `depth` on, if there is one, are not there."""

    activations: Kinds[AbstractActivation]
    weights: Kinds[AbstractWeights]
    sigma_w: Float[Array, "blocks layers"]
    sigma_b: Float[Array, "blocks layers"]
    q0: Float[Array, ""]
    mean0: Float[Array, ""]
    depth: Int[Array | np.ndarray, ""] | None
    alike: bool = eqx.field(static=True)
    refine: int = eqx.field(static=True)

    @staticmethod
    def of(net: ResNet, missing: int = 0) -> "_Blocks":
        """With so many more blocks behind the last, like the last."""
        per_block = net.layers_per_block
        laws = (*net.weights, *net.weights[-1:] * missing)
        sigma_w, sigma_b = (extended(x, net.depth, missing) for x in net.scales)
        return _Blocks(
            activations=Kinds.of((*net.activations, *net.activations[-1:] * (missing * per_block))),
            weights=Kinds.of([law for law in laws for _ in range(per_block)]),
            sigma_w=sigma_w,
            sigma_b=sigma_b,
            q0=net.q0,
            mean0=net.mean0,
            depth=np.asarray(net.depth) if missing else None,
            alike=net.alike,
            refine=4 if sum(isinstance(a, AbstractManySlopes) for a in net.activations) == 1 else 1,
        )

    def propagate(self) -> MeanField:
        def moments_of(phi: AbstractActivation, q: Array) -> tuple[Array, Array, Array]:
            return second_moment(phi, q), first_moment(phi, q), phi.slope_moment(in_range(q))

        moments = self.activations.at(moments_of)

        centred = centred_layers(self.weights)

        def layer(state: tuple[Array, Array], xs: tuple[Array, Array, Array]):
            square, mean = state
            index, variance_w, variance_b = xs
            square = square if centred is None else square - centred[index] * jnp.square(mean)
            q = jnp.maximum(variance_w * square + variance_b, jnp.finfo(square.dtype).tiny)
            phi2, mean, slope = moments(index, q)
            return (phi2, mean), (q, phi2, variance_w * slope)

        def block(state: tuple[Array, Array], xs: tuple[Array, Array, Array]):
            square, mean = state

            def after(square: Array) -> tuple[Array, Any]:
                (phi2, shift), found = jax.lax.scan(layer, (square, mean), xs)
                return square + phi2 + 2 * mean * shift, (mean + shift, found)

            new, passed_on, (mean, found) = jax.jvp(after, (square,), (jnp.ones_like(square),), has_aux=True)
            return (new, mean), (*found, square, passed_on)

        sigma_w, sigma_b = self.sigma_w, self.sigma_b
        index = jnp.arange(sigma_w.size).reshape(sigma_w.shape)
        found = jax.lax.scan(block, (self.q0, self.mean0), (index, jnp.square(sigma_w), jnp.square(sigma_b)))[1]
        q, phi2, chi, square, chi_q = found
        per_block = sigma_w.shape[1]
        stream = (jnp.repeat(x, per_block) for x in (chi_q, elasticities(square, chi_q)))
        return MeanField(q.ravel(), phi2.ravel(), chi.ravel(), *stream)

    def jacobian_curve(self, side: str) -> Curve:
        """Both sides are alike: all widths are one."""
        sigma_w, q = self.sigma_w, self.propagate().q
        blocks, per_block = sigma_w.shape
        there = jnp.arange(blocks) < (blocks if self.depth is None else self.depth)
        q = jnp.where(jnp.repeat(there, per_block), q, 1)  # it may have grown out of range
        weights = weight_factors(self.weights, jnp.ones(sigma_w.size, sigma_w.dtype), sigma_w.ravel())
        layers = (*weights, *slope_factors(self.activations, q, self.refine))
        layers = jax.tree.map(lambda x: x.reshape(*sigma_w.shape, *x.shape[1:]), layers)
        depth, count = self.depth, there.astype(sigma_w.dtype)
        if self.alike:
            layers, count = jax.tree.map(lambda x: x[:1], layers), jnp.sum(count, keepdims=True)
            depth = None
        num_atoms = slope_atoms(self.activations)
        one = jnp.ones((), sigma_w.dtype)
        branch = jax.vmap(lambda layers: Curve(layers, (), one, num_atoms))(layers)
        return Curve((ResidualBlock(branch, count, per_block),), (), one, 1, depth)
