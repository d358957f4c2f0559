"""Ling, He, Qiu, "Spectrum concentration in deep residual learning: a free probability approach".

Figure 2, one block; Figure 3, a hundred blocks of variance c/L beside the universal limit; Figures 4, 5, 9 and 10,
what these variances are worth in training, on scikit-learn's digits in place of CIFAR-10.
"""

import itertools
import math
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import jfree
from jfree.activations import AbstractActivation
from jfree.empirical import jacobian_eigenvalues, ks_distance

from .._data import digits, standardised
from ._reproduction import Check, Reproduce, Reproduction, Row

PAPER = "Ling, He, Qiu"
ACTIVATIONS = ("linear", "relu", "leaky_relu", "tanh", "hard_tanh", "sigmoid")
RECTIFIERS = ("relu", "leaky_relu")
SCALES = (1.0, 0.1, 0.01)
WIDTH, DEPTH = 400, 100
KS = 0.02  # of eigenvalues of width 400: fluctuations are of order log(N) / N, and 1 / (2 sqrt(N)) per slope's share


# Figure 2


def single_block(full: bool) -> Reproduction:
    num_samples = 50 if full else 10
    rows, figure = [], Figure(figsize=(12, 5), layout="constrained")
    cases = [(a, w, v) for a in ("linear", "relu") for w in ("gaussian", "orthogonal") for v in (0.1, 1.0)]
    for case, ax in zip(cases, figure.subplots(2, 4).flat, strict=True):
        rows.append(_block(*case, num_samples, ax))
    errata = _block_errata(rows)
    checks = [
        Check.near(f"{name}, {row['block']}", row[f"{name} (32)"], row[f"{name} sampled"], tolerance)
        for row in rows
        for name, tolerance in (("mean", 0.02), ("variance", 0.05))
    ]
    worst = max(rows, key=lambda row: row["KS"])
    return Reproduction(
        "Spectra of single residual blocks are those of the free sum of the identity and an R-diagonal element.",
        f"{PAPER}, Figure 2 and Corollary 1",
        f"N = {WIDTH} and {num_samples} samples pooled (published: N = 400), sigma_b = 0, |x_0|^2 = N",
        {"One block": rows, "Printed formulas that samples refute: mean of J J^T, but for (24)": errata},
        [
            _at_most(f"KS distance, largest of 8 ({worst['block']})", "densities coincide", worst["KS"], KS),
            _at_most(
                "moments of jfree beside (32), largest relative difference of 16", "(32)", _moment_gap(rows), 1e-9
            ),
            *checks,
        ],
        figure,
        [
            "(24) lacks a factor 1 / lambda: as printed it is a semicircle of mass sigma_w^2; Marchenko and Pastur's "
            "density is sqrt((4 sigma_w^2 - lambda) / lambda) / (2 pi sigma_w^2).",
            "(18) should have S under the root, and the orthogonal S after (26) should be 1 / sigma_w^2. Corollary 1 "
            "is right, if s_1 = 0 is taken for orthogonal weights.",
        ],
    )


def _at_most(what: str, published: str, ours: float, bound: float) -> Check:
    return Check(what, published, ours, f"at most {bound:g}", ours <= bound)


def _block(activation: str, weights: str, variance: float, num_samples: int, ax: Axes) -> Row:
    net = jfree.ResNet(1, activation, weights, variance**0.5)
    spectrum = jfree.jacobian_spectrum(net)
    eigenvalues = np.asarray(jacobian_eigenvalues(net, jax.random.key(0), WIDTH, num_samples))
    name = f"{activation}, {weights}, sigma_w^2 = {variance:g}"
    lower, upper = eigenvalues.min(), eigenvalues.max()
    s = np.linspace(lower**0.5, upper**0.5, eigenvalues.size + 2)[1:-1]  # as many, so that one solver is compiled
    ax.hist(eigenvalues.ravel(), np.linspace(lower**0.5, upper**0.5, 41) ** 2, density=True, color="thistle")
    density = np.asarray(spectrum.density(s**2))
    ax.plot(s**2, density, "r", lw=1)
    ax.set_title(name, fontsize=9)
    ax.set(xlabel=r"eigenvalue of $JJ^T$", ylabel="density", ylim=(0, 1.2 * np.nanquantile(density, 0.97)))
    mean, spread = _corollary_1(0.5 if activation == "relu" else 1.0, variance, -1.0 if weights == "gaussian" else 0.0)
    return {
        "block": name,
        "KS": float(ks_distance(eigenvalues, spectrum)),
        "mean (32)": mean,
        "mean jfree": float(spectrum.mean()),
        "mean sampled": float(eigenvalues.mean()),
        "variance (32)": spread,
        "variance jfree": float(spectrum.variance()),
        "variance sampled": float(eigenvalues.var()),
        "uncertified": int(np.isnan(density).sum()),
    }


def _corollary_1(share: float, variance: float, s1: float) -> tuple[float, float]:
    """Mean and variance of a block by (32), for slopes that are 1 with probability `share` and 0 otherwise."""
    return 1 + variance * share, variance * (2 * share + variance * (share - share**2 * (1 + s1)))


def _moment_gap(rows: list[Row]) -> float:
    return max(abs(row[f"{k} jfree"] / row[f"{k} (32)"] - 1) for row in rows for k in ("mean", "variance"))


def _block_errata(rows: list[Row]) -> list[Row]:
    """What the formulas would give as printed, at `sigma_w^2 = 0.1`; the mean of `Y Y^T` is `1 / S(0)`."""
    sampled = {row["block"]: row["mean sampled"] for row in rows}
    variance = 0.1
    (weight, _) = jfree.sample_weights(jfree.ResNet(1, "linear", "gaussian", variance**0.5), jax.random.key(0), WIDTH)[
        0
    ]
    columns = ("formula", "printed", "right", "sampled")
    values = (
        ("(18), Gaussian linear", 1 + variance**2, 1 + variance, sampled["linear, gaussian, sigma_w^2 = 0.1"]),
        ("after (26), S = 1, orthogonal linear", 2.0, 1 + variance, sampled["linear, orthogonal, sigma_w^2 = 0.1"]),
        ("(24), mean of W W^T", 2 * variance**2, variance, float(jnp.mean(weight**2) * WIDTH)),
    )
    return [dict(zip(columns, row, strict=True)) for row in values]


# Figure 3


def residual_spectra(full: bool) -> Reproduction:
    num_samples = 10 if full else 2
    figure = Figure(figsize=(12, 6), layout="constrained")
    rows: list[Row] = []
    for activation, ax in zip(ACTIVATIONS, figure.subplots(2, 3).flat, strict=True):
        rows += [_spectrum(activation, c, num_samples, ax) for c in SCALES]
        ax.set(title=activation, xlabel=r"eigenvalue of $JJ^T$", ylabel="density", xscale="log")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.legend(frameon=False)
    figure.suptitle("sampled (steps; triangles: beyond the support), exact (lines) and limit (dashed)", fontsize=10)
    depths, independent, printed = _depths(), _independent("relu", 1.0), _printed_slopes()
    return Reproduction(
        "With sigma_w^2 = c/L spectra depend on one number, theta, whatever the activation; what they miss is single "
        "eigenvalues.",
        f"{PAPER}, Figure 3, Theorem 2 and Corollary 3",
        f"L = {DEPTH}, N = {WIDTH}, {num_samples} samples (published: the same L and N), sigma_b = 0, |x_0|^2 = N, "
        "leaky ReLU of slope 0.01 (not published)",
        {
            "Gaussian weights, sigma_w^2 = c/L": rows,
            "Towards the limit: linear, c = 1": depths,
            "ReLU, c = 1, slopes of its own forward pass or of an independent one: eigenvalues": independent,
            "Slopes as printed below (2), tanh, c = 1: mean of J J^T": printed,
        },
        [*_spectra_checks(rows), *_outlier_checks(rows, independent), _depth_check(depths)],
        figure,
        [
            "ReLU and leaky ReLU: of 400 eigenvalues one lies far above the support, and with small c one below. KS "
            "distances do not see them, the condition number and (for c = 1) the mean are theirs: (49) and (34) hold "
            "for the other eigenvalues only. They are no matter of small width: at N = 100, 200 and 400 they are "
            "of one size, only their mass, 1/N, falls.",
            "They come from the weights being those of the forward pass. Rectifiers have a positive mean, so given "
            "x = x_{l-1} the mean of D_l W_l is a u x^T / |x| with u constant, |u| = 1 and a = sigma_w / sqrt(2 pi), "
            "and this adds up over blocks. With slopes of an independent pass, as the paper assumes, they are gone.",
            "Below (2) slopes are printed as taken at x_{l-1}; they are taken at h_l, and the means tell these apart.",
            "Exact spectra and the limit part by O(1/L), the samples of N = 400 from both by their own fluctuations.",
        ],
    )


def _spectrum(activation: str, c: float, num_samples: int, ax: Axes) -> Row:
    net = jfree.ResNet(DEPTH, activation, "gaussian", (c / DEPTH) ** 0.5)
    spectrum, theta = jfree.jacobian_spectrum(net), _theta(net)
    limit = jfree.universal_resnet_spectrum(theta)
    eigenvalues = np.asarray(jacobian_eigenvalues(net, jax.random.key(0), WIDTH, num_samples))
    exact, published = np.asarray(spectrum.edges()), _edges(theta)
    inside = (eigenvalues > exact[0] / 1.1) & (eigenvalues < exact[1] * 1.1)
    x = np.geomspace(min(exact[0], published[0]), max(exact[1], published[1]), eigenvalues.size + 2)[1:-1]
    color = {1.0: "tab:red", 0.1: "tab:blue", 0.01: "tab:green"}[c]
    bins = np.geomspace(x[0], x[-1], 41)
    ax.stairs(np.histogram(eigenvalues, bins)[0] / eigenvalues.size / np.diff(bins), bins, color=color, alpha=0.6)
    ax.plot(x, spectrum.density(x), color=color, lw=1, label=f"c = {c:g}")
    ax.plot(x, limit.density(x), "k--", lw=0.7)
    ax.plot(eigenvalues[~inside], 0 * eigenvalues[~inside], "v", color=color)
    return {
        "activation": activation,
        "c": c,
        "theta": theta,
        "KS limit": float(ks_distance(eigenvalues, limit)),
        "KS exact": float(ks_distance(eigenvalues, spectrum)),
        "lower (48)": published[0],
        "lower exact": float(exact[0]),
        "lower sampled": float(eigenvalues.min(axis=1).mean()),
        "upper (48)": published[1],
        "upper exact": float(exact[1]),
        "upper sampled": float(eigenvalues.max(axis=1).mean()),
        "cond (49)": (published[1] / published[0]) ** 0.5,
        "cond exact": float((exact[1] / exact[0]) ** 0.5),
        "cond sampled": float(np.mean((eigenvalues.max(axis=1) / eigenvalues.min(axis=1)) ** 0.5)),
        "outside": float((~inside).sum(axis=1).mean()),
        "cond of the rest": float(
            np.mean([(v[i].max() / v[i].min()) ** 0.5 for v, i in zip(eigenvalues, inside, strict=True)])
        ),
        "mean (34)": float(spectrum.mean()),
        "mean sampled": float(eigenvalues.mean()),
        "mean of the rest": float(eigenvalues[inside].mean()),
    }


def _theta(net: jfree.ResNet) -> float:
    """`(c/L) sum_l E phi'(h_l)^2` for `sigma_w^2 = c/L`."""
    return float(jnp.sum(net.propagate().chi))


def _edges(theta: float) -> tuple[float, float]:
    """(48)."""
    r = math.sqrt(theta**2 + 2 * theta)
    return (1 + theta - r) * math.exp(-r), (1 + theta + r) * math.exp(r)


def _gap(rows: list[Row], ours: str, published: str) -> float:
    """The largest relative difference."""
    return max(abs(row[ours] / row[published] - 1) for row in rows)


def _spectra_checks(rows: list[Row]) -> list[Check]:
    checks = []
    for c in SCALES:
        some = [row for row in rows if row["c"] == c]
        for kind in ("limit", "exact"):
            largest = max(row[f"KS {kind}"] for row in some)
            checks.append(_at_most(f"KS distance from the {kind} law, c = {c:g}", "agree remarkably", largest, KS))
    conds = [[row["cond exact"] for row in rows if row["activation"] == a] for a in ACTIVATIONS]
    falls = [a for a, some in zip(ACTIVATIONS, conds, strict=True) if some == sorted(some, reverse=True)]
    return [
        *checks,
        _at_most("edges of L = 100 beside (48), largest relative difference", "(48)", _edge_gap(rows), 3 / DEPTH),
        _at_most("condition number of L = 100 beside (49)", "(49)", _gap(rows, "cond exact", "cond (49)"), 1 / DEPTH),
        _count("condition number falls with c", falls),
    ]


def _edge_gap(rows: list[Row]) -> float:
    return max(_gap(rows, f"{edge} exact", f"{edge} (48)") for edge in ("lower", "upper"))


def _outlier_checks(rows: list[Row], independent: list[Row]) -> list[Check]:
    checks = []
    for c in SCALES:
        for label, wanted in (("rectifiers", True), ("others", False)):
            some = [row for row in rows if row["c"] == c and (row["activation"] in RECTIFIERS) == wanted]
            cond, mean = _gap(some, "cond sampled", "cond (49)"), _gap(some, "mean sampled", "mean (34)")
            checks += [
                _at_most(f"condition number sampled beside (49), {label}, c = {c:g}", "(49)", cond, 0.05),
                _at_most(f"mean sampled beside (34), {label}, c = {c:g}", "(34)", mean, 0.05),
            ]
    rest = _gap(rows, "cond of the rest", "cond (49)"), _gap(rows, "mean of the rest", "mean (34)")
    published = next(r["cond (49)"] for r in rows if r["activation"] == "relu" and r["c"] == 1)
    return [
        *checks,
        _at_most("condition number without eigenvalues outside, all 18", "(49)", rest[0], 0.1),
        _at_most("mean without them, all 18", "(34)", rest[1], 0.05),
        Check.near("condition number, ReLU, c = 1, independent slopes", published, independent[-1]["cond"], 0.05),
    ]


def _independent(activation: str, c: float) -> list[Row]:
    """Jacobians with slopes of their own forward pass, and with those of other weights, as (12) and (33) assume."""
    net = jfree.ResNet(DEPTH, activation, "gaussian", (c / DEPTH) ** 0.5)
    rows = []
    for width, forward_seed in ((100, 0), (200, 0), (WIDTH, 0), (WIDTH, 1)):
        own, other = (
            jnp.stack([w for w, _ in jfree.sample_weights(net, jax.random.key(seed), width)])
            for seed in (0, forward_seed)
        )
        values = _squared_singular_values(net, other, own, jax.random.normal(jax.random.key(2), (width,)))
        row: Row = {"N": width, "slopes": "independent" if forward_seed else "own", "smallest": float(values[-1])}
        row |= {"second largest": float(values[1]), "largest": float(values[0])}
        rows.append(row | {"cond": float((values[0] / values[-1]) ** 0.5)})
    return rows


@eqx.filter_jit
def _squared_singular_values(net: jfree.ResNet, forward: Array, backward: Array, x: Array) -> Array:
    activation = net.activations[0]

    def block(state, weights):
        x, jacobian = state
        h = weights[0] @ x
        return (x + activation(h), jacobian + activation.derivative(h)[:, None] * (weights[1] @ jacobian)), None

    (_, jacobian), _ = jax.lax.scan(block, (x, jnp.eye(x.size)), (forward, backward))
    return jnp.square(jnp.linalg.svd(jacobian, compute_uv=False))


def _depths() -> list[Row]:
    """Edges of linear networks, whose difference from (48) should fall like 1/L, for both weights."""
    published, rows = _edges(1.0), []
    for weights in ("gaussian", "orthogonal"):
        for depth in (100, 1000, 10_000):
            net = jfree.ResNet(depth, "linear", weights, depth**-0.5)
            lower, upper = (float(e) for e in jfree.jacobian_spectrum(net).edges())
            gaps = {"lower gap": lower / published[0] - 1, "upper gap": upper / published[1] - 1}
            rows.append({"weights": weights, "L": depth, "lower": lower, "upper": upper} | gaps)
    return rows


def _depth_check(rows: list[Row]) -> Check:
    """Of the last tenfold increase in depth."""
    ends = [(a, b) for a, b in itertools.pairwise(rows) if b["L"] == 10_000]
    slopes = [math.log10(abs(b[k] / a[k])) for a, b in ends for k in ("lower gap", "upper gap")]
    worst = max(slopes, key=lambda slope: abs(slope + 1))
    return Check.near("exponent of the edges' distance from (48) against L, farthest of 4", -1.0, worst, 0.05)


def _printed_slopes() -> list[Row]:
    """`D_ii = phi'(x_i)`, as printed, would have the mean `prod_l (1 + sigma_w^2 E phi'(x_{l-1})^2)`."""
    variance = 1 / DEPTH
    net = jfree.ResNet(DEPTH, "tanh", "gaussian", variance**0.5)
    activation, q = net.activations[0], net.propagate().q
    slopes = jax.vmap(activation.slope_moment)(q / variance)
    sampled = jnp.mean(jacobian_eigenvalues(net, jax.random.key(0), WIDTH))
    right = float(jfree.jacobian_spectrum(net).mean())
    return [{"printed": float(jnp.prod(1 + variance * slopes)), "right": right, "sampled": float(sampled)}]


# Figures 4, 5, 9 and 10


class Size(NamedTuple):
    """Of the networks and their training."""

    width: int
    batch: int
    steps: int
    seeds: int


class Run(NamedTuple):
    """Of every seed: training loss per step, the mean of the last tenth, and accuracy on the rest of the data."""

    losses: np.ndarray
    final: np.ndarray
    accuracy: np.ndarray

    @property
    def area(self) -> float:
        """Under the learning curve: the mean loss over steps and seeds."""
        return float(self.losses.mean())


TRAINED = {"1": 1.0, **{f"{c:g}/L": c / DEPTH for c in SCALES}}
OPTIMIZERS = {"SGD, momentum 0.9": optax.sgd(1e-3, momentum=0.9), "Adam": optax.adam(1e-4)}
Params = tuple[Array, Array, Array, Array]


def residual_training(full: bool) -> Reproduction:
    size = Size(WIDTH, 128, 200 * 12, 10) if full else Size(64, 64, 200, 3)
    runs = {(o, a, v): run for o in OPTIMIZERS for a in ACTIVATIONS for v, run in _trained(a, o, size).items()}
    rows = [_training_row(*key, run) for key, run in runs.items()]
    checks = [check for name in OPTIMIZERS for check in _training_checks(name, runs)]
    return Reproduction(
        "Residual networks without normalisation learn faster from sigma_w^2 = c/L than from 1.",
        f"{PAPER}, Figures 4, 5, 9 and 10",
        f"scikit-learn's digits, L = {DEPTH}, N = {size.width}, {size.steps} steps of batch {size.batch}, "
        f"{size.seeds} seeds, Gaussian weights (published: CIFAR-10, N = 400, 200 epochs of batch 128, 10 repeats), "
        "learning rates 1e-3 for SGD and 1e-4 for Adam as published",
        {"Training loss: at first, over all steps, over the last tenth of them; accuracy on what is held out": rows},
        [*checks, _same_ranking(runs)],
        _training_figure(runs),
        [
            "At the default size sigma_w^2 = 1 fares as published with linear, ReLU and leaky ReLU. The others train "
            "from it too, only slower, with losses that could be shown; sigmoid with Adam ends lowest from it, and "
            "sigmoid with SGD learns fastest from the largest c.",
            "Between the c the order is that published for ReLU and leaky ReLU. For linear, tanh and hard tanh their "
            f"mean losses lie within {_spread(runs):.0%} of each other, about what seeds and batches do.",
            "Sigmoid adds 1/2 to every entry in every block, whatever its weights: all its first losses are alike, and "
            "large.",
            "No value of Figures 4 and 5 is printed as a number: what is checked is what the text says of them.",
            "Input and output layers, of which the paper says only that the input is reduced by one, are Gaussian "
            "with entries of variance 1 / N_in, and trained; biases start at 0. Losses that overflow count as largest.",
        ],
    )


def _trained(name: str, optimizer: str, size: Size) -> dict[str, Run]:
    """Every variance, from the same draws."""
    pixels, classes = digits()
    x, y = standardised(pixels).astype(np.float32), classes.astype(np.int32)
    orders = [np.random.default_rng(seed).permutation(len(x)) for seed in range(size.seeds)]
    x, y = np.stack([x[order] for order in orders]), np.stack([y[order] for order in orders])
    cut = x.shape[1] * 4 // 5
    picks = np.random.default_rng(size.seeds).integers(0, cut, (size.seeds, size.steps, size.batch))
    runs = {}
    for label, variance in TRAINED.items():
        net = jfree.ResNet(DEPTH, name, "gaussian", variance**0.5)
        drawn = [_start(net, size.width, x.shape[-1], seed) for seed in range(size.seeds)]
        start = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)
        losses, accuracy = _train(net.activations[0], OPTIMIZERS[optimizer], start, x, y, cut, jnp.asarray(picks))
        losses = np.where(np.isfinite(losses), losses, np.inf)
        runs[label] = Run(losses, losses[:, -size.steps // 10 :].mean(axis=1), np.asarray(accuracy))
    return runs


def _start(net: jfree.ResNet, width: int, num_in: int, seed: int) -> Params:
    key, *keys = jax.random.split(jax.random.key(seed), 3)
    blocks = jfree.sample_weights(net, key, width)
    outer = [
        jfree.sample_weights(jfree.MLP(w, "linear", "gaussian"), k)[0][0]
        for w, k in zip(([num_in, width], [width, 10]), keys, strict=True)
    ]
    params = (*(jnp.stack(leaves) for leaves in zip(*blocks, strict=True)), *outer)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)


def _logits(activation: AbstractActivation, params: Params, x: Array) -> Array:
    weights, biases, first, last = params

    def block(x, layer):
        return x + activation(x @ layer[0].T + layer[1]), None

    x, _ = jax.lax.scan(block, x @ first.T, (weights, biases))
    return x @ last.T


def _loss(activation: AbstractActivation, params: Params, x: Array, y: Array) -> Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(_logits(activation, params, x), y))


@eqx.filter_jit
def _train(
    activation: AbstractActivation,
    optimizer: optax.GradientTransformation,
    start: Params,
    x: np.ndarray,
    y: np.ndarray,
    cut: int,
    picks: Array,
) -> tuple[Array, Array]:
    """Losses per step, and the accuracy on what follows `cut` at the end; all seeds side by side."""
    activation = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), activation)

    def one(params, x, y, picks):
        def step(state, pick):
            params, memory = state
            loss, grad = jax.value_and_grad(partial(_loss, activation))(params, x[pick], y[pick])
            updates, memory = optimizer.update(grad, memory, params)
            return (jax.tree.map(jnp.add, params, updates), memory), loss

        (end, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), picks)
        return losses, jnp.mean(jnp.argmax(_logits(activation, end, x[cut:]), axis=1) == y[cut:])

    return jax.vmap(one)(start, x, y, picks)


Runs = dict[tuple[str, str, str], Run]


def _training_row(optimizer: str, activation: str, variance: str, run: Run) -> Row:
    row: Row = {"optimizer": optimizer, "activation": activation, "sigma_w^2": variance}
    losses = {"first": run.losses[:, 0].mean(), "all": run.area, "last": run.final.mean()}
    losses |= {"last, min": run.final.min(), "last, max": run.final.max()}
    row |= {name: _shown(float(loss)) for name, loss in losses.items()}
    return row | {"accuracy": float(run.accuracy.mean())}


def _shown(loss: float) -> float | str:
    return loss if loss < 1e4 else f"{loss:.1e}" if np.isfinite(loss) else "overflow"


def _training_checks(optimizer: str, runs: Runs) -> list[Check]:
    """The text speaks of SGD, and of Adam as very similar."""
    small = list(TRAINED)[1:]
    final = {(a, v): runs[optimizer, a, v].final for a in ACTIVATIONS for v in TRAINED}
    wins = np.concatenate([final[a, v] < final[a, "1"] for a in ACTIVATIONS for v in small])
    falls = [a for a in ACTIVATIONS if np.all(np.diff([runs[optimizer, a, v].area for v in small]) <= 0)]
    huge = [a for a in ACTIVATIONS if final[a, "1"].mean() > 10 * math.log(10)]
    accuracy = max(float(runs[optimizer, a, "1"].accuracy.mean()) for a in ("linear", *RECTIFIERS))
    other = "very similar to SGD" if optimizer == "Adam" else ""
    return [
        Check(
            f"{optimizer}: c/L ends below 1", other or "always", f"{wins.sum()} of {wins.size}", "all", bool(wins.all())
        ),
        _count(f"{optimizer}: the smaller c, the faster (mean loss over all steps)", falls, other),
        _count(f"{optimizer}: losses of sigma_w^2 = 1 too large to be shown (above 10 log 10)", huge, other),
        _at_most(
            f"{optimizer}: accuracy with sigma_w^2 = 1, linear, ReLU, leaky ReLU, largest",
            other or "learning fails",
            accuracy,
            0.2,
        ),
    ]


def _count(what: str, found: list[str], published: str = "") -> Check:
    ours = f"{len(found)}: {', '.join(found)}" if found else "none"
    return Check(what, published or "all 6 activations", ours, "all", len(found) == len(ACTIVATIONS))


def _same_ranking(runs: Runs) -> Check:
    """By the mean loss over all steps."""

    def best(optimizer: str, activation: str) -> str:
        return min(TRAINED, key=lambda v: runs[optimizer, activation, v].area)

    same = [a for a in ACTIVATIONS if len({best(o, a) for o in OPTIMIZERS}) == 1]
    return _count("both optimizers have the same best sigma_w^2", same)


def _spread(runs: Runs) -> float:
    """Of mean losses among c/L, for activations of mean 0 and slope 1 at 0."""
    areas = [
        [runs[o, a, v].area for v in list(TRAINED)[1:]] for o in OPTIMIZERS for a in ("linear", "tanh", "hard_tanh")
    ]
    return max(max(some) / min(some) - 1 for some in areas)


def _training_figure(runs: Runs) -> Figure:
    figure = Figure(figsize=(14, 5), layout="constrained")
    axes = figure.subplots(len(OPTIMIZERS), len(ACTIVATIONS), sharex=True, sharey=True)
    for row, optimizer in zip(axes, OPTIMIZERS, strict=True):
        for ax, activation in zip(row, ACTIVATIONS, strict=True):
            for label, color in zip(TRAINED, ("tab:blue", "tab:red", "tab:purple", "tab:green"), strict=True):
                curve = runs[optimizer, activation, label].losses.mean(axis=0)
                ax.semilogy(np.where(curve < 1e3, curve, np.nan), color=color, lw=1, label=label)
            ax.set(title=activation, ylim=(1e-2, 1e2))
        row[0].set_ylabel(f"training loss, {optimizer}")
    for ax in axes[-1]:
        ax.set_xlabel("step")
    axes[0, -1].legend(title=r"$\sigma_w^2$", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


REPRODUCTIONS: dict[str, Reproduce] = {
    "single_block": single_block,
    "residual_spectra": residual_spectra,
    "residual_training": residual_training,
}
