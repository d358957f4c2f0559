"""Against an independent solver that follows paths in small steps and sums laws over its own quadratures."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import jfree

CASES = json.loads(Path(__file__).with_name("reference.json").read_text())
if not os.environ.get("JFREE_FULL"):
    CASES = CASES[1::2]  # of every kind some
SMOOTH = {"tanh", "silu"}


def spectrum_of(case):
    def activation(name):
        return jfree.activations.LeakyReLU(0.1) if name == "leaky_relu" else name

    common = {name: case[name] for name in ("weights", "sigma_w", "sigma_b", "q0")}
    if case["kind"] == "resnet":
        extra = {name: case[name] for name in ("layers_per_block", "mean0")}
        net = jfree.ResNet(case["depth"], activation(case["activation"]), **common, **extra)
    else:
        net = jfree.MLP(case["widths"], [activation(name) for name in case["activations"]], **common)
    return jfree.fisher_spectrum(net) if case["quantity"] == "fisher" else jfree.jacobian_spectrum(net, case["side"])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_reference(case):
    spectrum = spectrum_of(case)
    x = np.asarray(case["x"])
    smooth = SMOOTH & {*case.get("activations", []), case.get("activation")}
    tolerance = 1e-6 if smooth else 1e-10
    np.testing.assert_allclose(spectrum.density(x), case["density"], rtol=tolerance)
    np.testing.assert_allclose(spectrum.cdf(x), case["cdf"], atol=tolerance)
    # Theirs lacks a constant; ours is that of `log x` at infinity.
    *potential, far = np.asarray(spectrum.log_potential([*x, 1e14]))
    np.testing.assert_allclose(np.diff(potential), np.diff(case["log_potential"]), atol=tolerance)
    np.testing.assert_allclose(far, np.log(1e14), rtol=1e-13)
    np.testing.assert_allclose(spectrum.moment(3), case["moments"][2], rtol=1e-8)
