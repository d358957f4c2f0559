"""What a function does to its input, step by step, and which of its parameters each step reads."""

import dataclasses
import functools
import itertools
import math
import os
import sysconfig
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun, JaxprEqn, Literal
from jaxtyping import Array

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


class Unreadable(ValueError):
    """What a model does that cannot be read."""


class Constant(NamedTuple):
    """What does not depend on the input.

    - `value`: an array.
    - `origin`: if it is a view of parameters, where each of its entries stands among all entries of all of them.
    - `factor`: what these are multiplied by.
    """

    value: Any
    origin: np.ndarray | None = None
    factor: float = 1.0

    @property
    def number(self) -> float | None:
        """The one value that all entries have, if they have."""
        if np.ndim(self.value) and np.size(self.value) == 0:
            return None
        values = np.asarray(self.value).ravel()
        return float(values[0]) if np.all(values == values[0]) else None

    def scaled(self, factor: float) -> "Constant":
        return Constant(np.asarray(self.value) * factor, self.origin, self.factor * factor)

    def view(self, change: Callable[[np.ndarray], np.ndarray]) -> "Constant":
        """The same entries, moved."""
        return Constant(change(self.value), None if self.origin is None else change(self.origin), self.factor)


@dataclasses.dataclass(eq=False)
class Step:
    """One step from values that depend on the input to another such value.

    - `kind`: `input`; `dense`, weights that act on some axes; `convolution`; `move`, entries in other places;
        `entries`, a function of every entry; `mixing`, anything else.
    - `name`: of the primitive.
    - `arguments`: steps and constants, in the order that the primitive takes them in.
    - `shape`, `dtype`: of the value.
    - `index`: of a `move`, where each entry comes from, -1 for a zero.
    - `moves`: those of this value, of which none is made twice.
    """

    kind: str
    name: str
    arguments: tuple["Step | Constant", ...]
    shape: tuple[int, ...]
    dtype: Any
    place: str
    apply: Callable[..., Any]
    params: dict[str, Any] = dataclasses.field(default_factory=dict)
    index: np.ndarray | None = None
    moves: dict[Any, "Step"] = dataclasses.field(default_factory=dict)

    @property
    def inputs(self) -> list["Step"]:
        return [argument for argument in self.arguments if isinstance(argument, Step)]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def value(self, inputs: Sequence[Any]) -> Any:
        """The step's value, given those of its inputs."""
        given = iter(inputs)
        return self.apply(*(next(given) if isinstance(a, Step) else a.value for a in self.arguments))

    def __str__(self) -> str:
        return f"`{self.name}`{self.place}"


Value = Step | Constant


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


def _run(jaxpr: Jaxpr, constants: Sequence[Value], arguments: Sequence[Value], call: _Call) -> list[Value]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

    def read(var: Any) -> Value:
        return Constant(np.asarray(var.val)) if isinstance(var, Literal) else known[var]

    for equation in jaxpr.eqns:
        found = _equation(equation, [read(var) for var in equation.invars], call._replace(place=_place(equation, call)))
        known.update(zip(equation.outvars, found, strict=True))
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
        return _run(inner[0], [Constant(_plain(c)) for c in inner[1]], arguments, call)
    if not steps:
        return _of_constants(equation, [a for a in arguments if isinstance(a, Constant)])
    if name == "convert_element_type" and all(
        jnp.issubdtype(dtype, jnp.floating) for dtype in (steps[0].dtype, equation.params["new_dtype"])
    ):
        return [steps[0]]
    if name == "split":
        cuts = np.cumsum([0, *equation.params["sizes"]])
        axis, (whole,) = equation.params["axis"], steps
        pieces = [np.arange(start, end) for start, end in itertools.pairwise(cuts)]
        return [moved(whole, lambda x, k=k: np.take(x, k, axis), name, call.place) for k in pieces]
    if name == "concatenate":
        joined = _concatenated(arguments, equation.params["dimension"], call.place)
        if joined is not None:
            return [joined]
    elif name in _VIEWS or (name in _INDEXED and not _fills(equation, arguments)):
        (whole,) = steps if steps[0] is arguments[0] and len(steps) == 1 else (None,)
        if whole is not None:
            rest = [a for a in arguments[1:] if isinstance(a, Constant)]
            return [moved(whole, _view(equation, rest), name, call.place)]
    apply = functools.partial(_bind, equation)
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
    key, inner = ("gradient", str(equation)), _inner(equation, [*arguments])
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
        def at(*moved: Array) -> list[Array]:
            given = dict(enumerate(tried)) | dict(zip(moving, moved, strict=True))
            outputs = jaxpr_as_fun(program)(*(given[k] for k in named))
            return [y for y in outputs if jnp.issubdtype(y.dtype, jnp.floating)]

        outputs, back = jax.vjp(at, *(tried[k] for k in moving))
        return list(back([jnp.ones_like(y) for y in outputs]))

    found = gradients(ClosedJaxpr(own, ()), [k for k, v in enumerate(equation.invars) if not isinstance(v, Literal)])
    values = gradients(ClosedJaxpr(*inner), range(len(tried)))
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


def _bind(equation: JaxprEqn, *arguments: Any) -> Any:
    """In one precision, as casts from one to another are no steps."""
    arrays = [jnp.asarray(x) for x in arguments]
    floating = [x for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]
    if len({x.dtype for x in floating}) > 1:
        dtype = jnp.result_type(*floating)
        arrays = [x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in arrays]
    return equation.primitive.bind(*arrays, **equation.params)


def _inner(equation: JaxprEqn, arguments: list[Value]) -> tuple[Jaxpr, Sequence[Any]] | None:
    """The program that an equation calls."""
    if equation.primitive.name in ("scan", "while"):
        return None
    if equation.primitive.name == "cond":
        which = arguments.pop(0)
        if not isinstance(which, Constant):
            arguments.insert(0, which)
            return None
        branch = equation.params["branches"][int(which.value)]
        return branch.jaxpr, branch.consts
    for value in equation.params.values() if equation.primitive.name in _CALLS else ():
        if isinstance(value, ClosedJaxpr):
            return value.jaxpr, value.consts
        if isinstance(value, Jaxpr):
            return value, ()
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
        if name in _VIEWS:
            return [first.view(_view(equation, arguments[1:]))]
        if name in _INDEXED and first.origin is not None:
            origin = _view(equation, arguments[1:])(first.origin)
            value = np.asarray(_bind(equation, *(a.value for a in arguments)))
            return [Constant(value, None if np.any(origin < 0) else origin, first.factor)]
        if name == "concatenate" and all(a.origin is not None and a.factor == first.factor for a in arguments):
            axis = equation.params["dimension"]
            return [
                Constant(
                    np.concatenate([a.value for a in arguments], axis),
                    np.concatenate([_known(a.origin) for a in arguments], axis),
                    first.factor,
                )
            ]
    if not equation.outvars:
        return []
    found = _bind(equation, *(a.value for a in arguments))
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


def _known(array: np.ndarray | None) -> np.ndarray:
    assert array is not None
    return array


# Where entries go, given the equation's parameters.
_VIEWS: dict[str, Callable[[np.ndarray, dict[str, Any]], np.ndarray]] = {
    "reshape": lambda x, p: x.reshape(p["new_sizes"]),
    "transpose": lambda x, p: np.transpose(x, p["permutation"]),
    "squeeze": lambda x, p: np.squeeze(x, p["dimensions"]),
    "expand_dims": lambda x, p: np.expand_dims(x, p["dimensions"]),
    "slice": lambda x, p: x[tuple(map(slice, p["start_indices"], p["limit_indices"], p["strides"] or [1] * x.ndim))],
    "rev": lambda x, p: np.flip(x, p["dimensions"]),
    "copy": lambda x, p: x,
    "copy_p": lambda x, p: x,
    "name": lambda x, p: x,
    "sharding_constraint": lambda x, p: x,
    "broadcast_in_dim": lambda x, p: _broadcast(x, p["shape"], p["broadcast_dimensions"]),
}

# Moves whose index JAX computes.
_INDEXED = frozenset(("gather", "dynamic_slice", "pad"))


def _broadcast(x: np.ndarray, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    ones = [1] * len(shape)
    for axis, size in zip(axes, x.shape, strict=True):
        ones[axis] = size
    return np.broadcast_to(x.reshape(ones), shape)


def _view(equation: JaxprEqn, rest: list[Constant]) -> Callable[[np.ndarray], np.ndarray]:
    name, params = equation.primitive.name, equation.params
    if name in _VIEWS:
        return lambda x: _VIEWS[name](x, params)
    if name == "pad":
        return lambda x: _padded(x, params["padding_config"])
    # Indices are shifted, so that 0 stands for what lies outside.
    return lambda x: np.asarray(_bind(equation, jnp.asarray(x) + 1, *(a.value for a in rest))) - 1


def _fills(equation: JaxprEqn, arguments: list[Value]) -> bool:
    """Whether an equation pads with anything but zeros on the outside."""
    if equation.primitive.name != "pad":
        return False
    filled, config = arguments[1], equation.params["padding_config"]
    zeros = isinstance(filled, Constant) and filled.number == 0
    return not zeros or any(inside or min(low, high) < 0 for low, high, inside in config)


def _padded(x: np.ndarray, config: Sequence[tuple[int, int, int]]) -> np.ndarray:
    return np.pad(x, [(low, high) for low, high, _ in config], constant_values=-1)


def moved(whole: Step, change: Callable[[np.ndarray], np.ndarray], name: str, place: str) -> Step:
    """The value of a step with its entries in other places."""
    index = change(np.arange(whole.size).reshape(whole.shape))
    if index.shape == whole.shape and np.array_equal(index.ravel(), np.arange(whole.size)):
        return whole
    if index.size < whole.size:
        part = _selected(whole, index)
        if part is not None:
            return part
    return _move(whole, index, name, place)


def _move(whole: Step, index: np.ndarray, name: str, place: str) -> Step:
    if whole.kind == "move":
        before = _known(whole.index).ravel()
        index = np.where(index < 0, -1, before[np.maximum(index, 0)])
        (whole,) = whole.inputs
        if index.shape == whole.shape and np.array_equal(index.ravel(), np.arange(whole.size)):
            return whole

    key = index.shape, index.tobytes()
    if key in whole.moves:
        return whole.moves[key]

    def apply(x: Any) -> Any:
        return np.where(index < 0, 0, np.ravel(x)[np.maximum(index, 0)])

    whole.moves[key] = Step("move", name, (whole,), index.shape, whole.dtype, place, apply, index=index)
    return whole.moves[key]


def _selected(whole: Step, index: np.ndarray) -> Step | None:
    """Some units of a dense layer, or of functions of their entries, as a layer of fewer units."""
    key = "selected", index.shape, index.tobytes()
    if key not in whole.moves:
        part = _selected_anew(whole, index)
        if part is None:
            return None
        whole.moves[key] = part
    return whole.moves[key]


def _selected_anew(whole: Step, index: np.ndarray) -> Step | None:
    if whole.kind == "entries":
        parts: list[Value] = []
        for argument in whole.arguments:
            if isinstance(argument, Step):
                part = argument if argument.shape == () else _selected(argument, index)
                if part is None:
                    return None
                parts.append(part)
            else:
                parts.append(argument.view(lambda x: np.broadcast_to(x, whole.shape).ravel()[index]))
        return dataclasses.replace(whole, arguments=tuple(parts), shape=index.shape)
    if whole.kind != "dense":
        return None
    layer = Dense.of(whole)
    units = layer.index.reshape(-1, layer.num_out)
    kept = np.isin(units, index.ravel())
    if not np.all(kept == kept[:1]) or np.count_nonzero(kept) != index.size:
        return None
    weight = layer.weight.view(lambda x: x[kept[0]])
    rows, order = units[:, kept[0]], np.empty(whole.size, int)
    order[rows.ravel()] = np.arange(rows.size)
    first: Value = layer.source if layer.rows is None else _move(layer.source, layer.rows, "reshape", "")
    some = Step(
        "dense",
        whole.name,
        (first, weight),
        rows.shape,
        whole.dtype,
        whole.place,
        lambda x, w: x @ w.T,
        {"dimension_numbers": (((1,), (1,)), ((), ()))},
    )
    return _move(some, order[index], "slice", whole.place)


@dataclasses.dataclass
class Dense:
    """A matrix that acts on some axes of a value, at each place along the others.

    - `weight`: of shape `(num_out, num_in)`.
    - `rows`: `(places, num_in)`, which entries of `source` come in; None where these are all in their order.
    - `index`: `(places, num_out)`, where these stand in the value.
    """

    source: Step
    weight: Constant
    rows: np.ndarray | None
    index: np.ndarray

    @property
    def num_out(self) -> int:
        return self.weight.value.shape[0]

    @staticmethod
    def of(step: Step) -> "Dense":
        (contracted, batched) = step.params["dimension_numbers"]
        assert not any(map(len, batched))
        first = isinstance(step.arguments[0], Step)  # whether the input comes first
        source, weight = step.arguments if first else step.arguments[::-1]
        axes, weight_axes = contracted if first else contracted[::-1]
        assert isinstance(source, Step)
        assert isinstance(weight, Constant)
        matrix = weight.view(lambda w: _matrix(w, weight_axes))
        entries = _matrix(np.arange(source.size).reshape(source.shape), axes)
        places = entries.shape[0]
        out = np.arange(step.size)
        index = out.reshape(places, -1) if first else out.reshape(-1, places).T
        whole = np.array_equal(entries.ravel(), np.arange(source.size)) and source.shape == entries.shape
        return Dense(source, matrix, None if whole else entries, index)


def _matrix(x: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """With these axes last, as one."""
    x = np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
    return x.reshape(-1, math.prod(x.shape[x.ndim - len(axes) :]))


def _concatenated(arguments: list[Value], axis: int, place: str) -> Step | None:
    """Pieces of one value, and zeros."""
    pieces, base = [], None
    for argument in arguments:
        if isinstance(argument, Constant):
            if argument.number != 0:
                return None
            pieces.append(np.full(np.shape(argument.value), -1))
            continue
        own, index = argument, np.arange(argument.size).reshape(argument.shape)
        if argument.kind == "move":
            (own,), index = argument.inputs, _known(argument.index)
        if base is not None and own is not base:
            return None
        base = own
        pieces.append(index)
    assert base is not None
    index = np.concatenate(pieces, axis)
    if index.shape == base.shape and np.array_equal(index.ravel(), np.arange(base.size)):
        return base
    return _move(base, index, "concatenate", place)


# Ahead of the name of a scope that tells the place itself.
GIVEN = "@"

# What is said of a place must be the reader's own code.
_LIBRARIES = (
    sysconfig.get_paths()["purelib"],
    sysconfig.get_paths()["stdlib"],
    os.path.dirname(os.path.dirname(__file__)),
)


def _place(equation: JaxprEqn, call: _Call) -> str:
    """Where in the model's source an equation comes from, to be printed behind its name. What a library's function does
    is found where it is called; what JAX remembers of its inside is an earlier call.
    """
    stack = str(equation.source_info.name_stack)
    if GIVEN in stack:
        return stack.rpartition(GIVEN)[2]
    traceback = equation.source_info.traceback
    within = f" in {stack}" if stack else ""
    for frame in () if traceback is None else traceback.frames:
        if frame.file_name.startswith(_LIBRARIES) or frame.file_name.startswith("<frozen"):
            continue
        if call.place and frame.function_name.split(".")[-1] != call.name:
            return call.place
        return f" at {os.path.basename(frame.file_name)}:{frame.line_num}, {frame.function_name}{within}"
    return call.place or within
