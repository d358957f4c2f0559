"""Claim: deep networks are tuned in seconds, sampled ones are what was asked for, and they train better than others.

What gradients cost beside values. A deep network tuned to singular values near 1, and one sampled network beside it;
residual networks tuned to one condition number; hidden widths tuned at a given number of weights; and training from the
tuned scale beside usual ones.

Run: `python -m benchmarks.tuning [--quick]`.
"""

import time
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import jfree
from jfree.cli._network import Network
from jfree.cli._train import equinox_default, sampled, train
from jfree.empirical import jacobian_eigenvalues

from ._harness import measure, report

Row = dict[str, Any]

_LEVELS = np.array([0.05, 0.95])


def quantities(spectrum: jfree.Spectrum) -> dict[str, Any]:
    """By name, as scalars to differentiate; of as many points as the density is mostly asked for."""
    x = spectrum.mean() * jnp.geomspace(0.5, 2, 100)
    return {
        "density, 100 points": lambda: jnp.sum(spectrum.density(x)),
        "cdf, 100 points": lambda: jnp.sum(spectrum.cdf(x)),
        "9 quantiles": lambda: jnp.sum(jnp.log(spectrum.quantile(jnp.linspace(0.1, 0.9, 9)))),
        "edges": lambda: sum(spectrum.edges()),
        "condition number": spectrum.condition_number,
        "moment 3": lambda: spectrum.moment(3),
        "mean_log": spectrum.mean_log,
    }


def gradients(depth: int, activation: str, names: tuple[str, ...]) -> list[Row]:
    """With respect to all `sigma_w`; each is one compiled function of the network."""
    net = jfree.MLP(np.ones(depth + 1), activation, "orthogonal", np.full(depth, 1.1), 0.05)
    rows = []
    for name in names:

        def value(sigma_w, name=name):
            moved = eqx.tree_at(lambda n: n.sigma_w, net, sigma_w)
            if name == "isometry":
                return jfree.objectives.isometry(moved)
            return quantities(jfree.jacobian_spectrum(moved))[name]()

        _, cheap = measure(partial(jax.jit(value), net.sigma_w))
        _, dear = measure(partial(jax.jit(jax.value_and_grad(value)), net.sigma_w))
        row = {"layers": depth, "activation": activation, "quantity": name, "value_ms": cheap.median}
        rows.append(row | {"with_gradient_ms": dear.median, "ratio": dear.median / cheap.median})
    return rows


def tuned(net: jfree.MLP | jfree.ResNet, *args, **options) -> tuple[Any, Row]:
    """Steps and seconds include the start and compilation."""
    start = time.perf_counter()
    result = jax.block_until_ready(jfree.tune(net, *args, **options))
    seconds = time.perf_counter() - start
    return result, {"steps": int(np.isfinite(result.history).sum()), "seconds": seconds}


def isometry(depth: int, width: int) -> list[Row]:
    net = jfree.MLP(np.ones(depth + 1), "tanh", "orthogonal", np.full(depth, 1.5))
    optimizer = optax.lion(optax.cosine_decay_schedule(0.05, 100))
    options = {"optimizer": optimizer, "steps": 100, "stop_at": 2e-3, "nonlinearity": 0}
    result, cost = tuned(net, jfree.objectives.isometry, **options)
    predicted = np.sqrt(jfree.jacobian_spectrum(result.net).quantile(_LEVELS))
    eigenvalues = jacobian_eigenvalues(result.net, jax.random.key(0), width)
    measured = np.sqrt(np.quantile(eigenvalues, _LEVELS))
    return [
        {"layers": depth, "width": width, "objective": float(result.objective), **cost}
        | {"level": float(p), "predicted": float(s), "measured": float(t), "difference": float(t / s - 1)}
        for p, s, t in zip(_LEVELS, predicted, measured, strict=True)
    ]


def condition_number(blocks: int, value: float) -> Row:
    """The gradient falls by orders of magnitude on the way: only its sign counts."""
    net = jfree.ResNet(blocks, "relu", "gaussian", 1.0)
    objective = jfree.objectives.target(jfree.objectives.condition_number, value)
    result, cost = tuned(net, objective, optimizer=optax.rprop(0.2), steps=100, stop_at=1e-6)
    reached = float(jfree.objectives.condition_number(result.net))
    return {"blocks": blocks, "reached": reached, "sigma_w^2 blocks": float(result.net.sigma_w**2 * blocks)} | cost


def widths(seed: int, depth: int, steps: int) -> Row:
    """From hidden widths drawn at random, largest first; inputs and outputs stay."""
    hidden = np.sort(np.random.default_rng(seed).integers(20, 400, depth - 1))[::-1]
    net = jfree.MLP(np.array([64, *hidden, 10.0]), "hard_tanh", "gaussian", 1.5, 0.1)
    constraint = jfree.constraints.parameter_budget(num_weights(net), 64, 10)
    objective = jfree.objectives.log_spread()
    result, cost = tuned(net, objective, lambda n: n.widths, steps=steps, constraint=constraint)
    shown = [" ".join(f"{w:.0f}" for w in n.widths) for n in (net, result.rounded)]
    spreads = result.history[0], result.objective, result.rounded_objective
    return (
        {"widths": shown[0], "tuned": shown[1]}
        | dict(zip(("spread before", "after", "rounded"), map(float, spreads), strict=True))
        | {"weights before": num_weights(net), "rounded weights": num_weights(result.rounded)}
        | cost
    )


def num_weights(net: jfree.MLP) -> int:
    return int(jnp.sum(net.widths[1:] * net.widths[:-1]))


def training(depth: int, width: float, steps: int, seeds: int) -> list[Row]:
    """Final losses on scikit-learn's digits; wins are seeds where the loss is the lowest of all."""
    net, data = Network().build(None, depth, width, labelled=True)
    assert isinstance(net, jfree.MLP)
    assert data.x is not None
    assert data.y is not None
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 60), b2=0.9)
    result, _ = tuned(net, optimizer=optimizer, steps=60)
    num_in, num_out = net.widths[:-1], net.widths[1:]
    glorot = jfree.MLP(net.widths, "tanh", "gaussian", jnp.sqrt(2 * num_in / (num_in + num_out)), q0=net.q0)
    he = jfree.MLP(net.widths, "tanh", "gaussian", 2**0.5, q0=net.q0)
    drawn = {f"tuned, sigma_w = {result.net.sigma_w:.3f}": result.net, "Glorot": glorot, "He": he}
    starts = {name: [sampled(start, seed) for seed in range(seeds)] for name, start in drawn.items()}
    starts["Equinox's default"] = [equinox_default(sampled(net, seed), seed) for seed in range(seeds)]
    adam = optax.adam(1e-4)  # one for all, so that it compiles once
    runs = {
        name: [train(model, data.x, data.y, steps, adam, s) for s, model in enumerate(some)]
        for name, some in starts.items()
    }
    losses = {name: np.array([run.loss for run in found]) for name, found in runs.items()}
    best = np.min([*losses.values()], axis=0)
    return [
        {"start": name, "loss": float(loss.mean()), "min": float(loss.min()), "max": float(loss.max())}
        | {"wins": int((loss == best).sum()), "accuracy": float(np.mean([run.accuracy for run in runs[name]]))}
        | {"losses": " ".join(f"{x:.4f}" for x in loss)}
        for name, loss in losses.items()
    ]


def main(quick: bool = False) -> None:
    """Prints the tables and saves `results/tuning.json`."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_enable_compilation_cache", False)
    depth, blocks, profiles = (20, (10, 20), 1) if quick else (100, (25, 50, 100), 3)
    digits = (10, 64.0, 100, 2) if quick else (50, 128.0, 400, 5)
    spread = ("isometry", "moment 3", "mean_log", "density, 100 points")
    explicit = ("cdf, 100 points", "9 quantiles", "edges", "condition number")
    tables = {
        "What a gradient costs": gradients(depth, "hard_tanh", spread + explicit) + gradients(depth, "tanh", spread),
        f"{depth} tanh orthogonal layers from sigma_w = 1.5": isometry(depth, 200),
        "ResNets tuned to condition number 4": [condition_number(b, 4.0) for b in blocks],
        "Width profile under a budget": [widths(seed, 6, 20 if quick else 100) for seed in range(profiles)],
        f"Training on digits, depth {digits[0]}": training(*digits),
    }
    report("tuning", __doc__, tables)


if __name__ == "__main__":
    tyro.cli(main)
