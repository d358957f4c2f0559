"""Parts of a model as layers that are measured at one input."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._layers.layer import AbstractLayer
from .._layers.measured import (
    fitted,
    MeasuredGain,
    MeasuredLaw,
    MeasuredSlopes,
    MeasuredWeights,
    Passed,
    squared_singular_values,
)
from .._layers.scale import Scale
from .._layers.weights import Gaussian
from .._networks.branches import Parallel, Residual
from .parts import Function, Norm, Part, Sum, Times, Weights
from .steps import Step

# Slopes that differ by less than this share are one number: those of norms are told from values.
_ONE = 1e-3


def measured(
    parts: list[Part], values: dict[Step, Array], square: float, end: Step, whole: bool
) -> list[AbstractLayer]:
    """Layers with the laws of a model's own weights and slopes.

    **Arguments:** its parts, all values at the input, the input's mean square, the last step, and whether widths are
    those of all positions.

    **Raises:** `ValueError` if something has no such law.
    """
    layers, _ = _Measuring(values, whole).series(parts, square, end)
    return fitted(layers)


@dataclasses.dataclass
class _Diagonal:
    """Functions of every entry and norms, one right behind the other: the slope of each entry, together."""

    rates: np.ndarray
    before: Step
    after: Step
    elasticity: float
    place: str


@dataclasses.dataclass
class _Measuring:
    values: dict[Step, Array]
    whole: bool

    def series(self, parts: Sequence[Part], square: float, end: Step | None) -> tuple[list[AbstractLayer], float]:
        """Layers, and the mean square behind them."""
        layers: list[AbstractLayer] = []
        grouped = self._grouped(parts)
        for k, part in enumerate(grouped):
            known = self._entering(grouped[k + 1 :], end)
            match part:
                case _Diagonal():
                    layer, square = self._slopes(part)
                case Weights():
                    layer, square = self._weights(part, square, known)
                case Times():
                    layer, square = Scale(part.factor), part.factor**2 * square
                case Sum():
                    layer, square = self._sum(part, square, known)
                case _:
                    raise ValueError(
                        f"`model`: the step{part.place} has no measured law. `weights` may be 'measured' where all "
                        "are weights, functions of every entry, norms, scales and sums of such branches."
                    )
            layers.append(layer)
        return layers, square

    def _grouped(self, parts: Sequence[Part]) -> list[Part | _Diagonal]:
        found: list[Part | _Diagonal] = []
        for part in parts:
            if not isinstance(part, Function | Norm):
                found.append(part)
                continue
            mine, last = self._diagonal(part), found[-1] if found else None
            if isinstance(last, _Diagonal) and last.after is mine.before:
                rates, elasticity = last.rates * mine.rates, last.elasticity * mine.elasticity
                found[-1] = _Diagonal(rates, last.before, mine.after, elasticity, mine.place)
            else:
                found.append(mine)
        return found

    def _diagonal(self, part: Function | Norm) -> _Diagonal:
        h = self.values[part.before]
        if isinstance(part, Norm):
            centred = h - jnp.mean(h, part.axes, keepdims=True) if part.centred else h
            rates = part.gains / jnp.sqrt(jnp.mean(jnp.square(centred), part.axes, keepdims=True))
            return _Diagonal(np.asarray(rates), part.before, part.after, 0.0, part.place)
        slopes = jax.vmap(part.activation.derivative)(h.ravel()).reshape(h.shape)
        y = self.values[part.after]
        elasticity = jnp.sum(y * slopes * h) / jnp.sum(jnp.square(y))
        return _Diagonal(np.asarray(slopes), part.before, part.after, float(elasticity), part.place)

    def _entering(self, ahead: Sequence[Part | _Diagonal], end: Step | None) -> float | None:
        """The mean square of what comes into the first of some parts, where a value tells it."""
        factor = 1.0
        for part in ahead:
            match part:
                case Times():
                    factor *= part.factor
                case _Diagonal():
                    return self._square(part.before) / factor**2
                case _:
                    return None
        return None if end is None else self._square(end) / factor**2

    def _square(self, step: Step) -> float:
        return float(jnp.mean(jnp.square(self.values[step])))

    def _passed(self, before: float, after: float, elasticity: float, mean: float = 0.0) -> Passed:
        if not (0 < before < math.inf and 0 < after < math.inf):
            raise ValueError("`model` must not make the signal vanish or overflow at `x`.")
        return Passed(*(jnp.asarray(x) for x in (before, after, mean, elasticity * after / before)))

    def _slopes(self, diagonal: _Diagonal) -> tuple[AbstractLayer, float]:
        squares = np.square(diagonal.rates).ravel()
        if not np.any(squares):
            raise ValueError(f"`model` must not make the Jacobian vanish at `x`: the slopes{diagonal.place} are all 0.")
        after = self._square(diagonal.after)
        mean = float(jnp.mean(self.values[diagonal.after]))
        passed = self._passed(self._square(diagonal.before), after, diagonal.elasticity, mean)
        if np.ptp(squares) <= _ONE * np.max(squares):
            return MeasuredGain(passed, jnp.asarray(np.mean(squares))), after
        return MeasuredSlopes(passed, MeasuredLaw.of(jnp.asarray(squares))), after

    def _weights(self, part: Weights, square: float, known: float | None) -> tuple[AbstractLayer, float]:
        random = part.layer(Gaussian(), self.whole)
        sigma_w, sigma_b = part.scales()
        after = sigma_w**2 * square + sigma_b**2 if known is None else known
        passed = self._passed(square, after, sigma_w**2 * square / after)
        width = random.new_width()
        assert width is not None
        law = MeasuredLaw.of(squared_singular_values(_matrices(part)))
        return MeasuredWeights(passed, width, law, random.positions_per_position), after

    def _sum(self, part: Sum, square: float, known: float | None) -> tuple[AbstractLayer, float]:
        skip = 0.0 if part.skip is None else part.skip.factor
        branches, squares = zip(*(self.series(branch, square, None) for branch in part.branches), strict=True)
        after = skip**2 * square + sum(squares) if known is None else known
        if part.is_residual:
            return Residual(branches[0], skip), after
        return Parallel(branches, skip), after


def _matrices(part: Weights) -> Float[Array, "*stack out in"]:
    """The blocks that weights are unitarily equivalent to: of a convolution one per frequency."""
    weight = np.asarray(part.weight.value)
    if not part.size or part.stride:
        return jnp.asarray(weight.reshape(weight.shape[0], -1))
    kernel = np.zeros((*weight.shape[:2], *part.positions), weight.dtype)
    for place in np.ndindex(*part.size):  # a kernel may be longer than the circle
        around = tuple(n % of for n, of in zip(place, part.positions, strict=True))
        kernel[(..., *around)] += weight[(..., *place)]
    axes = tuple(range(2, kernel.ndim))
    return jnp.asarray(np.moveaxis(np.fft.fftn(kernel, axes=axes).reshape(*weight.shape[:2], -1), -1, 0))
