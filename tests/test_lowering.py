"""Programs for accelerators, lowered on whatever machine: nothing in them is left to a library of one platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree
from jfree._solve.solve import _TILE

NETWORKS = {
    "hard_tanh": lambda: jfree.MLP([1.0, 2.0, 1.0], "hard_tanh", "orthogonal", 1.05, 0.01),
    "tanh": lambda: jfree.MLP([1.0, 0.5, 1.0], "tanh", "gaussian", 1.2, 0.05),
    "resnet": lambda: jfree.ResNet(3, ["tanh", "relu", "tanh"], "orthogonal", 0.3),
}
X = np.geomspace(1e-3, 2, 5)
QUANTITIES = {
    "density": lambda s: s.density(X),
    "smoothed": lambda s: s.density(X, smoothing=0.1),
    "solve": lambda s: s.solve(X + 0.1j).G,
    "cdf": lambda s: s.cdf(X),
    "log_potential": lambda s: s.log_potential(-X),
    "quantile": lambda s: s.quantile(np.array([0.1, 0.5])),
    "edges": lambda s: jnp.stack(s.edges()),
    "atoms": lambda s: jnp.stack(s.atoms()),
    "mean and variance": lambda s: s.mean() + s.variance(),
    "moment": lambda s: s.moment(3),
    "mean_log": lambda s: s.mean_log(),
    "log_variance": lambda s: s.log_variance(),
    "condition_number": lambda s: s.condition_number(),
}
PLATFORMS = ("cuda", "tpu")


def lowered(fn, *args, platform):
    return jax.jit(fn).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def total(fn):
    return lambda net: jnp.sum(jnp.abs(fn(net)))


def check(fn, net):
    """Values and gradients, on each platform; the solver's tiles there are as wide as there are lanes."""
    for platform in PLATFORMS:
        for program in (fn, jax.grad(total(fn), allow_int=True)):
            assert "custom_call" not in lowered(program, net, platform=platform)


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("network", NETWORKS)
def test_jacobian(network, quantity):
    check(lambda net: QUANTITIES[quantity](jfree.jacobian_spectrum(net)), NETWORKS[network]())


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_fisher(quantity):
    check(lambda net: QUANTITIES[quantity](jfree.fisher_spectrum(net)), NETWORKS["tanh"]())


def test_tiles_follow_the_platform():
    """Lanes of a CPU are worked on in tiles, those of an accelerator at once, wherever they are lowered."""
    net, x = NETWORKS["hard_tanh"](), np.geomspace(1e-3, 2, 1000)
    cpu, cuda = (lowered(lambda net: jfree.jacobian_spectrum(net).density(x), net, platform=p) for p in ("cpu", "cuda"))
    tile = f"<{_TILE}xcomplex<f"
    assert tile in cpu
    assert tile not in cuda
