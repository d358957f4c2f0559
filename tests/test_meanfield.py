"""The forward pass: closed forms against each other, sampling, and fixed points."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import jfree

ACTIVATIONS = {
    **{
        name: name
        for name in ("linear", "relu", "hard_tanh", "hard_sine", "tanh", "erf", "sigmoid", "silu", "gelu", "softplus")
    },
    "leaky_relu": jfree.activations.LeakyReLU(0.2),
    "shifted_relu": jfree.activations.ShiftedReLU(-0.4),
    "scaled": jfree.activations.HardTanh(1.7, 0.6),
    "custom": jfree.activations.FromFunction(lambda x: jnp.where(x > 0.5, x**2, 0.25 * jnp.sin(x)), knots=(0.5,)),
}


def gaussian_mean(fn, q, knots):
    scale = np.sqrt(q)
    points = [k for k in knots if abs(k) < 10 * scale]
    density = lambda h: np.exp(-h * h / (2 * q)) / np.sqrt(2 * np.pi * q)  # noqa: E731
    value = lambda h: float(fn(jnp.asarray(h))) * density(h)  # noqa: E731
    ends = sorted({-10 * scale, 0.0, *points, 10 * scale})
    return sum(quad(value, a, b, epsabs=1e-13, epsrel=1e-12, limit=200)[0] for a, b in itertools.pairwise(ends))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("q", [0.02, 1.3])
def test_gaussian_moments(name, q):
    phi = jfree.MLP((1, 1), (ACTIVATIONS[name],)).activations[0]
    knots = {"hard_sine": (-5, -3, -1, 1, 3, 5), "shifted_relu": (-0.4,), "scaled": (-0.6 / 1.7, 0.6 / 1.7)}
    knots = knots.get(name, (-1.0, 0.5, 1.0))
    at = jnp.asarray(q)
    np.testing.assert_allclose(phi.second_moment(at), gaussian_mean(lambda h: phi(h) ** 2, q, knots), rtol=1e-9)
    np.testing.assert_allclose(phi.mean(at), gaussian_mean(phi, q, knots), rtol=1e-9, atol=1e-10)
    expected = gaussian_mean(lambda h: phi.derivative(h) ** 2, q, knots)
    np.testing.assert_allclose(phi.slope_moment(at), expected, rtol=1e-9)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivative(name):
    phi = jfree.MLP((1, 1), (ACTIVATIONS[name],)).activations[0]
    x = jnp.asarray([-2.3, -0.7, -0.1, 0.2, 0.6, 3.4])
    np.testing.assert_allclose(phi.derivative(x), jax.vmap(jax.grad(phi))(x), rtol=1e-10, atol=1e-14)


def test_recursion_of_mixed_activations():
    net = jfree.MLP(
        (1, 2, 3, 1), ("relu", ACTIVATIONS["leaky_relu"], "linear"), sigma_w=(1.0, 2.0, 0.5), sigma_b=0.1, q0=2
    )
    mean_field = jfree.propagate(net)
    np.testing.assert_allclose(mean_field.q, [2.01, 4.03, 0.25 * 4.03 * 1.04 / 2 + 0.01], rtol=1e-14)
    np.testing.assert_allclose(mean_field.chi, [0.5, 4 * 0.52, 0.25], rtol=1e-14)


def test_fixed_point():
    q = jfree.fixed_point("tanh", 1.5, 0.2)
    phi2 = jfree.activations.Tanh().second_moment(q)
    np.testing.assert_allclose(1.5**2 * phi2 + 0.04, q, rtol=1e-12)
    assert jfree.fixed_point("tanh", 0.9, 0.0) == 0
    assert np.isnan(jfree.fixed_point("relu", 1.5, 0.1))
    h = 1e-6
    estimate = (jfree.fixed_point("tanh", 1.5 + h, 0.2) - jfree.fixed_point("tanh", 1.5 - h, 0.2)) / (2 * h)
    np.testing.assert_allclose(jax.grad(jfree.fixed_point, argnums=1)("tanh", 1.5, 0.2), estimate, rtol=1e-6)


def test_critical_sigma_w():
    sigma_w, q = jfree.critical_sigma_w("tanh", 0.3)
    np.testing.assert_allclose(jfree.fixed_point("tanh", sigma_w, 0.3), q, rtol=1e-8)
    np.testing.assert_allclose(sigma_w**2 * jfree.activations.Tanh().slope_moment(q), 1, rtol=1e-10)
    np.testing.assert_allclose(jfree.critical_sigma_w("relu", 0.0)[0], 2**0.5, rtol=1e-10)
    np.testing.assert_allclose(jfree.critical_sigma_w("tanh", 0.0)[0], 1, rtol=1e-6)


def test_quadrature_that_resolves_nothing_is_nan():
    F = jfree.activations.FromFunction
    q = jnp.asarray(3.0)
    assert np.isnan(F(lambda x: jnp.sin(20 * x)).second_moment(4 * q))
    assert np.isnan(F(jax.nn.hard_tanh).slope_moment(q))
    assert np.isnan(F(lambda x: jnp.tanh(x - 3)).slope_moment(1e6 * q))
    assert np.isnan(jfree.jacobian_spectrum(jfree.MLP([1, 1, 1], F(jax.nn.relu6), sigma_w=3.0)).density(0.5))
    exact = jfree.activations.HardTanh()
    knots = F(jax.nn.hard_tanh, knots=(-1, 1))
    np.testing.assert_allclose(knots.slope_moment(q), exact.slope_moment(q), rtol=1e-12)
    with pytest.raises(ValueError, match="`num_nodes`"):
        F(jnp.tanh, num_nodes=4)


def test_fixed_points_far_out_and_nowhere():
    np.testing.assert_allclose(jfree.fixed_point("tanh", 0.5, 1e6), 1e12, rtol=1e-6)
    np.testing.assert_allclose(jfree.fixed_point("tanh", 0.5, 1e-8), 1e-16 / 0.75, rtol=1e-6)
    assert np.isnan(jfree.fixed_point("relu", 2**0.5, 0.0))  # every q is one
    assert np.isnan(jfree.fixed_point("relu", 1.5, 0.1))
    small, none = (jfree.critical_sigma_w("sigmoid", sigma_b) for sigma_b in (1e-6, 0.0))
    np.testing.assert_allclose(small, none, rtol=1e-6)
