import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree
from jfree.empirical import ks_distance

SLOPES = {"tanh": lambda h: 1 - np.tanh(h) ** 2, "relu": lambda h: (h > 0).astype(float)}
FUNCTIONS = {"tanh": np.tanh, "relu": lambda h: np.maximum(h, 0)}


def orthogonal(rng, size):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def with_singular_values(values, shape, rng):
    left, right = (orthogonal(rng, n)[:, : values.size] for n in shape)
    return left * values @ right.T


def eigenvalues_at(weights, biases, activation, x):
    """Of `J^T J` of the given network itself, its last layer linear."""
    jacobian = np.eye(x.size)
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        h = weight @ x + bias
        x, jacobian = FUNCTIONS[activation](h), SLOPES[activation](h)[:, None] * (weight @ jacobian)
    return np.square(np.linalg.svd(weights[-1] @ jacobian, compute_uv=False))


@pytest.mark.parametrize(("activation", "hidden", "rank"), [("relu", 200, 200), ("tanh", 150, 100)])
def test_one_network_follows_its_measured_laws(activation, hidden, rank):
    """Weights as in no ensemble: the first orthogonal, the others with given singular values, perhaps of low rank."""
    rng, values = np.random.default_rng(0), np.exp(np.linspace(-2.5, 1, rank))
    later = [with_singular_values(values, shape, rng) for shape in ((hidden, 200), (200, hidden))]
    weights = [orthogonal(rng, 200), *later]
    biases, x = [0.1 * rng.normal(size=len(weight)) for weight in weights], rng.normal(size=200)
    eigenvalues = eigenvalues_at(weights, biases, activation, x)
    spectrum = jfree.jacobian_spectrum(jfree.from_weights(weights, biases, activation, x))
    assert ks_distance(eigenvalues, spectrum) < 0.015
    assert ks_distance(1.5 * eigenvalues, spectrum) > 0.02
    assert np.isclose(spectrum.mass_at_zero(), np.mean(eigenvalues < 1e-12), atol=1e-12)


@pytest.fixture(scope="module")
def small():
    """Expands and contracts, with units of the last layer dead."""
    rng = np.random.default_rng(0)
    weights, biases = [rng.normal(size=(12, 8)), rng.normal(size=(6, 12))], [None, np.full(6, 0.2)]
    return weights, biases, ["tanh", "relu"], np.linspace(-1, 2, 8)


def test_moments_are_measured(small):
    weights, biases, _, x = small
    net = jfree.from_weights(*small)
    h1 = weights[0] @ x
    h2 = weights[1] @ np.tanh(h1) + biases[1]
    field = jfree.propagate(net)
    assert np.allclose(field.q, [np.mean(h1**2), np.mean(h2**2)])
    assert np.allclose(field.phi2, [np.mean(np.tanh(h1) ** 2), np.mean(np.maximum(h2, 0) ** 2)])
    scales = [np.mean(weights[0] ** 2) * 8, np.mean(weights[1] ** 2) * 12]
    assert np.allclose(field.chi, np.multiply(scales, [np.mean(SLOPES["tanh"](h1) ** 2), np.mean(h2 > 0)]))
    of_input, of_output = jfree.jacobian_spectrum(net), jfree.jacobian_spectrum(net, side="output")
    assert np.isclose(of_output.mean(), jnp.prod(field.chi))
    assert np.isclose(of_input.mean(), jnp.prod(field.chi) * 6 / 8)
    assert np.isclose(of_output.mass_at_zero(), 1 - np.mean(h2 > 0))
    assert np.isclose(of_input.mass_at_zero(), 1 - np.sum(h2 > 0) / 8)


def test_spectra_are_certified_everywhere(small):
    spectrum = jfree.jacobian_spectrum(jfree.from_weights(*small))
    x = jnp.append(jnp.geomspace(1e-30, 1e-2, 40), jnp.geomspace(1e-2, 1e3, 1000)[1:])
    cdf, density = spectrum.cdf(x), spectrum.density(x)
    assert np.all(jnp.diff(cdf) >= -1e-12)
    assert np.isclose(cdf[0], spectrum.mass_at_zero(), atol=1e-12)
    assert np.isclose(cdf[-1], 1, atol=1e-12)
    assert np.isclose(np.trapezoid(density * x, jnp.log(x)), 1 - spectrum.mass_at_zero(), rtol=1e-2)


def test_one_layer_is_all_atoms():
    """Exact between its atoms; on them there is no limit from above, but for what rounding moves them by."""
    atoms = np.arange(1.0, 9.0) ** 2
    weight = with_singular_values(np.sqrt(atoms), (8, 8), np.random.default_rng(0))
    spectrum = jfree.jacobian_spectrum(jfree.from_weights([weight], [None], "linear", np.ones(8)))
    between = np.arange(1.5, 9.0) ** 2
    m = spectrum.solve(np.append(between, atoms)).m
    assert np.allclose(m[:8], np.mean(atoms / (between[:, None] - atoms), 1), rtol=1e-10)
    assert not np.any(np.abs(m[8:]) < 1e12)


def test_atoms_that_survive():
    """Of orthogonal weights and ReLU: nothing but 0 and one other."""
    rng = np.random.default_rng(0)
    weights, x = [1.5 * orthogonal(rng, 20), 2 * orthogonal(rng, 20)], rng.normal(size=20)
    active = np.mean(weights[0] @ x > 0)
    locations, masses = jfree.jacobian_spectrum(jfree.from_weights(weights, [None, None], "relu", x)).atoms()
    assert np.allclose(masses[:2], np.asarray([1 - active, active]))
    assert np.all(masses[2:] == 0)
    assert np.isclose(locations[1], 9, rtol=1e-12)


def test_equinox_models():
    model = eqx.nn.MLP(8, 4, 6, 2, key=jax.random.key(0))
    x = jnp.cos(jnp.arange(8.0))
    layers, activations = model.layers, jfree.from_equinox(model).activations
    net = jfree.from_weights([layer.weight for layer in layers], [layer.bias for layer in layers], activations, x)
    assert np.isclose(net.propagate().phi2[-1], jnp.mean(model(x) ** 2), rtol=1e-12)


def test_dtype_follows_the_weights():
    net = jfree.from_weights([jnp.eye(3, dtype=jnp.float32)], [None], "tanh", jnp.ones(3, jnp.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(net)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"weights": []}, "`weights`"),
        ({"weights": [jnp.ones((3, 2))]}, "`weights` of layer 1"),
        ({"weights": [jnp.zeros((3, 3))]}, "`weights` must not make"),
        ({"weights": [jnp.full((3, 3), jnp.inf)]}, "`weights` must be finite"),
        ({"biases": []}, "`biases`"),
        ({"biases": [jnp.ones(2)]}, "`biases`"),
        ({"biases": [jnp.full(3, jnp.nan)]}, "`biases` must be finite"),
        ({"activations": ["tanh", "tanh"]}, "`activations`"),
        ({"activations": "cube"}, "`activations`"),
        ({"activations": ["relu"], "x": -jnp.ones(3)}, "`activations` must not make"),
        ({"x": jnp.ones((3, 1))}, "`x`"),
        ({"x": jnp.full(3, jnp.nan)}, "`x` must be finite"),
    ],
)
def test_impossible_arguments(changed, named):
    arguments = {"weights": [jnp.eye(3)], "biases": [None], "activations": "tanh", "x": jnp.ones(3)}
    with pytest.raises(ValueError, match=named):
        jfree.from_weights(**{**arguments, **changed})


@pytest.mark.usefixtures("unchecked")
def test_no_fisher_spectrum(small):
    with pytest.raises(ValueError, match="Fisher"):
        jfree.fisher_spectrum(jfree.from_weights(*small))  # pyright: ignore[reportArgumentType]
