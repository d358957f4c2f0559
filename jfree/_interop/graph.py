"""What a function does to its input, step by step, and which of its parameters each step reads."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun, JaxprEqn, Literal
from jaxtyping import Array

from .moves import bind, concatenated, fills, INDEXED, known, moved, view_of, VIEWS
from .source import place_in_source
from .steps import Constant, Step, Unreadable, Value

# Primitives that act entry by entry.
_ENTRYWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type cos cosh digamma "
    "div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p logistic lt max min "
    "mul ne neg nextafter not or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt square "
    "sub tan tanh xor".split()
)


# Primitives that call one program with their own arguments.
_CALLS = frozenset(
    "jit pjit closed_call core_call remat remat2 checkpoint custom_jvp_call custom_vjp_call "
    "custom_vjp_call_jaxpr".split()
)


# Those that may have another gradient than their values.
_OWN_GRADIENTS = ("custom_jvp_call", "custom_vjp_call")


def steps_of(closed: ClosedJaxpr, parameters: Sequence[Any], x: Any) -> tuple[Step, list[Value]]:
    """The input of a program of parameters and `x`, and its outputs."""
    offsets = np.cumsum([0, *(np.size(p) for p in parameters)])
    constants = [
        Constant(_plain(p), np.arange(start, start + np.size(p)).reshape(np.shape(p)))
        for p, start in zip(parameters, offsets[:-1], strict=True)
    ]
    source = Step("input", "the input", (), np.shape(x), x.dtype, "", lambda: x)
    outputs = _run(closed.jaxpr, [Constant(_plain(c)) for c in closed.consts], [*constants, source], _Call("", "", {}))
    return source, outputs


def _plain(value: Any) -> Any:
    """In memory of the host, but for keys of `jax.random`."""
    return value if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended) else np.asarray(value)


class _Call(NamedTuple):
    """The function that is called, and where; and all steps so far, of which none is taken twice."""

    name: str
    place: str
    taken: dict[Any, list[Step]]


def _at(equation: JaxprEqn, call: _Call) -> _Call:
    return call._replace(place=place_in_source(equation, call.name, call.place))


def _run(jaxpr: Jaxpr, constants: Sequence[Value], arguments: Sequence[Value], call: _Call) -> list[Value]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

    def read(var: Any) -> Value:
        return Constant(np.asarray(var.val)) if isinstance(var, Literal) else values[var]

    for equation in jaxpr.eqns:
        found = _equation(equation, [read(var) for var in equation.invars], _at(equation, call))
        values.update(zip(equation.outvars, found, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _equation(equation: JaxprEqn, arguments: list[Value], call: _Call) -> list[Value]:
    name, steps = equation.primitive.name, [a for a in arguments if isinstance(a, Step)]
    if name == "scan" and (steps or any(a.origin is not None for a in arguments if isinstance(a, Constant))):
        return _unrolled(equation.params, arguments, call._replace(name=""))
    inner = _inner(equation, arguments)
    if name in _OWN_GRADIENTS and steps:
        _check_gradient(equation, arguments, call)
    if inner is not None:
        call = call._replace(name=equation.params.get("name", ""))
        program, constants, given = inner
        return _run(program, [Constant(_plain(c)) for c in constants], given, call)
    if not steps:
        return _of_constants(equation, [a for a in arguments if isinstance(a, Constant)])
    if name == "convert_element_type" and all(
        jnp.issubdtype(dtype, jnp.floating) for dtype in (steps[0].dtype, equation.params["new_dtype"])
    ):
        return [steps[0]]
    return _as_moves(equation, arguments, call.place) or _as_step(equation, arguments, call)


def _as_moves(equation: JaxprEqn, arguments: list[Value], place: str) -> list[Value] | None:
    """The values, if they have the entries of one value in other places."""
    name, params, first = equation.primitive.name, equation.params, arguments[0]
    if name == "split" and isinstance(first, Step):
        ends = itertools.pairwise(np.cumsum([0, *params["sizes"]]))
        pieces = [np.arange(*own) for own in ends]
        return [moved(first, lambda x, own=own: np.take(x, own, params["axis"]), name, place) for own in pieces]
    if name == "concatenate":
        joined = concatenated(arguments, params["dimension"], place)
        return None if joined is None else [joined]
    rest = [a for a in arguments[1:] if isinstance(a, Constant)]
    known_moves = name in VIEWS or (name in INDEXED and not fills(equation, arguments))
    if isinstance(first, Step) and len(rest) == len(arguments) - 1 and known_moves:
        return [moved(first, view_of(equation, rest), name, place)]
    return None


def _as_step(equation: JaxprEqn, arguments: list[Value], call: _Call) -> list[Value]:
    name = equation.primitive.name
    apply = functools.partial(bind, equation)
    kind, place = _kind(name, equation.params, arguments), call.place
    key = name, str(equation.params), *map(_identity, arguments)
    if key in call.taken:
        return [*call.taken[key]]
    call.taken[key] = [
        Step(kind, name, tuple(arguments), *_described(var), place, apply, dict(equation.params))
        if len(equation.outvars) == 1
        else Step("mixing", name, tuple(arguments), *_described(var), place, lambda *x, k=k: apply(*x)[k])
        for k, var in enumerate(equation.outvars)
    ]
    return [*call.taken[key]]


# Where gradients are compared, and by how much they may differ for having been written otherwise.
_TRIED, _DIFFERENT = (-1.7, -0.6, 0.3, 1.1), 1e-3


def _check_gradient(equation: JaxprEqn, arguments: list[Value], call: _Call) -> None:
    """**Raises:** `Unreadable` if a function has a gradient of its own, which is not that of its values."""
    key, inner = ("gradient", str(equation)), _inner(equation, arguments)
    if key in call.taken or inner is None:
        return
    call.taken[key] = []
    variables = [var for var in equation.invars if not isinstance(var, Literal)]
    own = Jaxpr((), variables, equation.outvars, [equation], debug_info=inner[0].debug_info)
    moving = [k for k, a in enumerate(arguments) if isinstance(a, Step) and jnp.issubdtype(a.dtype, jnp.floating)]
    tried = [
        jnp.resize(jnp.asarray(_TRIED, a.dtype), a.shape) if isinstance(a, Step) else jnp.asarray(a.value)
        for a in arguments
    ]

    def gradients(program: ClosedJaxpr, named: Sequence[int]) -> list[Array]:
        def at(*given: Array) -> list[Array]:
            all_given = dict(enumerate(tried)) | dict(zip(moving, given, strict=True))
            outputs = jaxpr_as_fun(program)(*(all_given[k] for k in named))
            return [y for y in outputs if jnp.issubdtype(y.dtype, jnp.floating)]

        outputs, back = jax.vjp(at, *(tried[k] for k in moving))
        return list(back([jnp.ones_like(y) for y in outputs]))

    found = gradients(ClosedJaxpr(own, ()), [k for k, v in enumerate(equation.invars) if not isinstance(v, Literal)])
    values = gradients(ClosedJaxpr(*inner[:2]), range(len(tried)))
    if not all(np.allclose(x, y, _DIFFERENT, _DIFFERENT, equal_nan=True) for x, y in zip(found, values, strict=True)):
        raise Unreadable(
            f"`model`: `{equation.params.get('name') or equation.primitive.name}`{call.place} has a gradient of its "
            "own, as straight-through estimators do, so that the Jacobian is not that of the values."
        )


def _identity(argument: Value) -> Any:
    """What is equal for equal arguments."""
    if isinstance(argument, Step):
        return argument
    if argument.origin is not None:
        return argument.origin.tobytes(), argument.factor
    value = np.asarray(argument.value)
    return value.shape, value.dtype.name, value.tobytes()


def _described(var: Any) -> tuple[tuple[int, ...], Any]:
    return tuple(var.aval.shape), var.aval.dtype


def _kind(name: str, params: dict[str, Any], arguments: list[Value]) -> str:
    constant = [isinstance(a, Constant) for a in arguments]
    if name in _ENTRYWISE:
        return "entries"
    if name == "dot_general" and any(constant) and not any(map(len, params["dimension_numbers"][1])):
        return "dense"
    if name == "conv_general_dilated" and constant == [False, True]:
        return "convolution"
    return "mixing"


def _inner(equation: JaxprEqn, arguments: list[Value]) -> tuple[Jaxpr, Sequence[Any], list[Value]] | None:
    """The program that an equation calls, its constants, and its arguments."""
    name = equation.primitive.name
    if name == "cond" and isinstance(arguments[0], Constant):
        branch = equation.params["branches"][int(arguments[0].value)]
        return branch.jaxpr, branch.consts, arguments[1:]
    for value in equation.params.values() if name in _CALLS else ():
        if isinstance(value, ClosedJaxpr):
            return value.jaxpr, value.consts, arguments
        if isinstance(value, Jaxpr):
            return value, (), arguments
    return None


def _unrolled(params: dict[str, Any], arguments: list[Value], call: _Call) -> list[Value]:
    num_fixed, num_carried = params["num_consts"], params["num_carry"]
    closed = params["jaxpr"]
    fixed, carried = arguments[:num_fixed], arguments[num_fixed : num_fixed + num_carried]
    slices = arguments[num_fixed + num_carried :]
    constants = [Constant(_plain(c)) for c in closed.consts]
    stacked: list[list[Value]] = []
    turns = range(params["length"])
    for turn in reversed(turns) if params["reverse"] else turns:
        own = [_entry(value, turn, call.place) for value in slices]
        carried = _run(closed.jaxpr, constants, [*fixed, *carried, *own], call)
        carried, out = carried[:num_carried], carried[num_carried:]
        stacked.append(out)
    if params["reverse"]:
        stacked.reverse()
    return [*carried, *(_stacked(list(values)) for values in zip(*stacked, strict=True))]


def _entry(value: Value, k: int, place: str) -> Value:
    """Of an axis that a scan runs over."""
    return value.view(lambda x: x[k]) if isinstance(value, Constant) else moved(value, lambda x: x[k], "scan", place)


def _stacked(values: list[Value]) -> Value:
    steps = [value for value in values if isinstance(value, Step)]
    if not steps:
        return Constant(jnp.stack([jnp.asarray(value.value) for value in values if isinstance(value, Constant)]))
    shape = (len(values), *steps[0].shape)
    return Step("mixing", "scan", tuple(values), shape, steps[0].dtype, "", lambda *x: jnp.stack(x))


def _of_constants(equation: JaxprEqn, arguments: list[Constant]) -> list[Value]:
    name, first = equation.primitive.name, arguments[0] if arguments else None
    if first is not None and isinstance(first.value, np.ndarray):
        if name == "convert_element_type":
            return [Constant(first.value.astype(equation.params["new_dtype"]), first.origin, first.factor)]
        if name in VIEWS:
            return [first.view(view_of(equation, arguments[1:]))]
        if name in INDEXED and first.origin is not None:
            origin = view_of(equation, arguments[1:])(first.origin)
            value = np.asarray(bind(equation, *(a.value for a in arguments)))
            return [Constant(value, None if np.any(origin < 0) else origin, first.factor)]
        if name == "concatenate" and all(a.origin is not None and a.factor == first.factor for a in arguments):
            axis = equation.params["dimension"]
            return [
                Constant(
                    np.concatenate([a.value for a in arguments], axis),
                    np.concatenate([known(a.origin) for a in arguments], axis),
                    first.factor,
                )
            ]
    if not equation.outvars:
        return []
    found = bind(equation, *(a.value for a in arguments))
    values = [_plain(x) for x in (found if equation.primitive.multiple_results else [found])]
    return [Constant(values[0], *_times(name, arguments)), *map(Constant, values[1:])]


def _times(name: str, arguments: list[Constant]) -> tuple[np.ndarray | None, float]:
    """Of parameters that are multiplied by a number: where they stand, and by what."""
    if name == "neg":
        return arguments[0].origin, -arguments[0].factor
    if name not in ("mul", "div") or np.ndim(arguments[0].value) < np.ndim(arguments[1].value):
        arguments = arguments[::-1] if name == "mul" else []
    if len(arguments) != 2 or arguments[0].origin is None or np.ndim(arguments[0].value) == 0:
        return None, 1.0
    number = arguments[1].number
    if number is None or number == 0:
        return None, 1.0
    return arguments[0].origin, arguments[0].factor * (number if name == "mul" else 1 / number)
