"""Complex arithmetic that neither overflows nor loses digits, and its derivatives.

Real numbers stay real, at a fraction of the cost: all of a curve is real on the negative axis.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array


def log_max(dtype: DTypeLike) -> float:
    """Logarithm of the largest float. Squares of complex numbers' parts must fit: use up to half of it."""
    return math.log(float(jnp.finfo(dtype).max))


def complex_dtype(dtype: DTypeLike) -> jnp.dtype:
    return jnp.result_type(dtype, jnp.complex64)


def scaled(factor: Array, z: Array) -> Array:
    """`factor * z` for a real factor, a third of the operations of a complex one."""
    factor = jnp.broadcast_to(factor, jnp.broadcast_shapes(jnp.shape(factor), z.shape))
    if not jnp.iscomplexobj(z):
        return factor * z
    return jax.lax.complex(factor * z.real, factor * z.imag)


def shifted(offset: Array, z: Array) -> Array:
    """`offset + z` for a real offset."""
    return jax.lax.complex(offset + z.real, z.imag) if jnp.iscomplexobj(z) else offset + z


def as_complex(z: Array) -> Array:
    return z.astype(complex_dtype(z.dtype))


@jax.custom_jvp
def reciprocal(z: Array) -> Array:
    """`1/z` without the overflow guards of a general division, which cost more than all the rest."""
    if not jnp.iscomplexobj(z):
        return 1 / z
    x, y = z.real, z.imag
    scale = 1 / (x * x + y * y)
    return jax.lax.complex(x * scale, -y * scale)


@reciprocal.defjvp
def _reciprocal_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverse = reciprocal(*primals)
    return inverse, -inverse * inverse * tangents[0]


def squared(z: Array) -> Array:
    """`|z|^2`."""
    if not jnp.iscomplexobj(z):
        return jnp.square(z)
    return jnp.square(z.real) + jnp.square(z.imag)


def x_log_x(x: Array) -> Array:
    """`x log x` for `x >= 0`; a rounding counts as 0, and stays there."""
    info = jnp.finfo(x.dtype)
    there = x > 64 * info.eps
    constant = jax.lax.stop_gradient(jnp.log(jnp.maximum(x, info.tiny)))
    return jnp.maximum(x, 0) * jnp.where(there, jnp.log(jnp.where(there, x, 1)), constant)


def magnitude(z: Array) -> Array:
    """`|z|`, without the overflow guards of `jnp.abs`."""
    return jnp.sqrt(squared(z)) if jnp.iscomplexobj(z) else jnp.abs(z)


def mirrored(z: Array, where: Array) -> Array:
    """Seen in the real axis, in some places."""
    if not jnp.iscomplexobj(z):
        return z
    return jax.lax.complex(z.real, jnp.where(where, -z.imag, z.imag))


def exponential(z: Array) -> Array:
    """`exp z`; real where `z` is."""
    if not jnp.iscomplexobj(z):
        return jnp.exp(z)
    size = jnp.exp(z.real)
    return jax.lax.complex(size * jnp.cos(z.imag), size * jnp.sin(z.imag))


def sqrt_upper(z: Array) -> Array:
    """The root in the first quadrant of `z` on the closed upper half plane; rounding below the axis counts as on it."""
    x, y = z.real, jnp.maximum(z.imag, 0)
    large = jnp.sqrt((jnp.abs(x) + jnp.sqrt(x * x + y * y)) / 2)
    small = jnp.where(large > 0, y / (2 * jnp.where(large > 0, large, 1)), 0)
    right = x >= 0
    return jax.lax.complex(jnp.where(right, large, small), jnp.where(right, small, large))


def logarithm(z: Array) -> Array:
    """The principal `log z`; of a real number that is not positive `z - 1`, which is no number's logarithm: steps of
    Newton's method lead away from there.
    """
    if not jnp.iscomplexobj(z):
        return jnp.where(z > 0, _log_with_argument(jnp.where(z > 0, z, 1), z), z - 1)
    return _log_with_argument(z, jnp.arctan2(z.imag, z.real))


def log_upper(z: Array) -> Array:
    """`log z` on the closed upper half plane, argument in `[0, pi]`; rounding below the axis counts as on it."""
    return _log_with_argument(z, jnp.arctan2(jnp.maximum(z.imag, 0), z.real))


def log_lower(z: Array) -> Array:
    """`log z` on the closed lower half plane, argument in `[-pi, 0]`."""
    return _log_with_argument(z, -jnp.arctan2(jnp.maximum(-z.imag, 0), z.real))


@jax.custom_jvp
def log_one_plus(x: Array, one: Array) -> Array:
    """`log(1 + x)` on the closed lower half plane, `one = 1 + x`, to full relative accuracy."""
    near = jnp.log1p(x.real * (2 + x.real) + jnp.square(x.imag))
    size = jnp.where(squared(x) < 0.1, near, jnp.log(squared(one)))
    return jax.lax.complex(0.5 * size, -jnp.arctan2(jnp.maximum(-one.imag, 0), one.real))


@log_one_plus.defjvp
def _log_one_plus_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, one), (dx, _) = primals, tangents
    return log_one_plus(x, one), dx * reciprocal(one)


@jax.custom_jvp
def _log_with_argument(z: Array, argument: Array) -> Array:
    if not jnp.iscomplexobj(z):
        return jnp.log(z)
    return jax.lax.complex(0.5 * jnp.log(squared(z)), argument)


@_log_with_argument.defjvp
def _log_with_argument_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (z, argument), (dz, _) = primals, tangents
    return _log_with_argument(z, argument), dz * reciprocal(z)
