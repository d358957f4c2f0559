"""float32 in, float32 out, with x64 on; and how far float32 goes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree

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
