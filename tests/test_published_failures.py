"""Where the published code fails: values from the exact master equation, `Lambda_l = ratio^l`, Gaussian layers."""

import jax.numpy as jnp
import numpy as np
import pytest

import jfree


def geometric(ratio, depth, activation="linear", sigma_w=None):
    """`lambda_l = ratio`, `sigma_w^2 = ratio` unless given."""
    widths = ratio ** -np.arange(depth + 1.0)
    return jfree.jacobian_spectrum(jfree.MLP(widths, activation, "gaussian", sigma_w or ratio**0.5))


def total_mass(spectrum):
    """Trapezoid rule between the edges in x = mid + half cos t: exact for analytic spectra."""
    lower, upper = (float(e) for e in spectrum.edges())
    t = (np.arange(400) + 0.5) * np.pi / 400
    log_mid, log_half = 0.5 * np.log(upper * lower), 0.5 * np.log(upper / lower)
    x = np.exp(log_mid + log_half * np.cos(t))
    return float(spectrum.mass_at_zero() + np.pi / 400 * np.sum(spectrum.density(x) * x * log_half * np.sin(t)))


@pytest.mark.parametrize(("ratio", "depth"), [(1.2, 10), (2, 3), (1.2, 20), (2, 5)])
def test_narrowing_widths(ratio, depth):
    spectrum = geometric(ratio, depth)
    if (ratio, depth) == (1.2, 10):
        np.testing.assert_allclose(spectrum.density(0.509, smoothing=1e-4), 0.0341, atol=1e-4)
    np.testing.assert_allclose(spectrum.mass_at_zero(), 1 - ratio**-depth, rtol=1e-12)
    np.testing.assert_allclose(total_mass(spectrum), 1, atol=1e-10)
    assert jnp.all(jnp.isfinite(spectrum.density(np.linspace(1e-3, 40, 500))))


@pytest.mark.parametrize("depth", [80, 200])
def test_deep_widening(depth):
    spectrum = geometric(0.8, depth)
    np.testing.assert_allclose(total_mass(spectrum), 1, atol=1e-10)


@pytest.mark.parametrize("depth", [50, 200])
def test_deep_he_relu(depth):
    spectrum = geometric(1.0, depth, "relu", 2**0.5)
    spectrum_he = jfree.jacobian_spectrum(jfree.MLP([1.0] * (depth + 1), ["relu"] * depth, "gaussian", 2**0.5))
    for s in (spectrum, spectrum_he):
        p = np.array([0.6, 0.75, 0.9, 0.99, 0.999])
        x = s.quantile(p)
        p, x = p[depth // 200 :], x[depth // 200 :]  # at depth 200 the lowest is below 1e-139, out of reach
        np.testing.assert_allclose(s.cdf(x), p, atol=1e-12)
        assert jnp.all(s.density(x) > 0)


def test_neighbourhood_of_zero():
    spectrum = jfree.jacobian_spectrum(jfree.MLP([1.0] * 6, ["relu"] * 5, "gaussian", 1.0))
    np.testing.assert_allclose(spectrum.density(0.01, smoothing=1e-4), 4.8553, atol=5e-5)
    np.testing.assert_allclose(spectrum.density(0.001, smoothing=1e-9), 34.824, atol=5e-4)
    np.testing.assert_allclose(spectrum.edges()[1], 0.852274169, rtol=1e-8)
    assert spectrum.mass_at_zero() == 0.5
    tiny = np.geomspace(1e-25, 1e-5, 20)
    np.testing.assert_allclose(spectrum.quantile(spectrum.cdf(tiny)[5:]), tiny[5:], rtol=1e-6)


@pytest.mark.parametrize(("depth", "lower", "upper"), [(5, 5.03062e-4, 9.072731), (20, 1.122862e-4, 12.715121)])
def test_edges(depth, lower, upper):
    found = geometric(0.8, depth).edges()
    np.testing.assert_allclose(found[0], lower, rtol=1e-6)
    np.testing.assert_allclose(found[1], upper, rtol=1e-7)


def test_hard_tanh():
    """The printed slope probability is half of the right one, and E phi^2 lacks 1 - p: both by sampling."""
    net = jfree.MLP([1.0] * 4, ["hard_tanh"] * 3, "orthogonal", 1.5, 0.3)
    h = np.random.default_rng(0).normal(size=4_000_000) * float(jfree.propagate(net).q[0]) ** 0.5
    np.testing.assert_allclose(jfree.propagate(net).phi2[0], np.mean(np.clip(h, -1, 1) ** 2), rtol=2e-3)
    np.testing.assert_allclose(jfree.propagate(net).chi[0], 2.25 * np.mean(np.abs(h) < 1), rtol=2e-3)
    np.testing.assert_allclose(total_mass(jfree.jacobian_spectrum(net)), 1, atol=1e-9)
