"""Fisher spectra: closed forms, samples, and what they imply."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree
from jfree.empirical import fisher_eigenvalues, ks_distance


def three_layers(rng):
    """Hard tanh with random gain and limit: two atoms, `alpha_l` at `gamma_l`."""
    activations = [jfree.activations.HardTanh(*rng.uniform(0.7, 1.5, 2)) for _ in range(2)]
    net = jfree.MLP([1.0] * 4, [*activations, "linear"], "orthogonal", rng.uniform(0.6, 1.5, 3), 0.1, rng.uniform(1, 3))
    field = jfree.propagate(net)
    laws = [a.slopes(q) for a, q in zip(activations, field.q, strict=False)]
    alpha, gamma = (np.array([float(law[k]) for law in laws]) for k in (0, 1))
    return net, np.array([float(net.q0), *np.asarray(field.phi2[:2])]), alpha, gamma


@pytest.mark.parametrize("seed", range(4))
def test_two_hidden_layers(seed):
    """Hayase and Karakida, Theorem 3.2, with the second atom where it belongs, at lambda_mid."""
    net, q, alpha, gamma = three_layers(np.random.default_rng(seed))
    sigma = np.asarray(net.sigma_w)
    scale = sigma[2] ** 2 * gamma[1]
    middle = q[2] + scale * q[1]
    top = q[2] + scale * (q[1] + sigma[1] ** 2 * gamma[0] * q[0])
    swing = np.sqrt(alpha[0] * (1 - alpha[1])) + np.array([-1, 1]) * np.sqrt(alpha[1] * (1 - alpha[0]))
    lower, upper = middle + (top - middle) * swing**2
    spectrum = jfree.fisher_spectrum(net)
    x = np.linspace(lower, upper, 13)[1:-1]
    density = np.sqrt((upper - x) * (x - lower)) / (2 * np.pi * (x - middle) * (top - x))
    np.testing.assert_allclose(spectrum.density(x), density, rtol=1e-10)
    locations, masses = (np.asarray(a) for a in spectrum.atoms())
    expected = {q[2]: 1 - alpha[1], middle: max(0, alpha[1] - alpha[0]), top: max(0, alpha.sum() - 1)}
    for place, mass in expected.items():
        found = masses[np.abs(locations - place) < 1e-10 * place].sum()
        np.testing.assert_allclose(found, mass, atol=1e-10)
    np.testing.assert_allclose(masses.sum(), sum(expected.values()), atol=1e-10)
    np.testing.assert_allclose(spectrum.support(), [(lower, upper)], rtol=1e-9)
    ends = (q[2], top if expected[top] > 0 else upper)
    np.testing.assert_allclose(spectrum.edges(), ends, rtol=1e-10)
    np.testing.assert_allclose(spectrum.learning_rate_bound(), 2 / ends[1], rtol=1e-10)
    np.testing.assert_allclose(spectrum.mass_at_zero(), 0)
    np.testing.assert_allclose(spectrum.cdf([0.9 * ends[0], 1.001 * ends[1]]), [0, 1], atol=1e-12)
    np.testing.assert_allclose(spectrum.quantile((1 - alpha[1]) / 2), q[2], rtol=1e-12)


@pytest.mark.parametrize("depth", [10, 100, 1000])
def test_deep_isometric(depth):
    """Lemma 4.5 (largest eigenvalue and its weight) and Proposition 4.3 (mean), at slopes 1 but for 0.3 / depth."""
    activation = jfree.activations.HardTanh(1.0, float(jax.scipy.special.ndtri(1 - 0.15 / depth)))
    net = jfree.MLP([1.0] * (depth + 1), activation, "orthogonal")
    field = jfree.propagate(net)
    alpha = np.array([float(activation.slopes(q)[0]) for q in field.q[:-1]])
    squares = np.concatenate([[1.0], np.asarray(field.phi2[:-1])])
    spectrum = jfree.fisher_spectrum(net)
    largest = squares.sum()
    np.testing.assert_allclose(spectrum.edges()[1], largest, rtol=1e-10)
    np.testing.assert_allclose(spectrum.learning_rate_bound(), 2 / largest, rtol=1e-10)
    _, masses = spectrum.atoms()
    np.testing.assert_allclose(jnp.max(masses), 1 - np.sum(1 - alpha), atol=1e-10)
    chi = np.asarray(field.chi[:-1])
    weights = np.append(np.cumprod(chi[::-1])[::-1], 1)
    np.testing.assert_allclose(spectrum.mean(), np.sum(squares * weights), rtol=1e-10)
    share = depth * (1 - chi[0])
    rough = float(field.phi2[-1]) * (1 - np.exp(-share)) / share
    np.testing.assert_allclose(spectrum.mean() / depth, rough, rtol=3 / depth + 1e-2)


def test_layers_too_far_back_to_matter():
    """In the ordered phase all but the last layers are forgotten: a thousand layers are like sixty."""
    deep, short = (
        jfree.fisher_spectrum(jfree.MLP([1.0] * (depth + 1), "hard_tanh", "gaussian", 0.55, 0.2, q0))
        for depth, q0 in ((1000, 7.0), (60, 1.0))
    )
    np.testing.assert_allclose(deep.edges(), short.edges(), rtol=1e-9)
    lower, upper = (float(e) for e in short.edges())
    x = np.linspace(lower, upper, 7)[1:-1]
    np.testing.assert_allclose(deep.density(x), short.density(x), rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("widths", "activation", "weights", "final"),
    [
        ([1] * 5, "relu", "gaussian", "linear"),
        ([1] * 5, "tanh", "orthogonal", "linear"),
        ([3, 2, 4, 2], "hard_tanh", "orthogonal", "linear"),
        ([3, 2, 4, 2], "silu", "gaussian", "tanh"),
    ],
)
def test_samples(widths, activation, weights, final):
    """Sixteen networks of width 400 pooled."""
    net = jfree.MLP(widths, activation, weights, 1.3, 0.2, final_activation=final)
    eigenvalues = fisher_eigenvalues(net, jax.random.key(1), width=400, num_samples=16)
    spectrum = jfree.fisher_spectrum(net)
    # Atoms that differ from sample to sample with its variances smear a jump of the cdf; look beside them.
    places, masses = (np.asarray(a) for a in spectrum.atoms())
    values = np.sort(np.asarray(eigenvalues).ravel())
    near = np.min(np.abs(values[:, None] / np.where((masses > 0) & (places > 0), places, np.inf) - 1), axis=1) < 0.1
    if near.any():
        x = values[~near]
        found = np.searchsorted(values, x) / values.size
        assert np.max(np.abs(np.asarray(spectrum.cdf(x)) - found)) < 0.01
    else:
        assert ks_distance(eigenvalues, spectrum) < 0.01
    np.testing.assert_allclose(eigenvalues.mean(), spectrum.mean(), rtol=0.02)


def test_not_of_a_resnet():
    with pytest.raises(ValueError, match="not available"):
        jfree.fisher_spectrum(jfree.ResNet(3))
