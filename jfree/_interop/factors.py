"""Constants that values are multiplied by: scales, and the masks of dropout."""

import math

import numpy as np

from .parts import ALIKE, Mask, Part, Times
from .steps import Constant, Step, Unreadable


def is_scale(step: Step) -> bool:
    """Whether a step multiplies by a constant."""
    constants = [a for a in step.arguments if isinstance(a, Constant)]
    if step.name == "neg":
        return True
    if step.name not in ("mul", "div") or len(constants) != 1 or is_mask(constants[0]):
        return False
    return step.name == "mul" or step.arguments[1] is constants[0]


def times_of(step: Step) -> Times:
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


def is_mask(constant: Constant) -> bool:
    """Whether some entries are 0 and all others equal."""
    values = np.asarray(constant.value)
    alive = values != 0
    return bool(0 < np.count_nonzero(alive) < values.size and np.ptp(values[alive].astype(float)) == 0)


def rate_of(step: Step, run: list[tuple[Step, Step]]) -> tuple[float, bool] | None:
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
    if not run or not is_scale(run[-1][1]):
        return None
    keep = 1 / times_of(run[-1][1]).factor
    return (keep, True) if 0 < keep < 1 and _is_share(keep, share, number) else None


def largest(mask: Constant) -> float:
    return float(np.max(np.asarray(mask.value, float)))


def with_rates(parts: list[Part]) -> list[Part]:
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
        f"`model`: the step{mask.place} sets entries to 0, but does not divide by the share that it keeps, as "
        "dropout does."
    )


def _is_share(keep: float, share: float, number: int) -> bool:
    """Whether a share of so many may be what is kept with a probability, within six standard deviations."""
    return abs(keep - share) <= 6 * (keep * (1 - keep) / number) ** 0.5
