"""Programs that are compiled sooner."""

import functools
import math
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

# Calls until a program is optimised. Before, it takes two to three times as long.
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

    Its derivatives are such programs, too. Where a program is traced around it, the function is a part of that, by
    `jit` as it is.
    """

    def compiled(fun: Function) -> Function:
        program = _Program(fun, jit, effort, fused)

        @functools.wraps(fun)
        def called(*args: Any, **kwargs: Any) -> Any:
            try:
                if is_staged() or are_concrete(fun, args, kwargs):
                    return program(*args, **kwargs)
                if _is_differentiated(fun, args, kwargs):
                    return _derivable(fun, args, kwargs)
                return program.part(*args, **kwargs)
            # The function has closed over what is differentiated.
            except jax.errors.UnexpectedTracerError:
                return program.part(*args, **kwargs)
            except ValueError as error:
                if "compiler_options" not in str(error):
                    raise
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
        return self._jit(self._fun, compiler_options=_AT_FIRST) if _has_options() else self.part

    @functools.cached_property
    def _later(self) -> Callable[..., Any]:
        if self._fused or not _has_options():
            return self.part
        return self._jit(self._fun, compiler_options=_LATER)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, kwargs))
        if is_staged() or not are_concrete(self._fun, leaves):
            return self.part(*args, **kwargs)
        call = structure, *map(_kind, leaves)
        self._efforts[call] = self._efforts.get(call, 0) + self._effort(*args, **kwargs)
        whole = self._later if self._efforts[call] > _TRIAL else self._at_first
        return whole(*args, **kwargs)


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
        try:
            return _derivable(fun, args, {})
        # An argument has closed over what is differentiated.
        except jax.errors.UnexpectedTracerError:
            return fun(*args)
        except ValueError as error:
            if "compiler_options" not in str(error):
                raise
            return fun(*args)

    return cast(Function, called)


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
        out, change, rest = moved(moving, fixed, tangents)
        return eqx.combine(out, rest), change
    out, pullback, rest = _forward(moving, fixed)
    if not are_concrete(out, pullback):  # the function has closed over what is differentiated
        out, change, rest = _moved(moving, fixed, tangents)
        return eqx.combine(out, rest), change
    given, structure = eqx.partition((moving, fixed, pullback), eqx.is_array)

    def push(given: Any, tangents: Any) -> Any:
        moving, fixed, _ = eqx.combine(given, structure)
        return _push(moving, fixed, tangents)[1]

    def pull(given: Any, cotangents: Any) -> Any:
        return _pull(eqx.combine(given, structure)[2], cotangents)

    return eqx.combine(out, rest), linear(push, pull, given, tangents, out)


@_Program
def _evaluated(fun: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    return fun(*args, **kwargs)


def _read(moving: Any, fixed: Any) -> tuple[Any, Any]:
    """What a function gives: what has derivatives, and the rest."""
    fun, args, kwargs = eqx.combine(moving, fixed)
    return eqx.partition(fun(*args, **kwargs), eqx.is_inexact_array)


def _moved(moving: Any, fixed: Any, tangents: Any) -> tuple[Any, Any, Any]:
    """What has derivatives, by how much it moves, and the rest."""
    return jax.jvp(lambda moving: _read(moving, fixed), (moving,), (tangents,), has_aux=True)


@_Program
def _forward(moving: Any, fixed: Any) -> Any:
    return eqx.filter_vjp(lambda moving: _read(moving, fixed), moving, has_aux=True)


@_Program
def _push(moving: Any, fixed: Any, tangents: Any) -> Any:
    return _moved(moving, fixed, tangents)


@_Program
def _pull(pullback: Callable[[Any], Any], cotangents: Any) -> Any:
    return pullback(cotangents)[0]
