"""The command line: `jfree spectrum` prints the Jacobian spectrum of a network from its shape and initialisation."""

import contextlib
import dataclasses
import io
import itertools
import json as jsonlib
import math
import os
import re
import sys
import tomllib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TYPE_CHECKING

import numpy as np
import tyro

if TYPE_CHECKING:
    from ._networks import MLP
    from ._spectrum import Spectrum

_LEVELS = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
_NUM_INPUTS, _NUM_OUTPUTS = 64, 10  # of scikit-learn's digits


def _default(text: str):
    """`None` stands for a flag that was not given; help shows this in its place."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {text})")


@dataclasses.dataclass(frozen=True)
class Network:
    """An MLP. A flag that is given overrides the key of the same name in the [network] table of --config."""

    widths: Annotated[tuple[float, ...] | None, _default("inputs, depth - 1 times width, 10")] = None
    """Widths N_0 .. N_L; only their ratios matter."""
    depth: Annotated[int | None, _default("10")] = None
    """Number of layers L, in place of --widths."""
    width: Annotated[float | None, _default("256")] = None
    """Width of the hidden layers, in place of --widths."""
    activation: Annotated[tuple[str, ...] | None, _default("tanh")] = None
    """One for all layers but the last, or one per layer: linear, relu, leaky_relu, hard_tanh, hard_sine, tanh, erf,
    sigmoid, silu, gelu, softplus."""
    final_activation: Annotated[str | None, _default("linear")] = None
    """Activation of the last layer."""
    weights: Annotated[tuple[str, ...] | None, _default("orthogonal")] = None
    """gaussian or orthogonal, one or one per layer."""
    sigma_w: Annotated[tuple[float, ...] | None, _default("1")] = None
    """Scale of the weights: W has entries of variance sigma_w^2 / N_in. One or one per layer."""
    sigma_b: Annotated[tuple[float, ...] | None, _default("0")] = None
    """Standard deviation of the biases, one or one per layer."""
    q0: Annotated[float | None, _default("measured on the data")] = None
    """Mean square |x|^2 / N_0 of the input."""
    data: Annotated[Path | None, _default("scikit-learn's digits, standardised")] = None
    """An .npz file with the inputs, as the network sees them, as array x: one row per input."""

    def build(self, config: Path | None) -> tuple["MLP", str]:
        """The network, and where its `q0` comes from."""
        from ._networks import MLP

        given = {name: value for name, value in vars(self).items() if value is not None}
        given = _override(_read_config(config) if config else {}, given)
        empty = [key for key, value in given.items() if value == ()]
        if empty:
            raise ValueError(f"`{empty[0]}` must not be empty.")
        if len(given.get("activation", ())) > 1 and "final_activation" in given:
            raise ValueError("`final_activation` must not be given along with one `activation` per layer.")
        x, source = _inputs(given)
        given = {"q0": np.mean(np.square(x))} | given if x is not None else given
        widths = _widths(given, _NUM_INPUTS if x is None else x.shape[1])
        options = {
            key: _unpacked(value) for key, value in given.items() if key not in ("widths", "depth", "width", "data")
        }
        return MLP(widths, **options), source


@dataclasses.dataclass(frozen=True)
class SpectrumCommand:
    """The spectrum of J^T J, J the input-output Jacobian of a wide random network: its squared singular values."""

    network: Network = dataclasses.field(default_factory=Network)
    config: Annotated[Path | None, _default("none")] = None
    """A TOML file with a [network] table, whose keys are the flags of the network with underscores."""
    side: Literal["input", "output"] = "input"
    """output: the spectrum of J J^T."""
    json: bool = False
    """Print one JSON object; null stands for what is infinite or was not certified."""
    figure: Annotated[Path | None, _default("none")] = None
    """Draw the density to this file."""
    check: bool = False
    """Sample one finite network of these widths, and print the Kolmogorov-Smirnov distance of its eigenvalues."""
    seed: int = 0
    """Of the sampled network."""

    def run(self) -> None:
        from ._spectrum import jacobian_spectrum

        if self.figure:
            _check_figure(self.figure)
        net, source = self.network.build(self.config)
        eigenvalues = self._sample(net) if self.check else None
        network = _describe(net, source)
        if not self.json:
            print(_header(network), flush=True)
        spectrum = jacobian_spectrum(net, self.side)
        summary = {"network": network, "side": self.side, **_summary(net, spectrum)}
        if eigenvalues is not None:
            from .empirical import ks_distance

            summary["ks_distance"] = float(ks_distance(eigenvalues, spectrum))
        if self.figure:
            _draw(spectrum, self.figure, _header(network))
        print(jsonlib.dumps(_finite(summary), allow_nan=False) if self.json else _table(summary))

    def _sample(self, net: "MLP"):
        import jax

        from .empirical import jacobian_eigenvalues

        if not 0 <= self.seed < 2**63:
            raise ValueError(f"`seed` must lie in [0, 2^63), got {self.seed}.")
        return jacobian_eigenvalues(net, jax.random.key(self.seed), side=self.side)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `jfree ARGV...`, in float64.

    **Arguments:** `argv`, without the program's name; by default those of the process.

    **Returns:** the exit code: 0, or 2 after one line on standard error for bad input.

    **Raises:** `SystemExit` after `--help`.
    """
    try:
        command = _parse(sys.argv[1:] if argv is None else argv)
        import jax

        jax.config.update("jax_enable_x64", True)
        command.run()
    except (ValueError, ImportError) as error:
        print("jfree:", *str(error).split(), file=sys.stderr)
        return 2
    return 0


def _parse(argv: Sequence[str]) -> SpectrumCommand:
    """tyro, its boxed errors unpacked."""
    message = io.StringIO()
    commands = {"spectrum": SpectrumCommand}
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff)
    try:
        with contextlib.redirect_stderr(message):
            return tyro.extras.subcommand_cli_from_dict(
                commands, prog="jfree", description="Free probability for deep networks.", args=argv, config=config
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = [line.strip(" │") for line in re.sub(r"\x1b\[[0-9;]*m", "", message.getvalue()).splitlines()]
        text = itertools.takewhile(lambda line: not line.startswith("──"), lines[1:])
        raise ValueError(" ".join(text)) from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"`config`: cannot read {path}: {error}") from error
    table = content.get("network")
    if not isinstance(table, dict) or len(content) > 1:
        raise ValueError(f"`config`: {path} must hold one table, [network].")
    given = {key: _config_value(key, value) for key, value in table.items()}
    return given | ({"data": path.parent / given["data"]} if "data" in given else {})


def _config_value(key: str, value: Any) -> Any:
    """Checked against the type that `Network` gives the flag; one value will do for a sequence of them."""
    hints = typing.get_type_hints(Network)
    if key not in hints:
        raise ValueError(f"`config`: unknown key `{key}` in [network]; it may hold {', '.join(hints)}.")
    kind = typing.get_args(hints[key])[0]  # the other is None
    many = typing.get_origin(kind) is tuple
    kind = typing.get_args(kind)[0] if many else kind
    values = tuple(value) if many and isinstance(value, list) else (value,)
    allowed = {float: int | float, Path: str}.get(kind, kind)
    if not all(isinstance(v, allowed) and not isinstance(v, bool) for v in values):
        raise ValueError(f"`config`: `{key}` in [network] must be {kind.__name__}, got {value!r}.")
    return values if many else value


def _override(table: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """A flag also overrides the keys that say the same in another way."""
    rivals = {"widths": {"depth", "width"}, "depth": {"widths"}, "width": {"widths"}, "data": {"q0"}, "q0": {"data"}}
    gone = set().union(*(rivals.get(flag, set()) for flag in flags))
    return {key: value for key, value in table.items() if key not in gone} | flags


def _inputs(given: dict[str, Any]) -> tuple[np.ndarray | None, str]:
    """Rows of inputs, none if `q0` needs no measuring, and a word on the source of `q0`."""
    if "data" in given:
        return _read_data(given["data"]), "given" if "q0" in given else f"measured on {given['data']}"
    if "q0" in given:
        return None, "given"
    from sklearn.datasets import load_digits

    x = np.asarray(load_digits(return_X_y=True)[0], np.float64)
    spread = x.std(0)
    return (x - x.mean(0)) / np.where(spread > 0, spread, 1), "measured on scikit-learn's digits"


def _read_data(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            x = np.asarray(file["x"], np.float64)
    except Exception as error:  # zipfile, pickle and NumPy each have their own
        raise ValueError(f"`data`: cannot read array x from {path}: {error}") from error
    if x.ndim < 2 or not x.size or not np.all(np.isfinite(x)):
        raise ValueError(f"`data`: x in {path} must hold finite numbers, one row per input; its shape is {x.shape}.")
    return x.reshape(len(x), -1)


def _widths(given: dict[str, Any], num_inputs: int) -> list[float]:
    if "widths" in given:
        if given.keys() & {"depth", "width"}:
            raise ValueError("`widths` must not be given along with `depth` or `width`.")
        if "data" in given and given["widths"][0] != num_inputs:
            raise ValueError(f"`widths` must start with {num_inputs}, the length of the inputs in `data`.")
        return [float(width) for width in given["widths"]]
    depth, width = given.get("depth", 10), given.get("width", 256)
    if depth < 1 or not width > 0:
        raise ValueError(f"`depth` must be at least 1 and `width` positive, got {depth} and {width}.")
    return [float(num_inputs), *[float(width)] * (depth - 1), float(_NUM_OUTPUTS)]


def _unpacked(value: Any) -> Any:
    """What `MLP` takes for the values of a flag: one, names, or an array."""
    if not isinstance(value, tuple):
        return value
    return value[0] if len(value) == 1 else value if isinstance(value[0], str) else np.asarray(value, np.float64)


def _describe(net: "MLP", source: str) -> dict[str, Any]:
    return {
        "widths": net.widths.tolist(),
        "weights": [type(law).__name__ for law in net.weights],
        "activations": [type(activation).__name__ for activation in net.activations],
        "sigma_w": net.sigma_w.tolist(),
        "sigma_b": net.sigma_b.tolist(),
        "q0": float(net.q0),
        "q0_source": source,
    }


def _header(network: dict[str, Any]) -> str:
    """One line: `MLP 64, 256 x9, 10 | Orthogonal x10 | ...`."""

    def runs(values):
        values = [values] if isinstance(values, float) else values
        texts = [value if isinstance(value, str) else f"{value:g}" for value in values]
        counts = [(text, len(list(group))) for text, group in itertools.groupby(texts)]
        return ", ".join(text if count == 1 else f"{text} x{count}" for text, count in counts)

    parts = [runs(network[name]) for name in ("widths", "weights", "activations")]
    scales = [f"{name} {runs(network[name])}" for name in ("sigma_w", "sigma_b", "q0")]
    return f"MLP {' | '.join(parts + scales)} ({network['q0_source']})"


def _summary(net: "MLP", spectrum: "Spectrum") -> dict[str, Any]:
    from ._networks import propagate

    mean_field = propagate(net)
    atoms = zip(*(np.asarray(a).tolist() for a in spectrum.atoms()), strict=True)
    return {
        "mean_field": {"q": mean_field.q.tolist(), "chi": mean_field.chi.tolist()},
        "edges": [float(edge) for edge in spectrum.edges()],
        "condition_number": float(spectrum.condition_number()),
        "mass_at_zero": float(spectrum.mass_at_zero()),
        "atoms": [{"location": place, "mass": mass} for place, mass in atoms if place > 0 and mass > 0],
        "mean": float(spectrum.mean()),
        "variance": float(spectrum.variance()),
        "mean_log": float(spectrum.mean_log()),
        "quantiles": dict(zip(map(str, _LEVELS), spectrum.quantile(np.asarray(_LEVELS)).tolist(), strict=True)),
    }


def _table(summary: dict[str, Any]) -> str:
    q, chi = summary["mean_field"]["q"], summary["mean_field"]["chi"]
    rows = [
        ("", "first layer", "last layer"),
        ("q", q[0], q[-1]),
        ("chi", chi[0], chi[-1]),
        ("",),
        ("edges", *summary["edges"]),
        ("condition number", summary["condition_number"]),
        ("mass at zero", summary["mass_at_zero"]),
        *(("atom, mass", atom["location"], atom["mass"]) for atom in summary["atoms"]),
        ("mean", summary["mean"]),
        ("variance", summary["variance"]),
        ("mean log", summary["mean_log"]),
        *((f"quantile {float(level):4.0%}", value) for level, value in summary["quantiles"].items()),
        *([("KS distance", summary["ks_distance"])] if "ks_distance" in summary else []),
    ]
    lines = (
        f"{label:<18}" + "".join(f"{v:>14}" if isinstance(v, str) else f"{v:>14.6g}" for v in values)
        for label, *values in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _finite(value: Any) -> Any:
    """What JSON cannot say becomes null."""
    match value:
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list():
            return [_finite(item) for item in value]
        case float() if not math.isfinite(value):
            return None
    return value


def _check_figure(path: Path) -> None:
    """Before the work, what would fail after it."""
    from .plot import pyplot

    pyplot()
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ValueError(f"`figure` must end in one of {', '.join(sorted(formats))}, got {path}.")
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError(f"`figure`: {path} cannot be written.")


def _draw(spectrum: "Spectrum", path: Path, title: str) -> None:
    """Both scales side by side; the file appears when it is complete."""
    from .plot import pyplot

    figure, axes = pyplot().subplots(1, 2, figsize=(11, 4), layout="constrained")
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        spectrum.plot(axes[0], "linear")
        spectrum.plot(axes[1], "log")
        figure.suptitle(title, fontsize="small")
        figure.savefig(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(f"`figure`: {path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
        pyplot().close(figure)
