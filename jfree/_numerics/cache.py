"""Compiled programs, kept on disk for the next process."""

import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import jax
import platformdirs

_VARIABLE = "JFREE_CACHE"


_LARGEST = 2**30  # bytes, after which JAX gives up what was not used for longest


_OF_JAX = re.compile(r"(?P<key>.+-[0-9a-f]{64})-(?P<kind>cache|atime)")  # its names for a program, and for its last use


_AUTOTUNED = "xla_gpu_per_fusion_autotune_cache_dir"  # by JAX, beside the programs


def keep_compiled() -> Path | None:
    """Keeps compiled programs between runs, with JAX's persistent cache in the user's cache directory (host).

    For notebooks and scripts: the library leaves JAX's settings alone, and the commands of `jfree` do this by
    themselves. Programs that were used longest ago go when all together take more than 1 GiB. Those with a check of
    traced values, by `equinox.error_if`, cannot be kept.

    The environment variable `JFREE_CACHE` names another directory, or is `off`. A `jax_compilation_cache_dir` that is
    set already, or `JAX_COMPILATION_CACHE_DIR`, stays as it is.

    **Returns:** the directory, or None if programs are not kept. It warns if the directory cannot be written.
    """
    try:
        return switch_on()
    except OSError as error:
        warnings.warn(f"Compiled programs are not kept: {error}.", stacklevel=2)
        return None


def switch_on() -> Path | None:
    """`keep_compiled`. **Raises:** `OSError` if the directory cannot be written."""
    if not _setting("enable_compilation_cache"):
        return None
    path = directory()
    if path is None or is_users():
        return path
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
        pass
    _remove_halves(path)
    # What cannot be read is compiled anew, and what cannot be written is not kept: no word on each program.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if _setting("compilation_cache_max_size") == -1:
        jax.config.update("jax_compilation_cache_max_size", _LARGEST)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small programs are many
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_dir", str(path))
    return path


def directory() -> Path | None:
    """Where programs are kept: as JAX was told, or as `JFREE_CACHE` says, for each version of JAX apart."""
    if is_users():
        return Path(_setting("compilation_cache_dir")).expanduser()
    root = root_directory()
    return root / f"jax-{jax.__version__}" if root else None


def root_directory() -> Path | None:
    """That of all versions; None if `JFREE_CACHE` is `off`."""
    value = os.environ.get(_VARIABLE, "").strip()
    if value.lower() == "off":
        return None
    return Path(value).expanduser().absolute() if value else Path(platformdirs.user_cache_dir("jfree", False))


def is_users() -> bool:
    """Whether the user has told JAX a directory."""
    told = _setting("compilation_cache_dir")
    root = root_directory()
    return bool(told) and (root is None or Path(told) != root / f"jax-{jax.__version__}")


def _setting(name: str) -> Any:
    return jax.config.values[f"jax_{name}"]


class Contents(NamedTuple):
    """How many programs a directory holds, and how many bytes."""

    programs: int
    num_bytes: int


def contents(path: Path) -> Contents:
    sizes = [_size(file) for file in _files(path, "cache")]
    return Contents(len(sizes), sum(sizes))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # gone meanwhile
        return 0


def clear(path: Path) -> None:
    """Removes programs, and nothing else that may stand there. **Raises:** `OSError` if they cannot be removed."""
    with _locked(path, timeout=10):
        for file in (*_files(path, "cache"), *_files(path, "atime")):
            file.unlink(missing_ok=True)
    shutil.rmtree(path / _AUTOTUNED, ignore_errors=True)


def _remove_halves(path: Path) -> None:
    """Programs without a time of last use: a process was ended while it wrote them, and JAX would stumble over them."""
    try:
        with _locked(path, timeout=1):
            used = {_key(file) for file in _files(path, "atime")}
            for file in _files(path, "cache"):
                if _key(file) not in used:
                    file.unlink(missing_ok=True)
    except TimeoutError:  # other processes are at work, and will have seen to it
        return


def _locked(path: Path, timeout: float) -> filelock.BaseFileLock:
    """As JAX locks the directory."""
    return filelock.FileLock(path / ".lockfile", timeout=timeout)


def _files(path: Path, kind: str) -> list[Path]:
    matches = [(file, _OF_JAX.fullmatch(file.name)) for file in path.glob("*")]
    return [file for file, match in matches if match and match["kind"] == kind]


def _key(file: Path) -> str:
    return file.name.rsplit("-", 1)[0]
