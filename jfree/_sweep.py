"""Many networks: stacked, in chunks, over devices and processes, and kept on disk as they come."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree
from tqdm.auto import tqdm

from ._calculus.curve import Curve
from ._networks.abstract import AbstractNetwork
from ._numerics.checks import integer
from ._numerics.show import is_interactive
from ._spectrum.spectrum import Spectrum


class Sweep(eqx.Module):
    """What `sweep` found.

    - `values`: what `fn` returns, with a leading axis over the networks; NaN, or 0 for integers, where it failed.
    - `errors`: messages of the networks, by index, for which it raised.
    """

    values: PyTree
    errors: dict[int, str]


def stack(nets: Sequence[AbstractNetwork] | Sequence[Spectrum]) -> Any:
    """One network, or one spectrum, whose arrays have a leading axis over several, for `jax.vmap`.

    Networks must be of equal depth. Spectra need not be: after the last layer of the shallower ones come as many that
    change nothing. Of stacked spectra no `outliers()` are known.

    **Raises:** `ValueError` if there are none, or they differ in more than the values of their arrays: in activations,
    weight laws, shapes or dtypes.
    """
    items = _padded(nets)
    if len({_kind(item) for item in items}) > 1:
        raise ValueError(
            "`nets` must have the same activations, weight laws, shapes and dtypes to be stacked, and networks, unlike "
            "spectra, the same depth."
        )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *items)


def _padded(nets: Sequence[AbstractNetwork] | Sequence[Spectrum]) -> list[Any]:
    """Spectra as deep as the deepest of their operations."""
    networks = [net for net in nets if isinstance(net, AbstractNetwork)]
    curves = [spectrum.curve for spectrum in nets if isinstance(spectrum, Spectrum)]
    if not nets or len(nets) not in (len(networks), len(curves)):
        raise ValueError("`nets` must be a sequence of at least one network, or spectrum.")
    sizes: dict[Any, tuple[int, int]] = {}
    operations = [jax.tree.structure((curve.operations, curve.last)) for curve in curves]
    for key, curve in zip(operations, curves, strict=True):
        depth, num_atoms = sizes.get(key, (0, 0))
        sizes[key] = max(depth, _depth(curve)), max(num_atoms, curve.num_atoms)
    return networks or [Spectrum(_resized(c, *sizes[key])) for key, c in zip(operations, curves, strict=True)]


def _depth(curve: Curve) -> int:
    return curve.num_layers if curve.run_all else int(curve.depth)


def _resized(curve: Curve, depth: int, num_atoms: int) -> Curve:
    fits = curve.run_all and (depth, num_atoms) == (curve.num_layers, curve.num_atoms)
    return curve if fits else _resize(curve, depth, num_atoms)


_resize = eqx.filter_jit(Curve.resized)


def _kind(item: AbstractNetwork | Spectrum) -> Hashable:
    leaves, structure = jax.tree.flatten(item)
    return structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def sweep(
    nets: Sequence[AbstractNetwork] | Sequence[Spectrum],
    fn: Callable[[Any], Any],
    path: str | os.PathLike[str] | None = None,
    chunk: int = 256,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> Sweep:
    """`fn` of every network, as under `jax.vmap`, chunk by chunk (host).

    Networks that differ in the values of their arrays only are worked on together, and `fn` is compiled once for each
    kind there is: for each depth, say. Spectra of different depths are of one kind. Where `equinox.error_if` raises for
    some network in a chunk, halves tell which, and the others keep their values.

    **Arguments:**

    - `nets`: networks of any kinds, or their spectra.
    - `fn`: from a network, or a spectrum, to a tree of arrays, of the same shapes for all: `lambda net:
        jfree.jacobian_spectrum(net).edges()`, say.
    - `path`: a directory for the results, one file per chunk, each written whole or not at all. The same call takes up
        an interrupted sweep where it was cut; with another `fn` it raises, but what `fn` closes over is not looked at.
    - `chunk`: how many networks are in memory at once, per device.
    - `mesh`: of one axis, over whose devices every chunk is spread. Under `jax.distributed` every process has a mesh of
        its own devices, takes its share of the chunks, and needs the same `path`.
    - `progress`: shows a bar, in a terminal or a notebook.

    **Returns:** a `Sweep`: the values of all networks in their order, and the messages of those that failed.

    **Raises:** `ValueError` if there are no networks, `chunk` is not a positive integer, `mesh` has several axes,
    `path` is a file, holds another sweep, or is missing under `jax.distributed`; and what `fn` raises when traced.
    """
    nets, chunk = _padded(nets), integer("chunk", chunk)
    if mesh is not None and len(mesh.axis_names) != 1:
        raise ValueError(f"`mesh` must have one axis, got {mesh.axis_names}.")
    if path is None and jax.process_count() > 1:
        raise ValueError("`path` must be given under `jax.distributed`: processes meet there.")
    devices = mesh.size if mesh else 1
    chunks = _chunks(nets, chunk * devices)
    shapes = [jax.eval_shape(fn, nets[index[0]]) for index in chunks]
    if len({str(jax.tree.flatten(shape)) for shape in shapes}) > 1:
        raise ValueError("`fn` must return the same shapes for all networks.")
    store = _Store(path, nets, f"{chunk * devices} {jax.tree.flatten(shapes)} {_text(fn)}")
    work = _compiled(fn, mesh)
    done: dict[int, _Chunk] = {}
    with tqdm(total=len(nets), desc="sweep", disable=not (progress and is_interactive())) as bar:
        for k, index in enumerate(chunks):
            if k % jax.process_count() != jax.process_index():
                continue
            if store.has(k):
                done[k] = store.load(k)
            else:
                done[k] = _computed(work, [nets[i] for i in index], -(-len(index) // devices) * devices, shapes[0])
                store.save(k, done[k])
            bar.update(len(index))
    store.meet()
    return _gathered(chunks, [done[k] if k in done else store.load(k) for k in range(len(chunks))], shapes[0])


def _chunks(nets: list[Any], size: int) -> list[np.ndarray]:
    """Indices of networks of one kind, `size` at most at a time."""
    kinds: dict[Any, list[int]] = {}
    for index, net in enumerate(nets):
        kinds.setdefault(_kind(net), []).append(index)
    return [np.asarray(group[k : k + size]) for group in kinds.values() for k in range(0, len(group), size)]


def _compiled(fn: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    """Devices of a mesh work apart: none waits for another's loops."""
    many = jax.vmap(fn)
    if mesh is not None:
        spec = PartitionSpec(mesh.axis_names[0])
        many = jax.shard_map(many, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return eqx.filter_jit(many)


class _Chunk(eqx.Module):
    """Leaves of the values of some networks, and messages by position of those that failed."""

    leaves: list[np.ndarray]
    errors: dict[int, str]


def _computed(work: Callable[..., Any], nets: list[Any], size: int, shape: Any) -> _Chunk:
    """All at once; where that raises, half by half."""

    def values(nets: list[Any]) -> list[np.ndarray]:
        padded = nets + nets[-1:] * (size - len(nets))
        return [np.asarray(leaf)[: len(nets)] for leaf in jax.tree.leaves(work(stack(padded)))]

    try:
        return _Chunk(values(nets), {})
    except eqx.EquinoxRuntimeError as error:
        if len(nets) == 1:
            return _Chunk([_missing(leaf) for leaf in jax.tree.leaves(shape)], {0: _message(error)})
    middle = len(nets) // 2
    first, second = (_computed(work, half, size, shape) for half in (nets[:middle], nets[middle:]))
    leaves = [np.concatenate(pair) for pair in zip(first.leaves, second.leaves, strict=True)]
    return _Chunk(leaves, first.errors | {middle + k: text for k, text in second.errors.items()})


def _missing(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    return np.full((1, *leaf.shape), np.nan if jnp.issubdtype(leaf.dtype, jnp.inexact) else 0, leaf.dtype)


def _message(error: Exception) -> str:
    """One line; that of `equinox.error_if` stands below a trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line.partition("EquinoxRuntimeError: ")[2] for line in lines]
    return next(filter(None, [*raised, *lines]), type(error).__name__)


def _gathered(chunks: list[np.ndarray], parts: list[_Chunk], shape: Any) -> Sweep:
    back = np.argsort(np.concatenate(chunks))
    leaves = [np.concatenate(column)[back] for column in zip(*(part.leaves for part in parts), strict=True)]
    errors = {int(index[k]): text for index, part in zip(chunks, parts, strict=True) for k, text in part.errors.items()}
    return Sweep(jax.tree.unflatten(jax.tree.structure(shape), leaves), dict(sorted(errors.items())))


_ADDRESS = re.compile("0x[0-9a-f]+")  # in the text of a function, another one in every process


def _text(fn: Any) -> str:
    """What tells one function's code from another's."""
    code = getattr(fn, "__code__", fn)
    if not hasattr(code, "co_code"):
        return repr(fn)
    return f"{code.co_code.hex()} {code.co_names} {[_text(constant) for constant in code.co_consts]}"


class _Store:
    """A directory with one file per chunk, and one that tells of which sweep they are."""

    def __init__(self, path: str | os.PathLike[str] | None, nets: list[Any], what: str):
        self.path = None if path is None else Path(path)
        if self.path is None:
            return
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"`path` must be a directory, but {self.path} is a file.")
        self.path.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(_ADDRESS.sub("", f"{what} {[_kind(net) for net in nets]}").encode())
        for leaf in jax.tree.leaves(nets):
            digest.update(np.asarray(leaf).tobytes())
        mine, known = {"networks": len(nets), "sha256": digest.hexdigest()}, self.path / "sweep.json"
        if known.exists() and json.loads(known.read_text()) != mine:
            raise ValueError(f"`path` must be free, but {self.path} holds a sweep of other networks, chunks or values.")
        self._write(known, lambda file: file.write(json.dumps(mine).encode()))

    def _write(self, path: Path, write: Callable[..., Any]) -> None:
        """Whole or not at all."""
        draft = path.with_name(f".{path.name}.{jax.process_index()}")
        with draft.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)

    def _file(self, k: int) -> Path:
        assert self.path is not None
        return self.path / f"chunk-{k:06}.npz"

    def has(self, k: int) -> bool:
        return self.path is not None and self._file(k).exists()

    def save(self, k: int, chunk: _Chunk) -> None:
        if self.path is not None:
            arrays: dict[str, Any] = {f"leaf{i}": leaf for i, leaf in enumerate(chunk.leaves)}
            arrays["errors"] = np.asarray(json.dumps(chunk.errors))
            self._write(self._file(k), lambda file: np.savez(file, **arrays))

    def load(self, k: int) -> _Chunk:
        with np.load(self._file(k)) as file:
            errors = {int(i): text for i, text in json.loads(str(file["errors"])).items()}
            return _Chunk([file[f"leaf{i}"] for i in range(len(file.files) - 1)], errors)

    def meet(self) -> None:
        """Waits for the other processes."""
        if jax.process_count() > 1:
            from jax.experimental.multihost_utils import sync_global_devices

            sync_global_devices("sweep")
