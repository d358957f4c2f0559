"""Certified solutions of `z(omega) = z` on a curve, for many `z` in parallel.

A root is accepted for its certificate, never for how it was found. Two things are certified:

- the branch: with `Im z > 0`, or on the support from above, every partial product and every subordination point lies
  in the upper half plane, and `m` in the lower one; off the support the same signs hold to first order along the real
  axis (Belinschi and Bercovici: subordination functions are the unique fixed points of self-maps of the half plane);
- that a root is there: Smale's alpha test, `alpha = |f/f'| gamma < 0.157` for `f(1/m) = log z(1/m) - log z`, with
  `gamma` bounded by the distances of `1/m` to the singularities of `f`, of which an atom, `m` infinite, is none.

What finds the roots is Newton's method along the arc from `-|z|`, where the curve is real and monotone, to `z`, for a
few of them, and from their interpolation for the others. An arc has the same length at every scale, so that spectra of
forty decades need no more steps than narrow ones.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, Int

from ._curve import Curve, Signs
from ._implicit import implicit_root
from ._misc import exponential, log_max, log_upper, logarithm, magnitude, reciprocal, squared


class RESULTS(eqx.Enumeration):
    """What became of a point; every value is its own explanation."""

    successful = "Certified."
    max_steps_reached = "Path following used up its steps; the point may lie at an edge or at an atom."
    wrong_branch = "Not certified: the root found leaves the half planes of the physical branch."
    no_root = "Not certified: the alpha test does not confirm a root; the point lies too near an edge or an atom."
    unresolved_law = "Not certified: the quadrature of a layer's law is too coarse this close to its support."
    invalid_input = "`z` is not finite, is 0, or is so far from the mean that its square leaves the range of floats."


def _results(code: Int[Array, " lanes"]) -> RESULTS:  # pyright: ignore[reportInvalidTypeForm]
    """The enumeration item of every lane's code, its position in the enumeration."""

    def one(code):
        item = RESULTS.successful
        for k, other in enumerate(_ORDER):
            item = RESULTS.where(code == k, other, item)
        return item

    return jax.vmap(one)(code)


_ORDER = (
    RESULTS.successful,
    RESULTS.max_steps_reached,
    RESULTS.wrong_branch,
    RESULTS.no_root,
    RESULTS.unresolved_law,
    RESULTS.invalid_input,
)
_OK, _MAX_STEPS, _WRONG_BRANCH, _NO_ROOT, _UNRESOLVED, _INVALID = range(len(_ORDER))


class Roots(eqx.Module):
    """Solutions, one per lane: curve parameter, layers' unknowns, verdict, and Newton steps spent."""

    omega: Complex[Array, " lanes"]
    unknowns: Complex[Array, "layers unknowns lanes"]
    certified: Bool[Array, " lanes"]
    result: RESULTS  # pyright: ignore[reportInvalidTypeForm]
    num_steps: Int[Array, " lanes"]


class _Newton(eqx.Module):
    """One evaluation of the curve: Newton's step in `u = log omega`, and the tangents that predict the next point."""

    step: Complex[Array, " lanes"]
    slope: Complex[Array, " lanes"]
    unknowns: Complex[Array, "layers unknowns lanes"]
    tangents: Complex[Array, "layers unknowns lanes"]
    error: Float[Array, " lanes"]  # the largest correction, in logarithms
    size: Float[Array, " lanes"]  # the same with changes of `log m` counted too, large next to an atom


def _origin(curve: Curve) -> Array:
    """Where `z` is measured from, on logarithmic scale: 0, or with shifts a point as far below 0 as they reach."""
    floor = curve.floor()
    return jax.lax.complex(jnp.zeros_like(floor), -floor)


def _newton(curve: Curve, z: Array, omega: Array, unknowns: Array) -> _Newton:
    def largest(sizes, before, operation, step):
        return jnp.maximum(sizes[0], step.correction), jnp.maximum(sizes[1], step.mismatch)

    zero = jnp.zeros_like(z.real)
    point, sizes, (found, tangents) = curve.fold(largest, (zero, zero), curve.start(omega), unknowns)
    return _newton_at(curve, z, point, found, tangents, *sizes)


def _newton_at(curve, z, point, unknowns, tangents, error, size) -> _Newton:
    origin = _origin(curve)
    moved = reciprocal(point.z - origin)
    ratio = (point.z - origin) * reciprocal(z - origin)
    slope = point.dz * point.z * moved
    # A far guess may leave the range of floats, thousands of layers deep: go back by as much as that range.
    far = log_max(z.dtype) / 2
    above, below = ~jnp.isfinite(magnitude(ratio)), magnitude(ratio) == 0
    residual = jnp.where(above, far, jnp.where(below, -far, logarithm(ratio)))
    step = -residual * reciprocal(slope)
    error = jnp.maximum(error, magnitude(step))
    size = jnp.maximum(size, jnp.maximum(error, magnitude(step) * magnitude(point.dm) / magnitude(point.m)))
    return _Newton(step, slope, unknowns, tangents, error, jnp.where(jnp.isfinite(size), size, jnp.inf))


class _Nearness(eqx.Module):
    """One over the distance to the next singularity, and a bound of the second derivative of `log z`."""

    closeness: Float[Array, " lanes"]
    curvature: Float[Array, " lanes"]

    @staticmethod
    def to(closeness: Float[Array, " lanes"]) -> "_Nearness":
        """A logarithmic singularity."""
        return _Nearness(closeness, jnp.square(closeness))

    def __and__(self, other: "_Nearness") -> "_Nearness":
        return _Nearness(jnp.maximum(self.closeness, other.closeness), self.curvature + other.curvature)


def _certify(
    curve: Curve, z: Array, omega: Array, unknowns: Array, real: Bool[Array, " lanes"]
) -> tuple[_Newton, Bool[Array, " lanes"], Int[Array, " lanes"]]:
    """Newton's step, whether it ends within a few roundings, and the verdict; off the support where `real`."""
    info = jnp.finfo(z.dtype)
    rounding = 256 * float(info.eps) * (1 + curve.num_layers / 16)
    start = curve.start(omega)
    per_start = squared(start.m) / jnp.maximum(magnitude(start.dm), info.tiny)

    def visit(carry, before, operation, step):
        signs, others, zeros, rough, error = carry
        # One over the distance to the operation's singularities, measured in the 1/m of the start.
        stretch = magnitude(before.dm) / (before.side * squared(before.m)) * per_start
        if operation.moves_zeros:
            zeros = _Nearness.to(zero)
        others &= _Nearness(step.closeness * stretch, step.curvature * jnp.square(stretch))
        zeros &= _Nearness.to(step.closeness_to_zeros * stretch)
        rough, error = jnp.maximum(rough, step.roughness), jnp.maximum(error, step.correction)
        return signs & step.signs, others, zeros, rough, error

    at_start = magnitude(start.m) / jnp.maximum(magnitude(start.one_plus(1)), info.tiny)
    zero = jnp.zeros_like(z.real)
    carry = (Signs.of(omega, jnp.ones_like(omega)), _Nearness.to(zero), _Nearness.to(at_start), zero, zero)
    point, carry, (found, tangents) = curve.fold(visit, carry, start, unknowns)
    signs, others, zeros, rough, error = carry
    newton = _newton_at(curve, z, point, found, tangents, error, error)
    step, slope, residual = newton.step, newton.slope, newton.step * newton.slope

    # First order along the real axis: w rises with z when dw/du has the sign of dz/du.
    direction = jnp.sign((point.z * point.dz).real)
    rising = (signs.low == direction) & (signs.high == direction) & (direction * point.dm.real < 0)
    # A point may lie below the axis by what it moves with a rounding, or with the rest of Newton's step.
    upper = signs.below <= jnp.maximum(rounding, 2 * magnitude(step))
    clear = omega.imag > 4 * magnitude(step) * magnitude(omega)  # of the axis: the step does not lead there
    interior = upper & clear & (point.m.imag < 0) & ~_as_good_as_real(z, slope, omega)
    steepness = magnitude(slope) * per_start
    near = others & zeros & _Nearness.to(jnp.where(curve.floor() > 0, steepness, 0))
    gamma = jnp.maximum(near.curvature / (2 * steepness), near.closeness)
    # Where the curve is steep, next to z = 0 of a shift, only the step can be small.
    error = jnp.maximum(error, jnp.minimum(magnitude(residual), magnitude(step)))
    # Expanding layers magnify rounding, so that Newton's method may end well above it.
    tolerance = max(rounding, float(info.eps) ** 0.6)
    # Newton's method squares what is left.
    left = jnp.maximum(error, magnitude(step))
    settled = (error <= rounding) | ((real | clear) & (2 * left / per_start * gamma * left <= rounding))
    root = (settled | (error <= tolerance)) & (magnitude(residual) / steepness * gamma < 0.157)
    code = jnp.where(jnp.where(real, rising, interior), _OK, _WRONG_BRANCH)
    code = jnp.where(root, code, _NO_ROOT)
    code = jnp.where(rough > max(1e-7, 100 * float(info.eps)), _UNRESOLVED, code)
    return newton, settled, code


def _limited(step: Array, tangents: Array, limit: Array | float) -> Array:
    """A step in `u`, cut so that no logarithm changes by more than `limit`."""
    size = magnitude(step) * jnp.maximum(1, jnp.max(magnitude(tangents), axis=(0, 1), initial=0))
    return step * jnp.minimum(1, limit / jnp.maximum(size, jnp.finfo(size.dtype).tiny))


def _moved(omega, unknowns, tangents, step):
    """Updates are multiplicative: what is real stays real."""
    return omega * exponential(step), unknowns * exponential(tangents * step)


def _ahead(log_ratio: Array, slope: Array, bend: Array) -> Array:
    """The step in `u` along which `z` grows by a ratio, for `z = (1 + bend slope du)^(1 / bend)`.

    That is `exp(slope du)` without bend, as between the decades of a deep spectrum, and linear with bend 1, as around
    a place where `z` vanishes.
    """
    x = bend * log_ratio
    small = magnitude(x) < 1e-4
    safe = jnp.where(small, 1, x)
    return log_ratio * reciprocal(slope) * jnp.where(small, 1 + x / 2, (exponential(x) - 1) * reciprocal(safe))


def _bend(old: Array, new: Array, step: Array) -> Array:
    """The bend that takes the slope from old to new."""
    bend = (old - new) * reciprocal(step * old * new)
    size = magnitude(bend)
    return jnp.where(size < 1e3, bend * jnp.minimum(1, 2 / size), 0)


def _on_arc(curve: Curve, z: Array, ahead: Array | float) -> Array:
    """The circle through `z` around 0, or a spiral where not all of the negative axis is on the curve."""
    origin = _origin(curve)
    radius = jnp.maximum(magnitude(z), curve.far())
    start, end = jax.lax.complex(-radius, jnp.zeros_like(radius)) - origin, z - origin
    turn = jnp.where(magnitude(start) == 0, 0, log_upper(start) - log_upper(end))
    return origin + end * exponential(ahead * turn)


def _as_good_as_real(z: Array, slope: Array, omega: Array) -> Bool[Array, " lanes"]:
    """Off the support the root is real, and an imaginary part is rounding, magnified by 1/slope."""
    noise = 200 * float(jnp.finfo(z.dtype).eps) / jnp.minimum(magnitude(slope), 1)
    return (z.imag == 0) & (jnp.abs(omega.imag) <= noise * magnitude(omega))


def _without_imaginary(real: Bool[Array, " lanes"], x: Array) -> Array:
    return jax.lax.complex(x.real, jnp.where(real, 0, x.imag))


_AXIS, _ARC, _POLISH, _DONE = range(4)


class _Path(eqx.Module):
    """What every lane is at. Newton's method finds a root on the negative axis, where `log|z|` is a monotone function
    of `log|omega|`; predictor and corrector carry it along an arc to `z`; Newton's method polishes it there.

    `omega` and `unknowns` are the last accepted point, with its slope and tangents. It lies at `ahead` on the arc,
    which runs from 1, on the axis, to 0, at `z`; `stride` is how far the next step goes. `bend` tells powers of `u`
    from exponentials, see `_ahead`.
    """

    phase: Int[Array, " lanes"]
    ahead: Float[Array, " lanes"]
    stride: Float[Array, " lanes"]
    omega: Complex[Array, " lanes"]
    unknowns: Complex[Array, "layers unknowns lanes"]
    slope: Complex[Array, " lanes"]
    bend: Complex[Array, " lanes"]
    tangents: Complex[Array, "layers unknowns lanes"]
    num_in_phase: Int[Array, " lanes"]
    num_steps: Int[Array, " lanes"]


def _start(curve: Curve, z: Array, lanes: Array) -> _Path:
    """Omega grows like z at infinity; towards 0 like a root of z, the higher the wider the spectrum."""
    radius = jnp.maximum(magnitude(z), curve.far())
    spread = curve.cumulants.spread
    omega = -curve.rank * jnp.where(radius < 1, radius ** (1 / (1 + jnp.maximum(spread, 0))), radius)
    omega = jax.lax.complex(omega, jnp.zeros_like(radius))
    unknowns = curve.initial_unknowns(curve.start(omega))
    one, count, slope = jnp.ones_like(radius), jnp.zeros(z.shape, int), jnp.ones_like(omega)
    phase = jnp.where(lanes, _AXIS, _DONE)
    return _Path(phase, one, 0.2 * one, omega, unknowns, slope, 0 * slope, jnp.zeros_like(unknowns), count, count)


def _follow(curve: Curve, z: Array, lanes: Array, trust: Array, max_steps: int) -> _Path:
    """Takes `lanes` to `z`; a step along the arc is accepted when its correction is at most `trust`."""
    eps = float(jnp.finfo(z.dtype).eps)
    origin = _origin(curve)
    arc = log_upper(_on_arc(curve, z, 1.0) - origin) - log_upper(z - origin)

    def advance(path: _Path) -> _Path:
        on_axis, on_arc, polishing = (path.phase == phase for phase in (_AXIS, _ARC, _POLISH))
        ahead = jnp.where(on_arc, jnp.maximum(path.ahead - path.stride, 0), path.ahead)
        predicted = _limited(_ahead((ahead - path.ahead) * arc, path.slope, path.bend), path.tangents, 1.0)
        omega, unknowns = _moved(path.omega, path.unknowns, path.tangents, predicted)
        target = _on_arc(curve, z, ahead)
        target = jnp.where(on_axis, _without_imaginary(on_axis, target), jnp.where(ahead == 0, z, target))
        newton = _newton(curve, target, omega, unknowns)
        bend = jnp.where(on_arc, _bend(path.slope, newton.slope, predicted), 0)
        missing = newton.step * newton.slope
        step = _limited(_ahead(missing, newton.slope, bend), newton.tangents, jnp.where(on_axis, 3.0, 1.0))
        omega, unknowns = _moved(omega, newton.unknowns, newton.tangents, step)

        # The correction grows with the square of the stride.
        size = jnp.maximum(newton.size, magnitude(bend * missing))
        good = ~on_arc | (size <= trust)
        factor = jnp.clip(0.8 * jnp.sqrt(trust / jnp.maximum(size, 1e-6 * trust)), 0.25, 4.0)
        stride = (path.ahead - ahead) * jnp.where(good, factor, jnp.minimum(factor, 0.5))
        stuck = on_arc & ~good & (stride < 16 * eps)

        phase = jnp.where(on_axis & (newton.error <= 1e-2), _ARC, path.phase)
        phase = jnp.where(on_arc & good & (ahead == 0), _POLISH, phase)
        ended = (newton.error <= eps**0.4) | (path.num_in_phase >= 40)
        phase = jnp.where(stuck | (polishing & ended), _DONE, phase)
        active = path.phase != _DONE
        taken = active & good

        def accepted(new, old):
            return jnp.where(taken, new, old)

        return _Path(
            phase,
            accepted(ahead, path.ahead),
            jnp.where(on_arc, stride, path.stride),
            accepted(omega, path.omega),
            accepted(unknowns, path.unknowns),
            accepted(newton.slope, path.slope),
            accepted(bend, path.bend),
            accepted(newton.tangents, path.tangents),
            jnp.where(phase == path.phase, path.num_in_phase + 1, 0),
            path.num_steps + active,
        )

    def unfinished(carry):
        k, path = carry
        return (k < max_steps) & jnp.any(path.phase != _DONE)

    start = (0, _start(curve, z, lanes))
    return jax.lax.while_loop(unfinished, lambda carry: (carry[0] + 1, advance(carry[1])), start)[1]


class _Work(eqx.Module):
    """Every lane's best so far, with slope and tangents there; `attempts` counts the paths followed to it."""

    omega: Complex[Array, " lanes"]
    unknowns: Complex[Array, "layers unknowns lanes"]
    slope: Complex[Array, " lanes"]
    tangents: Complex[Array, "layers unknowns lanes"]
    code: Int[Array, " lanes"]
    attempts: Int[Array, " lanes"]
    num_steps: Int[Array, " lanes"]

    @property
    def pending(self) -> Bool[Array, " lanes"]:
        return (self.code != _OK) & (self.attempts < 2)


def _take(tree, index: Int[Array, " some"]):
    return jax.tree.map(lambda x: x[..., index], tree)


def _in_tiles(
    update: Callable[[_Work, Int[Array, " tile"], Bool[Array, " tile"]], _Work],
    work: _Work,
    chosen: Bool[Array, " lanes"],
    width: int,
) -> _Work:
    """`update(tile, index, chosen)` for the chosen lanes, `width` at a time: no tile waits for another."""
    num_lanes, count = chosen.shape[0], jnp.sum(chosen)
    lanes = jnp.pad(jnp.nonzero(chosen, size=num_lanes)[0], (0, -num_lanes % width))

    def update_tile(state):
        first, work = state
        index = jax.lax.dynamic_slice(lanes, (first,), (width,))
        there = first + jnp.arange(width) < count
        new = update(_take(work, index), index, there)
        place = jnp.where(there, index, num_lanes)
        return first + width, jax.tree.map(lambda x, y: x.at[..., place].set(y, mode="drop"), work, new)

    return jax.lax.while_loop(lambda state: state[0] < count, update_tile, (jnp.asarray(0), work))[1]


def _spread(waiting: Bool[Array, " lanes"], number: Int[Array, ""] | int) -> Bool[Array, " lanes"]:
    """So many of the waiting lanes, evenly, first and last among them."""
    rank = jnp.cumsum(waiting)
    gaps = jnp.maximum(rank[-1] - 1, 1)
    number = jnp.minimum(number, rank[-1])
    passed = (rank - 1) * (number - 1) // gaps > (rank - 2) * (number - 1) // gaps
    return waiting & (passed | (rank == 1))


def _search(curve: Curve, z: Array, work: _Work, chosen: Bool[Array, " lanes"], max_steps: int) -> _Work:
    """Follows paths to the chosen lanes: first in long strides, where that has failed in short ones."""
    trust = jnp.where(work.attempts == 0, 0.3, 0.02).astype(z.real.dtype)
    path = _follow(curve, z, chosen, trust, max_steps)
    arrived = (path.ahead == 0) & (path.phase == _DONE)
    code = jnp.where(arrived, _NO_ROOT, _MAX_STEPS)
    num_steps = work.num_steps + path.num_steps
    return _Work(path.omega, path.unknowns, path.slope, path.tangents, code, work.attempts + 1, num_steps)


def _neighbours(anchors: Bool[Array, " lanes"]) -> tuple[Int[Array, " lanes"], Int[Array, " lanes"]]:
    """Of every lane the nearest anchors, left and right, itself if it is one; where one lacks, the other twice."""
    num_lanes = anchors.shape[0]
    index = jnp.arange(num_lanes)
    left = jax.lax.cummax(jnp.where(anchors, index, -1))
    right = jax.lax.cummin(jnp.where(anchors, index, num_lanes), reverse=True)
    left, right = jnp.where(left < 0, right, left), jnp.where(right == num_lanes, left, right)
    return jnp.clip(left, 0, num_lanes - 1), jnp.clip(right, 0, num_lanes - 1)


def _between(log_z: Array, left: tuple[Array, _Work], right: tuple[Array, _Work]) -> tuple[Array, Array]:
    """Roots by cubic interpolation in `log z` between two, as seen from the origin."""
    (log_left, first), (log_right, last) = left, right
    span = log_right - log_left
    t = jnp.where(span == 0, 0, (log_z - log_left) * reciprocal(span + (span == 0)))
    first_rate, last_rate = span * reciprocal(first.slope), span * reciprocal(last.slope)

    def interpolated(start, end, first_rate, last_rate):
        rise = logarithm(end * reciprocal(start))
        change = t * (rise + (1 - t) * ((1 - t) * (first_rate - rise) - t * (last_rate - rise)))
        return start * exponential(change)

    omega = interpolated(first.omega, last.omega, first_rate, last_rate)
    rates = first.tangents * first_rate, last.tangents * last_rate
    return omega, interpolated(first.unknowns, last.unknowns, *rates)


def _polish(curve: Curve, z: Array, work: _Work, pending: Bool[Array, " lanes"], max_steps: int = 10) -> _Work:
    """Newton's method on the pending lanes, until certified; without the imaginary part where that is rounding only."""

    def advance(state):
        k, active, real, work = state
        newton, settled, code = _certify(curve, z, work.omega, work.unknowns, real)
        step = _limited(newton.step, newton.tangents, 1.0)
        omega, unknowns = _moved(work.omega, newton.unknowns, newton.tangents, step)
        # Next to an atom the last rounding decides whether the alpha test holds.
        settled = (settled & ((code != _NO_ROOT) | (k >= 8))) | ((k >= 4) & (code == _OK))
        strip = active & (settled | (k >= 3)) & ~real & _as_good_as_real(z, newton.slope, omega)
        omega, unknowns = _without_imaginary(real | strip, omega), _without_imaginary(real | strip, unknowns)

        def pick(new, old):
            return jnp.where(active, new, old)

        new = _Work(
            pick(omega, work.omega),
            pick(unknowns, work.unknowns),
            pick(newton.slope, work.slope),
            pick(newton.tangents, work.tangents),
            pick(code, work.code),
            work.attempts,
            work.num_steps + active,
        )
        return k + 1, active & (strip | ~settled), real | strip, new

    def unfinished(state):
        k, active, *_ = state
        return (k < max_steps) & jnp.any(active)

    start = (0, pending, jnp.zeros(z.shape, bool), work)
    _, active, _, found = advance(start) if max_steps == 1 else jax.lax.while_loop(unfinished, advance, start)
    code = jnp.where(active & (found.code == _OK), _NO_ROOT, found.code)
    nothing = (code == _NO_ROOT) | (code == _WRONG_BRANCH)
    code = jnp.where(nothing & ((work.code == _MAX_STEPS) | (work.code == _UNRESOLVED)), work.code, code)
    return eqx.tree_at(lambda w: w.code, found, code)


def _residual(omega, curve, unknowns, z):
    point = curve.point(omega, unknowns)
    return logarithm(point.z * reciprocal(z * jnp.exp(-point.log_scale)))


_ANCHORS = 16


def _widths() -> tuple[int, int]:
    """How many lanes share anchors, and how many are worked on at once.

    A tile waits for its slowest lane, and fits into a cache; an accelerator wants all lanes at once.
    """
    return (4096, 32) if jax.default_backend() == "cpu" else (65536, 65536)


def _work_through(curve: Curve, z: Array, valid: Array, max_steps: int) -> _Work:
    """Solves sorted lanes: follows paths to a few of those pending, fills in more between them, then the rest.

    Whatever fails is pending in the next round, which follows paths to more of them.
    """
    count, num_lanes = jnp.zeros(z.shape, int), z.shape[0]
    unknowns = jnp.ones((curve.num_layers, curve.num_unknowns, num_lanes), z.dtype)
    code, attempts = jnp.where(valid, _MAX_STEPS, _INVALID), jnp.where(valid, count, 2)
    work = _Work(z, unknowns, jnp.ones_like(z), unknowns, code, attempts, count)
    some = min(num_lanes, max(4 * _ANCHORS, num_lanes // 16))
    width = min(num_lanes, _widths()[1])
    log_z = log_upper(z - _origin(curve))

    def search(tile, index, chosen):
        return _search(curve, z[index], tile, chosen, max_steps)

    def polish(tile, index, chosen):
        return _polish(curve, z[index], tile, chosen)

    def fill_in(work, anchors, chosen):
        """Polishes anchors, and what lies between them."""
        left, right = _neighbours(anchors)

        def guessed(tile, index, chosen):
            guess = _between(log_z[index], *((log_z[i], _take(work, i)) for i in (left[index], right[index])))
            between = chosen & ~anchors[index]
            guess = jax.tree.map(lambda x, y: jnp.where(between, x, y), guess, (tile.omega, tile.unknowns))
            return eqx.tree_at(lambda w: (w.omega, w.unknowns), tile, guess)

        if curve.num_unknowns > 0:
            return _in_tiles(lambda tile, *lanes: polish(guessed(tile, *lanes), *lanes), work, chosen, width)
        # One step is so cheap that finding out who needs it costs more.
        once = guessed(work, jnp.arange(num_lanes), chosen)
        most = 2 * jnp.sum(chosen) > num_lanes
        once = jax.lax.cond(most, lambda w: _polish(curve, z, w, chosen, 1), lambda w: w, once)
        return _in_tiles(polish, once, chosen & (once.code != _OK), width)

    def round_of(state):
        first, work = state
        pending, before = work.pending, work.attempts
        work = _in_tiles(search, work, _spread(pending, jnp.where(first, _ANCHORS, some)), min(width, some))
        arrived = (work.attempts > before) & (work.code != _MAX_STEPS)

        def fill(level, work):
            waiting = pending & (work.code != _OK)
            anchors = (work.code == _OK) | (arrived & (level == 0))
            return fill_in(work, anchors, waiting & ((level == 1) | arrived | _spread(waiting, some)))

        return jnp.asarray(False), jax.lax.fori_loop(0, 2, fill, work)

    state = (jnp.asarray(True), work)
    return jax.lax.while_loop(lambda state: jnp.any(state[1].pending), round_of, state)[1]


def solve(curve: Curve, z: Complex[Array, " lanes"], max_steps: int = 100) -> Roots:
    """Certified roots `omega` of `z(omega) = z`; real positive `z` is the limit from above.

    The roots carry the derivatives of the implicit function; the search itself is not differentiated.
    """
    frozen = jax.lax.stop_gradient(curve)
    target = jax.lax.stop_gradient(z) * jnp.exp(-frozen.cumulants.log_scale)
    size = jnp.maximum(jnp.abs(target.real), jnp.abs(target.imag))
    valid = jnp.isfinite(size) & (jnp.abs(jnp.log(size)) < log_max(size.dtype) / 2)
    target = jnp.where(valid, target, -1)

    num_lanes = z.shape[0]
    distance = magnitude(target)
    in_order = jnp.all(distance[1:] >= distance[:-1])  # as grids are: sorting is slow
    order = jax.lax.cond(in_order, lambda: jnp.arange(num_lanes), lambda: jnp.argsort(distance))
    target, valid = target[order], valid[order]
    chunk, _ = _widths()
    if num_lanes > chunk:
        num_chunks = -(-num_lanes // chunk)
        extra = num_chunks * chunk - num_lanes
        target, valid = jnp.pad(target, (0, extra), mode="edge"), jnp.pad(valid, (0, extra))
        shape = (num_chunks, chunk)
        chunks = target.reshape(shape), valid.reshape(shape)
        work = jax.lax.map(lambda lanes: _work_through(frozen, lanes[0], lanes[1], max_steps), chunks)
        stacks = lambda w: (w.unknowns, w.tangents)  # noqa: E731
        work = eqx.tree_at(stacks, work, tuple(jnp.moveaxis(x, 0, -2) for x in stacks(work)))
        work = jax.tree.map(lambda x: x.reshape(*x.shape[:-2], num_chunks * chunk)[..., :num_lanes], work)
    else:
        work = _work_through(frozen, target, valid, max_steps)
    back = jnp.zeros_like(order).at[order].set(jnp.arange(num_lanes), unique_indices=True)
    work = _take(work, back)
    omega = implicit_root(_residual, work.omega, (curve, work.unknowns, z))
    return Roots(omega, work.unknowns, work.code == _OK, _results(work.code), work.num_steps)
