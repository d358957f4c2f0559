"""Claim: a thousand points of 20 layers take a millisecond, and cost grows with layers, points and networks, no faster.

Every table tells how one thing grows, with the exponent fitted from the large sizes. The first tells how far the
certified density is from the least that it could take: the floating-point operations of one evaluation of the curve
with its certificate, and of one to read the density, at the rate of complex multiplications and additions here.

Run: `python -m benchmarks.scale [--quick]`.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.interpreters.partial_eval import dce_jaxpr

import jfree
from jfree._solve.certificate import certify

from . import _baselines as baselines
from ._harness import exponent, measure, report
from .density import midpoints, paper_case

Row = dict[str, Any]


def density(net: jfree.AbstractNetwork, x: np.ndarray) -> Row:
    """From the network to the density, as called and in one compiled function, with the first call's compilation."""
    jax.clear_caches()
    _, called = measure(lambda: jfree.jacobian_spectrum(net).density(x))
    compiled = eqx.filter_jit(lambda net, x: jfree.jacobian_spectrum(net).density(x))
    found, whole = measure(partial(compiled, net, jnp.asarray(x)))
    times = {"first_ms": called.first, "ms": called.median, "in_one_jit_ms": whole.median}
    return times | {"uncertified": int(np.isnan(found).sum())}


def points(sizes: tuple[int, ...]) -> list[Row]:
    net, _ = paper_case()
    rows = [{"layers": 20, "points": num} | density(net, midpoints(-1, 6, num)) for num in sizes]
    large = [row for row in rows if row["points"] >= 10_000]
    return [row | {"exponent": exponent(large, "points", "ms") if row in large else None} for row in rows]


def layers(depths: tuple[int, ...], activation: str) -> list[Row]:
    """Layers all differ."""
    rows = []
    for depth in depths:
        sigma_w = np.linspace(1.05, 1.1, depth)
        net = jfree.MLP(jnp.ones(depth + 1), activation, "orthogonal", sigma_w, 0.05, final_activation=activation)
        lower, upper = map(float, jfree.jacobian_spectrum(net).edges())
        x = np.geomspace(lower or 1e-6 * upper, upper, 1002)[1:-1]
        rows.append({"layers": depth, "activation": activation, "points": x.size} | density(net, x))
    for row in rows:
        row["first_ratio"] = row["first_ms"] / rows[0]["first_ms"]
    large = rows[1:]
    return [row | {"exponent": exponent(large, "layers", "ms") if row in large else None} for row in rows]


def quantile_levels(spectrum: jfree.Spectrum) -> jax.Array:
    return spectrum.quantile(jnp.linspace(0.1, 0.9, 9))


def batches(sizes: tuple[int, ...]) -> list[Row]:
    """Networks of 20 hard tanh layers with scales and widths of their own."""
    quantities = {
        "edges": lambda spectrum: jnp.stack(spectrum.edges()),
        "nine quantiles": quantile_levels,
        "mean_log": lambda spectrum: spectrum.mean_log(),
        "all three": lambda spectrum: (spectrum.edges(), quantile_levels(spectrum), spectrum.mean_log()),
    }
    rows = []
    for name, quantity in quantities.items():
        of_name = []
        for size in sizes:
            nets = jfree.stack(random_networks(size, 20))
            many = jax.vmap(lambda net, quantity=quantity: quantity(jfree.jacobian_spectrum(net)))
            compiled = jax.jit(many).lower(nets).compile()
            values, timing = measure(partial(compiled, nets), repeats=5)
            failed = sum(int(np.isnan(leaf).sum()) for leaf in jax.tree.leaves(values))
            analysis = compiled.memory_analysis()
            memory = analysis.temp_size_in_bytes / 2**20 if analysis else None
            of_name.append({"quantity": name, "networks": size, "ms": timing.median, "MiB": memory, "NaN": failed})
        rows += [row | {"exponent": exponent(of_name[-2:], "networks", "ms")} for row in of_name]
    return rows


def random_networks(number: int, depth: int) -> list[jfree.MLP]:
    rng = np.random.default_rng(0)
    return [
        jfree.MLP(rng.uniform(0.5, 2, depth + 1), "hard_tanh", "gaussian", rng.uniform(0.8, 1.6, depth), 0.1)
        for _ in range(number)
    ]


def gradient(depth: int) -> list[Row]:
    """Of the isometry objective, with respect to all `sigma_w`."""
    rows = []
    for activation in ("hard_tanh", "tanh"):
        net = jfree.MLP(np.ones(depth + 1), activation, "orthogonal", np.full(depth, 1.1), 0.05)

        def value(sigma_w, net=net):
            return jfree.objectives.isometry(eqx.tree_at(lambda n: n.sigma_w, net, sigma_w))

        _, cheap = measure(partial(jax.jit(value), net.sigma_w))
        _, dear = measure(partial(jax.jit(jax.value_and_grad(value)), net.sigma_w))
        row = {"layers": depth, "activation": activation, "value_ms": cheap.median}
        rows.append(row | {"with_gradient_ms": dear.median, "ratio": dear.median / cheap.median})
    return rows


def complex_rate(dtype: str = "float64", num: int = 2**12, length: int = 64) -> float:
    """Floating-point operations per second of `w = w z + z` on complex arrays; few numbers fit a cache."""
    z = jnp.exp(1j * jnp.linspace(0, 1, num, dtype=dtype))

    @jax.jit
    def chain(z):
        w = z
        for _ in range(length):
            w = w * z + z
        return w

    _, timing = measure(partial(chain, z), repeats=200)
    return 8 * num * length / (1e-3 * timing.minimum)


def operations(jaxpr: Any) -> float:
    """Floating-point operations of a program without loops of unknown length; 1 for a transcendental function."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        inner = [sub for sub in params.values() if hasattr(sub, "eqns") or hasattr(sub, "jaxpr")]
        if inner:
            total += params.get("length", 1) * sum(operations(getattr(sub, "jaxpr", sub)) for sub in inner)
        elif name in _COSTS:
            out = equation.outvars[0].aval
            total += out.size * _COSTS[name][int(jnp.issubdtype(out.dtype, jnp.complexfloating))]
    return total


# Of real and of complex numbers. What only moves or makes numbers is not listed.
_COSTS = dict.fromkeys(("add", "sub", "neg", "max", "min"), (1, 2)) | {"mul": (1, 6), "div": (1, 11), "square": (1, 6)}
_COSTS |= dict.fromkeys(("sqrt", "exp", "log", "log1p", "cos", "sin", "atan2", "abs", "sign"), (1, 1))
_COSTS |= dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "select_n"), (1, 1))


def least_operations(net: jfree.AbstractNetwork, x: Any) -> tuple[float, float]:
    """Of a density without unknowns: to certify every point from a guess next to it, and to read it."""
    curve = jax.jit(jfree.jacobian_spectrum)(net).curve  # without neutral layers
    z, real = jax.ShapeDtypeStruct(x.shape, jnp.result_type(x.dtype, jnp.complex64)), jnp.zeros(x.shape, bool)
    unknowns = jnp.zeros((curve.num_layers, 0, *x.shape), z.dtype)

    def certified(z):
        verdict = certify(curve, z, z, unknowns, real)
        return verdict.newton.step, verdict.code

    def count(program):
        jaxpr = jax.make_jaxpr(program)(z).jaxpr
        return operations(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])

    return count(certified), count(lambda z: curve.point(z, unknowns).one_plus(1) / z)


def limit(num: int) -> list[Row]:
    """For the case of Table 5.1 on the real axis: every point is evaluated once to be certified, once to be read."""
    net, factors = paper_case()
    x = midpoints(-1, 6, num)
    certifying, reading = least_operations(net, x)
    rate = complex_rate()
    least = 1e3 * (certifying + reading) / rate
    ours = density(net, x)
    _, sequential = measure(lambda: baselines.lilypads(factors, x + 1e-4j), repeats=3)
    _, following = measure(lambda: baselines.root_following(factors, x + 1e-4j), repeats=3)
    per = 20 * num
    row = {"points": num, "operations_to_certify": certifying / per, "to_read": reading / per}
    row |= {"complex_Gflop_per_s": rate / 1e9, "least_ms": least, "ms": ours["ms"]}
    row |= {"in_one_jit_ms": ours["in_one_jit_ms"], "over_least": ours["in_one_jit_ms"] / least}
    for name, slow in (("lilypads", sequential), ("root_following", following)):
        row |= {f"{name}_ms": slow.median, f"{name}_ratio": slow.median / ours["in_one_jit_ms"]}
    return [row]


def main(quick: bool = False) -> None:
    """Prints the tables and saves `results/scale.json`."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_enable_compilation_cache", False)
    sizes = (100, 1000, 10_000, 100_000) if quick else (100, 1000, 10_000, 100_000, 1_000_000)
    depths = (10, 100, 300) if quick else (10, 100, 300, 1000)
    tables = {
        "The limit, 20 linear layers": limit(1000),
        "More points, 20 linear layers": points(sizes),
        "More layers": layers(depths, "hard_tanh"),
        "More layers, smooth": layers((10, 20, 40), "tanh"),
        "More networks, of 20 layers": batches((32, 256) if quick else (32, 256, 1024)),
        "Gradient of the isometry": gradient(100),
    }
    report("scale", __doc__, tables)


if __name__ == "__main__":
    tyro.cli(main)
