"""Arrays: their dtypes, and whether they are known or traced."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Key, UInt32

Reals = ArrayLike | Sequence[float]

Keys = Key[Array, "..."] | UInt32[Array, "... 2"]  # of any shape, new or old

# What is known of networks stays with NumPy, so that nothing is compiled for it; to type checkers it is an array too.
if TYPE_CHECKING:
    HostArray = Array
else:
    HostArray = Array | np.ndarray


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


def is_staged() -> bool:
    """Whether a program is traced, so that operations on what is known do not run, but become part of it."""
    return not is_concrete(jax.lax.stop_gradient(_ZERO))


_ZERO = np.zeros(())


def at_once(method: Callable[..., Any]) -> Callable[..., Any]:
    """Evaluates `method` of what is known when it is called, whatever is traced around it."""

    @functools.wraps(method)
    def wrapped(*args: Any) -> Any:
        if not is_staged() or not are_concrete(args):
            return method(*args)
        with jax.ensure_compile_time_eval():
            return method(*args)

    return wrapped


def asarray(x: ArrayLike | Sequence[Any], dtype: DTypeLike) -> Array:
    """`jnp.asarray`, but what is known stays so while something else is traced: it can be checked at once."""
    if are_concrete(x):
        with jax.ensure_compile_time_eval():
            return jnp.asarray(x, dtype)
    return jnp.asarray(x, dtype)


def inexact_asarray(x: Reals) -> Array:
    """`x` as a floating-point array; Python numbers and integers take JAX's default float dtype."""
    return asarray(x, common_dtype(x))


def is_concrete(x: object) -> bool:
    return not isinstance(x, Tracer)
