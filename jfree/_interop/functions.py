"""Functions of other libraries as activations, and back."""

import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..activations._base import AbstractActivation
from ..activations._from_function import FromFunction
from ..activations._linear_pieces import LeakyReLU, Linear
from ..activations._names import BY_NAME
from ..activations._periodic import Sine
from ..activations._piecewise import ELU
from ..activations._smooth import GELU, GELUTanh
from ..activations._stretched import CELU, Swish

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


# Where functions are compared, and by how much they may differ there, next to their size.
_COMPARED = np.concatenate([np.linspace(-8, 8, 321), [-30, -20, -12, 12, 20, 30]])
_SAME = 1e-5


def known_function(fn: Function, named: bool = False) -> AbstractActivation | None:
    """The activation whose values a function of every entry has, by name or up to a parameter; any other becomes a
    `FromFunction` with the kinks that it has, None if `named`.
    """
    values = _values(fn)
    for name in BY_NAME:
        if _near(values, _values_of(name)):
            return BY_NAME[name]()
    for activation in _with_parameter(fn):
        if _near(values, _values(activation)):
            return activation
    return None if named else FromFunction(lambda x: fn(x), knots=_kinks(fn))


def _values(fn: Function) -> np.ndarray:
    return np.asarray(fn(jnp.asarray(_COMPARED, jnp.result_type(float))), float)


@functools.cache
def _values_of(name: str) -> np.ndarray:
    return _values(BY_NAME[name]())


def _near(values: np.ndarray, others: np.ndarray) -> bool:
    return bool(np.all(np.abs(values - others) <= _SAME * np.maximum(1, np.abs(others))))


def _with_parameter(fn: Function) -> Iterator[AbstractActivation]:
    """Candidates that agree with a function at as many points as they have parameters."""
    at = [-30.0, -1.0, 1.0, 2.0]
    left, low, high, twice = np.asarray(fn(jnp.asarray(at, jnp.result_type(float))), float).tolist()
    if abs(high - 1) < _SAME and low != 0:
        yield LeakyReLU(-low)
    if high > 0 and left < 0:
        yield ELU(-left / high, high)
    if abs(high - 1) < _SAME and left < 0:
        yield CELU(-left)
    if 0.5 < high < 1:
        yield Swish(float(np.log(high / (1 - high))))
    if abs(high) < 1 and high != 0 and abs(twice / high) < 2:
        yield Sine(float(np.arccos(twice / high / 2)))


# Kinks and jumps of a slope are looked for as far from 0 as this, at so many points.
_FARTHEST, _NUM_SEEN = 20.0, 4001

# A change of slope between two points is a kink if it is larger than this, and stays where they come together.
_KINK = 1e-3


def _kinks(fn: Function) -> tuple[float, ...]:
    """Where the slope jumps."""

    def slopes(x: np.ndarray) -> np.ndarray:
        return np.asarray(jax.vmap(jax.grad(lambda t: fn(t)))(jnp.asarray(x, jnp.result_type(float))), float)

    x = np.linspace(-_FARTHEST, _FARTHEST, _NUM_SEEN) + 1e-4  # no kink is likely to be one of these
    jumps = np.abs(np.diff(slopes(x)))
    around = np.minimum(np.append(jumps[1:], 0), np.append(0, jumps[:-1]))
    suspects = np.flatnonzero(jumps > np.maximum(_KINK, 4 * around))
    if not suspects.size:
        return ()
    low, high = x[suspects], x[suspects + 1]
    for _ in range(40):
        middle = 0.5 * (low + high)
        left = np.abs(slopes(middle) - slopes(low)) > np.abs(slopes(high) - slopes(middle))
        low, high = np.where(left, low, middle), np.where(left, middle, high)
    spread = 1e-6 * np.maximum(1, np.abs(low))
    stays = np.abs(slopes(high + spread) - slopes(low - spread)) > jumps[suspects] / 2
    return tuple(np.round(0.5 * (low + high), 6)[stays].tolist())


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
