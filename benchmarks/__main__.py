"""Runs every benchmark at its default size, each in its own process, then writes `RESULTS.md`: `python -m benchmarks`.

`--page` writes the page only; `--device gpu` measures a GPU; `--freenn PATH` times the published code, too. Published
figures and tables have a command of their own, `python -m benchmarks.papers`.
"""

import pkgutil
import subprocess
import sys
from typing import Literal

import tyro

import benchmarks

from ._page import write_page


def main(page: bool = False, device: Literal["cpu", "gpu"] = "cpu", freenn: str | None = None) -> None:
    """Runs all, and writes `RESULTS.md`.

    Args:
        page: writes `RESULTS.md` only, from what is saved.
        device: with gpu, runs only what compares devices, on a GPU.
        freenn: path of a checkout of redachhaibi/FreeNN, the published code, to be timed beside jfree.
    """
    names = [module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_")]
    commands = {name: [name] for name in names if name != "papers"}
    commands["device"] += ["--device", device]
    if device == "gpu" and freenn is not None:
        sys.exit("`freenn` is timed on the CPU only.")
    if freenn is not None:
        commands["density"] += ["--freenn", freenn]
    chosen = [] if page else ["device"] if device == "gpu" else list(commands)
    failed = []
    for name in chosen:
        print(f"== {name}", flush=True)
        module, *arguments = commands[name]
        if subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *arguments]).returncode:
            failed.append(name)
    print(f"Wrote {write_page().name}.")
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    tyro.cli(main)
