"""No wrong branch: random networks against slow following. `JFREE_FULL=1` runs more than 10^5 points."""

import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fuzz_points, MANY_SLOPES, random_mlp, random_network, random_resnet, slow_solve, TWO_SLOPES

import jfree
from jfree._solve.solve import find_roots

FULL = bool(os.environ.get("JFREE_FULL"))
DEPTHS = (1, 2, 3, 5, 10, 30, 80, 200)
ALL = TWO_SLOPES + MANY_SLOPES


def jacobian(rng, depths, names):
    return jfree.jacobian_spectrum(random_mlp(rng, int(rng.choice(depths)), names))


def fisher(rng, depths, names):
    return jfree.fisher_spectrum(random_mlp(rng, int(rng.choice(depths)), names))


def residual(rng, depths, names):
    return jfree.jacobian_spectrum(random_resnet(rng, int(rng.choice(depths)), names))


def composed(rng, depths, names):
    return jfree.jacobian_spectrum(random_network(rng, int(rng.choice(depths)), names))


# make, names of activations, depths, networks, points of each
CASES = [
    (jacobian, TWO_SLOPES, DEPTHS, 60 if FULL else 3, 1000),
    (fisher, TWO_SLOPES, DEPTHS, 60 if FULL else 2, 500),
    (composed, TWO_SLOPES, (1, 2) if FULL else (1,), 40 if FULL else 1, 500),
]
if FULL:
    CASES += [
        (jacobian, ALL, (2, 5, 10), 60, 400),
        (fisher, ALL, (2, 5, 10), 30, 400),
        (residual, TWO_SLOPES, (1, 2, 5, 20, 100), 40, 500),
        (residual, ALL, (1, 2, 5), 30, 400),
    ]


def in_groups(spectra):
    """Those of one structure, which compile once, follow each other; a process has room for so many compilations."""
    groups = {}
    for spectrum in spectra:
        leaves, structure = jax.tree.flatten(spectrum)
        groups.setdefault((structure, tuple(x.shape for x in leaves)), []).append(spectrum)
    for group in groups.values():
        jax.clear_caches()
        yield from group


@pytest.mark.slow
@pytest.mark.parametrize(("make", "names", "depths", "num_networks", "num_points"), CASES)
def test_no_wrong_branch(make, names, depths, num_networks, num_points):
    rng = np.random.default_rng(len(names))
    search = eqx.filter_jit(find_roots)
    count = uncertified = far = 0
    for spectrum in in_groups([make(rng, depths, names) for _ in range(num_networks)]):
        if spectrum.mass_at_zero() > 1 - 1e-9:
            continue  # units of some layer are dead, to rounding: nothing but an atom at 0
        x, distance = fuzz_points(spectrum, rng, num_points)
        roots = search(spectrum.curve, jnp.asarray(x + 0j))
        omega, reliable = (np.asarray(a) for a in slow_solve(spectrum.curve, jnp.asarray(x)))
        certified = np.asarray(roots.certified)
        error = np.abs(np.asarray(roots.omega) - omega) / np.abs(omega)
        # At an edge omega is a square root of x.
        wrong = certified & reliable & (error > 1e-6 + 1e-7 / np.sqrt(np.maximum(distance, 1e-14)))
        assert not wrong.any(), (spectrum, x[wrong])
        count += x.size
        uncertified += np.sum(~certified)
        far += np.sum(~certified & reliable & (distance > 1e-3))
    print(f"{count} points, {uncertified} not certified, {far} of them away from edges and atoms")
    assert far <= 1e-4 * count


@pytest.mark.slow
@pytest.mark.parametrize("make", [jacobian, fisher, residual])
def test_edges_enclose_the_spectrum(make):
    """All mass lies between them; next to them, on the inner side, the bulk or an atom."""
    rng = np.random.default_rng(len(make.__name__))
    names, depths = (ALL, (1, 3)) if FULL else (("hard_tanh", "relu", "leaky_relu"), (3,))
    step = 1e-3
    for spectrum in in_groups([make(rng, depths, names) for _ in range(30 if FULL else 4)]):
        lower, upper = (float(edge) for edge in spectrum.edges())
        zero = float(spectrum.mass_at_zero())
        if zero > 1 - 1e-9:
            continue
        places, masses = (np.asarray(a) for a in spectrum.atoms())
        for edge, side, outer in ((lower, -1, zero), (upper, 1, 1)):
            if edge == 0:
                continue
            outside, inside = edge * (1 + side * step), edge * (1 - side * step)
            np.testing.assert_allclose(spectrum.cdf(outside), outer, atol=1e-9)
            assert spectrum.solve(outside).m.imag == 0
            on_atom = np.any((masses > 1e-12) & (np.abs(places / edge - 1) < step))
            assert on_atom or spectrum.solve(inside).m.imag < 0, (spectrum, edge)
