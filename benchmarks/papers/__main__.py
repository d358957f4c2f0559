"""Published figures and tables, reproduced.

Prints the published values beside ours, with a verdict each; writes `benchmarks/results/papers/NAME.json` and
`NAME.png`, and `benchmarks/RESULTS.md` anew. Exits 1 if something does not agree.

Run: `python -m benchmarks.papers NAME [--full]`; without a name, all of them.
"""

import importlib
import pkgutil
import sys
import time
from typing import Annotated

import jax
import tyro

import benchmarks.papers

from .._harness import print_table, RESULTS, save
from .._page import write_page
from ._reproduction import Reproduce, Reproduction


def reproductions() -> dict[str, Reproduce]:
    """All that the modules beside this one offer, by name."""
    found: dict[str, Reproduce] = {}
    for module in pkgutil.iter_modules(benchmarks.papers.__path__):
        if not module.name.startswith("_"):
            found |= importlib.import_module(f"benchmarks.papers.{module.name}").REPRODUCTIONS
    return found


def run(name: str, reproduce: Reproduce, full: bool) -> bool:
    """Prints and saves one; tells whether all agrees."""
    start = time.perf_counter()
    result: Reproduction = reproduce(full)
    seconds = time.perf_counter() - start
    print(f"\n== {name}: {result.claim}\n{result.source}. {result.size}. {seconds:.0f} s.")
    checks = [check._asdict() for check in result.checks]
    for title, rows in result.tables.items():
        print_table(title, rows)
    print_table("Published, and ours", checks)
    for note in result.notes:
        print(f"- {note}")
    about = {"source": result.source, "size": result.size, "full": full, "seconds": seconds, "notes": result.notes}
    tables = result.tables | {"Published, and ours": checks}
    if result.figure:
        about["figure"] = f"{name}.png"
        (RESULTS / "papers").mkdir(parents=True, exist_ok=True)
        result.figure.savefig(RESULTS / "papers" / f"{name}.png", dpi=90, bbox_inches="tight")
    save(f"papers/{name}", result.claim, tables, about)
    return all(check.agrees for check in result.checks)


def main(name: Annotated[str | None, tyro.conf.Positional] = None, full: bool = False) -> None:
    """Runs one reproduction, or all.

    Args:
        name: which; without it, all.
        full: at the published size, rather than one that finishes within three minutes on two cores, or within half an
            hour on images of MNIST.
    """
    jax.config.update("jax_enable_x64", True)
    known = reproductions()
    if name is not None and name not in known:
        sys.exit(f"No reproduction is called {name!r}. There are: {', '.join(known)}.")
    agreed = True
    for each in known if name is None else [name]:
        agreed &= run(each, known[each], full)
        jax.clear_caches()
    write_page()
    sys.exit(not agreed)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
