"""`jfree spectrum`: the Jacobian spectrum of a network from its shape and initialisation."""

import dataclasses
import json as jsonlib
import math
from pathlib import Path
from typing import Annotated, Literal, TYPE_CHECKING

import numpy as np

from ._network import default, Network
from ._report import check_figure, check_seed, complete, describe, diagnosis, finite, header, POOLED, summarize, table

if TYPE_CHECKING:
    from .._networks import mlp, network
    from .._spectrum.spectrum import Spectrum


@dataclasses.dataclass(frozen=True)
class SpectrumCommand:
    """The spectrum of J^T J, J the input-output Jacobian of a wide random network: its squared singular values."""

    network: Network = dataclasses.field(default_factory=Network)
    config: Annotated[Path | None, default("none")] = None
    """A TOML file with a [network] table, whose keys are the flags of the network with underscores; or with tables
    [[layers]], from input to output."""
    side: Literal["input", "output"] = "input"
    """output: the spectrum of J J^T."""
    json: bool = False
    """Print one JSON object; null stands for what is infinite or was not certified."""
    figure: Annotated[Path | None, default("none")] = None
    """Draw the density to this file."""
    check: bool = False
    """Sample finite networks of these widths, and print the Kolmogorov-Smirnov distance of their eigenvalues."""
    seed: int = 0
    """Of the sampled networks."""

    def run(self) -> None:
        from .._spectra import jacobian_spectrum

        if self.figure:
            check_figure(self.figure)
        net, data = self.network.build(self.config)
        eigenvalues = self._sample(net) if self.check else None
        title = header(net, data.source)
        if not self.json:
            print(title, flush=True)
        spectrum = jacobian_spectrum(net, self.side)
        summary = {"network": describe(net, data.source), "side": self.side, **summarize(net, spectrum)}
        summary["diagnosis"] = diagnosis(net, data)
        if eigenvalues is not None:
            from ..empirical import ks_distance

            summary["ks_distance"] = float(ks_distance(eigenvalues, spectrum))
            summary["num_eigenvalues"] = eigenvalues.size
        print(jsonlib.dumps(finite(summary), allow_nan=False) if self.json else table(summary), flush=True)
        if self.figure:
            _draw(spectrum, self.figure, title.splitlines()[0])

    def _sample(self, net: "mlp.MLP | network.Network"):
        import jax

        from ..empirical import jacobian_eigenvalues

        check_seed(self.seed)
        widths = np.asarray(net.widths)
        num_samples = math.ceil(POOLED / widths[-1 if self.side == "output" else 0])
        return jacobian_eigenvalues(net, jax.random.key(self.seed), num_samples=num_samples, side=self.side)


def _draw(spectrum: "Spectrum", path: Path, title: str) -> None:
    """Both scales side by side."""
    from ..plot import pyplot

    figure, axes = pyplot().subplots(1, 2, figsize=(11, 4), layout="constrained")
    try:
        with complete("figure", path) as (draft,):
            spectrum.plot(axes[0], "linear")
            spectrum.plot(axes[1], "log")
            figure.suptitle(title, fontsize="small")
            figure.savefig(draft)
    finally:
        pyplot().close(figure)
