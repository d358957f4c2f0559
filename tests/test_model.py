"""Models of any make are read as networks, and written back."""

import functools
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree
from jfree import activations as acts
from jfree._initialize import even_start
from jfree._networks.stacked import unrolled
from jfree.layers import Activation, Conv, Dense, Dropout, Gated, LayerNorm, Parallel, Patches, Residual, RMSNorm, Scale

KEY = jax.random.key(0)
GAUSSIAN = [Dense(32, "gaussian", 0.9, 0.1), Activation("relu"), Dense(16, "gaussian", 1.2)]


def from_model(*args) -> Any:
    return jfree.from_model(*args)


def normal(*shape, key=KEY):
    return jax.random.normal(key, shape)


def kinds(net):
    return [type(layer).__name__ for layer in unrolled(net.layers)]


def numbers(net):
    """Of all layers, by name, but for factors of 1, which may be parameters or not."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(net.layers)
    named = {jax.tree_util.keystr(path): float(leaf) for path, leaf in leaves}
    return {name: x for name, x in named.items() if x != 1 or not name.endswith((".skip", ".scale"))}


def first_moments(net):
    """What layers that mean the same must agree in."""
    field = jfree.propagate(net)
    return field.phi2[-1], jnp.prod(field.chi), jnp.prod(field.chi_q)


def assert_alike(found, expected, rtol=1e-6):
    found, expected = numbers(found), numbers(expected)
    assert found.keys() == expected.keys()
    for name, x in found.items():
        assert np.isclose(x, expected[name], rtol=rtol, atol=1e-7), name


@pytest.mark.parametrize(
    "layers",
    [
        [LayerNorm(1.2), *GAUSSIAN],
        [*GAUSSIAN, Activation("gelu"), Dropout(0.25), Dense(16, "gaussian"), RMSNorm(0.7), Dense(16, "gaussian")],
        [Dense(16, "gaussian"), LayerNorm(0.8, 0.3), Dense(16, "gaussian"), Scale(-0.5)],
        [Dense(16, "gaussian"), Residual([LayerNorm(), *GAUSSIAN, Dropout(0.1)], scale=0.3, skip=0.9)],
        [Dense(16, "gaussian"), Residual([Residual(GAUSSIAN, scale=0.5), Dense(16, "gaussian")])],
        [Dense(16, "gaussian"), Parallel([GAUSSIAN, [Dense(16, "gaussian", 0.5), Scale(2.0)]], skip=0.5)],
        [Parallel([GAUSSIAN, [Dense(16, "gaussian", 0.5)]]), Dense(4, "gaussian")],
        [Gated(24, "silu", 0.9, 1.1, 0.1), Dense(16, "gaussian"), Gated(16, "gelu")],
        [Conv(8 * 16 / 16, 3, "gaussian", 0.9, 0.1, (4, 4)), Activation("relu"), Dense(10, "gaussian")],
        [
            Patches(6, 2, "gaussian", 1.0, 0.1, (2, 2)),
            Residual([LayerNorm(), Conv(6, 3, "gaussian", positions=(2, 2))]),
        ],
    ],
    ids=lambda layers: " ".join(type(layer).__name__ for layer in layers),
)
def test_layers_are_read_by_what_they_do(layers):
    """Whatever wrote them, they are what `from_equinox` finds by their classes."""
    net = jfree.Network(16, layers)
    model = jfree.to_equinox(net, KEY)
    found = from_model(functools.partial(model, key=KEY), normal(16), "gaussian")
    expected = jfree.from_equinox(model, found.q0, "gaussian")
    expected = eqx.tree_at(lambda n: n.mean0, expected, found.mean0)
    for one, other in zip(*map(first_moments, (found, expected)), strict=True):
        assert np.isclose(one, other, rtol=1e-5)


class Block(eqx.Module):
    norm: eqx.nn.LayerNorm
    widen: eqx.nn.Linear
    narrow: eqx.nn.Linear

    def __init__(self, width, key):
        keys = jax.random.split(key)
        self.norm = eqx.nn.LayerNorm(width)
        self.widen = eqx.nn.Linear(width, 2 * width, key=keys[0])
        self.narrow = eqx.nn.Linear(2 * width, width, key=keys[1])

    def __call__(self, x):
        return x + self.narrow(jax.nn.gelu(self.widen(self.norm(x))))


class Looped(eqx.Module):
    blocks: list[Block]
    head: eqx.nn.Linear

    def __init__(self, width, key):
        self.blocks = [Block(width, k) for k in jax.random.split(key, 3)]
        self.head = eqx.nn.Linear(width, 5, key=key)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Scanned(eqx.Module):
    blocks: Block
    head: eqx.nn.Linear

    def __init__(self, width, key):
        self.blocks = eqx.filter_vmap(lambda k: Block(width, k))(jax.random.split(key, 3))
        self.head = eqx.nn.Linear(width, 5, key=key)

    def __call__(self, x):
        arrays, rest = eqx.partition(self.blocks, eqx.is_array)
        x, _ = jax.lax.scan(lambda x, block: (eqx.combine(block, rest)(x), None), x, arrays)
        return self.head(x)


class ConvNet(eqx.Module):
    first: eqx.nn.Conv2d
    blocks: list[eqx.nn.Conv2d]
    head: eqx.nn.Linear

    def __init__(self, channels, key):
        def conv(num_in, key):
            return eqx.nn.Conv2d(num_in, channels, 3, padding="SAME", padding_mode="CIRCULAR", key=key)

        keys = jax.random.split(key, 6)
        self.first = conv(3, keys[0])
        self.blocks = [conv(channels, key) for key in keys[1:5]]
        self.head = eqx.nn.Linear(channels * 16, 5, key=keys[5])

    def __call__(self, x):
        x = self.first(x)
        for one, other in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            x = x + other(jax.nn.relu(one(x)))
        return self.head(x.ravel())


def mlp(parameters, x):
    *inner, (weight, bias) = parameters
    for w, b in inner:
        x = jnp.tanh(x @ w + b)
    return x @ weight + bias


def mlp_parameters(*widths):
    keys = jax.random.split(KEY, len(widths) - 1)
    return [
        (1.5 * normal(m, n, key=k) / m**0.5, 0.1 * normal(n, key=k))
        for m, n, k in zip(widths[:-1], widths[1:], keys, strict=True)
    ]


def scaled_weights(parameters, x):
    """As muP and NTK parameterisations have them, weights in the one way and in the other."""
    first, second, bias = parameters
    return jnp.einsum("i,ji->j", jax.nn.relu((first * 0.5) @ x), second) / 4 + bias


def fused_gate(parameters, x):
    both, last = parameters
    value, gate = jnp.split(x @ both, 2)
    return (value * jax.nn.sigmoid(gate)) @ last


MODELS = {
    "MLP": (eqx.nn.MLP(16, 5, 24, 2, jax.nn.gelu, key=KEY), normal(16), ["Dense", "Activation"] * 2 + ["Dense"]),
    "MLP, scan": (
        eqx.nn.MLP(16, 5, 16, 3, jnp.tanh, scan=True, key=KEY),
        normal(16),
        ["Dense", "Activation"] * 3 + ["Dense"],
    ),
    "loop": (Looped(16, KEY), normal(16), ["Residual"] * 3 + ["Dense"]),
    "scan": (Scanned(16, KEY), normal(7, 16), ["Residual"] * 3 + ["Dense"]),
    "convolutions": (ConvNet(8, KEY), normal(2, 3, 4, 4), ["Conv", "Residual", "Residual", "Dense"]),
    "function": (
        functools.partial(mlp, mlp_parameters(16, 24, 24, 5)),
        normal(16),
        ["Dense", "Activation"] * 2 + ["Dense"],
    ),
    "scaled": (
        functools.partial(scaled_weights, (normal(12, 16), normal(6, 12), normal(6))),
        normal(16),
        ["Dense", "Activation", "Dense", "Scale"],
    ),
    "fused gate": (functools.partial(fused_gate, (normal(16, 24) / 4, normal(12, 5))), normal(16), ["Gated", "Dense"]),
    "at each position": (jax.vmap(eqx.nn.MLP(16, 16, 24, 1, key=KEY)), normal(7, 16), ["Dense", "Activation", "Dense"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_are_read_and_redrawn(name):
    model, x, expected = MODELS[name]
    net = from_model(model, x)
    assert kinds(net) == expected
    example = x if net.shape == x.shape else x.reshape(-1, *net.shape)[0]
    assert net.shape == example.shape
    assert np.isclose(net.q0, jnp.mean(jnp.square(x)))
    if name == "at each position":
        return  # `jax.vmap` makes a function that hides its parameters
    other = jfree.reinitialize(model, net, jax.random.key(1))
    before, after = model(example), other(example)
    assert after.shape == before.shape
    assert after.dtype == before.dtype
    assert not np.any(np.isclose(before, after))
    again = from_model(other, x)
    assert kinds(again) == expected
    for own, drawn in zip(weights_of(net), weights_of(again), strict=True):
        assert np.isclose(own, drawn, rtol=0.25)
    assert jax.tree.structure(other) == jax.tree.structure(model) or isinstance(model, functools.partial)


def weights_of(net):
    leaves, _ = jax.tree_util.tree_flatten_with_path(net.layers)
    return [leaf for path, leaf in leaves if getattr(path[-1], "name", "") == "sigma_w"]


@pytest.mark.parametrize("name", ["loop", "convolutions", "function"])
def test_written_weights_are_those_of_the_law(name):
    """Orthogonal ones to rounding, and convolutions delta-orthogonal."""
    model, x, _ = MODELS[name]
    net = from_model(model, x, "orthogonal")
    again = from_model(jfree.reinitialize(model, net, KEY), x)
    laws = {type(part.weights).__name__ for layer in again.layers for part in layer.parts() if hasattr(part, "weights")}
    assert laws == {"Orthogonal"}
    assert_alike(without_biases(again), without_biases(net))


def without_biases(net):
    leaves, structure = jax.tree_util.tree_flatten_with_path(net)
    return jax.tree.unflatten(structure, [0 * x if path[-1].name == "sigma_b" else x for path, x in leaves])


def test_scales_and_gains_are_written():
    def model(parameters, x):
        weight, gain, scale = parameters
        normed = x / jnp.sqrt(jnp.mean(x**2) + 1e-6)
        return x + scale * (weight @ (gain * normed))

    parameters = normal(16, 16) / 4, jnp.full(16, 2.0), jnp.asarray(0.5)
    own = functools.partial(model, parameters)
    net = from_model(own, normal(16))
    (block,) = net.layers
    assert isinstance(block, Residual)
    assert isinstance(block.layers, tuple)
    norm, _ = block.layers
    assert isinstance(norm, RMSNorm)
    assert block.scale is not None
    assert np.allclose(norm.gain, 2)
    assert np.isclose(block.scale, 0.5)
    changed = eqx.tree_at(
        lambda n: (n.layers[0].scale, n.layers[0].layers[0].gain), net, (jnp.asarray(0.1), jnp.asarray(3.0))
    )
    weight, gain, scale = jfree.reinitialize(own, changed, KEY).args[0]
    assert np.allclose(gain, 3)
    assert np.isclose(scale, 0.1)
    assert not np.allclose(weight, parameters[0])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: jnp.maximum(x, 0), "relu"),
        (lambda x: jnp.where(x > 0, x, 0.0), "relu"),
        (lambda x: x / (1 + jnp.exp(-x)), "silu"),
        (lambda x: x * jax.nn.sigmoid(x), "silu"),
        (lambda x: x * jax.nn.sigmoid(1.702 * x), "quick_gelu"),
        (lambda x: 0.5 * x * (1 + jax.lax.erf(x / 2**0.5)), "gelu"),
        (functools.partial(jax.nn.gelu, approximate=True), "gelu_tanh"),
        (lambda x: x * jnp.tanh(jax.nn.softplus(x)), "mish"),
        (lambda x: 2 * jax.nn.sigmoid(2 * x) - 1, "tanh"),
        (lambda x: jnp.clip(x, -1, 1), "hard_tanh"),
        (lambda x: jnp.square(jax.nn.relu(x)), "relu_squared"),
        (jnp.sin, "sin"),
        (jax.nn.selu, "selu"),
        (lambda x: jnp.where(x > 0, x, 0.3 * x), acts.LeakyReLU(0.3)),
        (lambda x: x * jax.nn.sigmoid(0.7 * x), acts.Swish(0.7)),
        (lambda x: jnp.where(x > 0, x, 0.5 * jnp.expm1(x)), acts.ELU(0.5)),
    ],
)
def test_activations_are_known_by_their_values(function, expected):
    expected = Activation(expected).activation
    _, found, _ = from_model(functools.partial(dense_between, function), normal(16)).layers
    assert type(found.activation) is type(expected)
    for x, y in zip(jax.tree.leaves(found.activation), jax.tree.leaves(expected), strict=True):
        assert np.isclose(x, y, rtol=1e-4)


def dense_between(function, x):
    return normal(8, 16) @ function(normal(16, 16, key=jax.random.key(1)) @ x)


def test_other_activations_keep_their_kinks():
    _, layer, _ = from_model(
        functools.partial(dense_between, lambda x: jnp.abs(x - 0.5) + 0.1 * x**3 / (1 + x**2)), normal(16)
    ).layers
    assert isinstance(layer.activation, acts.FromFunction)
    assert np.allclose(layer.activation.knots, 0.5, atol=1e-5)
    q = jnp.asarray(1.3)
    z = np.random.default_rng(0).normal(size=400_000) * 1.3**0.5
    assert np.isclose(
        layer.activation.slope_moment(q), np.mean(np.square(jax.vmap(jax.grad(layer.activation.fn))(z))), rtol=0.01
    )


def test_scales_beside_activations_are_layers():
    net = from_model(functools.partial(dense_between, lambda x: 2**0.5 * jax.nn.relu(3 * x)), normal(16))
    assert kinds(net) == ["Dense", "Scale", "Activation", "Scale", "Dense"]
    assert np.allclose([net.layers[1].factor, net.layers[3].factor], [3, 2**0.5])


@pytest.mark.parametrize(
    "norm",
    [
        lambda x: (x - x.mean()) / x.std(),
        lambda x: (x - x.mean()) * jax.lax.rsqrt(jnp.mean(x**2) - x.mean() ** 2 + 1e-6),
        lambda x: jax.nn.standardize(x),
        lambda x: x / jnp.sqrt(jnp.mean(x * x)),
        lambda x: x * 4 / jnp.linalg.norm(x),
    ],
)
def test_norms_are_known_by_what_they_do(norm):
    net = from_model(lambda x: normal(8, 16) @ norm(normal(16, 16) @ x), normal(16))
    assert kinds(net) in (
        ["Dense", "LayerNorm", "Dense"],
        ["Dense", "RMSNorm", "Dense"],
        ["Dense", "RMSNorm", "Scale", "Dense"],
    )
    growth = np.prod([float(getattr(layer, "gain", getattr(layer, "factor", 1.0))) for layer in net.layers])
    assert np.isclose(growth, 1, rtol=1e-4)


def test_a_bottleneck_of_the_spectrum_is_seen():
    """The spectrum is that of the model's own Jacobian."""

    def model(seed):
        first, second = (np.random.default_rng(seed).normal(size=(2, 256, 256)) / 16).astype(float)
        return lambda x: second @ (1.5 * jax.nn.relu(first @ (x / jnp.sqrt(jnp.mean(x**2))))) + 0.2 * x

    x = np.random.default_rng(9).normal(size=256)
    spectrum = jfree.jacobian_spectrum(from_model(model(0), x))
    own = [np.linalg.svd(jax.jacobian(model(seed))(x), compute_uv=False) ** 2 for seed in range(4)]
    assert jfree.empirical.ks_distance(np.concatenate(own), spectrum) < 0.02


def test_measured_weights_are_those_of_the_model():
    parameters = mlp_parameters(16, 24, 24, 5)
    x = normal(16)
    expected = jfree.from_weights([w.T for w, _ in parameters], [b for _, b in parameters], "tanh", x)
    found = from_model(functools.partial(mlp, parameters), x, "measured")
    assert np.allclose(found.propagate().phi2[-1], expected.propagate().phi2[-1])
    at = jnp.geomspace(0.1, 10, 7)
    densities = [jfree.jacobian_spectrum(net).density(at) for net in (found, expected)]
    assert np.allclose(*densities, rtol=1e-9)
    doubled = from_model(lambda x: 2 * mlp(parameters, 0.5 * x) / 2, x, "measured")
    own = jax.jacobian(lambda x: mlp(parameters, 0.5 * x))(x)
    assert np.isclose(jfree.jacobian_spectrum(doubled).mean(), np.mean(own**2) * 5, rtol=0.3)
    with pytest.raises(ValueError, match="to be sampled"):
        jfree.empirical.jacobian_eigenvalues(found, KEY, 16)


def rotated(values, size, seed):
    """A matrix with given singular values."""
    left, right = np.linalg.qr(np.random.default_rng(seed).normal(size=(2, size, size)))[0]
    return left * values @ right


def trained(x):
    """Blocks whose norms have gains of their own, and weights of no ensemble."""
    for k in range(2):
        gains = np.exp(0.4 * np.random.default_rng(k).normal(size=128))
        inner, outer = (rotated(np.exp(np.linspace(-2, 0.5, 128)), 128, 2 * k + seed) for seed in (0, 1))
        x = x + outer @ jnp.tanh(inner @ (gains * rms_normalised(x) + 0.1 * np.cos(np.arange(128))))
    return x


def rms_normalised(x):
    return x * jax.lax.rsqrt(jnp.mean(x**2) + 1e-6)


def test_blocks_with_gains_of_their_own_are_measured():
    x = normal(128)
    with pytest.raises(ValueError, match=r'gains that are alike.*`weights="measured"`'):
        from_model(trained, x)
    net = from_model(trained, x, "measured")
    spectrum = jfree.jacobian_spectrum(net)
    eigenvalues = np.linalg.svd(jax.jacobian(trained)(x), compute_uv=False) ** 2
    assert jfree.empirical.ks_distance(eigenvalues, spectrum) < 0.03
    assert jfree.empirical.ks_distance(1.3 * eigenvalues, spectrum) > 0.06
    assert np.all(np.isnan(net.ritz_values()))


@pytest.mark.parametrize(("kernel", "padding"), [(3, [(0, 0), (1, 1), (1, 1)]), (5, [(0, 0), (2, 2), (2, 2)])])
def test_measured_convolutions_have_the_singular_values_of_their_matrix(kernel, padding):
    weight = normal(3, 2, kernel, kernel)

    def model(x):
        around = jnp.pad(x, padding, mode="wrap")
        return jax.lax.conv_general_dilated(around[None], weight, (1, 1), "VALID")[0]

    x = normal(2, 4, 4)
    net = from_model(model, x, "measured")
    matrix = jax.jacobian(model)(x).reshape(48, 32)
    moments = [np.trace(np.linalg.matrix_power(matrix.T @ matrix, k)) / 32 for k in (1, 2, 3)]
    spectrum = jfree.jacobian_spectrum(net)
    assert np.allclose([spectrum.moment(k) for k in (1, 2, 3)], moments)
    assert np.isclose(net.propagate().phi2[-1], jnp.mean(model(x) ** 2))


def test_what_has_no_measured_law():
    dropped = np.where(np.arange(16) % 2, 2.0, 0.0)
    gated = lambda x: (W @ x) * jax.nn.silu(V @ x)  # noqa: E731
    for model, named in [
        (gated, "no measured law"),
        (lambda x: W @ (dropped * jnp.tanh(W @ x)), "no measured law"),
        (lambda x: W @ jax.nn.relu(W @ x - 1e3), "vanish"),
    ]:
        with pytest.raises(ValueError, match=named):
            from_model(model, normal(16), "measured")


def test_dense_layers_before_convolutions_tell_positions_apart():
    """As in decoders: widths are those of all positions from the input on."""
    dense = normal(128, 32) / 32**0.5
    convolution = conv(padding_mode="CIRCULAR", channels=8)

    def decoder(x):
        return convolution((dense @ x).reshape(8, 4, 4)).ravel()

    net = from_model(decoder, normal(32))
    assert np.array_equal(net.widths, [32, 128, 128])
    own = np.mean(np.linalg.svd(jax.jacobian(decoder)(normal(32)), compute_uv=False) ** 2)
    assert np.isclose(jnp.prod(jfree.propagate(net).chi) * 128 / 32, own, rtol=0.2)


def test_slices_of_functions_are_functions_of_slices():
    net = from_model(lambda x: W[:, :8] @ jax.nn.silu(V @ x)[:8], normal(16))
    assert kinds(net) == ["Dense", "Activation", "Dense"]


def test_shifts_of_the_input_are_part_of_it():
    model, x = functools.partial(lambda w, x: w @ (x - 5.0), W), normal(50, 16) + 5
    net = from_model(model, x)
    assert np.isclose(net.q0, jnp.mean((x - 5) ** 2))
    _, report = jfree.initialize(model, x, KEY, steps=1, progress=False)
    assert np.isclose(report.before.net.q0, net.q0)
    assert np.max(np.abs(report.before.diagnosis.q)) < 10 * net.q0 * net.layers[0].sigma_w ** 2
    jfree.reinitialize(functools.partial(lambda w, x: w @ (x - 1.0), W), net, KEY)


def test_skips_are_written_with_their_signs():
    def model(parameters, x):
        return parameters[0] @ x - parameters[1] * x

    own = functools.partial(model, (W, jnp.asarray(0.5)))
    net = from_model(own, normal(16))
    assert np.isclose(net.layers[0].skip, -0.5)
    assert np.isclose(jfree.reinitialize(own, net, KEY).args[0][1], 0.5)


def test_weights_that_are_padded():
    weight = normal(16, 8) / 4
    net = from_model(functools.partial(lambda w, x: jnp.pad(w, ((0, 0), (0, 8))) @ x, weight), normal(16))
    assert np.isclose(net.layers[0].sigma_w, 4 * jnp.sqrt(jnp.mean(weight**2) / 2))


def test_batches_and_positions_are_told_apart():
    positions = normal(7, 16)
    assert from_model(lambda x: jnp.tanh(x @ W) @ V, positions).shape == (1, 16)
    with pytest.raises(ValueError, match="another bias at every position"):
        from_model(lambda x: jnp.tanh(x @ W + positions) @ V, positions)


def test_biases_behind_scales_are_written():
    def model(parameters, x):
        weight, scale, bias = parameters
        return scale * (weight @ x) + bias

    own = functools.partial(model, (W, jnp.asarray(2.0), normal(16)))
    net = from_model(own, normal(16))
    _, scale, bias = jfree.reinitialize(own, net, KEY).args[0]
    assert scale == 2
    assert np.isclose(jnp.sqrt(jnp.mean(bias**2)), jnp.sqrt(jnp.mean(normal(16) ** 2)), rtol=0.5)
    changed = eqx.tree_at(lambda n: n.layers[1].factor, net, jnp.asarray(0.5))
    with pytest.raises(ValueError, match="must have a parameter for the scale"):
        jfree.reinitialize(own, changed, KEY)


def test_branches_that_are_0_are_told():
    with pytest.warns(UserWarning, match=r"branches by 0, which are left out: at test_model.py"):
        net = from_model(lambda x: V @ (x + 0.0 * (W @ x)), normal(16))
    assert kinds(net) == ["Dense"]


def test_numbers_added_behind_weights_are_part_of_the_activation():
    _, layer, _ = from_model(lambda x: V @ jax.nn.hard_sigmoid(W @ x), normal(16)).layers
    assert isinstance(layer.activation, acts.Clip)
    dense, layer, _ = from_model(lambda x: V @ jnp.tanh(W @ x - 2.0), normal(16)).layers
    assert dense.sigma_b == 0
    assert np.isclose(layer.activation(jnp.asarray(2.0)), 0)
    with pytest.warns(UserWarning, match="have the mean -1"):
        from_model(functools.partial(lambda b, x: V @ jax.nn.relu(W @ x + b), jnp.full(16, -1.0)), normal(16))


def test_what_was_written_is_what_comes_out():
    def shared_scale(parameters, x):
        first, second, scale = parameters
        x = x + scale * (first @ x)
        return x + scale * (second @ x)

    own = functools.partial(shared_scale, (W, V, jnp.asarray(0.5)))
    net = from_model(own, normal(16))
    changed = eqx.tree_at(lambda n: n.layers[1].scale, net, jnp.asarray(0.9))
    with pytest.raises(ValueError, match="do not come out as they were written"):
        jfree.reinitialize(own, changed, KEY)
    normalised = functools.partial(lambda w, x: (w / jnp.linalg.norm(w)) @ x, W)
    with pytest.raises(ValueError, match=r"come out|parameters of its own"):
        jfree.reinitialize(normalised, from_model(normalised, normal(16)), KEY)


@jax.custom_vjp
def rounded(x):
    """A straight-through estimator."""
    return jnp.round(x)


rounded.defvjp(lambda x: (rounded(x), None), lambda _, gradient: (gradient,))


def test_blocks_between_their_input_and_their_branch():
    net = from_model(lambda x: x + 0.3 * (V @ jax.nn.relu(W @ x) - x), normal(16))
    (block,) = net.layers
    assert (block.skip, block.scale) == pytest.approx((0.7, 0.3))


def test_tuning_starts_with_the_biases_that_are_there():
    net = jfree.MLP([16] * 4, "tanh", "orthogonal", 1.0, 2.0)
    start = even_start(net)
    assert np.allclose(start.sigma_b, 2.0)
    assert np.ptp(start.propagate().q) < 1e-9 * start.propagate().q[0]


def test_dropout_may_divide_after_its_mask():
    mask = jax.random.bernoulli(KEY, 0.8, (16,))
    net = from_model(lambda x: V @ (mask * jax.nn.relu(W @ x) / 0.8), normal(16))
    assert kinds(net) == ["Dense", "Activation", "Dropout", "Dense"]
    assert np.isclose(net.layers[2].rate, 0.2)
    for factor in (1.0, 1 / 0.05):
        with pytest.raises(ValueError, match="sets entries to 0, but does not divide"):
            from_model(lambda x, factor=factor: V @ (factor * (mask * jax.nn.relu(W @ x))), normal(16))


def leaky(x):
    h = W @ x
    return V @ jnp.where(h > 0, h, jnp.linspace(0.3, 3, 16) * h)


def instance_norm(x):
    x = conv(padding_mode="CIRCULAR")(x)
    return x / jnp.sqrt(jnp.mean(x**2, (1, 2), keepdims=True))


def shared(x):
    h = W @ x
    return V @ jnp.tanh(h) + V[:, :8] @ jnp.tanh(h[8:])


def attention(x):
    q, k, v = (x @ normal(16, 16, key=jax.random.key(s)) for s in range(3))
    return jax.nn.softmax(q @ k.T) @ v


def mixer(x):
    return (normal(7, 7) @ jnp.tanh(x @ normal(16, 16))) @ normal(16, 16, key=jax.random.key(1))


def conv(padding="SAME", stride=1, groups=1, padding_mode="ZEROS", kernel=3, channels=4):
    return eqx.nn.Conv2d(channels, channels, kernel, stride, padding, groups=groups, padding_mode=padding_mode, key=KEY)


W, V = normal(16, 16), normal(16, 16, key=jax.random.key(7))


@pytest.mark.parametrize(
    ("model", "x", "named"),
    [
        (attention, normal(7, 16), "`dot_general` at test_model.py:.*, attention multiplies two values"),
        (mixer, normal(7, 16), "`dot_general` at test_model.py:.*, mixer mixes positions"),
        (lambda x: jax.nn.softmax(W @ x), normal(16), "`reduce_max` .* takes a maximum"),
        (lambda x: W @ jnp.sort(x), normal(16), "`sort` .* sorts units"),
        (lambda x: W[:8, :8] @ (W @ x).reshape(2, 8).mean(0), normal(16), "sums or averages units"),
        (
            lambda x: W @ jnp.concatenate([jnp.tanh(W[:8] @ x), W[8:] @ x]),
            normal(16),
            "puts different values side by side",
        ),
        (lambda x: W @ jnp.tanh(W @ x), normal(16), "the same weights twice"),
        (lambda x: W @ (jnp.arange(1, 17.0) * (W.T @ x)), normal(16), "multiply all units by factors that are alike"),
        (
            lambda x: W @ jnp.tanh(jnp.arange(1, 17.0) * (W.T @ x)),
            normal(16),
            "multiply all units by factors that are alike",
        ),
        (lambda x: W[:, :8] @ jnp.tanh(x)[:8], normal(16), "leaves out entries"),
        (lambda x: x + W @ jnp.tanh(x), normal(16), "out of place. .*`Activation` must follow weights"),
        (lambda x: x + jnp.tanh(x), normal(16), "must have weights"),
        (lambda x: (W @ x) * jnp.tanh(W.T @ (W[0] * x)), normal(16), "multiply all units|multiplies two values"),
        (lambda x: jnp.tanh(x), normal(16), "must have weights"),
        (lambda x: W @ (x + V @ jax.lax.stop_gradient(x)), normal(16), "has no gradient"),
        (lambda x: W @ rounded(V @ x), normal(16), "has a gradient of its own, as straight-through"),
        (leaky, normal(16), "multiply all units by factors that are alike"),
        (shared, normal(16), "the same weights twice"),
        (lambda x: (W @ x) * jax.nn.sigmoid(V[:1] @ x), normal(16), "multiplies two values"),
        (lambda x: x + W @ (x + 3.0), normal(16), "out of place"),
        (lambda x: x + x[::-1] + W @ x, normal(16), "several orders"),
        (lambda x: x + 0.5 * (x[::-1] + W @ x), normal(16), "several orders"),
        (instance_norm, normal(4, 8, 8), "instance norms"),
        (lambda x: 0 * W @ jnp.ones(16), normal(16), "depends on `x`"),
        (lambda x: (W @ x, x), normal(16), "must return one array"),
        (lambda x: W @ x, normal(9), r"must take `x`, of shape \(9,\)"),
        (lambda x: W @ x, jnp.arange(16), "array of real numbers"),
        (lambda x: W @ x, jnp.zeros(16), "finite and not all 0"),
        (lambda x: (0 * W) @ x, normal(16), "weights.*finite and not all 0"),
        (conv(), normal(4, 8, 8), "circular padding"),
        (conv(stride=2, padding_mode="CIRCULAR"), normal(4, 8, 8), "circular padding|strides"),
        (conv(groups=2, padding_mode="CIRCULAR"), normal(4, 8, 8), "has groups"),
        (eqx.nn.Sequential([conv(padding_mode="CIRCULAR"), eqx.nn.AvgPool2d(2, 2)]), normal(4, 8, 8), "is pooling"),
        (3, normal(16), "must be a function"),
        (lambda t, x: W @ x, normal(16), "functools.partial.*missing 1 required positional argument"),
        (lambda x: jax.nn.relu(x + W @ jax.nn.relu(V @ x)), normal(16), "out of place: .*or stand in a branch"),
    ],
)
def test_what_cannot_be_read_is_named(model, x, named):
    with pytest.raises(ValueError, match=named):
        from_model(model, x)


def test_what_cannot_be_written_is_named():
    def model(parameters, x):
        weight, _ = parameters
        return 0.5 * ((weight - weight.mean()) @ x)

    own = functools.partial(model, (W, W))
    net = from_model(own, normal(16))
    with pytest.raises(ValueError, match=r"parameters of its own for the weights at test_model.py"):
        jfree.reinitialize(own, net, KEY)

    def scaled(parameters, x):
        return 0.5 * (parameters[0] @ x)

    own = functools.partial(scaled, (W, W))
    net = from_model(own, normal(16))
    with pytest.warns(UserWarning, match=re.escape("not read: [1][0][1]")):
        jfree.reinitialize(own, net, KEY)
    louder = eqx.tree_at(lambda n: n.layers[1].factor, net, jnp.asarray(0.7))
    with pytest.raises(ValueError, match=r"a parameter for the scale at .* it has the number 0.5"):
        jfree.reinitialize(own, louder, KEY)
    biased = eqx.tree_at(lambda n: n.layers[0].sigma_b, net, jnp.asarray(0.7))
    with pytest.raises(ValueError, match="`sigma_b` > 0"):
        jfree.reinitialize(own, biased, KEY)
    with pytest.raises(ValueError, match="must have the layers of `net`"):
        jfree.reinitialize(eqx.nn.MLP(16, 5, 24, 2, key=KEY), net, KEY)
    closed = from_model(lambda x: W @ x, normal(16))
    with pytest.raises(ValueError, match="parameters of its own"):
        jfree.reinitialize(lambda x: W @ x, closed, KEY)


def test_flax_modules():
    nnx = pytest.importorskip("flax.nnx")

    class FlaxBlock(nnx.Module):
        def __init__(self, width, rngs):
            self.norm = nnx.RMSNorm(width, rngs=rngs)
            self.widen = nnx.Linear(width, 2 * width, rngs=rngs)
            self.narrow = nnx.Linear(2 * width, width, rngs=rngs)
            self.dropout = nnx.Dropout(0.2, rngs=rngs)

        def __call__(self, x):
            return x + self.dropout(self.narrow(nnx.silu(self.widen(self.norm(x)))))

    model = nnx.Sequential(nnx.Linear(16, 32, rngs=nnx.Rngs(0)), FlaxBlock(32, nnx.Rngs(1)), FlaxBlock(32, nnx.Rngs(2)))
    x = normal(50, 16)
    net = from_model(model, x)
    assert kinds(net) == ["Dense", "Residual", "Residual"]
    assert [type(layer).__name__ for layer in net.layers[1].layers] == [
        "RMSNorm",
        "Dense",
        "Activation",
        "Dense",
        "Dropout",
    ]
    assert np.isclose(net.layers[1].layers[4].rate, 0.2)
    other = jfree.reinitialize(model, net, KEY)
    assert isinstance(other, nnx.Sequential)
    assert np.isclose(weights_of(from_model(other, x))[1], weights_of(net)[1], rtol=0.1)


def test_one_call():
    """Deep enough that weights as Equinox draws them lose everything."""
    model = eqx.nn.MLP(24, 6, 24, 12, jax.nn.hard_tanh, key=KEY, dtype=jnp.float32)
    x = normal(20, 24)
    tuned, report = jfree.initialize(model, x, KEY, weights="orthogonal", steps=60, progress=False)
    assert tuned.layers[0].weight.dtype == jnp.float32
    low, middle, high = np.quantile(np.linalg.svd(jax.jacobian(tuned)(x[0]), compute_uv=False), [0, 0.5, 1])
    assert 0.2 < low < middle < high < 4
    assert np.linalg.norm(jax.jacobian(model)(x[0])) < 1e-2
    assert report.num_written == 26
    assert not report.left
    before, after = report.before.singular_values, report.after.singular_values
    bounds = [jfree.fisher_spectrum(a.net).learning_rate_bound() for a in (report.before, report.after)]
    assert np.allclose([report.before.learning_rate_bound, report.after.learning_rate_bound], bounds)
    assert before[-1] < 1e-2
    assert np.all((after > 0.2) & (after < 3))
    for text in ("Wrote 26 arrays", "singular value, 50%", "chi_q", "spread of log q", "objective"):
        assert text in repr(report)
    assert [ax.get_title() for ax in report.plot()] == ["before", "after"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"what": "weights"}, "`what` must be a sequence"),
        ({"what": ("widths",)}, "`what` must be a sequence"),
        ({"what": ("gains",)}, "`what` must name something that the model has: it has no gains"),
        ({"what": ("activations",)}, "`what` must name something"),
        ({"weights": "cauchy"}, "`weights` must be one of"),
        ({"steps": 0}, "`steps`"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_one_call_refuses(options, named):
    with pytest.raises(ValueError, match=named):
        jfree.initialize(eqx.nn.MLP(4, 4, 4, 1, key=KEY), normal(4), KEY, **options)


def prelu_mlp(depth):
    linears = [eqx.nn.Linear(24, 24, key=key) for key in jax.random.split(KEY, depth)]
    layers = [one for linear in linears for one in (linear, eqx.nn.Lambda(eqx.nn.PReLU()))]
    return eqx.nn.Sequential([*layers, eqx.nn.Linear(24, 6, key=KEY)])


def test_parameters_of_activations_are_tuned_and_written():
    """Slopes of PReLU bring singular values nearer to 1 than scales of weights alone."""
    model, x = prelu_mlp(4), normal(20, 24)
    options = {"weights": "orthogonal", "steps": 40, "progress": False}
    _, plain = jfree.initialize(model, x, KEY, **options)
    tuned, report = jfree.initialize(model, x, KEY, what=("weights", "activations"), **options)
    slopes = [jax.tree.leaves(layer)[0] for layer in report.after.net.layers[1:-1:2]]
    assert np.allclose([layer.fn.negative_slope for layer in tuned.layers[1:-1:2]], slopes)
    assert all(slope > 0.3 for slope in slopes)
    assert report.num_written == plain.num_written == 14  # slopes are written as they are, if not tuned
    assert report.tuning.objective < plain.tuning.objective


def test_parameters_of_activations_must_be_the_models():
    model = eqx.nn.MLP(8, 4, 8, 2, jax.nn.leaky_relu, key=KEY)
    with pytest.raises(ValueError, match="`what` must not have 'activations': no parameter for the activation"):
        jfree.initialize(model, normal(8), KEY, what=("weights", "activations"))
    net = from_model(model, normal(8))
    other = eqx.tree_at(lambda n: n.layers[1].activation.negative_slope, net, 0.5)
    with pytest.raises(ValueError, match="`model` must have a parameter for the activation"):
        jfree.reinitialize(model, other, KEY)


def test_scales_that_are_no_parameters_are_not_tuned():
    with pytest.raises(ValueError, match=r"`what` must not have 'scales': no parameter for the scale at test_model.py"):
        jfree.initialize(lambda x: 0.5 * (W @ x), normal(16), KEY, what=("scales",))
