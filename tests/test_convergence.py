"""Samples come closer to the limit as they grow, whatever the network; `JFREE_FULL=1` tries 200 of them."""

import functools
import os

import equinox as eqx
import jax
import numpy as np
import pytest
from helpers import MANY_SLOPES, random_mlp, random_resnet, TWO_SLOPES

import jfree
from jfree.empirical import convergence, fisher_eigenvalues, jacobian_eigenvalues, ks_distance

WIDTH = 160
NUM_NETWORKS = 200 if os.environ.get("JFREE_FULL") else 6


def test_distances_fall_with_the_width():
    net = jfree.MLP(np.ones(4), "hard_tanh", "gaussian", 1.5, 0.1)
    sample = functools.partial(jacobian_eigenvalues, net)
    found = convergence(sample, jfree.jacobian_spectrum(net), jax.random.key(0), (20, 80, 320), 24)
    assert found.widths.tolist() == [20, 80, 320]
    assert -0.8 < found.slope < -0.3
    assert np.all(np.diff(found.single) < 0)
    assert np.all(found.pooled < 0.7 * found.single)
    other = jfree.jacobian_spectrum(jfree.MLP(np.ones(4), "hard_tanh", "gaussian", 2.5, 0.1))
    assert convergence(sample, other, jax.random.key(0), (20, 80, 320), 24).slope > -0.2


def test_one_width_has_no_slope():
    net = jfree.MLP([1, 1])
    with pytest.raises(ValueError, match="`widths` must be two"):
        convergence(functools.partial(jacobian_eigenvalues, net), jfree.jacobian_spectrum(net), jax.random.key(0), (9,))


def test_no_distance_has_no_slope():
    net = jfree.MLP([1, 1], "linear", "orthogonal")
    sample = functools.partial(jacobian_eigenvalues, net)
    assert np.isnan(convergence(sample, jfree.jacobian_spectrum(net), jax.random.key(0), (5, 10), 2).slope)


def test_samples_come_in_rows():
    spectrum = jfree.jacobian_spectrum(jfree.MLP([1, 1]))
    with pytest.raises(ValueError, match="`sample` must return one row"):
        convergence(lambda key, width, num: jax.numpy.ones(width), spectrum, jax.random.key(0), (5, 10), 2)


def as_sampled(net):
    """With the ratios of whole widths: the atoms of orthogonal layers lie where these put them."""
    if not isinstance(net, jfree.MLP):
        return net
    widths = np.round(np.asarray(net.widths) * (WIDTH / np.max(net.widths)))
    return eqx.tree_at(lambda net: net.widths, net, jax.numpy.asarray(widths / WIDTH))


def random_case(rng):
    """A spectrum, and what samples it."""
    names = TWO_SLOPES + MANY_SLOPES
    kind = rng.choice(["jacobian", "fisher", "residual"])
    if kind == "fisher":
        net = as_sampled(random_mlp(rng, int(rng.integers(1, 5)), names))
        return jfree.fisher_spectrum(net), functools.partial(fisher_eigenvalues, net)
    make = random_resnet if kind == "residual" else random_mlp
    net = as_sampled(make(rng, int(rng.integers(1, 5)), names))
    return jfree.jacobian_spectrum(net), functools.partial(jacobian_eigenvalues, net)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(NUM_NETWORKS))
def test_random_networks(seed):
    """The limit is as far from a sample as other samples are, but for a factor."""
    rng = np.random.default_rng(seed)
    spectrum, sample = random_case(rng)
    rows = np.asarray(sample(jax.random.key(seed), WIDTH, 8))
    each = [float(ks_distance(row, spectrum)) for row in rows]
    values = np.sort(rows.ravel())
    places = np.linspace(0, values.size - 1, 2000).astype(int)

    def empirical(values):
        return np.searchsorted(np.sort(values), rows.ravel()[places] * (1 + 1e-9), "right") / values.size

    others = [np.abs(empirical(row) - empirical(np.delete(rows, k, 0).ravel())).max() for k, row in enumerate(rows)]
    assert np.mean(each) < 3 * np.mean(others) + 4 / WIDTH
    jax.clear_caches()
