"""Models with their parameters drawn anew."""

import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from .._finite.sampling import check_matrices, largest_width, sample_network, sample_weights, weights_of, with_positions
from .._layers.conv import CircularConv, PatchLinear
from .._layers.gated import GatedLinear
from .._layers.scale import Times
from .._networks.branches import Branches
from .._networks.mlp import MLP
from .._networks.network import Network
from .._networks.resnet import ResNet
from .model import Parameters, parameters_of, parts_of, slots_of
from .parts import numbers_of, Slot
from .residual_mlp import linears_of

Model = TypeVar("Model")

# How nearly a number in the model's code must agree with that of the network.
_SAME = 1e-5


def reinitialize(model: Model, net: MLP | ResNet | Network, key: PRNGKeyArray) -> Model:
    """A model with its parameters redrawn from `net` (host).

    **Arguments:**

    - `model`: what `net` was read from by `jfree.from_model`, an Equinox or Flax NNX module, say; or any Equinox module
        whose `eqx.nn.Linear` layers have, in their order, the shapes of the weights of `net`, but for a common factor.
        Of a `jfree.ResidualMLP` the blocks are redrawn.
    - `net`: what to draw from, tuned or not. Of one that was read from the model, gains, offsets and scales are
        written, too.
    - `key`: of `jax.random`.

    **Returns:** the model, with shapes and dtypes as they were.

    **Warns:** if weights of the model were not read, and are left as they are: which ones.

    **Raises:** `ValueError` if number or shapes of the weights differ from those of `net`, if a layer has no bias where
    `net` has `sigma_b > 0`, or if what is to be written is no parameter of the model.
    """
    if not isinstance(net, Network) or net.shape is None:
        return redrawn(model, net, key)
    written = write(parameters_of(model), net, key)
    warn_left(written)
    return written.model


def redrawn(model: Any, net: MLP | ResNet | Network, key: PRNGKeyArray) -> Any:
    """A model with the weights and biases of its `eqx.nn.Linear` layers, in their order, redrawn."""
    mine = linears_of(model)
    shapes = [linear.weight.shape for linear in mine]
    largest = max((max(shape) for shape in shapes), default=1)
    if isinstance(net, Network):
        check_matrices(net)
        sampled = weights_of(sample_network(net, key, largest / largest_width(net)))
    else:
        sampled = sample_weights(net, key, largest)
    expected = [weight.shape for weight, _ in sampled]
    if shapes != expected:
        raise ValueError(f"`model` must have the layers of `net`, of shapes {expected}, got {shapes}.")
    layers = [_redrawn(linear, *layer) for linear, layer in zip(mine, sampled, strict=True)]
    return eqx.tree_at(linears_of, model, layers)


def _redrawn(linear: eqx.nn.Linear, weight: Array, bias: Array) -> eqx.nn.Linear:
    linear = eqx.tree_at(lambda layer: layer.weight, linear, weight.astype(linear.weight.dtype))
    if linear.bias is not None:
        return eqx.tree_at(lambda layer: layer.bias, linear, bias.astype(linear.bias.dtype))
    if jnp.any(bias != 0):
        raise ValueError("`model` must have biases where `net` has `sigma_b` > 0.")
    return linear


def warn_left(written: "Written") -> None:
    """**Warns:** of what was left alone."""
    if written.left:
        warnings.warn(f"`model` keeps weights that were not read: {', '.join(written.left)}.", stacklevel=3)


class Written(NamedTuple):
    """A model and its arrays, the names of those that something was written in, and of weights that were not read."""

    model: Any
    parameters: Parameters
    names: list[str]
    left: list[str]


def write(parameters: Parameters, net: Network, key: PRNGKeyArray) -> Written:
    """A model that `net` was read from, with its parameters redrawn."""
    assert net.shape is not None
    *_, parts = parts_of(parameters, np.ones(net.shape, np.float32))
    slots, (spread, _) = slots_of(parts), with_positions(net)
    sampled = sample_network(spread, key, 1.0)
    drawn = _check_alike(slots, list(_values(sampled)))
    written = _written(slots, drawn, parameters)
    _check_written(written, drawn, net)
    return written


def _values(module: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The parameters of modules that were sampled, in the order of slots."""
    match module:
        case eqx.nn.Sequential():
            for layer in module.layers:
                yield from _values(layer)
        case Branches():
            for branch in module.branches:
                for layer in branch:
                    yield from _values(layer)
            yield "sum", (1.0 if module.skip is None else module.skip, module.scale)
        case GatedLinear():
            yield from _values(module.value)
            yield from _values(module.gate)
            yield from _values(eqx.nn.Lambda(module.activation))
        case CircularConv() | PatchLinear():
            yield from _values(module.conv)
        case eqx.nn.Linear() | eqx.nn.Conv():
            yield "weights", (module.weight, 0.0 if module.bias is None else module.bias)
        case eqx.nn.LayerNorm() | eqx.nn.RMSNorm():
            assert module.weight is not None
            yield "norm", (module.weight.ravel()[0], 0.0 if module.bias is None else module.bias.ravel()[0])
        case Times():
            yield "scale", (module.factor,)
        case eqx.nn.Lambda() if numbers_of(module.fn):
            yield "activation", numbers_of(module.fn)
        case _:
            pass


def _check_alike(slots: list[Slot], found: list[tuple[str, tuple[Any, ...]]]) -> list[tuple[Any, ...]]:
    """New values for all slots.

    **Raises:** `ValueError` if the network has other layers than the model.
    """
    mine = [_shape(slot.parts[0].value) for slot in slots if slot.kind == "weights" and slot.parts[0] is not None]
    expected = [_shape(values[0]) for kind, values in found if kind == "weights"]
    if mine != expected:
        raise ValueError(f"`model` must have the layers of `net`, of shapes {expected}, got {mine}.")
    kinds, own = [kind for kind, _ in found], [slot.kind for slot in slots]
    if kinds != own:
        raise ValueError(f"`model` must have what `net` has numbers of, {', '.join(kinds)}, got {', '.join(own)}.")
    return [values for _, values in found]


def _shape(weight: Any) -> tuple[int, ...]:
    """Kernels of size 1 count as matrices."""
    return weight.shape[:2] if math.prod(weight.shape[2:]) == 1 else weight.shape


def _written(slots: list[Slot], found: list[tuple[Any, ...]], parameters: Parameters) -> Written:
    arrays: dict[int, np.ndarray] = {}
    starts = np.cumsum([0, *(leaf.size for leaf in parameters.leaves)])
    for slot, values in zip(slots, found, strict=True):
        for part, number, value in zip(slot.parts, slot.numbers, values, strict=True):
            if part is None or part.origin is None:
                _check_kept(slot, number, value)
                continue
            origin = part.origin.ravel()
            value = np.broadcast_to(np.ravel(np.asarray(value, float)), origin.shape) / part.factor
            owner = np.searchsorted(starts, origin, "right") - 1
            for k in np.unique(owner).tolist():
                own = owner == k
                array = arrays.setdefault(k, np.array(parameters.leaves[k]))
                array.reshape(-1)[origin[own] - starts[k]] = value[own]
    leaves = [jnp.asarray(arrays.get(k, leaf)) for k, leaf in enumerate(parameters.leaves)]
    left = [
        name
        for k, (name, leaf) in enumerate(zip(parameters.names, leaves, strict=True))
        if k not in arrays and leaf.ndim > 1 and jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    return Written(
        parameters.rebuild(leaves), parameters._replace(leaves=leaves), [parameters.names[k] for k in arrays], left
    )


# By how much numbers may differ for having been rounded to a half precision.
_ROUNDED = 2e-2


def _check_written(written: Written, drawn: list[tuple[Any, ...]], net: Network) -> None:
    """**Raises:** `ValueError` if the model does not have what was written: two layers share it, or derive from it."""
    assert net.shape is not None
    *_, parts = parts_of(written.parameters, np.ones(net.shape, np.float32))
    slots = slots_of(parts)
    for slot, values in zip(slots, drawn, strict=len(slots) == len(drawn)):
        for part, number, value in zip(slot.parts, slot.numbers, values, strict=True):
            own = np.ravel(number if part is None or slot.kind != "weights" else np.asarray(part.value, float))
            value = np.ravel(np.asarray(value, float))
            size = max(float(np.max(np.abs(value))), _SAME)
            if np.all(np.isfinite(own)) and not np.max(np.abs(own - value)) <= _ROUNDED * size:
                raise ValueError(
                    f"`model`: the {slot.kind}{slot.place} do not come out as they were written: other layers share "
                    "their parameters, or they are computed from parameters otherwise than by views and factors."
                )


def _check_kept(slot: Slot, number: float, value: Any) -> None:
    """**Raises:** `ValueError` if a value is to be another one than it is, and is no parameter."""
    if np.allclose(np.asarray(value, float), number, rtol=_SAME, atol=_SAME * (number == 0)):
        return
    if slot.kind == "weights":
        what = "parameters of its own" if math.isnan(number) else "biases, as `net` has `sigma_b` > 0,"
        raise ValueError(f"`model` must have {what} for the weights{slot.place}.")
    raise ValueError(
        f"`model` must have a parameter for the {slot.kind}{slot.place}: it has the number {number:.6g} there, and "
        "`net` another."
    )
