"""When a point of a curve is accepted as the solution of `z(omega) = z`.

A root is accepted for its certificate, never for how it was found. Two things are certified:

- the branch: with `Im z > 0`, or on the support from above, every partial product and every subordination point lies
  in the upper half plane, and `m` in the lower one; off the support the same signs hold to first order along the real
  axis (Belinschi and Bercovici: subordination functions are the unique fixed points of self-maps of the half plane);
- that a root is there: Smale's alpha test, `alpha = |f/f'| gamma < 0.157` for `f(1/m) = log z(1/m) - log z`, with
  `gamma` bounded by the distances of `1/m` to the singularities of `f`, of which an atom, `m` infinite, is none.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, Int

from .._calculus.curve import Curve
from .._calculus.operation import AbstractOperation, Step
from .._calculus.point import Point, Signs
from .._numerics.complex import log_max, logarithm, magnitude, reciprocal, squared


class RESULTS(eqx.Enumeration):
    """What became of a point; every value is its own explanation."""

    successful = "Certified."
    max_steps_reached = "Path following used up its steps; the point may lie at an edge or at an atom."
    wrong_branch = "Not certified: the root found leaves the half planes of the physical branch."
    no_root = "Not certified: the alpha test does not confirm a root; the point lies too near an edge or an atom."
    unresolved_law = "Not certified: the quadrature of a layer's law is too coarse this close to its support."
    invalid_input = (
        "`z` is not finite, is 0, or is so far from the mean that its square leaves the range of floats; "
        "or the network has moments that are NaN, say of a `FromFunction` that lacks knots."
    )


def as_results(code: Int[Array, " lanes"]) -> RESULTS:  # pyright: ignore[reportInvalidTypeForm]
    """The enumeration item of every lane's code, its position in the enumeration."""

    def one(code: Array) -> Any:
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


OK, MAX_STEPS, WRONG_BRANCH, NO_ROOT, UNRESOLVED, INVALID = range(len(_ORDER))


class Newton(eqx.Module):
    """One evaluation of the curve: Newton's step in `u = log omega`, and the tangents that predict the next point."""

    step: Complex[Array, " lanes"]
    slope: Complex[Array, " lanes"]
    unknowns: Complex[Array, "layers unknowns lanes"]
    tangents: Complex[Array, "layers unknowns lanes"]
    error: Float[Array, " lanes"]  # the largest correction, in logarithms
    size: Float[Array, " lanes"]  # the same with changes of `log m` counted too, large next to an atom


def _newton_at(
    curve: Curve, z: Array, point: Point, unknowns: Array, tangents: Array, error: Array, size: Array
) -> Newton:
    measured, target, slope = point.z, z, point.dz
    if curve.has_shifts:
        origin = curve.origin()
        measured, target = point.z - origin, z - origin
        slope = point.dz * point.z * reciprocal(measured)
    ratio = measured * reciprocal(target)
    # A far guess may leave the range of floats, thousands of layers deep: go back by as much as that range.
    far = log_max(z.dtype) / 2
    size_of_ratio = magnitude(ratio)
    above, below = ~jnp.isfinite(size_of_ratio), size_of_ratio == 0
    residual = jnp.where(above, far, jnp.where(below, -far, logarithm(ratio)))
    step = -residual * reciprocal(slope)
    change = magnitude(step)
    error = jnp.maximum(error, change)
    size = jnp.maximum(size, jnp.maximum(error, change * magnitude(point.rate)))
    return Newton(
        step=step,
        slope=slope,
        unknowns=unknowns,
        tangents=tangents,
        error=error,
        size=jnp.where(jnp.isfinite(size), size, jnp.inf),
    )


class _Nearness(eqx.Module):
    """One over the squared distance to the next singularity, and a bound of the second derivative of `log z`, which of
    a logarithmic singularity is the same.
    """

    closeness: Float[Array, " lanes"]
    curvature: Float[Array, " lanes"]

    @staticmethod
    def to(closeness: Float[Array, " lanes"]) -> "_Nearness":
        """A logarithmic singularity."""
        return _Nearness(closeness, closeness)

    def times(self, stretch: Float[Array, " lanes"]) -> "_Nearness":
        return _Nearness(self.closeness * stretch, self.curvature * stretch)

    def __and__(self, other: "_Nearness") -> "_Nearness":
        return _Nearness(jnp.maximum(self.closeness, other.closeness), self.curvature + other.curvature)


class Verdict(eqx.Module):
    """Newton's step, whether it ends within a few roundings, and the code of what is certified."""

    newton: Newton
    settled: Bool[Array, " lanes"]
    code: Int[Array, " lanes"]


# Newton's method may end so many roundings off, for each that the layers make; and where they magnify them, at this
# power of the rounding.
_ROUNDINGS, _MAGNIFIED = 256, 0.6

# Smale's constant: Newton's method converges from wherever alpha is less (Blum et al. 1998, Chapter 8).
_ALPHA = 0.157


def certify(curve: Curve, z: Array, omega: Array, unknowns: Array, real: Bool[Array, " lanes"]) -> Verdict:
    """What a point is worth as a root; off the support where `real`."""
    info = jnp.finfo(z.dtype)
    rounding = _ROUNDINGS * float(info.eps) * curve.num_roundings
    start = curve.start(omega)
    # Distances are measured in the 1/m of the start, and relative to it; only shifts change relative ones.
    square_per_start = 1 / jnp.maximum(squared(start.rate), info.tiny)

    def visit(carry: Any, before: Point, operation: AbstractOperation, step: Step) -> Any:
        signs, near, zeros, rough, error, size = carry
        here, zero_here = _Nearness(step.closeness, step.curvature), _Nearness.to(step.closeness_to_zeros)
        if curve.has_shifts:
            stretch = squared(before.rate) * square_per_start
            near &= here.times(stretch)
            zeros = zero_here if operation.moves_zeros else zeros & zero_here.times(stretch)
        else:
            near &= here & zero_here
        if operation.num_unknowns:
            rough, error = jnp.maximum(rough, step.roughness), jnp.maximum(error, step.correction)
            size = jnp.maximum(size, step.mismatch)
        return signs & step.signs, near, zeros, rough, error, size

    at_start = _Nearness.to(1 / jnp.maximum(squared(start.one_plus(1.0)), info.tiny))
    zero = jnp.zeros_like(z.real)
    signs = start.signs(omega, jnp.ones_like(omega))
    near, zeros = (_Nearness.to(zero), at_start) if curve.has_shifts else (at_start, None)
    point, carry, (found, tangents) = curve.fold(visit, (signs, near, zeros, zero, zero, zero), start, unknowns)
    signs, near, zeros, rough, error, size = carry
    newton = _newton_at(curve, z, point, found, tangents, error, size)
    step, slope, residual = magnitude(newton.step), magnitude(newton.slope), magnitude(newton.step * newton.slope)

    rising = rises(point, signs)
    # A point may lie below the axis by what it moves with a rounding, or with the rest of Newton's step.
    upper = -signs.lowest <= jnp.maximum(rounding, 2 * step)
    clear = omega.imag > 4 * step * magnitude(omega)  # of the axis: the step does not lead there
    interior = upper & clear & (point.m.imag < 0) & ~as_good_as_real(z, newton.slope, omega)
    per_start = jnp.sqrt(square_per_start)
    steepness = slope * per_start
    if curve.has_shifts:
        near &= zeros & _Nearness.to(jnp.where(curve.floor() > 0, jnp.square(steepness), 0))
    gamma = jnp.maximum(near.curvature / (2 * steepness), jnp.sqrt(near.closeness))
    # Where the curve is steep, next to z = 0 of a shift, only the step can be small.
    error = jnp.maximum(error, jnp.minimum(residual, step))
    # Expanding layers magnify rounding, so that Newton's method may end well above it.
    tolerance = jnp.maximum(rounding, float(info.eps) ** _MAGNIFIED)
    # Newton's method squares what is left.
    left = jnp.maximum(error, step)
    settled = (error <= rounding) | ((real | clear) & (2 * left / per_start * gamma * left <= rounding))
    root = (settled | (error <= tolerance)) & (residual / steepness * gamma < _ALPHA)
    code = jnp.where(jnp.where(real, rising, interior), OK, WRONG_BRANCH)
    code = jnp.where(root, code, NO_ROOT)
    code = jnp.where(rough > tolerated_roughness(float(info.eps)), UNRESOLVED, code)
    return Verdict(newton=newton, settled=settled, code=code)


def tolerated_roughness(eps: float) -> float:
    """How large a quadrature's relative error may be."""
    return max(1e-7, 100 * eps)


def rises(point: Point, signs: Signs) -> Bool[Array, " lanes"]:
    """First order along the real axis, off the support: `z` and all subordination points rise where `m` falls."""
    return signs.rising & point.own_signs().rising


def as_good_as_real(z: Array, slope: Array, omega: Array) -> Bool[Array, " lanes"]:
    """Off the support the root is real, and an imaginary part is rounding, magnified by 1/slope."""
    noise = 200 * float(jnp.finfo(z.dtype).eps) / jnp.minimum(magnitude(slope), 1)
    return (z.imag == 0) & (jnp.abs(omega.imag) <= noise * magnitude(omega))
