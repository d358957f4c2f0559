"""Initialisations that need no more than the architecture and the mean square of an input.

A start is a function from a `Problem` to a function from seeds to models: what the first does, all seeds share.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import anyinit
import jax
import jax.numpy as jnp
import numpy as np
import optax
from dks.base import activation_transform
from jaxtyping import Float, Int
from torch.nn.init import calculate_gain

import jfree
from jfree._initialize import even_start
from jfree._networks.nonlinearity import usual_share

from ._models import Architecture, BASE, drawn, Law, Model, same, Scales, Weights


class Problem(NamedTuple):
    """What a start may know: the architecture, and some images with their classes."""

    arch: Architecture
    x: Float[Weights, "batch pixels"]
    y: Int[Weights, " batch"]

    @property
    def q0(self) -> float:
        """The mean square of a pixel."""
        return float(np.mean(np.square(self.x)))


Draw = Callable[[int], Model]
Start = Callable[[Problem], Draw]


def gaussian(problem: Problem, variance: float) -> Draw:
    return partial(drawn, problem.arch, "gaussian", same(problem.arch, variance**0.5))


def glorot(problem: Problem) -> Draw:
    """Variance `2 / (N_in + N_out)`."""
    arch = problem.arch
    first = (2 * arch.num_in / (arch.num_in + arch.width)) ** 0.5
    last = (2 * arch.width / (arch.num_out + arch.width)) ** 0.5
    return partial(drawn, arch, "gaussian", same(arch, 1.0, first_w=first, last_w=last))


def usual_orthogonal(problem: Problem) -> Draw:
    """With PyTorch's gain, 1 where it has none."""
    name = problem.arch.activation
    gain = calculate_gain(name) if name in ("relu", "tanh") else 1.0
    return partial(drawn, problem.arch, "orthogonal", same(problem.arch, gain))


def edge_of_chaos(problem: Problem, law: Law, q: float) -> Draw:
    """`chi = 1` at the fixed point `q` (Schoenholz et al. 2017, equations 3 and 5): `sigma_w^2 E phi'^2 = 1`, and
    `sigma_b^2 = q - sigma_w^2 E phi^2`, or 0 where that is negative. The first layer goes to `q` at once.
    """
    arch = problem.arch
    sigma_w, sigma_b = critical(arch.activation, q)
    first = ((q - sigma_b**2) / problem.q0) ** 0.5 if q > sigma_b**2 else sigma_w
    scales = same(arch, sigma_w, first_w=first, first_b=sigma_b, hidden_b=sigma_b, last_b=sigma_b)
    return partial(drawn, arch, law, scales)


def critical(name: str, q: float) -> tuple[float, float]:
    """`sigma_w` and `sigma_b`, by Gaussian quadrature."""
    h, weights = np.polynomial.hermite_e.hermegauss(200)
    h, weights = jnp.asarray(h * q**0.5), weights / np.sum(weights)

    def phi(x: jax.Array) -> jax.Array:
        return BASE[name](x, jnp.zeros_like(x))

    slopes = jax.vmap(jax.grad(phi))(h)
    variance_w = 1 / float(np.sum(weights * np.square(slopes)))
    variance_b = q - variance_w * float(np.sum(weights * np.square(phi(h))))
    return variance_w**0.5, max(variance_b, 0.0) ** 0.5


def anyinit_gain(problem: Problem) -> Draw:
    """Anyinit's gains, which keep the variance."""
    names = {"hard_tanh": "hardtanh"}
    name = problem.arch.activation
    return gaussian(problem, anyinit.gain(names.get(name, name)) ** 2)


DKS_NAMES = {"tanh": "tanh", "gelu": "gelu_exact", "silu": "swish", "relu": "leaky_relu"}


def shaped(problem: Problem, law: Law) -> Draw:
    """Deep kernel shaping (Martens et al. 2021), and for ReLU tailored activation transformation (Zhang et al. 2022),
    with the package's parameters and weights of variance `1 / N_in`, each input at mean square 1.
    """
    arch = problem.arch
    name = DKS_NAMES[arch.activation]
    depth = arch.depth - 1  # activations

    def composed(x: float, once: Callable[[float], float]) -> float:
        for _ in range(depth):
            x = once(x)
        return x

    found = activation_transform._get_activations_params(
        [name],
        method="TAT" if name == "leaky_relu" else "DKS",
        max_slope_func=lambda slope: slope**depth,
        subnet_max_func=composed,
    )[name]
    shape = np.array([found.get(key, default) for key, default in _SHAPE.items()], float)
    first = problem.q0**-0.5
    return partial(drawn, arch, law, same(arch, 1.0, first_w=first, shape=shape))


def shaped_by_jfree(problem: Problem) -> Draw:
    """`jfree.activations.shaped`, with as much nonlinearity as `jfree.tune` keeps in networks of this depth."""
    arch = problem.arch
    found = jfree.activations.shaped(arch.activation, usual_share(arch.depth))
    if isinstance(found, jfree.activations.Clip):  # of hard tanh
        numbers = [1 / found.high, 0, found.slope * found.high, 0, 0]
    else:
        numbers = [found.input_scale, found.input_shift, found.output_scale, found.output_shift, 0]
    shape = np.array([float(x) for x in numbers])
    first = problem.q0**-0.5
    return partial(drawn, arch, "orthogonal", same(arch, 1.0, first_w=first, shape=shape))


_SHAPE = {"input_scale": 1.0, "input_shift": 0.0, "output_scale": 1.0, "output_shift": 0.0, "negative_slope": 0.0}


def _sigma_w(net: Any) -> Any:
    return net.sigma_w


def _with_biases(net: Any) -> Any:
    return net.sigma_w, net.sigma_b


def _with_slope(net: Any) -> Any:
    return net.sigma_w, net.activation.negative_slope


def _annealed(rate: float, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(rate, steps), b2=0.9)


_TUNING_STEPS = 200
_ADAM = _annealed(0.05, _TUNING_STEPS)  # one for all, so that it compiles once


def tuned(problem: Problem, what: Literal["weights", "biases", "slope"]) -> Draw:
    """`jfree.tune` as it is, from where `jfree.initialize` starts, layer by layer: the scales of the weights, these
    and the biases', or these and the "slope" of a leaky ReLU in place of ReLU.
    """
    arch = problem.arch
    net = jfree.MLP(
        np.array([arch.num_in, *[arch.width] * (arch.depth - 1), arch.num_out], float),
        jfree.activations.LeakyReLU(0.5) if what == "slope" else arch.activation,
        "orthogonal",
        np.ones(arch.depth),
        np.full(arch.depth, 0.05 if what == "biases" else 0.0),
        q0=problem.q0,
    )
    where = {"weights": _sigma_w, "biases": _with_biases, "slope": _with_slope}[what]
    best = jfree.tune(even_start(net), where=where, steps=_TUNING_STEPS, progress=False).net
    assert isinstance(best, jfree.MLP)
    w, b = map(np.asarray, best.scales)
    scales = Scales(w[0], w[None, 1:-1], w[-1], b[0], b[None, 1:-1], b[-1])
    if what == "slope":
        assert isinstance(best.activation, jfree.activations.LeakyReLU)
        scales = scales._replace(shape=np.array([1, 0, 1, 0, float(best.activation.negative_slope)]))
    return partial(drawn, arch, "orthogonal", scales)


# What a residual network's singular values shall spread: without that, no branch at all would be best.
_SPREAD = 0.25
_SPREAD_OBJECTIVE = jfree.objectives.target(jfree.objectives.weighted_isometry, _SPREAD)


def _branch_scales(net: Any) -> Any:
    inner, outer = _dense_of(net)
    return inner.sigma_w, outer.sigma_w


def _dense_of(net: jfree.Network) -> list[jfree.layers.Dense]:
    blocks: Any = net.layers[1]
    return [layer for layer in blocks.layers[0].layers if isinstance(layer, jfree.layers.Dense)]


def tuned_residual(problem: Problem) -> Draw:
    """Blocks that are alike, their branches tuned so that squared logarithms of singular values have the weighted mean
    `_SPREAD`.
    """
    arch = problem.arch
    norm = [jfree.layers.LayerNorm()] if arch.family == "pre-norm" else []
    sigma_w, _ = critical(arch.activation, 1.0)
    branch = [
        *norm,
        jfree.layers.Dense(arch.width, "orthogonal", sigma_w),
        jfree.layers.Activation(arch.activation),
        jfree.layers.Dense(arch.width, "orthogonal", arch.depth**-0.5),
    ]
    blocks = jfree.layers.Repeat(arch.depth, [jfree.layers.Residual(branch)])
    first = problem.q0**-0.5
    ends = jfree.layers.Dense(arch.width, "orthogonal", first), jfree.layers.Dense(arch.num_out, "orthogonal", 1.0)
    net = jfree.Network(arch.num_in, [ends[0], blocks, *norm, ends[1]], q0=problem.q0)
    best = jfree.tune(net, _SPREAD_OBJECTIVE, _branch_scales, _ADAM, _TUNING_STEPS, progress=False).net
    assert isinstance(best, jfree.Network)
    hidden = np.array([[float(layer.sigma_w)] * arch.num_hidden for layer in _dense_of(best)])
    return partial(drawn, arch, "orthogonal", Scales(first, hidden, 1.0))


def fixup(problem: Problem) -> Draw:
    """Zhang, Dauphin and Ma 2019, section 3: He's scale, of first matrices of branches times `L^(-1/2)`, second ones
    and the readout 0.
    """
    arch = problem.arch
    hidden = np.array([[(2 / arch.num_hidden) ** 0.5], [0.0]]) * np.ones(arch.num_hidden)
    return partial(drawn, arch, "gaussian", Scales(2**0.5, hidden, 0.0))


def with_factor(problem: Problem, factor: float) -> Draw:
    """He's scale, and all branches times a factor that is trained."""
    return partial(drawn, problem.arch, "gaussian", same(problem.arch, 2**0.5, factor=factor))
