"""Layers of several branches: residual blocks, and branches side by side."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .._calculus.curve import Curve
from .._calculus.factor import point_mass
from .._calculus.operation import AbstractOperation
from .._calculus.side_and_shift import ChangeSide
from .._calculus.sum_of_branches import SumOfBranches
from .._layers.layer import AbstractLayer, Change, Entries, sample_all, Signal
from .._numerics.arrays import is_concrete
from .._numerics.checks import check, is_finite
from .._numerics.show import number
from .stacked import joined, StackedNetwork

Layers = tuple[AbstractLayer, ...]


class AbstractBranches(AbstractLayer):
    """`x -> skip x + scale (f_1(x) + ... + f_k(x))`, each `f` being layers one after the other; without the first term
    where nothing is skipped.
    """

    reads_mean: ClassVar[bool] = True
    skips: ClassVar[bool] = True

    @abc.abstractmethod
    def all_branches(self) -> tuple[Layers, ...]:
        """The layers of every branch."""

    @abc.abstractmethod
    def factors(self) -> tuple[Array | float | None, Array | float]:
        """`skip`, None where nothing is skipped, and `scale`; 1.0 costs nothing."""

    def stacked(self, signal: Signal) -> tuple[StackedNetwork, ...]:
        """The branches, behind a signal."""
        assert signal.mean is not None
        return tuple(
            StackedNetwork.of(joined(layers), signal.width, signal.square, signal.mean, one_round=True)
            for layers in self.all_branches()
        )

    @property
    def num_laws(self) -> int:
        return sum(layer.num_laws for layers in self.all_branches() for layer in layers)

    def parts(self) -> Layers:
        return tuple(part for layers in self.all_branches() for layer in layers for part in layer.parts())

    def receive(self, entries: Entries) -> Entries:
        ends = []
        for layers in self.all_branches():
            inner = Entries(gaussian=False, bent=entries.bent)
            for layer in joined(layers):
                inner = layer.receive(inner)
            ends.append(inner)
        terms = ends if self.factors()[0] is None else [entries, *ends]
        return Entries(all(term.gaussian for term in terms), any(term.bent for term in terms))

    def new_width(self) -> Array | None:
        return _widths_of(self.all_branches()[0], None)[-1] if self.factors()[0] is None else None

    def check_width(self, width: Array) -> None:
        """**Raises:** `ValueError` if branches end with different widths, or with another than they begin with where
        that is skipped.
        """
        name, skipped = type(self).__name__, self.factors()[0] is not None
        if any(part.positions_per_position > 1 for part in self.parts()):
            raise ValueError(f"`{_NAMES[name]}` of a `{name}` must not have `Patches` without `positions`.")
        ends = []
        for layers in self.all_branches():
            for layer, before in zip(layers, _widths_of(layers, width), strict=False):
                layer.check_width(before)
            ends.append(_widths_of(layers, width)[-1])
        for end in ends:
            if _differ(end, width) if skipped else _differ(end, ends[0]):
                what, expected = ("the width they begin with", width) if skipped else ("one width", ends[0])
                raise ValueError(
                    f"`{_NAMES[name]}` of a `{name}` must end with {what}, {number(expected)}, got {number(end)}."
                )

    def forward(self, signal: Signal) -> Signal:
        """Means of branches add up; those of different branches are independent."""
        skip, scale = self.factors()
        ends = [branch.end() for branch in self.stacked(signal)]
        assert signal.mean is not None
        square, mean = jnp.zeros_like(signal.square), jnp.zeros_like(signal.square)
        if skip is not None:
            square, mean = jnp.square(skip) * signal.square, skip * signal.mean
        for own_square, own_mean in ends:
            square = square + jnp.square(scale) * own_square + 2 * scale * own_mean * mean
            mean = mean + scale * own_mean
        return signal.passed(square, lambda _: mean)

    def change(self, signal: Signal, change: Change) -> Change:
        """Of different terms only the means have anything in common."""
        skip, scale = self.factors()
        assert signal.mean is not None
        zero = jnp.zeros_like(signal.square)
        overlap, mean, square, signal_mean = zero, zero, zero, zero
        terms = [] if skip is None else [(skip, signal.mean, change)]
        terms += [(scale, branch.end()[1], branch.change(change)) for branch in self.stacked(signal)]
        for factor, own_mean, own in terms:
            squared = jnp.square(factor)
            overlap += squared * own.overlap + factor * (signal_mean * own.mean + own_mean * mean)
            square += squared * own.square + 2 * factor * own.mean * mean
            mean += factor * own.mean
            signal_mean += factor * own_mean
        return Change(overlap, mean, square)

    def operations(self, signal: Signal, refine: float) -> tuple[AbstractOperation | None, ...]:
        skip, scale = self.factors()
        like, one = signal.square.dtype, jnp.ones_like(signal.square)
        relative = jnp.square(jnp.asarray(scale, like) / jnp.asarray(1.0 if skip is None else skip, like))
        last = () if skip is None or (_is_one(skip) and _is_one(scale)) else (point_mass(relative),)
        curves, rounds = [], []
        for branch in self.stacked(signal):
            layers = tuple(op for found in branch.operations(branch.signals(), refine) for op in found)
            num_atoms = max(operation.num_atoms for operation in layers)
            curves.append(Curve(layers, last, one, num_atoms))
            rounds.append(branch.places[0].kind.size)
        width = self.new_width()
        if width is None or skip is not None:
            block = SumOfBranches(tuple(curves), one, None, tuple(rounds))
            return (block,) if skip is None or _is_one(skip) else (block, point_mass(jnp.square(skip) * one))
        ratio = jnp.asarray(signal.width / width, like)
        return SumOfBranches(tuple(curves), one, ratio, tuple(rounds)), ChangeSide(ratio)

    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> "Branches":
        keys = jax.random.split(key, len(self.all_branches())) if len(self.all_branches()) > 1 else [key]
        modules = [sample_all(own, size, scale, k, dtype) for own, k in zip(self.all_branches(), keys, strict=True)]
        skip, factor = self.factors()
        return Branches(tuple(modules), None if skip is None else jnp.asarray(skip, dtype), jnp.asarray(factor, dtype))


class Residual(AbstractBranches):
    """`x -> skip x + scale f(x)`, `f` being layers one after the other, which end with the width they begin with.

    Exact in the limit where `f` begins and ends with weights. Where its last layer acts entry by entry, the slopes of
    several blocks on one stream commute, and are not quite free: in the fourth moment by parts in a thousand.

    **Arguments:**

    - `layers`: those of `f`, at least one with weights.
    - `skip`, `scale`: what the input and the branch are multiplied by, not 0. Both may be tuned: `scale` alone is
        SkipInit's and ReZero's factor.

    **Raises:** `ValueError` naming the argument, for layers that are none or do not fit together, and values out of
    range.
    """

    layers: Layers | StackedNetwork
    skip: Float[Array, ""] | None
    scale: Float[Array, ""] | None

    def __init__(self, layers: Sequence[AbstractLayer], skip: ArrayLike = 1.0, scale: ArrayLike = 1.0):
        self.layers = _checked("layers", "Residual", layers)
        self.skip, self.scale = _factor("skip", skip), _factor("scale", scale)

    @staticmethod
    def given(branch: StackedNetwork) -> "Residual":
        """One or many, of stacked layers."""
        block = object.__new__(Residual)
        for name, value in (("layers", branch), ("skip", None), ("scale", None)):
            object.__setattr__(block, name, value)
        return block

    def all_branches(self) -> tuple[Layers, ...]:
        return () if isinstance(self.layers, StackedNetwork) else (self.layers,)

    def stacked(self, signal: Signal) -> tuple[StackedNetwork, ...]:
        if isinstance(self.layers, StackedNetwork):
            return (eqx.tree_at(lambda n: (n.q0, n.mean0), self.layers, (signal.square, signal.mean)),)
        return super().stacked(signal)

    def bent_branch(self) -> tuple[Any, Any] | None:
        if self.skip is not None or self.scale is not None:
            return None
        if not isinstance(self.layers, StackedNetwork):
            return self.layers if len(self.layers) == 2 else None
        places = self.layers.places
        one_each = len(places) == 2 and places[0].kind.shape[-1] == 1
        return jax.tree.map(lambda x: x[:, 0], places) if one_each else None

    def factors(self) -> tuple[Array | float | None, Array | float]:
        return 1.0 if self.skip is None else self.skip, 1.0 if self.scale is None else self.scale

    def row(self) -> tuple[str, str]:
        factors = [f"{name} {number(x)}" for name, x in (("skip", self.skip), ("scale", self.scale)) if x is not None]
        return "residual", ", ".join([*factors, *map(_row, self.all_branches())])


class Parallel(AbstractBranches):
    """`x -> skip x + f_1(x) + ... + f_k(x)`, each `f` being layers one after the other. All end with one width: that
    they begin with where `skip` is not 0.

    Exact in the limit under the same conditions as a `Residual`. A `Scale` within a branch is its factor.

    **Arguments:**

    - `branches`: sequences of layers, each at least one with weights.
    - `skip`: what the input is multiplied by, 0 for none.

    **Raises:** `ValueError` naming the argument, for layers that are none or do not fit together, and values out of
    range.
    """

    branches: tuple[Layers, ...]
    skip: Float[Array, ""] | None

    def __init__(self, branches: Sequence[Sequence[AbstractLayer]], skip: ArrayLike = 0.0):
        if not isinstance(branches, Sequence) or not branches:
            raise ValueError(f"`branches` must be a sequence of sequences of layers, got {branches!r}.")
        self.branches = tuple(_checked("branches", "Parallel", layers) for layers in branches)
        none = isinstance(skip, int | float) and skip == 0
        self.skip = None if none else _not_zero("skip", skip)

    def all_branches(self) -> tuple[Layers, ...]:
        return self.branches

    def factors(self) -> tuple[Array | float | None, Array | float]:
        return self.skip, 1.0

    def row(self) -> tuple[str, str]:
        skip = [] if self.skip is None else [f"skip {number(self.skip)}"]
        return "parallel", " + ".join([*skip, *map(_row, self.branches)])


class Branches(eqx.Module):
    """`skip x + scale (f_1(x) + ... + f_k(x))`, an Equinox module; without the first term where nothing is skipped."""

    branches: tuple[tuple[Callable[..., Array], ...], ...]
    skip: Float[Array, ""] | None
    scale: Float[Array, ""]

    def __call__(self, x: Array, *, key: PRNGKeyArray | None = None) -> Array:
        total: Any = 0
        for number_of_branch, layers in enumerate(self.branches):
            own = key if key is None or not number_of_branch else jax.random.fold_in(key, number_of_branch)
            keys: Any = [None] * len(layers) if own is None else jax.random.split(own, len(layers))
            y = x
            for layer, layer_key in zip(layers, keys, strict=True):
                y = layer(y, key=layer_key)
            total = total + y
        return self.scale * total if self.skip is None else self.skip * x + self.scale * total


# What the layers of branches are called in their constructors.
_NAMES = {"Residual": "layers", "Parallel": "branches"}


def _checked(argument: str, name: str, layers: Sequence[AbstractLayer]) -> Layers:
    if not isinstance(layers, Sequence) or not all(isinstance(layer, AbstractLayer) for layer in layers):
        raise ValueError(f"`{argument}` must be a sequence of layers of `jfree.layers`, got {layers!r}.")
    if all(layer.new_width() is None for layer in layers):
        raise ValueError(f"`{argument}` of a `{name}` must have weights, such as `Dense`.")
    return tuple(layers)


def _widths_of(layers: Layers, width: Any) -> list[Any]:
    """Before all of them, and behind the last."""
    widths = [width]
    for layer in layers:
        widths.append(layer.width_behind(widths[-1]))
    return widths


def _differ(one: Array, other: Array) -> bool:
    """As far as they are known."""
    return is_concrete(one) and is_concrete(other) and not abs(float(one) - float(other)) <= 1e-6 * float(other)


def _row(layers: Layers) -> str:
    return " > ".join(" ".join(layer.row()) for layer in layers)


def _is_one(factor: Any) -> bool:
    return isinstance(factor, float) and factor == 1


def _factor(name: str, value: ArrayLike) -> Array | None:
    """None for 1, which costs nothing."""
    return None if isinstance(value, int | float) and value == 1 else _not_zero(name, value)


def _not_zero(name: str, value: ArrayLike) -> Array:
    array = jnp.asarray(float(value) if isinstance(value, int) else value)
    return check(array, lambda x: (x != 0) & is_finite(x), f"`{name}` must be finite and not 0.")
