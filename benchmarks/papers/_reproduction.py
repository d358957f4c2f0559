"""What a reproduction hands over: tables, a figure, and what was published beside what came out."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from .._harness import RESULTS

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


def beside(name: str, checks: list[Check]) -> list[Row]:
    """These checks, on MNIST, and those that the reproduction `name` saved last, on digits."""
    saved = json.loads((RESULTS / "papers" / f"{name}.json").read_text())["tables"]["Published, and ours"]
    digits = {row["what"]: row for row in saved}
    return [
        {"what": check.what, "published": check.published}
        | {"digits": digits[check.what]["ours"], "digits agree": digits[check.what]["agrees"]}
        | {"MNIST": check.ours, "MNIST agrees": check.agrees}
        for check in checks
    ]


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
