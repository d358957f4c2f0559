"""Programs that are compiled sooner."""

import functools
import math
from collections.abc import Callable
from typing import Any, cast, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .arrays import are_concrete, is_staged

Function = TypeVar("Function", bound=Callable[..., Any])

# Options of XLA on CPUs. Its emitters of fused loops take two fifths of its time, and what it optimises on the lowest
# level does as much for a program as what it does on others.
_AT_FIRST = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 0}
_LATER = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}

# Calls until a program is optimised. Before, it takes two to three times as long.
_TRIAL = 32


def once(*args: Any, **kwargs: Any) -> float:
    """The effort of a call that is soon done."""
    return 1


def much(*args: Any, **kwargs: Any) -> float:
    """The effort of a call that takes longer than to optimise its program."""
    return math.inf


def quickly(
    jit: Callable[..., Any], effort: Callable[..., float] = once, fused: bool = False
) -> Callable[[Function], Function]:
    """`jit`, but on CPUs in a third of the time, where the function becomes a program of its own: JAX takes options for
    no other. A program is not optimised before it has been called often: as soon as the `effort` of its calls is that
    of many. If it is `fused`, that is with XLA's emitters of fused loops, which pay for few.

    What is traced goes into another program, or is differentiated, by `jit` as it is.
    """

    def compiled(fun: Function) -> Function:
        part = jit(fun)
        efforts: dict[Any, float] = {}

        @functools.cache
        def whole(optimised: bool) -> Callable[..., Any]:
            options = _AT_FIRST if not optimised else None if fused else _LATER
            return jit(fun, compiler_options=options) if options and _has_options() else part

        @functools.wraps(fun)
        def called(*args: Any, **kwargs: Any) -> Any:
            leaves, structure = jax.tree.flatten((args, kwargs))
            if is_staged() or not are_concrete(fun, leaves):
                return part(*args, **kwargs)
            program = structure, *map(_kind, leaves)
            efforts[program] = efforts.get(program, 0) + effort(*args, **kwargs)
            try:
                return whole(efforts[program] > _TRIAL)(*args, **kwargs)
            except ValueError as error:
                if "compiler_options" not in str(error):
                    raise
                return part(*args, **kwargs)  # the function has closed over what is differentiated

        return cast(Function, called)

    return compiled


def _kind(leaf: Any) -> Any:
    """What programs of an argument have in common."""
    return (leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array | np.ndarray) else type(leaf)


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
def _has_options() -> bool:
    """Not on accelerators, nor where XLA knows no such options any more."""
    if jax.default_backend() != "cpu":
        return False
    try:
        jax.jit(lambda: 0, compiler_options=_AT_FIRST).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
