"""What is printed and drawn of networks, spectra and results."""

import functools
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import jfree

NET = jfree.MLP([64, 256, 256, 256, 10], "hard_tanh", "gaussian", [1.5, 1.4, 1.4, 1.0], 0.1)


def test_layers_that_are_alike_share_a_row():
    assert str(NET).splitlines() == [
        "MLP, 4 layers, q0 = 1",
        "  layer  widths      activation  weights   sigma_w  sigma_b",
        "  1      64 -> 256   hard_tanh   gaussian  1.5      0.1",
        "  2-3    256 -> 256  hard_tanh   gaussian  1.4      0.1",
        "  4      256 -> 10   linear      gaussian  1        0.1",
    ]


def test_activations_that_have_no_name_show_what_they_were_given():
    activations = [jfree.activations.LeakyReLU(0.3), jfree.activations.FromFunction(jnp.arctan)]
    text = str(jfree.MLP([1, 1, 1], activations))
    assert "LeakyReLU(0.3)" in text
    assert "FromFunction(arctan" in text


def test_residual_networks():
    text = str(jfree.ResNet(20, "relu", "gaussian", 0.3, layers_per_block=2))
    assert text.startswith("ResNet, 20 blocks of 2 layers, q0 = 1\n")
    assert text.splitlines()[2].split() == ["1-20", "relu", "gaussian", "0.3", "0.3", "0", "0"]


def test_mean_fields_and_measured_networks():
    lines = str(jfree.propagate(NET)).splitlines()
    assert (lines[0], lines[1].split()) == (
        "Mean field, 4 layers",
        ["layer", "q", "phi2", "chi", "chi_q", "elasticity"],
    )
    assert len(lines) == 6
    layers = jfree.sample_weights(NET, jax.random.key(0))
    weights, biases = zip(*layers, strict=True)
    net = jfree.from_weights(weights, biases, NET.activations, jax.random.normal(jax.random.key(1), (64,)))
    lines = str(net).splitlines()
    assert lines[0] == "MLP with given weights, 4 layers"
    assert lines[1].split() == ["layer", "inputs", "per", "output", "q", "phi2", "chi", "chi_q", "elasticity"]
    assert lines[2].split()[:2] == ["1", "0.25"]


def test_spectra_and_results():
    net = jfree.MLP([1, 4], "linear", "gaussian")
    text = str(jfree.jacobian_spectrum(net))
    assert text == "Spectrum, 1 layer, float64: mean 4, standard deviation 2"
    result = jfree.tune(NET, steps=3, progress=False)
    first, *rest = str(result).splitlines()
    assert first.startswith(f"{result.history[0]:.4g} -> {result.objective:.4g} in 3 steps: MLP, 4 layers")
    assert rest == str(result.net).splitlines()[1:]


def test_several_and_traced_networks_print_as_modules():
    seen = []
    assert str(jfree.stack([NET, NET])).startswith("MLP(")
    jax.jit(lambda net: seen.append(str(net)))(NET)
    assert seen[0].startswith("MLP(")


def test_parts_of_networks_print_as_modules():
    arrays, rest = eqx.partition(NET, eqx.is_array)
    assert str(rest).startswith("MLP(")
    assert str(jax.tree.map(lambda _: False, NET)).startswith("MLP(")
    assert str(eqx.tree_at(lambda net: net.sigma_w, NET, jnp.linspace(0.5, 2, 7))).startswith("MLP(")
    assert str(arrays) == str(NET)
    shifted = jfree.activations.FromFunction(functools.partial(jnp.add, 1.0))
    assert "FromFunction(..." in str(jfree.MLP([1, 1, 1], shifted))


def test_notebooks(monkeypatch):
    html = NET._repr_html_()
    assert html is not None
    assert html.count("<tr>") == 4
    assert "64 -&gt; 256" in html
    spectrum = jfree.jacobian_spectrum(jfree.MLP([1, 4], "linear", "gaussian"))
    picture = spectrum._repr_png_()
    assert picture is not None
    assert picture.startswith(b"\x89PNG")
    assert not plt.get_fignums()
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert spectrum._repr_png_() is None
    with pytest.raises(ImportError, match="pip install 'jfree\\[plot\\]'"):
        jfree.plot.plot_history([1.0, 2.0])


def test_history():
    ax = jfree.plot.plot_history([3.0, 2.0, 1.0])
    assert ax.get_yscale() == "log"
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [3, 2, 1])
    assert jfree.plot.plot_history([1.0, -1.0]).get_yscale() == "linear"


def test_phase_diagram():
    sigma_w, sigma_b = np.linspace(0.5, 3, 30), np.linspace(0.1, 1, 5)
    ax = jfree.plot.plot_phase_diagram("hard_tanh", sigma_w, sigma_b)
    line = np.asarray(ax.lines[0].get_xdata(), float)
    np.testing.assert_allclose(line[2], jfree.critical_sigma_w("hard_tanh", sigma_b[2])[0], rtol=1e-6)
    chi = np.asarray(ax.collections[0].get_array()).reshape(5, 30)
    crossing = sigma_w[np.argmax(chi[2] > 0)]
    assert 0 <= crossing - line[2] < sigma_w[1] - sigma_w[0]
