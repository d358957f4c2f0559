"""Claim: sampled networks of blocks have the predicted spectra, and blocks cost what residual layers cost.

Twenty compositions of layers: samples of width 600 and more, pooled, beside the limit, to within 0.01 of its cdf, those
of convolutions of 64 channels to within 0.02. Then times: pre-norm blocks of one law, whose scales differ, beside
residual layers without norm; and what compiling costs as blocks grow by 100.

Run: `python -m benchmarks.blocks [--quick]`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jfree
from jfree import empirical
from jfree.layers import (
    AbstractLayer,
    Activation,
    Conv,
    Dense,
    Dropout,
    Gated,
    LayerNorm,
    Parallel,
    Patches,
    Repeat,
    Residual,
    RMSNorm,
    Scale,
)

from ._harness import measure, report
from .networks import density

Row = dict[str, Any]
Layers = list[AbstractLayer]


class Case(NamedTuple):
    """Layers whose widths count in units of the stream's, how many samples, and whether widths are channels."""

    layers: Layers
    samples: int = 4
    channels: bool = False


def gaussian(width: float = 1.0, sigma_w: Any = 1.0, **scales: Any) -> Dense:
    return Dense(width, "gaussian", sigma_w, **scales)


def branch(activation: str, width: float = 1.0, sigma_w: Any = 1.0, weights: str = "gaussian") -> Layers:
    return [Dense(width, weights, sigma_w), Activation(activation), Dense(1.0, weights, sigma_w)]


def pre_norm(number: int, activation: str = "gelu", width: float = 4.0, **factors: Any) -> Layers:
    return [Repeat(number, [Residual([RMSNorm(), *branch(activation, width)], **factors)])]


def cases() -> dict[str, Case]:
    """Twenty compositions."""
    parallel = [[LayerNorm(), *branch("tanh")], [RMSNorm(), *branch("relu", 2.0)]]
    inner = Residual(branch("tanh", 2.0))
    nested = Residual([RMSNorm(), gaussian(), inner, gaussian()])
    dropped = [RMSNorm(), gaussian(4.0), Activation("gelu"), Dropout(0.2), gaussian()]
    orthogonal = branch("silu", 2.0, weights="orthogonal")
    growing = Repeat(12, [Residual([RMSNorm(), *orthogonal], scale=jnp.linspace(0.1, 1.0, 12))])
    critical = jfree.constraints.criticality(growth=1 + 1 / 12)(jfree.Network(1.0, pre_norm(12)))
    deep_norm = [Residual(branch("gelu", 4.0, 48**-0.25), skip=12**0.25), LayerNorm()]
    assert isinstance(critical, jfree.Network)
    return {
        "pre-norm GELU, 4 times wider, 1 block": Case(pre_norm(1)),
        "pre-norm GELU, 4 times wider, 12 blocks": Case(pre_norm(12)),
        "pre-norm GELU, 4 times wider, 100 blocks": Case(pre_norm(100), samples=2),
        "SkipInit, tanh, 100 blocks": Case(pre_norm(100, "tanh", 1.0, scale=0.1)),
        "12 pre-norm blocks made to grow by 1/12 each": Case([*critical.layers]),
        "pre-norm SiLU, orthogonal, 12 blocks of scales 0.1 to 1": Case([growing]),
        "post-norm, 4 blocks": Case([Repeat(4, [Residual(branch("tanh", 2.0)), LayerNorm()])]),
        "DeepNorm, GELU, 12 blocks": Case([Repeat(12, deep_norm)]),
        "bottleneck 1/4, ReLU, 1 block": Case([Residual([LayerNorm(), *branch("relu", 0.25)])], samples=8),
        "bottleneck 1/4, ReLU, 6 blocks": Case([Repeat(6, [Residual([LayerNorm(), *branch("relu", 0.25)])])]),
        "SwiGLU, 4 blocks": Case([Repeat(4, [Residual([RMSNorm(), Gated(8 / 3, "silu"), gaussian()])])], samples=8),
        "GeGLU and GELU in turn": Case(
            [Repeat(2, [Residual([RMSNorm(), Gated(2.0, "gelu"), gaussian()]), *pre_norm(1)])]
        ),
        "parallel branches, 3 blocks": Case([Repeat(3, [Parallel(parallel, skip=1.0)])]),
        "branches of other widths, no skip": Case(
            [Parallel([[*branch("tanh", 0.5), gaussian(1.5)], [Dense(1.5)]]), Activation("relu"), gaussian()]
        ),
        "blocks in blocks": Case([Repeat(3, [nested])]),
        "dropout 0.2, 4 blocks": Case([Repeat(4, [Residual(dropped)])]),
        "patches, 3 blocks, and a narrower end": Case(
            [Patches(1.0, 2, positions=1), *pre_norm(3, "tanh", 2.0), RMSNorm(), gaussian(0.5)]
        ),
        "among dense layers of other widths": Case(
            [gaussian(1.3), Activation("tanh"), gaussian(), *pre_norm(3, "relu", 2.0), Scale(0.7), Dense(0.8)]
        ),
        "convolutions of 64 channels, 1 axis, 3 blocks": Case(
            [Repeat(3, [Residual([RMSNorm(), Conv(1.0, 3, sigma_b=0.1), Activation("gelu"), Conv(1.0, 3)])])],
            channels=True,
        ),
        "convolutions of 64 channels, 2 axes, 3 blocks": Case(
            [
                Conv(1.0, (3, 3)),
                Repeat(3, [Residual([LayerNorm(), Conv(1.0, (3, 3)), Activation("tanh"), gaussian()])]),
            ],
            samples=2,
            channels=True,
        ),
    }


def sampled(name: str, case: Case, width: int, channels: int, most_samples: int) -> Row:
    """Predicted and sampled; single eigenvalues outside the bulk count as any other."""
    net = jfree.Network(1.0, case.layers)
    spectrum = jfree.jacobian_spectrum(net)
    units = round((channels if case.channels else width) * float(jnp.max(net.widths)))
    samples = min(case.samples, most_samples)
    sample = lambda: empirical.jacobian_eigenvalues(net, jax.random.key(0), units, samples)  # noqa: E731
    eigenvalues, timing = measure(sample, repeats=0)
    distance, allowed = float(empirical.ks_distance(eigenvalues, spectrum)), 0.02 if case.channels else 0.01
    row = {"case": name, "eigenvalues": eigenvalues.shape[1], "samples": samples}
    row |= {"distance": distance, "allowed": allowed, "met": distance < allowed}
    print(f"{name}: {distance:.4f}", flush=True)
    mean = {"mean": float(spectrum.mean()), "sampled_mean": float(jnp.mean(eigenvalues))}
    return row | mean | {"sampling_seconds": timing.first / 1e3}


def blocks_of_one_law(number: int, layers: Layers) -> jfree.Spectrum:
    """Of all numbers only the scales differ, so that no block stands for another."""
    scales = jnp.linspace(0.5, 1.5, number) * number**-0.5
    return jfree.jacobian_spectrum(jfree.Network(1.0, [Repeat(number, [Residual(layers, scale=scales)])]))


def beside_residual_layers(number: int, points: int) -> list[Row]:
    sigma_w = np.linspace(0.5, 1.5, number) * number**-0.5
    resnet = jfree.jacobian_spectrum(jfree.ResNet(number, "tanh", "gaussian", sigma_w))
    rows = [density("ResNet, tanh", resnet, number, points)]
    for name, layers in (("tanh", branch("tanh")), ("GELU, 4 times wider", branch("gelu", 4.0))):
        spectrum = blocks_of_one_law(number, [RMSNorm(), *layers])
        rows.append(density(f"pre-norm, {name}", spectrum, number, points))
    ratios = [
        {"ratio": row["ms"] / rows[0]["ms"], "ratio_of_minima": row["min_ms"] / rows[0]["min_ms"]} for row in rows
    ]
    return [row | ratio for row, ratio in zip(rows, ratios, strict=True)]


def compiled(number: int, points: int) -> Row:
    spectrum = blocks_of_one_law(number, [RMSNorm(), *branch("tanh")])
    row = density("pre-norm, tanh", spectrum, number, points)
    return row | {"compiling_ms": row["first_ms"] - row["ms"]}


def main(quick: bool = False) -> None:
    """Prints the tables and saves `results/blocks.json`."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_enable_compilation_cache", False)
    width, channels, samples = (100, 16, 2) if quick else (600, 64, 8)
    tables = {
        "Distance from the limit, samples pooled": [
            sampled(name, case, width, channels, samples) for name, case in cases().items()
        ],
        "100 blocks of one law, whose scales differ, beside residual layers": beside_residual_layers(100, 1000),
        "More blocks of one law": [compiled(number, 1000) for number in (10, 100, 1000)],
    }
    report("blocks", __doc__, tables)


if __name__ == "__main__":
    tyro.cli(main)
