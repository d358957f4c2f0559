"""Single eigenvalues outside the bulk, and what bounds them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree
from jfree.empirical import jacobian_eigenvalues
from jfree.layers import Activation, Dense, Dropout, Gated, LayerNorm, Parallel, Repeat, Residual, RMSNorm, Scale

N, NUM_SAMPLES = 300, 24


def gaussian(width=N, **scales):
    return Dense(width, "gaussian", **scales)


NETWORKS = {
    "activations": [gaussian(sigma_w=1.5), Activation("gelu"), gaussian(sigma_b=0.3), Activation("softplus")],
    "orthogonal": [Dense(N), Activation("relu"), Dense(2 * N), Activation("sigmoid"), Dense(N)],
    "centred": [gaussian(), Activation("relu"), Dense(N, "centred_gaussian"), Activation("tanh")],
    "norms": [gaussian(), Activation("gelu"), RMSNorm(1.3), gaussian(), Activation("relu"), LayerNorm(), Scale(-1.4)],
    "dropout": [Dropout(0.1), gaussian(), Activation("relu"), Dropout(0.2), gaussian()],
    "gates": [Gated(N, "silu", 1.3, 0.8, 0.1), gaussian()],
    "blocks": [Repeat(4, [Residual([gaussian(sigma_w=0.5), Activation("relu")])])],
    "scaled blocks": [Repeat(3, [Residual([LayerNorm(), Gated(N), gaussian(), Activation("sigmoid")], 0.9, 0.7)])],
    "parallel": [
        Parallel([[gaussian(N // 2), Activation("relu")], [gaussian(N // 2), Activation("softplus")]]),
        Parallel([[Dense(N // 2), Activation("relu")], [gaussian(N // 2), Activation("sigmoid")]], skip=1.0),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_are_those_of_samples(name):
    """`|J v|^2` on the span of the input and of the vector of ones."""
    mean, square = 0.4, 1.3
    net = jfree.Network(float(N), NETWORKS[name], q0=square, mean0=mean)

    @eqx.filter_vmap
    def sampled(key):
        weights, noise, masks = jax.random.split(key, 3)
        x = jax.random.normal(noise, (N,))
        x = mean + (x - jnp.mean(x)) * jnp.sqrt((square - mean**2) / jnp.var(x))
        basis, _ = jnp.linalg.qr(jnp.stack([x, jnp.ones(N)], 1))
        model = jfree.to_equinox(net, weights)
        _, push = jax.linearize(lambda x: model(x, key=masks), x)
        stretched = jax.vmap(push, in_axes=1)(basis)
        return jnp.linalg.eigvalsh(stretched @ stretched.T)

    values = np.asarray(sampled(jax.random.split(jax.random.key(0), NUM_SAMPLES)))
    bounds = net.ritz_values()
    if not np.isfinite(bounds[0]):  # fewer outputs than inputs
        bounds, values = bounds[1:], values[:, 1:]
    error = np.std(values, axis=0) / NUM_SAMPLES**0.5
    assert np.all(np.abs(values.mean(axis=0) - bounds) < 4 * error + 8 * bounds / N)
    assert np.all(error < 0.1 * np.abs(values.mean(axis=0)) + 1e-9)


@pytest.mark.parametrize(("scale", "largest", "smallest"), [(1.0, 1600, None), (0.01, 1.65, 0.706)])
def test_residual_networks_of_rectifiers_have_them(scale, largest, smallest):
    """Sampled extreme eigenvalues of 100 blocks of width 400."""
    spectrum = jfree.jacobian_spectrum(jfree.ResNet(100, "relu", "gaussian", (scale / 100) ** 0.5))
    found = spectrum.outliers()
    assert found.above
    assert 0.9 * largest < found.largest_at_least < largest
    assert bool(found.below) == (smallest is not None)
    assert smallest is None or smallest < found.smallest_at_most < 1.05 * smallest
    assert found.condition_number_at_least() > spectrum.condition_number()
    assert "single eigenvalues: one of at least" in str(found)


def test_samples_reach_the_bounds():
    net = jfree.ResNet(12, "relu", "gaussian", 0.3)
    found = jfree.jacobian_spectrum(net).outliers()
    values = jacobian_eigenvalues(net, jax.random.key(1), width=400)
    assert found.above
    assert found.bulk[1] * 1.2 < found.largest_at_least < 1.02 * jnp.max(values)
    assert jnp.sort(values.ravel())[-2] < found.bulk[1] * 1.1


@pytest.mark.parametrize("activation", ["tanh", "hard_tanh", "linear"])
def test_none_are_known_without_means(activation):
    found = jfree.jacobian_spectrum(jfree.ResNet(20, activation, "gaussian", 0.2)).outliers()
    assert not found.above
    assert not found.below
    assert found.words == []


def test_bounds_have_gradients():
    def largest(sigma_w):
        return jfree.ResNet(5, "gelu", "gaussian", sigma_w).ritz_values()[1]

    slope = jax.grad(largest)(0.7)
    np.testing.assert_allclose(slope, (largest(0.7 + 1e-5) - largest(0.7 - 1e-5)) / 2e-5, rtol=1e-6)


def test_of_other_spectra_they_are_not_known():
    with pytest.raises(ValueError, match="outliers"):
        jfree.fisher_spectrum(jfree.MLP([1, 1], "relu")).outliers()
