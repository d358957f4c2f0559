"""Certified solutions of `z(omega) = z` on a curve, for many `z` in parallel.

A root is accepted for its certificate, never for how it was found. Two things are certified:

- the branch: with `Im z > 0`, or on the support from above, every partial product and every subordination point lies
  in the upper half plane, and `m` in the lower one; off the support the same signs hold to first order along the real
  axis (Belinschi and Bercovici: subordination functions are the unique fixed points of self-maps of the half plane);
- that a root is there: Smale's alpha test, `alpha = |f/f'| gamma < 0.157` for `f(1/m) = log z(1/m) - log z`, with
  `gamma` bounded by the distances of `1/m` to the singularities of `f`, of which an atom, `m` infinite, is none.

What finds the roots is Newton's method along the arc from `-|z|`, where the curve is real and monotone, to `z`: an arc
has the same length at every scale, so that spectra of forty decades need no more steps than narrow ones.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, Int

from ._curve import Curve, Signs
from ._implicit import implicit_root
from ._misc import exponential, log_max, log_upper, logarithm, magnitude, reciprocal


class RESULTS(eqx.Enumeration):
    """What became of a point; every value is its own explanation."""

    successful = "Certified."
    max_steps_reached = "Path following used up its steps; the point may lie at an edge or at an atom."
    wrong_branch = "Not certified: the root found leaves the half planes of the physical branch."
    no_root = "Not certified: the alpha test does not confirm a root; the point lies too near an edge or an atom."
    unresolved_law = "Not certified: the quadrature of a layer's law is too coarse this close to its support."
    invalid_input = "`z` is not finite, or is 0."


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


class _Look(eqx.Module):
    """One evaluation of the curve at a guess: Newton's step in `u = log omega`, tangents, and the certificate."""

    step: Complex[Array, " lanes"]
    slope: Complex[Array, " lanes"]
    unknowns: Complex[Array, "layers unknowns lanes"]
    tangents: Complex[Array, "layers unknowns lanes"]
    error: Float[Array, " lanes"]  # the largest correction, in logarithms
    size: Float[Array, " lanes"]  # the same with changes of `log m` counted too, large next to an atom
    settled: Bool[Array, " lanes"]  # the error is a few roundings
    code: Int[Array, " lanes"]


def _origin(curve: Curve) -> Array:
    """Where `z` is measured from, on logarithmic scale: 0, or with shifts a point as far below 0 as they reach."""
    floor = curve.floor()
    return jax.lax.complex(jnp.zeros_like(floor), -floor)


def _look(curve: Curve, z: Array, omega: Array, unknowns: Array, real: Bool[Array, " lanes"]) -> _Look:
    """Where `real`, the root is to be certified as one off the support."""
    info = jnp.finfo(z.dtype)
    rounding = 256 * float(info.eps) * (1 + curve.num_layers / 16)
    start = curve.start(omega)
    per_start = jnp.square(magnitude(start.m)) / jnp.maximum(magnitude(start.dm), info.tiny)

    def visit(carry, before, operation, step):
        signs, total, nearest, rough, error, size = carry
        # One over the distance to the operation's singularities, measured in the 1/m of the start.
        stretch = magnitude(before.dm) / (before.side * jnp.square(magnitude(before.m)))
        closeness = step.closeness * stretch * per_start
        total, nearest = total + jnp.square(closeness), jnp.maximum(nearest, closeness)
        rough, error = jnp.maximum(rough, step.roughness), jnp.maximum(error, step.correction)
        return signs & step.signs, total, nearest, rough, error, jnp.maximum(size, step.mismatch)

    at_start = magnitude(start.m) / jnp.maximum(magnitude(start.one_plus(1)), info.tiny)
    zero = jnp.zeros_like(z.real)
    carry = (Signs.of(omega, jnp.ones_like(omega)), jnp.square(at_start), at_start, zero, zero, zero)
    point, carry, (found, tangents) = curve.fold(visit, carry, start, unknowns)
    signs, total, nearest, rough, error, size = carry

    origin = _origin(curve)
    moved = reciprocal(point.z - origin)
    ratio = (point.z - origin) * reciprocal(z - origin)
    slope = point.dz * point.z * moved
    # A far guess may leave the range of floats, thousands of layers deep: go back by as much as that range.
    far = log_max(z.dtype) / 2
    above, below = ~jnp.isfinite(magnitude(ratio)), magnitude(ratio) == 0
    residual = jnp.where(above, far, jnp.where(below, -far, logarithm(ratio)))
    step = -residual * reciprocal(slope)

    # First order along the real axis: w rises with z when dw/du has the sign of dz/du.
    direction = jnp.sign((point.z * point.dz).real)
    rising = (signs.low == direction) & (signs.high == direction) & (direction * point.dm.real < 0)
    # A point may lie below the axis by what it moves with a rounding, or with the rest of Newton's step.
    upper = signs.below <= jnp.maximum(rounding, 2 * magnitude(step))
    interior = upper & (point.m.imag < 0) & ~_as_good_as_real(z, slope, omega)
    steepness = magnitude(slope) * per_start
    nearest = jnp.maximum(nearest, jnp.where(curve.floor() > 0, steepness, 0))
    gamma = jnp.maximum(total / (2 * steepness), nearest)
    # Where the curve is steep, next to z = 0 of a shift, only the step can be small.
    error = jnp.maximum(error, jnp.minimum(magnitude(residual), magnitude(step)))
    # Expanding layers magnify rounding, so that Newton's method may end well above it.
    tolerance = max(rounding, float(info.eps) ** 0.6)
    root = (error <= tolerance) & (magnitude(residual) / steepness * gamma < 0.157)
    code = jnp.where(jnp.where(real, rising, interior), _OK, _WRONG_BRANCH)
    code = jnp.where(rough <= max(1e-7, 100 * float(info.eps)), code, _UNRESOLVED)
    code = jnp.where(root, code, _NO_ROOT)

    settled = error <= rounding
    error = jnp.maximum(error, magnitude(step))
    size = jnp.maximum(size, jnp.maximum(error, magnitude(step) * magnitude(point.dm) / magnitude(point.m)))
    size = jnp.where(jnp.isfinite(size), size, jnp.inf)
    return _Look(step, slope, found, tangents, error, size, settled, code)


def _limited(step: Array, tangents: Array, limit: Array | float) -> Array:
    """A step in `u`, cut so that no logarithm changes by more than `limit`."""
    size = magnitude(step) * jnp.maximum(1, jnp.max(magnitude(tangents), axis=(0, 1), initial=0))
    return step * jnp.minimum(1, limit / jnp.maximum(size, jnp.finfo(size.dtype).tiny))


def _moved(omega, unknowns, tangents, step):
    """Updates are multiplicative: what is real stays real."""
    return omega * exponential(step), unknowns * exponential(tangents * step)


_AXIS, _ARC, _POLISH, _DONE = range(4)


class _Search(eqx.Module):
    """What every lane is at. Newton's method finds a root on the negative axis, where `log|z|` is a monotone function
    of `log|omega|`; predictor and corrector carry it along an arc to `z`; Newton's method polishes it there until it is
    certified, without the imaginary part where that is rounding only.

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
    real: Bool[Array, " lanes"]
    code: Int[Array, " lanes"]
    num_in_phase: Int[Array, " lanes"]
    num_steps: Int[Array, " lanes"]

    @staticmethod
    def at(phase: Array, omega: Array, unknowns: Array) -> "_Search":
        one, count = jnp.ones_like(omega.real), jnp.zeros(phase.shape, int)
        code = jnp.full_like(count, _MAX_STEPS)
        no = jnp.zeros(phase.shape, bool)
        slope, tangents = jnp.ones_like(omega), jnp.zeros_like(unknowns)
        return _Search(phase, one, 0.2 * one, omega, unknowns, slope, 0 * slope, tangents, no, code, count, count)


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


def _from_axis(curve: Curve, z: Array, lanes: Array) -> _Search:
    """Omega grows like z at infinity; towards 0 like a root of z, the higher the wider the spectrum."""
    radius = jnp.maximum(magnitude(z), curve.far())
    spread = curve.cumulants().spread
    omega = -curve.rank * jnp.where(radius < 1, radius ** (1 / (1 + jnp.maximum(spread, 0))), radius)
    omega = jax.lax.complex(omega, jnp.zeros_like(radius))
    return _Search.at(jnp.where(lanes, _AXIS, _DONE), omega, curve.initial_unknowns(curve.start(omega)))


def _search(curve: Curve, z: Array, start: _Search, trust: Array | None, max_steps: int) -> _Search:
    """Moves all lanes on to the end; a step along the arc is taken when its correction is at most `trust`.

    Without `trust`, no lane is on the axis or the arc.
    """
    eps = float(jnp.finfo(z.dtype).eps)
    origin = _origin(curve)
    arc = log_upper(_on_arc(curve, z, 1.0) - origin) - log_upper(z - origin)

    def advance(state: _Search) -> _Search:
        if trust is None:
            look = _look(curve, z, state.omega, state.unknowns, state.real)
            step = _limited(look.step, look.tangents, 1.0)
            omega, unknowns = _moved(state.omega, look.unknowns, look.tangents, step)
            phase, ahead, stride, bend, good = state.phase, state.ahead, state.stride, state.bend, True
        else:
            on_axis, on_arc = state.phase == _AXIS, state.phase == _ARC
            ahead = jnp.where(on_arc, jnp.maximum(state.ahead - state.stride, 0), state.ahead)
            predicted = _ahead((ahead - state.ahead) * arc, state.slope, state.bend)
            predicted = _limited(predicted, state.tangents, 1.0)
            omega, unknowns = _moved(state.omega, state.unknowns, state.tangents, predicted)
            target = _on_arc(curve, z, ahead)
            target = jnp.where(on_axis, _without_imaginary(on_axis, target), jnp.where(ahead == 0, z, target))
            look = _look(curve, target, omega, unknowns, state.real)
            bend = jnp.where(on_arc, _bend(state.slope, look.slope, predicted), 0)
            missing = look.step * look.slope
            step = _limited(_ahead(missing, look.slope, bend), look.tangents, jnp.where(on_axis, 3.0, 1.0))
            omega, unknowns = _moved(omega, look.unknowns, look.tangents, step)
            # The correction grows with the square of the stride.
            size = jnp.maximum(look.size, magnitude(bend * missing))
            good = ~on_arc | (size <= trust)
            factor = jnp.clip(0.8 * jnp.sqrt(trust / jnp.maximum(size, 1e-6 * trust)), 0.25, 4.0)
            stride = (state.ahead - ahead) * jnp.where(good, factor, jnp.minimum(factor, 0.5))
            stuck = on_arc & ~good & (stride < 16 * eps)
            stride = jnp.where(on_arc, stride, state.stride)
            phase = jnp.where(on_axis & (look.error <= eps**0.5), _ARC, state.phase)
            phase = jnp.where(on_arc & good & (ahead == 0), _POLISH, jnp.where(stuck, _DONE, phase))

        polishing = state.phase == _POLISH
        enough = (state.num_in_phase >= 40) | ((state.num_in_phase >= 4) & (look.code == _OK))
        settled = polishing & (look.settled | enough)
        strip = settled & ~state.real & _as_good_as_real(z, look.slope, omega)
        real = state.real | strip
        omega, unknowns = _without_imaginary(real, omega), _without_imaginary(real, unknowns)
        phase = jnp.where(settled & ~strip, _DONE, phase)

        active = state.phase != _DONE
        taken = active & good

        def accepted(new, old):
            return jnp.where(taken, new, old)

        return _Search(
            phase,
            accepted(ahead, state.ahead),
            stride,
            accepted(omega, state.omega),
            accepted(unknowns, state.unknowns),
            accepted(look.slope, state.slope),
            accepted(bend, state.bend),
            accepted(look.tangents, state.tangents),
            jnp.where(active, real, state.real),
            jnp.where(polishing, look.code, state.code),
            jnp.where((phase == state.phase) & ~strip, state.num_in_phase + 1, 0),
            state.num_steps + active,
        )

    def unfinished(carry):
        k, state = carry
        return (k < max_steps) & jnp.any(state.phase != _DONE)

    return jax.lax.while_loop(unfinished, lambda carry: (carry[0] + 1, advance(carry[1])), (0, start))[1]


def _as_good_as_real(z: Array, slope: Array, omega: Array) -> Bool[Array, " lanes"]:
    """Off the support the root is real, and an imaginary part is rounding, magnified by 1/slope."""
    noise = 200 * float(jnp.finfo(z.dtype).eps) / jnp.minimum(magnitude(slope), 1)
    return (z.imag == 0) & (jnp.abs(omega.imag) <= noise * magnitude(omega))


def _without_imaginary(real: Bool[Array, " lanes"], x: Array) -> Array:
    return jax.lax.complex(x.real, jnp.where(real, 0, x.imag))


def _residual(omega, curve, unknowns, z):
    point = curve.point(omega, unknowns)
    return logarithm(point.z * reciprocal(z)) + point.log_scale


class _Work(eqx.Module):
    """Every lane's best so far, with slope and tangents there; `attempts` counts its own searches."""

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

    def updated(self, found: _Search, lanes: Array, attempts: Array) -> "_Work":
        def pick(new, old):
            return jnp.where(lanes, new, old)

        return _Work(
            pick(found.omega, self.omega),
            pick(found.unknowns, self.unknowns),
            pick(found.slope, self.slope),
            pick(found.tangents, self.tangents),
            pick(found.code, self.code),
            attempts,
            self.num_steps + found.num_steps,
        )


def _attempt(curve: Curve, z: Array, work: _Work, max_steps: int) -> _Work:
    """Searches all lanes that are pending, first in long strides, then in short ones."""
    lanes = work.pending
    trust = jnp.where(work.attempts == 0, 0.3, 0.02).astype(z.real.dtype)
    found = _search(curve, z, _from_axis(curve, z, lanes), trust, max_steps)
    return work.updated(found, lanes, work.attempts + lanes)


def _fill_in(curve: Curve, z: Array, work: _Work) -> _Work:
    """Newton's method on the pending lanes from their certified neighbours, by cubic interpolation in `log z`."""
    num_lanes = z.shape[0]
    index = jnp.arange(num_lanes)
    certified = work.code == _OK
    left = jax.lax.cummax(jnp.where(certified, index, -1))
    right = jax.lax.cummin(jnp.where(certified, index, num_lanes), reverse=True)
    left, right = jnp.where(left < 0, right, left), jnp.where(right == num_lanes, left, right)
    left, right = jnp.clip(left, 0, num_lanes - 1), jnp.clip(right, 0, num_lanes - 1)
    rate = reciprocal(work.slope)
    log_z = log_upper(z - _origin(curve))
    span = log_z[right] - log_z[left]
    t = jnp.where(span == 0, 0, (log_z - log_z[left]) * reciprocal(span + (span == 0)))

    def interpolated(value, rate):
        value = log_upper(value)
        start, end = value[..., left], value[..., right]
        rise = end - start
        first, last = span * rate[..., left] - rise, span * rate[..., right] - rise
        return exponential(start + t * (rise + (1 - t) * ((1 - t) * first - t * last)))

    omega, unknowns = interpolated(work.omega, rate), interpolated(work.unknowns, work.tangents * rate)
    pending = work.pending
    start = _Search.at(jnp.where(pending, _POLISH, _DONE), omega, unknowns)
    found = _search(curve, z, start, None, 6)
    return work.updated(found, pending & (found.code == _OK), work.attempts)


_CHUNK = 4096  # lanes worked on together: their state stays in cache
_ANCHORS = 64


def _work_through(curve: Curve, z: Array, valid: Array, max_steps: int) -> _Work:
    """Solves sorted lanes: searches for a few spread over those pending, fills in between, until none is pending."""
    count = jnp.zeros(z.shape, int)
    unknowns = jnp.ones((curve.num_layers, curve.num_unknowns, *z.shape), z.dtype)
    code, attempts = jnp.where(valid, _MAX_STEPS, _INVALID), jnp.where(valid, count, 2)
    work = _Work(z, unknowns, jnp.ones_like(z), unknowns, code, attempts, count)
    num_lanes = z.shape[0]
    size = max(_ANCHORS, num_lanes // 16)
    if num_lanes <= 2 * _ANCHORS:

        def all_lanes(work):
            return _attempt(curve, z, work, max_steps)

        return jax.lax.while_loop(lambda work: jnp.any(work.pending), all_lanes, work)

    def round_of(work):
        rank = jnp.cumsum(work.pending)
        chosen = jnp.searchsorted(rank, 1 + (jnp.arange(size) * (rank[-1] - 1)) // (size - 1))
        some = jax.tree.map(lambda x: x[..., chosen], work)
        some = _attempt(curve, z[chosen], some, max_steps)
        work = jax.tree.map(lambda all, new: all.at[..., chosen].set(new), work, some)
        fresh = jnp.sum(work.pending & (work.attempts == 0))
        return jax.lax.cond(fresh > size // 2, lambda w: _fill_in(curve, z, w), lambda w: w, work)

    return jax.lax.while_loop(lambda work: jnp.any(work.pending), round_of, work)


def solve(curve: Curve, z: Complex[Array, " lanes"], max_steps: int = 200) -> Roots:
    """Certified roots `omega` of `z(omega) = z`; real positive `z` is the limit from above.

    The roots carry the derivatives of the implicit function; the search itself is not differentiated.
    """
    frozen = jax.lax.stop_gradient(curve)
    target = jax.lax.stop_gradient(z) * jnp.exp(-frozen.cumulants().log_scale)
    valid = jnp.isfinite(target.real) & jnp.isfinite(target.imag) & (target != 0)
    target = jnp.where(valid, target, -1)

    num_lanes = z.shape[0]
    order = jnp.argsort(magnitude(target))
    target, valid = target[order], valid[order]
    if num_lanes > _CHUNK:
        num_chunks = -(-num_lanes // _CHUNK)
        extra = num_chunks * _CHUNK - num_lanes
        target, valid = jnp.pad(target, (0, extra), mode="edge"), jnp.pad(valid, (0, extra), mode="edge")
        shape = (num_chunks, _CHUNK)
        chunks = target.reshape(shape), valid.reshape(shape)
        work = jax.lax.map(lambda chunk: _work_through(frozen, chunk[0], chunk[1], max_steps), chunks)
        stacks = lambda w: (w.unknowns, w.tangents)  # noqa: E731
        work = eqx.tree_at(stacks, work, tuple(jnp.moveaxis(x, 0, -2) for x in stacks(work)))
        work = jax.tree.map(lambda x: x.reshape(*x.shape[:-2], num_chunks * _CHUNK)[..., :num_lanes], work)
    else:
        work = _work_through(frozen, target, valid, max_steps)
    back = jnp.argsort(order)
    work = jax.tree.map(lambda x: x[..., back], work)
    omega = implicit_root(_residual, work.omega, (curve, work.unknowns, z))
    return Roots(omega, work.unknowns, work.code == _OK, _results(work.code), work.num_steps)
