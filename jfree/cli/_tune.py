"""`jfree tune`: from a network and data to an initialisation that trains."""

import contextlib
import dataclasses
import itertools
import json as jsonlib
import math
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Annotated, Any, IO, Literal, TYPE_CHECKING

import numpy as np

from ._network import Data, default, Network, SHAPED
from ._report import check_figure, check_seed, check_writable, complete, describe, diagnosis, finite, header, POOLED

if TYPE_CHECKING:
    import equinox as eqx

    from .._networks.mlp import MLP
    from .._networks.network import Network as Layers
    from ..constraints import Constraint
    from ._train import Training

_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
_MOST_STEPS = 1_000_000
_DEEP = 50  # layers, of which it was measured what shaped activations are worth


@dataclasses.dataclass(frozen=True)
class TuneCommand:
    """Tunes the scales of a network until its singular values are near 1, samples it, and trains it beside others.

    Writes tuned.toml, a --config for next time; weights.npz with arrays W1, b1, W2, ... of the sampled initialisation;
    and tune.png with spectra and training curves.
    """

    network: Network = dataclasses.field(default_factory=Network)
    config: Annotated[Path | None, default("none")] = None
    """A TOML file with a [network] table, whose keys are the flags of the network with underscores; or with tables
    [[layers]], from input to output."""
    objective: Literal["weighted_isometry", "isometry", "condition_number", "log_spread"] = "weighted_isometry"
    """What to make small: mean square of the log singular values, weighted by their size or not, or largest over
    smallest, or the spread of 90%."""
    tune: tuple[Literal["sigma_w", "sigma_b", "widths", "gain", "factor", "skip", "scale"], ...] = ("sigma_w",)
    """What to tune. A scale that is given as one stays one; without --sigma-w every layer has its own. Hidden widths
    keep to their number of weights. Of [[layers]] all that have such a key are meant, and what repeats stays alike."""
    steps: int = 200
    """Steps of tuning."""
    nonlinearity: Annotated[float | None, default("0.5, at most 0.025 for each layer")] = None
    """The nonlinear share of variance that all layers together keep; 0 for none."""
    training_steps: int = 400
    """Steps of training, with Adam; 0 for none."""
    learning_rate: float = 1e-4
    """Of training."""
    output: Path = Path("jfree-tune")
    """The directory to write to."""
    json: bool = False
    """Print one JSON object; null stands for what is infinite or was not certified."""
    seed: int = 0
    """Of sampled networks and batches."""

    def run(self) -> None:
        self._check()
        net, data = self.network.build(self.config, depth=50, width=128.0, labelled=True, tuned=self.tune)
        self._check_start(net, data)
        say = (lambda *_: None) if self.json else (lambda text: print(text, flush=True))
        say(header(net, data.source))
        config, weights, figure = self._files()
        from ._train import sampled

        before = _Measured.of(net, self.seed)
        tuned, objective = self._tuned(net, data, show=not self.json)
        after = _Measured.of(tuned, self.seed)
        words = diagnosis(tuned, data)
        words["words"] += _advice(tuned)
        say("\n".join([_spectra_table(before, after, objective), "", *words["words"]]))
        start = sampled(tuned, self.seed)
        training = self._trained(sampled(net, self.seed), start, data)
        if training:
            say(_training_table(training))

        with _made(self.output, keep=True), complete("output", config, weights, figure) as drafts:
            drafts[0].write_text(_toml(tuned, data), "utf-8")
            with drafts[1].open("wb") as stream:
                _save_weights(stream, start)
            _draw(before, after, training, drafts[2])
        say(f"\nWrote {config}, {weights} and {figure}.")
        if self.json:
            summary = {
                "network": describe(tuned, data.source),
                "objective": objective,
                "before": before.summary(),
                "after": after.summary(),
                "diagnosis": words,
                "training": {name: t.summary() for name, t in training.items()},
            }
            print(jsonlib.dumps(finite(summary), allow_nan=False))

    def _check(self) -> None:
        """Before the work, what would fail after it."""
        if not 1 <= self.steps <= _MOST_STEPS:
            raise ValueError(f"`steps` must be from 1 to {_MOST_STEPS}, got {self.steps}.")
        if not 0 <= self.training_steps <= _MOST_STEPS:
            raise ValueError(f"`training_steps` must be from 0 to {_MOST_STEPS}, got {self.training_steps}.")
        if self.nonlinearity is not None and not 0 <= self.nonlinearity < np.inf:
            raise ValueError(f"`nonlinearity` must be at least 0 and finite, got {self.nonlinearity}.")
        if not 0 < self.learning_rate < np.inf:
            raise ValueError(f"`learning_rate` must be positive and finite, got {self.learning_rate}.")
        check_seed(self.seed)
        if not self.tune:
            raise ValueError("`tune` must not be empty.")
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"`output`: {self.output} is not a directory.")

    def _files(self) -> list[Path]:
        """Configuration, weights and figure, in a directory that can be written to."""
        files = [self.output / name for name in ("tuned.toml", "weights.npz", "tune.png")]
        with _made(self.output):
            for file in files:
                check_writable(file, "output")
            check_figure(files[-1], "output")
        return files

    def _check_start(self, net: "MLP | Layers", data: Data) -> None:
        from .._finite.sampling import integer_widths
        from .._networks.mlp import MLP

        last = integer_widths(net, None)[-1]
        if data.y is not None and last < data.num_outputs:
            name = "widths" if isinstance(net, MLP) else "layers"
            raise ValueError(f"`{name}` must end with at least {data.num_outputs}, the number of classes in `data`.")
        if "widths" in self.tune and isinstance(net, MLP) and net.depth < 2:
            raise ValueError("`widths` cannot be tuned without hidden layers: `depth` must be 2 at least.")
        for name in self.tune:
            if not self._numbers(net, name):
                kind = "an MLP" if isinstance(net, MLP) else "these [[layers]]"
                raise ValueError(f"`tune`: `{name}` cannot be tuned of {kind}.")
            if name == "sigma_b" and not all(np.all(np.asarray(x) > 0) for x in self._numbers(net, name)):
                raise ValueError("`sigma_b` must be positive to be tuned: at 0 its gradient vanishes.")

    @staticmethod
    def _numbers(net: "MLP | Layers", name: str) -> list[Any]:
        """All of this name."""
        from .._networks.mlp import MLP
        from ._layers import numbers

        if isinstance(net, MLP):
            return [getattr(net, name)] if hasattr(net, name) else []
        return numbers(net, [name])

    def _tuned(self, net: "MLP | Layers", data: Data, show: bool) -> tuple["MLP | Layers", tuple[float, float]]:
        """The tuned network, and the objective before and after."""
        import equinox as eqx

        from .. import objectives
        from .._numerics.compile import quickly
        from .._tune import tune

        objective = {"log_spread": objectives.log_spread()}.get(self.objective) or getattr(objectives, self.objective)
        start = self._start(net)
        where, constraint = self._free(start)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the diagnosis says it
            result = tune(
                start,
                objective,
                where=where,
                steps=self.steps,
                constraint=constraint,
                progress=show,
                q0=data.mean_squares(),
                nonlinearity=self.nonlinearity,
            )
        before = float(result.history[0])
        if start is not net:
            squares = data.mean_squares()
            over_data = objective if squares is None else objectives.over_inputs(objective, squares)
            before = float(quickly(eqx.filter_jit)(over_data)(net))
        if result.rounded is not None and result.rounded_objective is not None:
            return result.rounded, (before, float(result.rounded_objective))  # pyright: ignore
        return result.net, (before, float(result.objective))  # pyright: ignore

    def _start(self, net: "MLP | Layers") -> "MLP | Layers":
        """Where nobody has given scales of weights, a good one for every layer."""
        from .._initialize import even_start
        from .._networks.mlp import MLP

        free = self.config is None and self.network.sigma_w is None and "sigma_w" in self.tune
        return even_start(net, self.nonlinearity) if free and isinstance(net, MLP) else net

    def _free(self, net: "MLP | Layers") -> tuple[Callable[[Any], Any], "Constraint | None"]:
        """What is tuned, and what else has to hold."""
        from .._networks.mlp import MLP
        from ..constraints import parameter_budget
        from ._layers import Tied

        if not isinstance(net, MLP):
            tied = Tied(net, self.tune)
            return tied.where, tied.constrain
        widths = np.asarray(net.widths)
        budget = parameter_budget(float(np.sum(widths[1:] * widths[:-1])), widths[0], widths[-1])
        return lambda n: tuple(getattr(n, name) for name in self.tune), budget if "widths" in self.tune else None

    def _trained(self, given: "eqx.nn.Sequential", tuned: "eqx.nn.Sequential", data: Data) -> dict[str, "Training"]:
        if not self.training_steps or data.x is None or data.y is None:
            return {}
        import optax

        from ._train import equinox_default, train

        starts = {"as given": given, "tuned": tuned, "Equinox's default": equinox_default(given, self.seed)}
        optimizer = optax.adam(self.learning_rate)
        return {
            name: train(model, data.x, data.y, self.training_steps, optimizer, self.seed)
            for name, model in starts.items()
        }


@contextlib.contextmanager
def _made(directory: Path, keep: bool = False) -> Generator[None]:
    """A directory that stands meanwhile; what was made for it goes again, but where it was to be kept and all went
    well.
    """
    missing = list(itertools.takewhile(lambda path: not path.exists(), (directory, *directory.parents)))
    done = False
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
        done = keep
    except OSError as error:
        raise ValueError(f"`output`: {directory} cannot be written: {error}") from error
    finally:
        for path in missing if not done else ():
            with contextlib.suppress(OSError):
                path.rmdir()


@dataclasses.dataclass(frozen=True)
class _Measured:
    """The spectrum of the smaller of `J^T J` and `J J^T`, and what networks sampled at the real widths have instead."""

    spectrum: Any
    quantiles: np.ndarray
    eigenvalues: np.ndarray
    distance: float

    @staticmethod
    def of(net: "MLP | Layers", seed: int) -> "_Measured":
        import jax
        import jax.numpy as jnp

        from .._finite.diagnosis import alarm
        from .._spectra import jacobian_spectrum
        from ..empirical import jacobian_eigenvalues, ks_distance

        widths = np.asarray(net.widths)
        side = "output" if widths[-1] <= widths[0] else "input"
        spectrum = jacobian_spectrum(net, side)
        zero = float(spectrum.mass_at_zero())
        quantiles = np.asarray(spectrum.quantile(zero + (1 - zero) * np.asarray(_LEVELS)))
        num_samples = math.ceil(POOLED / widths[[0, -1]].min())
        eigenvalues = np.asarray(jacobian_eigenvalues(net, jax.random.key(seed), num_samples=num_samples, side=side))
        if not np.all(np.isfinite(eigenvalues)):
            cause = alarm(net, jnp.atleast_1d(net.q0)) or "Its singular values leave the range of floats."
            raise ValueError(f"the network cannot be sampled at these widths. {cause}")
        return _Measured(spectrum, quantiles, eigenvalues, float(ks_distance(eigenvalues, spectrum)))

    @property
    def measured(self) -> np.ndarray:
        zero = float(self.spectrum.mass_at_zero())
        return np.quantile(self.eigenvalues, zero + (1 - zero) * np.asarray(_LEVELS))

    def summary(self) -> dict[str, Any]:
        return {
            "singular_values": dict(zip(map(str, _LEVELS), np.sqrt(self.quantiles).tolist(), strict=True)),
            "measured": dict(zip(map(str, _LEVELS), np.sqrt(self.measured).tolist(), strict=True)),
            "mass_at_zero": float(self.spectrum.mass_at_zero()),
            "ks_distance": self.distance,
        }


def _save_weights(stream: IO[bytes], model: "eqx.nn.Sequential") -> None:
    """W1, b1, W2, ... of the network that was sampled, and trained."""
    from ._train import linears

    arrays = {}
    for layer, linear in enumerate(linears(model), 1):
        arrays |= {f"W{layer}": np.asarray(linear.weight), f"b{layer}": np.asarray(linear.bias)}
    np.savez(stream, **arrays)


def _advice(net: "MLP | Layers") -> list[str]:
    """Where more is to be had than by tuning."""
    from .._networks.mlp import MLP
    from ..activations._smooth import AbstractSmooth
    from ._layers import flag

    if not isinstance(net, MLP) or net.depth < _DEEP:
        return []
    hidden = net.activations[:-1]
    names = set(map(flag, hidden))
    if len(names) > 1 or not all(isinstance(activation, AbstractSmooth) for activation in hidden):
        return []
    return [
        f"So deep an MLP often trains faster with an activation that is shaped: --activation {SHAPED}{names.pop()}."
    ]


def _toml(net: "MLP | Layers", data: Data) -> str:
    """What `--config` reads."""
    from .._networks.mlp import MLP
    from ._layers import flag, toml, written

    network: dict[str, Any]
    if isinstance(net, MLP):
        network = {name: np.asarray(getattr(net, name), float).tolist() for name in ("widths", "sigma_w", "sigma_b")}
        network["weights"] = [flag(law) for law in net.weights]
        network["activation"] = [flag(activation) for activation in net.activations]
    else:
        network = {"width": float(net.width), "layers": written(net.layers)}
    network |= {"q0": float(net.q0)} | ({"data": str(data.path.resolve())} if data.path else {})
    return "\n".join(["[network]", *toml(network), ""])


def _spectra_table(before: _Measured, after: _Measured, objective: tuple[float, float]) -> str:
    columns = (before.quantiles, before.measured, after.quantiles, after.measured)
    lines = [f"\n{'':<18}{'as given':>14}{'sampled':>14}{'tuned':>14}{'sampled':>14}", "singular values"]
    for k, level in enumerate(_LEVELS):
        lines.append(f"{f'  quantile {level:4.0%}':<18}" + "".join(f"{c[k] ** 0.5:>14.6g}" for c in columns))
    lines.append(f"{'KS distance':<18}{'':>14}{before.distance:>14.4f}{'':>14}{after.distance:>14.4f}")
    lines.append(f"{'objective':<18}{objective[0]:>14.6g}{'':>14}{objective[1]:>14.6g}")
    return "\n".join(lines)


def _training_table(training: dict[str, "Training"]) -> str:
    """How soon the training loss is a tenth of what it starts at when one guesses, and how it ends."""
    lines = [f"\n{'':<18}{'steps to 10%':>14}{'training loss':>15}{'test accuracy':>15}"]
    for name, t in training.items():
        steps = "never" if t.steps_to_tenth is None else str(t.steps_to_tenth)
        lines.append(f"{name:<18}{steps:>14}{t.loss:>15.4f}{t.accuracy:>15.1%}")
    return "\n".join(lines)


def _draw(before: _Measured, after: _Measured, training: dict[str, "Training"], path: Path) -> None:
    """Spectra before and after over what was sampled, and training curves."""
    from ..plot import pyplot

    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    try:
        for ax, measured, title in ((axes[0], before, "as given"), (axes[1], after, "tuned")):
            values = np.log10(np.sqrt(measured.eigenvalues[measured.eigenvalues > 0]))
            middle, reach = np.median(values), max(np.ptp(values), 1e-3)
            counts, edges = np.histogram(values, np.linspace(middle - reach, middle + reach, 81))
            heights = counts / measured.eigenvalues.size / np.diff(edges)
            ax.stairs(heights, 10**edges, fill=True, alpha=0.3, label="sampled")
            measured.spectrum.plot(ax, "log", singular_values=True)
            ax.set_ylim(0, 1.1 * max(ax.get_ylim()[1], heights.max()))
            ax.set_title(title)
            ax.legend(frameon=False)
        for name, curve in training.items():
            axes[2].plot(curve.losses, label=name)
        axes[2].set(xlabel="step", ylabel="training loss", title="training")
        if training:
            axes[2].legend(frameon=False)
        figure.savefig(path, format="png")
    finally:
        plt.close(figure)
