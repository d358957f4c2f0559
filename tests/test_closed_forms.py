"""Spectra known in closed form, to 1e-10."""

import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree
from jfree._solve.certificate import certify
from jfree._solve.solve import _Places


def test_marchenko_pastur():
    spectrum = jfree.jacobian_spectrum(jfree.MLP((200, 100), "linear", "gaussian"))
    lower, upper = (1 - 0.5**0.5) ** 2, (1 + 0.5**0.5) ** 2
    np.testing.assert_allclose(spectrum.edges(), (lower, upper), rtol=1e-12)
    x = np.linspace(lower, upper, 102)[1:-1]
    np.testing.assert_allclose(spectrum.density(x), np.sqrt((x - lower) * (upper - x)) / (2 * np.pi * x), rtol=1e-10)
    np.testing.assert_array_equal(spectrum.density([-1.0, lower / 2, upper + 1]), 0)
    assert spectrum.density(0.0) == 0
    np.testing.assert_allclose(spectrum.mass_at_zero(), 0.5, atol=1e-14)
    np.testing.assert_allclose(spectrum.cdf([-1.0, 0.0, 0.05, 4.0]), [0, 0.5, 0.5, 1], atol=1e-12)
    p = np.linspace(0.51, 0.99, 7)
    np.testing.assert_allclose(spectrum.cdf(spectrum.quantile(p)), p, atol=1e-12)
    assert spectrum.quantile(0.3) == 0
    np.testing.assert_allclose(spectrum.quantile(1.0), upper, rtol=1e-12)
    np.testing.assert_allclose([spectrum.moment(k) for k in range(1, 5)], [0.5, 0.75, 1.375, 2.8125], rtol=1e-12)
    np.testing.assert_allclose(spectrum.variance(), 0.5, rtol=1e-12)
    np.testing.assert_allclose(spectrum.condition_number(), math.sqrt(upper / lower), rtol=1e-12)
    z = np.array([0.3 + 0.2j, -1 + 1e-3j, 5 + 3j])
    root = np.sqrt(z - lower) * np.sqrt(z - upper)
    np.testing.assert_allclose(spectrum.stieltjes(z), (z + 0.5 - root) / (2 * z), rtol=1e-12)
    assert len(spectrum.support()) == 1
    np.testing.assert_allclose(spectrum.support()[0], (lower, upper), rtol=1e-10)


def test_square_gaussian_quarter_circle_at_the_hard_edge():
    spectrum = jfree.jacobian_spectrum(jfree.MLP((1, 1), "linear", "gaussian"))
    x = np.geomspace(1e-12, 3.99, 50)
    np.testing.assert_allclose(spectrum.density(x), np.sqrt((4 - x) / x) / (2 * np.pi), rtol=1e-10)
    exact = (np.sqrt(x * (4 - x)) + 4 * np.arcsin(np.sqrt(x) / 2)) / (2 * np.pi)
    np.testing.assert_allclose(spectrum.cdf(x), exact, atol=1e-12)
    assert spectrum.edges()[0] == 0
    assert spectrum.density(0.0) == np.inf
    np.testing.assert_allclose(spectrum.mean_log(), -1, rtol=1e-12)


def test_next_to_an_edge():
    """The density is a root of the distance, whose rounding is all that may be seen; beyond there is none."""
    spectrum = jfree.jacobian_spectrum(jfree.MLP((1, 1), "linear", "gaussian"))
    distance = np.geomspace(1e-9, 0.1, 300)
    x = 4 - distance
    error = np.abs(spectrum.density(x) / (np.sqrt(x * (4 - x)) / (2 * np.pi * x)) - 1)
    np.testing.assert_array_less(error, 1e-12 + 1e-14 / distance)
    np.testing.assert_array_equal(spectrum.density(4 + distance), 0)


@pytest.mark.parametrize("height", [0.0, 1e-12, 1e-8, 1e-4])
@pytest.mark.parametrize("x", [4.001, 5.0])
def test_no_certificate_for_the_other_root(x, height):
    """Roots come in pairs `m`, `1/m` here; starts beside the wrong one must not be accepted."""
    curve = jfree.jacobian_spectrum(jfree.MLP((1, 1), "linear", "gaussian")).curve
    z = x + 1j * height
    m = (z - 2 - np.sqrt(z) * np.sqrt(z - 4)) / 2
    rng = np.random.default_rng(0)
    offset = 10 ** rng.uniform(-14, -2, 2000) * np.exp(2j * np.pi * rng.random(2000))
    for other, real in ((1 / m, False), (1 / m, True), (m, None)):
        omega = (1 + 1 / other) * (1 + offset)
        omega = omega.real + 0j if real else omega
        lanes = jnp.asarray(omega)
        none = jnp.zeros((1, 0, omega.size), lanes.dtype)
        on_axis = jnp.full(omega.size, bool(real))
        verdict = certify(curve, jnp.full_like(lanes, z), lanes, none, on_axis)
        accepted = np.asarray(verdict.settled & (verdict.code == 0))
        if real is not None:
            assert not accepted.any(), (real, offset[accepted])
        elif height > 1e-6:
            assert accepted.any()  # of the right root


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_fuss_catalan(depth):
    spectrum = jfree.jacobian_spectrum(jfree.MLP([1.0] * (depth + 1), "linear", "gaussian"))
    np.testing.assert_allclose(spectrum.edges()[1], (depth + 1) ** (depth + 1) / depth**depth, rtol=1e-12)
    exact = [math.comb((depth + 1) * k, k) / (depth * k + 1) for k in range(1, 9)]
    np.testing.assert_allclose([spectrum.moment(k) for k in range(1, 9)], exact, rtol=1e-10)
    # Parametrised by an angle: x = sin^(L+1)((L+1) t) / (sin t sin^L(L t)).
    t = np.linspace(0.1, 0.9, 7) * np.pi / (depth + 1)
    x = np.sin((depth + 1) * t) ** (depth + 1) / (np.sin(t) * np.sin(depth * t) ** depth)
    density = np.sin(t) ** 2 * np.sin(depth * t) ** (depth - 1) / (np.pi * np.sin((depth + 1) * t) ** depth)
    np.testing.assert_allclose(spectrum.density(x), density, rtol=1e-10)
    np.testing.assert_allclose(spectrum.mean_log(), -depth, rtol=1e-10)


def test_arcsine_law():
    """Free product of two projections of rank 1/2: atom 1/2 at 0 and the arcsine law on (0, 1)."""
    net = jfree.MLP((2, 1, 2), "linear", "orthogonal", sigma_w=(1.0, 0.5**0.5))
    # W_2 W_1 with W_1 W_1^T = 1 and W_2^T W_2 = 1: a projection; a hidden ReLU makes the second one.
    projections = jfree.MLP((1, 1, 1), ("relu", "relu"), "orthogonal")
    spectrum = jfree.jacobian_spectrum(projections)
    x = np.linspace(0.001, 0.999, 41)
    np.testing.assert_allclose(spectrum.density(x), 0.5 / (np.pi * np.sqrt(x * (1 - x))), rtol=1e-10)
    np.testing.assert_allclose(spectrum.cdf(x), 0.5 + np.arcsin(np.sqrt(x)) / np.pi, atol=1e-12)
    np.testing.assert_allclose(spectrum.mean_log(), -2 * math.log(2), rtol=1e-10)
    np.testing.assert_allclose(jfree.jacobian_spectrum(net).edges(), (1, 1), rtol=1e-12)


@pytest.mark.parametrize(("first", "second"), [(0.3, 0.6), (0.7, 0.8), (0.9, 0.2)])
def test_two_projections(first, second):
    """Two-atom slopes by shifted ReLUs: `alpha = P(N(0, q) > shift)`."""
    shift = [-float(jax.scipy.special.ndtri(p)) for p in (first, second)]
    net = jfree.MLP((1, 1, 1), [jfree.activations.ShiftedReLU(s) for s in shift], "orthogonal", 1.0, 0.0)
    q = jfree.propagate(net).q
    shift[1] *= float(q[1]) ** 0.5
    net = jfree.MLP((1, 1, 1), [jfree.activations.ShiftedReLU(s) for s in shift], "orthogonal", 1.0, 0.0)
    spectrum = jfree.jacobian_spectrum(net)
    middle = first + second - 2 * first * second
    swing = math.sqrt(4 * first * second * (1 - first) * (1 - second))
    lower, upper = middle - swing, middle + swing
    ends = (lower, 1.0 if first + second > 1 else upper)
    np.testing.assert_allclose(spectrum.edges(), ends, rtol=1e-10)
    x = np.linspace(lower, upper, 23)[1:-1]
    density = np.sqrt((x - lower) * (upper - x)) / (2 * np.pi * x * (1 - x))
    np.testing.assert_allclose(spectrum.density(x), density, rtol=1e-10)
    locations, masses = spectrum.atoms()
    np.testing.assert_allclose(masses[0], max(1 - first, 1 - second), rtol=1e-12)
    mass_at_one = float(jnp.sum(jnp.where(jnp.abs(locations - 1) < 1e-12, masses, 0)))
    np.testing.assert_allclose(mass_at_one, max(0, first + second - 1), atol=1e-12)
    if mass_at_one:
        np.testing.assert_allclose(spectrum.cdf([1 - 1e-3, 1.0]), [1 - mass_at_one, 1], atol=1e-7)
        assert spectrum.quantile(1 - mass_at_one / 2) == 1
    np.testing.assert_allclose(spectrum.support(), [(lower, upper)], rtol=1e-9)


def test_leaky_relu_has_two_atoms_and_no_bulk():
    slope = 0.5
    net = jfree.MLP((1, 1), [jfree.activations.LeakyReLU(slope)], "orthogonal", sigma_w=2.0)
    spectrum = jfree.jacobian_spectrum(net)
    np.testing.assert_allclose(spectrum.edges(), (1, 4), rtol=1e-12)
    np.testing.assert_allclose(spectrum.cdf([0.5, 1.0, 2.0, 4.0]), [0, 0.5, 0.5, 1], atol=1e-7)
    np.testing.assert_allclose(spectrum.quantile([0.2, 0.7]), [1, 4])
    assert spectrum.support() == []
    for atom in (1, 4):  # m = mass / (z - atom) atom
        distance = 10.0 ** -np.arange(4, 13)
        m = spectrum.solve(atom * (1 + distance)).m.real
        np.testing.assert_allclose(m * distance, 0.5, rtol=1e-3)


SMOOTH = ["tanh", "silu", "gelu"] + ["sigmoid", "erf", "softplus"] * bool(os.environ.get("JFREE_FULL"))


@pytest.mark.parametrize("activation", SMOOTH)
def test_one_orthogonal_layer_is_a_push_forward(activation):
    """The law of `sigma_w^2 phi'(h)^2` itself: its cdf is a Gaussian probability."""
    net = jfree.MLP((1, 1), [activation], "orthogonal", sigma_w=1.5)
    spectrum = jfree.jacobian_spectrum(net)
    q = float(jfree.propagate(net).q[0])
    h = np.linspace(-9, 9, 400001) * math.sqrt(q)
    slopes = 2.25 * np.asarray(net.activations[0].derivative(jnp.asarray(h))) ** 2
    weight = np.exp(-h * h / (2 * q))
    order = np.argsort(slopes)
    below = np.cumsum(weight[order]) / np.sum(weight)
    x = np.array([0.1, 0.3, 0.5, 0.7, 0.85]) * slopes.max()
    np.testing.assert_allclose(spectrum.cdf(x), np.interp(x, slopes[order], below), atol=2e-5)
    np.testing.assert_allclose(spectrum.quantile(spectrum.cdf(x)), x, rtol=1e-8)
    np.testing.assert_allclose(spectrum.mean(), np.sum(weight * slopes) / np.sum(weight), rtol=1e-8)


def test_log_potential_by_moments():
    """`int log|x - t| mu(dt) = log x - sum_k m_k / (k x^k)` beyond the upper edge."""
    net = jfree.MLP([1.0] * 5, "relu", "gaussian", 2**0.5)
    spectrum = jfree.jacobian_spectrum(net)
    x = 8 * float(spectrum.edges()[1])
    series = math.log(x) - sum(float(spectrum.moment(k)) / (k * x**k) for k in range(1, 16))
    np.testing.assert_allclose(spectrum.log_potential(x), series, rtol=1e-11)
    assert spectrum.log_potential(0.0) == -np.inf


def test_variance_formula():
    """Theory, Section 7: the variance is a sum over layers."""
    widths = np.array([300.0, 500, 400, 200])
    net = jfree.MLP(widths, ("relu", "hard_tanh", "tanh"), ("orthogonal", "gaussian", "orthogonal"), 1.2, 0.1)
    spectrum = jfree.jacobian_spectrum(net, side="output")
    np.testing.assert_allclose(
        spectrum.moment(2) / spectrum.moment(1) ** 2 - 1, spectrum.variance() / spectrum.mean() ** 2
    )
    other = jfree.jacobian_spectrum(net)
    np.testing.assert_allclose(widths[0] * other.mean(), widths[-1] * spectrum.mean(), rtol=1e-12)
    np.testing.assert_allclose(spectrum.mean(), jnp.prod(jfree.propagate(net).chi), rtol=1e-12)


def test_cdf_between_an_atom_and_the_bulk_that_starts_there():
    """`W D W^T + 1` with almost square `W`: the density grows like an inverse root from the atom on."""
    net = jfree.MLP([1, 1, 1 + 1e-5], "linear", "gaussian", np.array([1.0, 0.05]))
    spectrum = jfree.fisher_spectrum(net)
    atom, mass = float(spectrum.atoms()[0][1]), float(spectrum.atoms()[1][1])
    assert mass > 9e-6
    np.testing.assert_allclose(spectrum.cdf([atom * (1 - 1e-6), atom]), [0, mass], atol=1e-12)
    near, far = (np.asarray(spectrum.cdf(atom * (1 + d))) - mass for d in (1e-9, 1e-7))
    np.testing.assert_allclose(near / far, 0.1, rtol=0.02)
    np.testing.assert_allclose(spectrum.quantile(mass / 2), atom, rtol=1e-14)


def test_moments_of_a_spectrum_far_wider_than_its_variance_tells():
    hard_tanh = jfree.activations.HardTanh(1.274, 3.066)
    net = jfree.MLP(
        [0.1003, 0.6263, 0.272, 10.465, 17.196],
        [hard_tanh, "relu", hard_tanh, "linear"],
        ["gaussian", "orthogonal", "orthogonal", "gaussian"],
        [1.013, 1.461, 0.344, 1.665],
        0.1,
        0.941,
    )
    spectrum = jfree.fisher_spectrum(net)
    np.testing.assert_allclose(spectrum.moment(1), spectrum.mean(), rtol=1e-8)
    np.testing.assert_allclose(spectrum.moment(2), spectrum.variance() + spectrum.mean() ** 2, rtol=1e-8)


def test_support_finds_a_bulk_between_two_points_of_its_scan():
    def three_slopes(x):
        return jnp.where(x > 0.5, x - 0.4, jnp.where(x > -0.5, 0.2 * x, 0.01 * (x + 0.5) - 0.1))

    activation = jfree.activations.FromFunction(three_slopes, knots=(-0.5, 0.5))
    spectrum = jfree.jacobian_spectrum(jfree.MLP([1, 1, 1e6], [activation, "linear"], ["orthogonal", "gaussian"]))
    masses = [float(spectrum.cdf(1.001 * high) - spectrum.cdf(0.999 * low)) for low, high in spectrum.support()]
    assert len(masses) == 3
    np.testing.assert_allclose(sum(masses), 1, rtol=1e-6)


def test_slopes_of_one_size_are_one_atom():
    spectrum = jfree.jacobian_spectrum(jfree.MLP([1, 1, 1, 1], jfree.activations.LeakyReLU(-1.0), "orthogonal"))
    np.testing.assert_allclose(spectrum.quantile([0.1, 0.5, 0.9]), 1, rtol=1e-12)


@pytest.mark.parametrize("activation", ["linear", "leaky_relu"])
def test_more_points_than_a_chunk(activation):
    """Points are worked on in chunks; each gets the values it has in smaller company."""
    spectrum = jfree.jacobian_spectrum(jfree.MLP(np.ones(3), activation, "gaussian"))
    x = np.random.default_rng(0).uniform(0.01, 7, 5000)
    many, few = spectrum.density(x), spectrum.density(x[::100])
    np.testing.assert_allclose(many[::100], few, rtol=1e-9, atol=1e-12)
    assert np.isfinite(many).all()


@pytest.mark.parametrize("number", [1, 16, 4096, 4097, 4100, 8193, 100_000])
def test_every_point_has_a_place(number):
    places = _Places.of(number, jnp.asarray(0), min(number, 64))
    lanes = np.asarray(places.rank[places.all_from :])[:number]
    assert np.array_equal(lanes, np.arange(number))


@pytest.mark.parametrize("offset", [-1e-15, 0, 1e-15])
def test_a_level_between_bulk_and_atom_is_the_end_of_the_bulk(offset):
    """The cdf has it all along the gap; its quantile is where it comes first."""
    spectrum = jfree.jacobian_spectrum(jfree.MLP([1] * 4, "hard_tanh", "orthogonal"))
    ((_, end),) = spectrum.support()
    level = float(spectrum.cdf((end + 1) / 2)) + offset
    np.testing.assert_allclose(spectrum.quantile(level), end, rtol=1e-8)
    np.testing.assert_allclose(jax.jit(lambda p: spectrum.quantile(p))(level), end, rtol=1e-8)
    np.testing.assert_allclose(spectrum.quantile(level + 1e-9), 1, rtol=1e-12)
