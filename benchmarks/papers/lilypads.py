"""Chhaibi, Daouda and Kahn, "Free probability, Newton lilypads and Jacobians of neural networks" (2024).

What the paper leaves open (the network of Table 5.1, the parameters of Figures 4.1 and 5.1, the optimiser) is taken
from the authors' repository, redachhaibi/FreeNN, and said to be so.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure
from scipy import stats

import jfree
from jfree.empirical import jacobian_eigenvalues, ks_distance

from .. import _baselines as baselines, density
from .._data import digits, Images
from .._harness import measure
from ._reproduction import Check, Reproduce, Reproduction, Row

PAPER = "Chhaibi, Daouda, Kahn"


def table_5_1(full: bool) -> Reproduction:
    """Time against number of points."""
    rows = [density.smoothed(num, True) for num in density.PAPER]
    larger = [density.smoothed(num, False) for num in (10_000, 100_000)] if full else []
    first, last = rows[0], rows[-1]
    checks = []
    for row in rows:
        num, ours, published, ratio = (row[key] for key in ("points", "jfree_ms", "paper_ms", "lilypads_ratio"))
        checks.append(Check(f"ms, {num} points: jfree", published, ours, "less, on another machine", ours < published))
        what = f"Newton lilypads here, in times of jfree, {num} points"
        checks.append(Check(what, "not stated", ratio, "above 1", ratio > 1))
    published = last["paper_ms"] / first["paper_ms"]
    for name in ("lilypads", "jfree"):
        growth, error = last[f"{name}_ms"] / first[f"{name}_ms"], max(row[f"{name}_error"] for row in rows)
        what = f"time of 1000 points over that of 100, {name}"
        checks.append(Check(what, published, growth, "below 10, sublinear", growth < 10))
        what = f"largest error of the density, {name}"
        checks.append(Check(what, "|phi| < 1e-12", error, "1e-9 relative", error <= 1e-9))
    return Reproduction(
        "The time of a density grows more slowly than its points; certified densities take less than Newton lilypads.",
        f"{PAPER}, Table 5.1",
        f"Published: up to 1000 points, on an Intel i7-9850H. Here: up to {(rows + larger)[-1]['points']}",
        {"Density of 20 linear Gaussian layers, Im z = 1e-4": rows + larger},
        checks,
        _time_figure(rows, larger),
        [
            "The table does not name its network: the authors' run_benchmark.py has 20 linear layers of width ratio "
            "0.8, points on (-1, 6) and Im z = 1e-4.",
            "Only times of one process compare: Newton lilypads and root following here are our own, in plain Python.",
            f"jfree's times leave out its first call, which compiles for {first['first_ms'] / 1e3:.0f} s: for one "
            "density in a new process Newton lilypads are done sooner.",
        ],
    )


def _time_figure(rows: list[Row], larger: list[Row]) -> Figure:
    figure = Figure(figsize=(6, 4))
    ax = figure.subplots()
    names = {"paper": "published", "root_following": "root following, here", "lilypads": "Newton lilypads, here"}
    for name, label in (names | {"jfree": "jfree"}).items():
        some = rows + larger if name == "jfree" else rows
        ax.loglog([row["points"] for row in some], [row[f"{name}_ms"] for row in some], "o-", label=label)
    ax.set(xlabel="points", ylabel="ms")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def figure_4_1(full: bool) -> Reproduction:
    """Three Marchenko-Pastur laws, multiplied, and convolved with Cauchy laws."""
    ratio = np.array([3.0, 1.0, 0.5])
    net = jfree.MLP(1 / np.cumprod([1.0, *ratio]), "linear", "gaussian", np.sqrt(ratio))
    spectrum = jfree.jacobian_spectrum(net)
    factors = [(1.0, 1.0), *((1.0, float(slope)) for slope in np.cumprod(ratio))]
    x = density.midpoints(-2, 10, 1000)
    curves, rows = {}, []
    for y in (1.0, 0.1, 1e-4, 1e-9):
        truth = density.Truth(factors, x + 1j * y)
        curves[y], _ = measure(lambda y=y: np.asarray(spectrum.density(x, smoothing=y)), repeats=0)
        right = x[x > 0] + 1j * y
        lilypads, slow = measure(lambda right=right: baselines.lilypads(factors, right), repeats=3)
        row = {"y": y, "uncertified": int(np.isnan(curves[y]).sum()), "jfree_error": truth.error(curves[y])}
        row |= {"lilypads_error": density.Truth(factors, right).error(lilypads), "lilypads_ms": slow.median}
        rows.append(row)
    convolved = {y: float(np.abs(_cauchy_convolved(spectrum, x, y) - curves[y]).max()) for y in (1.0, 0.1)}
    width = 3000 if full else 900
    eigenvalues = jacobian_eigenvalues(net, jax.random.key(0), width)
    return Reproduction(
        "The density at any height above the axis: the law convolved with Cauchy laws, down to 1e-9.",
        f"{PAPER}, Figure 4.1",
        f"Published: y = 1, 0.1, 1e-4, and 1e-9 in the text. Here: these, 1000 points; one sample of width {width}",
        {"-Im G(x + iy) / pi on (-2, 10)": rows},
        [
            *(
                Check.near(f"against extended precision, y = {row['y']:g}", 0.0, row["jfree_error"], 1e-9, False)
                for row in rows
            ),
            Check("points left open, y = 1e-9", "works", rows[-1]["uncertified"], "none", not rows[-1]["uncertified"]),
            *(
                Check.near(f"against the law convolved with a Cauchy law, y = {y:g}", 0.0, error, 1e-6, False)
                for y, error in convolved.items()
            ),
            _ks_check(eigenvalues, spectrum),
        ],
        _figure_4_1(curves, eigenvalues),
        [
            "The paper does not print the parameters of the three laws: width ratios 3, 1 and 1/2 are those of the "
            "authors' notebook.",
            "Two thirds of the eigenvalues are 0 (N_1 = N_0 / 3): at small y the peak at 0 is that atom, which "
            "`density` without smoothing leaves out.",
            "Newton lilypads start at x > 0, as the authors' code starts anew on either side of 0. Past the atom, "
            "at y = 1e-6 and below, the path does not end: P(m) / z rounds to more than the 1e-12 at which Algorithm "
            "4.1 stops.",
        ],
    )


def _cauchy_convolved(spectrum: jfree.Spectrum, x: np.ndarray, y: float) -> np.ndarray:
    """`int y / (pi ((x - t)^2 + y^2)) mu(dt)`: the atom at 0, and the density up to its edge.

    At `t = upper (1 - cos(theta)) / 2` density times `dt` is smooth and periodic in `theta`.
    """
    upper, theta = float(spectrum.edges()[1]), density.midpoints(0, np.pi, 1000)
    t, dt = upper * (1 - np.cos(theta)) / 2, upper * np.sin(theta) / 2 * (theta[1] - theta[0])
    mass = np.append(float(spectrum.mass_at_zero()), spectrum.density(t) * dt)
    return (y / np.pi / (np.subtract.outer(x, np.append(0, t)) ** 2 + y**2)) @ mass


def _ks_check(eigenvalues: Array, spectrum: jfree.Spectrum) -> Check:
    """One sampled matrix, held to what as many independent points would keep to."""
    tolerance = 1.63 / eigenvalues.size**0.5
    distance = float(ks_distance(eigenvalues, spectrum))
    words = f"{tolerance:.3f}, the 1% level of {eigenvalues.size} independent points"
    agrees = distance <= tolerance
    return Check("Kolmogorov-Smirnov distance of sample and law", "on each other", distance, words, agrees)


def _figure_4_1(curves: dict[float, np.ndarray], eigenvalues: Array) -> Figure:
    figure = Figure(figsize=(6, 4))
    ax = figure.subplots()
    x = density.midpoints(-2, 10, 1000)
    values = np.asarray(eigenvalues).ravel()
    bins = np.linspace(0, 10, 61)[1:]  # without the atom at 0
    counts, _ = np.histogram(values, bins)
    ax.stairs(counts / values.size / np.diff(bins), bins, fill=True, color="0.8", label="one sample")
    for y in (1.0, 0.1, 1e-4):
        ax.plot(x, curves[y], label=f"y = {y:g}")
    ax.set(xlabel="x", ylabel="density", ylim=(0, 0.3))
    ax.legend()
    return figure


def figure_5_1(full: bool) -> Reproduction:
    """Monte Carlo beside theory."""
    width = 3000
    row = density.sampled(width)
    distance, noise = row["L1_distance"], (2 * 50 / np.pi / width) ** 0.5
    net = jfree.MLP(jnp.ones(6), "relu", "gaussian", final_activation="relu")
    spectrum = jfree.jacobian_spectrum(net)
    ks_width = width if full else 1500
    eigenvalues = jacobian_eigenvalues(net, jax.random.key(0), ks_width)
    zeros = float(jnp.mean(eigenvalues < 1e-24 * jnp.max(eigenvalues)))
    upper, ratio = float(spectrum.edges()[1]), row["ratio"]
    return Reproduction(
        "Singular values of sampled ReLU networks follow the density, which takes far less time than sampling them.",
        f"{PAPER}, Figure 5.1",
        f"Published: N = 3000. Here: N = 3000 for times and the L1 distance, {ks_width} for the KS distance and figure",
        {"4 ReLU layers, sigma_w^2 = 2": [row]},
        [
            Check("L1 distance of the histogram", "on each other", distance, f"{noise:.3f}", distance <= noise),
            _ks_check(eigenvalues, spectrum),
            Check.near("mean of 5 layers, as printed in the authors' notebook", 0.03125, float(spectrum.mean()), 1e-12),
            Check.near("upper edge of 5 layers, read off the authors' figure", 0.85, upper, 0.02, False),
            Check("sampling takes as many times as long", 22467.3 / density.PAPER[1000], ratio, "above 1", ratio > 1),
        ],
        _figure_5_1(eigenvalues, spectrum),
        [
            "The paper names neither depth nor variance. The authors' notebook has 5 layers with sigma_w^2 = 1, as "
            "have the figure and the KS distance; times and the L1 distance are those of benchmarks/density.py, 4 "
            "layers with sigma_w^2 = 2.",
            "The L1 distance is at most sqrt(2 bins / (pi N)) on average for N independent points in 50 bins; that is "
            "its tolerance.",
            "The published ratio is that of 22467.3 ms for sampling and 220.7 ms for 1000 points in Table 5.1, a "
            "different network; ours is of one network. The authors' sampling calls a nonsymmetric eigenvalue routine "
            "for J^T J; ours the symmetric one.",
            "The figure's axis holds squared singular values, eigenvalues of J^T J. Half of them are 0, in the sample "
            f"{zeros:.2%}, since the least of the layers' random ranks counts: most of the KS distance is there, and "
            "is finite width. The published curve shows that atom as a peak of width 1e-4.",
        ],
    )


def _figure_5_1(eigenvalues: Array, spectrum: jfree.Spectrum) -> Figure:
    figure = Figure(figsize=(6, 4))
    ax = figure.subplots()
    values = np.asarray(eigenvalues).ravel()
    upper = 1.02 * float(spectrum.edges()[1])
    counts, edges = np.histogram(values, np.linspace(0, upper, 55))
    x = density.midpoints(0, upper, 1000)
    ax.stairs(counts / values.size / np.diff(edges), edges, fill=True, color="0.8", label=f"N = {values.size}")
    ax.plot(x, spectrum.density(x), label="density")
    ax.set(xlabel="squared singular values", ylabel="density", ylim=(0, 1))
    ax.legend()
    return figure


DECILES = np.arange(1, 10) / 10
CORRELATIONS = {0.9: (-0.851, -0.938), 0.1: (-0.576, -0.562)}  # Spearman and Pearson, Tables 5.2 and 5.3
P_VALUES = 3.6e-20, 5.6e-32  # the same in both
BATCH = 64
LEARNING_RATE, EPOCHS, STEPS_PER_EPOCH = 1e-3, 50, 938  # the authors', on 60000 images

Weights = list[Float[Array, "networks N_out N_in"]]


class Training(NamedTuple):
    """What the networks learn from, a fifth of it kept for the test, and how."""

    name: str
    images: Callable[[], Images]
    epochs: int
    shares: dict[str, float]  # of the learning rate, and what the table calls them
    together: int  # networks of similar size that train as one, padded

    def num_steps(self) -> int:
        """In whole batches."""
        return self.epochs * (len(self.images()[0]) * 4 // 5 // BATCH)

    def learning_rate(self) -> float:
        """Times steps it is what the authors have."""
        return LEARNING_RATE * EPOCHS * STEPS_PER_EPOCH / self.num_steps()


DIGITS = Training("scikit-learn's digits", digits, EPOCHS, {"": 1.0, ", a tenth of the rate": 0.1}, together=4)


def architectures(full: bool) -> Reproduction:
    """On small images, all epochs."""
    return _architectures(200 if full else 68, DIGITS)


def _architectures(num: int, training: Training) -> Reproduction:
    """The test loss of random architectures against quantiles of their Jacobians."""
    rng = np.random.default_rng(0)
    num_images, num_pixels = training.images()[0].shape
    widths, gain = _random_architectures(num, num_pixels, rng)
    quantiles = np.stack([_quantiles(*each) for each in zip(widths, gain, strict=True)])
    losses = _train_all(widths, gain, training, rng)
    finite = np.all(np.isfinite(losses), axis=(0, 1))
    diverged = ", ".join(f"{g * g:.1f}" for g in gain[~finite])
    gain, quantiles = gain[finite], quantiles[finite]
    (train_loss, test_loss), *rest = losses[:, :, finite]
    others = dict(zip(list(training.shares)[1:], (loss for _, loss in rest), strict=True))
    trained = train_loss < 0.5
    rows = [
        {"quantile": f"{p:.0%}", "zero": int((q == 0).sum())}
        | _correlations(q, test_loss, "")
        | _correlations(q[trained], test_loss[trained], ", trained")
        | {key: value for name, other in others.items() for key, value in _correlations(q, other, name).items()}
        for p, q in zip(DECILES, quantiles.T, strict=True)
    ]
    return Reproduction(
        "The higher quantiles of the Jacobian's spectrum at initialisation tell the loss after training.",
        f"{PAPER}, Tables 5.2 and 5.3",
        f"Published: 200 networks on MNIST, 50 epochs. Here: {num} networks on {training.name}, {training.epochs} "
        "epochs",
        {"Correlation with the test loss": rows, "The p-values as printed": _p_values()},
        _correlation_checks(rows, len(test_loss)),
        _correlation_figure(quantiles[:, -1], test_loss, rows),
        [
            f"{num_images} images of {num_pixels} pixels in [0, 1], a fifth of them for the test, where the paper has "
            f"70000 of 784. Widths are {num_pixels} / (lambda_1 .. lambda_l), rounded, lambda_l uniform on "
            "[0.25, 1.75]; all layers, the linear one to 10 classes too, have Xavier's variances times one gain^2, "
            "exponential of mean 1. Quantiles are those of J^T J of the 4 ReLU layers, exact, mass at 0 included. One "
            f"training each; those that diverged are left out, of gain^2 {diverged or '(none)'}.",
            "Batches of 64, plain gradient descent and no biases are the authors' code's. Its learning rate is 0.001 "
            f"on 46900 steps; these images leave {training.num_steps()} in {training.epochs} epochs, so ours is "
            f"{training.learning_rate():.4f}: rate times steps is the same."
            + (" The correlations depend on it: a tenth of that rate is in the table too." if others else ""),
            "As in the authors' notebook Pearson's correlation is that with log10(quantile + 0.01), and "
            f"'trained' keeps the networks whose training loss fell below 0.5 ({trained.sum()} of {len(trained)}); the "
            "paper mentions neither. It calls the loss a test loss in Section 5 and a training loss in Appendix A.4.",
            f"Pearson's correlation wants a line, and the losses make a step: {np.sum(test_loss > 2)} networks have "
            "hardly left log 10, the loss of guessing, and most of the others are done.",
            _note_on_zeros(quantiles[:, 0]),
            f"The gain alone has Spearman correlation {_spearman(gain, test_loss):.3f} with the test "
            "loss: one scale for all layers moves quantiles and speed of training together, and says most of what the "
            "90% quantile says.",
            "The p-values of Table 5.2 belong to 68 points, not to 200: hence the default size. Those of Table 5.3 "
            "repeat them, and do not belong to its correlations at either size.",
        ],
    )


def _random_architectures(
    num: int, num_pixels: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "n 5"], Float[np.ndarray, " n"]]:
    """Widths `N_0..N_4` with `N_{l-1} / N_l` uniform, and gains."""
    cumulated = np.cumprod(rng.uniform(0.25, 1.75, (num, 4)), axis=1)
    widths = np.round(num_pixels / np.insert(cumulated, 0, 1, axis=1)).astype(int)
    return widths, rng.exponential(size=num) ** 0.5


def _quantiles(widths: np.ndarray, gain: float) -> Float[np.ndarray, " 9"]:
    """Xavier's variances are `2 gain^2 / (N_in + N_out)`."""
    num_in, num_out = widths[:-1], widths[1:]
    sigma_w = gain * np.sqrt(2 * num_in / (num_in + num_out))
    net = jfree.MLP(widths.astype(float), "relu", "gaussian", sigma_w, final_activation="relu")
    return np.asarray(jfree.jacobian_spectrum(net).quantile(DECILES))


def _train_all(
    widths: np.ndarray, gain: np.ndarray, training: Training, rng: np.random.Generator
) -> Float[np.ndarray, "shares 2 n"]:
    """Losses on training and test set, at every share of the learning rate."""
    pixels, classes = training.images()
    order = rng.permutation(len(pixels))
    x, y = jnp.asarray(pixels[order], jnp.float32), jnp.asarray(classes[order])
    cut, rate = len(pixels) * 4 // 5, training.learning_rate()
    per_epoch = cut // BATCH
    picks = [rng.permutation(cut)[: per_epoch * BATCH].reshape(per_epoch, BATCH) for _ in range(training.epochs)]
    widths = np.append(widths, np.full((len(widths), 1), 10), axis=1)
    by_size = np.argsort(np.sum(widths[:, 1:] * widths[:, :-1], axis=1))
    losses = np.empty((len(training.shares), 2, len(widths)))
    batches, data = jnp.asarray(np.concatenate(picks)), ((x[:cut], y[:cut]), (x[cut:], y[cut:]))
    for some in np.array_split(by_size, -(-len(widths) // training.together)):
        weights = _padded_weights(widths[some], gain[some], rng)
        for index, share in enumerate(training.shares.values()):
            losses[index][:, some] = _train(weights, batches, *data, jnp.float32(share * rate))
    return losses


def _padded_weights(widths: np.ndarray, gain: np.ndarray, rng: np.random.Generator) -> Weights:
    """Xavier's initialisation, padded with zeros to the largest widths: units without weights never get a gradient."""
    layers = []
    for num_in, num_out in pairwise(widths.T):
        layer = np.zeros((len(gain), num_out.max(), num_in.max()), np.float32)
        for weight, n, m, g in zip(layer, num_in, num_out, gain, strict=True):
            weight[:m, :n] = rng.standard_normal((m, n)) * g * (2 / (n + m)) ** 0.5
        layers.append(jnp.asarray(layer))
    return layers


def _loss(weights: Weights, x: Array, y: Array) -> Array:
    *hidden, last = weights
    for weight in hidden:
        x = jax.nn.relu(x @ weight.T)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(x @ last.T, y))


@jax.jit
def _train(
    weights: Weights, picks: Array, train: tuple[Array, Array], test: tuple[Array, Array], rate: Array
) -> Float[Array, "2 networks"]:
    """Losses after stochastic gradient descent, one network per leading index."""
    optimizer = optax.sgd(rate)

    def one(weights: Weights) -> Array:
        def step(weights, pick):
            grad = jax.grad(_loss)(weights, train[0][pick], train[1][pick])
            updates, _ = optimizer.update(grad, optimizer.init(weights))
            return eqx.apply_updates(weights, updates), None

        trained, _ = jax.lax.scan(step, weights, picks)
        return jnp.stack([_loss(trained, *train), _loss(trained, *test)])

    return jax.vmap(one, out_axes=1)(weights)


def _correlations(quantile: np.ndarray, loss: np.ndarray, suffix: str) -> Row:
    """None where all quantiles are the same."""
    if np.ptp(quantile) == 0:
        return {f"Spearman{suffix}": None, f"Pearson{suffix}": None}
    return {
        f"Spearman{suffix}": _spearman(quantile, loss),
        f"Pearson{suffix}": float(np.corrcoef(np.log10(quantile + 0.01), loss)[0, 1]),
    }


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def _correlation_checks(rows: list[Row], num: int) -> list[Check]:
    """Within two standard errors, which are `1 / sqrt(n - 3)` of Fisher's z; and the order of the two quantiles."""
    high, low = CORRELATIONS
    checks = []
    for index, name in enumerate(("Spearman", "Pearson")):
        ours = {p: row[name] for p, row in zip(DECILES.tolist(), rows, strict=True)}
        published = {p: values[index] for p, values in CORRELATIONS.items()}
        for p, value in published.items():
            least, most = np.tanh(np.arctanh(ours[p]) + np.array([-2, 2]) / (num - 3) ** 0.5)
            words = f"two standard errors of {num} networks: {least:.3f} to {most:.3f}"
            what = f"{name}, test loss against the {p:.0%} quantile"
            checks.append(Check(what, value, ours[p], words, bool(least <= value <= most)))
        there, here = (f"{found[high]:.3f}, {found[low]:.3f}" for found in (published, ours))
        ordered = ours[high] < ours[low] < 0
        checks.append(Check(f"{name} at 90% and 10%", there, here, "both negative, 90% the stronger", ordered))
    return checks


def _note_on_zeros(lowest: np.ndarray) -> str:
    """How far a quantile that is mostly 0 can be correlated with anything."""
    largest = _spearman(np.sort(lowest), np.arange(lowest.size))
    cumulated = np.cumprod(np.random.default_rng(1).uniform(0.25, 1.75, (1_000_000, 4)), axis=1)
    zero = float(np.mean(np.max(cumulated, axis=1) > 1 / 1.8))  # mass at 0: 1 - min 1 / (2 Lambda_l)
    return (
        f"The exact 10% quantile is 0 for {np.sum(lowest == 0)} of {lowest.size} networks, and for {zero:.1%} of all "
        "that the paper's law draws: the spectrum has an atom at 0 of mass 1 - min_l 1 / (2 Lambda_l). With so many "
        f"ties no order of the losses gives a Spearman correlation beyond {largest:.2f} in size here, nor beyond "
        f"{(1 - zero**3) ** 0.5:.2f} in large samples: for Table 5.3's -0.576 the order would have to be perfect. The "
        "authors' code sums a smoothed density over a mesh of 0.026, which cannot tell most of these quantiles apart."
    )


def _p_values() -> list[Row]:
    """The sizes of sample that the printed p-values belong to."""
    rows = []
    for table, p in (("5.2", 0.9), ("5.3", 0.1)):
        for name, r, printed in zip(("Spearman", "Pearson"), CORRELATIONS[p], P_VALUES, strict=True):
            sizes = np.arange(10, 500)
            size = int(sizes[np.argmin(np.abs(np.log(_p_value(r, sizes) / printed)))])
            p_200 = float(_p_value(r, np.array(200)))
            rows.append({"table": table, "correlation": name, "value": r, "printed p": printed})
            rows[-1] |= {"belongs to a sample of": size, "p of 200": p_200}
    return rows


def _p_value(r: float, size: np.ndarray) -> np.ndarray:
    """Of a correlation, two-sided, by Student's t."""
    return 2 * stats.t.sf(abs(r) * np.sqrt((size - 2) / (1 - r * r)), size - 2)


def _correlation_figure(quantile: np.ndarray, loss: np.ndarray, rows: list[Row]) -> Figure:
    figure = Figure(figsize=(9, 4))
    left, right = figure.subplots(1, 2)
    left.semilogx(quantile, loss, "o", alpha=0.6)
    left.set(xlabel="90% quantile of the squared singular values", ylabel="test loss")
    for index, (name, color) in enumerate((("Spearman", "C0"), ("Pearson", "C1"))):
        values = [np.nan if row[name] is None else row[name] for row in rows]
        right.plot(DECILES, values, "o-", color=color, label=name)
        published = [values[index] for values in CORRELATIONS.values()]
        right.plot([*CORRELATIONS], published, "*", ms=11, color=color, label=f"{name}, published")
    right.set(xlabel="quantile", ylabel="correlation with the test loss", ylim=(-1, 0.1))
    right.legend(loc="lower left")
    figure.tight_layout()
    return figure


REPRODUCTIONS: dict[str, Reproduce] = {
    "table_5_1": table_5_1,
    "figure_4_1": figure_4_1,
    "figure_5_1": figure_5_1,
    "architectures": architectures,
}
