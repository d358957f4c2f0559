"""Networks made of layers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree
from jfree.layers import (
    Activation,
    Conv,
    Dense,
    Dropout,
    Gated,
    LayerNorm,
    Parallel,
    Patches,
    Repeat,
    Residual,
    RMSNorm,
    Scale,
)

N = 300


def gaussian(width=N, **scales):
    return Dense(width, "gaussian", **scales)


def pre_norm(expansion, activation, norm=None, **factors):
    layers = [norm or RMSNorm(), gaussian(expansion * N), Activation(activation), gaussian()]
    return Residual(layers, **factors)


NETWORKS = {
    "norms of preactivations": [
        Dense(N),
        RMSNorm(1.5),
        Activation("tanh"),
        gaussian(),
        LayerNorm(),
        Activation("gelu"),
    ],
    "norms of activations": [
        gaussian(),
        Activation("relu"),
        LayerNorm(1.2, 0.3),
        gaussian(),
        Activation("tanh"),
        RMSNorm(),
    ],
    "scales": [Scale(0.5), Dense(N), Activation("hard_tanh"), Scale(-2.0), gaussian(2 * N)],
    "dropout": [gaussian(), Activation("relu"), Dropout(0.2), Dense(N), Activation("tanh"), Dropout(0.3), gaussian()],
    "dropout alone": [Dropout(0.1), gaussian(), Dropout(0.25), Dense(N)],
    "pre-norm": [pre_norm(2, "gelu"), pre_norm(2, "gelu"), pre_norm(2, "gelu")],
    "bottleneck": [Residual([LayerNorm(), gaussian(N // 4), Activation("relu"), gaussian()]), gaussian(N // 2)],
    "factors": [pre_norm(1, "tanh", skip=0.8, scale=0.5), pre_norm(1, "tanh", scale=2.0)],
    "gates": [Gated(2 * N, "silu"), gaussian(), Residual([RMSNorm(), Gated(2 * N, "relu"), gaussian()])],
    "nested": [Residual([Dense(N), Residual([Dense(N), Activation("tanh"), Dense(N)]), Dense(N)])],
    "nested sums": [
        Residual([gaussian(), Parallel([[gaussian(), Activation("tanh"), gaussian()], [Dense(N)]], 0.5), gaussian()])
    ],
    "parallel": [
        Parallel([[LayerNorm(), gaussian()], [RMSNorm(), gaussian(2 * N), Activation("gelu"), gaussian()]], skip=1.0),
        Parallel([[gaussian(), Scale(0.5)], [gaussian(N // 2), Activation("relu"), Dense(N)]], skip=-0.7),
    ],
    "parallel, no skip": [
        Parallel([[gaussian(2 * N), Activation("tanh"), gaussian(N // 2)], [Dense(N // 2)]]),
        Activation("tanh"),
        Parallel([[gaussian(N // 4), Activation("relu"), gaussian()], [Dense(N)], [gaussian(sigma_w=0.7)]]),
    ],
    "activations behind sums": [
        Dense(N),
        pre_norm(2, "relu"),
        LayerNorm(),
        Activation("relu"),
        gaussian(),
        Parallel([[Dense(N)], [gaussian(), Activation("tanh"), Dense(N)]], skip=0.7),
        Activation("hard_tanh"),
    ],
    "only branch": [Parallel([[gaussian(N // 2), Activation("relu"), Dense(N // 2)]]), gaussian()],
    "repeated": [Repeat(3, [pre_norm(1, "tanh"), Residual([Dense(N, sigma_w=jnp.asarray([0.3, 0.6, 0.9]))])])],
    "unlike blocks": [Dense(N), Activation("tanh"), gaussian(), pre_norm(1, "relu"), pre_norm(2, "gelu"), RMSNorm()],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_have_the_spectrum(name):
    net = jfree.Network(N, NETWORKS[name], q0=0.8)
    spectrum = jfree.jacobian_spectrum(net)
    rows = jfree.empirical.jacobian_eigenvalues(net, jax.random.key(0), num_samples=8)
    assert jfree.empirical.ks_distance(rows, spectrum) < 0.025
    np.testing.assert_allclose(spectrum.mean(), rows.mean(), rtol=0.1)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_an_mlp_is_its_layers(activation, weights):
    mlp = jfree.MLP([2, 3, 1, 2], activation, weights, sigma_w=[1.1, 0.9, 1.3], sigma_b=0.2, q0=0.7)
    layers = [
        layer
        for width, sigma_w in ((3, 1.1), (1, 0.9), (2, 1.3))
        for layer in (Dense(width, weights, sigma_w, 0.2), Activation(activation))
    ]
    net = jfree.Network(2, layers[:-1], q0=0.7)
    x = jnp.linspace(0.05, 3.0, 20)
    for spectrum in (jfree.jacobian_spectrum, jfree.fisher_spectrum):
        np.testing.assert_allclose(spectrum(net).density(x), spectrum(mlp).density(x), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(spectrum(net).edges(), spectrum(mlp).edges(), rtol=1e-9)
    mine, field = jfree.propagate(net), jfree.propagate(mlp)
    np.testing.assert_allclose(mine.q[1::2], field.q[:-1], rtol=1e-12)
    np.testing.assert_allclose(mine.elasticity[1::2], field.elasticity[:-1], rtol=1e-10)


def test_a_resnet_is_its_layers():
    resnet = jfree.ResNet(4, "tanh", "gaussian", sigma_w=0.7, sigma_b=0.1, layers_per_block=2, mean0=0.2)
    block = Residual([layer for _ in range(2) for layer in (Dense(1, "gaussian", 0.7, 0.1), Activation("tanh"))])
    net = jfree.Network(1, [block] * 4, mean0=0.2)
    x = jnp.linspace(0.3, 5.0, 20)
    expected = jfree.jacobian_spectrum(resnet).density(x)
    np.testing.assert_allclose(jfree.jacobian_spectrum(net).density(x), expected, rtol=1e-9)


def test_gates_with_kinks_between_nodes_are_not_resolved():
    net = jfree.Network(N, [Gated(N, "hard_tanh"), gaussian()])
    assert np.all(np.isnan(jfree.jacobian_spectrum(net).density(np.asarray([0.1, 0.5, 1.0]))))


@pytest.mark.parametrize("first", [32, 64, 128])
@pytest.mark.parametrize("last", [10, 32, 200])
@pytest.mark.parametrize("side", ["input", "output"])
def test_blocks_between_other_widths(first, last, side):
    """Every round has a place for a block, also the last, where weights alone stand."""
    branch = [gaussian(first), Activation("hard_tanh"), gaussian(first)]
    net = jfree.Network(64, [gaussian(first), Residual(branch, scale=0.7), gaussian(last)])
    spectrum = jfree.jacobian_spectrum(net, side)
    levels = np.linspace(0.02, 0.98, 12) * (1 - float(spectrum.mass_at_zero())) + float(spectrum.mass_at_zero())
    x = spectrum.quantile(levels)
    assert np.all(np.isfinite(spectrum.density(x)))
    assert np.allclose(spectrum.cdf(x), levels)


@pytest.mark.parametrize(("weights", "positions", "kernel"), [("gaussian", (6,), 3), ("orthogonal", (2, 4), (3, 2))])
def test_circular_convolutions(weights, positions, kernel):
    units = 50 * int(np.prod(positions))
    block = Residual([LayerNorm(), Conv(50, kernel, weights, 1.2, 0.1, positions), Activation("tanh"), gaussian(units)])
    layers = [Conv(50, kernel, weights, 1.1, positions=positions), Activation("tanh"), block, Dense(units // 2)]
    net = jfree.Network(units, layers)
    rows = jfree.empirical.jacobian_eigenvalues(net, jax.random.key(0), num_samples=4, side="output")
    assert jfree.empirical.ks_distance(rows, jfree.jacobian_spectrum(net, "output")) < 0.02
    assert rows.shape == (4, units // 2)
    with pytest.raises(ValueError, match="Fisher"):
        jfree.fisher_spectrum(net)
    with pytest.raises(ValueError, match="`positions`"):
        jfree.empirical.jacobian_eigenvalues(jfree.Network(units + 1, layers), jax.random.key(0))


CHANNELS = {
    "one axis": (40, [Conv(50, 3), Activation("tanh"), Conv(40, 3, "orthogonal"), Activation("relu"), Conv(50, 2)]),
    "two axes": (30, [Conv(30, (1, 2)), Residual([RMSNorm(), Conv(40, (2, 1)), Activation("relu"), gaussian(30)])]),
    "patches": (48, [Patches(96, 2), Residual([RMSNorm(), gaussian(96), Activation("gelu"), gaussian(96)])]),
    "patches and convolutions": (
        32,
        [Conv(32, 3), Activation("tanh"), Patches(60, 2), Activation("tanh"), Conv(60, 3)],
    ),
}


@pytest.mark.parametrize(
    ("name", "side"),
    [("one axis", "output"), ("two axes", "input"), ("patches", "input"), ("patches and convolutions", "output")],
)
def test_networks_of_channels(name, side):
    net = jfree.Network(*CHANNELS[name])
    rows = jfree.empirical.jacobian_eigenvalues(net, jax.random.key(0), num_samples=6, side=side)
    assert jfree.empirical.ks_distance(rows, jfree.jacobian_spectrum(net, side)) < 0.03
    with pytest.raises(ValueError, match="`positions`"):
        jfree.to_equinox(net, jax.random.key(0))


def test_gates_beside_channels_are_not_sampled():
    net = jfree.Network(8, [Conv(8, 3), Gated(8), Dense(8)])
    with pytest.raises(ValueError, match="`Gated` beside a `Conv`"):
        jfree.empirical.jacobian_eigenvalues(net, jax.random.key(0))


def test_layers_may_repeat():
    sigma_w = jnp.linspace(0.5, 1.0, 4)
    blocks = [Residual([RMSNorm(), gaussian(), Activation("tanh"), gaussian(sigma_w=s)]) for s in sigma_w]

    def repeated(sigma_w):
        block = Residual([RMSNorm(), gaussian(), Activation("tanh"), gaussian(sigma_w=sigma_w)])
        return jfree.Network(N, [Repeat(4, [block]), gaussian(N // 2)])

    apart, net = jfree.Network(N, [*blocks, gaussian(N // 2)]), repeated(sigma_w)
    x = jnp.linspace(0.1, 5.0, 10)
    np.testing.assert_allclose(
        jfree.jacobian_spectrum(net).density(x), jfree.jacobian_spectrum(apart).density(x), rtol=1e-10
    )
    np.testing.assert_array_equal(net.widths, apart.widths)
    assert net.depth == 5
    assert "4 times" in str(net)
    assert "sigma_w 0.5 to 1" in str(net)
    slope = jax.grad(lambda s: jfree.objectives.isometry(repeated(s)))(sigma_w)
    step = jnp.zeros(4).at[2].set(1e-5)
    moved = [jfree.objectives.isometry(repeated(sigma_w + by)) for by in (step, -step)]
    np.testing.assert_allclose(slope[2], (moved[0] - moved[1]) / 2e-5, rtol=1e-6)


def test_parallel_branches_of_one_are_a_residual_block():
    branch = [RMSNorm(), gaussian(), Activation("gelu"), gaussian()]
    x = jnp.linspace(0.1, 5.0, 10)
    one, other = (jfree.Network(N, [layer, gaussian()]) for layer in (Parallel([branch], 0.8), Residual(branch, 0.8)))
    np.testing.assert_allclose(
        jfree.jacobian_spectrum(one).density(x), jfree.jacobian_spectrum(other).density(x), rtol=1e-10
    )


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"positions": 0}, "positions"),
        ({"kernel": (3, 3)}, "kernel"),
        ({"channels": -1}, "channels"),
        ({"weights": "x"}, "weights"),
    ],
)
def test_bad_convolutions(wrong, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        Conv(**({"channels": 8, "positions": 5} | wrong))


@pytest.mark.parametrize("between", [[RMSNorm(1.5)], [Scale(-1.5)], [Scale(0.7), LayerNorm()]])
def test_fisher_of_samples(between):
    layers = [Dense(N), *between, Activation("tanh"), gaussian(), Activation("erf"), *between]
    net = jfree.Network(N, layers, q0=0.8)
    rows = jfree.empirical.fisher_eigenvalues(net, jax.random.key(0), num_samples=32)
    assert jfree.empirical.ks_distance(rows, jfree.fisher_spectrum(net)) < 0.03
    with pytest.raises(ValueError, match="skip connections"):
        jfree.empirical.fisher_eigenvalues(jfree.Network(N, NETWORKS["pre-norm"]), jax.random.key(0))


def test_fisher_samples_of_mlps_and_layers_agree():
    layers = [Dense(N, "gaussian", 1.2, 0.3), Activation("tanh"), Dense(N, "orthogonal", 0.9)]
    rows = jfree.empirical.fisher_eigenvalues(jfree.Network(N, layers), jax.random.key(1), num_samples=16)
    net = jfree.MLP((N, N, N), ["tanh", "linear"], ["gaussian", "orthogonal"], (1.2, 0.9), (0.3, 0.0))
    others = jfree.empirical.fisher_eigenvalues(net, jax.random.key(2), num_samples=16)
    np.testing.assert_allclose(np.sort(rows, None), np.sort(others, None), rtol=0.1)


def test_fisher_with_norms():
    """Of the weights: norms and scales act on what comes before, and their outputs are what the next weights see."""
    norms = [RMSNorm(), Activation("tanh"), Scale(1.5), gaussian(), LayerNorm(), Activation("tanh")]
    net = jfree.Network(N, [gaussian(), *norms, gaussian(N // 2)], q0=0.8)
    model = jfree.to_equinox(net, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (N,))
    assert isinstance(model, eqx.nn.Sequential)
    inputs = [x * jnp.sqrt(0.8 / jnp.mean(x**2))]
    for layer in model.layers:
        inputs.append(layer(inputs[-1]))
    fisher, jacobian = jnp.zeros((N // 2, N // 2)), jnp.eye(N // 2)
    for layer, y in zip(reversed(model.layers), reversed(inputs[:-1]), strict=True):
        if isinstance(layer, eqx.nn.Linear):
            fisher = fisher + jnp.sum(y**2) / (N // 2) * jacobian @ jacobian.T
        jacobian = jacobian @ jax.jacobian(layer)(y)
    found, spectrum = jnp.linalg.eigvalsh(fisher), jfree.fisher_spectrum(net)
    np.testing.assert_allclose(found.mean(), spectrum.mean(), rtol=0.03)
    assert jfree.empirical.ks_distance(found, spectrum) < 0.03


@pytest.mark.parametrize(
    "name", ["norms of activations", "dropout", "factors", "parallel", "parallel, no skip", "nested sums"]
)
def test_gradients(name):
    def isometry(layers):
        return jfree.objectives.weighted_isometry(jfree.Network(N, layers, q0=0.8))

    layers = [layer for layer in NETWORKS[name] if layer is not NETWORKS["scales"][0]]
    leaves, rest = eqx.partition(layers, eqx.is_inexact_array)
    slope = jax.grad(lambda leaves: isometry(eqx.combine(leaves, rest)))(leaves)
    flat, structure = jax.tree.flatten(leaves)
    for k, leaf in enumerate(flat):
        if leaf.shape or float(leaf) == N:
            continue
        step = 1e-5

        def moved(by, k=k):
            changed = [x + by if i == k else x for i, x in enumerate(flat)]
            return isometry(eqx.combine(jax.tree.unflatten(structure, changed), rest))

        difference = (moved(step) - moved(-step)) / (2 * step)
        np.testing.assert_allclose(jax.tree.leaves(slope)[k], difference, rtol=1e-5, atol=1e-7)


def test_gradients_with_layers_of_two_kinds():
    """What one makes of the other's place is dropped, in derivatives, too."""

    def mean_log(gain):
        layers = [
            gaussian(),
            LayerNorm(gain),
            Activation("tanh"),
            gaussian(),
            LayerNorm(gain, 0.5),
            Residual([gaussian()]),
        ]
        return jfree.jacobian_spectrum(jfree.Network(N, layers)).mean_log()

    step = 1e-5
    difference = (mean_log(1.2 + step) - mean_log(1.2 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(mean_log)(1.2), difference, rtol=1e-6)


@pytest.mark.parametrize(
    ("activation", "weights", "narrow", "scale"),
    [("hard_tanh", "orthogonal", 0.3, 3.0), ("relu", "gaussian", 0.1, 1.2)],
)
def test_logs_of_strong_blocks_in_blocks(activation, weights, narrow, scale):
    """Their units die, and poles of what their terms share lie close by."""
    inner = Residual(
        [Dense(narrow, weights, 1.5, 0.1), Activation(activation), Dense(1.0, weights)],
        scale=scale,
    )
    net = jfree.Network(1.0, [Repeat(3, [Residual([inner, Dense(1.0, weights)], scale=scale)])])
    spectrum = jfree.jacobian_spectrum(net)
    x = np.geomspace(1e-16, 1e8, 3000)
    mass = np.diff(spectrum.cdf(x))
    log_x = np.log(x[1:] * x[:-1]) / 2
    mean = np.sum(mass * log_x)
    np.testing.assert_allclose(spectrum.mean_log(), mean, atol=0.002)
    np.testing.assert_allclose(spectrum.log_variance(), np.sum(mass * (log_x - mean) ** 2), rtol=0.01)


@pytest.mark.parametrize("scale", [1e-3, 1e-2])
def test_logs_of_weak_blocks_in_blocks(scale):
    """To leading order `log t` varies by twice the mean square of the branch, here `scale^2 (1 + scale^2)`."""
    inner = Residual([Dense(1.0)], scale=scale)
    spectrum = jfree.jacobian_spectrum(jfree.Network(1.0, [Residual([inner, Dense(1.0, "gaussian")], scale=scale)]))
    np.testing.assert_allclose(spectrum.mean_log(), 0, atol=1e-10)
    np.testing.assert_allclose(spectrum.log_variance(), 2 * scale**2 * (1 + scale**2), rtol=5e-5)


def test_tuning_and_equinox():
    net = jfree.Network(N, [pre_norm(1, "tanh", scale=3.0), pre_norm(1, "tanh", scale=3.0)])
    where = lambda n: [layer.scale for layer in n.layers]  # noqa: E731
    result = jfree.tune(net, jfree.objectives.isometry, where=where, steps=30, progress=False)
    assert result.history[-1] < 0.5 * result.history[0]
    assert isinstance(result.net, jfree.Network)
    model = jfree.to_equinox(result.net, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (N,))
    values = jnp.linalg.svd(jax.jacobian(model)(x), compute_uv=False)
    assert jfree.empirical.ks_distance(values**2, jfree.jacobian_spectrum(result.net)) < 0.03


def test_it_prints():
    assert str(jfree.Network(N, [gaussian(), Activation("relu"), Dropout(0.5), pre_norm(1, "tanh")])) == (
        "Network, 4 layers, width 300, q0 = 1\n"
        "  layer  kind\n"
        "  1      dense       width 300, gaussian, sigma_w 1, sigma_b 0\n"
        "  2      activation  relu\n"
        "  3      dropout     rate 0.5\n"
        "  4      residual    RMS norm gain 1 > dense width 300, gaussian, sigma_w 1, sigma_b 0 > activation tanh > "
        "dense width 300, gaussian, sigma_w 1, sigma_b 0"
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([], "must not be empty"),
        (["tanh"], "`layers` must be a sequence of layers"),
        ([Activation("tanh")], "must follow weights"),
        ([Dense(1), Activation("tanh"), Activation("tanh")], "must follow weights"),
        ([Dense(1), LayerNorm(1.0, 0.5), Activation("tanh")], "must follow weights"),
        ([Residual([Dense(1)]), Activation("tanh")], "must follow weights"),
        ([Dense(1), Activation("tanh"), Residual([Dense(1)]), Activation("tanh")], "must follow weights"),
        ([Dense(1), Residual([Dense(1), Activation("tanh")]), Activation("tanh")], "must follow weights"),
        ([Dense(1), Dropout(0.1), Dropout(0.1)], "`Dropout` must stand"),
        ([Dense(1), Activation("tanh"), RMSNorm(), Dropout(0.1)], "`Dropout` must stand"),
        ([Residual([Dense(2)])], "must end with the width they begin with"),
        ([Residual([Patches(1, 2), Dense(1)])], "`layers` of a `Residual` must not have `Patches` without `positions`"),
        ([Patches(4, 2), Conv(4, 3, positions=5)], "`positions` must be given to all"),
        ([Parallel([[Dense(2)], [Dense(3)]])], "`branches` of a `Parallel` must end with one width, 2, got 3"),
        ([Parallel([[Dense(2)], [Dense(2)]], skip=1.0)], "must end with the width they begin with, 1, got 2"),
        ([Dense(1), Parallel([[Activation("tanh"), Dense(1)]])], "must follow weights"),
        ([Residual([Dense(2), Activation("tanh"), Residual([Dense(1)]), Dense(1)])], "must end with the width"),
    ],
)
def test_layers_that_do_not_fit(layers, named):
    with pytest.raises(ValueError, match=named):
        jfree.Network(1, layers)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Dense(0), "`width` must be positive"),
        (lambda: Dense(1, "uniform"), "`weights` must be one of"),
        (lambda: Dense(1, sigma_b=-1), "`sigma_b` must be nonnegative"),
        (lambda: Activation("tangens"), "`activation` must be one of"),
        (lambda: RMSNorm(-1), "`gain` must be positive"),
        (lambda: LayerNorm(1, float("nan")), "`offset` must be finite"),
        (lambda: Scale(0), "`factor` must be finite and not 0"),
        (lambda: Dropout(1.0), "`rate` must be at least 0 and less than 1"),
        (lambda: Residual([RMSNorm()]), "must have weights"),
        (lambda: Parallel([]), "`branches` must be a sequence of sequences"),
        (lambda: Parallel([[Dense(1)], [RMSNorm()]]), "`branches` of a `Parallel` must have weights"),
        (lambda: Parallel([Dense(1)]), "`branches` must be a sequence of layers"),  # pyright: ignore[reportArgumentType]
        (lambda: Parallel([[Dense(1)]], float("nan")), "`skip` must be finite"),
        (lambda: Repeat(0, [Dense(1)]), "`number` must be"),
        (lambda: Repeat(2, []), "must not be empty"),
        (lambda: Repeat(2, [1]), "`layers` must be a sequence of layers"),  # pyright: ignore[reportArgumentType]
        (lambda: Patches(8, (2, 0)), "`patch` must be"),
        (lambda: Residual([Dense(1)], skip=0), "`skip` must be finite and not 0"),
    ],
)
def test_impossible_arguments(make, named):
    with pytest.raises(ValueError, match=named):
        make()
