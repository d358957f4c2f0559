"""Claim: jfree's certified densities take less time than Newton lilypads, by a factor that grows with the points.

The case is that of Table 5.1 of Chhaibi, Daouda and Kahn: 20 linear Gaussian layers of widths `1.25^l`, points on
(-1, 6), `Im z = 1e-4`. Baselines run in the same process, up to `--baselines-up-to` points. jfree is timed from the
network to the density, on all cores; the baselines are sequential by nature. Then: the density on the real axis itself,
deep and smooth networks, and Figure 5.1, sampled singular values of a ReLU network against their density.

Run: `python -m benchmarks.density [--sizes 100 1000] [--monte-carlo 500]`; `--monte-carlo 0` leaves Figure 5.1 out.
`--freenn PATH` times a checkout of the published code, redachhaibi/FreeNN, on the case of Table 5.1; it needs click.
"""

import importlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jfree

from . import _baselines as baselines
from ._harness import measure, report

SMOOTHING = 1e-4
PAPER = {100: 38.1, 200: 57.4, 400: 95.4, 1000: 220.7}  # ms, Table 5.1, on an Intel i7-9850H
Row = dict[str, Any]


def midpoints(low: float, high: float, num: int) -> np.ndarray:
    return low + (high - low) * (np.arange(num) + 0.5) / num


def time_density(net: jfree.AbstractNetwork, x: np.ndarray, smoothing: float | None = None) -> tuple[np.ndarray, Row]:
    """Density and times, as called and all in one compiled function; the first call has nothing compiled."""
    jax.clear_caches()
    density, timing = measure(lambda: jfree.jacobian_spectrum(net).density(x, smoothing=smoothing))
    compiled = eqx.filter_jit(lambda net, x: jfree.jacobian_spectrum(net).density(x, smoothing=smoothing))
    points = jnp.asarray(x)
    _, whole = measure(lambda: compiled(net, points))
    times = {"first_ms": timing.first, "jfree_ms": timing.median, "jfree_min_ms": timing.minimum}
    return np.asarray(density), times | {"in_one_jit_ms": whole.median, "in_one_jit_min_ms": whole.minimum}


class Truth:
    """The reference density at up to 2000 of the points `z`."""

    def __init__(self, factors: baselines.Factors, z: np.ndarray):
        self.every = -(-len(z) // 2000)
        self.density = baselines.reference(factors, z[:: self.every])

    def error(self, density: np.ndarray) -> float:
        """The largest error, relative where there is any density, over the points that are not NaN."""
        scale = np.where(self.density > 1e-9, self.density, 1)
        return float(np.nanmax(np.abs(density[:: self.every] - self.density) / scale))


def paper_case() -> tuple[jfree.MLP, baselines.Factors]:
    widths, sigma_w = 1.25 ** np.arange(21), 0.8**0.5
    return jfree.MLP(jnp.asarray(widths), "linear", "gaussian", sigma_w), baselines.linear_gaussian(widths, sigma_w)


def smoothed(num: int, with_baselines: bool) -> Row:
    """Table 5.1."""
    net, factors = paper_case()
    x = midpoints(-1, 6, num)
    z = x + 1j * SMOOTHING
    truth = Truth(factors, z)
    density, times = time_density(net, x, SMOOTHING)
    row = {"points": num, **times, "jfree_error": truth.error(density), "uncertified": int(np.isnan(density).sum())}
    solvers: dict[str, Callable[..., Any]] = {
        "lilypads": baselines.lilypads,
        "root_following": baselines.root_following,
    }
    for name, solver in solvers.items():
        columns = (f"{name}_ms", f"{name}_min_ms", f"{name}_ratio", f"{name}_error")
        row |= dict.fromkeys(columns)
        if with_baselines:
            density, slow = measure(lambda solver=solver: solver(factors, z), repeats=5)
            ratio = slow.median / times["jfree_ms"]
            row |= dict(zip(columns, (slow.median, slow.minimum, ratio, truth.error(density)), strict=True))
    return row | {"paper_ms": PAPER.get(num)}


def unsmoothed(case: str, net: jfree.AbstractNetwork, x: np.ndarray, factors: baselines.Factors | None) -> Row:
    """The density on the real axis; without factors there is no reference."""
    density, times = time_density(net, x)
    error = Truth(factors, x + 0j).error(density) if factors else None
    row = {"case": case, "points": len(x), **times}
    return row | {"error": error, "uncertified": int(np.isnan(density).sum())}


def on_the_axis(sizes: tuple[int, ...]) -> list[Row]:
    net, factors = paper_case()
    rows = [unsmoothed("Table 5.1", net, midpoints(-1, 6, num), factors) for num in sizes]
    net = jfree.MLP(jnp.ones(21), "tanh", "gaussian", 1.3, 0.1, final_activation="tanh")
    upper = float(jfree.jacobian_spectrum(net).edges()[1])
    rows.append(unsmoothed("20 tanh layers", net, midpoints(0, upper, 1000), None))
    for depth in (10, 1000):
        widths = np.ones(depth + 1)
        upper = (depth + 1) * (1 + 1 / depth) ** depth
        net, factors = jfree.MLP(jnp.asarray(widths), "linear", "gaussian"), baselines.linear_gaussian(widths, 1.0)
        rows.append(unsmoothed(f"{depth} linear layers", net, midpoints(0, upper, 1000), factors))
    return rows


def sampled(width: int, num_points: int = 1000, num_bins: int = 50) -> Row:
    """Figure 5.1. Bins are even in the square root: the density grows like `s^(-1/2)` towards 0."""
    net = jfree.MLP(jnp.ones(5), "relu", "gaussian", 2**0.5, final_activation="relu")
    spectrum = jfree.jacobian_spectrum(net)
    rng = np.random.default_rng(0)
    baselines.monte_carlo(100, 4, rng)  # warms up
    values, slow = measure(lambda: baselines.monte_carlo(width, 4, rng), repeats=0)
    top = max(values.max(), float(spectrum.edges()[1]) ** 0.5)
    root = midpoints(0, 1, num_points)
    s = top * root**2
    density, times = time_density(net, s**2)
    mass = 2 * s * density * 2 * top * root / num_points
    mass = mass.reshape(num_bins, -1).sum(axis=1)
    mass[0] += float(spectrum.mass_at_zero())
    counts, _ = np.histogram(values, top * np.linspace(0, 1, num_bins + 1) ** 2)
    row = {"width": width, "points": num_points, **times}
    row |= {"sampling_ms": slow.median, "ratio": slow.median / times["jfree_ms"]}
    return row | {"L1_distance": float(np.abs(counts / width - mass).sum())}


def published(path: str, num: int) -> Row:
    """The published lilypads, compiled by Cython where that was built, and Algorithm 1."""
    sys.path.insert(0, path)
    net, _ = paper_case()
    _, times = time_density(net, midpoints(-1, 6, num), SMOOTHING)
    row = {"points": num, "jfree_ms": times["jfree_ms"]}
    options = {"interval": (-1, 6), "N": num, "ignoreNonLinearity": True}
    lilypads = options | {"imaginary_parts": [SMOOTHING]}
    solvers = {"newton_lilypads": lilypads, "newton_lilypads_cython": lilypads, "pennington_algorithm1": options}
    for name, options in solvers.items():
        try:
            run = importlib.import_module(f"experiments.{name}").run_as_module
            _, slow = measure(partial(run, [0.8] * 20, [1] * 20, **options), repeats=3)
            row |= {f"{name}_ms": slow.median, f"{name}_ratio": slow.median / times["jfree_ms"]}
        except ImportError as error:
            print(f"{name} was not timed: {error}.")
    return row


def main(
    sizes: tuple[int, ...] = (100, 200, 400, 1000, 10_000, 100_000),
    baselines_up_to: int = 1000,
    monte_carlo: int = 3000,
    freenn: str | None = None,
) -> None:
    """Prints the tables and saves `results/density.json`."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_enable_compilation_cache", False)
    tables = {
        f"Table 5.1: 20 linear Gaussian layers, Im z = {SMOOTHING:g}": [
            smoothed(num, num <= baselines_up_to) for num in sizes
        ],
        "On the real axis, no smoothing": on_the_axis(sizes),
    }
    if monte_carlo:
        tables["Figure 5.1: singular values of 4 ReLU layers, sampled"] = [sampled(monte_carlo)]
    if freenn is not None:
        tables["Table 5.1, the published code"] = [published(freenn, 1000)]
    report("density", __doc__, tables)


if __name__ == "__main__":
    tyro.cli(main)
