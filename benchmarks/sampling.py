"""Claim: sampled networks of width 1000 have the predicted spectra, and what parts them shrinks as they grow.

Pooled samples beside the limit, for Jacobians, Fishers and residual networks; single samples as the width grows, with
the exponent; how much of a single sample's distance its own variances `q_l` explain; and a network too wide for its
Jacobian to be diagonalised, by Lanczos' method.

Run: `python -m benchmarks.sampling [--quick]`.
"""

import functools
import resource
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jfree
from jfree import empirical
from jfree.extend import curve_of

from ._harness import measure, report

Row = dict[str, Any]
Case = tuple[jfree.Spectrum, Callable[..., Any], float | None]

_WIDE = 4096


def cases() -> dict[str, Case]:
    """Spectra, what samples them, and the last shift of those of Fisher informations."""
    plain = {
        "Jacobian, 5 tanh layers, orthogonal": jfree.MLP(np.ones(6), "tanh", "orthogonal", 1.2, 0.1),
        "Jacobian, 5 ReLU layers, Gaussian": jfree.MLP(np.ones(6), "relu", "gaussian", 2**0.5),
        "Jacobian, 3 SiLU layers, 1 : 2 : 1 : 0.5": jfree.MLP([1, 2, 1, 0.5], "silu", "gaussian", 1.5),
    }
    residual = {
        "ResNet, 10 ReLU blocks": jfree.ResNet(10, "relu", "gaussian", 0.3),
        "ResNet, 10 tanh blocks of 2 layers": jfree.ResNet(10, "tanh", "orthogonal", 0.5, layers_per_block=2),
    }
    fisher = {"Fisher, 4 tanh layers, Gaussian": jfree.MLP(np.ones(5), "tanh", "gaussian", 1.3, 0.1)}
    found: dict[str, Case] = {
        name: (jfree.jacobian_spectrum(net), functools.partial(empirical.jacobian_eigenvalues, net), None)
        for name, net in (plain | residual).items()
    }
    for name, net in fisher.items():
        sample, shift = functools.partial(empirical.fisher_eigenvalues, net), float(jfree.propagate(net).phi2[-2])
        found[name] = jfree.fisher_spectrum(net), sample, shift
    return found


def smooth_part(eigenvalues: np.ndarray, spectrum: jfree.Spectrum, shift: float | None) -> float:
    """The distance away from atoms, by 0.4 in the logarithm, and of what is not 0 from the limit of that.

    A sample has its atoms elsewhere, and so the last shift of a Fisher spectrum, where square layers have a peak like
    `x^(-1/2)`. Of the ranks of several layers the least counts, which at finite width is less than in the limit.
    """
    values = np.sort(eigenvalues[eigenvalues > 1e-12 * eigenvalues.max()])
    zero = float(spectrum.mass_at_zero())
    at = (np.asarray(spectrum.cdf(values)) - zero) / (1 - zero)
    distance = np.abs(at - (np.arange(values.size) + 0.5) / values.size)
    places, masses = (np.asarray(a) for a in spectrum.atoms())
    places = [*places[(masses > 0) & (places > 0)], *([shift] if shift else [])]
    away = np.all([np.abs(np.log(values / place)) > 0.4 for place in places], axis=0) if places else values > 0
    return float(np.nanmax(distance[away]))


def pooled(width: int, num_samples: int) -> list[Row]:
    rows = []
    for name, (spectrum, sample, shift) in cases().items():
        eigenvalues, timing = measure(lambda sample=sample: sample(jax.random.key(0), width, num_samples), repeats=0)
        distance = float(empirical.ks_distance(eigenvalues, spectrum))
        row = {"case": name, "width": width, "samples": num_samples, "distance": distance}
        row["of_the_smooth_part"] = smooth_part(np.asarray(eigenvalues), spectrum, shift)
        rows.append(row | {"sampling_seconds": timing.first / 1e3})
    return rows


def growing(widths: tuple[int, ...], num_samples: int) -> list[Row]:
    rows = []
    for name, (spectrum, sample, _) in cases().items():
        found = empirical.convergence(sample, spectrum, jax.random.key(1), widths, num_samples)
        distances = {f"N = {width}": float(d) for width, d in zip(widths, found.single, strict=True)}
        rows.append({"case": name} | distances | {"slope": float(found.slope)})
    return rows


@eqx.filter_jit
def with_own_variances(net: jfree.MLP, q: jax.Array) -> jfree.Spectrum:
    """The Jacobian's limit if the preactivations had these variances."""
    layers = net.layers
    inputs, preactivations = layers.signals()
    preactivations = eqx.tree_at(lambda signal: signal.square, preactivations, q)
    operations = sum(layers.operations((inputs, preactivations)), ())
    num_atoms = max(2, *(operation.num_atoms for operation in operations))
    return jfree.Spectrum(curve_of(operations, (), jnp.ones_like(q[0]), num_atoms))


def one_sample(net: jfree.MLP, key: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """Squared singular values of a Jacobian, and the mean squares of the preactivations it was taken at."""
    input_key, key = jax.random.split(key)
    x = jax.random.normal(input_key, (width,))
    x, jacobian, q = x * jnp.sqrt(net.q0 / jnp.mean(x**2)), jnp.eye(width), []
    for activation, (weight, bias) in zip(net.activations, jfree.sample_weights(net, key, width), strict=True):
        h = weight @ x + bias
        x, jacobian = activation(h), activation.derivative(h)[:, None] * (weight @ jacobian)
        q.append(jnp.mean(h**2))
    return jnp.linalg.svd(jacobian, compute_uv=False) ** 2, jnp.stack(q)


def explained(width: int, num_samples: int) -> list[Row]:
    rows = []
    for weights in ("gaussian", "orthogonal"):
        net = jfree.MLP(np.ones(6), "tanh", weights, 1.5, 0.1, final_activation="tanh")
        spectrum = jfree.jacobian_spectrum(net)
        distances = []
        for key in jax.random.split(jax.random.key(2), num_samples):
            eigenvalues, q = one_sample(net, key, width)
            limits = spectrum, with_own_variances(net, q)
            distances.append([float(empirical.ks_distance(eigenvalues, limit)) for limit in limits])
        limit, own = np.mean(distances, axis=0)
        row = {"case": f"5 tanh layers, {weights}", "width": width, "samples": num_samples, "from_the_limit": limit}
        rows.append(row | {"with_own_q": own, "explained": 1 - own / limit})
    return rows


def lanczos(width: int, depth: int, num_steps: int) -> Row:
    """In single precision."""
    net = jfree.MLP(np.full(depth + 1, width), "tanh", "orthogonal", 1.05, 0.05)
    spectrum = jfree.jacobian_spectrum(net)
    single = jax.tree.map(lambda x: x.astype(jnp.float32) if hasattr(x, "astype") else x, net)
    model = jfree.to_equinox(single, jax.random.key(3))
    x = jax.random.normal(jax.random.key(4), (width,), jnp.float32)
    x = x / jnp.sqrt(jnp.mean(x**2))
    run = functools.partial(empirical.jacobian_density_lanczos, model, x, jax.random.key(5), num_steps)
    density, timing = measure(run, repeats=0)
    t = np.linspace(0, 1.1 * float(spectrum.edges()[1]), 1001)[1:]
    distance = np.nanmax(np.abs(np.asarray(density.cdf(t.astype(np.float32))) - np.asarray(spectrum.cdf(t))))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    row = {"width": width, "layers": depth, "steps": num_steps, "seconds": timing.first / 1e3}
    return row | {"peak_memory_GB": peak, "distance_of_cdf": float(distance)}


def main(quick: bool = False) -> None:
    """Prints the tables and saves `results/sampling.json`."""
    jax.config.update("jax_enable_x64", True)
    width, num_samples = (200, 16) if quick else (1000, 24)
    tables = {
        "Too wide to diagonalise, by Lanczos' method": [lanczos(_WIDE // 8 if quick else _WIDE, 10, 64)],
        "Distance from the limit, samples pooled": pooled(width, num_samples),
        "Distance from the limit of single samples, on average": growing((50, 100, 200, 400), 16),
        "What a sample's own variances explain": explained(400, 4 if quick else 16),
    }
    report("sampling", __doc__, tables)


if __name__ == "__main__":
    tyro.cli(main)
