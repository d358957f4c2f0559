"""Claim: Fisher and residual spectra cost what Jacobians of as many layers cost, in proportion to layers and points.

Times of certified densities on the real axis, from the spectrum to the density: a Fisher spectrum beside the Jacobian
of the same network, and residual networks of distinct blocks, as layers and points grow by 100.

Run: `python -m benchmarks.networks [--quick]`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jfree

from ._harness import measure, report

Row = dict[str, Any]


def inside(spectrum: jfree.Spectrum, num: int) -> np.ndarray:
    """Geometric between the edges, these left out."""
    lower, upper = (float(e) for e in spectrum.edges())
    lower = lower or upper * 1e-6
    return np.geomspace(lower, upper, num + 2)[1:-1]


def density(case: str, spectrum: jfree.Spectrum, layers: int, num: int) -> Row:
    x = inside(spectrum, num)
    jax.clear_caches()
    found, timing = measure(lambda: spectrum.density(x))
    each = 1e6 * timing.median / (layers * num)
    row = {"case": case, "layers": layers, "points": num, "first_ms": timing.first, "ms": timing.median}
    return row | {"min_ms": timing.minimum, "ns_per_layer_and_point": each, "uncertified": int(np.isnan(found).sum())}


def fisher_beside_jacobian(num: int) -> list[Row]:
    net = jfree.MLP(jnp.ones(21), "hard_tanh", "gaussian", 1.3, 0.1)
    jacobian = density("Jacobian, hard tanh", jfree.jacobian_spectrum(net), 20, num)
    fisher = density("Fisher, hard tanh", jfree.fisher_spectrum(net), 20, num)
    return [jacobian | {"ratio": None}, fisher | {"ratio": fisher["ms"] / jacobian["ms"]}]


def residual(blocks: int, num: int, activation: str) -> Row:
    sigma_w = np.full(blocks, blocks**-0.5)  # one each, so that no block stands for another
    spectrum = jfree.jacobian_spectrum(jfree.ResNet(blocks, activation, "gaussian", sigma_w))
    return density(f"ResNet, {activation}", spectrum, blocks, num)


def main(quick: bool = False) -> None:
    """Prints the tables and saves `results/networks.json`."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_enable_compilation_cache", False)
    blocks = (10, 100) if quick else (10, 100, 1000)
    sizes = (100, 1000) if quick else (100, 1000, 10_000)
    fisher = jfree.MLP(jnp.ones(21), "hard_tanh", "gaussian", 1.3, 0.1)
    tables = {
        "Fisher and Jacobian of one network": fisher_beside_jacobian(1000),
        "Fisher, more points": [density("Fisher, hard tanh", jfree.fisher_spectrum(fisher), 20, n) for n in sizes],
        "Residual networks, more blocks": [residual(b, 1000, "hard_tanh") for b in blocks],
        "Residual networks, smooth": [residual(b, 1000, "tanh") for b in blocks[:2]],
        "Residual networks, more points": [residual(20, n, "hard_tanh") for n in sizes],
    }
    report("networks", __doc__, tables)


if __name__ == "__main__":
    tyro.cli(main)
