"""Single eigenvalues outside the bulk, and what bounds them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_mlp, random_resnet

import jfree
from jfree.activations import FromFunction
from jfree.empirical import jacobian_eigenvalues
from jfree.layers import Activation, Dense, Dropout, Gated, LayerNorm, Parallel, Repeat, Residual, RMSNorm, Scale

N, NUM_SAMPLES = 300, 24


def gaussian(width: float = N, **scales: float):
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
    assert "one of about" in str(found)
    np.testing.assert_allclose(found.largest, largest, rtol=0.06)
    np.testing.assert_allclose(found.smallest, found.bulk[0] if smallest is None else smallest, rtol=0.03)
    lower, upper = spectrum.edges(outliers=True)
    assert (lower, upper) == (found.smallest, found.largest)
    assert spectrum.condition_number(outliers=True) == found.condition_number_at_least()


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
    assert found.is_known
    np.testing.assert_array_equal(jnp.stack([found.smallest, found.largest]), found.bulk)
    assert str(found) == "No eigenvalue lies outside of the bulk."


extremes = eqx.filter_jit(lambda net: net.extremes())


# Of 100 blocks, `sigma_w^2 = c / 100`, for `c = 1` and 0.1: the largest, and the smallest of the second, if outside.
DEEP = {
    "relu": (1687.3, 7.087, 0.4621),
    "leaky_relu": (1567.9, 6.932, 0.4628),
    "tanh": None,
    "hard_tanh": None,
    "sigmoid": None,
}


@pytest.mark.parametrize("activation", DEEP)
def test_of_a_hundred_blocks(activation):
    found = [extremes(jfree.ResNet(100, activation, "gaussian", (c / 100) ** 0.5)) for c in (1.0, 0.1)]
    first, second = (jnp.stack([x.values, x.ends]) for x in found)
    if DEEP[activation] is None:
        np.testing.assert_allclose(first[0], first[1], rtol=1e-12)
        np.testing.assert_allclose(second[0], second[1], rtol=1e-12)
    else:
        found = jnp.stack([first[0, 1], second[0, 1], second[0, 0]])
        np.testing.assert_allclose(found, jnp.asarray(DEEP[activation]), rtol=1e-3)
        assert first[0, 0] == first[1, 0]


def without_small(h):
    return jnp.where(jnp.abs(h) > 1, h, 0.0)


RISING = FromFunction(lambda h: h + jnp.tanh(h))
RATHER_LARGE = FromFunction(lambda h: h - jnp.tanh(h))
HARD_SHRINK = FromFunction(without_small, knots=(-1.0, 1.0))


def sampled(net, width, key, num_samples):
    """Extreme eigenvalues at inputs whose mean and mean square are those of the network."""
    skip, mean = (1.0, net.mean0) if isinstance(net, jfree.ResNet) else (0.0, None)
    found = []
    for k in jax.random.split(key, num_samples):
        weights_key, x_key = jax.random.split(k)
        weights = jfree.sample_weights(net, weights_key, width)
        x = jax.random.normal(x_key, weights[0][0].shape[1:])
        x = x if mean is None else mean + (x - jnp.mean(x)) / jnp.std(x) * jnp.sqrt(net.q0 - mean**2)
        x = x * jnp.sqrt(net.q0 / jnp.mean(x**2))
        jacobian = jnp.eye(x.size)
        for activation, (w, b) in zip(net.activations, weights, strict=True):
            h = w @ x + b
            own = activation.derivative(h)[:, None] * (w @ jacobian)
            jacobian = skip * jacobian + own if skip else own
            x = skip * x + activation(h) if skip else activation(h)
        values = np.square(np.linalg.svd(jacobian, compute_uv=False))
        found.append([values[-1], values[0]])
    return np.asarray(found)


SAMPLED = {
    "gaussian": jfree.ResNet(10, "relu", "gaussian", 0.1**0.5),
    "orthogonal": jfree.ResNet(10, "relu", "orthogonal", 0.1**0.5),
    "biases": jfree.ResNet(10, "relu", "gaussian", 0.1**0.5, 0.3, mean0=0.5),
    "rather large": jfree.MLP([1] * 5, [RATHER_LARGE] * 4, "gaussian", 2.0),
    "hard shrink": jfree.MLP([1] * 6, [HARD_SHRINK] * 5, "orthogonal", 1.1, 0.2),
    "below": jfree.MLP([1] * 6, [RISING] * 5, "orthogonal", 0.5**0.5),
    "widths": jfree.MLP([1, 1.2, 1], [HARD_SHRINK] * 2, "gaussian", 1.0),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_have_them(name):
    net, num_samples = SAMPLED[name], 8
    found = extremes(net)
    k = int(name != "below")
    ratio = float(found.values[k] / found.ends[k])
    assert max(ratio, 1 / ratio) > 1.05
    values = sampled(net, 500, jax.random.key(2), num_samples)[:, k]
    error = np.std(values, ddof=1) / num_samples**0.5
    assert abs(np.mean(values) - found.values[k]) < 4 * error
    assert error < 0.05 * found.values[k]


def test_mlps_in_numbers():
    found = extremes(SAMPLED["rather large"])
    np.testing.assert_allclose(found.values[1], 865.27982156, rtol=1e-8)
    np.testing.assert_allclose(found.ends[1], 787.65689237, rtol=1e-8)


@pytest.mark.parametrize(("last", "weights"), [(1, "gaussian"), (1, "orthogonal"), (3, "gaussian")])
def test_mlps_of_rectifiers_have_none(last, weights):
    found = jfree.jacobian_spectrum(jfree.MLP(np.linspace(1, last, 6), "relu", weights, 1.4)).outliers()
    assert found.largest == found.bulk[1]
    assert not found.above
    assert not found.below


def test_they_lie_beyond_their_bounds():
    """The two theories agree, over random networks."""
    rng = np.random.default_rng(3)
    number = 0
    for k in range(20):
        make, depth = (random_mlp, 3) if k % 2 else (random_resnet, 4)
        net = make(rng, depth, ["relu", "tanh", "leaky_relu", "gelu"])
        found, bounds = extremes(net), net.ritz_values()
        known, share = np.isfinite(found.values), 1e-6 + float(found.error)
        number += known[1]
        assert not known[1] or found.values[1] > bounds[1] * (1 - share)
        assert not known[0] or found.values[0] < bounds[0] * (1 + share)
    assert number > 8


@pytest.mark.parametrize(
    "net",
    [
        jfree.Network(9.0, [Residual([RMSNorm(), gaussian(9.0), Activation("gelu"), gaussian(9.0)])]),
        jfree.ResNet(3, "relu", "gaussian", 0.3, layers_per_block=2),
        jfree.ResNet(3, "relu", "centred_gaussian", 0.3),
        jfree.ResNet(3, "relu_squared", "gaussian", 0.3),
        jfree.MLP([1, 2, 1], "relu", "orthogonal"),
        jfree.Network(9.0, [gaussian(9.0), Activation("relu"), Dropout(0.1), gaussian(9.0)]),
    ],
    ids=["norms", "two layers", "centred", "slopes", "widths", "dropout"],
)
def test_others_are_not_known(net):
    assert np.all(np.isnan(extremes(net).values))


def test_what_is_not_known_is_bounded():
    block = [gaussian(9.0, sigma_w=0.3), Activation("relu"), Dropout(0.01)]
    net = jfree.Network(9.0, [Repeat(12, [Residual(block)])])
    spectrum = jfree.jacobian_spectrum(net)
    found = spectrum.outliers()
    assert np.isnan(found.smallest)
    assert np.isnan(found.largest)
    assert "of at least" in str(found)
    assert np.isnan(spectrum.condition_number(outliers=True))
    assert np.isfinite(found.condition_number_at_least())


def test_layers_do_not_know_what_they_are_called():
    """The same networks in other words have the same."""
    blocks = jfree.Network(9.0, [Repeat(5, [Residual([gaussian(9.0, sigma_w=0.5), Activation("relu")])])])
    chain = jfree.Network(9.0, [gaussian(9.0, sigma_w=2.0), Activation(RATHER_LARGE), gaussian(18.0)])
    for net, same in (
        (blocks, jfree.ResNet(5, "relu", "gaussian", 0.5)),
        (chain, jfree.MLP([9.0, 9.0, 18.0], [RATHER_LARGE, "linear"], "gaussian", [2.0, 1.0])),
    ):
        for one in (net, net.padded()):
            np.testing.assert_allclose(extremes(one).values, extremes(same).values, rtol=1e-9)


def test_bounds_have_gradients():
    def largest(sigma_w):
        return jfree.ResNet(5, "gelu", "gaussian", sigma_w).ritz_values()[1]

    slope = jax.grad(largest)(0.7)
    np.testing.assert_allclose(slope, (largest(0.7 + 1e-5) - largest(0.7 - 1e-5)) / 2e-5, rtol=1e-6)


def test_of_other_spectra_they_are_not_known():
    with pytest.raises(ValueError, match="outliers"):
        jfree.fisher_spectrum(jfree.MLP([1, 1], "relu")).outliers()


@pytest.mark.parametrize(("activation", "sigma_w", "q0"), [("relu", 1.0, 1e-13), ("tanh", 0.01, 1.0)])
def test_signals_too_small_for_floats_have_no_false_outliers(activation, sigma_w, q0):
    sigma_w, q0 = jnp.float32(sigma_w), jnp.float32(q0)
    found = jfree.jacobian_spectrum(jfree.MLP([1] * 5, activation, "gaussian", sigma_w, q0=q0)).outliers()
    assert found.largest.dtype == jnp.float32
    assert jnp.isnan(found.largest)
    assert not found.above


def test_extreme_eigenvalues_are_not_differentiated():
    """Rather than with a gradient of 0, which would be wrong."""

    def condition(sigma_w, outliers):
        return jfree.jacobian_spectrum(jfree.ResNet(3, "relu", "gaussian", sigma_w)).condition_number(outliers)

    assert jax.grad(condition)(0.5, False) > 0
    assert jax.jit(condition, static_argnums=1)(0.5, True) >= condition(0.5, False)
    with pytest.raises(ValueError, match="`outliers` must be False where something is differentiated"):
        jax.grad(condition)(0.5, True)
