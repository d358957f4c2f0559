"""Claim: what it is worth in training to start from networks that jfree has tuned, rather than from others' starts.

Networks are trained on images from jfree's start and from others', on equal terms: the same architecture, order of the
data, optimisers and steps, nothing clipped, and the best rate of each start, chosen by two seeds and judged by five
others. Every cell is a table, best start first. Seconds are those to the first model, compilation with them.

Left out: DKS of hard tanh, which is not smooth, and of residual networks, whose sums would have to be weighted; TAT but
for ReLU; GradInit in its form for Adam; parameters of other activations than ReLU; convolutions.

Run: `python -m benchmarks.worth [--full] [--families mlp] [--activations tanh] [--depths 50] [--data digits]`.
"""

import json
import time
from typing import Any, get_args, Literal

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure

from .. import _data
from .._harness import print_table, RESULTS, save
from .._page import write_page
from ._comparison import compare, draw, ranked, Row, summary
from ._models import Architecture, Family
from ._training import Data, Optimizer, RATES

Tables = dict[str, list[Row]]

_SUMMARY = "All cells of depth 50 and more"
_SMALL = {"mlp": (50, 100), "pre-norm": (50,), "plain": ()}
_LARGE = {"mlp": (30, 50, 100, 200), "pre-norm": (50, 200), "plain": (50, 200)}


def images(name: Literal["mnist", "digits"]) -> Data:
    """Standardised by mean and deviation of all pixels of the training set, a fifth held out."""
    pixels, classes = _data.mnist() if name == "mnist" else _data.digits()
    cut = len(pixels) * 4 // 5
    pixels = ((pixels - pixels[:cut].mean()) / pixels[:cut].std()).astype(np.float32)
    classes = classes.astype(np.int32)
    return Data(pixels[:cut], classes[:cut], pixels[cut:], classes[cut:])


def depth_of(title: str) -> int:
    return int(title.split("depth ")[1].split(",")[0])


def saved(name: str) -> Tables:
    """The cells of earlier runs."""
    path = RESULTS / f"{name}.json"
    tables = json.loads(path.read_text())["tables"] if path.exists() else {}
    return {title: rows for title, rows in tables.items() if title != _SUMMARY}


def keep(name: str, tables: Tables, about: dict[str, Any]) -> None:
    """Cells and their figure, those of earlier runs with them."""
    deep = {title: rows for title, rows in tables.items() if depth_of(title) >= 50}
    front = {_SUMMARY: summary(deep)} if deep else {}
    for title, rows in front.items():
        print_table(f"{name}: {title}", rows)
    figure = f"{name}.png"
    drawn(tables).savefig(RESULTS / figure, dpi=80)
    claim = (__doc__ or "").splitlines()[0].removeprefix("Claim: ")
    save(name, claim, front | tables, about | {"figure": figure})


def drawn(tables: Tables) -> Figure:
    """Final losses, median and range over seeds, a panel per cell."""
    columns = min(4, len(tables))
    lines = -(-len(tables) // columns)
    figure = Figure(figsize=(4.5 * columns, 3.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for ax, (title, rows) in zip(panels, tables.items(), strict=False):
        middle, low, high = (np.array([row[key] for row in rows]) for key in ("loss", "low", "high"))
        colors = ["C3" if row["start"].startswith("jfree") else "C0" for row in rows]
        y = np.arange(len(rows))[::-1]
        ax.hlines(y, low, high, colors)
        ax.scatter(middle, y, c=colors, zorder=3)
        ax.set_yticks(y, [row["start"] for row in rows], fontsize=7)
        ax.set_xscale("log")
        ax.set_title(title, fontsize=7)
        ax.set_xlabel("training loss at the end", fontsize=7)
    for ax in list(figure.axes)[len(tables) :]:
        ax.remove()
    return figure


def main(
    full: bool = False,
    families: tuple[Family, ...] = get_args(Family),
    activations: tuple[str, ...] | None = None,
    depths: tuple[int, ...] | None = None,
    optimizers: tuple[Optimizer, ...] = ("sgd", "adam"),
    starts: tuple[str, ...] | None = None,
    data: Literal["mnist", "digits"] = "mnist",
    width: int | None = None,
    steps: int | None = None,
    batch: int = 64,
) -> None:
    """Prints the cells, and adds them to `results/worth-FAMILY.json`.

    Args:
        full: all depths and activations, width 64 rather than 32, 300 steps rather than 200, seven rates, not four.
        families: MLPs, residual networks with layer norms and without.
        activations: without it tanh, relu and gelu, of residual networks relu; all five with `full`.
        depths: of MLPs in matrices, of residual networks in blocks.
        optimizers: stochastic gradient descent with momentum 0.9, and Adam.
        starts: those that are run; the rows of others are those of earlier runs of the cell.
        data: 5000 images of MNIST, or scikit-learn's 1797 digits.
        width: of hidden layers.
        steps: of training.
        batch: images per step.
    """
    jax.config.update("jax_enable_x64", True)
    known = images(data)
    width, steps = width or (64 if full else 32), steps or (300 if full else 200)
    for family in families:
        name = f"worth-{family}" + ("-digits" if data == "digits" else "")
        small = ("tanh", "relu", "gelu") if family == "mlp" else ("relu",)
        earlier = saved(name) if starts else {}
        for activation in activations or (("tanh", "relu", "gelu", "silu", "hard_tanh") if full else small):
            for depth in depths or (_LARGE if full else _SMALL)[family]:
                began = time.perf_counter()
                arch = Architecture(family, activation, depth, width, known.x.shape[1])
                models = draw(arch, known, starts)
                if not models:
                    continue
                prepared = time.perf_counter() - began
                tables = {}
                for optimizer in optimizers:
                    began = time.perf_counter()
                    title = f"{activation}, depth {depth}, width {width}, {steps} steps, {optimizer}"
                    num_rates = len(RATES[optimizer]) if full else 4
                    rows = compare(arch, optimizer, known, models, steps, batch, num_rates)
                    others = [row for row in earlier.get(title, []) if row["start"] not in models]
                    tables[title] = ranked([*rows, *others])
                    shown = [{k: v for k, v in row.items() if k != "losses"} for row in tables[title]]
                    print_table(f"{family}: {title}", shown)
                    seconds = time.perf_counter() - began
                    print(f"{seconds:.0f} s of training, {prepared:.0f} s of initialisation.", flush=True)
                keep(name, saved(name) | tables, {"batch": batch, "data": data})
                jax.clear_caches()
    write_page()


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
