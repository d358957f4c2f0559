"""Weights, and which positions and units they act on."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from .moves import MatrixOnAxes
from .parts import Weights
from .steps import Constant, Step, Unreadable


@dataclasses.dataclass
class Layout:
    """Of each entry of a value, which position and which unit of it that is; None before any weights told them apart.

    `index`: where entries come from if they are not all there once, as behind padding.
    """

    positions: np.ndarray | None = None
    units: np.ndarray | None = None
    index: np.ndarray | None = None
    step: Step | None = None

    @property
    def number(self) -> int:
        return 1 if self.positions is None else int(self.positions.max()) + 1

    def moved(self, step: Step) -> "Layout":
        assert step.index is not None
        index, (before,) = step.index, step.inputs
        if index.size != before.size or not np.array_equal(np.sort(index, None), np.arange(index.size)):
            return dataclasses.replace(self, index=index, step=step)
        if self.positions is None or self.units is None:
            return self
        return Layout(self.positions.ravel()[index], self.units.ravel()[index])


class Read(NamedTuple):
    """Weights, the layout behind them, and whether they tell positions from each other."""

    weights: Weights
    layout: Layout
    whole: bool


def read_dense(step: Step, layout: Layout) -> Read:
    dense = MatrixOnAxes.of(step)
    rows = np.arange(dense.source.size).reshape(dense.index.shape[0], -1) if dense.rows is None else dense.rows
    number, weight = rows.shape[0], dense.weight
    stride = 1 if layout.positions is None or number == 1 else _stride(step, layout, rows)
    if stride > 1:
        weight = weight.view(lambda w: w.reshape(w.shape[0], -1, stride))
    part = Weights(place=step.place, weight=weight, positions=(number,), stride=stride > 1)
    where, units = np.empty(step.size, int), np.empty(step.size, int)
    where[dense.index] = np.arange(number)[:, None]
    units[dense.index] = np.arange(dense.num_out)
    return Read(part, Layout(where.reshape(step.shape), units.reshape(step.shape)), number == 1 < layout.number)


def _stride(step: Step, layout: Layout, rows: np.ndarray) -> int:
    """How many positions become one."""
    number = rows.shape[0]
    stride = layout.number // number
    assert layout.positions is not None
    own = layout.positions.ravel()[rows]
    own = np.sort(own, 1).reshape(number, stride, -1) if stride * number == layout.number else None
    if own is None or np.any(own != own[:, :, :1]):
        raise Unreadable(
            f"`model`: {step} mixes positions by weights that all units share, as an MLP-Mixer does: slopes at "
            "different positions are not free of these. What can be read acts on the units of each position, "
            "on patches, or on all units of all positions."
        )
    return stride


def read_convolution(step: Step, layout: Layout) -> Read:
    params, weight = step.params, step.arguments[1]
    assert isinstance(weight, Constant)
    numbers = params["dimension_numbers"]
    kernel = weight.view(lambda w: np.transpose(w, numbers.rhs_spec))
    size, strides = kernel.value.shape[2:], tuple(params["window_strides"])
    patches = strides == size and max(size) > 1
    if params["feature_group_count"] * params["batch_group_count"] > 1:
        raise Unreadable(f"`model`: {step} has groups, or acts on each channel alone, which can't be read.")
    if {*params["lhs_dilation"], *params["rhs_dilation"]} != {1} or (not patches and set(strides) != {1}):
        raise Unreadable(
            f"`model`: {step} has strides or dilation, which can't be read. What can be: convolutions of stride 1, "
            "and patches, whose stride is their kernel."
        )
    behind = tuple(step.shape[axis] for axis in numbers.out_spec[2:])
    window = _window(step, layout, tuple(n * stride for n, stride in zip(behind, strides, strict=True)))
    if layout.positions is not None and layout.number > 1:
        seen = layout.positions.ravel()[window]
        if not np.all(seen == seen[:, :1]):
            raise Unreadable(f"`model`: {step} acts along an axis of units, not of positions.")
    coming = window.size // window.shape[1]
    whole = layout.number == 1 < coming  # a dense layer has told positions from each other
    if layout.positions is not None and not whole and layout.number != coming:
        raise Unreadable(f"`model`: {step} acts on other positions than the weights before it.")
    part = Weights(place=step.place, weight=kernel, positions=behind, stride=patches)
    shape = (step.shape[numbers.out_spec[0]], kernel.value.shape[0], *behind)
    positions = np.arange(shape[0] * math.prod(behind)).reshape(shape[0], 1, *behind)
    units = np.arange(shape[1]).reshape(1, -1, *(1 for _ in behind))
    back = np.argsort(numbers.out_spec)
    positions, units = (np.transpose(np.broadcast_to(x, shape), back) for x in (positions, units))
    return Read(part, Layout(positions, units), whole)


def _window(step: Step, layout: Layout, inside: tuple[int, ...]) -> np.ndarray:
    """Where the entries that a convolution acts on come from, of shape `(examples, units, *inside)`."""
    params, (source,) = step.params, step.inputs
    index = np.arange(source.size).reshape(source.shape) if layout.index is None else layout.index
    index = np.transpose(index, params["dimension_numbers"].lhs_spec)
    index = np.pad(index, [(0, 0), (0, 0), *params["padding"]], constant_values=-1)
    window = index[(..., *(slice(n) for n in inside))]
    missing = [(0, n - m) for n, m in zip(index.shape[2:], inside, strict=True)]
    base = source if layout.step is None else layout.step.inputs[0]
    complete = np.array_equal(np.sort(window, None), np.arange(base.size))
    if not complete or not np.array_equal(np.pad(window, [(0, 0), (0, 0), *missing], "wrap"), index):
        raise Unreadable(
            f"`model`: {step} must have circular padding, so that all positions are alike: "
            '`padding_mode="CIRCULAR"` of Equinox, `padding="CIRCULAR"` of Flax, `padding_mode="circular"` of '
            "PyTorch."
        )
    return window


def incomplete(step: Step | None) -> Unreadable:
    return Unreadable(
        f"`model`: {step} leaves out entries, repeats them, or pads them, which can't be read but for the circular "
        "padding of a convolution."
    )
