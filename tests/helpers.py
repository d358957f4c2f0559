"""Random networks, and a slow solver to hold the fast one against."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import jfree
from jfree._numerics.complex import magnitude
from jfree._solve.certificate import certify

TWO_SLOPES = ("linear", "relu", "hard_tanh", "hard_sine", "shifted_relu", "scaled_hard_tanh")
MANY_SLOPES = ("leaky_relu", "tanh", "erf", "sigmoid", "silu", "gelu", "softplus")


def make_activation(name, rng):
    special = {
        "leaky_relu": lambda: jfree.activations.LeakyReLU(rng.uniform(0.01, 0.9)),
        "shifted_relu": lambda: jfree.activations.ShiftedReLU(rng.normal()),
        "scaled_hard_tanh": lambda: jfree.activations.HardTanh(rng.uniform(0.5, 2), rng.uniform(0.5, 2)),
    }
    return special[name]() if name in special else name


def random_mlp(rng, depth, names):
    """Widths within a factor 10, half of them constant; each layer its own weight law and scale."""
    if rng.random() < 0.5:
        widths = np.full(depth + 1, 1.0)
    else:
        widths = np.exp(np.clip(np.cumsum(rng.normal(0, 0.5, depth + 1)), -1.15, 1.15))
    names = rng.choice(names, size=rng.integers(1, 3))
    activations = [make_activation(rng.choice(names), rng) for _ in range(depth)]
    weights = rng.choice(["gaussian", "orthogonal"], size=depth)
    if rng.random() < 0.5:
        weights[:] = weights[0]
    sigma_w = np.exp(rng.uniform(np.log(0.3), np.log(3), depth if rng.random() < 0.3 else ()))
    sigma_b = rng.choice([0.0, 0.1, 0.5])
    return jfree.MLP(widths, activations, list(weights), sigma_w, sigma_b, q0=float(np.exp(rng.normal())))


def random_resnet(rng, depth, names):
    """One or two layers per block; branches from negligible to larger than the identity."""
    names = rng.choice(names, size=rng.integers(1, 3))
    activations = [make_activation(rng.choice(names), rng) for _ in range(depth)]
    if rng.random() < 0.3:
        activations = activations[0]
    layers = int(rng.choice([1, 1, 2]))
    shape = [(), (depth,), (depth, layers)][rng.integers(3)]
    sigma_w = np.exp(rng.uniform(np.log(0.1), np.log(2), shape)) / depth ** rng.choice([0, 0.5])
    weights = [str(w) for w in rng.choice(["gaussian", "orthogonal"], size=depth)]
    sigma_b, q0 = rng.choice([0.0, 0.1, 0.5]), float(np.exp(rng.normal()))
    mean0 = float(rng.choice([0.0, 0.5])) * q0**0.5
    return jfree.ResNet(depth, activations, weights, sigma_w, sigma_b, layers, q0, mean0)


def random_network(rng, blocks, names):
    """Of sums of up to three branches, within each other up to twice, of widths from a fourth to four times."""

    def dense(width):
        law = rng.choice(["gaussian", "orthogonal"])
        return jfree.layers.Dense(width, law, float(rng.uniform(0.3, 1.5)), float(rng.choice([0.0, 0.3])))

    def chain(width, end, depth):
        inner = 100.0 * 2.0 ** rng.integers(-2, 3)
        kind = rng.integers(3 if depth else 2)
        if kind == 0:
            return [dense(inner), jfree.layers.Activation(make_activation(rng.choice(names), rng)), dense(end)]
        if kind == 1:
            return [dense(end)]
        return [dense(inner), sum_of(inner, depth - 1), dense(end)]

    def sum_of(width, depth):
        skip = float(rng.choice([0.0, 1.0, rng.uniform(0.3, 1.5)]))
        end = 100.0 * 2.0 ** rng.integers(-2, 3) if skip == 0 and depth == 2 else width
        branches = [chain(width, end, depth) for _ in range(rng.integers(1, 4))]
        return jfree.layers.Parallel(branches, skip)

    layers, width = [], 100.0
    for _ in range(blocks):
        layers.append(sum_of(width, 2))
        new = layers[-1].new_width()
        width = width if new is None else float(new)
    return jfree.Network(100.0, [*layers, dense(100.0)])


def fuzz_points(spectrum, rng, num):
    """Log-uniform over the spectrum and beyond, crowded near edges, atoms and 0."""
    lower, upper = (float(e) for e in spectrum.edges())
    low = lower if lower > 0 else float(spectrum.quantile(0.02)) or upper * 1e-6
    low = max(low, upper * 1e-30) if np.isfinite(low) and low > 0 else upper * 1e-6
    spread = np.exp(rng.uniform(np.log(low) - 3, np.log(upper) + 1, num - num // 4))
    places, masses = (np.asarray(a) for a in spectrum.atoms())
    ends = [end for end in np.ravel(spectrum.support()) if end > 0]
    special = np.concatenate([places[(masses > 0) & (places > 0)], [e for e in (lower, upper) if e > 0], ends])
    special = special if len(special) else np.array([upper])
    near = rng.choice(special, num // 4)
    near = near * (1 + rng.choice([-1, 1], near.size) * 10 ** rng.uniform(-12, -1, near.size))
    distance = np.min(np.abs(np.append(spread, near)[:, None] / special - 1), axis=1)
    return np.append(spread, near), distance


@eqx.filter_jit
def slow_solve(curve, x, steps_per_decade=16):
    """Straight down from far above `x`, in steps so small that Newton's method cannot leave its branch.

    Returns the curve parameter at `x + i0`, and whether it is to be relied on.
    """
    c = curve.moments
    x = x * jnp.exp(-c.log_scale)
    top = 100 * (1 + c.relative_variance) * jnp.exp(c.log_mean - c.log_scale) + x
    decades = jnp.log10(jnp.max(top / x)) + 10
    count = jnp.ceil(decades * steps_per_decade).astype(int)
    ratio = (1e-10 * x / top) ** (1 / count)
    omega = curve.rank * jax.lax.complex(x, top)
    state = (omega, curve.settle(omega), jnp.zeros_like(x))

    def newton(z, state, limit):
        omega, unknowns, _ = state
        found = certify(curve, z, omega, unknowns, jnp.zeros(z.shape, bool)).newton
        step = found.step * jnp.minimum(1, limit / jnp.maximum(magnitude(found.step), 1e-30))
        return omega * jnp.exp(step), found.unknowns * jnp.exp(found.tangents * step), found.size

    def down(k, state):
        z = jax.lax.complex(x, top * ratio**k)
        omega, unknowns, size = newton(z, state, 1.0)
        worst = jnp.maximum(state[2], jnp.where(k > 0, size, 0))
        omega, unknowns, _ = newton(z, (omega, unknowns, worst), 1.0)
        omega, unknowns, _ = newton(z, (omega, unknowns, worst), 1.0)
        return omega, unknowns, worst

    state = jax.lax.fori_loop(0, count + 1, down, state)
    z = jax.lax.complex(x, jnp.zeros_like(x))

    def finish(_, state):
        omega, unknowns, size = newton(z, state, 1.0)
        return omega, unknowns, size

    omega, unknowns, last = jax.lax.fori_loop(0, 8, finish, state)
    real = jnp.abs(omega.imag) < 1e-9 * jnp.abs(omega)
    stripped = jax.lax.complex(omega.real, jnp.where(real, 0, omega.imag))
    # Where steps were too long, or rounding too large, it does not end on the branch.
    reliable = (state[2] < 0.3) & (last < 1e-4) & (certify(curve, z, stripped, unknowns, real).code == 0)
    return omega, reliable


_compiled: list[str] = []


def _note(event: str, duration_secs: float, **_: str | int):
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled.append(event)


jax.monitoring.register_event_duration_secs_listener(_note)


def num_compiled(run):
    """How many programs `run` compiles."""
    before = len(_compiled)
    run()
    return len(_compiled) - before
