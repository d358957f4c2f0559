"""Claim: deep networks train fastest where all layers together have a nonlinearity near 0.5, whatever the activation.

MLPs of orthogonal weights by which all preactivations have one mean square, from nearly linear ones to very nonlinear
ones: by that mean square of tanh, and by the negative slope of leaky ReLU. Each is trained on MNIST's images at every
rate; the best one is shown, by the median over seeds of the loss on the training set.

Run: `python -m benchmarks.nonlinearity [--depths 50 100] [--width 64] [--steps 300]`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jfree
from jfree.constraints import fixed_variance

from ._harness import report
from .worth.__main__ import images
from .worth._models import Architecture, drawn, Scales, UNCHANGED
from .worth._training import Data, Optimizer, Run, train

Row = dict[str, Any]

_RATES: dict[Optimizer, np.ndarray] = {"sgd": np.geomspace(1e-3, 1e-2, 3), "adam": np.geomspace(1e-4, 1e-3, 3)}
_SEEDS = (0, 1, 2)
_MEAN_SQUARES = (0.003, 0.03, 0.1, 0.2, 0.3, 1.0)
_SLOPES = (0.0, 0.2, 0.4, 0.55, 0.7, 0.8, 0.9, 0.99)


def networks(activation: str, depth: int, width: int, num_in: int) -> list[tuple[float, jfree.MLP]]:
    """What differs, and the network."""
    tanh = activation == "tanh"
    found = []
    for value in _MEAN_SQUARES if tanh else _SLOPES:
        phi = "tanh" if tanh else jfree.activations.LeakyReLU(value)
        net = jfree.MLP([num_in, *[width] * (depth - 1), 10], phi, "orthogonal", np.ones(depth))
        even = fixed_variance(value if tanh else 1.0)(net)
        assert isinstance(even, jfree.MLP)
        found.append((value, even))
    return found


def trained(activation: str, depth: int, width: int, data: Data, optimizer: Optimizer, steps: int) -> list[Row]:
    arch = Architecture(
        "mlp", "tanh" if activation == "tanh" else "relu", depth, width, num_in=data.x.shape[1], num_out=10
    )
    nets = networks(activation, depth, width, arch.num_in)
    name = "mean square" if activation == "tanh" else "slope"
    runs = []
    for value, net in nets:
        w = np.asarray(net.sigma_w)
        shape = UNCHANGED if activation == "tanh" else np.array([1.0, 0.0, 1.0, 0.0, value])
        scales = Scales(w[0], w[None, 1:-1], w[-1], shape=shape)
        runs += [Run(drawn(arch, "orthogonal", scales, s), rate, s) for rate in _RATES[optimizer] for s in _SEEDS]
    outcomes = train(arch, optimizer, data, runs, steps, batch=64)
    losses, accuracies = (
        np.array([getattr(o, key) for o in outcomes]).reshape(len(nets), -1, len(_SEEDS))
        for key in ("capped", "accuracy")
    )
    rows = []
    for (value, net), loss, accuracy in zip(nets, losses, accuracies, strict=True):
        best = int(np.argmin(np.median(loss, 1)))
        rows.append(
            {name: value, "nonlinearity": float(jnp.sum(jfree.nonlinearity(net)))}
            | {"objective": float(jfree.objectives.weighted_isometry(net))}
            | {"loss": float(np.median(loss[best])), "low": float(loss[best].min()), "high": float(loss[best].max())}
            | {"accuracy": float(np.median(accuracy[best])), "rate": float(_RATES[optimizer][best])}
        )
    return rows


def main(depths: tuple[int, ...] = (50, 100), width: int = 64, steps: int = 300) -> None:
    """Prints the tables and saves `results/nonlinearity.json`."""
    jax.config.update("jax_enable_x64", True)
    data = images("mnist")
    data = data._replace(x=data.x / np.sqrt(np.mean(data.x**2)))
    tables = {
        f"{activation}, {depth} layers, {optimizer}": trained(activation, depth, width, data, optimizer, steps)
        for activation in ("tanh", "leaky ReLU")
        for depth in depths
        for optimizer in ("sgd", "adam")
    }
    report("nonlinearity", __doc__, tables)


if __name__ == "__main__":
    tyro.cli(main)
