"""Laws on the half line, as points and weights, and atoms."""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Complex, Float, Inexact

from .._numerics.complex import complex_dtype, log_lower, log_upper, reciprocal, squared
from .atoms import Atoms

# A mean logarithm may differ by so much from that of half the nodes: its error is a tenth of the difference, or less.
_LOG_TOLERANCE = 1e-5


class Transform(eqx.Module):
    """Sums over a law at `w`: `m = M(w)`, `g = G(w)`, `slope = -M'(w)`, and what the certificate asks for."""

    m: Inexact[Array, " lanes"]
    g: Inexact[Array, " lanes"]
    slope: Inexact[Array, " lanes"]
    total: Float[Array, " lanes"]
    distance: Float[Array, " lanes"]
    roughness: Float[Array, " lanes"]


class Law(eqx.Module):
    """A law of mean 1 given by points and weights, times `exp(log_mean)`.

    A continuous law is its quadrature. Its points may lie below the real axis, on a contour along which `M` continues
    across the support: then `M(x + i0)` comes out exactly as far as the quadrature goes, on the support too.
    `weighted` are weights times points, `sizes` their moduli, and `unresolved` what they differ by from those of an
    embedded rule with half the points, whose error is about the root of the error: made once, for many lanes.
    """

    points: Inexact[Array, "... points"]
    weights: Inexact[Array, "... points"]
    weighted: Inexact[Array, "... points"]
    sizes: Float[Array, "... points"]
    unresolved: Inexact[Array, "... points"]
    log_mean: Float[Array, "..."]
    relative_variance: Float[Array, "..."]
    atoms: Atoms

    @staticmethod
    def from_points(points: Array, weights: Array, coarse: Array, atoms: Atoms) -> "Law":
        """Normalises the points to mean 1; `coarse` are the embedded rule's weights, `relative_variance` is variance
        over squared mean. Atoms at one place are one.
        """
        weights, coarse = weights / jnp.sum(weights), coarse / jnp.sum(coarse)
        mean = jnp.sum(weights * points).real
        points = points / mean
        relative_variance = jnp.sum(weights * jnp.square(points - 1)).real
        weighted = weights * points
        unresolved = weighted - coarse * points
        return Law(
            points=points,
            weights=weights,
            weighted=weighted,
            sizes=jnp.abs(weighted),
            unresolved=unresolved,
            log_mean=jnp.log(mean),
            relative_variance=relative_variance,
            atoms=atoms.merged(),
        )

    @staticmethod
    def point_mass(dtype: DTypeLike) -> "Law":
        one, zero = jnp.ones(1, dtype), jnp.zeros((), dtype)
        return Law(one, one, one, one, 0 * one, zero, zero, Atoms(one[0], jnp.zeros(1, dtype), one))

    def resized(self, num_points: int, num_atoms: int, dtype: DTypeLike) -> "Law":
        """Padded with points of weight zero, so that laws of several layers stack."""
        extra = num_points - self.points.shape[-1]

        def pad(x: Array, value: float, dtype: DTypeLike = dtype) -> Array:
            return jnp.pad(x.astype(dtype), [(0, 0)] * (x.ndim - 1) + [(0, extra)], constant_values=value)

        return Law(
            pad(self.points, 1),
            pad(self.weights, 0),
            pad(self.weighted, 0),
            pad(self.sizes, 0, self.sizes.dtype),
            pad(self.unresolved, 0),
            self.log_mean,
            self.relative_variance,
            self.atoms.resized(num_atoms),
        )

    def masked(self, keep: Float[Array, ""]) -> "Law":
        """Of `b t / keep^2`, `b` being 1 with probability `keep`, and else 0."""

        def with_zero(x: Array, value: Array) -> Array:
            return jnp.append(x, value.astype(x.dtype))

        zero = jnp.zeros_like(self.log_mean)
        atoms = self.atoms
        return Law(
            with_zero(self.points / keep, zero),
            with_zero(self.weights * keep, 1 - keep),
            with_zero(self.weighted, zero),
            with_zero(self.sizes, zero),
            with_zero(self.unresolved, zero),
            self.log_mean - jnp.log(keep),
            (1 + self.relative_variance) / keep - 1,
            Atoms(atoms.rank * keep, atoms.log_locations - 2 * jnp.log(keep), atoms.masses * keep),
        )

    def transform(self, w: Inexact[Array, " lanes"]) -> Transform:
        if jnp.iscomplexobj(self.points) and not jnp.iscomplexobj(w):
            return self._transform_on_axis(w)
        inverse = reciprocal(w - self.points[:, None])
        size = squared(lax.stop_gradient(inverse))
        unresolved, sizes = lax.stop_gradient((self.unresolved, self.sizes))
        g, m, rough = _sums(jnp.stack([self.weights, self.weighted, unresolved]), inverse)
        (slope,) = _sums(self.weighted[None], inverse * inverse)
        (total,) = _sums(sizes[None], size)
        on_axis = w.imag == 0  # off the support M is real there, and the contour's error is not part of it
        return Transform(
            m=_real_where(on_axis, m),
            g=_real_where(on_axis, g),
            slope=_real_where(on_axis, slope),
            total=total,
            distance=lax.rsqrt(jnp.max(size * (self.weights[:, None] != 0), 0)),
            roughness=lax.stop_gradient(squared(rough) / squared(m)),
        )

    def _transform_on_axis(self, w: Float[Array, " lanes"]) -> Transform:
        """In real numbers, of points `x + iy`: `1 / (w - x - iy) = (w - x + iy) r`, `r` its squared modulus. It is for
        `w < 0`: just above the law the sums of powers of `w` would cancel.
        """
        x, y = self.points.real, self.points.imag
        r = reciprocal(jnp.square(w - x[:, None]) + jnp.square(y)[:, None])

        def linear(weights: Array) -> Array:
            """The real part of the sum of `weights / (w - points)`."""
            rising, level = _sums(jnp.stack([weights.real, weights.real * x + weights.imag * y]), r)
            return w * rising - level

        a, b = self.weighted.real, self.weighted.imag
        squares = jnp.stack([a, -2 * (a * x + b * y), a * (x * x - y * y) + 2 * b * x * y])
        rising, linearly, level = _sums(squares, r * r)
        m = linear(self.weighted)
        unresolved, size, sizes = lax.stop_gradient((self.unresolved, r, self.sizes))
        return Transform(
            m=m,
            g=linear(self.weights),
            slope=w * (w * rising + linearly) + level,
            total=_sums(sizes[None], size)[0],
            distance=lax.rsqrt(jnp.max(size * (self.weights[:, None] != 0), 0)),
            roughness=lax.stop_gradient(squared(linear(unresolved)) / squared(m)),
        )

    def mean_log(self) -> Float[Array, ""]:
        """`int_{t>0} log t law(dt)`, NaN where the quadrature does not resolve it."""
        tiny = jnp.finfo(self.sizes.dtype).tiny
        there = squared(self.points) > tiny
        points = jnp.where(there, self.points, 1)
        logs = log_lower(points.astype(complex_dtype(tiny.dtype)))
        fine, missing = (jnp.sum(w * logs).real for w in (self.weights, self.unresolved / points))
        tolerance = max(_LOG_TOLERANCE, 100 * float(jnp.finfo(tiny.dtype).eps))
        return jnp.where(jnp.abs(missing) <= tolerance * (1 + jnp.abs(fine)), fine, jnp.nan)

    def log_transform(self, w: Complex[Array, " lanes"]) -> Complex[Array, " lanes"]:
        """`int log(1 - t/w) law(dt)`, continuous from infinity on the upper half plane, where it is small."""
        x = -self.points[:, None] * reciprocal(w)
        small = squared(x) < 0.1
        y = jnp.where(small, x, 0)
        near = lax.complex(0.5 * jnp.log1p(y.real * (2 + y.real) + jnp.square(y.imag)), jnp.arctan2(y.imag, 1 + y.real))
        far = log_upper(w - self.points[:, None]) - log_upper(w)
        return jnp.sum(self.weights[:, None] * jnp.where(small, near, far), 0)


def _sums(weights: Array, values: Array) -> Array:
    """Over the points; GPUs are told not to round products of single precision to half of it."""
    return jnp.matmul(weights, values.astype(jnp.result_type(weights, values)), precision=lax.Precision.HIGHEST)


def _real_where(real: Array, z: Array) -> Array:
    return lax.complex(z.real, jnp.where(real, 0, z.imag)) if jnp.iscomplexobj(z) else z
