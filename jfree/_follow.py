"""Paths along the curve: from the negative axis, where it is real and monotone, along the arc from `-|z|` to `z`.

An arc has the same length at every scale, so that spectra of forty decades need no more steps than narrow ones.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, Int

from ._certificate import newton_step
from ._curve import Curve
from ._misc import exponential, log_upper, magnitude, reciprocal


def limited(step: Array, tangents: Array, limit: Array | float) -> Array:
    """A step in `u`, cut so that no logarithm changes by more than `limit`."""
    size = magnitude(step) * jnp.maximum(1, jnp.max(magnitude(tangents), axis=(0, 1), initial=0))
    return step * jnp.minimum(1, limit / jnp.maximum(size, jnp.finfo(size.dtype).tiny))


def moved(omega: Array, unknowns: Array, tangents: Array, step: Array) -> tuple[Array, Array]:
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
    origin = curve.origin()
    radius = jnp.maximum(magnitude(z), curve.far())
    start, end = jax.lax.complex(-radius, jnp.zeros_like(radius)) - origin, z - origin
    turn = jnp.where(magnitude(start) == 0, 0, log_upper(start) - log_upper(end))
    return origin + end * exponential(ahead * turn)


def without_imaginary(real: Bool[Array, " lanes"], x: Array) -> Array:
    return jax.lax.complex(x.real, jnp.where(real, 0, x.imag))


_AXIS, _ARC, _POLISH, _DONE = range(4)


class _Path(eqx.Module):
    """What every lane is at. Newton's method finds a root on the negative axis, where `log|z|` is a monotone function
    of `log|omega|`; predictor and corrector carry it along an arc to `z`; Newton's method polishes it there.

    `omega` and `unknowns` are the last accepted point, with its slope and tangents. It lies at `ahead` on the arc,
    which runs from 1, on the axis, to 0, at `z`; `stride` is how far the next step goes, and `growth` by what factor it
    may grow, less after a refusal. `bend` tells powers of `u` from exponentials, see `_ahead`.
    """

    phase: Int[Array, " lanes"]
    ahead: Float[Array, " lanes"]
    stride: Float[Array, " lanes"]
    growth: Float[Array, " lanes"]
    omega: Complex[Array, " lanes"]
    unknowns: Complex[Array, "layers unknowns lanes"]
    slope: Complex[Array, " lanes"]
    bend: Complex[Array, " lanes"]
    tangents: Complex[Array, "layers unknowns lanes"]
    num_in_phase: Int[Array, " lanes"]
    num_steps: Int[Array, " lanes"]

    @property
    def arrived(self) -> Bool[Array, " lanes"]:
        return (self.phase == _DONE) & (self.ahead == 0)


def _start(curve: Curve, z: Array, lanes: Array) -> _Path:
    """Omega grows like z at infinity; towards 0 like a root of z, the higher the wider the spectrum."""
    radius = jnp.maximum(magnitude(z), curve.far())
    spread = curve.cumulants.spread
    omega = -curve.rank * jnp.where(radius < 1, radius ** (1 / (1 + jnp.maximum(spread, 0))), radius)
    omega = jax.lax.complex(omega, jnp.zeros_like(radius))
    unknowns = curve.initial_unknowns(curve.start(omega))
    one, count, slope = jnp.ones_like(radius), jnp.zeros(z.shape, int), jnp.ones_like(omega)
    phase = jnp.where(lanes, _AXIS, _DONE)
    tangents = jnp.zeros_like(unknowns)
    return _Path(phase, one, 0.2 * one, 4 * one, omega, unknowns, slope, 0 * slope, tangents, count, count)


def follow(curve: Curve, z: Array, lanes: Array, trust: Array, max_steps: int) -> _Path:
    """Takes `lanes` to `z`; a step along the arc is accepted when its correction is at most `trust`."""
    eps = float(jnp.finfo(z.dtype).eps)
    origin = curve.origin()
    arc = log_upper(_on_arc(curve, z, 1.0) - origin) - log_upper(z - origin)

    def advance(path: _Path) -> _Path:
        on_axis, on_arc, polishing = (path.phase == phase for phase in (_AXIS, _ARC, _POLISH))
        ahead = jnp.where(on_arc, jnp.maximum(path.ahead - path.stride, 0), path.ahead)
        predicted = limited(_ahead((ahead - path.ahead) * arc, path.slope, path.bend), path.tangents, 1.0)
        omega, unknowns = moved(path.omega, path.unknowns, path.tangents, predicted)
        target = _on_arc(curve, z, ahead)
        target = jnp.where(on_axis, without_imaginary(on_axis, target), jnp.where(ahead == 0, z, target))
        newton = newton_step(curve, target, omega, unknowns)
        bend = jnp.where(on_arc, _bend(path.slope, newton.slope, predicted), 0)
        missing = newton.step * newton.slope
        step = limited(_ahead(missing, newton.slope, bend), newton.tangents, jnp.where(on_axis, 3.0, 1.0))
        omega, unknowns = moved(omega, newton.unknowns, newton.tangents, step)

        # The correction grows with the square of the stride.
        size = jnp.maximum(newton.size, magnitude(bend * missing))
        good = ~on_arc | (size <= trust)
        factor = jnp.clip(0.8 * jnp.sqrt(trust / jnp.maximum(size, 1e-6 * trust)), 0.25, path.growth)
        stride = (path.ahead - ahead) * jnp.where(good, factor, jnp.minimum(factor, 0.5))
        stuck = on_arc & ~good & (stride < 16 * eps)

        phase = jnp.where(on_axis & (newton.error <= 1e-2), _ARC, path.phase)
        phase = jnp.where(on_arc & good & (ahead == 0), _POLISH, phase)
        ended = (newton.error <= eps**0.4) | (path.num_in_phase >= 40)
        phase = jnp.where(stuck | (polishing & ended), _DONE, phase)
        active = path.phase != _DONE
        taken = active & good

        def accepted(new: Array, old: Array) -> Array:
            return jnp.where(taken, new, old)

        return _Path(
            phase,
            accepted(ahead, path.ahead),
            jnp.where(on_arc, stride, path.stride),
            jnp.where(good, jnp.minimum(2 * path.growth, 4), 1),
            accepted(omega, path.omega),
            accepted(unknowns, path.unknowns),
            accepted(newton.slope, path.slope),
            accepted(bend, path.bend),
            accepted(newton.tangents, path.tangents),
            jnp.where(phase == path.phase, path.num_in_phase + 1, 0),
            path.num_steps + active,
        )

    def unfinished(carry: tuple[Array | int, _Path]) -> Array:
        k, path = carry
        return (k < max_steps) & jnp.any(path.phase != _DONE)

    start = (0, _start(curve, z, lanes))
    return jax.lax.while_loop(unfinished, lambda carry: (carry[0] + 1, advance(carry[1])), start)[1]
