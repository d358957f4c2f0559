import os
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import num_compiled

import jfree
from jfree import constraints, objectives
from jfree._spectra import coarse_curve
from jfree._spectrum.moments import log_moments
from jfree.empirical import jacobian_eigenvalues

FULL = bool(os.environ.get("JFREE_FULL"))


def deep_tanh(depth, sigma_w):
    return jfree.MLP(np.ones(depth + 1), "tanh", "orthogonal", np.full(depth, sigma_w))


def test_isometry_closed_forms():
    square = jfree.MLP([1.0, 1.0], "linear", "gaussian")  # log t has mean -1 and variance 1 + pi^2 / 3
    np.testing.assert_allclose(jfree.jacobian_spectrum(square).log_variance(), 1 + np.pi**2 / 3, rtol=1e-10)
    np.testing.assert_allclose(objectives.isometry(square), (2 + np.pi**2 / 3) / 4, rtol=1e-10)
    scaled = jfree.MLP([1.0, 1.0, 1.0], "linear", "orthogonal", 1.5)
    np.testing.assert_allclose(objectives.isometry(scaled), np.log(1.5**2) ** 2, rtol=1e-9)
    projection = jfree.MLP([4.0, 1.0], "linear", "orthogonal")  # three quarters of the mass are at zero
    np.testing.assert_allclose(objectives.isometry(projection), 0, atol=1e-9)


@pytest.mark.parametrize("activation", ["tanh", "gelu", "selu", "sin"])
def test_coarse_laws_are_enough_for_weighted_moments(activation):
    net = jfree.MLP([1.0, 2.0, 1.5, 1.0], activation, "orthogonal", 1.6, 0.2)
    whole, coarse = jfree.jacobian_spectrum(net).curve, coarse_curve(net)
    assert coarse.num_points < 0.6 * whole.num_points
    np.testing.assert_allclose(log_moments(coarse, 0.5), log_moments(whole, 0.5), rtol=1e-8)


@pytest.mark.parametrize(("activation", "sigma_w"), [("tanh", 1.3), ("tanh", 2.0), ("tanh", 4.0), ("silu", 1.3)])
def test_coarse_laws_are_enough_where_the_bulk_reaches_down_to_zero(activation, sigma_w):
    def mean_square_log(log_sigma, curve_of):
        net = jfree.MLP(np.ones(4), activation, "orthogonal", jnp.exp(log_sigma), 0.1)
        mean, variance = log_moments(curve_of(net), 0.5)
        return 0.25 * (jnp.square(mean) + variance)

    def whole_curve(net):
        return jfree.jacobian_spectrum(net).curve

    (coarse, its_slope), (whole, slope) = (
        jax.value_and_grad(mean_square_log)(np.log(sigma_w), curve_of) for curve_of in (coarse_curve, whole_curve)
    )
    np.testing.assert_allclose(coarse, whole, rtol=1e-6)
    np.testing.assert_allclose(its_slope, slope, rtol=1e-5)


@pytest.mark.parametrize("depth", [1, 30, 300])
def test_log_moments_of_wide_spectra_are_those_of_products_of_square_gaussian_matrices(depth):
    """The largest eigenvalue is about `e^depth` times as far from the mean logarithm as singularities usually are."""
    curve = jfree.jacobian_spectrum(jfree.MLP(np.ones(depth + 1), "linear", "gaussian")).curve
    exact = -depth, depth**2 + depth * np.pi**2 / 3
    np.testing.assert_allclose(log_moments(curve), exact, rtol=1e-11)


def test_weighted_isometry_is_that_of_the_quantiles():
    """Of a sum over quantiles, weighted by singular values; square Gaussian weights have a closed form, too."""
    square = jfree.MLP([1.0, 1.0], "linear", "gaussian")
    s = (np.arange(200_000) + 0.5) / 200_000 * 2  # of the quarter circle
    weight = s * np.sqrt(4 - s**2)
    mean = np.sum(weight * 2 * np.log(s)) / np.sum(weight)
    variance = np.sum(weight * np.square(2 * np.log(s) - mean)) / np.sum(weight)
    np.testing.assert_allclose(objectives.weighted_isometry(square), (mean**2 + variance) / 4, rtol=1e-6)
    slope = jfree.MLP([1.0, 1.0], [jfree.activations.LeakyReLU(0.1)], "orthogonal")
    np.testing.assert_allclose(objectives.weighted_isometry(slope), 0.1 / 1.1 * np.log(0.1) ** 2, rtol=1e-6)
    for net in (jfree.MLP([1.0, 2.0, 1.0, 3.0], "tanh", "gaussian", 1.3), jfree.ResNet(5, "tanh", "gaussian", 0.5)):
        spectrum = jfree.jacobian_spectrum(net)
        zero, p = spectrum.mass_at_zero(), (jnp.arange(400) + 0.5) / 400
        log_s = 0.5 * np.log(spectrum.quantile(zero + (1 - zero) * p))
        expected = np.average(np.square(log_s), weights=np.exp(log_s))
        np.testing.assert_allclose(objectives.weighted_isometry(net), expected, rtol=0.01)


def test_weighted_isometry_where_units_are_nearly_dead():
    """Differences of the singular values that matter, of any dtype; exactly 0 of an isometry."""
    objective = lambda s: objectives.weighted_isometry(jfree.MLP(np.ones(21), "gelu", "orthogonal", s, 0.1))  # noqa: E731
    step = 1e-5
    estimate = (objective(1.5 + step) - objective(1.5 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(objective)(1.5), estimate, rtol=1e-6)
    deep = jfree.MLP(np.ones(101, np.float32), "gelu", "orthogonal", np.float32(1.5), np.float32(0.1))
    double = jax.tree.map(lambda x: x.astype(float), deep)
    np.testing.assert_allclose(objectives.weighted_isometry(deep), objectives.weighted_isometry(double), rtol=1e-3)
    for objective in (objectives.isometry, objectives.weighted_isometry):
        assert 0 <= objective(jfree.MLP(np.ones(4), "linear", "orthogonal")) < 1e-20


def test_tuning_finds_where_gradients_survive():
    """Twenty SiLU layers: the plain mean square prefers singular values of 1e-4, as long as they are alike."""
    start = jfree.MLP(np.ones(21), "silu", "orthogonal", 1.0)
    with pytest.warns(UserWarning, match="fades"):
        jfree.tune(start, steps=1, progress=False)
    result = jfree.tune(start, steps=60, progress=False)
    assert result.net.propagate().q[-1] > 1e-2
    growth = float(jnp.sum(jnp.log(result.net.propagate().chi)))
    assert -8 < growth < 3  # of the mean square of a gradient, over all layers; at the start it is -25
    assert float(jnp.sum(jnp.log(start.propagate().chi))) < -20


@pytest.mark.usefixtures("unchecked")
def test_nonlinearity():
    q = np.asarray([0.01, 1.0])
    tanh = jfree.MLP(np.ones(3), "tanh", "orthogonal", 1.0, sigma_b=np.sqrt(q), q0=1e-12)
    assert jfree.nonlinearity(tanh)[-1] < 1e-12  # the last layer is linear
    np.testing.assert_allclose(jfree.nonlinearity(tanh)[0], 2 / 3 * 0.01**2, rtol=0.15)
    relu = jfree.nonlinearity(jfree.MLP(np.ones(3), "relu", "gaussian"))[0]
    np.testing.assert_allclose(relu, 1 - 0.25 / (0.5 - 0.5 / np.pi), rtol=1e-3)
    kept = jfree.tune(deep_tanh(20, 1.5), steps=100, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its signal may fade
        lost = jfree.tune(deep_tanh(20, 1.5), steps=100, progress=False, nonlinearity=0)
    assert isinstance(kept.net, jfree.MLP)
    assert isinstance(lost.net, jfree.MLP)
    assert lost.objective < kept.objective < lost.history[0]
    assert jnp.sum(jfree.nonlinearity(lost.net)) < 0.03
    assert jnp.min(jfree.nonlinearity(kept.net)[:-1]) > 0.02  # 0.025 each
    more = jfree.tune(deep_tanh(20, 1.5), steps=100, progress=False, nonlinearity=1.0)
    assert isinstance(more.net, jfree.MLP)
    assert jnp.min(jfree.nonlinearity(more.net)[:-1]) > 0.9 / 19
    with pytest.raises(ValueError, match="`nonlinearity`"):
        jfree.tune(deep_tanh(2, 1.5), nonlinearity=-1.0)
    with pytest.raises(ValueError, match="`net`"):
        jfree.nonlinearity(jfree.ResNet(3))  # pyright: ignore[reportArgumentType]


def test_several_inputs():
    net = jfree.MLP(np.ones(6), "tanh", "orthogonal", 1.5)
    q0 = np.asarray([0.1, 1.0, 4.0])
    at = [float(objectives.isometry(eqx.tree_at(lambda n: n.q0, net, jnp.asarray(q)))) for q in q0]
    np.testing.assert_allclose(objectives.over_inputs(objectives.isometry, q0)(net), np.mean(at), rtol=1e-10)
    np.testing.assert_allclose(objectives.over_inputs(objectives.isometry, q0, worst=True)(net), max(at), rtol=1e-10)
    result = jfree.tune(net, objectives.isometry, steps=5, q0=q0, progress=False)
    np.testing.assert_allclose(result.history[0], np.mean(at), rtol=1e-10)
    with pytest.raises(ValueError, match="`q0`"):
        jfree.tune(net, q0=[1.0, -1.0])


def test_stability_and_warnings():
    unstable = jfree.MLP(np.ones(41), "silu", "orthogonal", 1.8201, 0.1)
    elasticity = unstable.propagate().elasticity[0]
    np.testing.assert_allclose(objectives.stability(unstable), np.log(elasticity) ** 2, rtol=1e-10)
    assert objectives.stability(jfree.MLP(np.ones(41), "tanh", "orthogonal", 1.05, 0.1)) == 0
    grad = jax.grad(lambda s: objectives.stability(jfree.MLP(np.ones(11), "silu", "orthogonal", s, 0.1)))(1.8)
    assert np.isfinite(grad)
    with pytest.warns(UserWarning, match="fades"):
        jfree.tune(jfree.MLP(np.ones(31), "tanh", "orthogonal", 0.5), steps=1, progress=False)
    with pytest.warns(UserWarning, match="explodes"):
        jfree.tune(jfree.MLP(np.ones(31), "relu", "orthogonal", 2.0), steps=1, progress=False)


@pytest.mark.parametrize(
    "net",
    [
        jfree.MLP([1.0, 2.0, 3.0], "hard_tanh", "gaussian", 1.3),
        jfree.MLP([1.0, 1.0, 1.0, 1.0], "tanh", "orthogonal", 2.0),
        jfree.ResNet(3, "relu", "gaussian", 0.7),
    ],
)
def test_log_variance_is_that_of_the_quantiles(net):
    spectrum = jfree.jacobian_spectrum(net)
    zero = spectrum.mass_at_zero()
    nodes, weights = np.polynomial.legendre.leggauss(80)
    s, half = 18 * nodes, 18 * weights  # p = sigmoid(s)
    p, density = jax.nn.sigmoid(s), jax.nn.sigmoid(s) * jax.nn.sigmoid(-s)
    log_t = np.log(spectrum.quantile(zero + (1 - zero) * p))
    kept = np.isfinite(log_t)
    mean = np.sum((half * density * log_t)[kept])
    variance = np.sum((half * density * np.square(log_t - mean))[kept])
    np.testing.assert_allclose(spectrum.mean_log(), mean, atol=1e-3)
    np.testing.assert_allclose(spectrum.log_variance(), variance, rtol=2e-3)


def test_log_variance_of_a_fisher_spectrum():
    spectrum = jfree.fisher_spectrum(jfree.MLP([1.0, 1.0, 1.0, 1.0], "hard_tanh", "gaussian", 1.3, 0.1))
    p = (np.arange(400) + 0.5) / 400
    np.testing.assert_allclose(spectrum.log_variance(), np.var(np.log(spectrum.quantile(p))), rtol=2e-3)


def test_isometry_of_two_slopes_far_apart():
    """One orthogonal layer: log t is 0 or log slope^2, with probability one half each."""
    for slope, accuracy in ((0.1, 1e-9), (0.01, 1e-5), (0.001, 1e-3)):
        net = jfree.MLP([1.0, 1.0], [jfree.activations.LeakyReLU(slope)], "orthogonal")
        np.testing.assert_allclose(objectives.isometry(net), np.log(slope) ** 2 / 2, rtol=accuracy)
    deep = jfree.MLP(np.ones(11), "leaky_relu", "orthogonal")
    assert np.isfinite(objectives.isometry(deep))


@pytest.mark.parametrize(("dtype", "depth"), [(np.float32, 50), (np.float64, 300)])
@pytest.mark.parametrize(("activation", "sigma_w"), [("hard_tanh", 0.5), ("tanh", 0.5), ("gelu", 1.0), ("relu", 0.5)])
def test_variances_that_decay_out_of_range(dtype, depth, activation, sigma_w):
    """In the linear regime every layer contributes the same: the mean of log t falls by log chi each."""
    net = jfree.MLP(np.ones(depth + 1, dtype), activation, "orthogonal", sigma_w)
    value, grad = jax.jit(jax.value_and_grad(objectives.isometry))(net)
    half = depth // 2
    less = objectives.isometry(jfree.MLP(np.ones(half + 1, dtype), activation, "orthogonal", sigma_w))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(grad))
    np.testing.assert_allclose(value / less, (depth / half) ** 2, rtol=0.05)


def test_moments_beyond_the_range_of_floats():
    for sigma_w in (0.5, 2.0):
        net = jfree.MLP(np.ones(601), "linear", "orthogonal", sigma_w)
        log_mean = 1200 * np.log(sigma_w)
        np.testing.assert_allclose(objectives.moments(1.0, 1.0)(net), 5 * log_mean**2, rtol=1e-12)


def test_objectives_are_read_off_spectra():
    net = jfree.MLP([1.0, 2.0, 3.0], "hard_tanh", "gaussian", 1.3)
    spectrum = jfree.jacobian_spectrum(net)
    np.testing.assert_allclose(objectives.condition_number(net), spectrum.condition_number(), rtol=1e-12)
    lower, upper = jfree.fisher_spectrum(net).edges()
    np.testing.assert_allclose(objectives.fisher_condition(net), upper / lower, rtol=1e-12)
    low, high = spectrum.quantile(spectrum.mass_at_zero() + (1 - spectrum.mass_at_zero()) * jnp.asarray([0.1, 0.9]))
    np.testing.assert_allclose(objectives.log_spread(0.1, 0.9)(net), 0.5 * jnp.log(high / low), rtol=1e-10)
    means = [spectrum.moment(k) for k in (1, 2, 3)]
    expected = sum(np.log(m / t) ** 2 for m, t in zip(means, (1, 2, 3), strict=True))
    np.testing.assert_allclose(objectives.moments(1.0, 2.0, 3.0)(net), expected, rtol=1e-8)
    both = objectives.weighted((2.0, objectives.isometry), (0.5, objectives.condition_number))
    np.testing.assert_allclose(
        both(net), 2 * objectives.isometry(net) + 0.5 * objectives.condition_number(net), rtol=1e-12
    )
    goal = objectives.target(objectives.condition_number, 2.0)
    np.testing.assert_allclose(goal(net), np.log(spectrum.condition_number() / 2) ** 2, rtol=1e-12)


def test_finite_where_the_bulk_reaches_zero():
    net = jfree.MLP([1.0, 1.0, 1.0], "relu", "gaussian", 1.3)
    for objective in (objectives.isometry, objectives.condition_number, objectives.log_spread()):
        value, grad = eqx.filter_value_and_grad(objective)(net)
        assert np.isfinite(value)
        assert np.isfinite(grad.sigma_w)


ALL_OBJECTIVES = (
    objectives.isometry,
    objectives.condition_number,
    objectives.log_spread(),
    objectives.moments(1.0, 2.0, 3.0),
    objectives.target(objectives.condition_number, 2.0),
    objectives.weighted((2.0, objectives.isometry), (0.1, objectives.condition_number)),
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlp", "smooth", "residual"] if FULL else ["mlp"])
def test_second_derivatives_of_objectives(kind):
    """All at once, along one direction: forward over forward, and forward over reverse of their sum."""
    net = {
        "mlp": jfree.MLP([1.0, 2.0, 3.0], "hard_tanh", "gaussian", jnp.asarray([1.3, 1.1]), 0.1),
        "smooth": jfree.MLP([1.0, 2.0, 3.0], "tanh", ["orthogonal", "gaussian"], jnp.asarray([1.3, 1.1]), 0.1),
        "residual": jfree.ResNet(2, "hard_tanh", "gaussian", jnp.asarray([0.5, 0.7])),
    }[kind]
    wanted = ALL_OBJECTIVES if FULL else (objectives.isometry, objectives.moments(1.0, 2.0, 3.0))
    wanted += (objectives.fisher_condition,) if FULL and kind == "mlp" else ()
    leaves, static = eqx.partition(net, eqx.is_inexact_array)
    direction = jax.tree.map(lambda x: x * (1 + jnp.arange(x.size).reshape(x.shape)) / 10, leaves)

    def values(leaves):
        return jnp.stack([objective(eqx.combine(leaves, static)) for objective in wanted])

    def moved(h):
        return jax.tree.map(lambda x, d: x + h * d, leaves, direction)

    def forward(leaves):
        return jax.jvp(values, (leaves,), (direction,))

    h = 1e-4
    first = jax.jit(forward)
    (low, low_slope), (high, high_slope) = first(moved(-h)), first(moved(h))
    (_, slope), (_, curvature) = jax.jit(lambda leaves: jax.jvp(forward, (leaves,), (direction,)))(leaves)
    np.testing.assert_allclose(slope, (high - low) / (2 * h), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(curvature, (high_slope - low_slope) / (2 * h), rtol=1e-5, atol=1e-6)

    gradient = jax.grad(lambda leaves: jnp.sum(values(leaves)))
    _, change = jax.jit(lambda leaves: jax.jvp(gradient, (leaves,), (direction,)))(leaves)
    products = jax.tree.map(lambda c, d: jnp.sum(c * d), change, direction)
    np.testing.assert_allclose(sum(jax.tree.leaves(products)), jnp.sum(curvature), rtol=1e-7)


@pytest.mark.slow
def test_chaotic_network_becomes_isometric():
    optimizer = optax.lion(optax.cosine_decay_schedule(0.1, 60))
    net = deep_tanh(20, 1.5)
    options = {"optimizer": optimizer, "steps": 60, "stop_at": 1e-3, "progress": False, "nonlinearity": 0}
    result = jfree.tune(net, objectives.isometry, **options)
    spectrum = jfree.jacobian_spectrum(result.net)
    levels = jnp.asarray([0.05, 0.95])
    low, high = np.sqrt(spectrum.quantile(levels))
    assert 0.8 < low < high < 1.25
    eigenvalues = jacobian_eigenvalues(result.net, jax.random.key(0), width=200)
    np.testing.assert_allclose(np.sqrt(np.quantile(eigenvalues, levels)), [low, high], rtol=0.05)


@pytest.mark.slow
def test_residual_networks_find_the_scaling_law():
    """Residual networks of the same condition number have the same `sigma_w^2 L`."""
    products = []
    for depth in (25, 50, 100):
        result = jfree.tune(
            jfree.ResNet(depth, "relu", "gaussian", 1.0),
            objectives.target(objectives.condition_number, 4.0),
            optimizer=optax.adam(optax.cosine_decay_schedule(0.2, 150), b2=0.9),
            steps=150,
            stop_at=1e-8,
            progress=False,
        )
        assert isinstance(result.net, jfree.ResNet)
        np.testing.assert_allclose(objectives.condition_number(result.net), 4, rtol=1e-2)
        products.append(float(result.net.sigma_w) ** 2 * depth)
    assert max(products) < 1.1 * min(products)


def test_width_profile_keeps_its_budget():
    net = jfree.MLP([20.0, 50.0, 11.0, 30.0, 10.0], "linear", "gaussian")
    budget = float(jnp.sum(net.widths[1:] * net.widths[:-1]))
    result = jfree.tune(
        net,
        objectives.isometry,
        where=lambda n: n.widths,
        steps=30,
        constraint=constraints.parameter_budget(budget, 20, 10),
        progress=False,
    )
    assert isinstance(result.net, jfree.MLP)
    assert isinstance(result.rounded, jfree.MLP)
    widths = result.net.widths
    np.testing.assert_allclose(jnp.sum(widths[1:] * widths[:-1]), budget, rtol=1e-12)
    np.testing.assert_array_equal(widths[jnp.asarray([0, -1])], [20, 10])
    assert result.objective < 0.9 * result.history[0]
    np.testing.assert_array_equal(result.rounded.widths, np.round(widths))
    assert result.rounded_objective is not None
    np.testing.assert_allclose(result.rounded_objective, objectives.isometry(result.rounded), rtol=1e-12)


def test_constraints():
    net = jfree.MLP([1.0, 2.0, 1.0, 1.0], ("tanh", "hard_tanh", "linear"), "gaussian", [1.5, 1.2, 0.7], 0.3, 2.0)
    np.testing.assert_allclose(jfree.propagate(constraints.fixed_variance(0.4)(net)).q, 0.4, rtol=1e-10)
    np.testing.assert_allclose(jfree.propagate(constraints.criticality()(net)).chi, 1, rtol=1e-8)
    field = jfree.propagate(constraints.criticality(0.4)(jfree.MLP(np.ones(4), "tanh", q0=0.1)))
    np.testing.assert_allclose(field.chi, 1, rtol=1e-8)
    np.testing.assert_allclose(field.q[:3], 0.4, rtol=1e-8)
    for some in (net, jfree.ResNet(4, "tanh", sigma_w=0.3)):
        scaled = constraints.total_variance(2.5)(some)
        layers = 3 if isinstance(some, jfree.MLP) else 4
        total = jnp.sum(jnp.square(jnp.broadcast_to(scaled.sigma_w, layers)))  # pyright: ignore
        np.testing.assert_allclose(total, 2.5, rtol=1e-12)
    grad = eqx.filter_grad(lambda n: objectives.isometry(constraints.criticality()(n)))(net)
    moved = [
        objectives.isometry(constraints.criticality()(eqx.tree_at(lambda n: n.sigma_b, net, net.sigma_b + d)))
        for d in (1e-5, -1e-5)
    ]
    np.testing.assert_allclose(grad.sigma_b, (moved[0] - moved[1]) / 2e-5, rtol=1e-6)


def test_several_leaves_early_stop_and_history():
    net = jfree.MLP(np.ones(3), jfree.activations.LeakyReLU(0.2), "gaussian", 1.7, 0.1)
    leaves = lambda n: (n.sigma_w, n.activation.negative_slope)  # noqa: E731
    enough = 0.9 * float(objectives.isometry(net))
    result = jfree.tune(net, objectives.isometry, where=leaves, steps=40, stop_at=enough, progress=False)
    assert isinstance(result.net, jfree.MLP)
    history = np.asarray(result.history)
    assert history.shape == (41,)
    steps = int(np.sum(np.isfinite(history)))
    assert steps < 41
    assert history[steps - 1] <= enough < history[0]
    np.testing.assert_allclose(result.objective, history[steps - 1])
    np.testing.assert_allclose(objectives.isometry(result.net), result.objective, rtol=1e-9)
    assert result.net.sigma_b == net.sigma_b


def test_batch_of_starting_points():
    def start(sigma_w):
        return jfree.MLP(np.ones(4), "hard_tanh", "orthogonal", sigma_w)

    def tuned(sigma_w):
        return jfree.tune(start(sigma_w), steps=12, progress=False).history

    starts = jnp.asarray([0.7, 1.6])
    batch = jax.vmap(tuned)(starts)
    alone = jnp.stack([tuned(s) for s in starts])
    np.testing.assert_allclose(batch, alone, rtol=1e-7)


def test_batch_over_what_is_not_tuned():
    def tuned(q0, value):
        net = jfree.MLP(np.ones(3), "hard_tanh", "orthogonal", 0.7, q0=q0)
        return jfree.tune(net, objectives.target(objectives.moments(1.0), value), steps=12, progress=False).history

    q0, value = jnp.asarray([0.5, 2.0]), jnp.asarray([0.1, 0.2])
    batch = jax.vmap(tuned)(q0, value)
    np.testing.assert_allclose(batch, jnp.stack([tuned(*pair) for pair in zip(q0, value, strict=True)]), rtol=1e-7)


@pytest.mark.parametrize("optimizer", [optax.lbfgs(), optax.polyak_sgd(1.0)])
def test_optimizers_that_ask_for_more_than_gradients(optimizer):
    net = jfree.MLP(np.ones(3), "linear", "orthogonal", [0.5, 3.0])
    result = jfree.tune(net, objectives.moments(1.0), optimizer=optimizer, steps=20, progress=False)
    assert result.objective < 1e-3 * result.history[0]


def test_an_optimizer_is_compiled_once():
    objective = objectives.moments(1.0)

    def tuned(sigma_w, optimizer):
        net = jfree.MLP(np.ones(3), "linear", "orthogonal", sigma_w)
        return num_compiled(lambda: jfree.tune(net, objective, optimizer=optimizer, steps=12))

    tuned(1.5, optax.sgd(0.2))  # whatever else is small and compiled on the way
    another = optax.sgd(0.1)
    assert 0 < tuned(1.5, another) < 10
    assert tuned(0.7, another) == 0


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments():
    net = jfree.MLP(np.ones(3), "relu")
    with pytest.raises(ValueError, match="`steps`"):
        jfree.tune(net, steps=0)
    with pytest.raises(ValueError, match="`where`"):
        jfree.tune(net, where=lambda n: n.width)
    for where in (lambda n: n.weights, lambda n: n.widths[1], lambda n: n.activations[0].gain, lambda n: n.weights[5]):
        with pytest.raises(ValueError, match="`where`"):
            jfree.tune(net, where=where)
    for objective in (lambda n: n.widths, lambda n: 1, lambda n: None):
        with pytest.raises(ValueError, match="`objective`"):
            jfree.tune(net, objective)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`optimizer`"):
        jfree.tune(net, optimizer=0.1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`constraint`"):
        jfree.tune(net, constraint=lambda n: None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`objective`"):
        jfree.tune(net, lambda n: jnp.log(-jnp.max(n.propagate().q)), progress=False)
    with pytest.raises(ValueError, match="gradient at the start"):
        jfree.tune(net, lambda n: jnp.sqrt(0 * jnp.max(n.propagate().q)), progress=False)
    with pytest.raises(ValueError, match="`net`"):
        jfree.tune("net")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`p_low`"):
        objectives.log_spread(0.9, 0.1)
    with pytest.raises(ValueError, match="`targets`"):
        objectives.moments()
    for value in (-1.0, np.inf, "low"):
        with pytest.raises(ValueError, match="`value`"):
            objectives.target(objectives.isometry, value)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`terms`"):
        objectives.weighted()
    with pytest.raises(ValueError, match="`terms`"):
        objectives.weighted((1.0,))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`num_weights`"):
        constraints.parameter_budget(0.0, 1, 1)
    with pytest.raises(ValueError, match="`num_weights`"):
        constraints.parameter_budget("many", 1, 1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`fixed_variance`"):
        constraints.fixed_variance(1.0)(jfree.ResNet(2))
    with pytest.raises(ValueError, match="not available"):
        objectives.fisher_condition(jfree.ResNet(2))
