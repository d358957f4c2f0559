"""Programs that are compiled sooner."""

import functools
from collections.abc import Callable
from typing import Any, cast, TypeVar

import jax

from .arrays import are_concrete, is_staged

Function = TypeVar("Function", bound=Callable[..., Any])

# XLA's emitters of fused loops for CPUs take two fifths of its time. Only the search for roots runs faster with them.
_SOONER = {"xla_cpu_use_fusion_emitters": False}


def quickly(jit: Callable[..., Any]) -> Callable[[Function], Function]:
    """`jit` in three fifths of the time, where the function becomes a program of its own: JAX takes options for no
    other. What is traced goes into another program, or is differentiated, by `jit` as it is.
    """

    def compiled(fun: Function) -> Function:
        part = jit(fun)

        @functools.cache
        def whole() -> Callable[..., Any]:
            return jit(fun, compiler_options=_options())

        @functools.wraps(fun)
        def called(*args: Any, **kwargs: Any) -> Any:
            is_part = is_staged() or not are_concrete(fun, args, kwargs)
            return (part if is_part else whole())(*args, **kwargs)

        return cast(Function, called)

    return compiled


@functools.cache
def _options() -> dict[str, Any] | None:
    """None where XLA knows no such option any more."""
    try:
        jax.jit(lambda: 0, compiler_options=_SOONER).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return _SOONER
