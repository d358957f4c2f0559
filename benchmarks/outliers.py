"""Claim: single eigenvalues outside the bulk are where they are predicted.

Residual networks of 100 blocks `x + phi(W x)`, `sigma_w^2 = c / 100`, as Ling, He and Qiu have them: the smallest and
the largest eigenvalue in the limit beside those of samples, at inputs of mean 0. Then MLPs, and residual networks with
orthogonal weights or biases. Where none is predicted the limit is the bulk's end, which samples stay within: they are
compared with Tracy and Widom's law at their width.

Run: `python -m benchmarks.outliers [--full]`.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

import jfree

from ._harness import measure, report

Row = dict[str, Any]
Network = jfree.MLP | jfree.ResNet

_NUM_BLOCKS = 100
_PUBLISHED = ("tanh", "hard_tanh", "relu", "leaky_relu", "sigmoid", "silu")


# Mean and standard deviation of Tracy and Widom's law of real matrices (Bornemann 2010).
_MEAN, _DEVIATION = -1.2065335745820, 1.6077810345810**0.5


class Size(NamedTuple):
    """A width, and how many samples of it."""

    width: int
    samples: int


def published(c: float) -> dict[str, Network]:
    sigma_w = (c / _NUM_BLOCKS) ** 0.5
    return {f"{name}, c = {c:g}": jfree.ResNet(_NUM_BLOCKS, name, "gaussian", sigma_w) for name in _PUBLISHED}


def others() -> dict[str, Network]:
    rather_large = jfree.activations.FromFunction(lambda h: h - jnp.tanh(h))
    return {
        "10 blocks of ReLU, orthogonal": jfree.ResNet(10, "relu", "orthogonal", 0.3**0.5),
        "10 blocks of ReLU, biases": jfree.ResNet(10, "relu", "gaussian", 0.3**0.5, 0.5**0.5),
        "10 blocks of ReLU, inputs of mean 0.7": jfree.ResNet(10, "relu", "gaussian", 0.1**0.5, mean0=0.7),
        "MLP of 4 layers of h - tanh(h)": jfree.MLP([1] * 5, rather_large, "gaussian", 2.0),
        "MLP of 3 layers of h - tanh(h), orthogonal": jfree.MLP([1] * 4, rather_large, "orthogonal", 2.0),
        "MLP of 5 layers of ReLU": jfree.MLP([1] * 6, "relu", "gaussian", 2.0**0.5),
    }


@eqx.filter_jit
def step(activation: Any, skip: float, x: Array, jacobian: Array, w: Array, b: Array) -> tuple[Array, Array]:
    h = w @ x + b
    return skip * x + activation(h), skip * jacobian + activation.derivative(h)[:, None] * (w @ jacobian)


def sampled(net: Network, size: Size) -> Float[np.ndarray, "samples 2"]:
    """The extreme eigenvalues at inputs whose mean and mean square are the network's."""
    mean, skip = (float(net.mean0), 1.0) if isinstance(net, jfree.ResNet) else (0.0, 0.0)
    found = []
    for key in jax.random.split(jax.random.key(0), size.samples):
        weights_key, x_key = jax.random.split(key)
        x = jax.random.normal(x_key, (size.width,))
        x = (x - jnp.mean(x)) / jnp.std(x) * jnp.sqrt(net.q0 - mean**2) + mean
        jacobian = jnp.eye(size.width)
        for activation, (w, b) in zip(net.activations, jfree.sample_weights(net, weights_key, size.width), strict=True):
            x, jacobian = step(activation, skip, x, jacobian, w, b)
        values = np.square(np.linalg.svd(np.asarray(jacobian), compute_uv=False))
        found.append([values[-1], values[0]])
    return np.asarray(found)


def at_width(spectrum: jfree.Spectrum, edge: float, inwards: int, width: int) -> tuple[float, float]:
    """Mean and standard deviation of an extreme eigenvalue beside an edge where the density falls like a root."""
    near = 1e-5 * edge
    density = float(spectrum.density(edge + inwards * near))
    scale = (np.pi * density / near**0.5 * width) ** (-2 / 3)
    return edge - inwards * _MEAN * scale, _DEVIATION * scale


def rows(networks: dict[str, Network], sizes: list[Size]) -> list[Row]:
    """Both ends of every network at every width; `off` counts standard errors of the samples' mean, of an
    outlier their own, of a bulk's end those of its law.
    """
    found = []
    for name, net in networks.items():
        spectrum = jfree.jacobian_spectrum(net)
        limit, timing = measure(spectrum.outliers, repeats=2)
        for size in sizes:
            samples = sampled(net, size)
            mean, error = samples.mean(0), samples.std(0, ddof=1) / size.samples**0.5
            row: Row = {"network": name, "width": size.width, "samples": size.samples}
            for k, end in enumerate(("smallest", "largest")):
                value, bulk = float(getattr(limit, end)), float(limit.bulk[k])
                row |= {f"{end}_of_bulk": bulk, end: value, f"sampled_{end}": float(mean[k])}
                own = error[k]
                if value == bulk:
                    value, deviation = at_width(spectrum, bulk, (1, -1)[k], size.width)
                    own = deviation / size.samples**0.5
                row[f"{end}_off"] = float((mean[k] - value) / own) if bulk > 0 else None
            found.append(row | {"first_ms": timing.first, "ms": timing.median})
    return found


def main(full: bool = False) -> None:
    """Prints and saves the tables.

    Args:
        full: widths up to 2000.
    """
    jax.config.update("jax_enable_x64", True)
    sizes = [Size(500, 12)] + ([Size(1000, 8), Size(2000, 4)] if full else [])
    tables = {f"100 blocks, sigma_w^2 = {c:g} / 100": rows(published(c), sizes) for c in (1.0, 0.1)}
    report("outliers", __doc__, tables | {"Others": rows(others(), sizes)})


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
