"""Every operation held against what it promises, and against the random matrices that it stands for."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri

import jfree
from jfree._calculus.sum_of_branches import SumOfBranches
from jfree._calculus.universal import UniversalFactor
from jfree._spectrum.moments import mean_log
from jfree.extend import (
    AbstractOperation,
    Atoms,
    ChangeSide,
    Curve,
    curve_of,
    Law,
    LawFactor,
    Moments,
    Point,
    point_mass,
    Shift,
    Step,
)

NUM_ATOMS, SIZE = 6, 200


class Act(NamedTuple):
    """An operation on one layer, and what it does to the eigenvalues of a matrix in general position."""

    operation: AbstractOperation
    sample: Callable[[np.ndarray, np.random.Generator], np.ndarray]


def haar(size, rng):
    q, r = np.linalg.qr(rng.normal(size=(size, size)))
    return q * np.sign(np.diag(r))


def times(law) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """Multiplication by a matrix of as many eigenvalues, turned; `law(size, rng)` gives them."""

    def sample(h, rng):
        root = np.sqrt(h)[:, None] * haar(h.size, rng) * np.sqrt(law(h.size, rng))
        return np.linalg.svd(root, compute_uv=False) ** 2

    return sample


def gaussian(ratio, sigma_w):
    def law(size, rng):
        weights = sigma_w * rng.normal(size=(round(size / ratio), size)) / size**0.5
        return np.linalg.eigvalsh(weights.T @ weights).clip(0)

    return Act(jfree.Gaussian().factor(jnp.asarray(ratio), jnp.asarray(sigma_w)), times(law))


def orthogonal(ratio, sigma_w):
    def law(size, rng):
        return np.where(np.arange(size) < round(size / ratio), sigma_w**2 * max(1, 1 / ratio), 0)

    return Act(jfree.Orthogonal().factor(jnp.asarray(ratio), jnp.asarray(sigma_w)), times(law))


def masked(factor, keep):
    """With room for more, as layers have it where others need more."""
    return factor if keep is None else factor.masked(jnp.asarray(keep)).fitted(1000, NUM_ATOMS, complex)


def kept(values, keep):
    """Of the squares of entries, a share, evenly spread, divided by its square."""
    number = np.floor(keep * np.arange(values.size + 1) + 1e-9)
    return np.where(np.diff(number) > 0, values / keep**2, 0)


def slopes(activation, q=1.0, keep=None):
    factor = activation.slope_factor(jnp.asarray(q))

    def law(size, rng):
        h = np.sqrt(q) * ndtri((np.arange(size) + 0.5) / size)
        squares = np.asarray(activation.derivative(jnp.asarray(h))) ** 2
        return squares if keep is None else kept(squares, keep)

    return Act(masked(factor, keep), times(law))


def values(*squares, keep=None):
    """As many of each."""
    points, share = jnp.asarray(squares), jnp.full(len(squares), 1 / len(squares))
    there = points > 0
    atoms = Atoms(jnp.sum(share * there), jnp.log(jnp.where(there, points, 1)), share * there)
    factor = LawFactor(Law.from_points(points, share, share, atoms))

    def law(size, rng):
        drawn = np.sort(squares)[np.arange(size) * len(squares) // size]
        return drawn if keep is None else kept(drawn, keep)

    return Act(masked(factor, keep), times(law))


def dropout(keep):
    return Act(masked(point_mass(jnp.asarray(1.0)), keep), times(lambda size, rng: kept(np.ones(size), keep)))


def scale(square):
    return Act(point_mass(jnp.asarray(square)), lambda h, rng: square * h)


def change_side(ratio):
    def sample(h, rng):
        size = round(h.size / ratio)
        return np.pad(np.sort(h)[::-1][:size], (0, max(0, size - h.size)))

    return Act(ChangeSide(jnp.asarray(ratio)), sample)


def shift(amount):
    return Act(Shift(jnp.asarray(amount)), lambda h, rng: h + amount)


def applied(acts, h, rng):
    for act in acts:
        h = act.sample(h, rng)
    return h


def one_layer(acts):
    return tuple(jax.tree.map(lambda x: x[None], act.operation) for act in acts)


def block(*branch, count=1):
    return sum_of([branch], count=count)


def sum_of(branches, ratio=None, count=1):
    """Of the identity, unless there is a ratio, and branches."""

    def one(branch, size, rng):
        y = applied(branch, np.ones(size), rng)
        diagonal = np.zeros((y.size, size))
        common = min(y.size, size)
        diagonal[:common, :common] = np.diag(np.sqrt(np.sort(y)[::-1][:common]))
        return haar(y.size, rng) @ diagonal @ haar(size, rng)

    def sample(h, rng):
        for _ in range(count):
            moved = sum(one(branch, h.size, rng) for branch in branches)
            moved = moved + np.eye(h.size) if ratio is None else moved
            found = np.linalg.svd(moved @ haar(h.size, rng) * np.sqrt(h), compute_uv=False) ** 2
            h = np.append(found, np.zeros(h.size - found.size))
        return h

    curves = tuple(Curve(one_layer(branch), (), jnp.ones(()), NUM_ATOMS) for branch in branches)
    width = None if ratio is None else jnp.asarray(ratio)
    return Act(SumOfBranches(curves, jnp.asarray(float(count)), width, (1,) * len(curves), many=count > 1), sample)


def universal(theta, num_blocks=100):
    def sample(h, rng):
        root = np.sqrt(h) * np.eye(h.size)
        for _ in range(num_blocks):
            root = root + (theta / num_blocks / h.size) ** 0.5 * rng.normal(size=root.shape) @ root
        return np.linalg.svd(root, compute_uv=False) ** 2

    return Act(UniversalFactor(jnp.asarray(theta)), sample)


def bottleneck():
    relu = slopes(jfree.activations.ReLU())
    return gaussian(4.0, 0.9), change_side(4.0), relu, gaussian(0.25, 0.8), change_side(0.25)


def narrower(ratio, sigma_w):
    return orthogonal(ratio, sigma_w), change_side(ratio)


def half_bent():
    return jfree.activations.FromFunction(lambda x: jnp.where(x > 0, x, jnp.tanh(x)), knots=(0.0,))


ACTS: dict[str, Callable[[], Act]] = {
    "gaussian": lambda: gaussian(0.8, 1.2),
    "narrowing gaussian": lambda: gaussian(1.25, 0.9),
    "orthogonal": lambda: orthogonal(1.25, 1.2),
    "scale": lambda: scale(0.6),
    "two slopes": lambda: slopes(jfree.activations.ShiftedReLU(0.7)),
    "two slopes, masked": lambda: slopes(jfree.activations.ShiftedReLU(0.7), keep=0.9),
    "dropout": lambda: dropout(0.8),
    "smooth": lambda: slopes(jfree.activations.Tanh(), q=1.5),
    "smooth, masked": lambda: slopes(jfree.activations.Tanh(), q=1.5, keep=0.8),
    "atoms": lambda: values(0.0, 0.5, 2.0, 2.0, 2.0),
    "atoms, masked": lambda: values(0.5, 2.0, 2.0, 2.0, keep=0.9),
    "leaky": lambda: slopes(jfree.activations.LeakyReLU(0.3)),
    "from function": lambda: slopes(half_bent()),
    "from function, masked": lambda: slopes(half_bent(), keep=0.9),
    "narrower side": lambda: change_side(1.125),
    "wider side": lambda: change_side(0.8),
    "shift": lambda: shift(0.4),
    "block": lambda: block(gaussian(1.0, 0.7), slopes(jfree.activations.ReLU())),
    "block of low rank": lambda: block(*bottleneck()),
    "block of a law": lambda: block(gaussian(1.0, 0.8), slopes(jfree.activations.Tanh())),
    "block of blocks": lambda: block(gaussian(1.0, 0.6), block(gaussian(1.0, 0.5)), gaussian(1.0, 0.7)),
    "large block": lambda: block(gaussian(1.0, 2.0), slopes(jfree.activations.ShiftedReLU(1.0))),
    "blocks": lambda: block(gaussian(1.0, 0.5), slopes(jfree.activations.ReLU()), count=2),
    "two branches": lambda: sum_of([(gaussian(1.0, 0.7),), (gaussian(1.0, 0.5), slopes(jfree.activations.Tanh()))]),
    "three branches": lambda: sum_of([(gaussian(1.0, s), slopes(jfree.activations.ReLU())) for s in (0.4, 0.9, 1.5)]),
    "branches of low rank": lambda: sum_of([(slopes(jfree.activations.ReLU(), keep=0.4),)] * 2),
    "no identity": lambda: sum_of([(gaussian(1.0, 0.7),), (slopes(jfree.activations.ReLU()), gaussian(1.0, 1.2))], 1.0),
    "no identity, low rank": lambda: sum_of([bottleneck(), (orthogonal(1.0, 1.1),)], 1.0),
    "narrowing branches": lambda: sum_of(
        [(gaussian(1.25, 0.7), change_side(1.25)), (slopes(jfree.activations.Tanh()), *narrower(1.25, 1.2))], 1.25
    ),
    "widening branches": lambda: sum_of(
        [
            (gaussian(0.8, 0.7), change_side(0.8)),
            (gaussian(0.8, 1.2), change_side(0.8), slopes(jfree.activations.ReLU())),
        ],
        0.8,
    ),
    "only branch": lambda: sum_of([(gaussian(1.25, 0.7), change_side(1.25))], 1.25),
    "universal": lambda: universal(0.5),
}
# What stands before: one with atoms and zeros, one with neither.
BEFORE: dict[str, Callable[[], tuple[Act, ...]]] = {
    "isometry": lambda: (orthogonal(1.25, 1.3), change_side(1 / 0.9)),
    "gaussian": lambda: (gaussian(1.25, 1.1), change_side(1.25)),
}
# A side with fewer eigenvalues than are not 0 is none.
PAIRS = [(name, before) for name in ACTS for before in BEFORE if (name, before) != ("narrower side", "gaussian")]
every_pair = pytest.mark.parametrize(("name", "before"), PAIRS)
every_pair_without_shifts = pytest.mark.parametrize(("name", "before"), [p for p in PAIRS if p[0] != "shift"])
at_every_place = pytest.mark.parametrize("where", ["upper", "negative", "circle"])


@functools.cache
def act(name) -> Act:
    return ACTS[name]()


@functools.cache
def acts_before(before) -> tuple[Act, ...]:
    return BEFORE[before]()


class Made(NamedTuple):
    """An operation, the curve that stands before it, and that of both."""

    operation: AbstractOperation
    prefix: Curve
    curve: Curve


class Changes(NamedTuple):
    """What changes along the curve; or its derivatives with respect to `log omega`."""

    z: jax.Array
    m: jax.Array
    unknowns: jax.Array
    potential: tuple[jax.Array, jax.Array]


class Seen(eqx.Module):
    """An operation at some points, and how all of it changes along the curve."""

    before: Point
    one_before: jax.Array  # `1 + M`
    before_potential: tuple[jax.Array, jax.Array]
    guess: jax.Array
    step: Step
    one: jax.Array
    potential: tuple[jax.Array, jax.Array]
    changes: Changes


def behind(before, operation):
    ratio = 1.0
    for one in (*(one.operation for one in acts_before(before)), operation):
        ratio = 1.0 if isinstance(one, Shift) else ratio * float(one.ratio) if isinstance(one, ChangeSide) else ratio
    operations = (*one_layer(acts_before(before)), jax.tree.map(lambda x: x[None], operation))
    curve = curve_of(operations, (), jnp.asarray(ratio), NUM_ATOMS)
    return Made(operation, Curve(operations[:-1], (), curve.rank, NUM_ATOMS), curve)


@functools.cache
def made(name, before):
    return behind(before, act(name).operation)


@eqx.filter_jit
def look(made, omega):
    operation, prefix, curve = made
    none = jnp.zeros((1, 0, omega.size), omega.dtype)
    at = prefix.point(omega, none)
    unknowns = jax.lax.fori_loop(0, 2, lambda _, x: operation.advance(at, x).unknowns, curve.settle(omega)[0])

    def along(omega):
        before, potential = prefix.potential_from(prefix.start(omega), none)
        step = operation.advance(before, unknowns)
        potential_after = curve.full_potential(step.point, *operation.potential(*potential, before, step))
        changing = Changes(step.point.z, step.point.m, step.unknowns, potential_after)
        return changing, (step, before, curve.full_potential(before, *potential))

    # Of no more than is looked at: tangents of all that the certificate asks for would be most of the program.
    now, changes, (step, before, before_potential) = jax.jvp(along, (omega,), (omega,), has_aux=True)
    return Seen(
        before=before,
        one_before=before.one_plus(1),
        before_potential=before_potential,
        guess=operation.guess(before),
        step=step,
        one=step.point.one_plus(1),
        potential=now.potential,
        changes=changes,
    )


def circle(curve, times_reach):
    return times_reach * curve.reach() * jnp.exp(1j * jnp.pi * (jnp.arange(256) + 0.5) / 256)


PLACES: dict[str, Callable[[Curve], jax.Array]] = {
    "upper": lambda curve: 1 + curve.rank * (1 + curve.moments.relative_variance) * (jnp.linspace(-2, 3, 256) + 3j),
    "negative": lambda curve: -jnp.exp(jnp.linspace(-3, 3, 256)).astype(complex),
    "circle": lambda curve: circle(curve, 4),
    "far": lambda curve: circle(curve, 1e4),
}


@functools.cache
def seen(name, before, where):
    mine = made(name, before)
    return jax.device_get(look(mine, PLACES[where](mine.curve)))


@functools.cache
def sampled(name, before):
    """Eigenvalues."""
    return applied((*acts_before(before), act(name)), np.ones(SIZE), np.random.default_rng(0))


def z_and_m(point):
    return point.z * np.exp(point.log_scale), point.side * point.m


@at_every_place
@every_pair
def test_tangents_are_derivatives(name, before, where):
    here = seen(name, before, where)
    step, point, moved = here.step, here.step.point, here.changes
    np.testing.assert_allclose(step.correction, 0, atol=1e-12)
    np.testing.assert_allclose(moved.z / point.z, point.dz, rtol=1e-10)
    np.testing.assert_allclose(moved.m / point.m, point.rate, rtol=1e-10)
    np.testing.assert_allclose(moved.unknowns / step.unknowns, step.tangents, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(point.n, point.m + point.rank, rtol=1e-12, atol=1e-14)


@eqx.filter_jit
def step_in_real_numbers(made):
    operation, prefix, curve = made
    omega = PLACES["negative"](curve).real
    at = prefix.point(omega, jnp.zeros((1, 0, omega.size)))
    return operation.advance(at, operation.advance(at, curve.settle(omega)[0]).unknowns)


@pytest.mark.parametrize("name", ACTS)
def test_real_points_may_be_given_in_real_numbers(name):
    step, real = seen(name, "isometry", "negative").step, jax.device_get(step_in_real_numbers(made(name, "isometry")))
    for x in jax.tree.leaves((real.point, real.unknowns, real.tangents)):
        assert not np.iscomplexobj(x)
    np.testing.assert_array_equal(real.signs.rising, step.signs.rising)
    np.testing.assert_allclose(real.correction, 0, atol=1e-12)
    for new, old in zip(jax.tree.leaves(real.point), jax.tree.leaves(step.point), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-9)
    for part in ("unknowns", "tangents", "closeness", "curvature", "closeness_to_zeros"):
        np.testing.assert_allclose(getattr(real, part), getattr(step, part), rtol=1e-9, atol=1e-12)


@at_every_place
@every_pair
def test_the_potential_is_an_integral(name, before, where):
    """`dPhi = G dz`, and the `log z` that comes with it is that of the point."""
    here = seen(name, before, where)
    point, (_, log_z), (d_phi, d_log_z) = here.step.point, here.potential, here.changes.potential
    np.testing.assert_allclose(d_log_z, point.dz, rtol=1e-10)
    np.testing.assert_allclose(d_phi, here.one * point.dz, rtol=1e-10, atol=1e-12)
    there = point.z.imag >= 0  # others lie on another sheet
    np.testing.assert_allclose(np.exp(log_z - point.log_scale)[there], point.z[there], rtol=1e-10)


@every_pair
def test_unknowns_are_guessed_at_infinity(name, before):
    here = seen(name, before, "far")
    guess = here.guess[:1]  # those behind it are left to the operations inside
    np.testing.assert_allclose(guess, here.step.unknowns[:1], rtol=1e-3)


@every_pair
def test_cumulants_are_moments(name, before):
    """Around the support `m_k` is the mean of `z^k M dz / z`."""
    point, moments = seen(name, before, "circle").step.point, made(name, before).curve.moments
    z, m = z_and_m(point)
    first, second = (np.mean((z**k * m * point.dz).real) for k in (1, 2))
    np.testing.assert_allclose(point.log_scale, moments.log_scale, rtol=1e-12)
    np.testing.assert_allclose(first, np.exp(moments.log_mean), rtol=1e-10)
    np.testing.assert_allclose(second / first**2 - 1, moments.relative_variance, rtol=1e-10, atol=1e-12)


@every_pair
def test_points_are_those_of_a_matrix(name, before):
    """`M(z)` is the mean of `t / (z - t)`, `Phi(z)` that of `log(z - t)`, and all lie in the right half planes."""
    here, eigenvalues = seen(name, before, "upper"), sampled(name, before)
    z, m = z_and_m(here.step.point)
    above = z.imag > np.mean(eigenvalues)
    assert above.mean() > 0.7
    off = z[above, None] - eigenvalues
    np.testing.assert_allclose(m[above], np.mean(eigenvalues / off, 1), rtol=0.05)
    np.testing.assert_allclose(here.potential[0][above], np.mean(np.log(off), 1), atol=0.02)
    assert (here.step.signs.lowest[above] > 0).all()
    below = seen(name, before, "negative").step
    away = below.point.z.real < -made(name, before).curve.far()  # where guesses are good
    assert away.any()
    assert below.signs.rising[away].all()


@every_pair
def test_atoms_are_those_of_a_matrix(name, before):
    """In general position eigenvalues coincide exactly, as many as an atom has, or not at all."""
    eigenvalues, atoms = sampled(name, before), made(name, before).curve.atoms()
    there = atoms.masses > 0
    places, masses = np.append(0.0, jnp.exp(atoms.log_locations[there])), np.append(atoms.zero, atoms.masses[there])
    counts = np.sum(np.abs(eigenvalues[:, None] - places) < 1e-8, 0)
    np.testing.assert_allclose(counts, masses * eigenvalues.size, atol=2)
    close = np.diff(np.sort(eigenvalues)) < 1e-9
    assert np.sum(np.append(close, False) | np.append(False, close)) == np.sum(counts[counts > 1])


@eqx.filter_jit
def volume_slope(operation, rank):
    return jax.jvp(jax.vmap(operation.log_volume), (rank,), (jnp.ones_like(rank),))[1]


@every_pair_without_shifts
def test_the_mean_logarithm_is_that_of_a_matrix(name, before):
    eigenvalues, (operation, _, curve) = sampled(name, before), made(name, before)
    if isinstance(operation, SumOfBranches) and operation.adds_logs and before == "isometry":
        assert np.isnan(curve.mean_log())  # of a product with zeros no sum is known
    far = 0.03 if operation.adds_logs else 0.08  # at four times the size a fourth of it
    np.testing.assert_allclose(mean_log(curve), np.mean(np.log(eigenvalues[eigenvalues > 1e-9])), atol=far)


@every_pair_without_shifts
def test_the_mean_logarithm_is_an_integral(name, before):
    """Up to a rank, of `-log S(-u)`, with `S(-u) = -(1 - u) / (u z)` where `M(z) = -u`."""
    operation = made(name, before).operation
    if isinstance(operation, SumOfBranches):
        return  # it is known for the whole rank only
    here = seen(name, before, "negative")

    def log_inverse(point):
        z, m = z_and_m(point)
        return np.log(-z.real) + np.log(-m.real) - np.log1p(m.real)

    rank = -z_and_m(here.before)[1].real
    slope = volume_slope(operation, rank)
    np.testing.assert_allclose(slope, log_inverse(here.step.point) - log_inverse(here.before), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(jax.vmap(operation.beyond)(rank), -z_and_m(here.step.point)[1].real, rtol=1e-12)


def same(tree, expected):
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)


@every_pair
def test_neutral_operations_do_nothing(name, before):
    like = jax.tree.map(lambda x: x[None], made(name, before).operation)
    neutral = like.neutral()
    assert jax.tree.map(jnp.shape, neutral) == jax.tree.map(jnp.shape, like)
    one = behind(before, jax.tree.map(lambda x: x[0], neutral))
    here = jax.device_get(look(one, PLACES["circle"](one.curve)))

    was, now = here.before, here.step.point
    np.testing.assert_allclose(np.stack(z_and_m(now)), np.stack(z_and_m(was)), rtol=1e-12)
    np.testing.assert_allclose([now.dz, now.rate], [was.dz, was.rate], rtol=1e-12)
    np.testing.assert_allclose(here.one, here.one_before, rtol=1e-12)
    np.testing.assert_allclose(np.stack(here.potential), np.stack(here.before_potential), rtol=1e-12, atol=1e-12)
    for bound in ("correction", "mismatch", "closeness", "curvature", "closeness_to_zeros", "roughness"):
        np.testing.assert_allclose(getattr(here.step, bound), 0, atol=1e-12, err_msg=bound)
    assert (here.step.signs.lowest[now.z.imag > 0] > 0).all()


@eqx.filter_jit
def summed_up(operation, moments, atoms, rank):
    volume = None if isinstance(operation, Shift) or not operation.adds_logs else jax.vmap(operation.log_volume)(rank)
    return operation.moments(moments), operation.atoms(atoms), jax.vmap(operation.beyond)(rank), volume


@pytest.mark.parametrize("name", ACTS)
def test_neutral_operations_leave_what_a_spectrum_is_known_by(name):
    like = jax.tree.map(lambda x: x[None], act(name).operation)
    neutral = jax.tree.map(lambda x: x[0], like.neutral())
    atoms = Atoms(*map(jnp.asarray, (0.9, [0.3, -0.4, 0, 0, 0, 0], [0.2, 0.1, 0, 0, 0, 0])))
    rank, volume = jnp.asarray([0.3, 0.8, 1.0]), None
    for floor in (-jnp.inf, -0.3):
        moments = Moments(*map(jnp.asarray, (0.4, 0.7, 0.2, floor)))
        *found, volume = summed_up(neutral, moments, atoms, rank)
        same(found, (moments, atoms, rank))
    if volume is not None:
        np.testing.assert_allclose(volume, 0, atol=1e-12)


def test_blocks_together_are_blocks_one_after_the_other():
    one = block(gaussian(1.0, 0.5), slopes(jfree.activations.ReLU())).operation
    together = jax.tree.map(lambda x: jnp.stack([x, x]), one).together()
    same(together, jax.tree.map(lambda x: x[None], act("blocks").operation))
    layers = *one_layer(acts_before("gaussian")), *one_layer([Act(one, lambda h, rng: h)] * 2)
    apart = curve_of(layers, (), jnp.asarray(1.25), NUM_ATOMS)
    same(apart.moments, made("blocks", "gaussian").curve.moments)
    np.testing.assert_allclose(apart.mean_log(), made("blocks", "gaussian").curve.mean_log(), rtol=1e-12)
