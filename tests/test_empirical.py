import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import num_compiled

import jfree
from jfree._numerics.memory import check_memory
from jfree.empirical import (
    fisher_eigenvalues,
    full_fisher_eigenvalues,
    jacobian_density_lanczos,
    jacobian_eigenvalues,
    ks_distance,
)

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


@pytest.mark.usefixtures("unchecked")
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


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("eigenvalues", [[], [1.0, np.nan]])
def test_impossible_eigenvalues(eigenvalues):
    spectrum = jfree.jacobian_spectrum(jfree.MLP([2, 1], "linear", "gaussian"))
    with pytest.raises(ValueError, match="`eigenvalues`"):
        ks_distance(np.asarray(eigenvalues), spectrum)


def dual_fisher(net, key, inputs):
    """`(1 / (N_L n)) J_theta J_theta^T` from JAX's own derivatives, of weights drawn by `sample_weights`."""
    weights = [weight for weight, _ in jfree.sample_weights(net, key)]

    def outputs(weights):
        x = inputs
        for activation, weight in zip(net.activations, weights, strict=True):
            x = activation(x @ weight.T)
        return x.ravel()

    jacobian = jnp.concatenate([j.reshape(j.shape[0], -1) for j in jax.jacobian(outputs)(weights)], axis=1)
    return jacobian @ jacobian.T / outputs(weights).size


def test_full_fisher_is_that_of_the_network(monkeypatch):
    net = jfree.MLP([7, 9, 8, 5], "tanh", "gaussian", 1.4)
    inputs = jax.random.normal(KEY, (3, 7))
    inputs = inputs * jnp.sqrt(7 / jnp.sum(inputs**2, axis=1, keepdims=True))
    key = jax.random.key(1)
    split = lambda k, num=2: jax.random.split(k, num)  # noqa: E731
    forward_key = split(split(key, 1)[0])[1]
    monkeypatch.setattr("jfree.empirical._random_inputs", lambda net, num, size, keys: inputs[None])
    expected = dual_fisher(net, forward_key, inputs)
    full = full_fisher_eigenvalues(net, key, 3)
    assert full.shape == (1, 15)
    assert np.allclose(full[0], jnp.linalg.eigvalsh(expected), atol=1e-12)
    blocks = full_fisher_eigenvalues(net, key, 3, block_diagonal=True)
    expected = [jnp.linalg.eigvalsh(expected[k : k + 5, k : k + 5]) for k in (0, 5, 10)]
    assert np.allclose(blocks[0], jnp.sort(jnp.concatenate(expected)), atol=1e-12)


def test_inputs_share_the_fisher_information():
    """The trace is that of the blocks, which interlace: they have the smaller largest eigenvalue."""
    net = jfree.MLP([60, 60, 60], "relu", "gaussian", 2**0.5)
    full = full_fisher_eigenvalues(net, KEY, 4, num_samples=2)
    blocks = full_fisher_eigenvalues(net, KEY, 4, num_samples=2, block_diagonal=True)
    assert full.shape == blocks.shape == (2, 240)
    assert np.allclose(full.sum(axis=1), blocks.sum(axis=1))
    assert np.all(full[:, -1] > blocks[:, -1])
    assert np.all(full[:, 0] < blocks[:, 0])
    one = full_fisher_eigenvalues(net, KEY, 1)
    assert np.array_equal(one, fisher_eigenvalues(net, KEY))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("num_inputs", [0, 1.5])
def test_impossible_numbers_of_inputs(num_inputs):
    with pytest.raises(ValueError, match="`num_inputs` must be a positive integer"):
        full_fisher_eigenvalues(RELU, KEY, num_inputs, width=3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(MemoryError, match=r"`width` must be smaller"):
        jacobian_eigenvalues(RELU, KEY, width=10**6)
    with pytest.raises(MemoryError, match=r"`num_inputs` or `width` must be smaller"):
        full_fisher_eigenvalues(RELU, KEY, 10**4, width=1000)


def test_refuses_what_its_container_cannot_hold(monkeypatch, tmp_path):
    for name, text in (("max", "4000000"), ("current", "3500000"), ("stat", "anon 9\ninactive_file 250000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr("jfree._numerics.memory._CONTAINER", tmp_path)
    check_memory("`width`", 750_000)
    with pytest.raises(MemoryError, match="`width` must be smaller"):
        check_memory("`width`", 750_001)
    (tmp_path / "memory.max").write_text("max\n")
    check_memory("`width`", 750_001)


def test_samples_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    several = jacobian_eigenvalues(TANH, KEY, width=20, num_samples=3)
    monkeypatch.setattr("jfree.empirical._BATCH", 1)
    assert np.allclose(jacobian_eigenvalues(TANH, KEY, width=20, num_samples=3), several, rtol=1e-10)


def test_networks_of_all_scales_share_a_program():
    def sample(sigma_w):
        net = jfree.MLP([8, 9, 9, 9, 4], "tanh", "orthogonal", sigma_w)
        return num_compiled(lambda: jacobian_eigenvalues(net, KEY, num_samples=3))

    assert 0 < sample(1.0) < 10
    assert sample(1.3) == 0
    assert sample(np.linspace(1, 2, 4)) <= 1  # which writes the scales out


def test_batches_are_equally_large(monkeypatch):
    all_at_once = jacobian_eigenvalues(TANH, KEY, width=6, num_samples=5)
    monkeypatch.setattr("jfree.empirical._BATCH", 2 * 6 * 6**2)
    assert num_compiled(lambda: jacobian_eigenvalues(TANH, KEY, width=6, num_samples=5)) > 0
    assert num_compiled(lambda: jacobian_eigenvalues(TANH, KEY, width=6, num_samples=4)) < 4
    assert np.allclose(jacobian_eigenvalues(TANH, KEY, width=6, num_samples=5), all_at_once, rtol=1e-10)


def test_other_numbers_of_eigenvalues_compile_nothing():
    spectrum, values = jfree.jacobian_spectrum(jfree.MLP([2, 1], "linear", "gaussian")), np.linspace(0.1, 2, 60)
    expected = ks_distance(np.tile(values, 2), spectrum)
    assert num_compiled(lambda: ks_distance(values[:41], spectrum)) == 0
    assert np.isclose(ks_distance(values, spectrum), expected)


def test_layers_do_not_wait_forever():
    """For the threads that factorise their batches."""
    script = "import jax, jfree; net = jfree.ResNet(10, 'tanh', 'orthogonal', 0.3, layers_per_block=2); "
    script += "[jfree.empirical.jacobian_eigenvalues(net, jax.random.key(0), 64, 20) for _ in range(20)]"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


@pytest.mark.parametrize("widths", [[300, 300, 300], [300, 200, 400], [200, 400, 100]])
def test_lanczos_density(widths):
    """Against all eigenvalues of the same model, and against the limit; atoms at 0 are steps."""
    net = jfree.MLP(widths, "hard_tanh", "orthogonal", 0.8, 0.1)
    model, x = jfree.to_equinox(net, KEY), jax.random.normal(jax.random.key(1), (widths[0],))
    found = jacobian_density_lanczos(model, x, jax.random.key(2), num_steps=80, num_vectors=16)
    values = jnp.linalg.svd(jax.jacobian(model)(x), compute_uv=False) ** 2
    values = jnp.pad(values, (0, max(0, widths[0] - values.size)))
    t = jnp.linspace(0, 1.2 * values.max(), 500)[1:]
    exact = jnp.mean(values < t[:, None], axis=1)
    spread = 4 / (16 * widths[0]) ** 0.5  # of the random vectors
    assert jnp.max(jnp.abs(found.cdf(t) - exact)) < spread
    assert np.allclose(found.weights.sum(axis=1), 1)
    smooth = jnp.mean(0.05 / ((t[:, None] - values) ** 2 + 0.05**2), axis=1) / jnp.pi
    assert jnp.max(jnp.abs(found.density(t, 0.05) - smooth)) < 2 * spread * jnp.max(smooth)


def test_lanczos_finds_what_is_an_atom():
    model = jfree.to_equinox(jfree.MLP([50, 50], "linear", "orthogonal", 1.3), KEY)
    found = jacobian_density_lanczos(model, jnp.ones(50), KEY, num_steps=5, num_vectors=2)
    assert np.allclose(found.cdf([1.68, 1.70]), [0, 1], atol=1e-10)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("x", "options", "named"),
    [
        (jnp.ones((3, 1)), {}, "`x` must be a vector"),
        (jnp.asarray([1.0, jnp.nan, 0.0]), {}, "`x` must be finite"),
        (jnp.ones(3), {"num_steps": 4}, "`num_steps` must be at most 3"),
        (jnp.ones(3), {"num_steps": 0}, "`num_steps` must be a positive"),
        (jnp.ones(3), {"num_steps": 2, "num_vectors": 0}, "`num_vectors`"),
    ],
)
def test_impossible_arguments_of_lanczos(x, options, named):
    with pytest.raises(ValueError, match=named):
        jacobian_density_lanczos(jnp.tanh, x, KEY, **options)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_lanczos_beyond_the_rank(dtype):
    """A classifier: 10 eigenvalues, atoms all, and 0."""
    net = jax.tree.map(lambda x: x.astype(dtype) if hasattr(x, "astype") else x, jfree.MLP([200, 200, 10], "tanh"))
    model, x = jfree.to_equinox(net, KEY), jax.random.normal(jax.random.key(1), (200,), dtype)
    found = jacobian_density_lanczos(model, x, jax.random.key(2), num_vectors=64)
    top = jnp.linalg.norm(jax.jacobian(model)(x), 2) ** 2
    assert np.isclose(found.nodes.max(), top, rtol=1e-4)
    assert np.allclose(found.weights.sum(axis=1), 1, rtol=1e-5)
    assert np.isclose(found.cdf(0.0), 0.95, atol=0.01)
    assert found.cdf(found.nodes.max()) == 1


def test_lanczos_of_a_dead_network():
    found = jacobian_density_lanczos(lambda x: jax.nn.relu(-x), jnp.ones(9), KEY, num_steps=3)
    assert np.array_equal(found.cdf([-0.1, 0.0, 1.0]), [0, 1, 1])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("x", "y"), [([jnp.nan], 0.1), ([1.0], 0.0), ([1.0], jnp.inf)])
def test_impossible_points_of_lanczos(x, y):
    found = jacobian_density_lanczos(jnp.tanh, jnp.ones(9), KEY, num_steps=3)
    with pytest.raises(ValueError, match=r"`x` must be finite|`smoothing` must be positive"):
        found.density(x, y)


def test_smoothing_may_vary_from_point_to_point():
    found = jacobian_density_lanczos(jnp.tanh, jnp.ones(9), KEY, num_steps=2)
    each = [found.density(x, y) for x, y in ((1.0, 0.1), (5.0, 10.0))]
    assert np.allclose(found.density([1.0, 5.0], jnp.asarray([0.1, 10.0])), each)


def test_raw_keys_are_keys():
    """Of the older kind, with a trailing axis."""
    key = jax.random.PRNGKey(0)
    for sample in (jacobian_eigenvalues, fisher_eigenvalues):
        assert sample(RELU, key, width=6, num_samples=2).shape == (2, 6)
    assert full_fisher_eigenvalues(RELU, key, 2, width=6, block_diagonal=True).shape == (1, 12)


@pytest.mark.parametrize("weights", ["orthogonal", "gaussian"])
def test_lanczos_sees_the_zeros_of_relu(weights):
    """Of as many as the random vectors happen to have there."""
    net = jfree.MLP([64] * 4, "relu", weights, sigma_w=1.4)
    model = jfree.to_equinox(net, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (64,))
    values = jnp.linalg.svd(jax.jacobian(model)(x), compute_uv=False)
    zeros = jnp.mean(values < 1e-8 * values[0])
    found = jfree.empirical.jacobian_density_lanczos(model, x, jax.random.key(2), num_steps=64, num_vectors=64)
    assert zeros > 0.3
    np.testing.assert_allclose(found.cdf(jnp.array([0.0, 1e-10])), zeros, atol=0.03)
