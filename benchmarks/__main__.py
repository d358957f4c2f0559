"""Runs every benchmark at its default size, each in its own process, then writes `RESULTS.md`: `python -m benchmarks`.

`python -m benchmarks --page` writes the page only.
"""

import pkgutil
import subprocess
import sys

import tyro

import benchmarks

from ._page import write_page


def main(page: bool = False) -> None:
    """Runs all, or with `page` none, and writes `RESULTS.md` from what is saved."""
    failed = []
    for module in pkgutil.iter_modules(benchmarks.__path__):
        if not page and not module.name.startswith("_"):
            print(f"== {module.name}", flush=True)
            if subprocess.run([sys.executable, "-m", f"benchmarks.{module.name}"]).returncode:
                failed.append(module.name)
    print(f"Wrote {write_page().name}.")
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    tyro.cli(main)
