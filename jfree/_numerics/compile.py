"""Programs that are compiled sooner."""

import functools
from collections.abc import Callable
from typing import Any, cast, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .arrays import are_concrete, is_staged

Function = TypeVar("Function", bound=Callable[..., Any])

# XLA's emitters of fused loops take two fifths of its time on CPUs. Only the search for roots runs faster with them.
_SOONER = {"xla_cpu_use_fusion_emitters": False}


def quickly(jit: Callable[..., Any]) -> Callable[[Function], Function]:
    """`jit` in three fifths of the time on CPUs, where the function becomes a program of its own: JAX takes options for
    no other. What is traced goes into another program, or is differentiated, by `jit` as it is.
    """

    def compiled(fun: Function) -> Function:
        part = jit(fun)

        @functools.cache
        def whole() -> Callable[..., Any]:
            return jit(fun, compiler_options=_options())

        @functools.wraps(fun)
        def called(*args: Any, **kwargs: Any) -> Any:
            if is_staged() or not are_concrete(fun, args, kwargs):
                return part(*args, **kwargs)
            try:
                return whole()(*args, **kwargs)
            except ValueError as error:
                if "compiler_options" not in str(error):
                    raise
                return part(*args, **kwargs)  # the function has closed over what is differentiated

        return cast(Function, called)

    return compiled


def with_gradient(scalar: Callable[..., Array]) -> Callable[..., Array]:
    """`scalar`, of which value and gradient are one program where it is differentiated and no program is traced. JAX
    would compile several, without options. The gradient is that of all arrays, in forward mode, too.
    """
    value_and_grad = quickly(eqx.filter_jit)(eqx.filter_value_and_grad(lambda args: scalar(*args)))

    @eqx.filter_custom_jvp
    def differentiated(*args: Any) -> Array:
        return scalar(*args)

    @differentiated.def_jvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
        each = functools.partial(jax.tree.map, is_leaf=lambda x: x is None)
        # Numbers are no arrays, of which there would be no gradient.
        primals = each(lambda primal, tangent: primal if tangent is None else jnp.asarray(primal), primals, tangents)
        value, slope = value_and_grad(primals)
        parts = each(lambda slope, tangent: None if tangent is None else jnp.sum(slope * tangent), slope, tangents)
        return value, sum(jax.tree.leaves(parts), jnp.zeros_like(value)).astype(value.dtype)

    @functools.wraps(scalar)
    def called(*args: Any) -> Array:
        if is_staged() or are_concrete(args):
            return scalar(*args)
        try:
            return differentiated(*args)
        except jax.errors.UnexpectedTracerError:
            return scalar(*args)  # an argument has closed over what is differentiated

    return called


@functools.cache
def _options() -> dict[str, Any] | None:
    """None where XLA knows no such option any more."""
    try:
        jax.jit(lambda: 0, compiler_options=_SOONER).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return _SOONER
