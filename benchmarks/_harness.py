"""What all benchmarks share: a clock, a record of where it ran, and tables."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Tables = dict[str, list[dict[str, Any]]]
RESULTS = pathlib.Path(__file__).parent / "results"


class Timing(NamedTuple):
    """Milliseconds: of the first call, which compiles, and median and minimum of the calls after it."""

    first: float
    median: float
    minimum: float


# As many calls as jfree takes to optimise a program, or so many seconds: what takes long is optimised sooner.
_WARM_CALLS, _WARM_SECONDS = 33, 5.0


def measure(fn: Callable[[], Any], repeats: int = 20, budget: float = 10.0) -> tuple[Any, Timing]:
    """Calls `fn` once, then until it is warm, as programs are optimised that are called often; then up to `repeats`
    times more (three at least, then until `budget` seconds are spent).

    `repeats=0` takes the first call for the time, for work too long to repeat that needs no warm-up.

    **Returns:** what `fn` returns, and the timing.
    """

    def timed() -> float:
        nonlocal value
        start = time.perf_counter()
        value = jax.block_until_ready(fn())
        return 1e3 * (time.perf_counter() - start)

    value = None
    first = timed()
    warm_by = time.perf_counter() + _WARM_SECONDS
    for _ in range(_WARM_CALLS if repeats else 0):
        if time.perf_counter() < warm_by:
            timed()
    times = []
    while len(times) < min(repeats, 3) or (len(times) < repeats and sum(times) < 1e3 * budget):
        times.append(timed())
    times = times or [first]
    return value, Timing(first, statistics.median(times), min(times))


def exponent(rows: list[dict[str, Any]], size: str, cost: str) -> float:
    """`p` of `cost ~ size^p`, fitted to the rows of a table."""
    return float(np.polyfit(np.log([row[size] for row in rows]), np.log([row[cost] for row in rows]), 1)[0])


def environment() -> dict[str, Any]:
    """Date, versions and machine, without names of hosts or users."""
    packages = ("jfree", "jax", "jaxlib", "equinox", "numpy")
    return {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "device": jax.devices()[0].device_kind,
            "dtype": str(jnp.result_type(float)),
        },
    }


def _cpu() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"


def save(name: str, claim: str, tables: Tables, about: dict[str, Any] | None = None) -> pathlib.Path:
    """Writes `results/NAME.json`."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"claim": claim, **(about or {}), **environment(), "tables": tables}, indent=1) + "\n")
    return path


def report(name: str, description: str | None, tables: Tables) -> None:
    """Prints and saves the tables, beside the times saved last; the claim is the first line of the description.

    Every run adds a line to `results/history.jsonl`.
    """
    for title, rows in tables.items():
        print_table(title, rows)
    path = RESULTS / f"{name}.json"
    if path.exists():
        last = json.loads(path.read_text())
        compared = compare(last["tables"], tables)
        if compared:
            machine = last["machine"]
            print_table(f"Times over those of {last['date']}, {machine['cpu']}, {machine['device']}", compared)
    claim = (description or "").splitlines()[0].removeprefix("Claim: ")
    print(f"\nSaved {save(name, claim, tables).name}.")
    line = {"name": name, **environment(), "times": {title: _times(rows) for title, rows in tables.items()}}
    with (RESULTS / "history.jsonl").open("a") as history:
        history.write(json.dumps(line) + "\n")


def compare(last: Tables, tables: Tables) -> list[dict[str, Any]]:
    """By table and column, how the times have changed: smallest, median and largest ratio over the rows of both."""
    rows = []
    for title, new in tables.items():
        old = {_label(row): row for row in last.get(title, [])}
        for key in _times(new):
            pairs = [(row.get(key), old.get(_label(row), {}).get(key)) for row in new]
            ratios = sorted(now / before for now, before in pairs if now and before)
            if ratios:
                spread = {"smallest": ratios[0], "median": statistics.median(ratios), "largest": ratios[-1]}
                rows.append({"table": title, "time": key, **spread})
    return rows


def _times(rows: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """The columns of milliseconds."""
    return {key: [row.get(key) for row in rows] for key in rows[0] if key == "ms" or key.endswith("_ms")}


_COUNTS = ("uncertified", "NaN")


def _label(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells the rows of a table apart: names and sizes."""
    return tuple(value for key, value in row.items() if isinstance(value, str | int) and key not in _COUNTS)


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """One line per row, one column per key, minima left to the record; blank where a row has no value."""
    keys = [key for key in rows[0] if not key.endswith("_min_ms")]
    cells = [keys, *([cell(row[key]) for key in keys] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}")
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def cell(value: Any) -> str:
    """A value of a table, in few digits."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
