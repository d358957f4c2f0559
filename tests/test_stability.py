"""Whether a network's signal is stable, what finite widths make of it, and logarithms that are known exactly."""

import itertools
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_activation, MANY_SLOPES, random_mlp, TWO_SLOPES
from scipy import integrate

import jfree

ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: np.asarray(jfree.activations.GELU()(jnp.asarray(x))),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def _sampled_log_q(net, activation, num_samples, seed=0):
    """`log q_L` of finite networks: a layer sees only the norm of the one before, so that no matrices are needed."""
    rng = np.random.default_rng(seed)
    sigma_w, sigma_b = (np.asarray(scale) for scale in net.scales)
    widths = [int(n) for n in net.widths]
    square = np.full(num_samples, float(net.q0))
    for layer, (num_in, num_out) in enumerate(itertools.pairwise(widths[:-1])):
        normal = rng.normal(size=(num_samples, max(num_in, num_out)))
        if isinstance(net.weights[layer], jfree.Orthogonal):
            normal *= (normal.shape[1] / np.sum(normal**2, axis=1, keepdims=True)) ** 0.5
        h = sigma_w[layer] * np.sqrt(square)[:, None] * normal[:, :num_out]
        h = h + sigma_b[layer] * rng.normal(size=h.shape)
        phi = ACTIVATIONS[activation](h)
        square = np.var(phi, axis=1) if net.weights[layer + 1].centred else np.mean(phi**2, axis=1)
    return np.log(sigma_w[-1] ** 2 * square + sigma_b[-1] ** 2)


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal", "centred_gaussian", "centred_orthogonal"])
@pytest.mark.parametrize(
    ("activation", "sigma_w", "sigma_b", "depth", "width"),
    [
        ("tanh", 1.5, 0.1, 20, 64),
        ("relu", 2**0.5, 0.0, 8, 256),
        ("gelu", 1.9, 0.0, 5, 256),
        ("silu", 1.4, 1.0, 10, 256),
    ],
)
@pytest.mark.parametrize("shape", ["square", "alternating"])
def test_signals_of_samples_differ_as_predicted(weights, activation, sigma_w, sigma_b, depth, width, shape):
    widths = [width // (2 if shape == "alternating" and k % 2 else 1) for k in range(depth + 1)]
    net = jfree.MLP(widths, activation, weights, sigma_w=sigma_w, sigma_b=sigma_b)
    log_q = _sampled_log_q(net, activation, 1500)
    np.testing.assert_allclose(jfree.signal_spread(net), log_q.std(), rtol=0.1)
    np.testing.assert_allclose(jfree.propagate(net).q[-1], np.exp(np.median(log_q)), rtol=0.2)


@pytest.mark.parametrize("weights", ["centred_gaussian", "centred_orthogonal"])
def test_centred_weights(weights):
    """Their rows sum to 0; what they see of a signal is its variance; and derivatives know of both."""
    gain, chi, chi_q = jfree.gain("relu", centred=True)
    net = jfree.MLP([400, 600, 300, 400], "relu", weights, sigma_w=gain)
    field = jfree.propagate(net)
    np.testing.assert_allclose(field.q[1:], field.q[0], rtol=1e-12)
    np.testing.assert_allclose((field.chi[0], field.chi_q[0]), (chi, chi_q), rtol=1e-12)
    layers = jfree.sample_weights(net, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (400,))
    for (weight, _), q in zip(layers, field.q, strict=True):
        np.testing.assert_allclose(jnp.sum(weight, 1), 0, atol=1e-12)
        np.testing.assert_allclose(jnp.mean(jnp.square(weight)) * weight.shape[1], gain**2, rtol=0.02)
        x = weight @ x
        np.testing.assert_allclose(jnp.mean(jnp.square(x)), q, rtol=0.25)
        x = jax.nn.relu(x)
    eigenvalues = jfree.empirical.jacobian_eigenvalues(net, jax.random.key(2), num_samples=8)
    assert jfree.empirical.ks_distance(eigenvalues, jfree.jacobian_spectrum(net)) < 0.01

    def last(sigma_w):
        return jfree.propagate(eqx.tree_at(lambda n: n.sigma_w, net, sigma_w)).q[-1]

    step = 1e-5
    difference = (last(gain + step) - last(gain - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(last)(gain), difference, rtol=1e-6)
    blocks = jfree.ResNet(2, "sigmoid", weights, sigma_w=1.3, q0=1.0, mean0=1.0)
    assert jfree.propagate(blocks).q[0] < 1e-12


def test_chi_q_and_elasticity_are_derivatives():
    sigma_w = np.linspace(1.2, 1.8, 6)
    net = jfree.MLP([1] * 7, ["tanh", "relu", "gelu", "sigmoid", "silu", "tanh"], sigma_w=sigma_w, sigma_b=0.2)
    field = jfree.propagate(net)

    def tail(log_q, layer):
        """`log q_L` from `q` of one layer on."""
        phi2 = [a.second_moment for a in net.activations]
        q = jnp.exp(log_q)
        for k in range(layer, 5):
            q = sigma_w[k + 1] ** 2 * phi2[k](q) + 0.04
        return jnp.log(q)

    elasticity = [jax.grad(tail)(jnp.log(field.q[layer]), layer) for layer in range(6)]
    np.testing.assert_allclose(field.elasticity, elasticity, rtol=1e-8)
    passed_on = field.chi_q[:-1] * field.q[:-1] / field.q[1:]
    np.testing.assert_allclose(np.cumprod(passed_on[::-1])[::-1], field.elasticity[:-1], rtol=1e-12)


def test_elasticity_of_residual_networks_is_that_of_their_stream():
    net = jfree.ResNet(5, "tanh", "gaussian", sigma_w=1.5, sigma_b=0.3, layers_per_block=2)

    def last(log_q0):
        return jnp.log(jfree.propagate(eqx.tree_at(lambda n: n.q0, net, jnp.exp(log_q0))).q[8] - 0.09)

    np.testing.assert_allclose(jfree.propagate(net).elasticity[0], jax.grad(last)(0.0), rtol=1e-8)


@pytest.mark.parametrize(
    ("activation", "sigma_b", "sigma_w", "chi_q"), [("silu", 0.1, 1.8201, 1.072), ("gelu", 0.1, 1.7271, 1.098)]
)
def test_critical_points_that_are_unstable_are_said_to_be(activation, sigma_b, sigma_w, chi_q):
    with pytest.warns(UserWarning, match="unstable"):
        found, _ = jfree.critical_sigma_w(activation, sigma_b)
    points = jfree.critical_points(activation, sigma_b)
    assert not points.stable.any()
    np.testing.assert_allclose(found, sigma_w, rtol=1e-4)
    np.testing.assert_allclose(points.chi_q[jnp.isfinite(points.q)], chi_q, rtol=1e-3)


@pytest.mark.parametrize(
    ("activation", "sigma_b", "sigma_w", "q"),
    [("silu", 1.0, 1.4025, 39.4), ("gelu", 0.5, 1.3999, 6.43), ("tanh", 0.0, 1.0, 0.0)],
)
def test_critical_points_that_are_stable(activation, sigma_b, sigma_w, q):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = jfree.critical_sigma_w(activation, sigma_b)
    np.testing.assert_allclose(found, (sigma_w, q), rtol=1e-3, atol=1e-12)
    assert jfree.critical_points(activation, sigma_b).stable.any()


def test_all_fixed_points():
    points = jfree.fixed_points("gelu", 1.4703, 0.0)
    there = np.isfinite(points.q)
    np.testing.assert_allclose(points.q[there], [0, 2.077], rtol=1e-3)
    np.testing.assert_array_equal(points.stable[there], [True, False])
    q = points.q[there][1]
    np.testing.assert_allclose(1.4703**2 * jfree.activations.GELU().second_moment(q), q, rtol=1e-10)
    assert jfree.fixed_point("gelu", 1.4703, 0.0) == 0
    assert not np.isfinite(jfree.fixed_points("relu", 1.5, 0.1).q).any()
    np.testing.assert_allclose(jfree.fixed_point("silu", 1.8201, 0.1), 0.0798, rtol=1e-3)  # below the unstable one
    assert "stable" in str(points)
    depth, _ = points.depth_scales
    np.testing.assert_allclose(depth[there], 1 / np.abs(np.log(points.chi_q[there])))


def test_diagnosis_says_what_samples_will_not_do():
    widths = [64] + [128] * 49 + [10]
    unstable = jfree.diagnose(jfree.MLP(widths, "gelu", sigma_w=1.4703, q0=0.95), [0.47, 0.95, 1.8])
    assert not unstable.trusted
    assert unstable.q.max() / unstable.q.min() > 1e10
    assert "unstable" in unstable.words[0]
    assert "NOT" in unstable.words[1]
    tanh = jfree.diagnose(jfree.MLP(widths, "tanh", sigma_w=1.1767, q0=0.95), [0.47, 0.95, 1.8])
    assert tanh.trusted
    assert "is stable" in tanh.words[0]
    assert "near 1" in tanh.words[2]
    assert "fades" in jfree.diagnose(jfree.MLP(widths, "gelu", sigma_w=1.0)).words[0]
    assert "explodes" in jfree.diagnose(jfree.MLP(widths, "relu", sigma_w=1.6)).words[0]
    assert np.isnan(jfree.diagnose(jfree.ResNet(5, "tanh")).signal_spread)
    with pytest.raises(ValueError, match="`q0`"):
        jfree.diagnose(jfree.MLP([1, 1]), [1.0, -1.0])
    with pytest.raises(ValueError, match="`net`"):
        jfree.signal_spread(jfree.ResNet(3))
    with pytest.raises(ValueError, match="`width`"):
        jfree.signal_spread(jfree.MLP([1, 1]), width=0)


# As tuned for digits: samples are 0.11 from the limit (Kolmogorov and Smirnov).
TUNED_SILU = np.asarray([
    0.226, 1.51, 1.72, 1.94, 2, 1.99, 1.98, 1.99, 1.99, 1.98, 1.98, 1.99, 1.98, 1.99, 1.98, 1.99, 1.98, 1.98,
    1.98, 1.98, 1.98, 1.99, 1.97, 2.07, 2.81, 4.3, 6.17, 5.34, 4, 3.11, 2.5, 2.1, 1.83, 1.64, 1.5, 1.4, 1.32,
    1.25, 1.2, 1.16, 1.12, 1.08, 1.05, 1.02, 0.977, 0.932, 0.875, 0.796, 0.703, 0.644,
])  # fmt: skip


def test_diagnosis_of_crowded_singular_values():
    """A smaller part of their spread moves a tenth of them."""
    net = jfree.MLP([64] + [128] * 49 + [10], ["silu"] * 49 + ["linear"], sigma_w=TUNED_SILU, q0=0.953)
    found = jfree.diagnose(net)
    assert 0.15 < found.doubt < 0.25
    assert not found.trusted


def _log_slopes(activation, q, zeros):
    """Mean and variance of `log phi'(h)^2`, integrated from zero to zero of `phi'`."""
    derivative = jax.jit(activation.derivative)

    def log_square(x):
        return np.log(max(float(derivative(jnp.asarray(x))) ** 2, 1e-320))

    reach = 12 * q**0.5
    ends = sorted({-reach, 0.0, reach, *(z for z in zeros if abs(z) < reach)})

    def moment(k):
        def integrand(x):
            return log_square(x) ** k * np.exp(-x * x / (2 * q)) / (2 * np.pi * q) ** 0.5

        pieces = itertools.pairwise(ends)
        return sum(integrate.quad(integrand, *piece, epsabs=1e-10, epsrel=1e-10, limit=400)[0] for piece in pieces)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", integrate.IntegrationWarning)  # it is asked for all digits there are
        return moment(1), moment(2) - moment(1) ** 2


def mish(x):
    return x * jnp.tanh(jax.nn.softplus(x))


@pytest.mark.parametrize(
    ("activation", "zeros"),
    [
        (jfree.activations.FromFunction(jnp.sin), [np.pi / 2 + np.pi * k for k in range(-8, 8)]),
        (jfree.activations.FromFunction(mish), [-1.1924312141]),
        (jfree.activations.FromFunction(lambda x: x**3 - x), [-(3**-0.5), 3**-0.5]),
        (jfree.activations.GELU(), [-0.7517915240843226]),
        (jfree.activations.SiLU(), [-1.2784645427610738]),
        (jfree.activations.Tanh(), []),
    ],
)
def test_log_moments_through_zeros_of_the_derivative(activation, zeros):
    net = jfree.MLP([1, 1], [activation], "orthogonal", sigma_w=1.3)
    mean, variance = _log_slopes(activation, 1.69, zeros)
    spectrum = jfree.jacobian_spectrum(net)
    np.testing.assert_allclose(spectrum.mean_log(), mean + 2 * np.log(1.3), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(spectrum.log_variance(), variance, rtol=1e-5)


def test_reported_mean_logs():
    sin = jfree.activations.FromFunction(jnp.sin)
    spectrum = jfree.jacobian_spectrum(jfree.MLP([1, 1], [sin], "orthogonal", sigma_w=2.0))
    np.testing.assert_allclose(spectrum.mean_log(), 0.000671, atol=1e-6)
    np.testing.assert_allclose(spectrum.log_variance(), 3.291, atol=0.005)
    deep = jfree.MLP([1] * 7, sin, "orthogonal", sigma_w=3.0, sigma_b=0.1)
    np.testing.assert_allclose(jfree.jacobian_spectrum(deep).mean_log(), 6.2528, atol=1e-4)
    smooth = jfree.MLP([1] * 7, jfree.activations.FromFunction(mish), "orthogonal", sigma_w=1.5, sigma_b=0.1)
    np.testing.assert_allclose(jfree.jacobian_spectrum(smooth).mean_log(), -6.1009, atol=1e-4)
    gelu = jfree.MLP([1] * 5, "gelu", "orthogonal", sigma_w=1.6, sigma_b=0.1)
    np.testing.assert_allclose(jfree.jacobian_spectrum(gelu).mean_log(), -4.761934, atol=1e-6)


def test_square_layers_add_up():
    rng = np.random.default_rng(0)
    for _ in range(4):
        names = [n for n in MANY_SLOPES if n != "leaky_relu"]
        activations = [make_activation(rng.choice(names), rng) for _ in range(5)]
        sigma_w = rng.uniform(0.8, 2, 5)
        net = jfree.MLP([1] * 6, activations, "gaussian", sigma_w=sigma_w, sigma_b=0.3)
        q = jfree.propagate(net).q
        layers = [
            jfree.jacobian_spectrum(jfree.MLP([1, 1], [a], "gaussian", sigma_w=s, sigma_b=0.0, q0=v / s**2)).mean_log()
            for a, s, v in zip(net.activations, sigma_w, q, strict=True)
        ]
        np.testing.assert_allclose(jfree.jacobian_spectrum(net).mean_log(), np.sum(layers), rtol=1e-8)


@pytest.mark.parametrize("seed", range(6))
def test_mean_log_is_the_log_potential_at_zero(seed):
    """Of any widths: `mean_log` is a sum over layers, the log-potential next to 0 is read off the curve."""
    rng = np.random.default_rng(seed)
    net = random_mlp(rng, int(rng.integers(1, 8)), (*TWO_SLOPES, "tanh", "sigmoid", "softplus"))
    spectrum = jfree.jacobian_spectrum(net)
    zero = float(spectrum.mass_at_zero())
    y = float(spectrum.mean()) * 1e-12
    near = spectrum.curve
    from jfree._solve.solve import find_roots

    z = jnp.asarray([-y, -2 * y, -4 * y], complex)
    roots = find_roots(near, z)
    assert jnp.all(roots.certified)
    phi = near.potential_at(z, roots.omega, roots.unknowns, roots.certified)[1].real
    value = (phi - zero * np.log([y, 2 * y, 4 * y])) / (1 - zero)
    slack = 8 * abs(float(value[2] - value[0])) + 1e-6
    np.testing.assert_allclose(spectrum.mean_log(), value[0], atol=slack)


@pytest.mark.parametrize("sigma_w", [0.7, 1.5, 3.0])
@pytest.mark.parametrize("layers_per_block", [1, 2])
def test_mean_log_of_residual_networks(sigma_w, layers_per_block):
    net = jfree.ResNet(3, "tanh", "gaussian", sigma_w=sigma_w, sigma_b=0.1, layers_per_block=layers_per_block)
    eigenvalues = jfree.empirical.jacobian_eigenvalues(net, jax.random.key(0), num_samples=2, width=400)
    mean = float(jfree.jacobian_spectrum(net).mean_log())
    assert mean >= 0
    np.testing.assert_allclose(mean, np.mean(np.log(eigenvalues)), atol=0.05)


@pytest.mark.parametrize(
    "net",
    [
        jfree.MLP([64, 128, 100, 50, 10], "tanh", "gaussian", sigma_w=1.6, sigma_b=0.1),
        jfree.MLP([3, 2.5, 3.5], "hard_tanh", "orthogonal", sigma_w=1.6, sigma_b=0.1),
        jfree.ResNet(6, "tanh", "orthogonal", sigma_w=3.0, sigma_b=0.1),
    ],
    ids=["rectangular", "explicit", "residual"],
)
def test_derivatives_of_mean_log(net):
    def value(sigma_w):
        return jfree.jacobian_spectrum(eqx.tree_at(lambda n: n.sigma_w, net, sigma_w)).mean_log()

    x, h = net.sigma_w, 1e-5
    slope = (value(x + h) - value(x - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(value)(x), slope, rtol=1e-6)
    curvature = (jax.grad(value)(x + h) - jax.grad(value)(x - h)) / (2 * h)
    np.testing.assert_allclose(jax.hessian(value)(x), curvature, rtol=1e-5)


@pytest.mark.parametrize(("activation", "sigma_w", "sigma_b"), [("erf", 2.0, 0.3), ("hard_tanh", 1.5, 0.1)])
def test_correlations(activation, sigma_w, sigma_b):
    """Against Gaussian integrals in two dimensions; of erf in closed form (Williams 1997)."""
    q = float(jfree.fixed_point(activation, sigma_w, sigma_b))
    c = np.array([[-0.7, 0.0], [0.3, 0.9]])
    mapped = jfree.correlation_map(activation, sigma_w, sigma_b, c)
    if activation == "erf":
        moment = 2 / np.pi * np.arcsin(2 * q * c / (1 + 2 * q))
    else:
        z = np.linspace(-7, 7, 4001)
        weight = np.exp(-(z[:, None] ** 2 + z**2) / 2) * (z[1] - z[0]) ** 2 / (2 * np.pi)
        u = np.clip(np.sqrt(q) * z, -1, 1)[:, None]
        at = (np.sqrt(q) * (a * z[:, None] + np.sqrt(1 - a**2) * z) for a in c.ravel())
        moment = np.array([np.sum(weight * u * np.clip(v, -1, 1)) for v in at]).reshape(c.shape)
    np.testing.assert_allclose(mapped, (sigma_w**2 * moment + sigma_b**2) / q, rtol=0, atol=5e-6)
    points = jfree.fixed_points(activation, sigma_w, sigma_b)
    best = points.best
    np.testing.assert_allclose(best.q, q, rtol=1e-10)
    np.testing.assert_allclose(jfree.correlation_map(activation, sigma_w, sigma_b, best.c), best.c, atol=1e-9)
    slope = jax.grad(lambda c: jfree.correlation_map(activation, sigma_w, sigma_b, c))(float(best.c))
    np.testing.assert_allclose(best.chi_c, slope, rtol=1e-9)
    assert 0 < best.c < 1
    assert best.chi_c < 1 < best.chi
    np.testing.assert_allclose(best.depth_scales[1], -1 / np.log(slope), rtol=1e-9)


def test_correlations_in_order_go_to_one_and_their_derivatives_are_right():
    best = jfree.fixed_points("tanh", 0.9, 0.3).best
    assert (best.c, best.chi_c) == (1, best.chi)

    def settles(sigma_w):
        return jfree.fixed_points("tanh", sigma_w, 0.3).best.c

    step = 1e-5
    difference = (settles(2.0 + step) - settles(2.0 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(settles)(2.0), difference, rtol=1e-6)
    with pytest.raises(ValueError, match="`c` must lie"):
        jfree.correlation_map("tanh", 1.0, 0.1, 1.5)


@pytest.mark.parametrize("activation", ["gelu", "silu", "relu", "tanh"])
@pytest.mark.parametrize("weights", ["orthogonal", "centred_orthogonal"])
def test_the_constraint_of_stability(activation, weights):
    net = jfree.MLP(np.ones(9), activation, weights, sigma_w=np.linspace(1.4, 2.2, 8), sigma_b=0.3)
    kept = jfree.constraints.stable(0.9)(net)
    assert isinstance(kept, jfree.MLP)
    chi_q = jfree.propagate(kept).chi_q[:-1]
    assert np.all(chi_q < 0.9 + 1e-12)
    changed = kept.sigma_w[1:] != net.sigma_w[1:]
    np.testing.assert_allclose(chi_q[changed], 0.9, rtol=1e-12)
    assert np.all(kept.sigma_w <= net.sigma_w * (1 + 1e-12))
    assert activation == "tanh" or changed.any()


@pytest.mark.parametrize("constraint", ["fixed_variance", "criticality"])
def test_constraints_know_of_centred_weights(constraint):
    net = jfree.MLP(np.ones(5), "sigmoid", "centred_gaussian", np.full(4, 3.0), sigma_b=0.1, q0=0.01)
    field = jfree.propagate(getattr(jfree.constraints, constraint)(0.7)(net))
    np.testing.assert_allclose(field.q, 0.7, rtol=1e-8)


def test_inputs_that_differ_from_the_start_make_no_signal_unstable():
    """Homogeneous activations keep ratios of variances, whatever these are."""
    net = jfree.MLP([128] * 6, jfree.activations.LeakyReLU(0.5), sigma_w=1.3)
    found = jfree.diagnose(net, [0.3, 1.0, 3.0])
    assert found.chi_q > 1.01
    assert found.q.max() / found.q.min() > 9.9
    assert abs(found.drift) < 1e-6
    assert "stable" in found.words[0]
    assert "unstable" not in found.words[0]


def test_models_of_unstable_networks_are_made_with_a_warning():
    with pytest.warns(UserWarning, match="unstable"):
        jfree.to_equinox(jfree.MLP([64] + [128] * 49 + [10], "gelu", sigma_w=1.47), jax.random.key(0))
    with pytest.warns(UserWarning, match="from sample to sample"):
        jfree.to_equinox(jfree.MLP([32] * 40, "relu", "gaussian", sigma_w=2**0.5), jax.random.key(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jfree.to_equinox(jfree.MLP([64, 64, 64], "tanh", sigma_b=0.1), jax.random.key(0))
