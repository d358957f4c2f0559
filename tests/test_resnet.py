"""Residual networks: closed forms, the universal limit, samples."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree
from jfree.empirical import jacobian_eigenvalues, ks_distance

FULL = bool(os.environ.get("JFREE_FULL"))


@pytest.mark.parametrize("theta", [0.05, 0.7, 3.0])
def test_universal_limit(theta):
    spectrum = jfree.universal_resnet_spectrum(theta)
    r = np.sqrt(theta**2 + 2 * theta)
    edges = (1 + theta - r) * np.exp(-r), (1 + theta + r) * np.exp(r)
    np.testing.assert_allclose(spectrum.edges(), edges, rtol=1e-10)
    np.testing.assert_allclose(spectrum.condition_number(), (1 + theta + r) * np.exp(r), rtol=1e-10)
    np.testing.assert_allclose(spectrum.mean(), np.exp(theta), rtol=1e-12)
    np.testing.assert_allclose(spectrum.moment(2), np.exp(2 * theta) * (1 + 2 * theta), rtol=1e-10)
    np.testing.assert_allclose(spectrum.mean_log(), 0, atol=1e-10)  # S(-u) S(u - 1) = 1: reciprocals are alike
    np.testing.assert_allclose(spectrum.quantile(0.3) * spectrum.quantile(0.7), 1, rtol=1e-10)


def test_deep_networks_approach_it():
    """`sigma_w^2 = c / L`; the distance halves when the depth doubles."""
    errors = []
    for depth in (500, 1000):
        net = jfree.ResNet(depth, "hard_tanh", "gaussian", (0.8 / depth) ** 0.5)
        spectrum = jfree.jacobian_spectrum(net)
        universal = jfree.universal_resnet_spectrum(jnp.sum(jfree.propagate(net).chi))
        errors.append(float(jnp.log(spectrum.edges()[1] / universal.edges()[1])))
    assert abs(errors[-1]) < 2e-3
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.03)


def test_certified_where_the_branch_turns_below_the_axis():
    """At this place `z` of the branch crosses the negative axis, on its way from the upper half plane to the lower."""
    net = jfree.Network(
        1.0, [jfree.layers.Residual([jfree.layers.Dense(1.0), jfree.layers.Activation("tanh")], 1, 0.7)]
    )
    around = 0.8579748657910335 * (1 + np.linspace(-4e-6, 4e-6, 100))
    assert np.all(np.isfinite(jfree.jacobian_spectrum(net).density(around)))


@pytest.mark.parametrize(
    ("activation", "layers", "weights"), [("relu", 1, "orthogonal"), ("relu", 2, "gaussian"), ("tanh", 2, "orthogonal")]
)
def test_moments(activation, layers, weights):
    """Ling, He and Qiu, Corollary 1 and Theorem 2: `m_1 = 1 + y_1`, `m_2 = 1 + 4 y_1 + y_2` per block."""
    depth = 3
    sigma_w = np.linspace(0.4, 0.9, depth * layers).reshape(depth, layers)
    net = jfree.ResNet(depth, activation, weights, sigma_w, 0.2, layers, q0=1.5, mean0=0.3)
    field = jfree.propagate(net)
    mean, spread = 1.0, 0.0
    for block in range(depth):
        y1, relative = 1.0, 1.0
        for layer in range(layers):
            k = block * layers + layer
            q, chi = float(field.q[k]), float(field.chi[k])
            z = np.linspace(-12, 12, 200001)
            g = np.asarray(net.activations[k].derivative(jnp.asarray(np.sqrt(q) * z))) ** 2
            weight = np.exp(-z * z / 2)
            kurtosis = np.sum(weight * g**2) * np.sum(weight) / np.sum(weight * g) ** 2
            y1 *= chi
            relative += kurtosis - 1 + (weights == "gaussian")
        y2 = relative * y1**2
        m1, m2 = 1 + y1, 1 + 4 * y1 + y2
        mean, spread = mean * m1, spread + m2 / m1**2 - 1
    spectrum = jfree.jacobian_spectrum(net)
    rtol = 1e-9 if activation == "tanh" else 1e-4  # the sum over z sees the kink
    np.testing.assert_allclose(spectrum.mean(), mean, rtol=rtol)
    np.testing.assert_allclose(spectrum.variance(), spread * mean**2, rtol=rtol)
    np.testing.assert_allclose(spectrum.moment(1), spectrum.mean(), rtol=1e-10)
    np.testing.assert_allclose(spectrum.moment(2), spectrum.variance() + spectrum.mean() ** 2, rtol=1e-10)


def test_alike_blocks_are_one():
    """The same network, its scale once for all and once block by block."""
    one = jfree.jacobian_spectrum(jfree.ResNet(40, "relu", "orthogonal", 0.3))
    many = jfree.jacobian_spectrum(jfree.ResNet(40, "relu", "orthogonal", np.full(40, 0.3)))
    np.testing.assert_allclose(one.edges(), many.edges(), rtol=1e-9)
    lower, upper = (float(e) for e in one.edges())
    x = np.geomspace(lower, upper, 9)[1:-1]
    for method in ("density", "cdf", "log_potential"):
        np.testing.assert_allclose(getattr(one, method)(x), getattr(many, method)(x), rtol=1e-9)
    np.testing.assert_allclose(one.mean_log(), many.mean_log(), atol=1e-8)
    np.testing.assert_allclose(one.moment(3), many.moment(3), rtol=1e-9)


@pytest.mark.parametrize("activation", ["tanh", "erf"])
@pytest.mark.parametrize("weights", ["orthogonal", "gaussian"])
@pytest.mark.parametrize(("depth", "sigma_w"), [(1, 0.1), (10, 0.3), (100, 0.1)])
def test_isometry_of_small_branches(activation, weights, depth, sigma_w):
    net = jfree.ResNet(depth, activation, weights, sigma_w)
    nodes, measure = np.polynomial.legendre.leggauss(60)
    logs = np.log(jfree.jacobian_spectrum(net).quantile((nodes + 1) / 2)) / 2
    known = np.isfinite(logs)  # all but the outermost, next to edges
    assert np.all(known[3:-3])
    squares = np.interp(nodes, nodes[known], np.square(logs)[known])
    assert np.isclose(jfree.objectives.isometry(net), measure @ squares / 2, rtol=2e-3)


def test_orthogonal_identity_branch():
    """`I + U`, `U` Haar orthogonal: eigenvalues `2 + 2 cos t`, the arcsine law on (0, 4)."""
    spectrum = jfree.jacobian_spectrum(jfree.ResNet(1, "linear", "orthogonal"))
    x = np.linspace(0.01, 3.99, 9)
    np.testing.assert_allclose(spectrum.density(x), 1 / (np.pi * np.sqrt(x * (4 - x))), rtol=1e-9)
    np.testing.assert_allclose(spectrum.cdf(x), 1 - np.arccos(x / 2 - 1) / np.pi, atol=1e-11)


def test_dead_units_leave_an_atom_at_one():
    """Half of the units are off, and half of those of the second layer: `Y` has rank 1/4."""
    net = jfree.ResNet(1, [jfree.activations.ShiftedReLU(1.0)], "gaussian", 1.0)
    alpha = float(net.activations[0].slopes(jfree.propagate(net).q[0])[0])  # pyright: ignore[reportAttributeAccessIssue]
    spectrum = jfree.jacobian_spectrum(net)
    locations, masses = spectrum.atoms()
    np.testing.assert_allclose((locations[1], masses[1]), (1, 1 - 2 * alpha), rtol=1e-12)
    # The branch is as good as constant there, and a gap surrounds the atom.
    np.testing.assert_array_equal(spectrum.density(1 + np.array([-1e-3, -1e-4, 1e-4, 1e-3])), 0)
    np.testing.assert_allclose(spectrum.cdf([0.999, 1.0, 1.001]), [alpha, 1 - alpha, 1 - alpha], rtol=1e-12)
    assert jax.grad(spectrum.cdf)(0.0) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "activation", "weights", "layers", "sigma_w", "samples"),
    [
        (1, "leaky_relu", "gaussian", 1, 1.2, 64),
        (5, "relu", "orthogonal", 2, 0.6, 24),
        (10, "sigmoid", "gaussian", 1, 1.0, 16),
        (100, "hard_tanh", "gaussian", 1, 0.1, 12),
    ]
    + [
        (5, "silu", "orthogonal", 1, 0.6, 24),
        (10, "tanh", "orthogonal", 2, 0.8, 24),
        (100, "tanh", "gaussian", 1, 0.1, 12),
    ]
    * FULL,
)
def test_samples(depth, activation, weights, layers, sigma_w, samples):
    net = jfree.ResNet(depth, activation, weights, sigma_w, 0.1, layers, q0=1.0, mean0=0.2)
    eigenvalues = jacobian_eigenvalues(net, jax.random.key(2), width=400, num_samples=samples)
    assert ks_distance(eigenvalues, jfree.jacobian_spectrum(net)) < (0.02 if depth == 100 else 0.01)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("depth", 0),
        ("depth", 2.5),
        ("layers_per_block", -1),
        ("activation", ["relu"]),
        ("activation", "rleu"),
        ("weights", ["gaussian"] * 4),
        ("sigma_w", [1.0, 1.0]),
        ("sigma_w", 0.0),
        ("sigma_b", -1.0),
        ("q0", -1.0),
        ("mean0", 2.0),
        ("mean0", float("nan")),
    ],
)
def test_bad_input(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        jfree.ResNet(**{"depth": 3, name: value})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("theta", [0.0, -1.0, float("inf"), [1.0, 2.0]])
def test_bad_theta(theta):
    with pytest.raises(ValueError, match="`theta`"):
        jfree.universal_resnet_spectrum(theta)
