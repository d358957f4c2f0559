"""Certified solutions of `z(omega) = z` on a curve, for many `z` in parallel.

A root is accepted for its certificate, never for how it was found. Two things are certified:

- the branch: with `Im z > 0`, or on the support from above, every partial product and every subordination point lies
  in the upper half plane, and `m` in the lower one; off the support the same signs hold to first order along the real
  axis (Belinschi and Bercovici: subordination functions are the unique fixed points of self-maps of the half plane);
- that a root is there: Smale's alpha test, `alpha = |f/f'| gamma < 0.157` for `f(m) = log z(m) - log z`, with `gamma`
  bounded by the distances of `m` to the singularities of `f`.

What finds the roots is Newton's method along the arc from `-|z|`, where the curve is real and monotone, to `z`: an arc
has the same length at every scale, so that spectra of forty decades need no more steps than narrow ones.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, Int

from ._curve import Curve
from ._implicit import implicit_root
from ._misc import complex_dtype, reciprocal


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


class _Newton(eqx.Module):
    """One evaluation of the curve: Newton's step in `u = log omega`, and the tangents that predict the next point."""

    step: Complex[Array, " lanes"]
    slope: Complex[Array, " lanes"]
    unknowns: Complex[Array, "layers unknowns lanes"]
    tangents: Complex[Array, "layers unknowns lanes"]
    size: Float[Array, " lanes"]


def _newton(curve: Curve, z: Array, omega: Array, unknowns: Array) -> _Newton:
    def largest(size, before, operation, step):
        return jnp.maximum(size, step.correction)

    point, size, (found, tangents) = curve.fold(largest, jnp.zeros_like(z.real), omega, unknowns)
    step = -jnp.log(point.z * reciprocal(z)) * reciprocal(point.dz)
    size = jnp.maximum(size, jnp.abs(step))
    return _Newton(step, point.dz, found, tangents, jnp.where(jnp.isfinite(size), size, jnp.inf))


def _moved(omega, unknowns, tangents, step, limit):
    """A step in `u`, cut to `limit` in every logarithm. Updates are multiplicative: what is real stays real."""
    size = jnp.abs(step) * jnp.maximum(1, jnp.max(jnp.abs(tangents), axis=(0, 1), initial=0))
    step = step * jnp.minimum(1, limit / jnp.maximum(size, jnp.finfo(size.dtype).tiny))
    return omega * jnp.exp(step), unknowns * jnp.exp(tangents * step)


_AXIS, _ARC, _POLISH, _REAL, _DONE = range(5)


class _Search(eqx.Module):
    """What every lane is at. Newton's method finds the root on the negative axis, where `log|z|` is a monotone
    function of `log|omega|`; predictor and corrector carry it along the arc to `z`; Newton's method polishes it there,
    and once more without the imaginary part where that is rounding only.

    `omega` and `unknowns` are the last accepted point, with its slope and tangents; on the arc `angle` belongs to it.
    """

    phase: Int[Array, " lanes"]
    angle: Float[Array, " lanes"]
    stride: Float[Array, " lanes"]
    omega: Complex[Array, " lanes"]
    unknowns: Complex[Array, "layers unknowns lanes"]
    slope: Complex[Array, " lanes"]
    tangents: Complex[Array, "layers unknowns lanes"]
    real: Bool[Array, " lanes"]
    num_in_phase: Int[Array, " lanes"]
    num_steps: Int[Array, " lanes"]


def _search(curve: Curve, z: Array, trust: Array, lanes: Array, max_steps: int) -> _Search:
    """Roots at `z`, on `lanes`; a step along the arc is taken when its correction is at most `trust`."""
    eps = float(jnp.finfo(z.dtype).eps)
    radius, goal = jnp.abs(z), jnp.angle(z)
    omega = jax.lax.complex(-radius * curve.rank, jnp.zeros_like(radius))
    unknowns = curve.initial_unknowns(omega)
    count = jnp.zeros(z.shape, int)
    start = _Search(
        jnp.where(lanes, _AXIS, _DONE),
        jnp.full_like(radius, jnp.pi),
        jnp.full_like(radius, 0.5),
        omega,
        unknowns,
        jnp.ones_like(omega),
        jnp.zeros_like(unknowns),
        jnp.zeros(z.shape, bool),
        count,
        count,
    )

    def advance(state: _Search) -> _Search:
        on_axis, on_arc = state.phase == _AXIS, state.phase == _ARC
        angle = jnp.where(on_arc, jnp.maximum(state.angle - state.stride, goal), state.angle)
        ahead = jax.lax.complex(jnp.zeros_like(angle), angle - state.angle) * reciprocal(state.slope)
        omega, unknowns = _moved(state.omega, state.unknowns, state.tangents, ahead, 1.0)
        target = jax.lax.complex(radius * jnp.cos(angle), radius * jnp.sin(angle) * (state.phase != _AXIS))
        newton = _newton(curve, jnp.where(angle == goal, z, target), omega, unknowns)
        omega, unknowns = _moved(omega, newton.unknowns, newton.tangents, newton.step, jnp.where(on_axis, 3.0, 1.0))

        # On the arc: the correction grows with the square of the stride.
        good = ~on_arc | (newton.size <= trust)
        factor = jnp.clip(0.8 * jnp.sqrt(trust / jnp.maximum(newton.size, 1e-6 * trust)), 0.25, 4.0)
        stride = (state.angle - angle) * jnp.where(good, factor, jnp.minimum(factor, 0.5))
        stuck = on_arc & ~good & (stride < 16 * eps)

        settled = newton.size <= jnp.where(on_axis, eps**0.5, 64 * eps)
        polished = (state.phase == _POLISH) & (settled | (state.num_in_phase >= 5))
        # Off the support the root is real, and an imaginary part is rounding, magnified by 1/slope.
        noise = 200 * eps / jnp.minimum(jnp.abs(newton.slope), 1)
        real = state.real | (polished & (z.imag == 0) & (jnp.abs(omega.imag) <= noise * jnp.abs(omega)))
        phase = jnp.where(on_axis & settled, _ARC, state.phase)
        phase = jnp.where((phase <= _ARC) & good & (angle == goal) & (on_arc | settled), _POLISH, phase)
        phase = jnp.where(polished, jnp.where(real, _REAL, _DONE), phase)
        phase = jnp.where((state.phase == _REAL) & (state.num_in_phase >= 1), _DONE, phase)
        phase = jnp.where(stuck, _DONE, phase)

        active = state.phase != _DONE
        taken = active & good

        def accepted(new, old):
            return jnp.where(taken, new, old)

        def stripped(x):
            return jax.lax.complex(x.real, jnp.where(real, 0, x.imag))

        return _Search(
            jnp.where(active, phase, _DONE),
            accepted(angle, state.angle),
            jnp.where(on_arc, stride, state.stride),
            accepted(stripped(omega), state.omega),
            accepted(stripped(unknowns), state.unknowns),
            accepted(newton.slope, state.slope),
            accepted(newton.tangents, state.tangents),
            jnp.where(active, real, state.real),
            jnp.where(phase == state.phase, state.num_in_phase + 1, 0),
            state.num_steps + active,
        )

    def unfinished(carry):
        k, state = carry
        return (k < max_steps) & jnp.any(state.phase != _DONE)

    return jax.lax.while_loop(unfinished, lambda carry: (carry[0] + 1, advance(carry[1])), (0, start))[1]


def _certify(curve: Curve, z: Array, omega: Array, unknowns: Array, real: Array) -> Int[Array, " lanes"]:
    info = jnp.finfo(z.dtype)
    start = curve.start(omega)
    per_start = 1 / jnp.maximum(jnp.abs(start.dm), info.tiny)

    def visit(carry, before, operation, step):
        upper, low, high, total, nearest, rough = carry
        # One over the distance to the operation's singularities, measured in the m of the start.
        closeness = step.closeness * jnp.abs(before.dm) * per_start
        for w, dw in ((step.unknown, step.dunknown), (step.point.z, step.point.dz)):
            upper &= w.imag >= -256 * info.eps * jnp.abs(w)
            rise = jnp.sign((w * dw).real)
            low, high = jnp.minimum(low, rise), jnp.maximum(high, rise)
        total, nearest = total + jnp.square(closeness), jnp.maximum(nearest, closeness)
        return upper, low, high, total, nearest, jnp.maximum(rough, step.roughness)

    at_start = jnp.maximum(1 / jnp.abs(start.m), 1 / jnp.maximum(jnp.abs(start.n), info.tiny))
    rise, zero = jnp.sign(omega.real), jnp.zeros_like(z.real)
    carry = (omega.imag >= 0, rise, rise, 2 * jnp.square(at_start), at_start, zero)
    point, (upper, low, high, total, nearest, rough), _ = curve.fold(visit, carry, omega, unknowns)

    # First order along the real axis: w rises with z when dw/du has the sign of dz/du.
    direction = jnp.sign((point.z * point.dz).real)
    rising = (low == direction) & (high == direction) & (direction * point.dm.real < 0)
    branch = jnp.where(real, rising, upper & (point.m.imag < 0))

    residual = jnp.abs(jnp.log(point.z * reciprocal(z)))
    slope = jnp.abs(point.dz) * per_start
    gamma = jnp.maximum(total / (2 * slope), nearest)
    root = residual / slope * gamma < 0.157

    code = jnp.where(branch, _OK, _WRONG_BRANCH)
    code = jnp.where(rough <= max(1e-8, 100 * float(info.eps)), code, _UNRESOLVED)
    return jnp.where(root, code, _NO_ROOT)


def _residual(omega, curve, unknowns, z):
    point = curve.point(omega, unknowns)
    return jnp.log(point.z * reciprocal(z)) + point.log_mean


def solve(curve: Curve, z: Complex[Array, " lanes"], max_steps: int = 200) -> Roots:
    """Certified roots `omega` of `z(omega) = z`; real positive `z` is the limit from above.

    A first pass follows the arc in long strides; lanes it leaves uncertified are followed again in short ones. The
    roots carry the derivatives of the implicit function; the search itself is not differentiated.
    """
    frozen = jax.lax.stop_gradient(curve)
    log_mean, _ = frozen.cumulants()
    target = jax.lax.stop_gradient(z) * jnp.exp(-log_mean)
    valid = jnp.isfinite(target.real) & jnp.isfinite(target.imag) & (target != 0)
    target = jnp.where(valid, target, -1)

    code = jnp.where(valid, _MAX_STEPS, _INVALID)
    omega = target.astype(complex_dtype(target.dtype))
    unknowns = frozen.initial_unknowns(omega)
    start = (jnp.asarray(0), omega, unknowns, code, jnp.zeros_like(code))

    def attempt(state):
        k, omega, unknowns, code, num_steps = state
        lanes = valid & (code != _OK)
        trust = jnp.where(k == 0, 0.3, 0.02).astype(target.real.dtype)
        found = _search(frozen, target, trust, lanes, max_steps)
        verdict = _certify(frozen, target, found.omega, found.unknowns, found.real)
        verdict = jnp.where((found.phase == _DONE) & (found.angle <= jnp.angle(target)), verdict, _MAX_STEPS)
        pick = lambda new, old: jnp.where(lanes, new, old)  # noqa: E731
        return (
            k + 1,
            pick(found.omega, omega),
            pick(found.unknowns, unknowns),
            pick(verdict, code),
            num_steps + found.num_steps,
        )

    def unfinished(state):
        return (state[0] < 2) & jnp.any(valid & (state[3] != _OK))

    _, omega, unknowns, code, num_steps = jax.lax.while_loop(unfinished, attempt, start)
    omega = implicit_root(_residual, omega, (curve, unknowns, z))
    return Roots(omega, unknowns, code == _OK, _results(code), num_steps)
