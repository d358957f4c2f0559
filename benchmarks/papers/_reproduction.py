"""What a reproduction hands over: tables, a figure, and what was published beside what came out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from matplotlib.figure import Figure

Row = dict[str, Any]


class Check(NamedTuple):
    """A published value, or statement, beside ours; `tolerance` says what counts as agreement."""

    what: str
    published: float | str
    ours: float | str
    tolerance: str
    agrees: bool

    @staticmethod
    def near(what: str, published: float, ours: float, tolerance: float, relative: bool = True) -> "Check":
        """Agreement within a relative (or an absolute) tolerance."""
        scale = abs(published) if relative else 1.0
        words = f"{tolerance:g} {'relative' if relative else 'absolute'}"
        return Check(what, published, ours, words, abs(ours - published) <= tolerance * scale)


@dataclass(frozen=True)
class Reproduction:
    """What one run found. `notes` say where theory, sample and print part, and why."""

    claim: str
    source: str  # "Ling, He, Qiu, Figure 3"
    size: str  # what was run, and what was published
    tables: dict[str, list[Row]]
    checks: list[Check]
    figure: Figure | None = None
    notes: list[str] = field(default_factory=list)


Reproduce = Callable[[bool], Reproduction]  # of `full`: at the published size
