"""No wrong branch: random networks against slow following. `JFREE_FULL=1` runs more than 10^5 points."""

import os

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fuzz_points, MANY_SLOPES, random_mlp, slow_solve, TWO_SLOPES

import jfree
from jfree._follow import solve

FULL = bool(os.environ.get("JFREE_FULL"))


CASES = [(TWO_SLOPES, (1, 2, 3, 5, 10, 30, 80, 200), 60 if FULL else 5, 1500)]
if FULL:
    CASES += [
        (MANY_SLOPES, (1, 2, 3, 5, 10, 30), 40, 400),
        (TWO_SLOPES + MANY_SLOPES, (2, 5, 10), 20, 400),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("names", "depths", "num_networks", "num_points"), CASES)
def test_no_wrong_branch(names, depths, num_networks, num_points):
    rng = np.random.default_rng(len(names))
    search = eqx.filter_jit(solve)
    count = uncertified = far = 0
    for _ in range(num_networks):
        net = random_mlp(rng, int(rng.choice(depths)), names)
        spectrum = jfree.jacobian_spectrum(net)
        if spectrum.mass_at_zero() == 1:
            continue  # every unit of some layer is dead, to rounding: nothing but an atom at 0
        x, distance = fuzz_points(spectrum, rng, num_points)
        roots = search(spectrum.curve, jnp.asarray(x + 0j))
        omega, worst, last = (np.asarray(a) for a in slow_solve(spectrum.curve, jnp.asarray(x)))
        certified = np.asarray(roots.certified)
        reliable = (worst < 0.3) & (last < 1e-4)
        error = np.abs(np.asarray(roots.omega) - omega) / np.abs(omega)
        # At an edge omega is a square root of x.
        wrong = certified & reliable & (error > 1e-6 + 1e-7 / np.sqrt(np.maximum(distance, 1e-14)))
        assert not wrong.any(), (net, x[wrong])
        assert reliable.mean() > 0.9
        count += x.size
        uncertified += np.sum(~certified)
        far += np.sum(~certified & (distance > 1e-3))
    print(f"{count} points, {uncertified} not certified, {far} of them away from edges and atoms")
    assert far <= 1e-4 * count
