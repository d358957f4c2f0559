import functools
import re
import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import num_compiled

import jfree
from jfree._numerics.memory import check_memory
from jfree.empirical import (
    extreme_singular_values,
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
    monkeypatch.setattr("jfree._finite.sampled_jacobians._random_inputs", lambda net, num, size, keys: inputs[None])
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
    monkeypatch.setattr("jfree._finite.sampled_jacobians._BATCH", 1)
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
    monkeypatch.setattr("jfree._finite.sampled_jacobians._BATCH", 2 * 6 * 6**2)
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


def random_matrix(shape, values, dtype=jnp.float64):
    """With given singular values."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(size, len(values))))[0] for size in shape)
    return jnp.asarray((left * values) @ right.T, dtype)


def product(matrix):
    return functools.partial(jnp.matmul, matrix)


VALUES = {
    "spread": np.linspace(0.5, 2, 40),
    "ill-conditioned": np.logspace(-8, 0, 40),
    "rank-deficient": np.append(np.zeros(15), np.linspace(0.5, 2, 25)),
    "isometry": np.ones(40),
    "near isometry": 1 + 1e-6 * np.linspace(-1, 1, 40) ** 3,
    "vanishing": 1e-200 * np.linspace(0.5, 2, 40),
    "zero": np.zeros(40),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("shape", [(40, 40), (40, 70), (70, 40)])
def test_extreme_singular_values_are_those_of_the_matrix(shape, dtype):
    """All of them of one size, so that they share a program; bounds hold, and are of rounding."""
    for name, values in VALUES.items():
        values = 1e170 * values if name == "vanishing" and dtype == jnp.float32 else values
        matrix = random_matrix(shape, values, dtype)
        exact = np.linalg.svd(np.asarray(matrix, float), compute_uv=False)
        found = extreme_singular_values(product(matrix), jnp.ones(shape[1], dtype))
        assert found.complete, name
        assert found.largest.dtype == dtype
        for value, bound, true in (
            (found.smallest, found.smallest_bound, exact[-1]),
            (found.largest, found.largest_bound, exact[0]),
        ):
            assert abs(value - true) <= bound <= 50 * jnp.finfo(dtype).eps * exact[0], name


def test_extreme_singular_values_that_are_not_known_are_nan():
    """Not even near the others; their bounds hold all the same."""
    matrix = random_matrix((90, 90), np.append(0.001, np.logspace(-2, 0, 89)))
    found = {k: extreme_singular_values(product(matrix), jnp.ones(90), num_steps=k) for k in (5, 60, 90)}
    assert jnp.isnan(found[5].smallest)
    assert jnp.isnan(found[5].largest)
    assert jnp.isnan(found[5].condition_number())
    assert jnp.isnan(found[60].smallest)
    assert np.isclose(found[60].largest, 1, rtol=1e-12)
    assert found[60].smallest_bound > 1e-3
    assert not found[60].complete
    assert np.isclose(found[90].condition_number(), 1000, rtol=1e-9)
    rough = extreme_singular_values(product(matrix), jnp.ones(90), num_steps=60, tolerance=10.0)
    assert rough.smallest - rough.smallest_bound < 0.001 < rough.smallest


def test_bounds_hold_for_what_a_random_vector_sees_late():
    """Two values closer than so many steps can tell apart, of which it may see the larger."""
    values = np.append([0.5, 0.5 + 1e-7], np.linspace(0.6, 1, 78))
    matrix = random_matrix((80, 80), values)

    def errors(key):
        found = extreme_singular_values(product(matrix), jnp.ones(80), num_steps=40, tolerance=1.0, key=key)
        return found.smallest - 0.5, found.smallest_bound

    error, bound = jax.vmap(errors)(jax.random.split(KEY, 50))
    assert jnp.max(error) > 1e-8
    assert jnp.all((error > -1e-14) & (error < bound))


def test_nothing_of_the_size_of_the_jacobian_is_formed():
    """Of a layer of 20000 units, near an isometry."""
    size = 20000
    slopes = jnp.linspace(0.9, 1.1, size)

    def model(x):
        return jnp.roll(jnp.tanh(x) * slopes, 1)

    def found(x):
        return extreme_singular_values(model, x, num_steps=64, tolerance=1e-2)

    x = jnp.zeros(size)
    jaxpr = str(jax.make_jaxpr(found)(x))
    shapes = re.findall(r"f64\[([\d,]+)\]", jaxpr)
    assert max(np.prod([int(n) for n in shape.split(",")]) for shape in shapes) <= 64 * size
    result = found(x)
    assert result.num_steps <= 64
    for value, bound, true in (
        (result.smallest, result.smallest_bound, 0.9),
        (result.largest, result.largest_bound, 1.1),
    ):
        assert abs(value - true) <= bound < 1e-2 * true


class Convolutional(eqx.Module):
    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d

    def __init__(self, key):
        keys = jax.random.split(key)
        self.first = eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0])
        self.second = eqx.nn.Conv2d(8, 4, 3, stride=2, key=keys[1])

    def __call__(self, x):
        return self.second(jax.nn.gelu(self.first(x)))


def flax_model():
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    layers = nnx.Linear(6, 16, rngs=rngs), nnx.tanh, nnx.Dropout(0.5, rngs=rngs), nnx.Linear(16, 9, rngs=rngs)
    return nnx.Sequential(*layers)


MODELS = {
    "Equinox": lambda: (eqx.nn.MLP(6, 9, 16, 2, jax.nn.tanh, key=KEY), (6,)),
    "convolutional": lambda: (Convolutional(KEY), (3, 6, 6)),
    "Flax": lambda: (flax_model(), (6,)),
    "jfree": lambda: (jfree.to_equinox(jfree.MLP([6, 12, 9], "relu", sigma_w=1.4), KEY), (6,)),
    "partial of NumPy": lambda: (functools.partial(lambda w, x: jnp.sin(x @ w), np.full((6, 4), 0.5)), (3, 6)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_all_kinds(name):
    """At arrays of any shape, one example or several."""
    model, shape = MODELS[name]()
    if hasattr(model, "eval"):
        model.eval()
    xs = jax.random.normal(jax.random.key(1), (2, *shape))
    jacobians = [np.asarray(jax.jacobian(model)(x)).reshape(-1, xs[0].size) for x in xs]
    exact = [np.linalg.svd(jacobian, compute_uv=False) for jacobian in jacobians]
    found = extreme_singular_values(model, xs[0])
    assert np.isclose(found.smallest, exact[0][-1], atol=1e-6 * exact[0][0])
    assert np.isclose(found.largest, exact[0][0], rtol=1e-6)
    eigenvalues: Any = functools.partial(jacobian_eigenvalues, model)
    for side, size in (("input", xs[0].size), ("output", jacobians[0].shape[0])):
        rows = eigenvalues(xs, side=side, batched=True)
        assert rows.shape == (2, size)
        for row, values in zip(rows, exact, strict=True):
            padded = np.pad(values[:size] ** 2, (0, max(0, size - values.size)))[::-1]
            assert np.allclose(row, padded, atol=1e-6 * values[0] ** 2)
        assert np.allclose(eigenvalues(xs[0], side=side, batched=False), rows[:1], atol=1e-6)


def test_what_is_an_example_is_told_by_the_model():
    model = eqx.nn.MLP(6, 9, 16, 2, key=KEY)
    xs = jax.random.normal(KEY, (5, 6))
    assert jacobian_eigenvalues(model, xs).shape == (5, 6)
    assert jacobian_eigenvalues(model, xs[0]).shape == (1, 6)
    assert jacobian_eigenvalues(lambda x: x.reshape(2, 6).sum(0), xs[:2]).shape == (1, 12)
    with pytest.raises(ValueError, match="set `batched`"):
        jacobian_eigenvalues(jnp.tanh, xs)
    assert jacobian_eigenvalues(jnp.tanh, xs, batched=True).shape == (5, 6)
    assert jacobian_eigenvalues(jnp.tanh, xs, batched=False).shape == (1, 30)


def test_models_compile_once():
    first, second = (eqx.nn.MLP(4, 4, 4, 1, key=key) for key in jax.random.split(KEY))
    extreme_singular_values(first, jnp.ones(4))
    assert num_compiled(lambda: extreme_singular_values(second, jnp.zeros(4))) == 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("function", [extreme_singular_values, jacobian_eigenvalues])
@pytest.mark.parametrize(
    ("model", "x", "named"),
    [
        (jnp.tanh, jnp.ones(3, complex), "`x` must be an array of real numbers, got complex"),
        (jnp.tanh, jax.random.key(0), "`x` must be an array of real numbers"),
        (jnp.tanh, "x", "`x` must be an array of real numbers"),
        (jnp.tanh, jnp.asarray([1.0, jnp.nan]), "`x` must be finite"),
        (jnp.tanh, jnp.zeros(0), "must have entries"),
        (lambda x: x + 1j, jnp.ones(3), "`model` must return one array of real numbers"),
        (lambda x: (x, x), jnp.ones(3), "`model` must return one array of real numbers"),
        (jnp.argmax, jnp.ones(3), "`model` must return one array of real numbers"),
        (eqx.nn.Linear(4, 4, key=KEY), jnp.ones(3), r"`model` must take `x`, of shape \(3,\); it raised: "),
        (3, jnp.ones(3), "`model` must be a function of one example, got int"),
    ],
)
def test_impossible_models(function, model, x, named):
    with pytest.raises(ValueError, match=named):
        function(model, x)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("function", "arguments", "options", "named"),
    [
        (extreme_singular_values, (jnp.tanh, jnp.ones(3)), {"num_steps": 0}, "`num_steps`"),
        (extreme_singular_values, (jnp.tanh, jnp.ones(3)), {"tolerance": 0.0}, "`tolerance`"),
        (extreme_singular_values, (TANH, jnp.ones(3)), {}, "`model` must be a function of one example, got MLP"),
        (jacobian_eigenvalues, (jnp.tanh, jnp.ones(3)), {"num_samples": 2}, "`num_samples`"),
        (jacobian_eigenvalues, (jnp.tanh, jnp.ones(())), {"batched": True}, "`model` must take one of several"),
        (jacobian_eigenvalues, (TANH, KEY), {"batched": True}, "`batched`"),
    ],
)
def test_impossible_options_for_models(function, arguments, options, named):
    with pytest.raises(ValueError, match=named):
        function(*arguments, **options)


def test_jacobians_that_do_not_fit_are_refused():
    x = jnp.ones(2_000_000)
    with pytest.raises(MemoryError, match="output of `model`"):
        jacobian_eigenvalues(jnp.tanh, x)
    with pytest.raises(MemoryError, match="`num_steps`"):
        extreme_singular_values(jnp.tanh, x, num_steps=10**6)


def test_torch_modules_have_jacobians_too():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.GELU(), torch.nn.Linear(12, 4)).double()
    x = torch.randn(3, 6, dtype=torch.double)
    exact = [np.linalg.svd(torch.func.jacrev(module)(one).detach().numpy(), compute_uv=False) for one in x]
    assert np.allclose(jacobian_eigenvalues(module, x, side="output", batched=True), np.square(exact)[:, ::-1])
    found = extreme_singular_values(module, x[0])
    assert np.allclose([found.largest, found.smallest], exact[0][[0, -1]])
    with torch.no_grad():
        module[0].weight.mul_(2)
    assert extreme_singular_values(module, x[0]).largest != found.largest
