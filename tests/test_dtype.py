"""float32 in, float32 out, with x64 on; and how far float32 goes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree
from jfree.layers import Activation, Dense, LayerNorm, Residual
from jfree.objectives import isometry, weighted_isometry

DTYPES = (jnp.float32, jnp.float64)


@pytest.mark.parametrize("activation", ["hard_tanh", "tanh"])
def test_follows_the_network(activation):
    widths = np.array([3, 4, 4, 2], np.float32)
    single = jfree.MLP(widths, activation, "gaussian", 1.2, 0.1)
    double = jfree.MLP(widths.astype(np.float64), activation, "gaussian", 1.2, 0.1)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(jfree.propagate(single)))
    low, high = jfree.jacobian_spectrum(single), jfree.jacobian_spectrum(double)
    x = np.array([0.05, 0.4, 1.5])
    assert all(leaf.dtype in (jnp.float32, jnp.complex64) for leaf in jax.tree.leaves(low.curve))
    for name, args in [
        ("density", (x,)),
        ("cdf", (x,)),
        ("log_potential", (x,)),
        ("quantile", (np.array([0.6, 0.9]),)),
        ("edges", ()),
        ("moment", (3,)),
        ("mean_log", ()),
        ("log_variance", ()),
        ("variance", ()),
        ("mass_at_zero", ()),
        ("stieltjes", (x + 0.1j,)),
    ]:
        got, want = getattr(low, name)(*args), getattr(high, name)(*args)
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert g.dtype in (jnp.float32, jnp.complex64), name
            np.testing.assert_allclose(g, w, rtol=1e-3, atol=1e-5, err_msg=name)
    assert jnp.all(low.solve(x).result == jfree.RESULTS.successful)


def test_residual_networks_follow_their_scales():
    single, double = (jfree.jacobian_spectrum(jfree.ResNet(3, "relu", sigma_w=dtype(0.5))) for dtype in DTYPES)
    x = np.array([0.4, 1.5])
    for name, args in [("edges", ()), ("cdf", (x,)), ("log_potential", (x,)), ("quantile", (np.array([0.3, 0.9]),))]:
        got, want = getattr(single, name)(*args), getattr(double, name)(*args)
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert g.dtype == jnp.float32, name
            np.testing.assert_allclose(g, w, rtol=1e-3, atol=1e-5, err_msg=name)


def in_single(net):
    return jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, net)


@pytest.mark.parametrize("scale", [0.1, 0.01, 0.003])
def test_weak_blocks_next_to_isometry(scale):
    branch = [LayerNorm(), Dense(4.0), Activation("gelu"), Dense(1.0, sigma_w=scale)]
    double = jfree.Network(1.0, [Residual(branch), Residual(branch)])
    high, low = jfree.jacobian_spectrum(double), jfree.jacobian_spectrum(in_single(double))
    width = float(high.variance()) ** 0.5
    x = np.float32(1 + width * np.linspace(-2.5, 2.5, 51))
    density = width * np.asarray(low.density(x))
    assert not np.any(np.isnan(density))
    np.testing.assert_allclose(density, width * high.density(x.astype(np.float64)), atol=2e-6 / width)
    levels = np.linspace(0.05, 0.95, 7)
    np.testing.assert_allclose(low.quantile(levels.astype(np.float32)), high.quantile(levels), atol=1e-6)
    for objective, rtol in ((weighted_isometry, 0.02), (isometry, 0.05)):
        want, got = (eqx.filter_value_and_grad(objective)(net) for net in (double, in_single(double)))
        np.testing.assert_allclose(got[0], want[0], rtol=rtol)
        inner, outer = (out[1].layers[1].layers[3].sigma_w for out in (got, want))
        np.testing.assert_allclose(inner, outer, rtol=rtol)


def test_deep_networks_of_units_that_are_nearly_dead_are_differentiated():
    net = jfree.MLP(np.ones(51), "gelu", "orthogonal", 1.5)
    want, got = (eqx.filter_value_and_grad(weighted_isometry)(net) for net in (net, in_single(net)))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-4)
    np.testing.assert_allclose(got[1].sigma_w, want[1].sigma_w, rtol=1e-3)
