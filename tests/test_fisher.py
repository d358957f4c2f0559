"""Fisher spectra: closed forms, samples, and what they imply."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree
from jfree.empirical import fisher_eigenvalues

FULL = bool(os.environ.get("JFREE_FULL"))


def three_layers(rng):
    """Hard tanh with random gain and limit: two atoms, `alpha_l` at `gamma_l`."""
    activations = [jfree.activations.HardTanh(*rng.uniform(0.7, 1.5, 2)) for _ in range(2)]
    net = jfree.MLP([1.0] * 4, [*activations, "linear"], "orthogonal", rng.uniform(0.6, 1.5, 3), 0.1, rng.uniform(1, 3))
    field = jfree.propagate(net)
    laws = [a.slopes(q) for a, q in zip(activations, field.q, strict=False)]
    alpha, gamma = (np.array([float(law[k]) for law in laws]) for k in (0, 1))
    return net, np.array([float(net.q0), *np.asarray(field.phi2[:2])]), alpha, gamma


@pytest.mark.parametrize("seed", range(4 if FULL else 2))
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


@pytest.mark.parametrize("shift", [7.0, 13.0, 17.0])
def test_layers_that_are_nearly_dead(shift):
    """What came before them is lost: the spectrum is that of the layers after, to the share that passes."""
    dead = jfree.activations.ShiftedReLU(shift)  # active with probabilities from 1e-8 to 1e-50
    later = ["relu", "hard_tanh", "linear"]
    sigma_b = np.array([0.1, 0.0, 0.5, 0.2, 0.3])
    net = jfree.MLP(np.ones(6), ["relu", dead, *later], "gaussian", 1.3, sigma_b)
    field = jfree.propagate(net)
    tail = jfree.MLP(np.ones(4), later, "gaussian", 1.3, sigma_b[2:], q0=field.phi2[1])
    spectrum, expected = jfree.fisher_spectrum(net), jfree.fisher_spectrum(tail)
    np.testing.assert_allclose(spectrum.edges(), expected.edges(), rtol=1e-9)
    x = np.geomspace(float(expected.edges()[0]) / 10, 10 * float(expected.edges()[1]), 40)
    np.testing.assert_allclose(spectrum.cdf(x), expected.cdf(x), atol=1e-9)
    np.testing.assert_allclose(spectrum.density(x), expected.density(x), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("depth", [10, 100, 1000])
def test_deep_isometric(depth):
    """Lemma 4.5 and Theorem 4.6 (largest eigenvalue, its weight) and Proposition 4.3 (mean), at a fixed point `q = 1`
    with `alpha = 1 - 0.3 / depth`.
    """
    activation = jfree.activations.HardTanh(1.0, float(jax.scipy.special.ndtri(1 - 0.15 / depth)))
    square = float(activation.second_moment(jnp.ones(())))
    slope = 1 / square
    net = jfree.MLP([1.0] * (depth + 1), activation, "orthogonal", slope**0.5, 0.0, square)
    np.testing.assert_allclose(jfree.propagate(net).q, 1, rtol=1e-12)
    spectrum = jfree.fisher_spectrum(net)
    largest = square * (slope**depth - 1) / (slope - 1)
    np.testing.assert_allclose(spectrum.edges()[1], largest, rtol=1e-10)
    np.testing.assert_allclose(spectrum.learning_rate_bound(), 2 / largest, rtol=1e-10)
    _, masses = spectrum.atoms()
    np.testing.assert_allclose(jnp.max(masses), 1 - (depth - 1) * 0.3 / depth, atol=1e-10)
    chi = slope * (1 - 0.3 / depth)
    np.testing.assert_allclose(spectrum.mean(), square * (1 - chi**depth) / (1 - chi), rtol=1e-9)
    share = depth * (1 - chi)
    np.testing.assert_allclose(spectrum.mean() / depth, square * (1 - np.exp(-share)) / share, rtol=1 / depth)


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


@pytest.mark.parametrize("final", ["linear", "hard_tanh"])
def test_derivatives_of_atoms_and_mean(final):
    """Of layers that add nothing, too."""

    def values(scale):
        net = jfree.MLP([4.0, 4.5, 4.2, 4.0], "hard_tanh", "orthogonal", 0.6 * scale, 0.1, final_activation=final)
        spectrum = jfree.fisher_spectrum(net)
        return jnp.append(
            spectrum.atoms()[0], jnp.stack([spectrum.mean(), spectrum.variance(), spectrum.mass_at_zero()])
        )

    one, h = jnp.ones(()), 1e-5
    differences = (values(one + h) - values(one - h)) / (2 * h)
    forward = jax.jit(jax.jacfwd(values))(one)
    assert jnp.any(differences[:-3] != 0)
    np.testing.assert_allclose(forward, differences, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(jax.jit(jax.jacrev(values))(one), forward, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "weights", "final"),
    [
        (jfree.activations.LeakyReLU(0.5), "gaussian", "linear"),
        ("tanh", "orthogonal", "linear"),
        ("hard_tanh", "orthogonal", "linear"),
        ("silu", "gaussian", "tanh"),
    ],
)
def test_samples(activation, weights, final):
    """Samples of finite width are off by `1/N`, from the fluctuations of their variances: so two widths extrapolate."""
    width, samples, allowed = (1000, 64, 0.01) if FULL else (320, 48, 0.03)
    net = jfree.MLP([4, 4, 3, 4, 4], activation, weights, 1.2, 0.3, final_activation=final)
    half, whole = (
        np.sort(np.ravel(fisher_eigenvalues(net, jax.random.key(1), width=n, num_samples=samples)))
        for n in (width // 2, width)
    )
    spectrum = jfree.fisher_spectrum(net)
    np.testing.assert_allclose(2 * whole.mean() - half.mean(), spectrum.mean(), rtol=2 * allowed)
    # A sample has its atoms, and a peak at the last shift, elsewhere: look where there are none near.
    places, masses = (np.asarray(a) for a in spectrum.atoms())
    x = np.quantile(whole, np.linspace(0.4, 0.99, 60))
    for place in places[(masses > 1e-3) & (places > 0)]:
        x = x[np.abs(np.log(x / place)) > 0.4]
    assert x.size
    below = [np.searchsorted(values, x) / values.size for values in (half, whole)]
    assert np.max(np.abs(2 * below[1] - below[0] - np.asarray(spectrum.cdf(x)))) < allowed


def test_not_of_a_resnet():
    with pytest.raises(ValueError, match="not available"):
        jfree.fisher_spectrum(jfree.ResNet(3))
