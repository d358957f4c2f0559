"""Derivatives against finite differences, first and second order."""

import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_mlp, random_resnet, TWO_SLOPES

import jfree
from jfree._solve.solve import find_roots

FULL = bool(os.environ.get("JFREE_FULL"))


def network(kind, theta):
    """Two layers whose every parameter depends on theta."""
    widths = jnp.stack([3.0 + 0 * theta, 4.0 + theta, 3.5 - theta])
    activation = {
        "explicit": lambda: jfree.activations.HardTanh(1 + 0.1 * theta, 1 - 0.2 * theta),
        "leaky": lambda: jfree.activations.LeakyReLU(0.3 + theta),
        "smooth": lambda: "tanh",
    }[kind]()
    sigma_w = jnp.stack([1.3 + theta, 1.1 - theta])
    weights = ("gaussian", "orthogonal") if kind != "smooth" else ("orthogonal", "gaussian")
    return jfree.MLP(widths, activation, weights, sigma_w, 0.1 + theta, q0=1 + theta, final_activation="linear")


def spectrum_of(kind, theta):
    if kind == "fisher":
        return jfree.fisher_spectrum(network("explicit", theta))
    if kind == "residual":
        sigma_w = jnp.stack([0.5 + theta, 0.7 - theta])
        return jfree.jacobian_spectrum(jfree.ResNet(2, "hard_tanh", "orthogonal", sigma_w, 0.1 + theta, q0=1 + theta))
    return jfree.jacobian_spectrum(network(kind, theta))


X = jnp.asarray([0.3, 1.1])
INSIDE = {"fisher": jnp.asarray([0.9, 1.3]), "residual": jnp.asarray([0.8, 2.0])}
QUANTITIES = {
    "density": lambda s, x=X: s.density(x),
    "smoothed": lambda s: s.density(X, smoothing=0.1),
    "cdf": lambda s: s.cdf(X),
    "log_potential": lambda s, x=X: s.log_potential(x),
    "quantile": lambda s: s.quantile(jnp.asarray([0.7, 0.9])),
    "upper": lambda s: s.edges()[1],
    "moment": lambda s: s.moment(3),
    "variance": lambda s: s.variance(),
    "mean_log": lambda s: s.mean_log(),
    "log_variance": lambda s: s.log_variance(),
    "mass": lambda s: s.mass_at_zero(),
}
CASES = [("explicit", name) for name in QUANTITIES] + [
    (kind, name) for kind in ("leaky", "smooth") for name in ("density", "log_potential", "mean_log", "log_variance")
]
CASES += [("fisher", "density"), ("fisher", "upper"), ("residual", "density")]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_first_and_second_order(kind, name):
    def value(theta):
        spectrum = spectrum_of(kind, theta)
        if kind in INSIDE and name in ("density", "log_potential"):
            return QUANTITIES[name](spectrum, INSIDE[kind])
        return QUANTITIES[name](spectrum)

    def first(theta):
        return jax.jvp(value, (theta,), (jnp.ones(()),))

    both = jax.jit(lambda theta: jax.jvp(first, (theta,), (jnp.ones(()),)))
    zero, h = jnp.zeros(()), 1e-4
    (_, tangent), (_, curvature) = both(zero)
    (low, low_tangent), _ = both(zero - h)
    (high, high_tangent), _ = both(zero + h)
    np.testing.assert_allclose(tangent, (high - low) / (2 * h), rtol=1e-5)
    np.testing.assert_allclose(curvature, (high_tangent - low_tangent) / (2 * h), rtol=1e-4)


TWICE = [("leaky", "density"), ("smooth", "cdf"), ("smooth", "log_variance"), ("fisher", "density")]
TWICE += [("leaky", "log_potential"), ("residual", "density")] if FULL else []


@pytest.mark.parametrize(("kind", "name"), TWICE)
def test_forward_over_reverse(kind, name):
    """The way of Hessians, through the scan over layers and the unknowns of their laws."""

    def value(theta):
        spectrum = spectrum_of(kind, theta)
        return jnp.sum(QUANTITIES[name](spectrum, *([INSIDE[kind]] if kind in INSIDE else [])))

    zero = jnp.zeros(())
    forward = jax.jit(jax.jacfwd(jax.jacfwd(value)))(zero)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(jax.jacrev(value)))(zero), forward, rtol=1e-9)


def test_second_order_next_to_zero():
    """The density of a square Gaussian matrix is proportional to `x^(-1/2)` there; squares of `x` are out of range."""
    spectrum = jfree.jacobian_spectrum(jfree.MLP([1.0, 1.0], "linear", "gaussian", 1.0))

    def log_density(log_x):
        return jnp.log(spectrum.density(jnp.exp(log_x)))

    log_x = jnp.log(1e-60)
    np.testing.assert_allclose(jax.grad(log_density)(log_x), -0.5, rtol=1e-9)
    np.testing.assert_allclose(jax.grad(jax.grad(log_density))(log_x), 0, atol=1e-9)


def test_reverse_mode_reaches_every_parameter():
    net = network("explicit", jnp.asarray(0.05))

    def objective(net):
        spectrum = jfree.jacobian_spectrum(net)
        return jnp.log(spectrum.quantile(0.9)) + spectrum.log_potential(0.4) + spectrum.density(0.5)

    grads = eqx.filter_grad(objective)(net)
    h = 1e-5
    for where in (
        lambda n: n.sigma_w,
        lambda n: n.sigma_b,
        lambda n: n.widths,
        lambda n: n.q0,
        lambda n: n.activation.gain,
        lambda n: n.activation.limit,
    ):
        leaf = where(net)
        direction = jnp.asarray(np.random.default_rng(0).normal(size=leaf.shape))
        shifted = [eqx.tree_at(where, net, leaf + s * h * direction) for s in (1, -1)]
        estimate = (objective(shifted[0]) - objective(shifted[1])) / (2 * h)
        np.testing.assert_allclose(jnp.sum(where(grads) * direction), estimate, rtol=1e-5, atol=1e-7)


def test_mean_log_of_deficient_rank():
    widths = jnp.asarray([64.0, 40.0, 30.0, 10.0])

    def mean_log(widths):
        return jfree.jacobian_spectrum(jfree.MLP(widths, "tanh", "gaussian", 1.3, 0.1)).mean_log()

    grad = jax.jit(jax.grad(mean_log))(widths)
    np.testing.assert_allclose(grad, jax.jit(jax.jacfwd(mean_log))(widths), rtol=1e-6)
    step = jnp.zeros(4).at[0].set(1e-3)
    value = jax.jit(mean_log)
    np.testing.assert_allclose(grad[0], (value(widths + step) - value(widths - step)) / 2e-3, rtol=1e-5)


def random_case(kind, rng):
    if kind == "residual":
        return random_resnet(rng, 3, ("relu", "hard_tanh", "tanh")), jfree.jacobian_spectrum
    names = ("linear", "relu", "scaled_hard_tanh", "shifted_relu") if kind == "explicit" else TWO_SLOPES
    widths = jnp.asarray(np.exp(rng.uniform(-0.7, 0.7, 4)))  # no two are equal: there ranks have a kink
    net = eqx.tree_at(lambda net: net.widths, random_mlp(rng, 3, names), widths)
    return net, jfree.fisher_spectrum if kind == "fisher" else jfree.jacobian_spectrum


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5 if FULL else 1))
@pytest.mark.parametrize("kind", ["explicit", "fisher", "residual"] if FULL else ["explicit"])
def test_random_networks(kind, seed):
    """All outputs along a random direction of all parameters: forward mode against differences, reverse against it."""
    rng = np.random.default_rng(seed)
    net, spectrum_of_net = random_case(kind, rng)
    spectrum = spectrum_of_net(net)
    level = float(spectrum.mass_at_zero()) + (1 - float(spectrum.mass_at_zero())) * np.asarray([0.4, 0.8])
    x = 1.03 * spectrum.quantile(level)  # off atoms
    leaves, static = eqx.partition(net, eqx.is_inexact_array)

    @jax.jit
    def outputs(leaves):
        spectrum = spectrum_of_net(eqx.combine(leaves, static))
        low, high = spectrum.edges()
        known = [low, high, spectrum.condition_number(), spectrum.moment(2), spectrum.mean_log()]
        return jnp.concatenate([spectrum.density(x), spectrum.cdf(x), spectrum.quantile(level), jnp.stack(known)])

    direction = jax.tree.map(lambda leaf: leaf * rng.normal(size=leaf.shape), leaves)

    def moved(h):
        return np.asarray(outputs(jax.tree.map(lambda leaf, d: leaf + h * d, leaves, direction)))

    h = 2e-4
    differences = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    value, forward = jax.jit(lambda u: jax.jvp(outputs, (leaves,), (u,)))(direction)
    known = np.isfinite(value) & (np.abs(value) < 1e30)
    assert known.sum() >= 8
    scale = np.maximum(np.abs(forward), np.abs(value))[known]
    np.testing.assert_array_less(np.abs(forward - differences)[known], 1e-6 * scale + 1e-9)

    weights = jnp.where(known, jnp.asarray(rng.normal(size=value.shape)) / jnp.maximum(jnp.abs(value), 1), 0)
    reverse = jax.jit(jax.grad(lambda leaves: jnp.sum(jnp.where(known, outputs(leaves) * weights, 0))))(leaves)
    along = sum(jnp.sum(r * d) for r, d in zip(jax.tree.leaves(reverse), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose(along, jnp.sum(jnp.where(known, forward * weights, 0)), rtol=1e-7)


def test_masked_nan_does_not_spoil_reverse_mode():
    """What is left of a sum without the points that are not certified has the gradient it would have alone."""
    net = jfree.MLP([1, 2, 3, 4], "tanh", ["orthogonal", "gaussian", "gaussian"], 1.2)
    spectrum = jfree.jacobian_spectrum(net)
    x = jnp.stack([jnp.asarray(1e-200), spectrum.quantile(0.3)])
    assert jnp.isnan(spectrum.density(x)).tolist() == [True, False]

    def total(net, x):
        spectrum = jfree.jacobian_spectrum(net)
        return jnp.nansum(spectrum.density(x)) + jnp.nansum(spectrum.log_potential(x))

    both, one = (jax.jit(jax.grad(total))(net, points) for points in (x, x[1:]))
    for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_third_order():
    """Of `m = M(z)` of a square Gaussian matrix, `z m = (1 + m)^2`, at z = -1."""
    curve = jfree.jacobian_spectrum(jfree.MLP([1.0, 1.0], "linear", "gaussian", 1.0)).curve
    roots = find_roots(curve, jnp.asarray([-1.0 + 0j]))

    def m(y):
        z = jnp.stack([jax.lax.complex(-y, jnp.zeros_like(y))])
        return curve.point_at(z, roots.omega, roots.unknowns, roots.certified).m.real[0]

    def exact(y):
        return (jnp.sqrt(y * (y + 4)) - y - 2) / 2

    for _ in range(3):
        m, exact = jax.jacfwd(m), jax.jacfwd(exact)
    np.testing.assert_allclose(m(1.0), exact(1.0), rtol=1e-9)


def test_float32_quantiles_beside_an_atom():
    """One level lies on the atom, the others far out: what is not found there must not spoil reverse mode."""

    def total(sigma_w):
        net = jfree.MLP(jnp.full(4, 20.0, jnp.float32), "relu", "gaussian", sigma_w, q0=jnp.float32(1))
        return jnp.sum(jfree.jacobian_spectrum(net).quantile(jnp.asarray([0.05, 0.9, 0.97], jnp.float32)))

    sigma_w = jnp.float32(1e3)
    value, slope = jax.value_and_grad(total)(sigma_w)
    np.testing.assert_allclose(slope * sigma_w / (6 * value), 1, rtol=1e-3)  # it grows like the sixth power
