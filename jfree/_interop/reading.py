"""From the steps of a function to parts of a network, in series and in parallel."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..activations._base import AbstractActivation
from ..activations._two_slopes import Linear
from .functions import known_function
from .graph import Constant, Dense, Step, Unreadable, Value
from .parts import ALIKE, Function, Gate, Mask, Norm, Part, Sum, Times, Weights

# Steps are compared with norms at so many vectors of about this size, next to which what norms add to the variance is
# nothing; and by how much the two may differ.
_NUM_TRIED, _LARGE, _NORM = 8, 1e3, 1e-3

# What is said of steps that mix units, after their names.
_REASONS = {
    "dot_general": "multiplies two values that depend on the input, as attention does: these are not free",
    "concatenate": "puts different values side by side; what can be read adds them up",
    "reduce_max": "takes a maximum, as softmax and pooling do",
    "reduce_window": "is pooling, which can't be read; patches, convolutions whose stride is their kernel, can",
    "reduce_window_max": "is pooling, which can't be read; patches, convolutions whose stride is their kernel, can",
    "reduce_window_sum": "is pooling, which can't be read; patches, convolutions whose stride is their kernel, can",
    "reduce_sum": "sums or averages units, and is no layer norm or RMS norm; pooling can't be read",
    "sort": "sorts units",
    "stop_gradient": "has no gradient, so that the Jacobian is not that of the values",
    "while": "is a loop whose number of turns is not known; a `scan` or a Python loop can be read",
    "cond": "depends on a condition that depends on the input",
}


@dataclasses.dataclass
class _Layout:
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

    def moved(self, step: Step) -> "_Layout":
        assert step.index is not None
        index, (before,) = step.index, step.inputs
        if index.size != before.size or not np.array_equal(np.sort(index, None), np.arange(index.size)):
            return dataclasses.replace(self, index=index, step=step)
        if self.positions is None or self.units is None:
            return self
        return _Layout(self.positions.ravel()[index], self.units.ravel()[index])


_WEIGHTS = ("dense", "convolution")

# How many single steps are looked at behind one that mixes units, whether all together are a norm.
_LONGEST_NORM = 3


class Reader:
    """Reads parts between steps.

    - `whole`: whether a layer tells positions from each other, so that units of all of them are counted.
    - `shift`: what is added to the input before anything else.
    - `vanished`: where branches are multiplied by 0.
    - `fixed`: steps whose factors are not to be changed, as a bias stands behind them.
    """

    def __init__(self, source: Step, output: Step):
        self.source, self.output = source, output
        self.whole, self.shift = False, np.zeros(())
        self.vanished: list[str] = []
        self.fixed: set[Step] = set()
        self.known: dict[Any, Any] = {}  # what steps like some that were seen before do
        self.steps = _reached(output)
        self.order = {step: k for k, step in enumerate(self.steps)}
        self.before: dict[Step, Step] = {source: source}
        for step in self.steps[1:]:
            self.before[step] = functools.reduce(self._common, step.inputs)
        self.parts, layout = self.series(source, output, _Layout())
        if layout.index is not None:
            raise _incomplete(layout.step)

    def _common(self, one: Step, other: Step) -> Step:
        """The last step that all ways to both go through."""
        while one is not other:
            if self.order[one] > self.order[other]:
                one = self.before[one]
            else:
                other = self.before[other]
        return one

    def _between(self, start: Step, end: Step) -> list[Step]:
        """All steps on ways from one to the other, the last one included, the first not."""
        found, waiting = {end}, [end]
        while waiting:
            for step in waiting.pop().inputs:
                if step is not start and step not in found:
                    found.add(step)
                    waiting.append(step)
        return sorted(found, key=self.order.__getitem__)

    def series(self, start: Step, end: Step, layout: _Layout) -> tuple[list[Part], _Layout]:
        """The parts between two steps, of which all ways to the second go through the first."""
        ahead = [end]
        while ahead[-1] is not start:
            ahead.append(self.before[ahead[-1]])
        parts: list[Part] = []
        run: list[tuple[Step, Step]] = []  # entry by entry
        step = ahead.pop()
        while ahead:
            before, step = step, ahead.pop()
            between = self._between(before, step)
            if len(between) == 1 and step.kind == "move":
                if layout.index is not None:
                    raise _incomplete(layout.step)
                layout = layout.moved(step)
                continue
            if layout.index is not None and step.kind != "convolution":
                raise _incomplete(layout.step)
            if all(inner.kind == "entries" for inner in between):
                if len(between) == 1 and self._constant(step, parts, run, layout):
                    continue
                self._check_uniform(between)
                run.append((before, step))
                continue
            parts += self._entries(run)
            run = []
            if len(between) > 1 and not any(inner.kind in _WEIGHTS for inner in between):
                norm, step = self._norm(before, step, ahead, layout)
                parts.append(norm)
            else:
                part, layout = self._part(before, step, layout)
                parts += part
        return _with_rates([*parts, *self._entries(run)]), layout

    def _part(self, before: Step, step: Step, layout: _Layout) -> tuple[list[Part], _Layout]:
        several = len(step.inputs) == 2
        match step.kind, step.name:
            case "dense", _:
                return self._dense(step, layout)
            case "convolution", _:
                return self._convolution(step, layout)
            case "entries", "add" | "add_any" | "sub" if several:
                return self._sum(before, step, layout)
            case "entries", "mul" if several:
                return self._gate(before, step, layout)
            case _:
                raise _mixes(self._between(before, step))

    def _norm(self, before: Step, step: Step, ahead: list[Step], layout: _Layout) -> tuple[Norm, Step]:
        """A norm behind a step, and its own last step; the mean may be taken off first."""
        for end in [step, *reversed(ahead[-_LONGEST_NORM:])]:
            between = self._between(before, end)
            if any(inner.kind in _WEIGHTS for inner in between):
                break
            norm = self._once(before, between, lambda end=end, between=between: _norm(before, end, between))
            if norm is not None and not _is_whole(norm.axes, layout):
                raise Unreadable(
                    f"`model`: {end} normalises some units of a position, or one unit over positions, as group and "
                    "instance norms do. What can be read normalises all units of a position, or of all positions."
                )
            if norm is not None:
                while step is not end:
                    step = ahead.pop()
                return _with_parameters(norm, before, end, between), step
        raise _mixes(self._between(before, step))

    def values(self, x: Array) -> dict[Step, Array]:
        """Of all steps, at an input."""
        found = {self.source: x}
        for step in self.steps[1:]:
            found[step] = step.value([found[before] for before in step.inputs])
        return found

    # Weights

    def _dense(self, step: Step, layout: _Layout) -> tuple[list[Part], _Layout]:
        dense = Dense.of(step)
        rows = np.arange(dense.source.size).reshape(dense.index.shape[0], -1) if dense.rows is None else dense.rows
        number, positions = rows.shape[0], layout.positions
        stride, weight = 1, dense.weight
        if positions is not None and number == 1:
            self.whole |= layout.number > 1
        elif positions is not None:
            stride = layout.number // number
            own = (
                np.sort(positions.ravel()[rows], 1).reshape(number, stride, -1)
                if stride * number == layout.number
                else None
            )
            if own is None or np.any(own != own[:, :, :1]):
                raise Unreadable(
                    f"`model`: {step} mixes positions by weights that all units share, as an MLP-Mixer does: slopes at "
                    "different positions are not free of these. What can be read acts on the units of each position, "
                    "on patches, or on all units of all positions."
                )
        if stride > 1:
            weight = weight.view(lambda w: w.reshape(w.shape[0], -1, stride))
        part = Weights(place=step.place, weight=weight, positions=(number,), stride=stride > 1)
        where, units = np.empty(step.size, int), np.empty(step.size, int)
        where[dense.index] = np.arange(number)[:, None]
        units[dense.index] = np.arange(dense.num_out)
        return [part], _Layout(where.reshape(step.shape), units.reshape(step.shape))

    def _convolution(self, step: Step, layout: _Layout) -> tuple[list[Part], _Layout]:
        params, (source,), weight = step.params, step.inputs, step.arguments[1]
        assert isinstance(weight, Constant)
        numbers = params["dimension_numbers"]
        index = np.arange(source.size).reshape(source.shape) if layout.index is None else layout.index
        index = np.transpose(index, numbers.lhs_spec)
        kernel = weight.view(lambda w: np.transpose(w, numbers.rhs_spec))
        size, strides = kernel.value.shape[2:], tuple(params["window_strides"])
        index = np.pad(index, [(0, 0), (0, 0), *params["padding"]], constant_values=-1)
        patches = strides == size and max(size) > 1
        if params["feature_group_count"] * params["batch_group_count"] > 1:
            raise Unreadable(f"`model`: {step} has groups, or acts on each channel alone, which can't be read.")
        if {*params["lhs_dilation"], *params["rhs_dilation"]} != {1} or (not patches and set(strides) != {1}):
            raise Unreadable(
                f"`model`: {step} has strides or dilation, which can't be read. What can be: convolutions of stride 1, "
                "and patches, whose stride is their kernel."
            )
        behind = tuple(step.shape[axis] for axis in numbers.out_spec[2:])
        inside = tuple(n * stride for n, stride in zip(behind, strides, strict=True))
        window = index[(..., *(slice(n) for n in inside))]
        around = np.pad(
            window, [(0, 0), (0, 0), *((0, n - m) for n, m in zip(index.shape[2:], inside, strict=True))], "wrap"
        )
        base = source if layout.step is None else layout.step.inputs[0]
        complete = np.array_equal(np.sort(window, None), np.arange(base.size))
        if not complete or not np.array_equal(around, index):
            raise Unreadable(
                f"`model`: {step} must have circular padding, so that all positions are alike: "
                '`padding_mode="CIRCULAR"` of Equinox, `padding="CIRCULAR"` of Flax, `padding_mode="circular"` of '
                "PyTorch."
            )
        if layout.positions is not None and layout.number > 1:
            seen = layout.positions.ravel()[window]
            if not np.all(seen == seen[:, :1]):
                raise Unreadable(f"`model`: {step} acts along an axis of units, not of positions.")
        coming = index.shape[0] * math.prod(inside)
        if layout.number == 1 < coming:
            self.whole = True  # a dense layer has told positions from each other
        elif layout.positions is not None and layout.number != coming:
            raise Unreadable(f"`model`: {step} acts on other positions than the weights before it.")
        number = math.prod(behind)
        part = Weights(place=step.place, weight=kernel, positions=behind, stride=patches)
        shape = (step.shape[numbers.out_spec[0]], kernel.value.shape[0], *behind)
        where = np.broadcast_to(np.arange(shape[0] * number).reshape(shape[0], 1, *behind), shape)
        units = np.broadcast_to(np.arange(shape[1]).reshape(1, -1, *(1 for _ in behind)), shape)
        back = np.argsort(numbers.out_spec)
        return [part], _Layout(np.transpose(where, back), np.transpose(units, back))

    # Several branches

    def _sum(self, before: Step, step: Step, layout: _Layout) -> tuple[list[Part], _Layout]:
        branches: list[list[Part]] = []
        skips: list[float] = []
        skipped = None
        behind = layout
        terms = self._terms(before, step, 1.0)
        for term, sign in terms:
            parts, own = self.series(before, term, layout)
            if own.index is not None:
                raise _incomplete(own.step)
            inner = _scaled_sum(parts)
            passes = all(isinstance(part, Times) for part in parts)
            if passes:
                skips.append(sign * math.prod(part.factor for part in parts if isinstance(part, Times)))
                if len(parts) == 1 and isinstance(parts[0], Times) and parts[0].part is not None:
                    skipped = scaled(parts[0].part, sign)
            elif inner is not None:
                one, factor = inner[0], sign * inner[1]
                passes = one.skip is not None
                skips += [factor * one.skip.factor] if one.skip is not None else []
                branches += [[*branch, Times(place=one.place, factor=factor, part=None)] for branch in one.branches]
            elif any(part.vanishes for part in parts):
                self.vanished.append(step.place)
            else:
                parts = parts if sign == 1 else [*parts, Times(place=step.place, factor=sign, part=None)]
                branches.append(parts)
            moves = (inner.kind == "move" for end, _ in terms for inner in self._between(before, end))
            if passes and len(skips) > 1 and any(moves):
                raise Unreadable(f"`model`: {step} adds the same value in several orders of its entries.")
            behind = own if own.positions is not None else behind
            if layout.positions is not None and not _same(own.positions, behind.positions):
                raise Unreadable(f"`model`: {step} adds values whose positions are not in the same order.")
        skip = sum(skips)
        times = Times(place=step.place, factor=skip, part=skipped if len(skips) == 1 else None)
        if not branches:
            return ([] if skip == 1 else [times]), behind
        return [Sum(place=step.place, branches=branches, skip=times if skip else None)], behind

    def _terms(self, before: Step, step: Step, sign: float) -> list[tuple[Step, float]]:
        if step is before or step.name not in ("add", "add_any", "sub") or len(step.inputs) != 2:
            return [(step, sign)]
        if self.before[step] is not before:
            return [(step, sign)]
        one, other = step.inputs
        second = -sign if step.name == "sub" else sign
        return [*self._terms(before, one, sign), *self._terms(before, other, second)]

    def _gate(self, before: Step, step: Step, layout: _Layout) -> tuple[list[Part], _Layout]:
        (one, behind), (other, beside) = (self.series(before, factor, layout) for factor in step.inputs)
        same = behind.index is None and beside.index is None and _same(behind.positions, beside.positions)
        match sorted((one, other), key=len):
            case [[Weights() as value], [Weights() as gate, *rest]] if same and _num_out(value) == _num_out(gate):
                activation = Linear() if not rest else getattr(rest[0], "activation", None)
                if activation is not None and len(rest) < 2:
                    return [Gate(place=step.place, value=value, gate=gate, activation=activation)], behind
            case _:
                pass
        raise Unreadable(
            f"`model`: {step} multiplies two values that depend on the input. What can be read: `phi(A x) * (B x)`, "
            "with a function of every entry between dense weights and the product."
        )

    # Entry by entry

    def _constant(self, step: Step, parts: list[Part], run: list[tuple[Step, Step]], layout: _Layout) -> bool:
        """Reads a step that adds or multiplies a constant into the last part, if it belongs there."""
        constants = [a for a in step.arguments if isinstance(a, Constant)]
        if step.name in ("add", "add_any", "sub") and len(constants) == 1:
            sign = -1.0 if step.name == "sub" and step.arguments[1] is constants[0] else 1.0
            if step.name == "sub" and step.arguments[0] is constants[0]:
                return False
            return self._shift(step, scaled(constants[0], sign), parts, run, layout)
        if step.name == "select_n" or (step.name == "mul" and len(constants) == 1 and _is_mask(constants[0])):
            rate = _rate(step, run)
            if rate is None and step.name == "mul" and _largest(constants[0]) == 1:
                parts += self._entries(run)
                run.clear()
                parts.append(Mask(place=step.place, rate=math.nan, kept=np.asarray(constants[0].value) != 0))
                return True
            if rate is None:
                return False
            keep, before = rate
            if before:
                run.pop()
            parts += self._entries(run)
            run.clear()
            parts.append(Mask(place=step.place, rate=1 - keep))
            return True
        if step.name == "mul" and len(constants) == 1 and np.size(constants[0].value) > 1 and not run:
            last = parts[-1] if parts else None
            factor = float(np.mean(np.asarray(constants[0].value, float)))
            if isinstance(last, Norm) and last.parts[0] is None and last.offset == 0 and factor > 0:
                last.parts = scaled(constants[0], last.gain), last.parts[1]
                last.gains, last.after = last.gains * np.asarray(constants[0].value), step
                return True
        return False

    def _shift(
        self, step: Step, shift: Constant, parts: list[Part], run: list[tuple[Step, Step]], layout: _Layout
    ) -> bool:
        at_input = step.inputs[0] is self.source and sum(self.source in one.inputs for one in self.steps) == 1
        if shift.number is not None and shift.origin is None and not at_input:
            return shift.number == 0  # others are part of the activation
        scale, behind = 1.0, [*parts]
        for one in self._scales(run) or ():
            scale *= one.factor
        passed: list[Times] = []
        if run and self._scales(run) is None:
            return self._no_vector(step, shift)
        last = behind.pop() if behind else None
        while isinstance(last, Times):
            scale *= last.factor
            passed.append(last)
            last = behind.pop() if behind else None
        if isinstance(last, Weights) and layout.units is not None and scale:
            bias = _per_unit(shift, layout)
            if bias is None:
                raise Unreadable(
                    f"`model`: {step} adds another bias at every position, such as positional encodings; biases must "
                    "be those of units."
                )
            last.bias = _added(last.bias, scaled(bias, 1 / scale))
            self.fixed.update(one for _, one in run)
            for times in passed:
                times.part = None
            return True
        if isinstance(last, Norm) and not run and last.parts[1] is None:
            last.parts = last.parts[0], shift if np.ndim(shift.value) else None
            last.offsets, last.after = np.asarray(shift.value, float), step
            return True
        if at_input:
            self.shift = self.shift + np.asarray(shift.value)
            return True
        return self._no_vector(step, shift)

    def _no_vector(self, step: Step, shift: Constant) -> bool:
        """Whether there is nothing to read."""
        if shift.number is None:
            raise Unreadable(
                f"`model`: {step} adds biases that do not follow weights or a norm. What can be read has them there."
            )
        return shift.number == 0

    def _check_uniform(self, between: list[Step]) -> None:
        for step in between:
            if _is_scale(step):
                _times(step)  # which refuses factors that differ
            elif any(isinstance(a, Constant) and a.number is None for a in step.arguments):
                raise Unreadable(
                    f"`model`: {step} has another parameter for every unit. Activations must have one per layer."
                )

    def _scales(self, run: list[tuple[Step, Step]]) -> list[Times] | None:
        """A run that does nothing but multiply by numbers."""
        if all(_is_scale(step) and before in step.inputs for before, step in run):
            return [_times(step) for _, step in run]
        return None

    def _factor(self, step: Step) -> Times:
        times = _times(step)
        return dataclasses.replace(times, part=None) if step in self.fixed else times

    def _entries(self, run: list[tuple[Step, Step]]) -> list[Part]:
        """The scales and the activation that a run of steps is."""
        if not run:
            return []
        first = next((k for k, (_, step) in enumerate(run) if not _is_scale(step)), len(run))
        last = next((k for k in range(len(run), first, -1) if not _is_scale(run[k - 1][1])), first)
        ahead, behind = ([self._factor(step) for _, step in own] for own in (run[:first], run[last:]))
        if first == last:
            return [*ahead, *behind]
        uniform = all(part.part is None for part in (*ahead, *behind))
        tried = [(0, len(run)), (0, last), (first, len(run))] if uniform else []
        for start, end in dict.fromkeys([*tried, (first, last)]):
            activation = self._activation(run[start:end], named=True)
            if activation is not None:
                return [
                    *ahead[:start],
                    self._of_run(run[start:end], activation),
                    *behind[end - last :],
                ]
        activation = self._activation(run[first:last], named=False)
        assert activation is not None
        return [*ahead, self._of_run(run[first:last], activation), *behind]

    def _of_run(self, run: list[tuple[Step, Step]], activation: AbstractActivation) -> Function:
        before, after = run[0][0], run[-1][1]
        given = [argument for step in self._between(before, after) for argument in step.arguments]
        parameters = tuple(x for x in given if isinstance(x, Constant) and x.origin is not None)
        return Function(place=run[0][1].place, activation=activation, parameters=parameters, before=before, after=after)

    def _once(self, start: Step, steps: list[Step], found: Callable[[], Any]) -> Any:
        """What steps do, if others of the same kind and with the same numbers have not told."""
        numbered = {start: 0} | {step: k for k, step in enumerate(steps, 1)}

        def described(argument: Value) -> Any:
            if isinstance(argument, Step):
                return numbered[argument]
            value = np.asarray(argument.value)
            return value.shape, value.dtype.name, value.tobytes()

        def told(step: Step) -> Any:
            index = None if step.index is None else step.index.tobytes()
            return step.name, step.shape, str(step.params), index, tuple(map(described, step.arguments))

        key = start.shape, *map(told, steps)
        if key not in self.known:
            self.known[key] = found()
        return self.known[key]

    def _activation(self, run: list[tuple[Step, Step]], named: bool) -> AbstractActivation | None:
        steps = self._between(run[0][0], run[-1][1])
        activation = self._once(run[0][0], steps, lambda: known_function(self._function(run), named=True))
        return activation if named or activation is not None else known_function(self._function(run))

    def _function(self, run: list[tuple[Step, Step]]) -> Callable[[Any], Any]:
        start, end = run[0][0], run[-1][1]
        steps = self._between(start, end)

        def function(x: Any) -> Any:
            values: dict[Step, Any] = {start: x}

            def of(argument: Value) -> Any:
                if isinstance(argument, Step):
                    return values[argument]
                value = np.ravel(argument.value)
                value = value[0] if argument.number is not None else np.mean(value, dtype=value.dtype)
                floating = jnp.issubdtype(value.dtype, jnp.floating)
                return jnp.full(jnp.shape(x), value, x.dtype if floating else value.dtype)

            for step in steps:
                values[step] = step.apply(*(of(argument) for argument in step.arguments))
            return values[end]

        return function


def _reached(output: Step) -> list[Step]:
    """All steps that a value depends on, each behind those that it depends on itself."""
    found: dict[Step, None] = {}
    waiting = [output]
    while waiting:
        step = waiting[-1]
        missing = [before for before in step.inputs if before not in found]
        if step in found or not missing:
            found.setdefault(waiting.pop())
        else:
            waiting += missing
    return list(found)


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))


def _scaled_sum(parts: list[Part]) -> tuple[Sum, float] | None:
    """A sum, and the number that it is multiplied by."""
    match parts:
        case [Sum() as one, *behind] if all(isinstance(part, Times) for part in behind):
            return one, math.prod(part.factor for part in behind if isinstance(part, Times))
        case _:
            return None


def _num_out(weights: Weights) -> int:
    return weights.weight.value.shape[0]


def _mixes(steps: list[Step]) -> Unreadable:
    culprit = next((step for step in steps if step.kind == "mixing"), steps[-1])
    reason = _REASONS.get(culprit.name, "mixes units in a way that can't be read")
    return Unreadable(
        f"`model`: {culprit} {reason}. What can be read: weights, functions of every entry, layer and RMS norms, "
        "dropout, gates, sums of branches, scales, circular convolutions and patches."
    )


def _incomplete(step: Step | None) -> Unreadable:
    return Unreadable(
        f"`model`: {step} leaves out entries, repeats them, or pads them, which can't be read but for the circular "
        "padding of a convolution."
    )


def scaled(constant: Constant, factor: float) -> Constant:
    return Constant(np.asarray(constant.value) * factor, constant.origin, constant.factor * factor)


def _added(bias: Constant | None, more: Constant) -> Constant:
    """The sum of two biases; a parameter where the other one is 0."""
    if bias is None:
        return more
    both = np.asarray(bias.value) + np.asarray(more.value)
    for own, other in ((more, bias), (bias, more)):
        if own.origin is not None and not np.any(other.value):
            return own._replace(value=both)
    return Constant(both)


def _per_unit(shift: Constant, layout: _Layout) -> Constant | None:
    """What is added to each unit, if it is the same at all positions."""
    units = layout.units
    assert units is not None
    _, first = np.unique(units, return_index=True)
    own = shift.view(lambda x: np.broadcast_to(x, units.shape).ravel()[first])
    same = np.array_equal(np.asarray(own.value)[units], np.broadcast_to(shift.value, units.shape))
    return own if same else None


def _is_scale(step: Step) -> bool:
    """Whether a step multiplies by a constant."""
    constants = [a for a in step.arguments if isinstance(a, Constant)]
    if step.name == "neg":
        return True
    if step.name not in ("mul", "div") or len(constants) != 1 or _is_mask(constants[0]):
        return False
    return step.name == "mul" or step.arguments[1] is constants[0]


def _times(step: Step) -> Times:
    if step.name == "neg":
        return Times(place=step.place, factor=-1.0, part=None)
    (constant,) = (a for a in step.arguments if isinstance(a, Constant))
    factor = _alike(step, constant)
    if step.name == "mul":
        return Times(place=step.place, factor=factor, part=constant if constant.origin is not None else None)
    return Times(place=step.place, factor=1 / factor, part=None)


def _alike(step: Step, constant: Constant) -> float:
    values = np.asarray(constant.value, float)
    mean = float(values.mean())
    if not np.std(values) <= ALIKE * abs(mean):
        raise Unreadable(
            f"`model`: {step} must multiply all units by factors that are alike, within 5 % of their mean: gains that "
            "differ from unit to unit are no multiple of the identity, as which they are read."
        )
    return mean


def _is_mask(constant: Constant) -> bool:
    """Whether some entries are 0 and all others equal."""
    values = np.asarray(constant.value)
    alive = values != 0
    return bool(0 < np.count_nonzero(alive) < values.size and np.ptp(values[alive].astype(float)) == 0)


def _rate(step: Step, run: list[tuple[Step, Step]]) -> tuple[float, bool] | None:
    """What dropout keeps, and whether the step before divides by it."""
    constants = [a for a in step.arguments if isinstance(a, Constant)]
    if step.name == "mul":
        values = np.asarray(constants[0].value, float)
        factor = float(values.max() if values.max() > 0 else values.min())
        share = float(np.mean(values != 0))
        if factor > 1:
            return (1 / factor, False) if _is_share(1 / factor, share, values.size) else None
        return _divided(share, values.size, run)
    which, *cases = step.arguments
    if not isinstance(which, Constant) or len(cases) != 2 or np.size(which.value) < 2:
        return None
    zero = [isinstance(case, Constant) and case.number == 0 for case in cases]
    if sum(zero) != 1:
        return None
    share = float(np.mean(np.asarray(which.value, bool) != zero[1]))
    return _divided(share, np.size(which.value), run)


def _divided(share: float, number: int, run: list[tuple[Step, Step]]) -> tuple[float, bool] | None:
    if not run or not _is_scale(run[-1][1]):
        return None
    keep = 1 / _times(run[-1][1]).factor
    return (keep, True) if 0 < keep < 1 and _is_share(keep, share, number) else None


def _largest(mask: Constant) -> float:
    return float(np.max(np.asarray(mask.value, float)))


def _with_rates(parts: list[Part]) -> list[Part]:
    """Of masks that are divided by what they keep right behind them.

    **Raises:** `Unreadable` if one is not.
    """
    found: list[Part] = []
    for part in parts:
        mask = found[-1] if found else None
        if not isinstance(mask, Mask) or mask.kept is None:
            found.append(part)
            continue
        keep = 1 / part.factor if isinstance(part, Times) and part.factor else math.nan
        if not (0 < keep < 1 and _is_share(keep, float(np.mean(mask.kept)), mask.kept.size)):
            raise _is_no_dropout(mask)
        found[-1] = Mask(place=mask.place, rate=1 - keep)
    if found and isinstance(found[-1], Mask) and found[-1].kept is not None:
        raise _is_no_dropout(found[-1])
    return found


def _is_no_dropout(mask: Mask) -> Unreadable:
    return Unreadable(
        f"`model`: what stands{mask.place} sets entries to 0, but does not divide by the share that it keeps, as "
        "dropout does."
    )


def _is_share(keep: float, share: float, number: int) -> bool:
    """Whether a share of so many may be what is kept with a probability, within six standard deviations."""
    return abs(keep - share) <= 6 * (keep * (1 - keep) / number) ** 0.5


class _Normed(NamedTuple):
    """What a norm does to vectors."""

    centred: bool
    gains: np.ndarray
    offsets: np.ndarray
    axes: tuple[int, ...]


def _is_whole(axes: tuple[int, ...], layout: _Layout) -> bool:
    """Whether what is normalised together are all units of some positions."""
    if layout.positions is None or layout.units is None:
        return True
    last = range(layout.positions.ndim - len(axes), layout.positions.ndim)
    groups = np.moveaxis(layout.positions, axes, last).reshape(-1, math.prod(layout.positions.shape[a] for a in axes))
    return len(set(groups[0].tolist())) * (int(layout.units.max()) + 1) == groups.shape[1]


def _norm(before: Step, step: Step, between: list[Step]) -> _Normed | None:
    """What steps do if it is what a norm does, told by what they make of random vectors."""
    if step.shape != before.shape or before.size < 2:
        return None
    rng = np.random.default_rng(0)
    sizes = _LARGE * (1 + np.arange(_NUM_TRIED)) / _NUM_TRIED
    tried = [s * (rng.standard_normal(before.shape) + rng.standard_normal()) for s in sizes]
    found = np.stack(
        [_evaluate(before, step, between, jnp.asarray(x, jnp.promote_types(before.dtype, jnp.float32))) for x in tried]
    ).astype(float)
    axes = {tuple(range(len(before.shape))), (len(before.shape) - 1,), (0,)}
    axes |= {tuple(inner.params["axes"]) for inner in between if "axes" in inner.params}
    for over in axes:
        if max(over) >= len(before.shape) or math.prod(before.shape[axis] for axis in over) == 1:
            continue
        for centred in (True, False):
            normal = np.stack([_normalised(x, over, centred) for x in tried])
            gains, offsets = _fit(normal, found)
            if np.max(np.abs(found - gains * normal - offsets)) <= _NORM * np.max(np.abs(gains)):
                return _Normed(centred, gains, offsets, over)
    return None


def _normalised(x: np.ndarray, axes: tuple[int, ...], centred: bool) -> np.ndarray:
    x = x - x.mean(axes, keepdims=True) if centred else x
    return x / np.sqrt(np.mean(np.square(x), axes, keepdims=True))


def _fit(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The line that is nearest to all, for every unit."""
    dx, dy = x - x.mean(0), y - y.mean(0)
    slope = np.sum(dx * dy, 0) / np.sum(dx * dx, 0)
    return slope, y.mean(0) - slope * x.mean(0)


def _with_parameters(norm: _Normed, before: Step, step: Step, between: list[Step]) -> Norm:
    centred, gains, offsets, axes = norm
    mean = float(gains.mean())

    def parameter(name: str) -> Constant | None:
        constants = (a for inner in between if inner.name == name for a in inner.arguments if isinstance(a, Constant))
        return next((a for a in constants if a.origin is not None and np.size(a.value) > 1), None)

    gain = parameter("mul")
    if gain is not None:
        gain = scaled(gain, mean / float(np.mean(gain.value)))

    offsets = np.where(np.abs(offsets) < _NORM * abs(mean), 0.0, offsets)
    parts = gain, parameter("add")
    return Norm(
        place=step.place,
        centred=centred,
        gains=gains,
        offsets=offsets,
        axes=axes,
        parts=parts,
        before=before,
        after=step,
    )


def _evaluate(start: Step, end: Step, steps: list[Step], x: Any) -> Any:
    values = {start: x}
    for step in steps:
        values[step] = step.value([values[before] for before in step.inputs])
    return np.asarray(values[end])
