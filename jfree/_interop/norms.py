"""Norms, told by what they make of random vectors."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .parts import Norm
from .steps import Constant, Step
from .weights import Layout

# Steps are compared with norms at so many vectors of about this size, next to which what norms add to the variance is
# nothing; and by how much the two may differ.
_NUM_TRIED, _LARGE, _NORM = 8, 1e3, 1e-3


class Normed(NamedTuple):
    """What a norm does to vectors."""

    centred: bool
    gains: np.ndarray
    offsets: np.ndarray
    axes: tuple[int, ...]


def is_whole(axes: tuple[int, ...], layout: Layout) -> bool:
    """Whether what is normalised together are all units of some positions."""
    if layout.positions is None or layout.units is None:
        return True
    last = range(layout.positions.ndim - len(axes), layout.positions.ndim)
    groups = np.moveaxis(layout.positions, axes, last).reshape(-1, math.prod(layout.positions.shape[a] for a in axes))
    return len(set(groups[0].tolist())) * (int(layout.units.max()) + 1) == groups.shape[1]


def norm_of(before: Step, step: Step, between: list[Step]) -> Normed | None:
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
                return Normed(centred, gains, offsets, over)
    return None


def _normalised(x: np.ndarray, axes: tuple[int, ...], centred: bool) -> np.ndarray:
    x = x - x.mean(axes, keepdims=True) if centred else x
    return x / np.sqrt(np.mean(np.square(x), axes, keepdims=True))


def _fit(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The line that is nearest to all, for every unit."""
    dx, dy = x - x.mean(0), y - y.mean(0)
    slope = np.sum(dx * dy, 0) / np.sum(dx * dx, 0)
    return slope, y.mean(0) - slope * x.mean(0)


def with_parameters(norm: Normed, before: Step, step: Step, between: list[Step]) -> Norm:
    centred, gains, offsets, axes = norm
    mean = float(gains.mean())

    def parameter(name: str) -> Constant | None:
        constants = (a for inner in between if inner.name == name for a in inner.arguments if isinstance(a, Constant))
        return next((a for a in constants if a.origin is not None and np.size(a.value) > 1), None)

    gain = parameter("mul")
    if gain is not None:
        gain = gain.scaled(mean / float(np.mean(gain.value)))

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
