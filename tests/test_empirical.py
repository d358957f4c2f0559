import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree
from jfree.empirical import jacobian_eigenvalues, ks_distance

KEY = jax.random.key(0)
RELU = jfree.MLP([1, 1, 1, 1], "relu", "gaussian", sigma_w=1.4, sigma_b=0.1, q0=2.0)
TANH = jfree.MLP([1, 1, 1, 1], "tanh", "orthogonal", sigma_w=1.2, sigma_b=0.3)


@pytest.mark.parametrize("net", [RELU, TANH])
def test_wide_networks_follow_the_limit(net):
    eigenvalues = jacobian_eigenvalues(net, KEY, width=400)
    spectrum = jfree.jacobian_spectrum(net)
    assert eigenvalues.shape == (1, 400)
    assert jnp.all(jnp.diff(eigenvalues) >= 0)
    assert np.isclose(eigenvalues.mean(), spectrum.mean(), rtol=0.05)
    assert ks_distance(eigenvalues, spectrum) < 0.03
    assert ks_distance(2 * eigenvalues, spectrum) > 0.05


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("widths", [[40, 60, 20], [20, 60, 40]])
def test_sides_share_what_is_not_zero(widths, side):
    net = jfree.MLP(widths, "tanh", ["gaussian", "orthogonal"])
    eigenvalues = jacobian_eigenvalues(net, KEY, side=side)
    assert eigenvalues.shape == (1, widths[0] if side == "input" else widths[-1])
    other = jacobian_eigenvalues(net, KEY, side="output" if side == "input" else "input")
    assert np.allclose(eigenvalues[:, -20:], other[:, -20:])
    assert np.all(np.asarray(eigenvalues[:, :-20]) == 0)


@pytest.mark.parametrize("widths", [[30, 30], [60, 30], [30, 60]])
def test_orthogonal_weights_are_all_atoms(widths):
    net = jfree.MLP(widths, "linear", "orthogonal", sigma_w=1.3)
    eigenvalues = jacobian_eigenvalues(net, KEY)
    assert np.allclose(eigenvalues[0, -30:], 1.69 * max(1, widths[1] / widths[0]), rtol=1e-12)
    assert ks_distance(eigenvalues, jfree.jacobian_spectrum(net)) < 1e-12
    assert ks_distance(eigenvalues + 0.01, jfree.jacobian_spectrum(net)) > 0.4


def test_rounding_is_not_distance():
    net = jfree.MLP([200, 100], "linear", "gaussian")
    eigenvalues, spectrum = jacobian_eigenvalues(net, KEY), jfree.jacobian_spectrum(net)
    exact = ks_distance(eigenvalues, spectrum)
    assert exact < 0.03
    noise = jnp.where(eigenvalues == 0, jnp.linspace(-1e-14, 1e-14, 200), 0)
    assert np.isclose(ks_distance(eigenvalues + noise, spectrum), exact)
    assert ks_distance(eigenvalues + 1e-6, spectrum) > 0.4


def test_dtype_follows_the_network():
    to_float32 = lambda x: x.astype(jnp.float32) if hasattr(x, "astype") else x  # noqa: E731
    net = jax.tree.map(to_float32, jfree.MLP([20, 10], "tanh"))
    assert jacobian_eigenvalues(net, KEY).dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"side": "left"}, "`side`"),
        ({"width": 0}, "`width`"),
        ({"width": 2.5}, "`width`"),
        ({"num_samples": 0}, "`num_samples`"),
        ({}, "`widths` of `net`"),
        ({"width": 1}, "no units"),
    ],
)
def test_impossible_arguments(options, named):
    net = jfree.MLP([1.0, 0.5, 0.1])
    with pytest.raises(ValueError, match=named):
        jacobian_eigenvalues(net, KEY, **options)


@pytest.mark.parametrize("eigenvalues", [[], [1.0, np.nan]])
def test_impossible_eigenvalues(eigenvalues):
    spectrum = jfree.jacobian_spectrum(jfree.MLP([2, 1], "linear", "gaussian"))
    with pytest.raises(ValueError, match="`eigenvalues`"):
        ks_distance(np.asarray(eigenvalues), spectrum)
