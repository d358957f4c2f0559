"""Functions of other libraries as activations, and back."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..activations._base import AbstractActivation
from ..activations._from_function import FromFunction
from ..activations._names import BY_NAME
from ..activations._piecewise import CELU, ELU
from ..activations._smooth import GELU, GELUTanh
from ..activations._two_slopes import LeakyReLU, Linear

Function = Callable[[Array], Array]


# The first of a kind is what it becomes in a model.
FUNCTIONS: tuple[tuple[str, Function], ...] = (
    ("linear", jax.nn.identity),
    ("tanh", jnp.tanh),
    ("tanh", jax.lax.tanh),
    ("relu", jax.nn.relu),
    ("erf", jax.scipy.special.erf),
    ("erf", jax.lax.erf),
    ("sigmoid", jax.nn.sigmoid),
    ("sigmoid", jax.lax.logistic),
    ("silu", jax.nn.silu),
    ("softplus", jax.nn.softplus),
    ("gelu_tanh", jax.nn.gelu),
    ("mish", jax.nn.mish),
    ("squareplus", jax.nn.squareplus),
    ("log_sigmoid", jax.nn.log_sigmoid),
    ("leaky_relu", jax.nn.leaky_relu),
    ("elu", jax.nn.elu),
    ("selu", jax.nn.selu),
    ("celu", jax.nn.celu),
    ("softsign", jax.nn.soft_sign),
    ("sin", jnp.sin),
    ("sin", jax.lax.sin),
    ("hard_tanh", jax.nn.hard_tanh),
    ("relu6", jax.nn.relu6),
    ("hard_sigmoid", jax.nn.hard_sigmoid),
    ("hard_silu", jax.nn.hard_silu),
    ("hard_silu", jax.nn.hard_swish),
    ("sparse_sigmoid", jax.nn.sparse_sigmoid),
    ("sparse_plus", jax.nn.sparse_plus),
)


def _apply(activation: Function, x: Array) -> Array:
    return activation(x)


def function_of(activation: AbstractActivation) -> Function:
    """Without arrays that an optimiser would take for parameters."""
    return next((fn for name, fn in FUNCTIONS if _same(activation, BY_NAME[name]())), partial(_apply, activation))


def _same(activation: AbstractActivation, other: AbstractActivation) -> bool:
    """Whether they are of one class, with the same parameters to the precision of the first."""
    pairs = zip(jax.tree.leaves(activation), jax.tree.leaves(other), strict=False)
    return type(activation) is type(other) and all(bool(x == y.astype(x.dtype)) for x, y in pairs)


def activation_of(fn: Function) -> AbstractActivation:
    match fn:
        case AbstractActivation():
            return fn
        case eqx.nn.PReLU():
            return LeakyReLU(fn.negative_slope)
        case partial(func=func, args=(AbstractActivation() as activation,)) if func is _apply:
            return activation
        case partial(func=func, args=(), keywords=options):
            known = _with_options(func, options)
            if known is not None:
                return known
        case _:
            pass
    for name, function in FUNCTIONS:
        if fn is function:
            return BY_NAME[name]()
    has_arrays = any(eqx.is_array(x) for x in jax.tree.leaves(fn))
    static = (lambda x: fn(x)) if has_arrays else fn  # arrays have no hash
    activation, jaxpr = FromFunction(static), jax.make_jaxpr(static)(0.0).jaxpr
    return Linear() if jaxpr.outvars == jaxpr.invars else activation


def _with_options(function: Function, options: dict[str, Any]) -> AbstractActivation | None:
    """A function of `jax.nn` with arguments of its own, if that is known."""
    if function is jax.nn.gelu and set(options) <= {"approximate"}:
        return GELUTanh() if options.get("approximate", True) else GELU()
    kinds: dict[Function, tuple[type[AbstractActivation], str]] = {
        jax.nn.leaky_relu: (LeakyReLU, "negative_slope"),
        jax.nn.elu: (ELU, "alpha"),
        jax.nn.celu: (CELU, "alpha"),
    }
    kind, option = kinds.get(function, (None, ""))
    return kind(**options) if kind is not None and set(options) <= {option} else None
