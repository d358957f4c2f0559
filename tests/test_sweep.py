"""Sweeps: the same as `jax.vmap`, whatever the chunks, the devices, the processes and the interruptions."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jfree


def networks(count):
    scales = np.random.default_rng(0).uniform(0.5, 2, (count, 3))
    return [jfree.MLP(np.ones(4), "hard_tanh", "orthogonal", scale) for scale in scales]


def values(net):
    spectrum = jfree.jacobian_spectrum(net)
    return {"edges": jnp.stack(spectrum.edges()), "mean_log": spectrum.mean_log()}


def script(text, *args, **environment):
    """In a process of its own, with what stands above."""
    prelude = """
        import sys
        import jax
        jax.config.update("jax_enable_x64", True)
        import numpy as np
        import jfree
        from test_sweep import networks, values
        """
    command = [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(text), *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parent)} | environment
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process):
    error = process.communicate()[1].decode()
    assert process.returncode == 0, error


def assert_same(found, expected, rtol=0.0):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol)


@pytest.mark.usefixtures("unchecked")
def test_stack():
    nets = networks(3)
    spectra = jax.vmap(jfree.jacobian_spectrum)(jfree.stack(nets))
    one = jfree.jacobian_spectrum(nets[1])
    np.testing.assert_allclose(jax.vmap(lambda s: s.edges()[1])(spectra)[1], one.edges()[1], rtol=1e-12)
    with pytest.raises(ValueError, match="`nets` must have the same activations"):
        jfree.stack([*nets, jfree.MLP(np.ones(3))])
    with pytest.raises(ValueError, match="`nets` must be a sequence of at least one network, or spectrum"):
        jfree.stack([nets[0], one])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`nets` must be a sequence"):
        jfree.stack([])


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("spectrum", [jfree.jacobian_spectrum, jfree.fisher_spectrum])
def test_depths_are_padded(spectrum, activation):
    """Layers that change nothing change nothing, and one compiled function serves all depths."""
    nets = [jfree.MLP(np.ones(depth + 1), activation, "gaussian", 1.2, 0.3) for depth in (4, 3, 5)]
    spectra = [spectrum(net) for net in nets]
    assert len(jax.tree.leaves(jfree.stack(spectra).curve)) == len(jax.tree.leaves(spectra[0].curve))
    x = jnp.geomspace(0.1, 10, 7)
    swept = jfree.sweep(spectra, lambda s: {"cdf": s.cdf(x), "zero": s.mass_at_zero(), "log": s.mean_log()})
    assert swept.errors == {}
    for k, one in enumerate(spectra):
        np.testing.assert_allclose(swept.values["cdf"][k], one.cdf(x), rtol=1e-11)
        np.testing.assert_allclose(swept.values["zero"][k], one.mass_at_zero(), rtol=1e-14)
        np.testing.assert_allclose(swept.values["log"][k], one.mean_log(), rtol=1e-8)


def test_residual_depths_are_padded():
    spectra = [jfree.jacobian_spectrum(jfree.ResNet(k, "hard_tanh", "gaussian", np.full(k, 0.4), 0.1)) for k in (2, 3)]
    found = jax.vmap(lambda s: s.cdf(2.0))(jfree.stack(spectra))
    np.testing.assert_allclose(found, [s.cdf(2.0) for s in spectra], rtol=1e-11)


def test_in_chunks_and_kinds():
    """Order is kept; each network's values are its own."""
    nets = networks(7)
    mixed = [*nets[:4], jfree.MLP(np.ones(3), "relu", "gaussian"), *nets[4:]]
    swept = jfree.sweep(mixed, values, chunk=3)
    assert swept.errors == {}
    assert swept.values["edges"].shape == (8, 2)
    for k, net in enumerate(mixed):
        assert_same(jax.tree.map(lambda x, k=k: x[k], swept.values), values(net), rtol=1e-12)


def test_failures_are_kept_apart():
    def picky(net):
        scale = net.sigma_w[0]
        return eqx.error_if(scale, scale > 1.5, "too large")

    nets = networks(20)
    large = [k for k, net in enumerate(nets) if net.sigma_w[0] > 1.5]
    swept = jfree.sweep(nets, picky, chunk=8)
    assert large
    assert sorted(swept.errors) == large
    assert all("too large" in text for text in swept.errors.values())
    fine = np.setdiff1d(np.arange(20), large)
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(swept.values)), fine)
    np.testing.assert_allclose(swept.values[fine], [nets[k].sigma_w[0] for k in fine])


def test_taken_up_after_kills(tmp_path):
    """Killed twice at any moment, it ends with what an undisturbed sweep gives, and nothing half-written."""
    count, chunk = (10_000, 200) if os.environ.get("JFREE_FULL") else (200, 4)
    text = f"jfree.sweep(networks({count}), values, sys.argv[1], chunk={chunk}, progress=False)"
    random = np.random.default_rng(0)
    kept = []
    for _ in range(2):
        process, goal = script(text, tmp_path), len(kept) + 5
        while len(kept := list(tmp_path.glob("chunk-*.npz"))) < goal and process.poll() is None:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    before = {file.name: file.stat().st_mtime_ns for file in kept}
    assert 5 <= len(before) < 50
    swept = jfree.sweep(networks(count), values, tmp_path, chunk=chunk)
    after = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("chunk-*.npz")}
    assert len(after) == 50
    assert before.items() <= after.items()
    assert_same(swept.values, jfree.sweep(networks(count), values, chunk=chunk).values)


@pytest.mark.slow
def test_over_devices(tmp_path):
    """To the last bit; both compiled as users would, without the options of these tests."""
    text = """
    devices = np.array(jax.devices())
    mesh = jax.sharding.Mesh(devices, ("networks",)) if len(devices) == 8 else None
    np.savez(sys.argv[1], **jfree.sweep(networks(50), values, chunk=2, mesh=mesh).values)
    """
    for count in (1, 8):
        flags = f"--xla_force_host_platform_device_count={count}"
        finish(script(text, tmp_path / f"{count}.npz", XLA_FLAGS=flags))
    with np.load(tmp_path / "1.npz") as one, np.load(tmp_path / "8.npz") as eight:
        assert_same(dict(eight), dict(one))


@pytest.mark.slow
def test_over_processes(tmp_path):
    text = """
    jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
    swept = jfree.sweep(networks(30), values, sys.argv[3] + "/sweep", chunk=4)
    np.savez(f"{sys.argv[3]}/{jax.process_index()}.npz", **swept.values)
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for process in [script(text, port, rank, tmp_path) for rank in range(2)]:
        finish(process)
    expected = jfree.sweep(networks(30), values, chunk=4).values
    for rank in range(2):
        with np.load(tmp_path / f"{rank}.npz") as found:
            assert_same(dict(found), expected)


def test_arguments(tmp_path):
    nets = networks(2)
    with pytest.raises(ValueError, match="`nets` must be a sequence"):
        jfree.sweep([], values)
    with pytest.raises(ValueError, match="`chunk` must be a positive integer"):
        jfree.sweep(nets, values, chunk=0)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match="`path` must be a directory"):
        jfree.sweep(nets, values, file)
    jfree.sweep(nets, values, tmp_path / "one")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'one'} holds a sweep of other networks")):
        jfree.sweep(networks(3), values, tmp_path / "one")


def test_a_path_belongs_to_one_function(tmp_path):
    nets = networks(2)
    jfree.sweep(nets, lambda net: jfree.jacobian_spectrum(net).mean(), tmp_path)
    with pytest.raises(ValueError, match="holds a sweep of other networks, chunks or values"):
        jfree.sweep(nets, lambda net: jfree.jacobian_spectrum(net).variance(), tmp_path)


def test_functions_have_no_address_in_the_record(tmp_path):
    """So that another process takes up a sweep over activations that are functions."""
    found = []
    for directory in ("one", "two"):
        activation = jfree.activations.FromFunction(lambda x: jnp.maximum(x, 0), (0.0,))
        net = jfree.MLP([1, 1, 1], activation)
        jfree.sweep([net], lambda net: jfree.jacobian_spectrum(net).mean(), tmp_path / directory)
        found.append((tmp_path / directory / "sweep.json").read_text())
    assert found[0] == found[1]
