"""Blocks of composed networks, scaled such that squared gradients grow by what was asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree
from jfree.constraints import criticality
from jfree.layers import (
    Activation,
    Conv,
    Dense,
    Dropout,
    Gated,
    LayerNorm,
    Parallel,
    Repeat,
    Residual,
    RMSNorm,
    Scale,
)


def gaussian(width=1.0, **scales):
    return Dense(width, "gaussian", **scales)


def branch(activation="gelu", **scales):
    return [gaussian(2.0, **scales), Activation(activation), gaussian()]


def chi_of(net, growth, blocks):
    """By block, each of so many layers."""
    chi = np.asarray(jfree.propagate(criticality(growth=growth)(net)).chi)
    return [np.prod(part) for part in np.split(chi, np.cumsum(blocks)[:-1])]


BLOCKS = {
    "pre-norm": ([Repeat(4, [Residual([RMSNorm(), *branch()])])], [1] * 4),
    "scales by time": ([Repeat(3, [Residual([RMSNorm(), *branch(sigma_w=jnp.asarray([0.5, 1.0, 2.0]))])])], [1] * 3),
    "two in one": ([Repeat(3, [Residual([RMSNorm(), Gated(2.0), gaussian()]), Residual([gaussian()])])], [2] * 3),
    "repeated in repeated": ([Repeat(2, [Repeat(3, [gaussian(), Activation("tanh"), Dropout(0.1)])])], [6, 6]),
    "plain": ([gaussian(3.0, sigma_b=0.2), Activation("tanh"), Conv(2.0, 3), Activation("relu"), Scale(1.5)], [2, 3]),
    "parallel": (
        [
            gaussian(),
            Parallel([[RMSNorm(), gaussian()], [LayerNorm(), Repeat(2, [gaussian()])]], skip=0.9),
            Residual([gaussian(), Residual([gaussian(), Activation("tanh"), gaussian()]), gaussian(sigma_b=0.3)]),
            Parallel([[gaussian(2.0)], [Gated(3.0), gaussian(2.0)]]),
            Activation("relu"),
        ],
        [1, 1, 1, 2],
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_grows_by_what_was_asked_for(name):
    layers, blocks = BLOCKS[name]
    net = jfree.Network(1.0, layers, q0=0.8, mean0=0.3)
    np.testing.assert_allclose(chi_of(net, 1.2, blocks), 1.2, rtol=1e-10)


@pytest.mark.parametrize(("mean0", "growth"), [(0.0, 1.1), (0.7, 1.5)])
def test_growth_of_post_norm_blocks(mean0, growth):
    """From that of the norm alone to that of the branch alone: in the second case it falls with the weights."""
    net = jfree.Network(1.0, [Repeat(1, [Residual(branch("tanh")), LayerNorm()])], mean0=mean0)
    np.testing.assert_allclose(chi_of(net, growth, [2]), growth, rtol=1e-10)
    assert np.isnan(chi_of(net, 3.0, [2]))


def test_norms_behind_blocks_belong_to_none():
    net = jfree.Network(1.0, [LayerNorm(2.0), Residual([RMSNorm(), *branch()]), LayerNorm(), gaussian(0.5)])
    critical = criticality(growth=1.5)(net)
    chi = jfree.propagate(critical).chi
    np.testing.assert_allclose(chi[jnp.asarray([0, 1, 3])], [4, 1.5, 1.5], rtol=1e-10)
    np.testing.assert_array_equal(critical.layers[1].layers[1].sigma_w, 1)  # pyright: ignore


def test_beside_a_skip_gradients_cannot_but_grow():
    critical = criticality()(jfree.Network(1.0, [Repeat(2, [Residual([RMSNorm(), *branch()])])]))
    assert np.all(np.isnan(critical.layers[0].layers[0].layers[3].sigma_w))  # pyright: ignore


def test_samples_grow_as_much():
    """Of the squared norm of the Jacobian, over 20 blocks."""
    layers = [Repeat(20, [Residual([RMSNorm(), *branch()])])]
    net = criticality(growth=1 + 1 / 20)(jfree.Network(1.0, layers))
    rows = jfree.empirical.jacobian_eigenvalues(net, jax.random.key(0), 100, num_samples=16)
    means = rows.mean(1)
    error = means.std() / means.size**0.5
    np.testing.assert_allclose(jfree.jacobian_spectrum(net).mean(), 1.05**20, rtol=1e-10)
    assert abs(means.mean() - 1.05**20) < 4 * error + 0.02


def test_gradients():
    def sigma_w(inner):
        layers = [Repeat(2, [Residual([*branch(sigma_w=inner, sigma_b=0.1)]), LayerNorm()])]
        net = criticality(growth=1.05)(jfree.Network(1.0, layers))
        return jnp.sum(net.layers[0].layers[0].layers[2].sigma_w)  # pyright: ignore[reportAttributeAccessIssue]

    step = 1e-5
    difference = (sigma_w(1.3 + step) - sigma_w(1.3 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(sigma_w)(1.3), difference, rtol=1e-6)


def test_tuning_keeps_it():
    net = jfree.Network(1.0, [Repeat(3, [Residual([RMSNorm(), *branch()])])])
    where = lambda n: n.layers[0].layers[0].layers[1].sigma_w  # noqa: E731
    constraint = criticality(growth=1.3)
    result = jfree.tune(net, where=where, steps=3, constraint=constraint, progress=False)
    np.testing.assert_allclose(jfree.propagate(result.net).chi, 1.3, rtol=1e-10)


def test_growth_of_an_mlp():
    net = jfree.MLP(np.ones(4), "tanh", q0=0.1)
    np.testing.assert_allclose(jfree.propagate(criticality(growth=1.2)(net)).chi, 1.2, rtol=1e-8)
    field = jfree.propagate(criticality(0.4, growth=0.9)(net))
    np.testing.assert_allclose(field.chi, 0.9, rtol=1e-8)
    np.testing.assert_allclose(field.q[:3], 0.4, rtol=1e-8)


def test_impossible_arguments():
    with pytest.raises(ValueError, match="`growth`"):
        criticality(growth=0.0)
    with pytest.raises(ValueError, match="`criticality` is for an MLP or a Network"):
        criticality()(jfree.ResNet(2))
    with pytest.raises(ValueError, match="`q` of `criticality`"):
        criticality(1.0)(jfree.Network(1.0, [gaussian()]))


def test_float32():
    layers = jax.tree.map(lambda x: x.astype(jnp.float32), BLOCKS["pre-norm"][0])
    one = jnp.float32(1)
    critical = criticality(growth=1.2)(jfree.Network(one, layers, one, 0 * one))
    chi = jfree.propagate(critical).chi
    assert chi.dtype == jnp.float32
    np.testing.assert_allclose(chi, 1.2, rtol=1e-5)
