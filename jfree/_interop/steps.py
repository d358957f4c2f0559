"""Steps from values that depend on the input to other such values, and constants."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


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
