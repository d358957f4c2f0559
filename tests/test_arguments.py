"""Bad input: one `ValueError` that names the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree

pytestmark = pytest.mark.usefixtures("unchecked")

GOOD = {"widths": (3.0, 2.0, 2.0), "activation": "relu", "weights": "gaussian"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("widths", (3.0,)),
        ("widths", ((3.0, 2.0), (1.0, 1.0))),
        ("widths", (3.0, -2.0, 1.0)),
        ("widths", (3.0, np.inf, 1.0)),
        ("widths", ("a", "b")),
        ("activation", "rleu"),
        ("activation", 3),
        ("activation", ("relu", "tanh", "relu")),
        ("final_activation", "softmax"),
        ("weights", "uniform"),
        ("weights", ("gaussian",)),
        ("sigma_w", -1.0),
        ("sigma_w", 0.0),
        ("sigma_w", (1.0, 1.0, 1.0)),
        ("sigma_w", float("nan")),
        ("sigma_b", -0.1),
        ("q0", 0.0),
        ("q0", float("inf")),
        ("q0", (1.0, 2.0)),
    ],
)
def test_network(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        jfree.MLP(**{**GOOD, name: value})


def test_final_activation_beside_a_sequence():
    with pytest.raises(ValueError, match="`final_activation`"):
        jfree.MLP((1, 1, 1), ("relu", "relu"), final_activation="tanh")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: jfree.activations.HardTanh(0.0), "gain"),
        (lambda: jfree.activations.HardTanh(1.0, -1.0), "limit"),
        (lambda: jfree.activations.LeakyReLU(float("nan")), "negative_slope"),
        (lambda: jfree.activations.FromFunction(3), "fn"),  # pyright: ignore[reportArgumentType]
        (lambda: jfree.activations.FromFunction(lambda x: jnp.stack([x, x])), "fn"),
        (lambda: jfree.activations.FromFunction(jnp.tanh, knots=(float("inf"),)), "knots"),
        (lambda: jfree.fixed_point("tanh", -1.0, 0.1), "sigma_w"),
        (lambda: jfree.critical_sigma_w("tanh", -1.0), "sigma_b"),
        (lambda: jfree.critical_sigma_w("tan", 1.0), "activation"),
        (lambda: jfree.jacobian_spectrum(jfree.MLP(**GOOD), side="left"), "side"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_functions(make, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        make()


def test_spectrum():
    spectrum = jfree.jacobian_spectrum(jfree.MLP(**GOOD))
    for call, name in [
        (lambda: spectrum.density(np.nan), "x"),
        (lambda: spectrum.density(1.0, smoothing=0.0), "smoothing"),
        (lambda: spectrum.cdf([1.0, np.inf]), "x"),
        (lambda: spectrum.quantile(1.5), "p"),
        (lambda: spectrum.quantile([-0.1, 0.5]), "p"),
        (lambda: spectrum.quantile(np.nan), "p"),
        (lambda: spectrum.stieltjes(1.0), "z"),
        (lambda: spectrum.stieltjes(1 - 1j), "z"),
        (lambda: spectrum.solve(1 - 1j), "z"),
        (lambda: spectrum.moment(-1), "k"),
        (lambda: spectrum.moment(1.5), "k"),  # pyright: ignore[reportArgumentType]
    ]:
        with pytest.raises(ValueError, match=f"`{name}`"):
            call()


def test_under_jit_errors_are_raised_at_run_time():
    spectrum = jfree.jacobian_spectrum(jfree.MLP(**GOOD))
    with pytest.raises(Exception, match="`p` must lie"):
        jax.jit(lambda p: spectrum.quantile(p))(jnp.asarray(2.0)).block_until_ready()


def test_an_uncertified_point_says_why():
    tanh = jfree.activations.FromFunction(jnp.tanh)  # held on the real line: not resolved on its own support
    spectrum = jfree.jacobian_spectrum(jfree.MLP((1.0, 1.0), (tanh,), "orthogonal"))
    x = jnp.asarray([0.5, 2.0])
    solution = spectrum.solve(x)
    np.testing.assert_array_equal(np.isnan(spectrum.density(x)), [True, False])
    np.testing.assert_array_equal(np.isnan(solution.m.real), [True, False])
    np.testing.assert_array_equal(solution.result == jfree.RESULTS.unresolved_law, [True, False])
    np.testing.assert_array_equal(solution.result == jfree.RESULTS.successful, [False, True])


def test_points_out_of_range_say_so():
    spectrum = jfree.jacobian_spectrum(jfree.MLP(**GOOD))
    solution = spectrum.solve(jnp.asarray([1e-200, 1.0, 1e200]))
    np.testing.assert_array_equal(solution.result == jfree.RESULTS.invalid_input, [True, False, True])
    np.testing.assert_array_equal(np.isnan(solution.G.real), [True, False, True])


def test_what_rests_on_uncertified_points_is_nan():
    relu6 = jfree.activations.FromFunction(jax.nn.relu6)  # without its knots
    net = jfree.MLP((1.0, 1.0, 1.0), relu6, sigma_w=3.0)
    np.testing.assert_array_equal(jfree.jacobian_spectrum(net).edges(), np.nan)
    assert np.isnan(jfree.objectives.condition_number(net))
    almost_all_zero = jfree.jacobian_spectrum(jfree.MLP((1e9, 1.0), "linear", "gaussian"))
    np.testing.assert_allclose(almost_all_zero.mean_log(), -0.5e-9, atol=1e-7)  # a sum over layers: it is known
