"""How a lane comes to its root: from a guess, or by a path that starts on the negative axis.

Newton's method polishes a guess until it is certified. Where that fails, or nothing is known, a path is followed. On
the negative axis the curve is real and monotone, and Newton's method finds the root at `-|z|`. Predictor and corrector
carry it along the arc from there to `z`, where it is polished. An arc has the same length at every scale, so that
spectra of forty decades need no more steps than narrow ones. Every phase evaluates the curve once per step.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, Int

from .._calculus.curve import Curve
from .._numerics.complex import exponential, log_upper, magnitude, reciprocal
from .certificate import as_good_as_real, certify, INVALID, MAX_STEPS, Newton, NO_ROOT, OK, UNRESOLVED, Verdict

# Steps of one path, on the axis and along the arc, and steps after it until Newton's method is next to the root. The
# hardest that were seen took half as many.
_MOST_ON_PATH = 100


# Paths to one point: the second is followed in short strides.
_MOST_PATHS = 2


# Steps next to a root: one will do from a good guess, and five square the error of any that converges.
_MOST_POLISHED = 10


# From so many such steps on a root counts as real if it is as good as real, as certified if its certificate holds, and
# as none if its alpha test fails; before, only once Newton's method has ended.
_STRIPPED_AFTER, _CERTIFIED_AFTER, _REFUSED_AFTER = 3, 4, 8


# By how much a logarithm may change in a step: beyond that, its linear prediction says nothing.
_LONGEST, _LONGEST_ON_AXIS = 1.0, 3.0


# Newton's last correction on the axis; the corrector of the arc takes it from there.
_NEAR_ON_AXIS = 1e-2


# Correction on the arc that is accepted: on the first path, and on the second.
_TRUST, _TRUST_AGAIN = 0.3, 0.02


# The first stride, as a share of the arc. Strides then aim at a share of the trusted correction, which grows with their
# square, and change by limited factors.
_FIRST_STRIDE, _CAUTION, _LEAST_FACTOR, _MOST_FACTOR = 0.2, 0.8, 0.25, 4.0


# The factor after a step that was refused, at most; and the stride below which a path is stuck, in roundings.
_REFUSED_FACTOR, _SHORTEST = 0.5, 16


class Lanes(eqx.Module):
    """What is known of every lane: its root so far, with slope and tangents there; OK, or why there is no root; and how
    many steps it took.

    An `omega` that is 0 is not known, nor is an unknown.
    """

    omega: Complex[Array, " lanes"]
    unknowns: Complex[Array, "layers unknowns lanes"]
    slope: Complex[Array, " lanes"]
    tangents: Complex[Array, "layers unknowns lanes"]
    code: Int[Array, " lanes"]
    num_steps: Int[Array, " lanes"]

    @staticmethod
    def unknown(curve: Curve, valid: Bool[Array, " lanes"]) -> "Lanes":
        """Before any work."""
        zero = jnp.zeros(valid.shape, jnp.result_type(curve.rank, jnp.complex64))
        nothing = jnp.zeros((curve.num_layers, curve.num_unknowns, *valid.shape), zero.dtype)
        code, count = jnp.where(valid, MAX_STEPS, INVALID), jnp.zeros(valid.shape, int)
        return Lanes(omega=zero, unknowns=nothing, slope=zero + 1, tangents=nothing, code=code, num_steps=count)


def limited(step: Array, tangents: Array, limit: Array | float) -> Array:
    """A step in `u`, cut so that no logarithm changes by more than `limit`."""
    size = magnitude(step) * jnp.maximum(1, jnp.max(magnitude(tangents), axis=(0, 1), initial=0))
    return step * jnp.minimum(1, limit / jnp.maximum(size, jnp.finfo(size.dtype).tiny))


def moved(omega: Array, unknowns: Array, tangents: Array, step: Array) -> tuple[Array, Array]:
    """Updates are multiplicative: what is real stays real."""
    return omega * exponential(step), unknowns * exponential(tangents * step)


def _ahead(log_ratio: Array, slope: Array, curvature: Array) -> Array:
    """The step in `u` along which `z` grows by a ratio, for `z = (1 + curvature slope du)^(1 / curvature)`.

    That is `exp(slope du)` without curvature, as between the decades of a deep spectrum, and linear with curvature 1,
    as around a place where `z` vanishes.
    """
    x = curvature * log_ratio
    small = magnitude(x) < 1e-4
    safe = jnp.where(small, 1, x)
    return log_ratio * reciprocal(slope) * jnp.where(small, 1 + x / 2, (exponential(x) - 1) * reciprocal(safe))


def _curvature(old: Array, new: Array, step: Array) -> Array:
    """The curvature that takes the slope from old to new."""
    curvature = (old - new) * reciprocal(step * old * new)
    size = magnitude(curvature)
    return jnp.where(size < 1e3, curvature * jnp.minimum(1, 2 / size), 0)


def _turn(curve: Curve, z: Array) -> Array:
    """From the negative axis to `z`, as `log z` seen from the origin: a circle, or a spiral where not all of that axis
    is on the curve.
    """
    origin = curve.origin()
    start = -_radius(curve, z) - origin
    return jnp.where(magnitude(start) == 0, 0, log_upper(start) - log_upper(z - origin))


def _on_arc(curve: Curve, z: Array, turn: Array, ahead: Array) -> Array:
    """The point from which the share `ahead` of the arc leads to `z`."""
    origin = curve.origin()
    there = origin + (z - origin) * exponential(ahead * turn)
    return jnp.where(ahead == 0, z, _without_imaginary(ahead == 1, there))


def _radius(curve: Curve, z: Array) -> Array:
    return jnp.maximum(magnitude(z), curve.far())


def _start(curve: Curve, z: Array) -> Array:
    """`omega` on the negative axis: like `z` at infinity, towards 0 like a root of `z`, the higher the wider the
    spectrum.
    """
    radius = _radius(curve, z)
    relative_variance = curve.moments.relative_variance
    omega = -curve.rank * jnp.where(radius < 1, radius ** (1 / (1 + jnp.maximum(relative_variance, 0))), radius)
    return jax.lax.complex(omega, jnp.zeros_like(radius))


_START, _AXIS, _ARC, _POLISH, _DONE = range(5)


class _Path(eqx.Module):
    """Where the lanes are on their way.

    The last accepted point lies at `ahead` on the arc, which runs from 1, on the axis, to 0, at `z`; `stride` is how
    far the next step goes, and `growth` by what factor it may grow, less after a refusal. `curvature` tells powers of
    `u` from exponentials, see `_ahead`. `paths` are those followed so far, `steps` those of the last, and `polished`
    counts the steps next to a root. Off the support roots are `real`.
    """

    lanes: Lanes
    phase: Int[Array, " lanes"]
    ahead: Float[Array, " lanes"]
    stride: Float[Array, " lanes"]
    growth: Float[Array, " lanes"]
    curvature: Complex[Array, " lanes"]
    paths: Int[Array, " lanes"]
    steps: Int[Array, " lanes"]
    polished: Int[Array, " lanes"]
    real: Bool[Array, " lanes"]

    @staticmethod
    def at_first(z: Complex[Array, " lanes"], lanes: Lanes, search: Bool[Array, ""]) -> "_Path":
        """Before any step: next to the root that is known, or where paths start."""
        one, count, known = jnp.ones_like(z.real), jnp.zeros(z.shape, int), lanes.omega != 0
        phase = jnp.where(known, _POLISH, jnp.where(search, _START, _DONE))
        return _Path(
            lanes=lanes,
            phase=jnp.where(lanes.code == INVALID, _DONE, phase),
            ahead=0 * one,
            stride=one,
            growth=one,
            curvature=jnp.zeros_like(z),
            paths=count,
            steps=count,
            polished=count,
            real=known & (lanes.omega.imag == 0) & (z.imag == 0),
        )


class _Target(eqx.Module):
    """The next place of a path, and the step that is expected to lead there."""

    ahead: Float[Array, " lanes"]
    z: Complex[Array, " lanes"]
    step: Complex[Array, " lanes"]


class _Progress(eqx.Module):
    """What becomes of a step: the rest of it, whether it is accepted, and how the path goes on."""

    step: Complex[Array, " lanes"]
    longest: Float[Array, " lanes"]
    good: Bool[Array, " lanes"]
    phase: Int[Array, " lanes"]
    stride: Float[Array, " lanes"]
    growth: Float[Array, " lanes"]
    curvature: Complex[Array, " lanes"]


class _Ending(eqx.Module):
    """Whether polishing is over, with which code, and after how many steps; and whether the root is real."""

    done: Bool[Array, " lanes"]
    code: Int[Array, " lanes"]
    num_polished: Int[Array, " lanes"]
    real: Bool[Array, " lanes"]


class _Route(eqx.Module):
    """The way of every lane: from `first` on the negative axis, along an arc that makes a `turn`, to `z`."""

    curve: Curve
    z: Complex[Array, " lanes"]
    first: Complex[Array, " lanes"]
    turn: Complex[Array, " lanes"]

    def begun(self, path: _Path) -> _Path:
        """The lanes that start a path, at its start."""
        there = path.phase == _START

        def at_start(value: Any, now: Array) -> Array:
            return jnp.where(there, value, now)

        lanes = path.lanes
        return _Path(
            lanes=Lanes(
                omega=at_start(self.first, lanes.omega),
                unknowns=at_start(0, lanes.unknowns),
                slope=at_start(1, lanes.slope),
                tangents=at_start(0, lanes.tangents),
                code=lanes.code,
                num_steps=lanes.num_steps,
            ),
            phase=at_start(_AXIS, path.phase),
            ahead=at_start(1, path.ahead),
            stride=at_start(_FIRST_STRIDE, path.stride),
            growth=at_start(_MOST_FACTOR, path.growth),
            curvature=at_start(0, path.curvature),
            paths=path.paths + there,
            steps=at_start(0, path.steps),
            polished=at_start(0, path.polished),
            real=path.real & ~there,
        )

    def ahead(self, path: _Path) -> _Target:
        """Ahead on the arc, or where the lane is."""
        ahead = jnp.where(path.phase == _ARC, jnp.maximum(path.ahead - path.stride, 0), path.ahead)
        step = _ahead((ahead - path.ahead) * self.turn, path.lanes.slope, path.curvature)
        z = _on_arc(self.curve, self.z, self.turn, ahead)
        return _Target(ahead=ahead, z=z, step=limited(step, path.lanes.tangents, _LONGEST))

    def at_end(self, path: _Path) -> _Target:
        return _Target(ahead=path.ahead, z=self.z, step=jnp.zeros_like(self.z))


def _corrected(path: _Path, target: _Target, newton: Newton) -> _Progress:
    """On the arc a step is accepted if its correction is small; then come longer ones, else shorter ones."""
    eps = float(jnp.finfo(newton.error.dtype).eps)
    on_axis, on_arc = path.phase == _AXIS, path.phase == _ARC
    trust = jnp.where(path.paths < _MOST_PATHS, _TRUST, _TRUST_AGAIN).astype(path.ahead.dtype)
    curvature = jnp.where(on_arc, _curvature(path.lanes.slope, newton.slope, target.step), 0)
    missing = newton.step * newton.slope
    size = jnp.maximum(newton.size, magnitude(curvature * missing))
    good = ~on_arc | (size <= trust)
    factor = _CAUTION * jnp.sqrt(trust / jnp.maximum(size, 1e-6 * trust))
    factor = jnp.clip(factor, _LEAST_FACTOR, path.growth)
    stride = (path.ahead - target.ahead) * jnp.where(good, factor, jnp.minimum(factor, _REFUSED_FACTOR))
    stuck = on_arc & ~good & (stride < _SHORTEST * eps)
    phase = jnp.where(on_axis & (newton.error <= _NEAR_ON_AXIS), _ARC, path.phase)
    phase = jnp.where(on_arc & good & (target.ahead == 0), _POLISH, phase)
    return _Progress(
        step=_ahead(missing, newton.slope, curvature),
        longest=jnp.where(on_axis, _LONGEST_ON_AXIS, _LONGEST).astype(path.ahead.dtype),
        good=good,
        phase=jnp.where(stuck, _START, phase),
        stride=jnp.where(on_arc, stride, path.stride),
        growth=jnp.where(good, jnp.minimum(2 * path.growth, _MOST_FACTOR), 1),
        curvature=jnp.where(good, curvature, path.curvature),
    )


def _polished(path: _Path, target: _Target, newton: Newton) -> _Progress:
    """At the end every step is taken."""
    one = jnp.ones_like(path.ahead)
    return _Progress(
        step=newton.step,
        longest=one,
        good=one > 0,
        phase=path.phase,
        stride=path.stride,
        growth=path.growth,
        curvature=path.curvature,
    )


def _ending(path: _Path, verdict: Verdict, nearly_real: Bool[Array, " lanes"]) -> _Ending:
    """At `z` the root is polished until Newton's method ends, without the imaginary part where that is rounding. At the
    end of a path it may still be far from the root, next to an edge.
    """
    error, code = verdict.newton.error, verdict.code
    polishing = path.phase == _POLISH
    close = polishing & ((path.paths == 0) | (error <= float(jnp.finfo(error.dtype).eps) ** 0.4))
    num_polished = path.polished + close
    ended = verdict.settled & ((code != NO_ROOT) | (num_polished > _REFUSED_AFTER))
    ended |= (num_polished > _CERTIFIED_AFTER) & (code == OK)
    strip = (ended | (num_polished > _STRIPPED_AFTER)) & ~path.real & nearly_real
    ended = ended & ~strip & close
    return _Ending(
        done=ended | (num_polished >= _MOST_POLISHED),
        code=jnp.where(ended | (code != OK), code, NO_ROOT),
        num_polished=num_polished,
        real=path.real | (polishing & strip),
    )


def walk(curve: Curve, z: Complex[Array, " lanes"], lanes: Lanes, search: Bool[Array, ""]) -> Lanes:
    """Takes every lane to its root from what is known of it; in `search` of one it follows paths, too."""
    route = _Route(curve=curve, z=z, first=_start(curve, z), turn=_turn(curve, z))

    def advance(state: tuple[Array, _Path]) -> tuple[Array, _Path]:
        least, path = state[0], route.begun(state[1])
        lanes, active, on_way = path.lanes, path.phase != _DONE, least < _POLISH
        target = jax.lax.cond(on_way, lambda: route.ahead(path), lambda: route.at_end(path))
        omega, unknowns = moved(lanes.omega, lanes.unknowns, lanes.tangents, target.step)
        verdict = certify(curve, target.z, omega, unknowns, path.real)
        newton = verdict.newton
        progress = jax.lax.cond(on_way, _corrected, _polished, path, target, newton)
        step = limited(progress.step, newton.tangents, progress.longest)
        omega, unknowns = moved(omega, newton.unknowns, newton.tangents, step)

        ending = _ending(path, verdict, as_good_as_real(z, newton.slope, omega))
        out_of_steps = (path.steps >= _MOST_ON_PATH) | (progress.phase == _START)
        lost = jnp.where(ending.done, ending.code != OK, out_of_steps)
        over = ending.done | lost
        again = lost & search & (path.paths < _MOST_PATHS)
        phase = jnp.where(active, jnp.where(over, jnp.where(again, _START, _DONE), progress.phase), _DONE)
        code = _with_reason(lanes.code, jnp.where(ending.done, ending.code, MAX_STEPS))
        taken = active & progress.good

        def accepted(new: Array, old: Array) -> Array:
            return jnp.where(taken, new, old)

        omega, unknowns = _without_imaginary(ending.real, omega), _without_imaginary(ending.real, unknowns)
        return jnp.min(phase), _Path(
            lanes=Lanes(
                omega=accepted(omega, lanes.omega),
                unknowns=accepted(unknowns, lanes.unknowns),
                slope=accepted(newton.slope, lanes.slope),
                tangents=accepted(newton.tangents, lanes.tangents),
                code=jnp.where(active & over, code, lanes.code),
                num_steps=lanes.num_steps + active,
            ),
            phase=phase,
            ahead=accepted(target.ahead, path.ahead),
            stride=progress.stride,
            growth=progress.growth,
            curvature=progress.curvature,
            paths=path.paths,
            steps=path.steps + 1,
            polished=ending.num_polished,
            real=ending.real,
        )

    start = _Path.at_first(z, lanes, search)
    unfinished = lambda state: state[0] != _DONE  # noqa: E731
    return jax.lax.while_loop(unfinished, advance, (jnp.min(start.phase), start))[1].lanes


def _with_reason(before: Array, code: Array) -> Array:
    """What is said of a lane: that a law is not resolved tells more than that no root was found."""
    return jnp.where((before == UNRESOLVED) & (code != OK), before, code)


def _without_imaginary(real: Bool[Array, " lanes"], x: Array) -> Array:
    return jax.lax.complex(x.real, jnp.where(real, 0, x.imag))
