"""What arguments are allowed to be."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike

from .arrays import asarray, is_concrete, Reals


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
        kind = {0: "a nonnegative integer", 1: "a positive integer"}.get(least, f"an integer, {least} at least")
        raise ValueError(f"`{name}` must be {kind}, got {value!r}.")
    return int(value)


def is_finite(x: Array | np.ndarray) -> ArrayLike:
    """For `check`: NumPy's answer while tracing, where JAX's would be traced."""
    return np.isfinite(x) if isinstance(x, np.ndarray) else jnp.isfinite(x)


def positive(x: Array | np.ndarray) -> ArrayLike:
    return (x > 0) & (x < np.inf)


def nonnegative(x: Array | np.ndarray) -> ArrayLike:
    return (x >= 0) & (x < np.inf)


def cast(tree: Any, dtype: DTypeLike):
    """Arrays that have the dtype stay the objects they are, and so does what is shared."""
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) and x.dtype != dtype else x, tree)


def several(name: str, values: Any, parse: Callable[[Any], Any], number: int, unit: str) -> tuple[Any, ...]:
    """Parses a sequence of one value per layer, or block."""
    if not isinstance(values, Sequence | np.ndarray):
        hint = " `jfree.activations.FromFunction` makes an activation of a function." if callable(values) else ""
        raise ValueError(f"`{name}` must be one, or a sequence with one per {unit}, got {values!r}.{hint}")
    if len(values) != number:
        raise ValueError(f"`{name}` must be one, or one per {unit}: {number}, got {len(values)}.")
    return tuple(parse(value) for value in values)


def floats(name: str, value: Reals, dtype: DTypeLike) -> Array:
    try:
        if jnp.issubdtype(getattr(value, "dtype", dtype), jnp.complexfloating):
            raise TypeError
        return asarray(value, dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"`{name}` must be numbers, got {value!r}.") from error


def scalar(name: str, value: ArrayLike, dtype: DTypeLike, allowed: Callable[[Any], Any], adjective: str) -> Array:
    array = floats(name, value, dtype)
    if array.ndim:
        raise ValueError(f"`{name}` must be a scalar, got shape {array.shape}.")
    return check(array, allowed, f"`{name}` must be {adjective}.")


def square_of_input(q0: ArrayLike, dtype: DTypeLike) -> Array:
    return scalar("q0", q0, dtype, positive, "positive and finite")


def mean_of_input(mean0: ArrayLike, q0: Array) -> Array:
    mean0 = scalar("mean0", mean0, q0.dtype, is_finite, "finite")
    check(
        jnp.square(mean0) / q0,
        lambda share: share <= 1 + 1e-6,
        "`mean0` must be at most sqrt(q0): the mean square of the input is at least its squared mean.",
    )
    return mean0


def per_layer(name: str, value: Array, depth: int, allowed: Callable[[Any], Any], adjective: str) -> Array:
    if value.shape not in ((), (depth,)):
        raise ValueError(f"`{name}` must be a scalar or of shape ({depth},), one per layer, got {value.shape}.")
    return check(value, allowed, f"`{name}` must be {adjective} and finite.")
