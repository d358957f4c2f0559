"""Hayase, "Almost surely asymptotic freeness for Jacobian spectrum of deep network"; Collins, Hayase, "Asymptotic
freeness of layerwise Jacobians caused by invariance of multilayer perceptron".

Both prove that weights and slopes of one forward pass are asymptotically free. Here their mixed moments are sampled:
alternating products of centred factors, whose free value is 0, and the moments of `J J^T` that follow from freeness.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

import jfree
from jfree.activations import AbstractActivation, Erf, HardTanh, ReLU, ShiftedReLU, Sigmoid, SiLU, Tanh
from jfree.empirical import jacobian_eigenvalues

from ._reproduction import Check, Reproduce, Reproduction, Row

# Example 2.1 of Collins and Hayase, who leave the shift open.
ACTIVATIONS: dict[str, AbstractActivation] = {
    "ReLU": ReLU(),
    "shifted ReLU": ShiftedReLU(-0.5),
    "hard tanh": HardTanh(),
    "tanh": Tanh(),
    "sigmoid": Sigmoid(),
    "SiLU": SiLU(),
    "erf": Erf(),
}
WEIGHTS = ("gaussian", "orthogonal")

# Alternating words of E_l = D_l^2 - tau(D_l^2), weights, and what is made of them; a prime: less its free mean.
WORDS = {
    "W1 E1": "C.-H., Theorem 4.1",
    "W1 E1 W1* E1": "C.-H., Theorem 4.1",
    "W2 E1 W2* E2": "C.-H., Theorem 4.1",
    "W2 E1 W1 E2 W1* E1 W2* E2": "C.-H., Theorem 4.1",
    "(W1 W1*)' E1": "H., Assumption 6.2",
    "(W1 W1*)' E1 (W1 W1*)' E1": "H., Assumption 6.2",
    "A2' E2, A2 = W2 J1 J1* W2*": "C.-H., Proposition 4.2; H., Theorem 6.5",
    "A3' E3, A3 = W3 J2 J2* W3*": "C.-H., Proposition 4.2; H., Theorem 6.5",
    "A3' E3 A3' E3": "C.-H., Proposition 4.2; H., Theorem 6.5",
    "H3' E3": "C.-H., Proposition 4.3",
    "H3' E3 H3' E3": "C.-H., Proposition 4.3",
}
MOMENTS = ("tr J J*", "tr (J J*)^2")
SLOPES = "E1 E2 E1 E2"

# By activation, word and N: of every sample, the normalised trace less its free value.
Errors = dict[str, dict[str, dict[int, np.ndarray]]]


def freeness(full: bool) -> Reproduction:
    sizes = {64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}
    sizes = sizes | {2048: 8} if full else {n: k // 2 for n, k in sizes.items() if n < 1024} | {1024: 5}
    errors = {weights: _errors(weights, sizes) for weights in WEIGHTS}
    fits = [_fit(weights, name, errors[weights][name]) for weights in WEIGHTS for name in ACTIVATIONS]
    words = [_word_row(weights, word, errors[weights]) for weights in WEIGHTS for word in _words(weights)]
    slopes = [_slopes_row(name, errors["orthogonal"][name][SLOPES]) for name in ACTIVATIONS]
    rectangular = _rectangular(100 if full else 20)
    shown = ", ".join(f"{n} ({k})" for n, k in sizes.items())
    return Reproduction(
        "Weights and slopes of one forward pass are asymptotically free: mixed moments of centred factors vanish like "
        "1/N.",
        "Hayase 2019, Theorem 6.5; Collins and Hayase 2021, Theorem 4.1, Propositions 4.2 and 4.3",
        f"three layers, sigma_w = 1, sigma_b = 0, widths (and samples) {shown}; nothing numerical was published",
        {
            "Exponents of root mean squares over samples against N": fits,
            "By word: root mean squares, mean over activations": words,
            f"Slopes of two layers are not free of each other: tr {SLOPES}, Haar, largest N": slopes,
            "Widths 2 : 1 : 4, two ReLU layers, Gaussian: variance / mean^2 of J^T J": rectangular,
        },
        [*_exponent_checks(fits), *_other_checks(slopes, rectangular)],
        _figure(errors),
        [
            "The papers prove convergence and give no rate. That of Collins and Hayase's proof is N^(-1/n) for n "
            "factors; what is seen is 1/N, for every word. Factors are centred with their limits, not with samples.",
            "Moments of J J^T come within N^(-1/2) only: the slopes of a layer fluctuate like independent ones, and so "
            "does their mean. Our expectation of -1/2 fails where slopes vary little, with SiLU and sigmoid, as what "
            "Gaussian weights add, a bias and fluctuations of order 1/N, still counts at these N: for tr (J J*)^2 the "
            "mean over activations is off by more than the tolerance.",
            "These are statements on normalised traces: single eigenvalues, as those of rectifier networks in "
            "`residual_spectra`, are not seen by them.",
            "All slopes are one family in Theorem 4.1, and must be: those of two layers commute and are asymptotically "
            f"independent, so tr {SLOPES} tends to the product of their variances, and not to 0.",
            "Erratum of (3.14) in Collins and Hayase: n C^n / N^n should be n C^n / N^(1/n), as the proof has it. "
            "With factors 1, C = 1, n = 2 and N = 1024 the left side is 9.8e-4, the bound 1.9e-6 as printed, and "
            "6.2e-2 as it should be.",
            "Erratum of (6.2) in Hayase: right for square layers only, as its free product is of matrices of one size; "
            "see the table of widths 2 : 1 : 4.",
            "Errata of the S-transforms: 1 / (1 + z) in Hayase should be (1 + z) / z, and in Collins and Hayase's "
            "example alpha and 1 - alpha are exchanged: for hard tanh at q = 1, S(0) = 1 / mean is 1.465, not 3.15.",
        ],
    )


def _words(weights: str) -> list[str]:
    """`W W^T` of orthogonal weights is constant."""
    return [word for word in WORDS if weights == "gaussian" or not word.startswith("(W1 W1*)'")]


class Limits(NamedTuple):
    """Free means: of `D_l^2`, of `x_l^2` from the input on, and of `J J^T` and its square."""

    slope: Array
    square: Array
    moments: Array

    @staticmethod
    def of(net: jfree.MLP) -> "Limits":
        field, spectrum = net.propagate(), jfree.jacobian_spectrum(net)
        mean, variance = spectrum.mean(), spectrum.variance()
        return Limits(field.chi, jnp.append(net.q0, field.phi2), jnp.stack([mean, variance + mean**2]))


def _net(activation: AbstractActivation, weights: str) -> jfree.MLP:
    return jfree.MLP(np.ones(4), activation, weights, final_activation=activation)


def _errors(weights: str, sizes: dict[int, int]) -> Errors:
    """All activations see the same weights and inputs."""
    nets = {name: _net(activation, weights) for name, activation in ACTIVATIONS.items()}
    limits = {name: Limits.of(net) for name, net in nets.items()}
    words = [*_words(weights), *MOMENTS, SLOPES]
    errors: Errors = {name: {word: {} for word in words} for name in nets}
    for width, num_samples in sizes.items():
        found: dict[str, list[dict[str, Array]]] = {name: [] for name in nets}
        for w, x in _draws(nets["ReLU"], width, num_samples):
            for name, net in nets.items():
                found[name].append(_traces(w, *_forward(net.activations[0], w, x), limits[name]))
        for name, word in itertools.product(nets, words):
            errors[name][word][width] = np.array([float(traces[word]) for traces in found[name]])
    return errors


def _draws(net: jfree.MLP, width: int, num_samples: int) -> Iterator[tuple[Array, Array]]:
    for key in jax.random.split(jax.random.fold_in(jax.random.key(0), width), num_samples):
        x = jax.random.normal(key, (width,))
        weights = jfree.sample_weights(net, jax.random.fold_in(key, 1), width)
        yield jnp.stack([w for w, _ in weights]), x * (width / jnp.sum(x**2)) ** 0.5


def _forward(activation: AbstractActivation, w: Array, x: Array) -> tuple[Array, Array]:
    """Slopes per layer, and mean squares of what every layer gives."""
    slopes, squares = [], []
    for weight in w:
        h = weight @ x
        x = activation(h)
        slopes.append(activation.derivative(h))
        squares.append(jnp.mean(x**2))
    return jnp.stack(slopes), jnp.stack(squares)


@eqx.filter_jit
def _traces(w: Array, slopes: Array, squares: Array, limits: Limits) -> dict[str, Array]:
    """Of every word, and of the moments, less their free values."""
    d, (w1, w2, w3), one = slopes, w, jnp.eye(w.shape[1])
    e1, e2, e3 = d**2 - limits.slope[:, None]
    s1, s2, _ = limits.slope
    r1, r2 = limits.square[1:3]

    gram = w1 @ w1.T - one
    inner = (w2 * e1) @ w1
    to_2 = (w2 * d[0]) @ w1
    to_3 = (w3 * d[1]) @ to_2
    a2, a3 = to_2 @ to_2.T, to_3 @ to_3.T
    jacobian = (d[2] * a3).T * d[2]
    h2 = squares[0] * one + (w2 * d[0] ** 2) @ w2.T
    h3 = squares[1] * one + (w3 * d[1]) @ h2 @ (w3 * d[1]).T
    a2, a3 = a2 - s1 * one, a3 - s1 * s2 * one
    h3 = h3 - (r2 + s2 * (r1 + s1)) * one
    values = (
        _trace(w1, e1),
        _trace_4(w1, e1, e1),
        _trace_4(w2, e1, e2),
        _trace_4(inner, e2, e2),
        _trace(gram, e1),
        _trace_4(gram, e1, e1),
        _trace(a2, e2),
        _trace(a3, e3),
        _trace_4(a3, e3, e3),
        _trace(h3, e3),
        _trace_4(h3, e3, e3),
    )
    traces = dict(zip(WORDS, values, strict=True))
    moments = jnp.stack([jnp.trace(jacobian), jnp.sum(jacobian**2)]) / w1.shape[0] - limits.moments
    return traces | dict(zip(MOMENTS, moments, strict=True)) | {SLOPES: jnp.mean(e1**2 * e2**2)}


def _trace(a: Array, e: Array) -> Array:
    """`tr A E`."""
    return jnp.mean(jnp.diagonal(a) * e)


def _trace_4(a: Array, e: Array, f: Array) -> Array:
    """`tr A E A^T F`."""
    return f @ (a**2 @ e) / e.size


def _rms(samples: dict[int, np.ndarray]) -> dict[int, float]:
    return {width: float(np.sqrt(np.mean(values**2))) for width, values in samples.items()}


def _exponent(samples: dict[int, np.ndarray]) -> float:
    """Of the root mean square against N, by least squares in logarithms, each width as sure as its samples make it."""
    rms = _rms(samples)
    sure = [values.size**0.5 for values in samples.values()]
    return float(np.polyfit(np.log(list(rms)), np.log(list(rms.values())), 1, w=sure)[0])


def _fit(weights: str, name: str, errors: dict[str, dict[int, np.ndarray]]) -> Row:
    exponents = [_exponent(errors[word]) for word in _words(weights)]
    row = {"weights": weights, "activation": name, "words": float(np.mean(exponents))}
    row |= {"smallest": min(exponents), "largest": max(exponents)}
    return row | {moment: _exponent(errors[moment]) for moment in MOMENTS}


def _word_row(weights: str, word: str, errors: Errors) -> Row:
    rms = [_rms(errors[name][word]) for name in ACTIVATIONS]
    ends = {f"N = {n}": float(np.mean([each[n] for each in rms])) for n in (min(rms[0]), max(rms[0]))}
    exponents = [_exponent(errors[name][word]) for name in ACTIVATIONS]
    return {"weights": weights, "word": word, "of": WORDS[word]} | ends | {"exponent": float(np.mean(exponents))}


def _slopes_row(name: str, samples: dict[int, np.ndarray]) -> Row:
    limits = Limits.of(_net(ACTIVATIONS[name], "orthogonal"))
    variances = [_slope_variance(ACTIVATIONS[name], limits.square[layer]) for layer in (0, 1)]
    return {"activation": name, "sampled": float(samples[max(samples)].mean()), "limit": variances[0] * variances[1]}


def _slope_variance(activation: AbstractActivation, q: Array) -> float:
    """Of `phi'(sqrt(q) Z)^2`, the eigenvalues of one orthogonal layer."""
    net = jfree.MLP(np.ones(2), activation, "orthogonal", q0=q, final_activation=activation)
    return float(jfree.jacobian_spectrum(net).variance())


def _rectangular(num_samples: int) -> list[Row]:
    """Variance over squared mean adds up over free factors: 1/c of a free Poisson law of rate c, 1 of a ReLU's slopes.

    Seen from the input's side, factors of later layers count N_0 / N_l times.
    """
    net = jfree.MLP([2.0, 1.0, 4.0], "relu", "gaussian", final_activation="relu")
    spectrum = jfree.jacobian_spectrum(net)
    eigenvalues = np.asarray(jacobian_eigenvalues(net, jax.random.key(0), 1024, num_samples))
    rates = (1 / 2, 4 / 1)
    return [
        {
            "(6.2) as printed": sum(1 / rate + 1 for rate in rates),
            "right": 2 * 2 / 1 + 2 * 2 / 4,
            "jfree": float(spectrum.variance() / spectrum.mean() ** 2),
            "sampled": float(eigenvalues.var() / eigenvalues.mean() ** 2),
        }
    ]


def _exponent_checks(fits: list[Row]) -> list[Check]:
    checks = []
    for weights in WEIGHTS:
        some = [row for row in fits if row["weights"] == weights]
        slowest = max(row["largest"] for row in some)
        bound = "below -1/2: squares are then summable over N (Borel-Cantelli)"
        checks.append(
            Check(f"exponent, slowest word and activation, {weights}", "to 0 a.s.", slowest, bound, slowest < -0.5)
        )
        for what, value in (("words", -1.0), *((moment, -0.5) for moment in MOMENTS)):
            ours = float(np.mean([row[what] for row in some]))
            checks.append(
                Check.near(f"mean exponent, {what}, {weights} (expected, not published)", value, ours, 0.1, False)
            )
    return checks


def _other_checks(slopes: list[Row], rectangular: list[Row]) -> list[Check]:
    gap = max(abs(row["sampled"] / row["limit"] - 1) for row in slopes)
    row = rectangular[0]
    return [
        Check(
            f"tr {SLOPES} beside product of variances, largest relative difference",
            "one family",
            gap,
            "at most 0.1",
            gap <= 0.1,
        ),
        Check.near("variance / mean^2, widths 2 : 1 : 4, (6.2) set right", row["right"], row["sampled"], 0.05),
        Check.near("the same, jfree", row["right"], row["jfree"], 1e-9),
    ]


def _figure(errors: dict[str, Errors]) -> Figure:
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    n = np.array(list(errors["gaussian"]["ReLU"][SLOPES]))
    for ax, weights in zip(axes, WEIGHTS, strict=True):
        for name, color in zip(ACTIVATIONS, (f"C{k}" for k in itertools.count()), strict=False):
            for words, style in ((_words(weights), "o-"), (MOMENTS, "s--")):
                logs = np.array([np.log(list(_rms(errors[weights][name][word]).values())) for word in words])
                ax.loglog(n, np.exp(logs.mean(axis=0)), style, ms=3, lw=1, color=color)
            ax.plot([], color=color, label=name)
        ax.plot(n, 2 / n, "k:", label="slope -1")
        ax.plot(n, 8 / n**0.5, "k-.", label="slope -1/2")
        ax.set(title=weights, xlabel="N", xticks=n, xticklabels=n)
        ax.minorticks_off()
    axes[0].set_ylabel("root mean square error, geometric mean")
    axes[1].legend(title="solid: words\ndashed: moments", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


REPRODUCTIONS: dict[str, Reproduce] = {"freeness": freeness}
