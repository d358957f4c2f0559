"""Compiled programs are kept between runs, where the user wants them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import jfree
from jfree._numerics import cache
from jfree.cli import main

ENTRY = f"jit_f-{'0' * 64}"
ENABLED = "import jax, jax.numpy as jnp, jfree; found = jfree.keep_compiled(); "
# Says what was compiled, and what was not because it was kept.
COUNTED = f"""
import collections, json, sys
{ENABLED}
events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name.rsplit("/", 1)[-1]]))
%s
print(json.dumps([str(found), events["cache_hits"], events["cache_misses"]]))
"""
ONE = "jax.jit(lambda x: jnp.sin(x) + 1)(jnp.arange(3.0))"


def run(script, **environment):
    """In a process of its own, where no variable but these says where programs are kept."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("JFREE_CACHE", "JAX_COMPILATION_CACHE_DIR")}
    environment = inherited | {name: str(value) for name, value in environment.items()}
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)


def counts(script, **environment):
    done = run(COUNTED % script, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    directory, hits, misses = json.loads(done.stdout.splitlines()[-1])
    return directory, hits, misses


@pytest.fixture
def entries(tmp_path, monkeypatch):
    """A directory with one program, another one's first half, and a file of the user's."""
    monkeypatch.setenv("JFREE_CACHE", str(tmp_path))
    path = tmp_path / f"jax-{jax.__version__}"
    path.mkdir()
    (path / f"{ENTRY}-cache").write_bytes(b"program")
    (path / f"{ENTRY}-atime").write_bytes(bytes(8))
    (path / f"jit_g-{'0' * 64}-cache").write_bytes(b"prog")
    (path / "notes-cache").write_text("my own")
    return path


def test_the_next_process_compiles_nothing(tmp_path):
    spectrum = "net = jfree.MLP([2.0, 1.0], 'linear', 'gaussian'); jfree.jacobian_spectrum(net).edges()"
    directory, hits, misses = counts(spectrum, JFREE_CACHE=tmp_path)
    assert Path(directory).parent == tmp_path
    assert hits == 0
    assert misses == cache.contents(Path(directory)).programs > 0
    assert counts(spectrum, JFREE_CACHE=tmp_path)[1:] == (misses, 0)


def test_the_command_line_keeps_what_it_compiles(tmp_path):
    script = "import jax, jax.numpy as jnp, jfree.cli; "
    script += f"jfree.cli.SpectrumCommand.run = lambda _: {ONE}; jfree.cli.main(['spectrum'])"
    assert run(script, JFREE_CACHE=tmp_path).returncode == 0
    assert cache.contents(tmp_path / f"jax-{jax.__version__}").programs > 0


def test_by_default_in_the_cache_directory_of_the_user(tmp_path):
    directory, _, misses = counts(ONE, XDG_CACHE_HOME=tmp_path, HOME=tmp_path, LOCALAPPDATA=tmp_path)
    assert tmp_path in Path(directory).parents
    assert Path(directory).name == f"jax-{jax.__version__}"
    assert misses == cache.contents(Path(directory)).programs > 0


def test_off(tmp_path, monkeypatch, capsys):
    assert counts(ONE, XDG_CACHE_HOME=tmp_path, HOME=tmp_path, JFREE_CACHE="off") == ("None", 0, 0)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("JFREE_CACHE", "off")
    assert jfree.keep_compiled() is None
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == "Compiled programs are not kept: JFREE_CACHE is off.\n"
    assert main(["cache", "--clear"]) == 2
    assert "`clear`" in capsys.readouterr().err


def test_what_jax_was_told_stays(tmp_path):
    told, other = tmp_path / "told", tmp_path / "other"
    script = f"{ONE}; assert jax.config.jax_persistent_cache_min_compile_time_secs == 1"
    directory, _, _ = counts(script, JAX_COMPILATION_CACHE_DIR=told, JFREE_CACHE=other)
    assert directory == str(told)
    assert not other.exists()
    script = "from jfree.cli import main; main(['cache']); print(main(['cache', '--clear']))"
    done = run(script, JAX_COMPILATION_CACHE_DIR=told, JFREE_CACHE=other)
    assert done.stdout.splitlines() == [f"{told}: 0 programs, 0.0 MB", "2"]
    assert "`clear`" in done.stderr


def test_importing_the_library_sets_nothing(tmp_path):
    script = "import jax, jfree; assert jax.config.jax_compilation_cache_dir is None"
    assert run(script, JFREE_CACHE=tmp_path).returncode == 0
    assert not list(tmp_path.iterdir())


def test_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("no directory")
    done = run(f"{ENABLED} {ONE}; print(found)", JFREE_CACHE=tmp_path / "file")
    assert done.stdout == "None\n"
    assert "UserWarning: Compiled programs are not kept: " in done.stderr
    flags = ["spectrum", "--depth", "1", "--weights", "gaussian", "--q0", "1", "--activation", "foo"]
    done = run(f"import jfree.cli; jfree.cli.main({flags!r})", JFREE_CACHE=tmp_path / "file")
    first, second = done.stderr.splitlines()
    assert first.startswith("jfree: compiled programs are not kept: ")
    assert "`activation`" in second


def test_corrupt_programs_are_compiled_anew(tmp_path):
    directory, _, _ = counts(ONE, JFREE_CACHE=tmp_path)
    for file in Path(directory).glob("*-cache"):
        file.write_bytes(file.read_bytes()[:20])
    assert counts(f"assert float(({ONE})[0]) == 1", JFREE_CACHE=tmp_path)[1] == 0


def test_halves_are_removed(entries):
    assert run(ENABLED, JFREE_CACHE=entries.parent).returncode == 0
    assert sorted(file.name for file in entries.glob("*-*")) == [f"{ENTRY}-atime", f"{ENTRY}-cache", "notes-cache"]


def test_two_processes_at_once(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-W", "error", "-c", f"{ENABLED} {ONE}"]
    both = [subprocess.Popen(command, env=environment | {"JFREE_CACHE": str(tmp_path)}) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert counts(ONE, JFREE_CACHE=tmp_path)[2] == 0


def test_cache_tells_and_clears(entries, capsys):
    old = entries.parent / "jax-0.1"
    old.mkdir()
    (old / f"{ENTRY}-cache").write_bytes(bytes(300_000))
    assert main(["cache"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{old}: 1 programs, 0.3 MB", f"{entries}: 2 programs, 0.0 MB"]
    assert main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{old}: 0 programs, 0.0 MB", f"{entries}: 0 programs, 0.0 MB"]
    assert [file.name for file in entries.glob("*-*")] == ["notes-cache"]
