"""`jfree check`: a model of yours, what it is to the theory, and what to change."""

import dataclasses
import importlib.util
import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TYPE_CHECKING

import numpy as np
import tyro

from ._network import read_data
from ._report import diagnosis_of, finite, summarize, table

if TYPE_CHECKING:
    from .._interop.model import Parameters
    from .._networks.network import Network


@dataclasses.dataclass(frozen=True)
class CheckCommand:
    """What a model is read as, its spectrum, and the scales of weights that bring its singular values near 1."""

    model: Annotated[str, tyro.conf.Positional]
    """FILE.py:NAME, a function without arguments that makes a model, or the model: of JAX or PyTorch."""
    input: Annotated[Path, tyro.conf.arg(metavar="FILE.npz")]
    """An .npz file with examples as the model sees them, as array x: one along its first axis each."""
    weights: Literal["auto", "orthogonal", "gaussian"] = "auto"
    """The law of the weights; auto: the one that they look like."""
    objective: Literal["weighted_isometry", "isometry", "condition_number", "log_spread"] = "weighted_isometry"
    """What is minimised."""
    steps: int = 200
    """Steps of tuning; 0 for none."""
    json: bool = False
    """Print one JSON object; null stands for what is infinite or was not certified."""

    def run(self) -> None:
        if self.steps < 0:
            raise ValueError(f"`steps` must not be negative, got {self.steps}.")
        x, _ = read_data(self.input, argument="input")
        parameters = _parameters(self.model)

        from .._initialize import norms
        from .._interop.model import read
        from .._spectra import jacobian_spectrum

        net, slots, examples = read(parameters, x, self.weights)
        q0 = norms(examples, net)
        say = (lambda *_: None) if self.json else (lambda text: print(text, flush=True))
        say(net)
        plain = net.as_mlp()
        used = net if plain is None else plain
        summary = summarize(used, jacobian_spectrum(used)) | {"diagnosis": diagnosis_of(used, np.asarray(q0))}
        summary["depths"] = _depths(summary["mean_field"])
        say(f"\n{table(summary)}\n\n{_words(summary['depths'])}")
        if self.steps:
            places = [slot.place for slot in slots if slot.kind == "weights"]
            summary["tuned"] = self._tuned(net, q0, places)
            say(f"\n{_changes(summary['tuned'])}")
        if self.json:
            print(jsonlib.dumps(finite({"layers": str(net).splitlines(), **summary}), allow_nan=False))

    def _tuned(self, net: "Network", q0: Any, places: list[str]) -> dict[str, Any]:
        from .. import objectives
        from .._initialize import scales, tuned_network

        show = not self.json
        best, result = tuned_network(
            net, getattr(objectives, self.objective), ("sigma_w", "sigma_gate"), self.steps, show, q0
        )
        pairs = zip(scales(net), scales(best), places, strict=True)
        weights = [{"place": place.strip(" ,"), "is": float(a), "take": float(b)} for a, b, place in pairs]
        return {"objective": float(result.objective), "sigma_w": weights}


def _parameters(model: str) -> "Parameters":
    """What a model consists of.

    **Raises:** `ValueError` if the file holds no such model.
    """
    file, _, name = model.rpartition(":")
    path = Path(file)
    if not file or not name.isidentifier() or path.suffix != ".py" or not path.is_file():
        raise ValueError(f"`model` must be FILE.py:NAME, with a file that is there, got {model}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
        found = getattr(module, name)
        made = found() if isinstance(found, type(_parameters) | type) else found
    except Exception as error:  # of whatever the file does
        raise ValueError(f"`model`: {model} raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)

    from .._interop.model import is_torch, parameters_of
    from .._interop.torch import parameters_of_torch

    return parameters_of_torch(made) if is_torch(made) else parameters_of(made)


def _depths(field: dict[str, list[float]]) -> dict[str, float]:
    """In how many layers squared gradients, and differences of the mean square, change by a factor e."""
    typical = {name: np.mean(np.log(np.maximum(np.abs(field[name]), 1e-300))) for name in ("chi", "chi_q")}
    with np.errstate(divide="ignore"):
        return {name: float(1 / np.abs(rate)) for name, rate in typical.items()}


def _words(depths: dict[str, float]) -> str:
    return (
        f"Squared gradients change by a factor e in {depths['chi']:.4g} layers, differences of the variance in "
        f"{depths['chi_q']:.4g}."
    )


def _changes(tuned: dict[str, Any]) -> str:
    lines = [f"Scales that bring singular values near 1 (objective {tuned['objective']:.4g}):"]
    lines.append(f"  {'weights':<10}{'sigma_w is':>12}{'take':>12}{'times':>12}  where")
    for number, one in enumerate(tuned["sigma_w"], 1):
        ratio = one["take"] / one["is"]
        lines.append(f"  {number:<10}{one['is']:>12.4g}{one['take']:>12.4g}{ratio:>12.4g}  {one['place']}")
    return "\n".join(lines)
