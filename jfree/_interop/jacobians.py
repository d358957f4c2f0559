"""Jacobians of models of any library that JAX can trace, at one example."""

import functools
from typing import Any, TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .._finite.sampling import few_threads
from .._finite.singular_values import extremes_of, ExtremeSingularValues, Products
from .._networks.abstract import AbstractNetwork
from .._numerics.arrays import inexact_asarray
from .._numerics.checks import check, integer, is_finite, positive, scalar
from .._numerics.memory import check_memory
from .model import is_torch, Model
from .steps import Unreadable
from .torch import examples_of, parameters_of_torch

if TYPE_CHECKING:
    import torch


def extreme_singular_values(
    model: "Model | torch.nn.Module",
    x: "ArrayLike | torch.Tensor",
    num_steps: int = 256,
    tolerance: ArrayLike | None = None,
    key: PRNGKeyArray | None = None,
) -> ExtremeSingularValues:
    """The smallest and the largest singular value of the Jacobian of a model at one example, from products alone.

    Nothing of the size of the Jacobian `J` is formed. A step of Golub and Kahan's bidiagonalisation (1965) costs one
    JVP and one VJP of the model, linearised once, and keeps one vector of inputs and one of outputs. There are
    `min(N_in, N_out)` singular values; the zeros that `J^T J` or `J J^T` has beyond these do not count.

    Where `num_steps` is at least `min(N_in, N_out)`, the answer is complete, and errors are those of rounding.
    Otherwise the largest converges in tens of steps. The smallest takes some `sqrt((largest^2 - smallest^2) / gap)` of
    them, where `gap` is that of its square to the next one: few where singular values are near 1, and more than there
    are where they are dense at 0. What has not converged is NaN. Bounds are probabilistic: of what a random vector may
    have missed, but for one chance in a million (van Dorsselaer, Hochstenbach and van der Vorst 2001), and residuals.

    **Arguments:**

    - `model`: any differentiable function of one example, such as an Equinox module, a Flax NNX module, or
        `functools.partial(apply, parameters)`; or a PyTorch module, whose steps `jfree.from_torch` knows.
    - `x`: the example, of any shape that the model takes; its outputs may have any shape.
    - `num_steps`: at most; no more than `min(N_in, N_out)` are taken.
    - `tolerance`: the largest bound, relative to the value, of a value that is not NaN. By default `sqrt(eps)` of the
        dtype of `x`. Values that rounding cannot tell from 0 may have larger ones.
    - `key`: of `jax.random`, for the random vectors; by default always the same.

    **Returns:** `smallest` and `largest`, dimensionless, with their bounds, and `condition_number()`.

    **Raises:** `ValueError` naming the argument, if `model` is no function of `x` that returns one array of real
    numbers, `x` is not finite, real numbers, `num_steps` is not a positive integer, or `tolerance` is not positive;
    `MemoryError` if the vectors would not fit.
    """
    function, x = differentiable(model), example_of(model, x)
    x = check(x, is_finite, "`x` must be finite.")
    num_outputs = size_of_output(function, x)
    num_steps = min(integer("num_steps", num_steps), x.size, num_outputs)
    num_numbers = num_steps * (x.size + num_outputs + 4 * num_steps)
    check_memory("`num_steps`", num_numbers * x.dtype.itemsize)
    given = float(jnp.finfo(x.dtype).eps) ** 0.5 if tolerance is None else tolerance
    bound = scalar("tolerance", given, x.dtype, positive, "positive and finite")
    key = jax.random.key(0) if key is None else key
    return _extremes(function, x, key, num_steps, bound)


@eqx.filter_jit
def _extremes(function: Model, x: Array, key: PRNGKeyArray, num_steps: int, tolerance: Array) -> ExtremeSingularValues:
    return extremes_of(_products(function, x), key, num_steps, tolerance)


def singular_values_of_model(
    model: "Model | torch.nn.Module", x: "ArrayLike | torch.Tensor", batched: bool | None
) -> tuple[Float[Array, "examples values"], int, int]:
    """All singular values at every example, descending, and the numbers of inputs and outputs (host)."""
    function, x = differentiable(model), example_of(model, x)
    examples = _examples(function, check(x, is_finite, "`x` must be finite."), batched)
    sizes = examples[0].size, size_of_output(function, examples[0])
    # A Jacobian, its copies in the decomposition, and all identity vectors of its smaller side.
    num_numbers = 4 * sizes[0] * sizes[1] + 2 * min(sizes) ** 2
    check_memory("`x`, or the output of `model`,", num_numbers * x.dtype.itemsize)
    with few_threads(max(sizes)):
        return jax.block_until_ready(_singular_values(function, examples)), *sizes


@eqx.filter_jit
def _singular_values(function: Model, examples: Array) -> Float[Array, "examples values"]:
    """One example after the other: of many at once, all Jacobians would have to fit."""
    return jax.lax.map(lambda x: jnp.linalg.svd(_jacobian(_products(function, x).tall()), compute_uv=False), examples)


_AT_ONCE = 64  # directions at once that a model is differentiated in: more take memory, and are hardly faster


def _jacobian(matrix: Products) -> Float[Array, "N_in N_out"]:
    """Of a tall matrix the transpose, in forward or in reverse mode, whichever has fewer directions."""
    eye = jnp.eye(matrix.num_inputs, dtype=matrix.dtype)
    return jax.lax.map(matrix.forward, eye, batch_size=_AT_ONCE)


def _products(function: Model, x: Array) -> Products:
    """The Jacobian of a function of one example, linearised once, between flat vectors of the dtype of `x`."""
    arrays, rest = eqx.partition(function, eqx.is_array)

    def flat(x_flat: Array) -> Array:
        # Modules that count their calls, as dropout does, are new ones in every trace.
        return jnp.ravel(eqx.combine(arrays, rest)(x_flat.reshape(x.shape))).astype(x.dtype)

    outputs, push = jax.linearize(flat, x.ravel())
    pull = jax.linear_transpose(push, x.ravel())
    return Products(push, lambda u: pull(u)[0], x.size, outputs.size, x.dtype)


class _Applied(eqx.Module):
    """`functools.partial`, but arrays among the arguments are leaves, which programs are compiled for once."""

    function: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def __call__(self, x: Array) -> Any:
        return self.function(*self.arguments, x, **self.keywords)


def differentiable(model: Any) -> Model:
    """A model as a function of one example, and a pytree.

    **Raises:** `ValueError` if it is none.
    """
    if is_torch(model):
        leaves, rebuild, _ = parameters_of_torch(model)
        return _Applied(lambda leaves, x: rebuild(leaves)(x), (leaves,), {})
    if isinstance(model, AbstractNetwork) or not callable(model):
        raise ValueError(f"`model` must be a function of one example, got {type(model).__name__}.")
    if isinstance(model, functools.partial):
        return _Applied(model.func, model.args, model.keywords)
    return model


def example_of(model: Any, x: Any) -> Array:
    """**Raises:** `ValueError` if `x` is no array of real numbers."""
    try:
        x = examples_of(x) if is_torch(model) else x
        dtype = jnp.result_type(x)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`x` must be an array of real numbers, got {type(x).__name__}.") from error
    if not jnp.issubdtype(dtype, jnp.floating) and not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"`x` must be an array of real numbers, got {dtype}.")
    return inexact_asarray(x)


def size_of_output(function: Model, x: Array) -> int:
    """**Raises:** `ValueError` if the function doesn't take `x`, or returns no array of real numbers."""
    try:
        output = _shape_of_output(function, x)
    except Unreadable as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # whatever the model raises for an example of another shape
        raise ValueError(f"`model` must take `x`, of shape {x.shape}; it raised: {error}") from error
    if not isinstance(output, jax.ShapeDtypeStruct) or not jnp.issubdtype(output.dtype, jnp.floating):
        raise ValueError(f"`model` must return one array of real numbers, got {output}.")
    if not x.size * output.size:
        raise ValueError(f"`x` and what `model` returns must have entries, got shapes {x.shape} and {output.shape}.")
    return output.size


def _shape_of_output(function: Model, x: Array) -> Any:
    return eqx.filter_eval_shape(function, jax.ShapeDtypeStruct(x.shape, x.dtype))


def _examples(function: Model, x: Array, batched: bool | None) -> Array:
    """Examples along a first axis, each as the model takes it.

    **Raises:** `ValueError` if the model takes neither `x` nor parts of it, or both, and `batched` does not tell.
    """
    if batched is False:
        return x[None]
    several = [x, x[:, None]] if x.ndim and x.shape[0] else []
    found = next((examples for examples in several if _takes(function, examples[0])), None)
    if batched and found is None:
        raise ValueError(f"`model` must take one of several examples `x`, of shape {x.shape}, if they are `batched`.")
    whole = not batched and _takes(function, x)
    if found is None or (whole and (x.ndim == 1 or x.shape[0] == 1)):
        return x[None]
    if whole:
        raise ValueError(
            f"`x`, of shape {x.shape}, may be one example or several, as `model` takes both: set `batched` to tell."
        )
    return found


def _takes(function: Model, x: Array) -> bool:
    try:
        _shape_of_output(function, x)
    except Unreadable:
        raise
    except Exception:  # whatever the model raises for an example of another shape
        return False
    return True
