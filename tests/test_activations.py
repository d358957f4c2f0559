"""Activations by name, and their laws, against an independent integration."""

import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree
from jfree.activations._base import AbstractManySlopes, AbstractTwoSlopes
from jfree.activations._names import BY_NAME
from jfree.activations._smooth import AbstractSmooth

# Kinks, and zeros of the derivative, where an integrand is not smooth.
KNOTS = {
    "hard_sine": np.arange(-101, 102, 2.0),
    "hard_tanh": (-1, 1),
    "sin": np.pi / 2 * np.arange(-41, 42, 2),
    "relu6": (0, 6),
    "hard_sigmoid": (-3, 3),
    "hard_silu": (-3, -1.5, 3),
    "sparse_sigmoid": (-1, 1),
    "sparse_plus": (-1, 1),
    "silu": (-1.2784645427610738,),
    "swish": (-1.2784645427610738,),
    "quick_gelu": (-1.2784645427610738 / 1.702,),
    "gelu": (-0.7517915240843226,),
    "gelu_tanh": (-0.7524614220710163,),
    "mish": (-1.1924312145154952,),
}
ANALYTIC = [n for n, make in BY_NAME.items() if isinstance(make(), AbstractSmooth)]
SMOOTH = [n for n, make in BY_NAME.items() if not isinstance(make(), AbstractTwoSlopes | jfree.activations.LeakyReLU)]


def expect(fn, q, knots):
    """`E fn(sqrt(q) Z)`, of integrands with logarithms and inverse roots at the knots."""
    reach = 12 * np.sqrt(q)
    places = (*knots, -3.0, -1.0, 0.0, 1.0, 3.0)  # at 1 and 3 a finer mesh
    ends = sorted({-reach, reach, *(float(k) for k in places if abs(k) < reach)})
    t, w = np.polynomial.legendre.leggauss(300)
    near, slope = ((t + 1) / 2) ** 5, 5 / 2 * ((t + 1) / 2) ** 4 * w
    total = 0.0
    for a, b in itertools.pairwise(ends):
        half = (b - a) / 2
        for x in (a + half * near, b - half * near):
            density = np.exp(-x * x / (2 * q)) / np.sqrt(2 * np.pi * q)
            total = total + np.sum(half * slope * density * np.asarray(fn(jnp.asarray(x))))
    return total


@pytest.mark.parametrize("path", ["docs/api/activations.md", "jfree/cli/_network.py"])
def test_names_are_told(path):
    words = re.findall(r"\w+", (Path(__file__).parent.parent / path).read_text())
    assert set(BY_NAME) <= set(words)


@pytest.mark.parametrize("name", BY_NAME)
def test_moments(name):
    phi, knots = BY_NAME[name](), KNOTS.get(name, ())
    for q in (0.01, 1.0, 30.0):
        at = jnp.asarray(q)
        square = expect(lambda x: phi(x) ** 2, q, knots)
        np.testing.assert_allclose(phi.second_moment(at), square, rtol=1e-9)
        np.testing.assert_allclose(phi.mean(at), expect(phi, q, knots), rtol=1e-9, atol=1e-9 * square**0.5)
        np.testing.assert_allclose(phi.slope_moment(at), expect(lambda x: phi.derivative(x) ** 2, q, knots), rtol=1e-9)


@pytest.mark.parametrize("name", BY_NAME)
def test_derivative(name):
    phi, x = BY_NAME[name](), jnp.linspace(-7, 7, 101) + 0.013
    np.testing.assert_allclose(phi.derivative(x), jax.vmap(jax.grad(phi))(x), rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("name", SMOOTH)
def test_law(name):
    """Its mean logarithm to 1e-6, and sums over it off the support."""
    phi, knots = BY_NAME[name](), KNOTS.get(name, ())
    assert isinstance(phi, AbstractManySlopes)
    square = lambda x: np.square(np.asarray(phi.derivative(x)))  # noqa: E731
    for q in (0.05, 1.0, 5.0):  # farther out squares of slopes leave the range of floats
        law = phi.slope_law(jnp.asarray(q))
        mean = float(jnp.exp(law.log_mean))
        log = lambda x: np.log(np.where(square(x) > 0, square(x), 1))  # noqa: E731
        share = 1 - float(law.atoms.zero)
        np.testing.assert_allclose(law.mean_log() + share * law.log_mean, expect(log, q, knots), rtol=1e-6, atol=1e-6)
        for w in (-0.01, -3.0, 0.5 + 1j):
            expected = expect(lambda x, w=w, mean=mean: square(x) / (w * mean - square(x)), q, knots)
            (found,) = law.transform(jnp.asarray([w + 0j])).m
            np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTH)
def test_densities(name):
    """Of two layers, on the support, against the same by four times the nodes."""
    finer = _refined(BY_NAME[name]())
    for weights, sigma_w in (("gaussian", 0.8), ("orthogonal", 1.7)):
        nets = (jfree.MLP([1, 1, 1], [phi] * 2, weights, sigma_w, 0.1) for phi in (BY_NAME[name](), finer))
        coarse, fine = (jfree.jacobian_spectrum(net) for net in nets)
        x = jnp.geomspace(1e-3, 4.0, 200) * coarse.mean()
        found, expected = coarse.solve(x), fine.solve(x)
        known = found.result == jfree.RESULTS.successful
        assert jnp.mean(known) > 0.98
        both = known & (expected.result == jfree.RESULTS.successful)
        np.testing.assert_allclose(found.G[both], expected.G[both], rtol=1e-7)


def _refined(phi):
    class Refined(type(phi)):  # pyright: ignore[reportUntypedBaseClass]
        def slope_law(self, q, refine=1):
            return super().slope_law(q, 4 * refine)

    refined = object.__new__(Refined)
    for name, value in vars(phi).items():
        object.__setattr__(refined, name, value)
    return refined


@pytest.mark.parametrize("name", ANALYTIC)
@pytest.mark.parametrize("numbers", [(1.3, -0.7, 0.8, 0.2), (0.15, 0.5, 9.0, -0.3), (0.005, 0.55, 200.0, -0.5)])
def test_laws_of_what_is_shifted(name, numbers):
    """Against an integration on the real line: moments, and `M` off the support."""
    phi = jfree.activations.Shaped(name, *numbers)
    knots = np.asarray(phi.breaks)
    for q in (0.05, 1.0, 30.0):
        at = jnp.asarray(q)
        law = phi.slope_law(at)
        square = expect(lambda x: phi(x) ** 2, q, knots)
        np.testing.assert_allclose(phi.second_moment(at), square, rtol=1e-9)
        np.testing.assert_allclose(phi.mean(at), expect(phi, q, knots), rtol=1e-9, atol=1e-9 * square**0.5)
        slopes = lambda x: phi.derivative(x) ** 2  # noqa: E731
        mean = expect(slopes, q, knots)
        np.testing.assert_allclose(phi.slope_moment(at), mean, rtol=1e-9)
        w = -0.1
        m = expect(lambda x: slopes(x) / mean / (w - slopes(x) / mean), q, knots)  # noqa: B023
        np.testing.assert_allclose(law.transform(jnp.asarray([w + 0j])).m.real[0], m, rtol=1e-9)


@pytest.mark.parametrize("name", ANALYTIC)
@pytest.mark.parametrize("q", [1.0, 0.3])
def test_shaped_activations_are_stable_and_as_nonlinear_as_asked(name, q):
    phi = jfree.activations.shaped(name, 0.02, q)
    net = jfree.MLP([1.0] * 4, phi, "orthogonal", sigma_w=1.0, q0=q)
    field = net.propagate()
    np.testing.assert_allclose(field.q, q, rtol=1e-9)
    np.testing.assert_allclose(field.chi_q[0], 1, rtol=1e-9)
    np.testing.assert_allclose(phi.mean(jnp.asarray(q)), 0, atol=1e-10)
    np.testing.assert_allclose(jfree.nonlinearity(net)[:2], 0.02, rtol=1e-9)


@pytest.mark.parametrize("name", ["hard_tanh", "relu6", "hard_sigmoid"])
def test_clipped_lines_are_shaped_around_their_centres(name):
    phi = jfree.activations.shaped(name, 0.02, 0.5)
    net = jfree.MLP([1.0] * 4, phi, "orthogonal", sigma_w=1.0, q0=0.5)
    field = net.propagate()
    np.testing.assert_allclose(field.q, 0.5, rtol=1e-9)
    assert jnp.all(field.chi_q[:2] < 1)
    np.testing.assert_allclose(phi.mean(jnp.asarray(0.5)), 0, atol=1e-12)
    assert isinstance(phi, jfree.activations.Clip)
    slope = phi.slopes(jnp.asarray(0.5))[0] * phi.slope  # by Stein's lemma
    np.testing.assert_allclose(1 - slope**2, 0.02, rtol=1e-9)


@pytest.mark.parametrize("name", ["gelu", "tanh"])
def test_samples_of_shaped_networks(name):
    net = jfree.MLP([300] * 13, jfree.activations.shaped(name, 0.04), "orthogonal", sigma_w=1.0, q0=1.0)
    spectrum = jfree.jacobian_spectrum(net)
    assert not jnp.isnan(spectrum.density(jnp.geomspace(1e-4, 30, 200))).any()
    eigenvalues = jfree.empirical.jacobian_eigenvalues(net, jax.random.key(0), num_samples=4)
    assert jfree.empirical.ks_distance(eigenvalues, spectrum) < 0.03


def test_numbers_of_shaped_activations_are_tuned():
    def mean(shift):
        phi = jfree.activations.Shaped("gelu", 0.5, shift, 2.0)
        return jfree.jacobian_spectrum(jfree.MLP([1.0] * 4, phi, "orthogonal", q0=1.0)).mean_log()

    step = 1e-5
    difference = (mean(0.3 + step) - mean(0.3 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(mean)(0.3), difference, rtol=1e-6)


def test_what_cannot_be_shaped():
    for arguments, name in (
        (("relu", 0.01), "activation"),
        (("elu", 0.01), "activation"),
        (("gelu", 0.0), "nonlinearity"),
        (("gelu", 0.5), "nonlin"),
    ):
        with pytest.raises(ValueError, match=f"`{name}"):
            jfree.activations.shaped(*arguments)
    with pytest.raises(ValueError, match="`q`"):
        jfree.activations.shaped("gelu", 0.01, -1.0)
    with pytest.raises(ValueError, match="`input_scale`"):
        jfree.activations.Shaped("gelu", 0.0)


def test_shaped_activations_are_made_at_once():
    """Under `jit` of known numbers, in single precision, and not of what is traced."""
    expected = jfree.activations.shaped("gelu", 0.02)
    inside = jax.jit(lambda: jfree.activations.shaped("gelu", 0.02)(jnp.ones(())))()
    np.testing.assert_allclose(inside, expected(jnp.ones(())), rtol=1e-12)
    low = jfree.activations.shaped("gelu", *jnp.asarray([0.02, 1], jnp.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {np.dtype("float32")}
    for mine, other in zip(jax.tree.leaves(low), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-2)
    with pytest.raises(ValueError, match="must be known"):
        jax.grad(lambda share: jfree.activations.shaped("gelu", share)(jnp.ones(())))(0.02)
