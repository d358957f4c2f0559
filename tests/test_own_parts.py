"""Activations and weight laws of one's own."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree
from jfree.extend import AbstractActivation, AbstractOperation, AbstractWeights, Atoms, Factor, Law, LawFactor


class NoLaw(AbstractActivation):
    """`2 x`, of which nobody says what its slopes are."""

    def __call__(self, x):
        return 2 * x

    def derivative(self, x):
        return 2 * jnp.ones_like(x)

    def second_moment(self, q):
        return 4 * q

    def mean(self, q):
        return 0 * q

    def slope_moment(self, q):
        return 4 * jnp.ones_like(q)


class Twice(NoLaw):
    """`2 x`."""

    def slope_factor(self, q, refine=1) -> AbstractOperation:
        one = jnp.ones_like(q)
        return Factor(4 * one, 0 * one, 0 * one, Atoms(one, jnp.log(4 * one)[None], one[None]))


class TwoValues(AbstractWeights):
    """Square, of singular values `low` and `sqrt(2 - low^2)`, half each, turned on both sides."""

    low: jax.Array
    centred: bool = eqx.field(static=True, default=False)

    def factor(self, ratio, sigma_w):
        values, half = self._values * jnp.square(sigma_w), jnp.full(2, 0.5)
        return LawFactor(Law.from_points(values, half, half, Atoms(jnp.ones(()), jnp.log(values), half)))

    def sample(self, shape, key, dtype):
        values = jnp.sqrt(self._values)[jnp.arange(shape[0]) % 2].astype(dtype)
        before, after = jax.random.split(key)
        left = jfree.Orthogonal().sample(shape, before, dtype)
        after = jnp.where(jnp.isnan(left[0, 0]), before, after)  # one factorisation after the other
        return left * values @ jfree.Orthogonal().sample(shape, after, dtype)

    @property
    def _values(self):
        return jnp.stack([jnp.square(self.low), 2 - jnp.square(self.low)])


def test_convolutions_have_no_weights_of_other_laws():
    with pytest.raises(ValueError, match="`weights` of a `Conv`"):
        jfree.layers.Conv(8, 3, weights=TwoValues(low=jnp.asarray(0.5)))


def test_an_activation_without_a_law_of_its_slopes_cannot_be_made():
    with pytest.raises(TypeError, match="slope_factor"):
        NoLaw()  # pyright: ignore[reportAbstractUsage]


@pytest.mark.parametrize("beside", ["linear", "relu", "tanh"])
def test_a_direct_subclass_of_activations_has_its_slopes(beside):
    net = jfree.MLP([100, 100, 100, 100], [Twice(), beside, "linear"], "gaussian")
    known = jfree.MLP([100, 100, 100, 100], ["linear", beside, "linear"], "gaussian", sigma_w=[2.0, 1.0, 1.0])
    spectrum, expected = jfree.jacobian_spectrum(net), jfree.jacobian_spectrum(known)
    np.testing.assert_allclose(spectrum.mean(), expected.mean(), rtol=1e-12)
    x = jnp.linspace(0.1, 5.0, 20)
    np.testing.assert_allclose(spectrum.density(x), expected.density(x), rtol=1e-8)
    eigenvalues = jfree.empirical.jacobian_eigenvalues(net, jax.random.key(0), num_samples=10)
    assert jfree.empirical.ks_distance(eigenvalues, spectrum) < 0.03


@pytest.mark.parametrize("weights", ["all", "mixed"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_weight_law_with_a_parameter(activation, weights):
    """Its spectrum, samples of it, and gradients with respect to the parameter."""

    def made(low):
        mine = TwoValues(low=jnp.asarray(low))
        laws = [mine] * 3 if weights == "all" else [mine, "gaussian", "orthogonal"]
        return jfree.MLP([300] * 4, activation, laws, sigma_w=1.2)

    spectrum = jfree.jacobian_spectrum(made(0.5))
    assert np.isfinite(spectrum.density(jnp.linspace(0.1, 2, 20))).all()
    eigenvalues = jfree.empirical.jacobian_eigenvalues(made(0.5), jax.random.key(0), num_samples=8)
    assert jfree.empirical.ks_distance(eigenvalues, spectrum) < 0.02
    fisher = jfree.fisher_spectrum(made(0.5))
    if activation == "tanh":
        eigenvalues = jfree.empirical.fisher_eigenvalues(made(0.5), jax.random.key(1), num_samples=4)
        assert jfree.empirical.ks_distance(eigenvalues, fisher) < 0.03
    step = 1e-5
    isometry = jax.jit(lambda low: jfree.objectives.isometry(made(low)))
    difference = isometry(0.5 + step) - isometry(0.5 - step)
    np.testing.assert_allclose(jax.grad(isometry)(0.5), difference / (2 * step), rtol=1e-6)
    if weights == "all":
        tuned = jfree.tune(made(0.5), where=lambda n: [w.low for w in n.weights], steps=5, progress=False)
        assert tuned.history[-1] < tuned.history[0]


def test_blocks_of_a_weight_law_with_numbers():
    net = jfree.ResNet(2, "relu", TwoValues(low=jnp.asarray(0.5)), sigma_w=0.8)
    spectrum = jfree.jacobian_spectrum(net)
    # Haar on both sides: the mean is that of any other law of the same variance.
    np.testing.assert_allclose(spectrum.mean(), jfree.jacobian_spectrum(jfree.ResNet(2, "relu", sigma_w=0.8)).mean())
    assert np.isfinite(spectrum.density(jnp.linspace(0.5, 3, 20))).all()
