"""Claim: everything runs unchanged on an accelerator, in float64 and in float32.

Certified densities of 20 hard tanh layers, from the network to the density in one compiled function: layers times
points per second, and the share of the measured peak of complex multiplications and additions that they amount to.
Where the tables of two devices are saved, `RESULTS.md` shows both; the sizes where one overtakes the other are printed.

Run: `python -m benchmarks.device [--device gpu] [--quick]`.
"""

import json
import os
import sys
from functools import partial
from typing import Any, Literal

import tyro

Row = dict[str, Any]


def rows(dtype: str, sizes: tuple[int, ...], peak: float) -> list[Row]:
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jfree

    from ._harness import measure
    from .scale import least_operations

    real = jnp.dtype(dtype)
    net = jfree.MLP(np.ones(21, real), "hard_tanh", "orthogonal", real.type(1.1), real.type(0.05))
    lower, upper = map(float, jfree.jacobian_spectrum(net).edges())
    compiled = eqx.filter_jit(lambda net, x: jfree.jacobian_spectrum(net).density(x))
    found = []
    for num in sizes:
        x = jnp.asarray(np.linspace(lower, upper, num + 2)[1:-1], real)
        density, timing = measure(partial(compiled, net, x))
        rate = 20 * num / (1e-3 * timing.median)
        share = sum(least_operations(net, jax.ShapeDtypeStruct((num,), real))) / (1e-3 * timing.median) / peak
        failed = int(jnp.isnan(density).sum())
        row = {"dtype": dtype, "points": num, "first_ms": timing.first, "ms": timing.median}
        found.append(row | {"layers_x_points_per_s": rate, "share_of_peak": share, "uncertified": failed})
    return found


def crossover(ours: list[Row], others: list[Row]) -> int | None:
    """The fewest points from which on ours is the faster."""
    times = {row["points"]: row["ms"] for row in others}
    slower = [row["points"] for row in ours if row["ms"] >= times.get(row["points"], 0)]
    return min((row["points"] for row in ours if row["points"] > max(slower, default=0)), default=None)


def main(device: Literal["cpu", "gpu"] = "cpu", quick: bool = False) -> None:
    """Prints the tables and saves `results/device-DEVICE.json`."""
    os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[device]
    import jax

    try:
        jax.devices()
    except RuntimeError:
        sys.exit(f"No {device} is at hand, or JAX is installed without support for it: pip install 'jax[cuda12]'.")
    from ._harness import report, RESULTS
    from .scale import complex_rate

    jax.config.update("jax_enable_x64", True)
    sizes = (100, 1000, 10_000, 100_000) if quick else (100, 1000, 10_000, 100_000, 1_000_000)
    peaks = {dtype: complex_rate(dtype, 2**12 if device == "cpu" else 2**22) for dtype in ("float64", "float32")}
    tables = {
        "Measured peak": [{"dtype": dtype, "complex_Gflop_per_s": peak / 1e9} for dtype, peak in peaks.items()],
        **{f"Density, {dtype}": rows(dtype, sizes, peak) for dtype, peak in peaks.items()},
    }
    report(f"device-{device}", __doc__, tables)
    other = RESULTS / f"device-{'gpu' if device == 'cpu' else 'cpu'}.json"
    if not other.exists():
        print(f"{other.name} is not there: nothing to compare with.")
        return
    saved = json.loads(other.read_text())["tables"]
    for title in list(tables)[1:]:
        pair = (tables[title], saved[title])
        ours, others = pair if device == "gpu" else pair[::-1]
        least = crossover(ours, others)
        where = "nowhere" if least is None else f"from {least} points on"
        print(f"{title}: the GPU is the faster {where}.")


if __name__ == "__main__":
    tyro.cli(main)
