"""Models of any library that JAX can trace, as networks."""

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, ArrayLike

from .._layers.layer import AbstractLayer
from .._layers.weights import AbstractWeights, as_weights
from .._networks.network import Network
from .graph import steps_of
from .measuring import measured
from .parts import all_weights, Part, Slot, Times
from .reading import Reader
from .steps import Step, Unreadable

Model = Callable[..., Any]


class Parameters(NamedTuple):
    """The arrays of a model, and the model that has such arrays."""

    leaves: list[Array]
    rebuild: Callable[[list[Array]], Any]
    names: list[str]


class Reading(NamedTuple):
    """A model as a network, where its parameters stand, and what the network takes for examples."""

    net: Network
    slots: list[Slot]
    examples: np.ndarray


def from_model(model: Model, x: ArrayLike, weights: str | AbstractWeights = "auto") -> Network:
    """The random network whose widths, activations and scales are those of a model that JAX can trace.

    The model is traced at `x`. Weights are told by what it does with them, not by their names: matrix products,
    circular convolutions, and patches. Functions of every entry become one activation between weights, a named one if
    its values are the same. What does to vectors what a norm does is a norm.

    **Arguments:**

    - `model`: a function of one example, such as an Equinox module, a Flax NNX module, or
        `functools.partial(apply, parameters)` of Flax, Haiku or functions of your own.
    - `x`: one example, or several along a first axis, if the model takes but one. Their mean square is the network's
        `q0`, and their mean its `mean0`.
    - `weights`: the law that the weights shall have; `"auto"` for that which they look like: orthogonal, or Gaussian.
        `"measured"` takes weights, slopes at the first example and gains of norms as they are, trained ones too, by
        their singular values alone.

    **Returns:** a `Network`. Widths are those of one position where layers act on all positions alike, as convolutions
    do, and units of all positions where a layer tells them apart. What is measured can't be sampled, and has no Fisher
    spectrum.

    **Raises:** `ValueError` naming the step, and where it stands in the model's source, if it does something that can't
    be read, or if `x` is none that the model takes.
    """
    return read_as(parameters_of(model), x, weights)


def read_as(parameters: Parameters, x: ArrayLike, weights: str | AbstractWeights) -> Network:
    if isinstance(weights, str) and weights == "measured":
        return _measured(parameters, x)
    return read(parameters, x, weights).net


def read(parameters: Parameters, x: ArrayLike, weights: str | AbstractWeights = "auto") -> Reading:
    law = None if isinstance(weights, str) and weights == "auto" else as_weights(weights)
    examples, source, reader, parts = parts_of(parameters, x)
    if reader.vanished:
        places = ",".join(dict.fromkeys(reader.vanished))
        warnings.warn(f"`model` multiplies branches by 0, which are left out:{places}.", stacklevel=3)
    width = _width(source, reader, parts)
    slots = slots_of(parts)
    _warn_of_means(parts)
    layers = [_made(part, law, reader.whole) for part in parts]
    seen = np.asarray(examples, float) + reader.shift
    q0 = float(np.mean(np.square(seen)))
    if not 0 < q0 < np.inf:
        raise ValueError("`x` must be finite and not all 0.")
    dtype = jnp.result_type(*(slot.parts[0].value.dtype for slot in slots if slot.kind == "weights" and slot.parts[0]))
    given = jnp.asarray(q0, dtype), jnp.asarray(np.mean(seen), dtype)
    return Reading(_network(width, layers, given, source.shape, parts), slots, seen)


def parts_of(parameters: Parameters, x: ArrayLike) -> tuple[np.ndarray, Step, Reader, list[Part]]:
    """Examples, the first step, who reads, and what was read."""
    try:
        examples, source, output = _traced(parameters, x)
        reader = Reader(source, output)
    except Unreadable as error:
        raise ValueError(str(error)) from None
    return examples, source, reader, [part for part in reader.parts if not _is_nothing(part)]


def _measured(parameters: Parameters, x: ArrayLike) -> Network:
    examples, source, reader, parts = parts_of(parameters, x)
    example = jnp.asarray(examples.reshape(-1, *source.shape)[0])
    square = float(jnp.mean(jnp.square(example + reader.shift)))
    layers = measured(parts, reader.values(example), square, reader.output, reader.whole)
    return _network(_width(source, reader, parts), layers, (square, 0.0), source.shape, parts)


def _width(source: Step, reader: Reader, parts: list[Part]) -> int:
    first = next(all_weights(parts), None)
    if first is None:
        raise ValueError("`model` must have weights that its output depends on.")
    return source.size if reader.whole else first.weight.value.shape[1]


def is_torch(model: Any) -> bool:
    """Whether it is a module of PyTorch, which is not loaded for the answer."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def parameters_of(model: Any) -> Parameters:
    if is_torch(model):
        raise ValueError(
            "`model` is a PyTorch module: `jfree.from_torch`, `reinitialize_torch_` and `initialize_torch_` take these."
        )
    if not callable(model):
        raise ValueError(f"`model` must be a function of one example, got {type(model).__name__}.")
    is_partial = type(model) is functools.partial
    parts: Any = model
    tree = (parts.func, parts.args, parts.keywords) if is_partial else model
    arrays, rest = eqx.partition(tree, eqx.is_array)
    paths, structure = jax.tree_util.tree_flatten_with_path(arrays)

    def rebuild(leaves: list[Array]) -> Any:
        tree = eqx.combine(jax.tree.unflatten(structure, leaves), rest)
        return functools.partial(tree[0], *tree[1], **tree[2]) if is_partial else tree

    return Parameters([leaf for _, leaf in paths], rebuild, [jax.tree_util.keystr(path) for path, _ in paths])


def _traced(parameters: Parameters, x: ArrayLike) -> tuple[np.ndarray, Step, Step]:
    """Examples, and the first and the last step of what becomes of one."""

    def function(leaves: list[Array], x: Array) -> Any:
        return parameters.rebuild(leaves)(x)

    given = jnp.asarray(x)
    if not jnp.issubdtype(given.dtype, jnp.floating):
        raise ValueError(f"`x` must be an array of real numbers, got {given.dtype}.")
    dtypes = [leaf.dtype for leaf in parameters.leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    given = given.astype(jnp.result_type(*dtypes)) if dtypes else given
    program, candidate = _program(function, parameters.leaves, given)
    source, outputs = steps_of(program, parameters.leaves, candidate)
    if len(outputs) != 1 or not isinstance(outputs[0], Step):
        raise ValueError("`model` must return one array, which depends on `x`.")
    return np.asarray(given), source, outputs[0]


def _program(function: Callable[..., Any], leaves: list[Array], given: Array) -> tuple[ClosedJaxpr, Array]:
    """The program of one of several examples that are taken at once; else of `given`; else of its first entry."""
    candidates = [given, given[:1], given[0]] if given.ndim > 1 else [given]
    programs: list[tuple[ClosedJaxpr, Array]] = []
    errors: list[Exception] = []
    for candidate in candidates:
        try:
            programs.append((jax.make_jaxpr(function)(leaves, candidate), candidate))
        except Unreadable:
            raise
        except Exception as error:  # whatever the model raises for an example of another shape
            errors.append(error)
    if not programs:
        raise ValueError(
            f"`model` must take `x`, of shape {given.shape}, or one of several, and nothing else: `functools.partial` "
            f"gives it other arguments. It raised: {errors[0]}"
        ) from errors[0]
    if len(programs) > 1 and programs[0][1] is given:
        many, one = (program.out_avals[0].shape for program, _ in programs[:2])
        if many and programs[1][1].ndim == given.ndim and (many[0], one) == (given.shape[0], (1, *many[1:])):
            return programs[1]
    return programs[0]


def _is_nothing(part: Part) -> bool:
    """A factor that is 1 but for what a norm adds to a variance, and no parameter."""
    return isinstance(part, Times) and abs(part.factor - 1) < 1e-4 and part.part is None


def _warn_of_means(parts: list[Part]) -> None:
    """**Warns:** of biases that differ from 0 on the whole, by more than chance."""
    for weights in all_weights(parts):
        values = np.zeros(1) if weights.bias is None else np.asarray(weights.bias.value, float)
        mean = float(values.mean())
        chance = 6 * float(values.std()) / values.size**0.5
        if values.size >= _FEWEST and abs(mean) > max(_UNSEEN, chance):
            warnings.warn(
                f"`model`: biases{weights.place} have the mean {mean:.3g}, and are read as if random, of mean 0.",
                stacklevel=4,
            )


# Means of biases that are not worth a word, and how many biases have one worth the name.
_UNSEEN, _FEWEST = 1e-3, 8


def slots_of(parts: list[Part]) -> list[Slot]:
    """Where the parameters of all parts stand.

    **Raises:** `ValueError` if two layers share weights, of which no two are free.
    """
    slots = [slot for part in parts for slot in part.slots()]
    read: list[tuple[np.ndarray, str]] = []  # of arrays that are no parameters
    owner = np.zeros(0, int)
    for number, slot in enumerate(slots, 1):
        weight = slot.parts[0] if slot.kind == "weights" else None
        if weight is None:
            continue
        if weight.origin is None:
            other = next((place for value, place in read if np.may_share_memory(value, weight.value)), None)
            read.append((weight.value, slot.place))
        else:
            last = int(weight.origin.max())
            owner = np.pad(owner, (0, max(0, last + 1 - owner.size)))
            before = owner[weight.origin]
            other = slots[int(before.max()) - 1].place if np.any(before) else None
            owner[weight.origin] = number
        if other is not None:
            raise ValueError(
                f"`model` uses the same weights twice,{other} and{slot.place}: layers that share weights are not free "
                "of each other."
            )
    return slots


def _made(part: Part, law: AbstractWeights | None, whole: bool) -> AbstractLayer:
    try:
        return part.layer(law, whole)
    except ValueError as error:
        raise _out_of_place(part, error) from error


def _network(
    width: int,
    layers: list[AbstractLayer],
    given: tuple[ArrayLike, ArrayLike],
    shape: tuple[int, ...],
    parts: list[Part],
) -> Network:
    try:
        return Network(width, layers, *given, shape=shape)
    except ValueError:
        for number, part in enumerate(parts, 1):
            try:
                Network(width, layers[:number], *given)
            except ValueError as error:
                raise _out_of_place(part, error) from error
        raise


def _out_of_place(part: Part, error: ValueError) -> ValueError:
    message = str(error)
    if message.startswith("`model`"):
        return error
    return ValueError(f"`model`: the step{part.place} is out of place: {message.removeprefix('`layers`: ')}")
