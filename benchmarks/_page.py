"""`RESULTS.md`: every saved table and figure on one page, with where and when it was made."""

import json
import pathlib
from typing import Any

from ._harness import cell, RESULTS

PAGE = RESULTS.parent / "RESULTS.md"


def write_page() -> pathlib.Path:
    """Writes the page anew from what is saved."""
    lines = ["# Results", "", "Made by `python -m benchmarks`, from what it saved in `results/`; not edited by hand."]
    for path in sorted(RESULTS.glob("*.json")) + sorted(RESULTS.glob("papers/*.json")):
        lines += ["", *_section(path, json.loads(path.read_text()))]
    if not (RESULTS / "device-gpu.json").exists():
        lines += ["", "## device-gpu", "", "No GPU was at hand: `python -m benchmarks --device gpu` adds the table."]
    PAGE.write_text("\n".join(lines) + "\n")
    return PAGE


def _section(path: pathlib.Path, saved: dict[str, Any]) -> list[str]:
    name = path.relative_to(RESULTS).with_suffix("").as_posix()
    machine, versions = saved["machine"], saved["versions"]
    lines = [f"## {name}", "", saved["claim"], ""]
    if "source" in saved:
        lines += [f"{saved['source']}. {saved['size']}. {saved['seconds']:.0f} s.", ""]
    where = f"{saved['date']}, {machine['cores']} cores ({machine['cpu']}), {machine['device']}, {machine['dtype']}"
    lines += [f"{where}; jfree {versions['jfree']}, jax {versions['jax']}.", ""]
    if "figure" in saved:
        lines += [f"![{name}]({(path.parent / saved['figure']).relative_to(RESULTS.parent).as_posix()})", ""]
    for title, rows in saved["tables"].items():
        lines += [f"**{title}**", "", *_table(rows), ""]
    lines += [f"- {note}" for note in saved.get("notes", [])]
    return lines[:-1] if not lines[-1] else lines


def _table(rows: list[dict[str, Any]]) -> list[str]:
    keys = [key for key in rows[0] if not key.endswith("_min_ms")]
    header = f"| {' | '.join(keys)} |", f"|{' --- |' * len(keys)}"
    lines = ([cell(row[key]).replace("|", r"\|") for key in keys] for row in rows)
    return [*header, *(f"| {' | '.join(line)} |" for line in lines)]
