"""What the commands print and write."""

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any, TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .._networks.mlp import MLP
    from .._networks.network import Network
    from .._spectrum.spectrum import Spectrum
    from ..activations import AbstractActivation
    from ._network import Data

POOLED = 200  # eigenvalues of sampled networks, at least
_LEVELS = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def describe(net: "MLP | Network", source: str) -> dict[str, Any]:
    q0 = {"q0": float(net.q0), "q0_source": source}
    return _shape(net) | q0


def _shape(net: "MLP | Network") -> dict[str, Any]:
    from .._networks.network import Network

    if isinstance(net, Network):
        from ._layers import written

        return {"width": float(net.width), "layers": written(net.layers)}
    return {
        "widths": net.widths.tolist(),
        "weights": [type(law).__name__ for law in net.weights],
        "activations": [_kind(activation) for activation in net.activations],
        "sigma_w": net.sigma_w.tolist(),
        "sigma_b": net.sigma_b.tolist(),
    }


def _kind(activation: "AbstractActivation") -> str:
    from ..activations import Shaped

    shaped = isinstance(activation, Shaped)
    return f"Shaped({_kind(activation.activation)})" if shaped else type(activation).__name__


def header(net: "MLP | Network", source: str) -> str:
    """Of an MLP one line: `MLP 64, 256 x9, 10 | Orthogonal x10 | ...`; of layers, how many, and a line each."""
    from .._networks.network import Network

    if isinstance(net, Network):
        first, *layers = str(net).splitlines()
        return "\n".join([f"{first} ({source})", *layers])
    network = describe(net, source)

    def runs(values: Any) -> str:
        values = [values] if isinstance(values, float) else values
        texts = [value if isinstance(value, str) else f"{value:g}" for value in values]
        counts = [(text, len(list(group))) for text, group in itertools.groupby(texts)]
        return ", ".join(text if count == 1 else f"{text} x{count}" for text, count in counts)

    parts = [runs(network[name]) for name in ("widths", "weights", "activations")]
    scales = [f"{name} {runs(network[name])}" for name in ("sigma_w", "sigma_b", "q0")]
    return f"MLP {' | '.join(parts + scales)} ({source})"


def summarize(net: "MLP | Network", spectrum: "Spectrum") -> dict[str, Any]:
    from .._networks.abstract import propagate

    mean_field, outliers = propagate(net), spectrum.outliers()
    atoms = zip(*(np.asarray(a).tolist() for a in spectrum.atoms()), strict=True)
    return {
        "mean_field": {name: np.asarray(getattr(mean_field, name)).tolist() for name in ("q", "chi", "chi_q")},
        "edges": [float(edge) for edge in spectrum.edges()],
        "condition_number": float(spectrum.condition_number()),
        "outliers": {
            "bulk_only": bool(outliers.below | outliers.above),
            "smallest": float(outliers.smallest),
            "largest": float(outliers.largest),
            "smallest_at_most": float(outliers.smallest_at_most),
            "largest_at_least": float(outliers.largest_at_least),
            "words": outliers.words,
        },
        "mass_at_zero": float(spectrum.mass_at_zero()),
        "atoms": [{"location": place, "mass": mass} for place, mass in atoms if place > 0 and mass > 0],
        "mean": float(spectrum.mean()),
        "variance": float(spectrum.variance()),
        "mean_log": float(spectrum.mean_log()),
        "quantiles": dict(zip(map(str, _LEVELS), spectrum.quantile(np.asarray(_LEVELS)).tolist(), strict=True)),
    }


def diagnosis(net: "MLP | Network", data: "Data") -> dict[str, Any]:
    """Numbers and words, for the data's own inputs."""
    return diagnosis_of(net, data.mean_squares())


def diagnosis_of(net: "MLP | Network", mean_squares: np.ndarray | None) -> dict[str, Any]:
    from .._finite.diagnosis import diagnose

    found = diagnose(net, mean_squares)
    numbers = {field.name: np.asarray(getattr(found, field.name)).tolist() for field in dataclasses.fields(found)}
    return {**numbers, "trusted": bool(found.trusted), "words": found.words}


def table(summary: dict[str, Any]) -> str:
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
        *([("of eigenvalues", str(summary["num_eigenvalues"]))] if "ks_distance" in summary else []),
    ]
    words = summary["diagnosis"]["words"] + summary["outliers"]["words"]
    lines = (
        f"{label:<18}" + "".join(f"{v:>14}" if isinstance(v, str) else f"{v:>14.6g}" for v in values)
        for label, *values in rows
    )
    return "\n".join([*(line.rstrip() for line in lines), "", *words])


def finite(value: Any) -> Any:
    """What JSON cannot say becomes null."""
    match value:
        case dict():
            return {key: finite(item) for key, item in value.items()}
        case list() | tuple():
            return [finite(item) for item in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ValueError(f"`seed` must lie in [0, 2^63), got {seed}.")


def check_figure(path: Path, argument: str = "figure") -> None:
    """Before the work, what would fail after it."""
    from ..plot import pyplot

    pyplot()
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ValueError(f"`{argument}` must end in one of {', '.join(sorted(formats))}, got {path}.")
    check_writable(path, argument)


def check_writable(path: Path, argument: str) -> None:
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"`{argument}`: {path} cannot be written.")


@contextlib.contextmanager
def complete(argument: str, *paths: Path) -> Generator[list[Path]]:
    """Files to write in place of `paths`, which appear together once all are complete, or not at all."""
    drafts = [path.with_name(f".{os.getpid()}.{path.name}") for path in paths]
    try:
        yield drafts
        for path in paths:
            check_writable(path, argument)
        for draft, path in zip(drafts, paths, strict=True):
            os.replace(draft, path)
    except OSError as error:
        raise ValueError(f"`{argument}`: {', '.join(map(str, paths))} cannot be written: {error}") from error
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)
