"""Small numerical helpers shared by every module."""

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike

Reals = ArrayLike | Sequence[float]


def common_dtype(*values: ArrayLike | Sequence[Any]) -> jnp.dtype:
    """The floating-point dtype of the arrays among `values`, at least float32; other numbers follow it."""
    arrays = [v for v in values if isinstance(v, jax.Array | np.ndarray) and jnp.issubdtype(v.dtype, jnp.inexact)]
    dtypes = [jax.dtypes.canonicalize_dtype(array.dtype) for array in arrays]
    return jnp.promote_types(jnp.result_type(*dtypes), jnp.float32) if dtypes else jnp.result_type(float)


def are_concrete(*trees: Any) -> bool:
    """Whether no array in them is traced."""
    return all(map(is_concrete, jax.tree.leaves(trees)))


def frozen(tree: Any) -> Any:
    """Without derivatives; what is known is that already."""
    return tree if are_concrete(tree) else jax.lax.stop_gradient(tree)


def at_once(method: Callable[..., Any]) -> Callable[..., Any]:
    """Evaluates `method` of what is known when it is called, whatever is traced around it."""

    @functools.wraps(method)
    def wrapped(*args: Any) -> Any:
        known = [x for x in jax.tree.leaves(args) if eqx.is_array(x)]
        staged = not is_concrete(jax.lax.stop_gradient(known[0]))
        if not staged or not all(map(is_concrete, known)):
            return method(*args)
        with jax.ensure_compile_time_eval():
            return method(*args)

    return wrapped


def asarray(x: ArrayLike | Sequence[Any], dtype: DTypeLike) -> Array:
    """`jnp.asarray`, but what is known stays so while something else is traced: it can be checked at once."""
    if all(map(is_concrete, jax.tree.leaves(x))):
        with jax.ensure_compile_time_eval():
            return jnp.asarray(x, dtype)
    return jnp.asarray(x, dtype)


def inexact_asarray(x: Reals) -> Array:
    """`x` as a floating-point array; Python numbers and integers take JAX's default float dtype."""
    return asarray(x, common_dtype(x))


def is_interactive() -> bool:
    """Whether somebody sees a progress bar: in a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def is_concrete(x: object) -> bool:
    return not isinstance(x, Tracer)


def check(x: Array, allowed: Callable[[Any], Any], message: str) -> Array:
    """Returns `x` if `allowed(x)` holds everywhere.

    **Raises:** `ValueError` with `message` for concrete values; under `jit` the traced equivalent, `eqx.error_if`.
    """
    if is_concrete(x):
        if not bool(np.all(allowed(np.asarray(x)))):
            raise ValueError(message)
        return x
    return eqx.error_if(x, ~jnp.all(allowed(x)), message)


def integer(name: str, value: int, least: int = 1) -> int:
    """**Raises:** `ValueError` if `value` is not an integer, or below `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        kind = {0: "nonnegative", 1: "positive"}[least]
        raise ValueError(f"`{name}` must be a {kind} integer, got {value!r}.")
    return int(value)


def is_finite(x: Array | np.ndarray) -> Array | np.ndarray:
    """For `check`: NumPy's answer while tracing, where JAX's would be traced."""
    return np.isfinite(x) if isinstance(x, np.ndarray) else jnp.isfinite(x)


def log_max(dtype: DTypeLike) -> float:
    """Logarithm of the largest float. Squares of complex numbers' parts must fit: use up to half of it."""
    return math.log(float(jnp.finfo(dtype).max))


def complex_dtype(dtype: DTypeLike) -> jnp.dtype:
    return jnp.result_type(dtype, jnp.complex64)


def scaled(factor: Array, z: Array) -> Array:
    """`factor * z` for a real factor, a third of the operations of a complex one."""
    factor = jnp.broadcast_to(factor, jnp.broadcast_shapes(jnp.shape(factor), z.shape))
    return jax.lax.complex(factor * z.real, factor * z.imag)


@jax.custom_jvp
def reciprocal(z: Array) -> Array:
    """`1/z` for complex `z` without the overflow guards of a general division, which cost more than all the rest."""
    x, y = z.real, z.imag
    scale = 1 / (x * x + y * y)
    return jax.lax.complex(x * scale, -y * scale)


@reciprocal.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverse = reciprocal(*primals)
    return inverse, -inverse * inverse * tangents[0]


def squared(z: Array) -> Array:
    """`|z|^2`."""
    return jnp.square(z.real) + jnp.square(z.imag)


def x_log_x(x: Array) -> Array:
    """`x log x` for `x >= 0`; a rounding counts as 0, and stays there."""
    info = jnp.finfo(x.dtype)
    there = x > 64 * info.eps
    constant = jax.lax.stop_gradient(jnp.log(jnp.maximum(x, info.tiny)))
    return jnp.maximum(x, 0) * jnp.where(there, jnp.log(jnp.where(there, x, 1)), constant)


def magnitude(z: Array) -> Array:
    """`|z|`, without the overflow guards of `jnp.abs`."""
    return jnp.sqrt(squared(z))


def exponential(z: Array) -> Array:
    """`exp z`; real where `z` is."""
    size = jnp.exp(z.real)
    return jax.lax.complex(size * jnp.cos(z.imag), size * jnp.sin(z.imag))


def logarithm(z: Array) -> Array:
    """The principal `log z`."""
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
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, one), (dx, _) = primals, tangents
    return log_one_plus(x, one), dx * reciprocal(one)


@jax.custom_jvp
def _log_with_argument(z: Array, argument: Array) -> Array:
    return jax.lax.complex(0.5 * jnp.log(squared(z)), argument)


@_log_with_argument.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (z, argument), (dz, _) = primals, tangents
    return _log_with_argument(z, argument), dz * reciprocal(z)
