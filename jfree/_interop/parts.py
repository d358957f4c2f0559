"""What a model is read as: layers to be, and where the parameters of each stand."""

import abc
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import equinox as eqx
import jax
import numpy as np

from .._layers.activation import Activation
from .._layers.conv import Conv, Patches
from .._layers.dense import Dense
from .._layers.dropout import Dropout
from .._layers.gated import Gated
from .._layers.layer import AbstractLayer
from .._layers.normalisation import LayerNorm, RMSNorm
from .._layers.scale import Scale
from .._layers.weights import AbstractWeights, Gaussian, Orthogonal
from .._networks.branches import Parallel, Residual
from ..activations._base import AbstractActivation
from .steps import Constant, Step

# By which share of their mean gains may differ, and offsets by which share of the gain. Such gains would add 0.01 to
# the relative variance of a spectrum, to which Gaussian weights add 1.
ALIKE = 0.05

# Matrices are orthogonal if `W^T W v` differs from a multiple of `v` by less than this share of what it would if they
# were Gaussian.
_ORTHOGONAL = 0.01

# To which share a parameter of a model and one of an activation agree if they are the same.
_SAME = 1e-5


@dataclasses.dataclass
class Slot:
    """Where parameters of one layer stand, None where the model has none; and what numbers they are now.

    - `kind`: `weights`, of which `parts` are the matrix or kernel and the bias; `norm`, gain and offset; `scale`, one
        factor; `sum`, what the skip and the branch are multiplied by; `activation`, its own parameters.
    """

    kind: str
    place: str
    parts: tuple[Constant | None, ...]
    numbers: tuple[float, ...]


@dataclasses.dataclass(kw_only=True)
class Part(abc.ABC):
    """A layer to be, and where it was found."""

    place: str
    vanishes: ClassVar[bool] = False

    def slots(self) -> list[Slot]:
        return []

    @abc.abstractmethod
    def layer(self, law: AbstractWeights | None, whole: bool) -> AbstractLayer:
        """The layer, its weights of this law, or of that which they look like; `whole`, if widths are those of all
        positions, not of one.
        """


@dataclasses.dataclass(kw_only=True)
class Weights(Part):
    """Weights `(num_out, num_in, *size)`, at each of `positions`; of patches if `stride`."""

    weight: Constant
    positions: tuple[int, ...]
    bias: Constant | None = None
    stride: bool = False

    @property
    def size(self) -> tuple[int, ...]:
        return self.weight.value.shape[2:]

    @property
    def vanishes(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return not np.any(self.weight.value) and (self.bias is None or not np.any(self.bias.value))

    def slots(self) -> list[Slot]:
        return [Slot("weights", self.place, (self.weight, self.bias), (math.nan, 0.0))]

    def scales(self) -> tuple[float, float]:
        sigma_w = _root_mean_square(self.weight.value) * math.prod(self.weight.value.shape[1:]) ** 0.5
        if not 0 < sigma_w < math.inf:
            raise ValueError(f"`model`: weights{self.place} must be finite and not all 0.")
        return sigma_w, 0.0 if self.bias is None else _root_mean_square(self.bias.value)

    def law(self, law: AbstractWeights | None) -> AbstractWeights:
        return law if law is not None else Orthogonal() if self._is_orthogonal() else Gaussian()

    def _is_orthogonal(self) -> bool:
        """Patches as one matrix, convolutions where they are delta-orthogonal."""
        weight = self.weight.value
        return _is_orthogonal(weight.reshape(weight.shape[0], -1) if self.stride else weight)

    def layer(self, law: AbstractWeights | None, whole: bool) -> AbstractLayer:
        (sigma_w, sigma_b), channels, size = self.scales(), self.weight.value.shape[0], self.size
        positions = self.positions if whole else None
        if not size and (not whole or math.prod(self.positions) == 1):
            return Dense(channels, self.law(law), sigma_w, sigma_b)
        kind = Patches if self.stride else Conv
        return kind(channels, size or (1,) * len(self.positions), self.law(law), sigma_w, sigma_b, positions)


def numbers_of(activation: Any) -> tuple[float, ...]:
    """The parameters of an activation, if it has some."""
    if not isinstance(activation, AbstractActivation):
        return ()
    return tuple(float(x) for x in jax.tree.leaves(activation) if eqx.is_inexact_array_like(x) and not np.ndim(x))


def _activation_slots(activation: AbstractActivation, place: str, parameters: tuple[Constant, ...] = ()) -> list[Slot]:
    """Parameters of the model are those of an activation if they have the same values."""
    numbers = numbers_of(activation)

    def is_it(parameter: Constant, number: float) -> bool:
        return parameter.number is not None and abs(parameter.number - number) <= _SAME * abs(number)

    def part(number: float) -> Constant | None:
        return next((parameter for parameter in parameters if is_it(parameter, number)), None)

    parts = [part(number) for number in numbers]
    # One that could stand for two is not known to be either.
    known = tuple(one if sum(one is other for other in parts) == 1 else None for one in parts)
    return [Slot("activation", place, known, numbers)] if numbers else []


@dataclasses.dataclass(kw_only=True)
class Gate(Part):
    value: Weights
    gate: Weights
    activation: AbstractActivation

    def slots(self) -> list[Slot]:
        return [*self.value.slots(), *self.gate.slots(), *_activation_slots(self.activation, self.place)]

    def layer(self, law: AbstractWeights | None, whole: bool) -> AbstractLayer:
        if whole or self.value.size or self.gate.size:
            raise ValueError(f"`model`: the gate{self.place} must be of dense layers, not of convolutions.")
        if any(isinstance(part.law(law), Orthogonal) for part in (self.value, self.gate)):
            raise ValueError(f"`model`: the weights of the gate{self.place} must be Gaussian, not orthogonal.")
        (sigma_w, sigma_b), (sigma_gate, gate_b) = self.value.scales(), self.gate.scales()
        both = ((sigma_b**2 + gate_b**2) / 2) ** 0.5
        return Gated(self.value.weight.value.shape[0], self.activation, sigma_w, sigma_gate, both)


@dataclasses.dataclass(kw_only=True)
class Norm(Part):
    """What normalises over `axes`, and then multiplies and adds; the values before and behind it."""

    centred: bool
    gains: np.ndarray
    offsets: np.ndarray
    axes: tuple[int, ...]
    parts: tuple[Constant | None, Constant | None]
    before: Step
    after: Step

    @property
    def gain(self) -> float:
        return float(np.mean(self.gains))

    @property
    def offset(self) -> float:
        return float(np.mean(self.offsets))

    def slots(self) -> list[Slot]:
        return [Slot("norm", self.place, self.parts, (self.gain, self.offset))]

    def layer(self, law: AbstractWeights | None, whole: bool) -> AbstractLayer:
        self._check_alike()
        if self.centred:
            return LayerNorm(self.gain, self.offset if self.offset else 0)
        if self.offset:
            raise ValueError(f"`model`: the RMS norm{self.place} must have no biases but 0.")
        return RMSNorm(self.gain)

    def _check_alike(self) -> None:
        if np.std(self.gains) > ALIKE * abs(self.gain):
            raise ValueError(
                f"`model`: the norm{self.place} must have gains that are alike, within 5 % of their mean: with gains "
                "that differ from unit to unit, it is no multiple of the identity, as which norms are read. Norms of "
                'trained models can be read with `weights="measured"`.'
            )
        if np.std(self.offsets) > ALIKE * abs(self.gain):
            raise ValueError(
                f"`model`: the biases of the norm{self.place} must be alike, within 5 % of its gain: its offset is one "
                "number."
            )


@dataclasses.dataclass(kw_only=True)
class Times(Part):
    factor: float
    part: Constant | None

    @property
    def vanishes(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.factor == 0

    def slots(self) -> list[Slot]:
        return [Slot("scale", self.place, (self.part,), (self.factor,))]

    def layer(self, law: AbstractWeights | None, whole: bool) -> AbstractLayer:
        return Scale(self.factor)


@dataclasses.dataclass(kw_only=True)
class Mask(Part):
    """Dropout; `kept`, if what it divides by is not known yet."""

    rate: float
    kept: np.ndarray | None = None

    def layer(self, law: AbstractWeights | None, whole: bool) -> AbstractLayer:
        return Dropout(self.rate)


@dataclasses.dataclass(kw_only=True)
class Function(Part):
    """A function of every entry, the parameters of the model that it reads, and the values before and behind it."""

    activation: AbstractActivation
    parameters: tuple[Constant, ...]
    before: Step
    after: Step

    def slots(self) -> list[Slot]:
        return _activation_slots(self.activation, self.place, self.parameters)

    def layer(self, law: AbstractWeights | None, whole: bool) -> AbstractLayer:
        return Activation(self.activation)


@dataclasses.dataclass(kw_only=True)
class Sum(Part):
    """Branches, and what is skipped, times `skip`; None if nothing is."""

    branches: list[list[Part]]
    skip: Times | None

    @property
    def is_residual(self) -> bool:
        return self.skip is not None and len(self.branches) == 1

    def _scaled(self) -> tuple[list[Part], Times | None]:
        """The one branch beside a skip, and its factor apart."""
        (branch,) = self.branches
        last = branch[-1]
        return (branch[:-1], last) if isinstance(last, Times) else (branch, None)

    def slots(self) -> list[Slot]:
        """Those of the branches, and last its own: of the skip and of the one branch's factor."""
        scale, branches = None, self.branches
        if self.is_residual:
            branch, scale = self._scaled()
            branches = [branch]
        own = [(1.0, None) if times is None else (times.factor, times.part) for times in (self.skip, scale)]
        numbers, parts = zip(*own, strict=True)
        inner = [slot for branch in branches for part in branch for slot in part.slots()]
        return [*inner, Slot("sum", self.place, parts, numbers)]

    def layer(self, law: AbstractWeights | None, whole: bool) -> AbstractLayer:
        if self.is_residual:
            branch, scale = self._scaled()
            return Residual(_layers(branch, law, whole), _factor(self.skip), _factor(scale))
        branches = [_layers(branch, law, whole) for branch in self.branches]
        return Parallel(branches, 0.0 if self.skip is None else _factor(self.skip))


def _factor(times: Times | None) -> float | np.ndarray:
    """An array where it is a parameter, which may be tuned."""
    if times is None:
        return 1.0
    return times.factor if times.part is None else np.asarray(times.factor)


def _layers(parts: list[Part], law: AbstractWeights | None, whole: bool) -> list[AbstractLayer]:
    return [part.layer(law, whole) for part in parts]


def all_weights(parts: list[Part]) -> Iterator[Weights]:
    """In the order in which they act."""
    for part in parts:
        match part:
            case Weights():
                yield part
            case Gate():
                yield from (part.value, part.gate)
            case Sum():
                for branch in part.branches:
                    yield from all_weights(branch)
            case _:
                pass


def _root_mean_square(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


def _is_orthogonal(weight: np.ndarray) -> bool:
    """Of convolutions those that are 0 but in one place of the kernel, and orthogonal there."""
    taps = weight.reshape(*weight.shape[:2], -1)
    alive = np.flatnonzero(np.any(taps != 0, (0, 1)))
    if alive.size != 1:
        return False
    matrix = np.asarray(taps[:, :, alive[0]], np.float64)
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    few, many = matrix.shape
    if few == 1:
        return False
    probes = np.random.default_rng(0).standard_normal((few, 4))
    seen = matrix @ (matrix.T @ probes)
    multiple = np.sum(seen * probes) / np.sum(probes**2)
    return bool(np.sum((seen - multiple * probes) ** 2) < _ORTHOGONAL * few / many * np.sum((multiple * probes) ** 2))
