import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import num_compiled

import jfree
from jfree.layers import Activation, Dense, Residual, RMSNorm

KEY = jax.random.key(0)


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_moments(weights):
    net = jfree.MLP([300, 200, 400], "tanh", weights, sigma_w=[1.5, 0.7], sigma_b=[0.3, 0.0])
    (w1, b1), (w2, b2) = jfree.sample_weights(net, KEY)
    assert [x.shape for x in (w1, b1, w2, b2)] == [(200, 300), (200,), (400, 200), (400,)]
    assert np.isclose(jnp.mean(w1**2) * 300, 1.5**2, rtol=0.02)
    assert np.isclose(jnp.mean(w2**2) * 200, 0.7**2, rtol=0.02)
    assert np.isclose(jnp.std(b1), 0.3, rtol=0.15)
    assert np.all(b2 == 0)
    for weight in (w1, w2):
        assert abs(jnp.mean(weight)) < 4 * jnp.std(weight) / weight.size**0.5
        correlation = jnp.mean(weight[:, ::2] * weight[:, 1::2]) / jnp.var(weight)
        assert abs(correlation) < 4 / (weight.size / 2) ** 0.5


@pytest.mark.parametrize(("num_in", "num_out"), [(20, 20), (30, 20), (20, 30)])
def test_orthogonal_weights_are_isometries(num_in, num_out):
    [(weight, _)] = jfree.sample_weights(jfree.MLP([num_in, num_out], sigma_w=1.3), KEY)
    gram = weight @ weight.T if num_out <= num_in else weight.T @ weight
    assert np.allclose(gram, 1.69 * max(1, num_out / num_in) * jnp.eye(20), atol=1e-12)


def test_orthogonal_weights_are_haar():
    """Traces of Haar orthogonal matrices have mean 0 and variance 1, determinants both signs."""
    samples = jnp.stack([weight for weight, _ in jfree.sample_weights(jfree.ResNet(500), KEY, width=5)])
    traces = jnp.trace(samples, axis1=1, axis2=2)
    assert abs(jnp.mean(traces)) < 4 / 500**0.5
    assert np.isclose(jnp.var(traces), 1, atol=0.25)
    assert np.isclose(jnp.mean(jnp.linalg.det(samples)), 0, atol=4 / 500**0.5)


def test_layers_of_blocks_come_in_order():
    sigma_w = jnp.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    net = jfree.ResNet(3, "tanh", "orthogonal", sigma_w, jnp.asarray([0.0, 1.0, 0.0]), layers_per_block=2)
    layers = jfree.sample_weights(net, KEY, width=7)
    assert len(layers) == 6
    for (weight, bias), scale, has_bias in zip(layers, sigma_w.ravel(), [0, 0, 1, 1, 0, 0], strict=True):
        assert np.allclose(weight @ weight.T, scale**2 * jnp.eye(7), atol=1e-12)
        assert bool(jnp.any(bias != 0)) == bool(has_bias)


def test_layers_are_independent_and_reproducible():
    net = jfree.MLP([9, 9, 9], weights="gaussian", sigma_b=1.0)
    (w1, b1), (w2, b2) = jfree.sample_weights(net, KEY)
    assert abs(jnp.sum(w1 * w2)) < 4  # of standard deviation 1; 9 if they were one
    assert not np.any(b1 == b2)
    assert np.array_equal(w1, jfree.sample_weights(net, KEY)[0][0])
    assert not np.any(w1 == jfree.sample_weights(net, jax.random.key(1))[0][0])


def test_layers_of_a_shape_and_networks_of_all_scales_share_a_program():
    def sample(net):
        return num_compiled(lambda: jfree.sample_weights(net, KEY))

    shallow, deep = sample(jfree.MLP([7] * 3)), sample(jfree.MLP([7] * 9))
    assert 0 < deep <= shallow
    assert sample(jfree.MLP([7] * 9, sigma_w=1.3, sigma_b=0.2)) == 0
    assert sample(jfree.MLP([7] * 9, sigma_w=np.linspace(1, 2, 8))) <= 1  # which writes the scales out


def test_width_is_the_largest():
    layers = jfree.sample_weights(jfree.MLP([0.5, 1.0, 0.26]), KEY, width=10)
    assert [weight.shape for weight, _ in layers] == [(10, 5), (3, 10)]


def test_layers_with_weights_come_in_the_order_in_which_they_act():
    branch = [RMSNorm(), Dense(8, sigma_w=2.0), Activation("tanh"), Residual([Dense(8, sigma_w=3.0)]), Dense(2)]
    net = jfree.Network(4, [Dense(2), Residual(branch), Dense(6, "gaussian", sigma_b=1.0)])
    layers = jfree.sample_weights(net, KEY)
    assert [weight.shape for weight, _ in layers] == [(2, 4), (8, 2), (8, 8), (2, 8), (6, 2)]
    assert np.allclose(layers[1][0].T @ layers[1][0], 4 * 4 * jnp.eye(2), atol=1e-12)
    assert np.allclose(layers[2][0] @ layers[2][0].T, 9 * jnp.eye(8), atol=1e-12)
    assert [bool(jnp.any(bias != 0)) for _, bias in layers] == [False, False, False, False, True]
    assert [w.shape[0] for w, _ in jfree.sample_weights(net, KEY, width=3)] == [1, 4, 4, 1, 3]


def test_layers_fit_behind_each_other_whatever_is_rounded():
    """0.26 of 10 units are 3, of which 1 / 0.26 are 12."""
    net = jfree.Network(0.26, [Dense(1.0), Dense(0.3), Residual([Dense(2.0), Dense(0.3)])])
    expected = [(10, 3), (3, 10), (20, 3), (3, 20)]
    assert [weight.shape for weight, _ in jfree.sample_weights(net, KEY, width=10)] == expected
    assert jfree.to_equinox(net, KEY, width=10)(jnp.ones(3)).shape == (3,)
    assert jfree.empirical.jacobian_eigenvalues(net, KEY, width=10, num_samples=2).shape == (2, 3)


def test_dtype_follows_the_network():
    net = jfree.MLP([4, 3], sigma_w=jnp.float32(1.0), sigma_b=jnp.float32(0.1))
    [(weight, bias)] = jfree.sample_weights(net, KEY)
    assert weight.dtype == bias.dtype == jnp.float32


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("net", "width", "named"),
    [
        (jfree.MLP([1.0, 0.5]), None, "`widths` of `net`"),
        (jfree.MLP([1.0, 0.5]), 0, "`width`"),
        (jfree.MLP([1.0, 0.1]), 3, "no units"),
        (jfree.ResNet(2), None, "`width` must be given"),
        (jfree.ResNet(2), 2.5, "`width` must be a positive integer"),
        ("MLP", None, "`net`"),
    ],
)
def test_impossible_arguments(net, width, named):
    with pytest.raises(ValueError, match=named):
        jfree.sample_weights(net, KEY, width)
