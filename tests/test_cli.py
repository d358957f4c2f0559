import json
import subprocess
import sys
import tomllib

import jax
import numpy as np
import optax
import pytest
from helpers import num_compiled

import jfree
from jfree.cli import main
from jfree.cli._layers import read, toml, written
from jfree.cli._network import Network
from jfree.cli._report import describe
from jfree.cli._train import equinox_default, sampled, train
from jfree.cli._tune import _advice as advice, _toml as tune_toml

# Marchenko-Pastur at ratio 1/2. All runs share its compiled program.
SMALL = ("spectrum", "--widths", "200", "100", "--activation", "linear", "--weights", "gaussian")
LOWER, UPPER = (1 - 0.5**0.5) ** 2, (1 + 0.5**0.5) ** 2


def run_json(capsys, *flags):
    assert main([*flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_table(capsys):
    assert main(SMALL) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("MLP 200, 100 | Gaussian | Linear")
    assert "q0 0.953125 (measured on scikit-learn's digits)" in header  # 61 of 64 pixels vary
    edges = next(row for row in rows if row.startswith("edges")).split()[1:]
    assert np.allclose([float(edge) for edge in edges], [LOWER, UPPER], rtol=1e-5)


def test_json(capsys):
    out = run_json(capsys, *SMALL, "--q0", "2")
    assert np.allclose(out["edges"], [LOWER, UPPER], rtol=1e-12)
    assert np.allclose([out["mass_at_zero"], out["mean"], out["variance"]], 0.5)
    assert np.isclose(out["condition_number"], (UPPER / LOWER) ** 0.5)
    assert out["mean_field"] == {"q": [2.0], "chi": [1.0], "chi_q": [1.0]}
    assert out["quantiles"]["0.5"] == 0
    assert LOWER < out["quantiles"]["0.75"] < out["quantiles"]["0.99"] < UPPER
    assert out["atoms"] == []
    assert not out["outliers"]["bulk_only"]
    assert out["outliers"]["smallest_at_most"] is None  # fewer outputs than inputs


def test_single_eigenvalues_are_told(tmp_path, capsys):
    block = '[[layers]]\nkind = "residual"\nrepeat = 12\n'
    weights = '[[layers.layers]]\nkind = "dense"\nwidth = 64\nweights = "gaussian"\nsigma_w = 0.3\n'
    activation = '[[layers.layers]]\nkind = "activation"\nactivation = "relu"\n'
    (tmp_path / "net.toml").write_text(block + weights + activation)
    assert main(["spectrum", "--config", str(tmp_path / "net.toml")]) == 0
    assert "single eigenvalue: one of about" in capsys.readouterr().out


def test_deep_networks_are_advised_to_be_shaped_where_the_command_line_can():
    def deep(*activations):
        return jfree.MLP(np.ones(51), (*activations, "linear"))

    for name in ("tanh", "gelu", "silu"):
        (words,) = advice(deep(*49 * [name]))
        flag = words.removesuffix(".").split()[-2:]
        assert flag == ["--activation", f"shaped_{name}"]
        Network(depth=50, width=4.0, activation=(flag[1],)).build(None)
    shaped = jfree.activations.shaped("tanh", 0.01)
    for activations in (49 * ["relu"], 49 * [shaped], ["relu", *48 * ["tanh"]]):
        assert not advice(deep(*activations))
    assert not advice(jfree.MLP(np.ones(11), "tanh"))
    assert not advice(jfree.Network(1.0, [jfree.layers.Dense(1.0)]))


def test_shaped_activations_have_names():
    net, data = Network(depth=20, width=64.0, activation=("shaped_gelu",)).build(None)
    assert isinstance(net, jfree.MLP)
    expected = jfree.activations.shaped("gelu", 0.025)
    assert jax.tree.all(jax.tree.map(np.array_equal, net.activations[0], expected))
    content = tomllib.loads(tune_toml(net, data))["network"]
    assert content["activation"] == ["shaped_gelu"] * 19 + ["linear"]
    again, _ = Network(depth=20, activation=(*content["activation"][:-1], "shaped_tanh")).build(None)
    assert isinstance(again, jfree.MLP)
    assert isinstance(again.activations[-1], jfree.activations.Shaped)
    last, _ = Network(depth=20, final_activation="shaped_gelu").build(None)
    assert describe(last, "")["activations"][-1] == "Shaped(GELU)"
    for name in ("shaped_relu", "shaped_hard_tanh", "shaped_"):
        with pytest.raises(ValueError, match="`activation`"):
            Network(activation=(name,)).build(None)


def test_the_library_needs_nothing_of_the_command_line():
    script = """
import sys
sys.modules |= {"tyro": None, "sklearn": None}
import jfree
jfree.MLP([1, 1], "relu", "gaussian")
try:
    import jfree.cli
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "The command line needs tyro: pip install 'jfree[cli]'.\n", done.stderr


def test_output_side_and_infinity(capsys):
    flags = ("--widths", "1", "1", "--activation", "linear", "--weights", "gaussian", "--side", "output")
    out = run_json(capsys, "spectrum", *flags)
    assert out["side"] == "output"
    assert out["edges"][0] == 0
    assert out["condition_number"] is None


def test_config_and_flags_over_it(tmp_path, capsys):
    config = tmp_path / "net.toml"
    config.write_text("""
        [network]
        widths = [200, 100]
        activation = ["linear"]
        weights = "gaussian"
        sigma_w = 3
        q0 = 0.5
    """)
    assert np.isclose(run_json(capsys, "spectrum", "--config", str(config))["edges"][1], 9 * UPPER)
    out = run_json(capsys, "spectrum", "--config", str(config), "--sigma-w", "1")
    assert np.isclose(out["edges"][1], UPPER)
    assert out["network"]["q0"] == 0.5
    out = run_json(capsys, "spectrum", "--config", str(config), "--depth", "1")
    assert out["network"]["widths"] == [64, 10]


def test_data_sets_q0_and_inputs(tmp_path, capsys):
    x = np.arange(1200, dtype=np.uint8).reshape(6, 200)
    np.savez(tmp_path / "inputs.npz", x=x)
    data = ("--data", str(tmp_path / "inputs.npz"))
    network = run_json(capsys, *SMALL, *data)["network"]
    assert np.isclose(network["q0"], np.mean(x.astype(float) ** 2))
    network = run_json(capsys, "spectrum", "--depth", "1", "--weights", "gaussian", *data, "--q0", "1")["network"]
    assert network["widths"] == [200, 10]
    assert network["q0"] == 1


def test_figure(tmp_path):
    assert main([*SMALL, "--figure", str(tmp_path / "spectrum.png")]) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["spectrum.png"]
    assert (tmp_path / "spectrum.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("unchecked")
def test_plot():
    spectrum = jfree.jacobian_spectrum(jfree.MLP([200, 100], "linear", "gaussian"))
    for singular_values, power in ((False, 1), (True, 0.5)):
        line, stem, _ = spectrum.plot(singular_values=singular_values).lines
        x, density = np.asarray(line.get_data())
        assert np.isclose(np.trapezoid(density, x), 0.5, rtol=1e-3)
        assert np.allclose(x[[0, -1]], np.array([LOWER, UPPER]) ** power, rtol=1e-2)
        assert np.all(np.asarray(stem.get_xdata()) == 0)
        ax = spectrum.plot(scale="log", singular_values=singular_values)
        x, density = np.asarray(ax.lines[0].get_data())
        assert np.isclose(np.trapezoid(density, np.log10(x)), 0.5, rtol=1e-3)
        legend = ax.get_legend()
        assert legend is not None
        assert legend.get_texts()[0].get_text() == "mass 0.5 at 0"
    with pytest.raises(ValueError, match="`scale`"):
        spectrum.plot(scale="cubic")  # pyright: ignore[reportArgumentType]


def test_check(capsys):
    assert 0 < run_json(capsys, *SMALL, "--check", "--seed", "1")["ks_distance"] < 0.1


BAD_FLAGS = {
    "": "Expected one of {spectrum, tune, check, explore, cache}",
    "spektrum": "spektrum",
    "spectrum --bogus 1": "--bogus",
    "spectrum --sigma-w one": "--sigma-w",
    "spectrum --sigma-w -1": "`sigma_w`",
    "spectrum --sigma-w 1 2": "`sigma_w`",
    "spectrum --sigma-b": "`sigma_b`",
    "spectrum --side left": "--side",
    "spectrum --activation foo": "`activation`",
    "spectrum --activation tanh tanh --widths 1 1 1 --final-activation tanh": "`final_activation`",
    "spectrum --weights foo": "`weights`",
    "spectrum --widths 3": "`widths`",
    "spectrum --widths 3 4 --depth 2": "`depth`",
    "spectrum --depth 0": "`depth`",
    "spectrum --q0 0": "`q0`",
    "spectrum --widths 1.5 2.5 --check": "`widths`",
    "spectrum --check --seed -1": "`seed`",
    "spectrum --widths 10000000 10000000 --check": "must be smaller",
    "spectrum --figure nowhere/out.png": "`figure`",
    "spectrum --figure out.exe": "`figure`",
    "spectrum --config nowhere.toml": "`config`",
    "spectrum --data nowhere.npz": "`data`",
    "tune --steps 0": "`steps`",
    "tune --training-steps -1": "`training_steps`",
    "tune --learning-rate 0": "`learning_rate`",
    "tune --seed -1": "`seed`",
    "tune --tune": "`tune`",
    "tune --tune sigma_x": "--tune",
    "tune --tune sigma_b": "`sigma_b`",
    "tune --tune skip": "`skip` cannot be tuned of an MLP",
    "tune --objective depth": "--objective",
    "tune --widths 64.5 10": "`widths`",
    "tune --widths 64 9": "`widths`",
    "tune --widths 32 16 10": "`widths`",
    "spectrum --depth 100000000000000000000": "`depth`",
    "tune --config nowhere.toml": "`config`",
    "tune --data nowhere.npz": "`data`",
}

BAD_CONFIGS = {
    "widths = [": "`config`",
    "widths = [3, 4]": "[network]",
    "[network]\nwidht = 3": "`widht`",
    "[network]\nwidths = 'wide'": "`widths`",
    "[network]\ndepth = 2.5": "`depth`",
    "[network]\nq0 = true": "`q0`",
    f"[network]\nwidths = [1{'0' * 400}, 3]": "`widths`",
    "[network]\ndata = 5": "must be a string",
    "[network]\nactivation = []": "`activation`",
    "[network]\nsigma_b = -1": "`sigma_b`",
    "[network]\ndata = 'nowhere.npz'": "`data`",
}

DENSE, BLOCK = "[[layers]]\nkind = 'dense'\nwidth = 8\n", "[[layers]]\nkind = 'residual'\n[[layers.layers]]\n"
BAD_LAYERS = {
    "layers = 5": "`layers`",
    "layers = []": "`layers`",
    "[layers]\nkind = 'dense'": "`layers`",
    "[[layer]]\nkind = 'dense'": "[[layers]]",
    "[[layers]]\nwidth = 3": "`kind` in layers[0]",
    DENSE + "[[layers]]\nkind = 'pool'": "`kind` in layers[1] must be one of activation, conv, patches, dense",
    DENSE + "sigma = 2": "unknown key `sigma` in layers[0]; dense holds kind, width, weights, sigma_w, sigma_b, repeat",
    DENSE + "sigma_w = 'large'": "`sigma_w` in layers[0] must be a number",
    DENSE + "sigma_w = [1, 2]": "`sigma_w` in layers[0] must be a number",
    DENSE + "sigma_w = true": "`sigma_w` in layers[0] must be a number",
    DENSE + "sigma_w = -1": "in layers[0], `sigma_w`",
    DENSE + "weights = 1": "`weights` in layers[0] must be a string",
    DENSE + "weights = 'uniform'": "in layers[0], `weights`",
    DENSE + "repeat = 0": "`repeat` in layers[0]",
    DENSE + "repeat = 1.5": "`repeat` in layers[0]",
    DENSE + "repeat = 100001": "100000",
    DENSE + f"width = 1{'0' * 400}": "`config`",
    DENSE.replace("8", f"1{'0' * 400}"): "`width` in layers[0]",
    DENSE + "[[layers]]\nkind = 'activation'": "missing key `activation` in layers[1]",
    DENSE + "[[layers]]\nkind = 'activation'\nactivation = 'foo'": "in layers[1], `activation`",
    DENSE + "[[layers]]\nkind = 'activation'\nactivation = 'tanh'\nkeep = 0.5": "`keep`",
    DENSE + "[[layers]]\nkind = 'residual'": "missing key `layers` in layers[1]",
    DENSE + "[[layers]]\nkind = 'residual'\nlayers = 3": "`layers[1].layers`",
    DENSE + BLOCK + "kind = 'rms_norm'": "in layers[1], `layers` of a `Residual` must have weights",
    DENSE + BLOCK + "kind = 'rms_norm'\ngains = 2": "`gains` in layers[1].layers[0]",
    DENSE + BLOCK + "kind = 'dense'\nwidth = 9": "`layers` of a `Residual` must end with the width",
    "[[layers]]\nkind = 'activation'\nactivation = 'tanh'": "must follow weights",
    "[network]\nsigma_w = 2\n" + DENSE: "`sigma_w` must not be given along with [[layers]]",
    "[network]\nq0 = 0\n" + DENSE: "`q0`",
    "[network]\nwidth = 0\n" + DENSE: "`width`",
}


def assert_one_line(capsys, argv, named):
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert named in err


@pytest.mark.parametrize(("flags", "named"), BAD_FLAGS.items())
def test_bad_flags(flags, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_line(capsys, flags.split(), named)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "named"), [*BAD_CONFIGS.items(), *BAD_LAYERS.items()])
def test_bad_config(text, named, capsys, tmp_path):
    (tmp_path / "net.toml").write_text(text)
    assert_one_line(capsys, ["spectrum", "--config", str(tmp_path / "net.toml")], named)


@pytest.mark.parametrize("arrays", [{"y": np.ones((2, 64))}, {"x": np.ones(3)}, {"x": np.ones((2, 3))}, None])
def test_bad_data(arrays, capsys, tmp_path):
    path = tmp_path / "inputs.npz"
    np.savez(path, **arrays) if arrays else path.write_bytes(b"PK\x03\x04 cut short")
    assert_one_line(capsys, [*SMALL, "--data", str(path)], "`data`")


TUNE = ["tune", "--depth", "3", "--width", "16", "--steps", "4", "--training-steps", "5"]


def test_tune(capsys, tmp_path):
    rng = np.random.default_rng(0)
    data, output = tmp_path / "data.npz", tmp_path / "out"
    np.savez(data, x=rng.normal(size=(40, 6)), y=np.arange(40) % 3)
    result = run_json(capsys, *TUNE, "--data", str(data), "--sigma-w", "1.7", "--output", str(output))
    assert result["objective"][1] < result["objective"][0]
    assert result["network"]["widths"] == [6, 16, 16, 3]
    assert 0 < result["after"]["ks_distance"] < 0.2
    assert set(result["training"]) == {"as given", "tuned", "Equinox's default"}
    assert sorted(path.name for path in output.iterdir()) == ["tune.png", "tuned.toml", "weights.npz"]
    with np.load(output / "weights.npz") as weights:
        assert weights["W1"].shape == (16, 6)
        assert weights["b3"].shape == (3,)
    again = run_json(capsys, "spectrum", "--config", str(output / "tuned.toml"))
    assert again["network"]["sigma_w"] == result["network"]["sigma_w"]
    assert again["network"]["q0"] == result["network"]["q0"]
    flags = ["--config", str(output / "tuned.toml"), "--q0", "2", "--output", str(output)]
    again = run_json(capsys, "tune", *flags, "--steps", "1", "--training-steps", "1")
    assert again["network"]["widths"] == [6, 16, 16, 3]  # the data are still those of the table
    assert again["network"]["q0"] == 2


PRE_NORM = """
    [network]
    data = "data.npz"

    [[layers]]
    kind = "dense"
    width = 60
    weights = "gaussian"

    [[layers]]
    kind = "residual"
    scale = 0.7
    repeat = 2

    [[layers.layers]]
    kind = "rms_norm"

    [[layers.layers]]
    kind = "dense"
    width = 120
    weights = "gaussian"

    [[layers.layers]]
    kind = "activation"
    activation = "relu"

    [[layers.layers]]
    kind = "dropout"
    rate = 0.1

    [[layers.layers]]
    kind = "dense"
    width = 60
    weights = "gaussian"
    sigma_w = 1.5

    [[layers]]
    repeat = 2

    [[layers.layers]]
    kind = "scale"
    factor = 0.9

    [[layers.layers]]
    kind = "dense"
    width = 60
"""


@pytest.fixture
def pre_norm(tmp_path):
    """A network of layers, and data for it."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(40, 60)), y=np.arange(40) % 3)
    (tmp_path / "net.toml").write_text(PRE_NORM)
    return tmp_path / "net.toml"


def test_layers(pre_norm, capsys):
    path = pre_norm.with_name("density.png")
    flags = ["spectrum", "--config", str(pre_norm), "--q0", "0.8", "--check", "--figure", str(path)]
    assert main(flags) == 0
    title, _, *rows = capsys.readouterr().out.splitlines()
    assert title == "Network, 7 layers, width 60, q0 = 0.8 (given)"
    assert rows[1].startswith("  2-3    residual  scale 0.7, RMS norm gain 1 > dense width 120, gaussian")
    assert float(next(row for row in rows if row.startswith("KS distance")).split()[-1]) < 0.1
    assert path.read_bytes().startswith(b"\x89PNG")
    first, block, last = describe(Network().build(pre_norm)[0], "")["layers"]
    assert first == {"kind": "dense", "width": 60.0, "weights": "gaussian", "sigma_w": 1.0, "sigma_b": 0.0}
    assert (block["kind"], block["scale"], block["repeat"], "skip" in block) == ("residual", 0.7, 2, False)
    assert [layer["kind"] for layer in block["layers"]] == ["rms_norm", "dense", "activation", "dropout", "dense"]
    assert (last["repeat"], last["layers"][0]) == (2, {"kind": "scale", "factor": 0.9})


def test_tables_are_those_of_their_layers():
    dense = {"kind": "dense", "width": 3.0, "weights": "centred_gaussian", "sigma_w": 0.1, "sigma_b": 1e-5}
    inner = {"kind": "residual", "layers": [dense | {"repeat": 2}], "skip": 0.3}
    norms = [{"kind": "layer_norm", "gain": 2.0, "offset": 0.1}, {"kind": "rms_norm", "gain": 0.7}]
    others = [{"kind": "scale", "factor": -2.0}, {"kind": "dropout", "rate": 0.25}]
    activations = [{"kind": "activation", "activation": name} for name in ("selu", "quick_gelu")]
    blocks = {"kind": "residual", "layers": [*norms, dense, inner], "scale": 0.5, "repeat": 7}
    tables = [dense, blocks, *others, {"repeat": 100, "layers": [dense | {"repeat": 2}, *activations]}, dense]
    newest = [
        {"kind": "conv", "channels": 4.0, "positions": [2, 3], "kernel": [2, 1], "weights": "gaussian", "sigma_w": 1.0}
        | {"sigma_b": 0.0},
        {"kind": "gated", "width": 8.0, "activation": "gelu", "sigma_w": 1.0, "sigma_gate": 0.5, "sigma_b": 0.0},
    ]
    assert written(read(newest)) == newest
    layers = read(tables)
    assert len(layers) == 1 + 7 + 2 + 400 + 1
    assert written(layers) == tables
    assert tomllib.loads("\n".join(toml({"layers": tables})))["layers"] == tables


def test_an_mlp_is_its_layers(tmp_path, capsys):
    layers = "".join(
        f"[[layers]]\nkind = 'dense'\nwidth = {width}\nsigma_w = 1.5\n[[layers]]\nkind = 'activation'\n"
        f"activation = '{activation}'\n"
        for width, activation in ((300, "hard_tanh"), (100, "linear"))
    )
    (tmp_path / "net.toml").write_text(layers)
    found = run_json(capsys, "spectrum", "--config", str(tmp_path / "net.toml"), "--width", "200", "--q0", "1")
    widths = ("--widths", "200", "300", "100", "--activation", "hard_tanh", "--sigma-w", "1.5", "--q0", "1")
    expected = run_json(capsys, "spectrum", *widths)
    for name in ("edges", "mean", "variance", "mass_at_zero"):
        assert np.allclose(found[name], expected[name], rtol=1e-9)


@pytest.mark.parametrize("flag", ["--depth 3", "--activation tanh", "--widths 3 4", "--weights gaussian"])
def test_flags_beside_layers(flag, pre_norm, capsys):
    named = f"`{flag.split()[0][2:]}` must not be given along with [[layers]]"
    assert_one_line(capsys, ["spectrum", "--config", str(pre_norm), *flag.split()], named)


@pytest.mark.parametrize("command", ["spectrum", "tune"])
def test_width_of_layers_is_that_of_the_data(command, pre_norm, capsys):
    assert_one_line(capsys, [command, "--config", str(pre_norm), "--width", "7"], "`width` must be 60")


@pytest.mark.parametrize("name", ["widths", "sigma_b", "gain"])
def test_what_layers_do_not_have_is_not_tuned(name, pre_norm, capsys, tmp_path):
    pre_norm.write_text(DENSE.replace("8", "60") + "sigma_b = 0")
    flags = ["--config", str(pre_norm), "--tune", name, "--output", str(tmp_path / "out")]
    assert_one_line(capsys, ["tune", *flags], f"`{name}`")


def test_tune_layers(pre_norm, capsys, tmp_path):
    output = tmp_path / "out"
    flags = ["--tune", "sigma_w", "skip", "factor", "--steps", "4", "--training-steps", "5", "--output", str(output)]
    result = run_json(capsys, "tune", "--config", str(pre_norm), "--seed", "1", *flags)
    assert result["objective"][1] < result["objective"][0]
    assert set(result["training"]) == {"as given", "tuned", "Equinox's default"}
    first, block, last = result["network"]["layers"]
    assert len({first["sigma_w"], block["layers"][1]["sigma_w"], block["layers"][-1]["sigma_w"], 1.0}) == 4
    assert block["skip"] != 1
    assert (block["repeat"], last["repeat"]) == (2, 2)  # what repeats stays alike
    with np.load(output / "weights.npz") as weights:
        shapes = [weights[f"W{layer}"].shape for layer in range(1, 8)]
        assert shapes == [(60, 60), (120, 60), (60, 120), (120, 60), (60, 120), (60, 60), (60, 60)]
        assert np.isclose(weights["W7"].std() * 60**0.5, last["layers"][1]["sigma_w"], rtol=0.01)
    again, _ = Network().build(output / "tuned.toml")
    assert describe(again, "")["layers"] == result["network"]["layers"]
    assert float(again.q0) == result["network"]["q0"]


def test_starts_of_one_shape_share_a_program():
    net, rng = jfree.MLP([6, 8, 8, 8, 3], "tanh", sigma_w=1.2), np.random.default_rng(0)
    x, y, adam = rng.normal(size=(40, 6)), np.arange(40) % 3, optax.adam(1e-3)

    model = sampled(net, 0)
    starts = [model, equinox_default(model, 0), equinox_default(model, 1)]
    assert [num_compiled(lambda start=start: train(start, x, y, 5, adam, 0)) for start in starts] == [1, 0, 0]


def test_one_layer_keeps_its_activation(capsys, tmp_path):
    flags = ["--widths", "64", "10", "--final-activation", "hard_tanh", "--training-steps", "0", "--steps", "2"]
    result = run_json(capsys, "tune", *flags, "--output", str(tmp_path))
    again = run_json(capsys, "spectrum", "--config", str(tmp_path / "tuned.toml"))
    assert result["network"]["activations"] == again["network"]["activations"] == ["HardTanh"]


@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_data_out_of_range(size, capsys, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.full((2, 200), size))
    assert_one_line(capsys, [*SMALL, "--data", str(tmp_path / "data.npz")], "`data`")


def test_networks_out_of_range_say_why(capsys, tmp_path):
    flags = ("tune", "--activation", "relu_squared", "--depth", "14", "--output", str(tmp_path / "none"))
    assert main(flags) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "The signal explodes" in last
    assert "Take a smaller sigma_w, or normalise layers." in last
    assert not (tmp_path / "none").exists()


def test_no_widths_to_tune(capsys, tmp_path):
    assert_one_line(capsys, ["tune", "--depth", "1", "--tune", "widths", "--output", str(tmp_path)], "`depth`")


def test_terminated_midway_leaves_nothing(tmp_path):
    """A scheduler's SIGTERM, while files are being written."""
    script = "import os, signal, numpy, jfree.cli; "
    script += "numpy.savez = lambda stream, **_: (stream.write(b'half'), os.kill(os.getpid(), signal.SIGTERM)); "
    script += f"jfree.cli.main({[*TUNE, '--training-steps', '0', '--output', str(tmp_path)]!r})"
    stopped = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert stopped.returncode == 143
    assert not list(tmp_path.iterdir())


def test_equal_singular_values_are_drawn(tmp_path):
    flags = ["--widths", "64", "64", "10", "--activation", "linear", "--training-steps", "0", "--steps", "2"]
    assert main(["tune", *flags, "--output", str(tmp_path)]) == 0
    assert (tmp_path / "tune.png").exists()


def test_unwritable_output(capsys, tmp_path):
    (tmp_path / "weights.npz").mkdir()
    assert main([*TUNE, "--training-steps", "0", "--output", str(tmp_path)]) == 2
    assert "`output`" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["weights.npz"]


def test_tune_prints_tables(capsys, tmp_path):
    flags = ["--activation", "hard_tanh", "--tune", "sigma_w", "widths"]
    assert main([*TUNE, *flags, "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "KS distance" in out
    assert "objective" in out
    assert "accuracy" in out


def test_failing_midway_leaves_nothing(capsys, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jfree.cli._tune._draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main([*TUNE, "--training-steps", "0", "--activation", "hard_tanh", "--output", str(tmp_path / "new" / "out")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.ones((4, 3))},
        {"x": np.ones((4, 3)), "y": np.zeros(3, int)},
        {"x": np.ones((4, 3)), "y": np.zeros(4)},
        {"x": np.full((4, 3), np.nan), "y": np.zeros(4, int)},
        {"x": np.zeros((4, 3)), "y": np.zeros(4, int)},
        {"x": np.ones((4, 3)) + 1j, "y": np.zeros(4, int)},
        {"x": np.ones((4, 3)), "y": np.full(4, 10**12)},
    ],
)
def test_bad_training_data(arrays, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "data.npz", **arrays)
    assert_one_line(capsys, [*TUNE, "--data", "data.npz"], "`data`")
    assert [path.name for path in tmp_path.iterdir()] == ["data.npz"]


def test_process_exit_codes():
    command = [sys.executable, "-c", "import sys; from jfree.cli import main; sys.exit(main())"]
    shown = subprocess.run([*command, "spectrum", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert "--sigma-w" in shown.stdout
    failed = subprocess.run([*command, "spectrum", "--bogus"], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1


MODEL = """
import equinox as eqx
import jax

calls = []

def make():
    return eqx.nn.MLP(8, 4, 16, 3, jax.nn.hard_tanh, key=jax.random.key(0))

model = make()

def broken():
    raise RuntimeError("no weights here")

def pooled():
    return lambda x: x.reshape(2, -1).mean(0)
"""


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(20, 8)))
    return path


def test_check_prints_what_a_model_is_and_what_to_change(model_file, capsys):
    data = ["--input", str(model_file.parent / "x.npz"), "--steps", "20"]
    assert main(["check", f"{model_file}:make", *data]) == 0
    printed = capsys.readouterr().out
    for text in ("hard_tanh", "condition number", "The signal is stable", "factor e in", "sigma_w is", "take"):
        assert text in printed
    assert main(["check", f"{model_file}:model", *data, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [one["take"] > one["is"] for one in summary["tuned"]["sigma_w"]] == [True] * 4
    assert summary["diagnosis"]["words"]


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("none", "must be FILE.py:NAME"),
        ("{}:nothing", "raised AttributeError"),
        ("{}:broken", "raised RuntimeError: no weights here"),
        ("{}:pooled", "sums or averages units"),
        ("{}:calls", "must be a function of one example"),
    ],
)
def test_check_says_what_is_wrong_with_a_model(model_file, model, named, capsys):
    assert main(["check", model.format(model_file), "--input", str(model_file.parent / "x.npz")]) == 2
    assert named in capsys.readouterr().err
