from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree
from jfree import activations as acts
from jfree._finite.sampling import linears
from jfree._interop.functions import FUNCTIONS
from jfree.activations._names import BY_NAME
from jfree.layers import Activation, Conv, Dense, Dropout, Gated, LayerNorm, Parallel, Patches, Residual, RMSNorm, Scale

KEY = jax.random.key(0)
LINEAR, TANH = eqx.nn.Linear(2, 2, key=KEY), eqx.nn.Lambda(jnp.tanh)
ACTIVATIONS = [
    acts.Linear(),
    acts.ReLU(),
    acts.LeakyReLU(0.2),
    acts.ShiftedReLU(-0.5),
    acts.HardTanh(1.5, 0.7),
    acts.HardSine(),
    acts.Tanh(),
    acts.Erf(),
    acts.Sigmoid(),
    acts.SiLU(),
    acts.GELU(),
    acts.Softplus(),
    acts.FromFunction(lambda x: jnp.abs(x - 1), knots=(1.0,)),
]
PLAIN = jfree.MLP([5, 8, 8, 3], "tanh", "gaussian", sigma_w=1.5, sigma_b=0.3)
TAPERED = jfree.MLP([5, 9, 7, 3], "relu", "orthogonal", sigma_w=[1.0, 1.2, 0.5], sigma_b=0.3, final_activation="gelu")
RESIDUAL = jfree.ResNet(3, ["tanh", "silu", "tanh"], "gaussian", 0.7, [0.1, 0.0, 0.2], layers_per_block=2)
BRANCH = [
    RMSNorm(1.5),
    Dense(60, "gaussian", 1.3, 0.2),
    Activation(acts.LeakyReLU(0.3)),
    Dropout(0.25),
    Residual([Dense(60, "gaussian"), LayerNorm(), Activation("gelu"), Dense(60, "gaussian")], skip=0.5),
    Dense(30, "gaussian", 0.4),
]
LAYERS = jfree.Network(
    40,
    [
        Dense(30, "gaussian", 0.9, 0.1),
        LayerNorm(1.2),
        Activation("relu"),
        Dropout(0.1),
        Residual(BRANCH, scale=2.0),
        Parallel(
            [[Dense(30, "gaussian", 0.7)], [Dense(60, "gaussian"), Activation("tanh"), Dense(30, "gaussian")]], 0.5
        ),
        Parallel([[Dense(30, "gaussian")], [LayerNorm(), Dense(30, "gaussian"), Scale(0.3)]]),
        Scale(-0.5),
        LayerNorm(0.8, 0.3),
        Dense(20, "gaussian", 1.1),
        Activation("linear"),
    ],
)


def sequential(*layers):
    """The last of which has weights."""
    return eqx.nn.Sequential([*layers, LINEAR])


def with_leaf(name, value, module):
    """All entries of one array being a number, or given."""
    leaf = getattr(module, name)
    return eqx.tree_at(lambda m: getattr(m, name), module, jnp.broadcast_to(jnp.asarray(value, leaf.dtype), leaf.shape))


def layers_by_hand(net, key, width):
    return zip(jfree.sample_weights(net, key, width), net.activations, strict=True)


def mlp_by_hand(net, key, x):
    for (weight, bias), activation in layers_by_hand(net, key, None):
        x = activation(weight @ x + bias)
    return x


def resnet_by_hand(net, key, x):
    layers = list(layers_by_hand(net, key, x.size))
    for block in range(net.depth):
        y = x
        for (weight, bias), activation in layers[block * net.layers_per_block : (block + 1) * net.layers_per_block]:
            y = activation(weight @ y + bias)
        x = x + y
    return x


@pytest.mark.parametrize(
    ("net", "kind"),
    [
        (PLAIN, eqx.nn.MLP),
        (TAPERED, eqx.nn.Sequential),
        (jfree.MLP([5, 8, 8, 3], ["tanh", "relu", "linear"], "gaussian"), eqx.nn.Sequential),
        (jfree.MLP([5, 8, 3], acts.LeakyReLU(0.3), "gaussian", final_activation="erf"), eqx.nn.MLP),
        (jfree.MLP([5, 3], "tanh", final_activation="tanh"), eqx.nn.Sequential),
    ],
)
def test_mlps_by_hand(net, kind):
    model = jfree.to_equinox(net, KEY)
    x = jnp.linspace(-1, 2, 5)
    assert isinstance(model, kind)
    assert np.allclose(model(x), mlp_by_hand(net, KEY, x), rtol=1e-12)


def test_resnets_by_hand():
    model = jfree.to_equinox(RESIDUAL, KEY, width=6)
    x = jnp.linspace(-1, 2, 6)
    assert isinstance(model, jfree.ResidualMLP)
    assert np.allclose(model(x), resnet_by_hand(RESIDUAL, KEY, x), rtol=1e-12)


@pytest.mark.filterwarnings("ignore:log q of the last layer")  # of a few units
@pytest.mark.parametrize("widths", [[6, 8, 8, 5], [6, 8, 7, 5]])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_round_trip(activation, widths):
    """Haar orthogonal weights have their scale exactly."""
    scales = {"sigma_w": [1.5, 0.7, 1.1], "sigma_b": [0, 0, 0], "q0": 2.0}
    net = jfree.MLP(widths, activation, final_activation=activation, **scales)
    model = jfree.to_equinox(net, KEY)
    assert len(jax.tree.leaves(eqx.filter(model, eqx.is_array))) == 6  # nothing but weights and biases
    back = jfree.from_equinox(model, q0=2.0, weights="orthogonal")
    assert eqx.tree_equal(back, net, rtol=1e-12, atol=1e-12)


def test_round_trip_of_resnets():
    net = eqx.tree_at(lambda n: n.weights, RESIDUAL, jfree.ResNet(3).weights)
    back = jfree.from_equinox(jfree.to_equinox(net, KEY, width=400), weights="orthogonal")
    assert isinstance(back, jfree.ResNet)
    assert (back.depth, back.layers_per_block, back.weights) == (3, 2, net.weights)
    assert eqx.tree_equal(back.activations, net.activations)
    assert np.allclose(back.sigma_w, 0.7, rtol=1e-12)
    assert np.allclose(back.sigma_b, net.sigma_b[:, None], rtol=0.15)
    alike = jfree.from_equinox(jfree.ResidualMLP(4, 3, key=KEY, use_bias=False))
    assert isinstance(alike.activation, acts.Tanh)
    assert np.all(alike.sigma_b == 0)


def test_round_trip_of_layers():
    """Gains, rates and factors are back as they were, scales of weights as far as they are sampled."""
    model = jfree.to_equinox(LAYERS, KEY, width=200)
    functions = [leaf for leaf in jax.tree.leaves(model, is_leaf=is_lambda) if is_lambda(leaf)]
    assert len(functions) == 5
    assert not any(eqx.is_array(leaf) for leaf in jax.tree.leaves(functions))  # nor would an optimiser train them
    back = jfree.from_equinox(model)
    assert jax.tree.structure(back) == jax.tree.structure(LAYERS)
    expected = jax.tree.leaves_with_path(LAYERS)
    for found, (path, value) in zip(jax.tree.leaves(back), expected, strict=True):
        name = jax.tree_util.keystr(path[-1:])
        factor, rtol = {".width": (5, 0), ".sigma_w": (1, 0.05), ".sigma_b": (1, 0.2)}.get(name, (1, 1e-12))
        np.testing.assert_allclose(found, factor * value, rtol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_convolutions_and_gates_are_back(weights):
    conv = Conv(20, (2, 1), weights, 0.8, 0.2, (2, 3))
    block = Residual([RMSNorm(), Gated(240, "gelu", 1.1, 0.7, 0.3), Dense(120, "gaussian")])
    patches = Patches(20, (1, 3), weights, 1.2, 0.1, (2, 1))
    net = jfree.Network(60, [conv, Activation("tanh"), block, Dense(120, weights), patches, Dense(30, weights)])
    back = jfree.from_equinox(jfree.to_equinox(net, KEY, width=480), weights=weights)
    assert isinstance(back, jfree.Network)
    np.testing.assert_array_equal(back.widths, 4 * net.widths)
    read, branch = back.layers[0], back.layers[2].parts()
    assert isinstance(read, Conv)
    assert (read.positions, read.kernel, int(read.channels)) == ((2, 3), (2, 1), 80)
    gates = next(part for part in branch if isinstance(part, Gated))
    behind = back.layers[4]
    assert isinstance(behind, Patches)
    assert (behind.positions, behind.patch, int(behind.channels)) == ((2, 1), (1, 3), 80)
    found = [read.sigma_w, read.sigma_b, gates.sigma_w, gates.sigma_gate, gates.sigma_b]
    np.testing.assert_allclose(found, [0.8, 0.2, 1.1, 0.7, 0.3], rtol=0.1)
    with pytest.raises(ValueError, match="must not have a `Conv`"):
        jfree.sample_weights(net, KEY)


def is_lambda(node):
    return isinstance(node, eqx.nn.Lambda)


def test_nested_sequentials_are_read_in_order():
    norm = eqx.nn.LayerNorm(2, use_weight=False, use_bias=False)
    net = jfree.from_equinox(
        sequential(sequential(norm, eqx.nn.Dropout(0.0)), TANH, eqx.nn.Identity()), 2.0, "orthogonal"
    )
    assert isinstance(net, jfree.Network)
    assert [type(layer) for layer in net.layers] == [LayerNorm, Dense, Activation, Dense]
    dense = net.layers[1]
    assert isinstance(dense, Dense)
    assert (float(net.width), float(net.q0), dense.weights) == (2, 2, jfree.Orthogonal())
    with pytest.raises(ValueError, match="`q0` must be positive"):
        jfree.from_equinox(sequential(norm), -1.0)


def test_gains_that_hardly_differ_are_one():
    norm = with_leaf("bias", [0.31, 0.29], with_leaf("weight", [1.52, 1.48], eqx.nn.LayerNorm(2, dtype=jnp.float32)))
    linear = eqx.nn.Linear(2, 2, dtype=jnp.float32, key=KEY)
    net = jfree.from_equinox(eqx.nn.Sequential([norm, eqx.nn.Dropout(), linear]))
    assert isinstance(net, jfree.Network)
    layer = net.layers[0]
    assert isinstance(layer, LayerNorm)
    assert layer.offset is not None
    assert np.isclose(layer.gain, 1.5, rtol=1e-3)
    assert np.isclose(layer.offset, 0.3, rtol=1e-6)
    assert layer.gain.dtype == jnp.float32


def test_stacks_are_read_one_by_one():
    def model(key):
        return sequential(eqx.nn.RMSNorm(2), eqx.nn.Linear(2, 2, key=key), eqx.nn.LayerNorm(2, use_bias=False), TANH)

    keys = jax.random.split(KEY, 3)
    nets = eqx.filter_vmap(jfree.from_equinox)(eqx.filter_vmap(model)(keys))
    alone = jfree.from_equinox(model(keys[1]))
    assert eqx.tree_equal(jax.tree.map(lambda x: x[1], nets), alone, rtol=1e-12)


@pytest.mark.parametrize(
    ("fn", "activation"),
    [
        (jax.nn.relu, acts.ReLU()),
        (jax.nn.swish, acts.SiLU()),
        (jax.nn.gelu, acts.GELUTanh()),
        (partial(jax.nn.gelu, approximate=True), acts.GELUTanh()),
        (partial(jax.nn.gelu, approximate=False), acts.GELU()),
        (jax.nn.leaky_relu, acts.LeakyReLU(0.01)),
        (partial(jax.nn.leaky_relu, negative_slope=0.3), acts.LeakyReLU(0.3)),
        (eqx.nn.PReLU(0.25), acts.LeakyReLU(0.25)),
        (jax.nn.hard_tanh, acts.HardTanh()),
        (jax.lax.erf, acts.Erf()),
        (jax.lax.logistic, acts.Sigmoid()),
        (acts.HardTanh(2.0, 0.5), acts.HardTanh(2.0, 0.5)),
        (lambda x: x, acts.Linear()),
        (jnp.sin, acts.Sine()),
        (jax.nn.relu6, acts.Clip(0.0, 6.0)),
        (jax.nn.hard_swish, acts.HardSiLU()),
        (partial(jax.nn.elu, alpha=0.5), acts.ELU(0.5)),
        (partial(jax.nn.celu, alpha=0.5), acts.CELU(0.5)),
        (jnp.cos, acts.FromFunction(jnp.cos)),
    ],
)
def test_functions_are_recognised(fn, activation):
    plain = eqx.nn.MLP(2, "scalar", 4, 2, fn, fn, key=KEY)
    sequential = eqx.nn.Sequential([eqx.nn.Linear(2, 4, key=KEY), eqx.nn.Lambda(fn)])
    residual = jfree.ResidualMLP(4, 2, activation=fn, key=KEY)
    for model in (plain, sequential, residual):
        net = jfree.from_equinox(model)
        assert not isinstance(net, jfree.Network)
        assert all(eqx.tree_equal(found, activation) for found in net.activations)


@pytest.mark.filterwarnings("ignore:log q of the last layer")  # of a few units
def test_functions_are_not_mistaken_for_others():
    """Parameters that print alike."""
    for activation, plain in ((acts.LeakyReLU(0.0100001), jax.nn.leaky_relu), (acts.ELU(1.00001), jax.nn.elu)):
        model = jfree.to_equinox(jfree.MLP([2, 3, 3, 1], activation), KEY)
        assert isinstance(model, eqx.nn.MLP)
        assert model.activation is not plain
        x = jnp.asarray(-1.0)
        assert jfree.from_equinox(model).activations[0](x) == activation(x)


def test_recognised_functions_are_what_they_seem():
    x = jnp.linspace(-5, 5, 201)
    for name, fn in FUNCTIONS:
        np.testing.assert_allclose(fn(x), BY_NAME[name]()(x), rtol=1e-12, atol=1e-15, err_msg=name)


def test_measured_scales():
    model = eqx.nn.MLP("scalar", 3, 4, 1, use_final_bias=False, key=KEY)
    net = jfree.from_equinox(model, q0=0.5)
    first, last = model.layers
    assert isinstance(net, jfree.MLP)
    assert first.bias is not None
    assert np.array_equal(net.widths, [1, 4, 3])
    assert np.allclose(net.sigma_w**2, np.asarray([jnp.mean(first.weight**2), 4 * jnp.mean(last.weight**2)]))
    assert np.allclose(net.sigma_b**2, np.asarray([jnp.mean(first.bias**2), 0]))
    assert net.q0 == 0.5
    assert [type(a) for a in net.activations] == [acts.ReLU, acts.Linear]
    assert net.weights == (jfree.Gaussian(),) * 2


def test_linear_layers_of_sequentials():
    linear, relu = eqx.nn.Linear(3, 3, key=KEY), eqx.nn.Lambda(jax.nn.relu)
    inner = eqx.nn.Sequential([linear, eqx.nn.Identity(), relu, eqx.nn.Dropout(0.5, inference=True)])
    net = jfree.from_equinox(eqx.nn.Sequential([linear, inner, eqx.nn.Dropout(0.0), linear]))
    assert isinstance(net, jfree.MLP)
    assert [type(a) for a in net.activations] == [acts.Linear, acts.ReLU, acts.Linear]
    # Equinox applies no final activation where there is no hidden layer.
    model = eqx.nn.MLP(2, 3, 4, 0, jnp.tanh, jnp.tanh, key=KEY)
    assert [type(a) for a in jfree.from_equinox(model).activations] == [acts.Linear]


def test_residual_models_train():
    model = jfree.ResidualMLP(6, 2, 2, in_size=3, out_size=1, key=KEY)
    x, y = jax.random.normal(KEY, (16, 3)), jnp.ones((16, 1))

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(model):
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)

    before, slope = loss(model)
    after, _ = loss(jax.tree.map(lambda p, g: p if g is None else p - 0.01 * g, model, slope))
    assert after < 0.95 * before
    net = jfree.from_equinox(model)
    assert isinstance(net, jfree.ResNet)
    assert (net.depth, net.layers_per_block) == (2, 2)


@pytest.mark.parametrize("net", [PLAIN, TAPERED])
def test_reinitialized_mlps(net):
    model = jfree.to_equinox(net, KEY)
    other = jfree.reinitialize(model, net, jax.random.key(1))
    x = jnp.ones(5)
    assert not np.allclose(model(x), other(x))
    assert np.allclose(other(x), mlp_by_hand(net, jax.random.key(1), x), rtol=1e-12)
    assert eqx.tree_equal(jfree.reinitialize(other, net, KEY), model)


def test_reinitialized_residual_models():
    model = jfree.ResidualMLP(6, 3, 2, in_size=3, out_size=1, dtype=jnp.float32, key=KEY)
    net = jfree.ResNet(3, "tanh", "orthogonal", 0.5, layers_per_block=2)
    other = jfree.reinitialize(model, net, KEY)
    assert eqx.tree_equal((other.embedding, other.readout), (model.embedding, model.readout))
    for block in other.blocks:
        for layer in block.layers:
            assert layer.weight.dtype == jnp.float32
            assert np.allclose(layer.weight @ layer.weight.T, jnp.eye(6) / 4, atol=1e-6)
            assert np.all(layer.bias == 0)


def test_reinitialized_layers():
    """All weights, those of residual blocks too; norms and factors stay."""
    other, model = (jfree.to_equinox(LAYERS, key, width=80) for key in (jax.random.key(1), KEY))
    assert isinstance(other, eqx.nn.Sequential)
    assert isinstance(model, eqx.nn.Sequential)
    other = eqx.tree_at(lambda m: m.layers[4].scale, other, jnp.asarray(7.0))
    redrawn = jfree.reinitialize(other, LAYERS, KEY)
    for (weight, bias), found in zip(jfree.sample_weights(LAYERS, KEY, width=80), linears(redrawn), strict=True):
        assert eqx.tree_equal((found.weight, found.bias), (weight, bias))
    assert redrawn.layers[4].scale == 7
    x = jnp.linspace(-1, 2, 80)
    assert np.array_equal(redrawn.layers[0](x), model.layers[0](x))


def test_only_ratios_of_widths_must_agree():
    model = eqx.nn.MLP(20, 10, 40, 2, key=KEY)
    net = jfree.MLP([1.0, 2.0, 2.0, 0.5], "relu", sigma_w=1.4)
    weight = jfree.reinitialize(model, net, KEY).layers[1].weight
    assert np.allclose(weight @ weight.T, 1.96 * jnp.eye(40), atol=1e-12)


@pytest.mark.parametrize(
    ("model", "net", "named"),
    [
        (eqx.nn.MLP(5, 3, 8, 1, key=KEY), PLAIN, "of shapes"),
        (eqx.nn.MLP(5, 3, 8, 1, key=KEY), LAYERS, "of shapes"),
        (eqx.nn.MLP(5, 4, 8, 2, key=KEY), PLAIN, "of shapes"),
        (eqx.nn.MLP(5, 3, 8, 2, use_bias=False, key=KEY), PLAIN, "`sigma_b` > 0"),
        (jfree.ResidualMLP(6, 3, 1, key=KEY), RESIDUAL, "of shapes"),
        (eqx.nn.Identity(), RESIDUAL, "of shapes"),
    ],
)
def test_models_that_do_not_fit(model, net, named):
    with pytest.raises(ValueError, match=named):
        jfree.reinitialize(model, net, KEY)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("model", "named"),
    [
        (eqx.nn.Linear(2, 2, key=KEY), "got Linear"),
        (eqx.nn.MLP(2, 2, 2, 2, scan=True, key=KEY), "without `scan`"),
        (eqx.nn.Sequential([]), "at least one"),
        (eqx.nn.Sequential([eqx.nn.Lambda(jnp.tanh)]), "at least one"),
        (eqx.nn.Sequential([eqx.nn.LayerNorm(2)]), "at least one"),
        (
            sequential(LINEAR, TANH, TANH),
            r"`model.layers\[2\]` is out of place: every `eqx.nn.Linear` may be followed by one",
        ),
        (sequential(eqx.nn.Conv1d(2, 2, 1, key=KEY)), r"`model.layers\[0\]` must be .* got Conv1d"),
        (sequential(sequential(eqx.nn.PReLU())), r"`model.layers\[0\].layers\[0\]` must be .* got PReLU"),
        (sequential(TANH, eqx.nn.LayerNorm(2)), r"`model.layers\[0\]` is out of place: an `Activation` must follow"),
        (
            sequential(eqx.nn.Identity(), LINEAR, with_leaf("bias", 0.5, eqx.nn.LayerNorm(2)), TANH),
            r"`model.layers\[3\]` is out of place: an `Activation` must follow weights, .* offset is known to be 0",
        ),
        (sequential(LINEAR, TANH, eqx.nn.LayerNorm(2), eqx.nn.Dropout()), r"layers\[3\]` is out of place: a `Dropout`"),
        (
            sequential(with_leaf("bias", 0.5, eqx.nn.RMSNorm(2))),
            r"`model.layers\[0\]`, an RMSNorm, must have no biases",
        ),
        (sequential(with_leaf("bias", [0.0, 1.0], eqx.nn.LayerNorm(2))), "must have biases that are alike, within 5 %"),
        (sequential(with_leaf("weight", [1.0, 1.2], eqx.nn.LayerNorm(2))), "weights that are positive and alike"),
        (sequential(with_leaf("weight", -1.0, eqx.nn.RMSNorm(2, use_bias=False))), "positive and alike"),
        (sequential(with_leaf("weight", 0.0, LINEAR), eqx.nn.RMSNorm(2)), "not all 0"),
    ],
)
def test_models_that_cannot_be_read(model, named):
    with pytest.raises(ValueError, match=named):
        jfree.from_equinox(model)


def test_units_that_differ():
    model = eqx.nn.MLP(2, 2, 3, 1, eqx.nn.PReLU(), key=KEY)
    slopes = lambda m: m.activation.negative_slope  # noqa: E731
    with pytest.raises(ValueError, match="one activation per layer"):
        jfree.from_equinox(eqx.tree_at(slopes, model, jnp.asarray([[0.1, 0.2, 0.3]])))


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_residual_network():
    for name, sizes in (("width", (0, 3)), ("depth", (2, 0)), ("layers_per_block", (2, 3, 0)), ("depth", (2, 1.5))):
        with pytest.raises(ValueError, match=f"`{name}`"):
            jfree.ResidualMLP(*sizes, key=KEY)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`activation`"):
        jfree.ResidualMLP(2, 4, activation="tanh", key=KEY)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("fn", [jax.nn.softmax, lambda x: x / jnp.linalg.norm(x)])
def test_layers_that_mix_units(fn):
    model = eqx.nn.Sequential([eqx.nn.Linear(3, 4, key=KEY), eqx.nn.Lambda(fn), eqx.nn.Linear(4, 2, key=KEY)])
    with pytest.raises(ValueError, match="`model`"):
        jfree.from_equinox(model)


def test_activations_per_block():
    with pytest.raises(ValueError, match="`activation`"):
        jfree.ResidualMLP(2, 3, activation=[jnp.tanh, jnp.tanh], key=KEY)


def test_stacked_models_are_refused():
    models = eqx.filter_vmap(lambda key: eqx.nn.MLP(2, 1, 4, 2, key=key))(jax.random.split(KEY, 3))
    with pytest.raises(ValueError, match="`model`"):
        jfree.from_equinox(models)
