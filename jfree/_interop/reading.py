"""From the steps of a function to parts of a network, in series and in parallel."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..activations._base import AbstractActivation
from ..activations._linear_pieces import Linear
from .factors import is_mask, is_scale, largest, rate_of, times_of, with_rates
from .functions import known_function
from .norms import is_whole, norm_of, with_parameters
from .parts import Function, Gate, Mask, Norm, Part, Sum, Times, Weights
from .reasons import READABLE, why_unread
from .steps import Constant, Step, Unreadable, Value
from .weights import incomplete, Layout, read_convolution, read_dense

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
        self.parts, layout = self.series(source, output, Layout())
        if layout.index is not None:
            raise incomplete(layout.step)

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

    def series(self, start: Step, end: Step, layout: Layout) -> tuple[list[Part], Layout]:
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
                    raise incomplete(layout.step)
                layout = layout.moved(step)
                continue
            if layout.index is not None and step.kind != "convolution":
                raise incomplete(layout.step)
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
        return with_rates([*parts, *self._entries(run)]), layout

    def _part(self, before: Step, step: Step, layout: Layout) -> tuple[list[Part], Layout]:
        several = len(step.inputs) == 2
        match step.kind, step.name:
            case "dense" | "convolution" as kind, _:
                read = (read_dense if kind == "dense" else read_convolution)(step, layout)
                self.whole |= read.whole
                return [read.weights], read.layout
            case "entries", "add" | "add_any" | "sub" if several:
                return self._sum(before, step, layout)
            case "entries", "mul" if several:
                return self._gate(before, step, layout)
            case _:
                raise _mixes(self._between(before, step))

    def _norm(self, before: Step, step: Step, ahead: list[Step], layout: Layout) -> tuple[Norm, Step]:
        """A norm behind a step, and its own last step; the mean may be taken off first."""
        for end in [step, *reversed(ahead[-_LONGEST_NORM:])]:
            between = self._between(before, end)
            if any(inner.kind in _WEIGHTS for inner in between):
                break
            norm = self._once(before, between, lambda end=end, between=between: norm_of(before, end, between))
            if norm is not None and not is_whole(norm.axes, layout):
                raise Unreadable(
                    f"`model`: {end} normalises some units of a position, or one unit over positions, as group and "
                    "instance norms do. What can be read normalises all units of a position, or of all positions."
                )
            if norm is not None:
                while step is not end:
                    step = ahead.pop()
                return with_parameters(norm, before, end, between), step
        raise _mixes(self._between(before, step))

    def values(self, x: Array) -> dict[Step, Array]:
        """Of all steps, at an input."""
        found = {self.source: x}
        for step in self.steps[1:]:
            found[step] = step.value([found[before] for before in step.inputs])
        return found

    # Several branches

    def _sum(self, before: Step, step: Step, layout: Layout) -> tuple[list[Part], Layout]:
        branches: list[list[Part]] = []
        skips: list[float] = []
        skipped = None
        behind = layout
        terms = self._terms(before, step, 1.0)
        for term, sign in terms:
            parts, own = self.series(before, term, layout)
            if own.index is not None:
                raise incomplete(own.step)
            inner = _scaled_sum(parts)
            passes = all(isinstance(part, Times) for part in parts)
            if passes:
                skips.append(sign * math.prod(part.factor for part in parts if isinstance(part, Times)))
                if len(parts) == 1 and isinstance(parts[0], Times) and parts[0].part is not None:
                    skipped = parts[0].part.scaled(sign)
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

    def _gate(self, before: Step, step: Step, layout: Layout) -> tuple[list[Part], Layout]:
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

    def _constant(self, step: Step, parts: list[Part], run: list[tuple[Step, Step]], layout: Layout) -> bool:
        """Reads a step that adds or multiplies a constant into the last part, if it belongs there."""
        constants = [a for a in step.arguments if isinstance(a, Constant)]
        if step.name in ("add", "add_any", "sub") and len(constants) == 1:
            sign = -1.0 if step.name == "sub" and step.arguments[1] is constants[0] else 1.0
            if step.name == "sub" and step.arguments[0] is constants[0]:
                return False
            return self._shift(step, constants[0].scaled(sign), parts, run, layout)
        if step.name == "select_n" or (step.name == "mul" and len(constants) == 1 and is_mask(constants[0])):
            rate = rate_of(step, run)
            if rate is None and step.name == "mul" and largest(constants[0]) == 1:
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
                last.parts = constants[0].scaled(last.gain), last.parts[1]
                last.gains, last.after = last.gains * np.asarray(constants[0].value), step
                return True
        return False

    def _shift(
        self, step: Step, shift: Constant, parts: list[Part], run: list[tuple[Step, Step]], layout: Layout
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
            last.bias = _added(last.bias, bias.scaled(1 / scale))
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
            if is_scale(step):
                times_of(step)  # which refuses factors that differ
            elif any(isinstance(a, Constant) and a.number is None for a in step.arguments):
                raise Unreadable(
                    f"`model`: {step} has another parameter for every unit. Activations must have one per layer."
                )

    def _scales(self, run: list[tuple[Step, Step]]) -> list[Times] | None:
        """A run that does nothing but multiply by numbers."""
        if all(is_scale(step) and before in step.inputs for before, step in run):
            return [times_of(step) for _, step in run]
        return None

    def _factor(self, step: Step) -> Times:
        times = times_of(step)
        return dataclasses.replace(times, part=None) if step in self.fixed else times

    def _entries(self, run: list[tuple[Step, Step]]) -> list[Part]:
        """The scales and the activation that a run of steps is."""
        if not run:
            return []
        first = next((k for k, (_, step) in enumerate(run) if not is_scale(step)), len(run))
        last = next((k for k in range(len(run), first, -1) if not is_scale(run[k - 1][1])), first)
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
    return Unreadable(f"`model`: {culprit} {why_unread(culprit.name)}. {READABLE}")


def _added(bias: Constant | None, more: Constant) -> Constant:
    """The sum of two biases; a parameter where the other one is 0."""
    if bias is None:
        return more
    both = np.asarray(bias.value) + np.asarray(more.value)
    for own, other in ((more, bias), (bias, more)):
        if own.origin is not None and not np.any(other.value):
            return own._replace(value=both)
    return Constant(both)


def _per_unit(shift: Constant, layout: Layout) -> Constant | None:
    """What is added to each unit, if it is the same at all positions."""
    units = layout.units
    assert units is not None
    _, first = np.unique(units, return_index=True)
    own = shift.view(lambda x: np.broadcast_to(x, units.shape).ravel()[first])
    same = np.array_equal(np.asarray(own.value)[units], np.broadcast_to(shift.value, units.shape))
    return own if same else None
