"""Entries in other places: views of values and of parameters, and matrices that act on some axes."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from .steps import Constant, Step, Value


def known(array: np.ndarray | None) -> np.ndarray:
    assert array is not None
    return array


def bind(equation: JaxprEqn, *arguments: Any) -> Any:
    """In one precision, as casts from one to another are no steps."""
    arrays = [jnp.asarray(x) for x in arguments]
    floating = [x for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]
    if len({x.dtype for x in floating}) > 1:
        dtype = jnp.result_type(*floating)
        arrays = [x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in arrays]
    return equation.primitive.bind(*arrays, **equation.params)


# Where entries go, given the equation's parameters.
VIEWS: dict[str, Callable[[np.ndarray, dict[str, Any]], np.ndarray]] = {
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
INDEXED = frozenset(("gather", "dynamic_slice", "pad"))


def _broadcast(x: np.ndarray, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    ones = [1] * len(shape)
    for axis, size in zip(axes, x.shape, strict=True):
        ones[axis] = size
    return np.broadcast_to(x.reshape(ones), shape)


def view_of(equation: JaxprEqn, rest: list[Constant]) -> Callable[[np.ndarray], np.ndarray]:
    name, params = equation.primitive.name, equation.params
    if name in VIEWS:
        return lambda x: VIEWS[name](x, params)
    if name == "pad":
        return lambda x: _padded(x, params["padding_config"])
    # Indices are shifted, so that 0 stands for what lies outside.
    return lambda x: np.asarray(bind(equation, jnp.asarray(x) + 1, *(a.value for a in rest))) - 1


def fills(equation: JaxprEqn, arguments: list[Value]) -> bool:
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
    if _in_order(index, whole):
        return whole
    if index.size < whole.size:
        part = _selected(whole, index)
        if part is not None:
            return part
    return _move(whole, index, name, place)


def _in_order(index: np.ndarray, whole: Step) -> bool:
    """Whether all entries are where they were."""
    return index.shape == whole.shape and np.array_equal(index.ravel(), np.arange(whole.size))


def _move(whole: Step, index: np.ndarray, name: str, place: str) -> Step:
    if whole.kind == "move":
        before = known(whole.index).ravel()
        index = np.where(index < 0, -1, before[np.maximum(index, 0)])
        (whole,) = whole.inputs
        if _in_order(index, whole):
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
    layer = MatrixOnAxes.of(whole)
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
class MatrixOnAxes:
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
    def of(step: Step) -> "MatrixOnAxes":
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
        whole = _in_order(entries, source)
        return MatrixOnAxes(source, matrix, None if whole else entries, index)


def _matrix(x: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """With these axes last, as one."""
    x = np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
    return x.reshape(-1, math.prod(x.shape[x.ndim - len(axes) :]))


def concatenated(arguments: list[Value], axis: int, place: str) -> Step | None:
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
            (own,), index = argument.inputs, known(argument.index)
        if base is not None and own is not base:
            return None
        base = own
        pieces.append(index)
    assert base is not None
    index = np.concatenate(pieces, axis)
    if _in_order(index, base):
        return base
    return _move(base, index, "concatenate", place)
