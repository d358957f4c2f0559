"""Hayase and Karakida, "The Spectrum of Fisher Information of Deep Networks Achieving Dynamical Isometry", Figures 1-4.

The paper's text gives settings and statements; its figures give no numbers that could be copied. Where a figure's range
is not in the text (the depths and numbers of inputs), the range is ours.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import jfree
from jfree.activations import HardTanh
from jfree.empirical import fisher_eigenvalues, full_fisher_eigenvalues

from .._data import digits, Images, mnist
from ._reproduction import beside, Check, Reproduce, Reproduction, Row

PAPER = "Hayase and Karakida, The Spectrum of Fisher Information of Deep Networks Achieving Dynamical Isometry"
S, G = 0.125**0.5, 1.0013  # of the hard tanh in all experiments, Section 5.2


def hard_tanh(depth: int, s: float = S, g: float = G, width: int = 1) -> jfree.MLP:
    """Orthogonal layers and (11), made continuous: `clip(g x, -1/s, 1/s)`."""
    return jfree.MLP(np.full(depth + 1, float(width)), HardTanh(g, 1 / s), "orthogonal")


def largest_atom(spectrum: jfree.Spectrum) -> float:
    """The largest eigenvalue where Lemma 4.5 holds: that it is an atom."""
    places, masses = map(np.asarray, spectrum.atoms())
    return float(places[masses > 0].max())


class Closed(NamedTuple):
    """Theorem 3.2, its second atom at `lambda_mid` as in the paper's appendix; `sigma = 1`."""

    places: np.ndarray  # lambda_min, lambda_mid, lambda_max
    masses: np.ndarray
    lower: float
    upper: float

    @staticmethod
    def of(net: jfree.MLP) -> "Closed":
        field = jfree.propagate(net)
        q = [float(net.q0), *map(float, field.phi2[:2])]
        slopes = [net.activations[layer].slopes(field.q[layer]) for layer in (0, 1)]  # pyright: ignore
        (a1, g1), (a2, g2) = [(float(alpha), float(gamma)) for alpha, gamma in slopes]
        at = lambda share: q[2] + g2 * (q[1] + g1 * q[0] * share)  # noqa: E731
        ends = [at((math.sqrt(a1 * (1 - a2)) + sign * math.sqrt(a2 * (1 - a1))) ** 2) for sign in (-1, 1)]
        masses = np.array([1 - a2, max(a2 - a1, 0), max(a1 + a2 - 1, 0)])
        return Closed(np.array([q[2], at(0), at(1)]), masses, *ends)

    def density(self, x: np.ndarray) -> np.ndarray:
        """(13)."""
        _, mid, top = self.places
        return np.sqrt((self.upper - x) * (x - self.lower)) / (2 * np.pi * (x - mid) * (top - x))


class Panel(NamedTuple):
    """A network of three layers, its spectrum, and sampled eigenvalues, one row per sample."""

    name: str
    net: jfree.MLP
    spectrum: jfree.Spectrum
    eigenvalues: np.ndarray

    @staticmethod
    def of(name: str, net: jfree.MLP, eigenvalues: np.ndarray) -> "Panel":
        return Panel(name, net, jfree.fisher_spectrum(net), eigenvalues)

    def off_atoms(self, margin: float = 0.05) -> float:
        """`sup |F_empirical - cdf|` farther than `margin` from every atom."""
        values, (places, masses) = np.sort(self.eigenvalues.ravel()), map(np.asarray, self.spectrum.atoms())
        x = np.linspace(0, 1.05 * values[-1], 2000)
        x = x[np.all(np.abs(x[:, None] - places[masses > 0]) > margin, axis=1)]
        empirical = np.searchsorted(values, x, "right") / values.size
        return float(np.max(np.abs(empirical - np.asarray(self.spectrum.cdf(x)))))

    def atoms(self) -> list[Row]:
        """Every atom of Theorem 3.2, as printed, in jfree and in the samples."""
        closed, (where, weights) = Closed.of(self.net), map(np.asarray, self.spectrum.atoms())
        low, mid, top = closed.masses
        rows = []
        for place, mass, printed in zip(closed.places, closed.masses, (low + mid, 0.0, top), strict=True):
            found = [sampled_atom(row, place) for row in self.eigenvalues]
            seen = [where for where, share in found if share]
            row = {"panel": self.name, "place": float(place), "mass": float(mass), "mass in (12)": float(printed)}
            row["jfree's mass"] = float(weights[np.abs(where - place) < 1e-9].sum())
            row["sampled place"] = float(np.mean(seen)) if seen else None
            rows.append(row | {"sampled mass": float(np.mean([share for _, share in found]))})
        return rows

    def bulk(self) -> Row:
        """The absolutely continuous part: jfree's error, and how far the samples are off."""
        closed = Closed.of(self.net)
        x = closed.lower + (closed.upper - closed.lower) * (np.arange(1000) + 0.5) / 1000
        error = float(np.max(np.abs(np.asarray(self.spectrum.density(x)) / closed.density(x) - 1)))
        row = {"panel": self.name, "from": closed.lower, "to": closed.upper, "mass": float(1 - closed.masses.sum())}
        return row | {"jfree's relative error": error, "KS distance of samples": self.off_atoms()}

    def draw(self, axes: Axes, bins: float = 0.031) -> None:
        """A histogram of the samples, and what the spectrum puts into the same bins."""
        edges = np.arange(0, self.eigenvalues.max() + 3 * bins, bins) - bins / 2
        axes.hist(self.eigenvalues.ravel(), edges.tolist(), density=True, color="C1", alpha=0.7, label="sampled")
        mass = np.diff(np.asarray(self.spectrum.cdf(np.maximum(edges, 0))))
        axes.stairs(mass / bins, edges, color="black", linewidth=1, label="jfree")
        axes.set(yscale="log", ylim=(1e-3, 50), xlabel="eigenvalue", title=self.name)


def panel_checks(bulk: Row, atoms: list[Row], count: int) -> list[Check]:
    """Verdicts on one panel: jfree and `count` sampled eigenvalues beside Theorem 3.2, but for the rarest atoms."""
    name, error, ks = bulk["panel"], bulk["jfree's relative error"], bulk["KS distance of samples"]
    off = max(abs(atom["jfree's mass"] - atom["mass"]) for atom in atoms)
    checks = [
        Check(f"{name}: jfree's density", "(13)", error, "1e-8 relative", error <= 1e-8),
        Check(f"{name}: jfree's masses of the atoms", "(A.15)", off, "1e-9 absolute", off <= 1e-9),
        Check(f"{name}: KS distance of samples, 0.05 off atoms", "agreement", ks, "at most 0.02", ks <= 0.02),
    ]
    for atom in atoms:
        if atom["mass"] > 1e-3:
            what = f"{name}, atom at {atom['place']:.4f}"
            place = math.nan if atom["sampled place"] is None else atom["sampled place"]
            mass, ours = atom["mass"], atom["sampled mass"]
            within = 4 * math.sqrt(mass * (1 - mass) / count)
            words = f"{within:.2g} absolute, 4 binomial standard errors"
            checks.append(Check(f"{what}: sampled mass", mass, ours, words, abs(ours - mass) <= within))
            checks.append(Check.near(f"{what}: sampled place", atom["place"], place, 0.02, False))
    return checks


def sampled_atom(eigenvalues: np.ndarray, place: float, within: float = 0.2) -> tuple[float, float]:
    """The eigenvalue near a place that is met most often, and its share; none if there are not three of it."""
    groups = np.split(eigenvalues, np.flatnonzero(np.diff(eigenvalues) > 1e-9) + 1)
    near = [group for group in groups if group.size > 2 and abs(group[0] - place) < within]
    largest = max(near, key=len, default=np.array([]))
    return (float(largest.mean()), largest.size / eigenvalues.size) if largest.size else (np.nan, 0.0)


def independent_slopes(net: jfree.MLP, width: int, num_samples: int) -> np.ndarray:
    """Eigenvalues of (8), every `D_l` replaced by a projection onto half of the coordinates, drawn at random."""
    amounts = [float(net.q0), *map(float, jfree.propagate(net).phi2)]
    rng, rows = np.random.default_rng(0), []
    for key in jax.random.split(jax.random.key(0), num_samples):
        fisher = amounts[0] * np.eye(width)
        for amount, (weight, _) in zip(amounts[1:], jfree.sample_weights(net, key, width)[1:], strict=False):
            side = np.asarray(weight) * (rng.permutation(width) < width // 2)
            fisher = side @ fisher @ side.T + amount * np.eye(width)
        rows.append(np.linalg.eigvalsh(fisher))
    return np.array(rows)


def fisher_spectra(full: bool) -> Reproduction:
    """Figure 1."""
    width, num_samples = 1000, 20 if full else 5
    sample = lambda net, num: np.asarray(fisher_eigenvalues(net, jax.random.key(0), width, num))  # noqa: E731
    left, center, literal = hard_tanh(3), hard_tanh(3, 1, 1), sample(hard_tanh(3, 0.125), 1)
    # With sigma_b = 1 the ReLU has q = 2, so mean squares of 1 like the input's, and half of its slopes are 0.
    right = jfree.MLP(np.ones(4), "relu", "orthogonal", 1.0, 1.0)
    panels = [
        Panel.of("left", left, sample(left, num_samples)),
        Panel.of("center", center, sample(center, num_samples)),
        Panel.of("right", right, independent_slopes(right, width, num_samples)),
    ]
    bulks, atoms = [panel.bulk() for panel in panels], [panel.atoms() for panel in panels]
    arcsine = 0.5 + 0.5 * 2 / math.pi * math.asin(math.sqrt(0.3))
    checks = [
        check
        for bulk, some in zip(bulks, atoms, strict=True)
        for check in panel_checks(bulk, some, width * num_samples)
    ]
    checks += [
        Check.near("left: largest atom, near the depth", 3.0, largest_atom(panels[0].spectrum), 0.02),
        Check.near("right: cdf at 2.3, arcsine law on (2, 3)", arcsine, float(panels[2].spectrum.cdf(2.3)), 1e-8),
    ]
    figure = Figure((12, 3.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        panel.draw(axes)
    figure.axes[0].set_ylabel("density")
    figure.axes[0].legend()
    low, mid, _ = Closed.of(center).masses
    relu = Panel.of("ReLU", right, sample(right, num_samples))
    return Reproduction(
        "The Fisher spectrum of three layers is that of Theorem 3.2, atoms included.",
        f"{PAPER}, Figure 1",
        f"Published: M = 1000. Here: M = {width}, {num_samples} samples per panel",
        {"Bulk": bulks, "Atoms": [atom for some in atoms for atom in some]},
        checks,
        figure,
        [
            "Left: the caption has s = 0.125, Section 5.2 s^2 = 0.125. With s = 0.125 no unit of 1000 saturates: all "
            f"sampled eigenvalues lie in [{literal.min():.6f}, {literal.max():.6f}], without the other peaks that the "
            "paper sees; so the panel has s^2 = 0.125.",
            f"(12) prints the second atom at lambda_min, which would then have mass {low + mid:.4f} in the center "
            f"panel; the appendix (A.15) and the samples have {low:.4f} there and {mid:.4f} at lambda_mid.",
            "(11) as printed jumps unless s g = 1; here it is clip(g x, -1/s, 1/s).",
            "Left, at lambda_mid: in a sample its mass is the excess of one count of saturated units, of about five, "
            "over another, if positive, and so exceeds that of the limit; no check there.",
            "An atom's place is made of the sampled mean squares of the activations, and so differs from sample to "
            "sample by some M^(-1/2); within a sample its eigenvalues agree to rounding.",
            "Right: D_l drawn apart from the weights, as in the paper. A ReLU network with biases of variance 1 has "
            f"the same limit; {num_samples} of them, M = {width}, have KS distance {relu.off_atoms():.3f}: their mean "
            "squares vary by some 7% per layer and sample, and move the bulk along.",
        ],
    )


class Blocks(NamedTuple):
    """Eigenvalues of `Theta / M`, and of its blocks of equal inputs alone; one row per sample."""

    full: np.ndarray
    diagonal: np.ndarray

    @staticmethod
    def of(depth: int, num_inputs: int, width: int, num_samples: int) -> "Blocks":
        draw = lambda diagonal: full_fisher_eigenvalues(  # noqa: E731
            hard_tanh(depth), jax.random.key(0), num_inputs, width, num_samples, diagonal
        )
        return Blocks(np.asarray(draw(False)), np.asarray(draw(True)))

    def row(self, depth: int, num_inputs: int, width: int) -> Row:
        """Means over the samples, beside what jfree has for a single input."""
        spectrum = jfree.fisher_spectrum(hard_tanh(depth))
        top, mean = largest_atom(spectrum) / num_inputs, float(spectrum.mean()) / num_inputs
        return {"L": depth, "N": num_inputs, "L / N": depth / num_inputs} | {
            "mean, full": float(self.full.mean()),
            "mean, blocks": float(self.diagonal.mean()),
            "mean, jfree": mean,
            "max, full": float(self.full.max(axis=1).mean()),
            "max, blocks": float(self.diagonal.max(axis=1).mean()),
            "max, jfree": top,
            "jfree's max times (1 + sqrt(N/M))^2": top * (1 + (num_inputs / width) ** 0.5) ** 2,
        }


def exponent(rows: list[Row], along: str, of: str) -> float:
    """The slope of `of` against `along`, both in logarithms."""
    return float(np.polyfit(np.log([row[along] for row in rows]), np.log([row[of] for row in rows]), 1)[0])


def fisher_blocks(full: bool) -> Reproduction:
    """Figures 2 and 3."""
    width, num_samples = 100, 3
    depths, numbers = (2, 4, 8, 16, 32, 64, 128), (1, 2, 5, 10, 20, *((50, 100) if full else ()))
    over_depth = [Blocks.of(depth, 10, width, num_samples).row(depth, 10, width) for depth in depths]
    found = {number: Blocks.of(10, number, width, num_samples) for number in numbers}
    over_number = [blocks.row(10, number, width) for number, blocks in found.items()]
    example, ten = found[2], over_number[numbers.index(10)]

    unsaturated = math.erf(1 / (S * G * math.sqrt(2)))
    e1, e2 = 10 * (1 - unsaturated), -10 * math.log(G**2)
    mean, top = ((1 - math.exp(-e)) / e for e in (e1 + e2, e2))
    differences = [abs(row["mean, full"] / row["mean, blocks"] - 1) for row in over_depth + over_number]
    departure = over_number[-1]["max, full"] / over_number[-1]["max, blocks"]
    checks = [
        Check.near("mean, L = N = 10, blocks: Proposition 4.3 with q = 1", mean, ten["mean, blocks"], 0.05),
        Check.near("max, L = N = 10, blocks: Theorem 4.6 with q = 1", top, ten["max, blocks"], 0.05),
        Check.near("mean, L = N = 10, blocks: jfree", ten["mean, jfree"], ten["mean, blocks"], 0.05),
        Check.near("max, L = N = 10, blocks: jfree", ten["max, jfree"], ten["max, blocks"], 0.05),
        Check("mean of full and blocks", "equal", max(differences), "1e-9 relative", max(differences) <= 1e-9),
        *(
            Check.near(f"{of}: exponent of {along}", power, exponent(rows, along, of), 0.1, False)
            for rows, along, power, quantities in (
                (over_depth, "L", 1.0, ("mean, full", "max, blocks", "max, full")),
                (over_number, "N", -1.0, ("mean, full", "max, blocks")),
            )
            for of in quantities
        ),
        Check(f"max, N = {numbers[-1]}: full over blocks", "not O(L/N)", departure, "above 1.5", departure > 1.5),
        *(
            Check(f"N = 2, {name}: share within a quarter of L / N", "concentrated", share, "above 0.75", share > 0.75)
            for name, values in example._asdict().items()
            for share in [float(np.mean(np.abs(values / 5 - 1) < 0.25))]
        ),
    ]
    return Reproduction(
        "Eigenvalues of the Fisher information of N inputs are of order L/N, as those of its diagonal blocks, but for "
        "the largest at large N.",
        f"{PAPER}, Figures 2 and 3",
        f"Published: M = {width}, about L = N = 10. Here: M = {width}, {num_samples} samples, L to {depths[-1]}, N to "
        f"{numbers[-1]}",
        {"Against depth, N = 10": over_depth, "Against number of inputs, L = 10": over_number},
        checks,
        blocks_figure(over_depth, over_number, example),
        [
            "The ranges of L and N, the law of the inputs, and the L and N of Figure 3 are not in the text: inputs are "
            "Gaussian here, and Figure 3 has L = 10, N = 2.",
            "Full, at large N: where the network is nearly an isometry, Theta/M is about L/N times the Gram matrix of "
            "the inputs, whose largest eigenvalue for Gaussian ones is (1 + sqrt(N/M))^2 (Marchenko and Pastur).",
            f"(20) at L = 10, epsilon_2 = {e2:.4f}: {top:.4f}. The expansion printed below it has the wrong sign, "
            f"1 + epsilon_2/2 = {1 + e2 / 2:.4f}; right is 1 - epsilon_2/2 = {1 - e2 / 2:.4f}. So for (19).",
            "q is not constant, as Assumption 4.1 has it: from 1 it falls towards the fixed point "
            f"{float(jfree.fixed_point(HardTanh(G, 1 / S), 1.0, 0.0)):.3f}, slowly. jfree's columns follow it.",
        ],
    )


def blocks_figure(over_depth: list[Row], over_number: list[Row], example: Blocks) -> Figure:
    figure = Figure((12, 3.8), layout="constrained")
    *both, last = figure.subplots(1, 3)
    styles = {"full": {"marker": "o"}, "blocks": {"marker": "s"}, "jfree": {"linestyle": "--", "color": "black"}}
    for axes, rows, along in zip(both, (over_depth, over_number), "LN", strict=True):
        for name, style in styles.items():
            x = [row[along] for row in rows]
            for of, alpha in (("max", 1.0), ("mean", 0.5)):
                axes.plot(x, [row[f"{of}, {name}"] for row in rows], label=f"{of}, {name}", alpha=alpha, **style)
        title = "N = 10" if along == "L" else "L = 10"
        axes.set(xscale="log", yscale="log", xlabel=along, ylabel="eigenvalue", title=title)
    both[0].legend(fontsize="small")
    for name, values in example._asdict().items():
        last.hist(values.ravel(), np.linspace(0, 7.5, 61), histtype="step", density=True, label=name)
    last.axvline(5, color="black", linestyle=":", label="L / N")
    last.set(yscale="log", xlabel="eigenvalue", ylabel="density", title="L = 10, N = 2")
    last.legend(fontsize="small")
    return figure


def normalised(images: Images, label: float) -> Images:
    """Inputs of mean square 1, labels as unit vectors times `label`; in random order."""
    x, y = images
    order = np.random.default_rng(0).permutation(len(x))
    width = x.shape[1]
    inputs = x[order] * np.sqrt(width) / np.linalg.norm(x[order], axis=1, keepdims=True)
    return inputs.astype(np.float32), (label * np.eye(width)[y[order]]).astype(np.float32)


DEPTHS, RATES = (2, 4, 8, 16, 32), 2 ** (np.arange(-18, 7) / 3)


class Online(NamedTuple):
    """Loss and accuracy on held-out data, each of shape `(depths, rates)`: means over the seeds."""

    width: int
    rates: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray

    @staticmethod
    def train(rates: np.ndarray, images: Images, label: float, num_seeds: int) -> "Online":
        found = [online(depth, rates, *normalised(images, label), num_seeds) for depth in DEPTHS]
        loss, accuracy = np.moveaxis(np.mean(found, axis=2), 1, 0)
        return Online(images[0].shape[1], rates, loss, accuracy)

    def collapse(self, depth: int) -> float:
        """The rate above which the accuracy is less than halfway from chance to its best."""
        accuracy = self.accuracy[DEPTHS.index(depth)]
        return self._crossing((accuracy - 0.1) / (accuracy.max() - 0.1) - 0.5)

    def explosion(self, depth: int, bound: float = 1.0) -> float:
        """The rate above which the loss exceeds `bound`, or is not a number."""
        loss = self.loss[DEPTHS.index(depth)]
        return self._crossing(np.log(bound / np.where(np.isfinite(loss), loss, np.inf).clip(None, 1e3)))

    def _crossing(self, height: np.ndarray) -> float:
        """Where `height` falls below 0 for good, interpolated in the logarithm of the rate."""
        last = np.flatnonzero(height > 0)[-1]
        if last == height.size - 1:
            return math.nan
        share = height[last] / (height[last] - height[last + 1])
        return float(self.rates[last] * (self.rates[last + 1] / self.rates[last]) ** share)


def online(
    depth: int, rates: np.ndarray, x: np.ndarray, y: np.ndarray, num_seeds: int, steps: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """Trains one network per seed and rate, an example a step.

    **Returns:** loss and accuracy on the last fifth of the data, of shape `(seeds, rates)`.
    """
    net, cut = hard_tanh(depth, width=x.shape[1]), len(x) * 4 // 5
    drawn = [jfree.sample_weights(net, jax.random.key(seed)) for seed in range(num_seeds)]
    weights = [jnp.stack([weight for weight, _ in layers]).astype(jnp.float32) for layers in zip(*drawn, strict=True)]
    picks = np.random.default_rng(1).integers(0, cut, (num_seeds, steps))
    activation = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), net.activation)
    data = jnp.asarray(x), jnp.asarray(y)
    loss, accuracy = _online(activation, weights, jnp.asarray(rates, jnp.float32), jnp.asarray(picks), data, cut)
    return np.asarray(loss), np.asarray(accuracy)


def _outputs(weights: list[Array], activation: Any, x: Array) -> Array:
    *hidden, last = weights
    for weight in hidden:
        x = activation(x @ weight.T)
    return x @ last.T


def _loss(weights: list[Array], activation: Any, x: Array, y: Array) -> Array:
    return jnp.mean(jnp.square(_outputs(weights, activation, x) - y)) / 2


@eqx.filter_jit
def _online(activation, weights, rates, picks, data, cut: int):
    x, y = data
    seeds, which = (
        grid.ravel() for grid in jnp.meshgrid(jnp.arange(len(picks)), jnp.arange(rates.size), indexing="ij")
    )

    def run(seed, rate):
        def step(weights, pick):
            grad = jax.grad(_loss)(weights, activation, x[pick], y[pick])
            return jax.tree.map(lambda leaf, slope: leaf - rate * slope, weights, grad), None

        trained, _ = jax.lax.scan(step, jax.tree.map(lambda leaf: leaf[seed], weights), picks[seed])
        outputs, labels = _outputs(trained, activation, x[cut:]), y[cut:]
        right = jnp.argmax(outputs[:, :10], axis=1) == jnp.argmax(labels, axis=1)
        return jnp.mean(jnp.square(outputs - labels)) / 2, jnp.mean(right)

    batch = max(1, 2**21 // sum(weight[0].size for weight in weights))
    found = jax.lax.map(lambda args: run(*args), (seeds, rates[which]), batch_size=batch)
    return jax.tree.map(lambda leaf: leaf.reshape(len(picks), -1), found)


def learning_rates(full: bool) -> Reproduction:
    """Figure 4, on small images; also with labels as printed."""
    images, num_seeds = digits(), 10 if full else 3
    found = Online.train(RATES, images, images[0].shape[1] ** 0.5, num_seeds)
    literal = Online.train(RATES[::2], images, 1.0, 1)
    rows = [learning_rate_row(depth, found) | literal_row(depth, literal) for depth in DEPTHS]
    figure_4 = _learning_rates("scikit-learn's digits", num_seeds, found, rows)
    figure_4.notes.append(
        "With |y| = 1 (last columns, 1 seed, every other rate) labels are next to 0, training shrinks the network, and "
        "no boundary appears at 2 / L."
    )
    return figure_4


def learning_rates_mnist(full: bool) -> Reproduction:
    """Figure 4, on images of the published size."""
    images, num_seeds, rates = mnist(), *((3, RATES) if full else (1, RATES[3:-3:2]))
    found = Online.train(rates, images, images[0].shape[1] ** 0.5, num_seeds)
    rows = [learning_rate_row(depth, found) for depth in DEPTHS]
    figure_4 = _learning_rates("5000 images of MNIST", num_seeds, found, rows)
    figure_4.tables["Beside the digits"] = beside("learning_rates", figure_4.checks)
    return figure_4


def _learning_rates(name: str, num_seeds: int, found: Online, rows: list[Row]) -> Reproduction:
    ratios = [row["collapse / predicted"] for row in rows]
    deepest = rows[-1]
    outside = [str(row["L"]) for row, ratio in zip(rows, ratios, strict=True) if not 1 / 1.5 <= ratio <= 1.5]
    checks = [
        *(
            Check(f"L = {row['L']}: collapse of accuracy at 2 / lambda_max", 1.0, ratio, "a factor of 1.5", near)
            for row, ratio in zip(rows, ratios, strict=True)
            for near in [1 / 1.5 <= ratio <= 1.5]
        ),
        *(
            Check.near(
                f"L = {row['L']}: 2 / lambda_max of jfree beside 2 / L", row["2 / L"], row["2 / lambda_max"], 0.05
            )
            for row in rows
        ),
        Check(
            f"L = {deepest['L']}: loss explodes only above 2 / L",
            "above, at large L",
            deepest["explosion / predicted"],
            "ratio above 1",
            deepest["explosion / predicted"] > 1,
        ),
    ]
    return Reproduction(
        "Online training collapses where the learning rate exceeds 2 / lambda_max of the Fisher information.",
        f"{PAPER}, Figure 4",
        f"Published: Fashion-MNIST, M = 784, 500 steps. Here: {name}, M = {found.width}, 500 steps of one example, "
        f"seeds: {num_seeds}, {len(found.rates)} rates",
        {"Learning rates": rows},
        checks,
        learning_rates_figure(found, rows),
        [
            "Collapse: the rate where held-out accuracy (mean over seeds) falls halfway from its best at that depth "
            "to chance, 0.1. Explosion: where the held-out loss passes 1; outputs that are 0 have 0.5.",
            "The paper makes the labels an orthonormal system of R^M. The figure and the checks read that in the "
            "norm |y|^2 / M, in which inputs and outputs have norm 1 too: then the boundary is the predicted one. We "
            "chose this reading because it gives the published picture.",
            "At large depth there are rates above the boundary where accuracy is at chance and the loss near 0.5, "
            "that of outputs near 0: the region into which the published loss violates the boundary.",
            "Steps this large change the Fisher information on the way, which the linear argument for 2 / lambda_max "
            "leaves out; we did not look further. "
            f"Outside the tolerance: L = {', '.join(outside) or 'none'}.",
            f"Rates are a factor of {found.rates[1] / found.rates[0]:.2f} apart, and the range of depths is not in the "
            "text.",
        ],
    )


def learning_rate_row(depth: int, found: Online) -> Row:
    predicted, collapse, explosion = rate_bound(depth), found.collapse(depth), found.explosion(depth)
    best = float(found.accuracy[DEPTHS.index(depth)].max())
    row = {"L": depth, "2 / L": 2 / depth, "2 / lambda_max": predicted, "best accuracy": best}
    row |= {"collapse at": collapse, "collapse / predicted": collapse / predicted}
    return row | {"explosion at": explosion, "explosion / predicted": explosion / predicted}


def literal_row(depth: int, found: Online) -> Row:
    collapse, explosion = found.collapse(depth) / rate_bound(depth), found.explosion(depth) / rate_bound(depth)
    return {"|y| = 1: collapse / predicted": collapse, "|y| = 1: explosion / predicted": explosion}


def rate_bound(depth: int) -> float:
    """2 / lambda_max."""
    return float(jfree.fisher_spectrum(hard_tanh(depth)).learning_rate_bound())


def learning_rates_figure(found: Online, rows: list[Row]) -> Figure:
    figure = Figure((10, 4), layout="constrained")
    for axes, values, name in zip(
        figure.subplots(1, 2), (found.loss, found.accuracy), ("loss", "accuracy"), strict=True
    ):
        norm = LogNorm(0.2, 2, clip=True) if name == "loss" else None
        shown = np.where(np.isfinite(values), values, 1e3) if norm else values
        mesh = axes.pcolormesh(DEPTHS, found.rates, shown.T, norm=norm, shading="nearest")
        figure.colorbar(mesh, label=f"held-out {name}")
        axes.plot(DEPTHS, [row["2 / lambda_max"] for row in rows], color="red", label="2 / lambda_max")
        axes.plot(DEPTHS, [row["collapse at"] for row in rows], "wo", markeredgecolor="black", label="collapse")
        axes.set(xscale="log", yscale="log", xlabel="depth L", ylabel="learning rate")
        axes.set_xticks(DEPTHS, [str(depth) for depth in DEPTHS], minor=False)
    figure.axes[0].legend()
    return figure


REPRODUCTIONS: dict[str, Reproduce] = {
    "fisher_spectra": fisher_spectra,
    "fisher_blocks": fisher_blocks,
    "learning_rates": learning_rates,
    "learning_rates_mnist": learning_rates_mnist,
}
