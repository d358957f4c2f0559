"""Programs that are compiled sooner."""

import functools
import math
import os
from collections.abc import Callable
from typing import Any, cast, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .arrays import are_concrete, frozen, is_staged
from .linear import linear

Function = TypeVar("Function", bound=Callable[..., Any])

# Options of XLA on CPUs. Its emitters of fused loops take two fifths of its time, and the higher levels of optimisation
# a third of the rest, and programs are hardly faster for it.
_AT_FIRST = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 0}
_LATER = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}

# Calls until a program is optimised. Before, it takes up to three times as long.
_TRIAL = 32


def little(*args: Any, **kwargs: Any) -> float:
    """The effort of a call that is soon done."""
    return 1


def much(*args: Any, **kwargs: Any) -> float:
    """The effort of a call that takes longer than to optimise its program."""
    return math.inf


def quickly(
    jit: Callable[..., Any], effort: Callable[..., float] = little, fused: bool = False
) -> Callable[[Function], Function]:
    """`jit`, but on CPUs in a third of the time, where the function becomes a program of its own: JAX takes options for
    no other. A program is not optimised before it has been called often: as soon as the `effort` of its calls is that
    of many. If it is `fused`, that is with XLA's emitters of fused loops, which pay for few.

    What `XLA_FLAGS` say stays as it is. Derivatives are such programs, too. Where a program is traced around it, the
    function is a part of that, by `jit` as it is.
    """

    def compiled(fun: Function) -> Function:
        program = _Program(fun, jit, effort, fused)

        @functools.wraps(fun)
        def called(*args: Any, **kwargs: Any) -> Any:
            if is_staged():
                return program.part(*args, **kwargs)
            if are_concrete(fun, args, kwargs):
                return _unless_closed_over(program.whole, program.part, *args, **kwargs)
            if _is_differentiated(fun, args, kwargs):
                return _unless_closed_over(_derivatives(fun), program.part, *args, **kwargs)
            return program.part(*args, **kwargs)

        return cast(Function, called)

    return compiled


class _Program:
    """A function that is a program of its own where all is known, and else a part of what is traced."""

    def __init__(
        self,
        fun: Callable[..., Any],
        jit: Callable[..., Any] = eqx.filter_jit,
        effort: Callable[..., float] = little,
        fused: bool = False,
    ):
        self._fun, self._jit, self._effort, self._fused = fun, jit, effort, fused
        self._efforts: dict[Any, float] = {}
        self.part = jit(fun)

    @functools.cached_property
    def _at_first(self) -> Callable[..., Any]:
        return self._with(_AT_FIRST)

    @functools.cached_property
    def _later(self) -> Callable[..., Any]:
        return self.part if self._fused else self._with(_LATER)

    def _with(self, options: dict[str, Any]) -> Callable[..., Any]:
        told = os.environ.get("XLA_FLAGS", "")
        options = {name: value for name, value in options.items() if name not in told}
        return self._jit(self._fun, compiler_options=options) if options and _has_options() else self.part

    def whole(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, kwargs))
        call = structure, *map(_kind, leaves)
        self._efforts[call] = self._efforts.get(call, 0) + self._effort(*args, **kwargs)
        program = self._later if self._efforts[call] > _TRIAL else self._at_first
        return program(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        whole = not is_staged() and are_concrete(self._fun, args, kwargs)
        return (self.whole if whole else self.part)(*args, **kwargs)


def _kind(leaf: Any) -> Any:
    """What calls of a program have in common of an argument."""
    if isinstance(leaf, jax.Array | np.ndarray):
        return leaf.shape, leaf.dtype
    return leaf if callable(leaf) else type(leaf)


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


def _is_differentiated(*args: Any) -> bool:
    """Whether what is traced of them is known but for its derivatives: nothing is batched."""
    return are_concrete(frozen(eqx.filter(args, eqx.is_inexact_array)))


def with_gradient(fun: Function) -> Function:
    """`fun`, of which value and derivatives are a program of their own where it is differentiated and no program is
    traced; elsewhere what it calls is compiled by itself.
    """

    @functools.wraps(fun)
    def called(*args: Any) -> Any:
        if is_staged() or are_concrete(args) or not _is_differentiated(args):
            return fun(*args)
        return _unless_closed_over(_derivatives(fun), fun, *args)

    return cast(Function, called)


def _unless_closed_over(whole: Callable[..., Any], part: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`whole` of the arguments, or `part` where the function has closed over what is differentiated."""
    try:
        return whole(*args, **kwargs)
    except jax.errors.UnexpectedTracerError:
        return part(*args, **kwargs)
    except ValueError as error:
        if "compiler_options" not in str(error):
            raise
        return part(*args, **kwargs)


def _derivatives(fun: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        out, rest = _derivable(fun, args, kwargs)
        return eqx.combine(out, rest.arrays, rest.others)

    return called


@eqx.filter_custom_jvp
def _derivable(fun: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """`fun(*args, **kwargs)`, of which derivatives are programs. JAX would make those of a program parts of others,
    without options.
    """
    return _evaluated(fun, args, kwargs)


@_derivable.def_jvp
def _(primals: Any, tangents: Any) -> tuple[Any, Any]:
    moves = jax.tree.map(lambda x, t: t is not None, primals, tangents, is_leaf=lambda x: x is None)
    moving, fixed = eqx.partition(primals, moves)
    moving = jax.tree.map(jnp.asarray, moving)  # numbers are no arrays, of which there would be no derivatives
    if not are_concrete(primals) or are_concrete(tangents):
        # Of what is batched or differentiated further, too; there it is a part of that.
        moved = _push if are_concrete(primals) else _moved
        return moved(moving, fixed, tangents)
    out, pullback, rest = _forward(moving, fixed)
    if not are_concrete(out, pullback):  # the function has closed over what is differentiated
        return _moved(moving, fixed, tangents)
    given, structure = eqx.partition((moving, fixed, pullback), eqx.is_array)

    def push(given: Any, tangents: Any) -> Any:
        moving, fixed, _ = eqx.combine(given, structure)
        return _push(moving, fixed, tangents)[1][0]

    def pull(given: Any, cotangents: Any) -> Any:
        return _pull(eqx.combine(given, structure)[2], cotangents)

    return (out, rest), (linear(push, pull, given, tangents, out), rest.at_rest())


class _Rest(eqx.Module):
    """What a function gives besides what has derivatives."""

    arrays: Any
    others: Any = eqx.field(static=True)

    def at_rest(self) -> "_Rest":
        """How it moves."""
        return jax.tree.map(lambda _: None, self)


def _in_parts(fun: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, _Rest]:
    """What a function gives: what has derivatives, and the rest."""
    out, rest = eqx.partition(fun(*args, **kwargs), eqx.is_inexact_array)
    return out, _Rest(*eqx.partition(rest, lambda x: isinstance(x, jax.Array | np.ndarray)))


_evaluated = _Program(_in_parts)


def _read(moving: Any, fixed: Any) -> tuple[Any, _Rest]:
    return _in_parts(*eqx.combine(moving, fixed))


def _moved(moving: Any, fixed: Any, tangents: Any) -> tuple[Any, Any]:
    """What a function gives, and by how much that moves."""
    out, change, rest = jax.jvp(lambda moving: _read(moving, fixed), (moving,), (tangents,), has_aux=True)
    return (out, rest), (change, rest.at_rest())


@_Program
def _forward(moving: Any, fixed: Any) -> Any:
    return eqx.filter_vjp(lambda moving: _read(moving, fixed), moving, has_aux=True)


_push = _Program(_moved)


@_Program
def _pull(pullback: Callable[[Any], Any], cotangents: Any) -> Any:
    return pullback(cotangents)[0]
