"""From networks in the wide limit to Equinox models of finite width, and back."""

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, overload

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .._finite.diagnosis import sample_alarm
from .._finite.sampling import (
    integer_widths,
    sample_network,
    scale_of,
)
from .._layers.activation import Activation
from .._layers.conv import CircularConv, Conv, Patches, PatchLinear
from .._layers.dense import Dense
from .._layers.dropout import Dropout
from .._layers.gated import Gated, GatedLinear
from .._layers.layer import AbstractLayer
from .._layers.normalisation import LayerNorm, RMSNorm
from .._layers.scale import Scale, Times
from .._layers.weights import AbstractWeights, as_weights
from .._networks.branches import Branches, Parallel, Residual
from .._networks.mlp import MLP
from .._networks.network import Network
from .._networks.resnet import ResNet
from .._numerics.arrays import common_dtype, is_concrete
from .._numerics.checks import cast, check, positive
from ..activations._base import AbstractActivation
from ..activations._linear_pieces import Linear
from .functions import activation_of, Function, function_of
from .parts import ALIKE
from .residual_mlp import linears_of, ResidualMLP
from .writing import redrawn

EquinoxModel = eqx.nn.MLP | eqx.nn.Sequential | ResidualMLP


def to_equinox(net: MLP | ResNet | Network, key: PRNGKeyArray, width: int | None = None) -> EquinoxModel:
    """A finite network to train, its weights and biases sampled from `net` (host).

    Arguments as for `jfree.sample_weights`. Parameters of activations become constants of the model.

    **Returns:** of a `Network` an `eqx.nn.Sequential` with one module per layer; of an `MLP` with one hidden width and
    one hidden activation an `eqx.nn.MLP`, of any other an `eqx.nn.Sequential`; of a `ResNet` a `jfree.ResidualMLP`; in
    the dtype of `net`.

    **Warns:** if the signal fades, explodes or is unstable, or differs much from sample to sample at these widths.

    **Raises:** `ValueError` as `jfree.sample_weights`.
    """
    widths = integer_widths(net, width)
    fault = sample_alarm(net, width)
    if fault:
        warnings.warn(fault, stacklevel=2)
    if not isinstance(net, Network):
        return redrawn(_blank(net, widths), net, key)
    model = sample_network(net, key, scale_of(net, widths))
    return jax.tree.map(_constant, model, is_leaf=lambda node: isinstance(node, AbstractActivation))


def _constant(node: Any) -> Any:
    """Of activations the function, whose parameters are no longer trained."""
    return function_of(node) if isinstance(node, AbstractActivation) else node


@overload
def from_equinox(model: eqx.nn.MLP, q0: ArrayLike = ..., weights: str | AbstractWeights = ...) -> MLP: ...


@overload
def from_equinox(model: ResidualMLP, q0: ArrayLike = ..., weights: str | AbstractWeights = ...) -> ResNet: ...


@overload
def from_equinox(
    model: eqx.nn.Sequential, q0: ArrayLike = ..., weights: str | AbstractWeights = ...
) -> MLP | Network: ...


def from_equinox(
    model: EquinoxModel, q0: ArrayLike = 1.0, weights: str | AbstractWeights = "gaussian"
) -> MLP | ResNet | Network:
    """The random network whose widths, activations and scales are those of a model.

    **Arguments:**

    - `model`: an `eqx.nn.MLP`, an `eqx.nn.Sequential`, or a `jfree.ResidualMLP`, of which the blocks are read. An
        `eqx.nn.Sequential` may hold `Linear`, `Lambda`, `LayerNorm`, `RMSNorm`, `Dropout` and `Identity` of `eqx.nn`,
        others of its kind, and what `jfree.to_equinox` makes of other layers. Functions that are not
        known, as those of `jax.nn` are, become `FromFunction` without knots.
    - `q0`: mean square of the input's entries, at the first block of a `ResidualMLP`.
    - `weights`: the law that the weights shall have.

    **Returns:** a `ResNet` of a `ResidualMLP`; a `Network` of an `eqx.nn.Sequential` that holds more than `Linear` and
    `Lambda`; of all others an `MLP`. Scales are measured layer by layer: `sigma_w = sqrt(mean(W^2) N_in)`,
    `sigma_b = sqrt(mean(b^2))`, the gain of a norm `sqrt(mean(weight^2))`, and its offset the mean of its biases. What
    a norm adds to the variance, its `eps`, is left out, and so is a `Dropout` with `inference=True` or of rate 0.

    **Raises:** `ValueError` if `model` is of another kind, if units of one layer differ in their activation or do not
    act on their own, if the weights of a layer are all 0, if gains or biases of a norm differ from each other by more
    than 5 % of the gain, if an `RMSNorm` has biases, or if a layer stands where a `Network` cannot have it, such as a
    `Lambda` behind a `Lambda`.
    """
    match model:
        case ResidualMLP():
            return _from_residual(model, q0, weights)
        case eqx.nn.MLP() if not model.scan:
            return _mlp(list(model.layers), _of_mlp(model), q0, weights)
        case eqx.nn.Sequential():
            return _from_sequential(model, q0, weights)
        case _:
            raise ValueError(
                "`model` must be an `eqx.nn.MLP` without `scan`, an `eqx.nn.Sequential` or a `jfree.ResidualMLP`, "
                f"got {type(model).__name__}. Of a module of your own, give the layers as an `eqx.nn.Sequential`, "
                "or describe it by `jfree.MLP` or `jfree.Network`; `jfree.reinitialize` then takes the module itself."
            )


def _blank(net: MLP | ResNet, widths: list[int]) -> EquinoxModel:
    """A model of the right shapes."""
    functions, dtype, key = [function_of(phi) for phi in net.activations], net.sigma_w.dtype, jax.random.key(0)
    if isinstance(net, ResNet):
        per_block = functions[:: net.layers_per_block]
        return ResidualMLP(widths[0], net.depth, net.layers_per_block, per_block, dtype=dtype, key=key)
    if len(set(widths[1:-1])) == 1 and _alike(net.activations[:-1]):
        sizes = widths[0], widths[-1], widths[1], net.depth - 1
        return eqx.nn.MLP(*sizes, functions[0], functions[-1], dtype=dtype, key=key)
    layers = []
    for num_in, num_out, function in zip(widths[:-1], widths[1:], functions, strict=True):
        layers.append(eqx.nn.Linear(num_in, num_out, dtype=dtype, key=key))
        if function is not jax.nn.identity:
            layers.append(eqx.nn.Lambda(function))
    return eqx.nn.Sequential(layers)


def _from_residual(model: ResidualMLP, q0: ArrayLike, weights: str | AbstractWeights) -> ResNet:
    depth = len(model.blocks)
    sigma_w, sigma_b = (scale.reshape(depth, -1) for scale in _scales(linears_of(model)))
    activations = [activation_of(block.activation) for block in model.blocks]
    activation = activations[0] if _alike(activations) else activations
    return ResNet(depth, activation, weights, sigma_w, sigma_b, sigma_w.shape[1], q0)


def _scales(layers: Sequence[eqx.nn.Linear]) -> tuple[Float[Array, " layers"], Float[Array, " layers"]]:
    """`sigma_w` and `sigma_b`, as measured."""
    biases = [jnp.zeros(1, x.weight.dtype) if x.bias is None else x.bias for x in layers]
    if any(x.weight.ndim != 2 for x in layers):
        raise ValueError("`model` must be one network: read a stack of them under `jax.vmap`, or one by one.")
    sigma_w = [_root_mean_square(x.weight) * x.weight.shape[1] ** 0.5 for x in layers]
    scales = check(jnp.stack(sigma_w), positive, "`model` must have finite weights that are not all 0, in every layer.")
    return scales, jnp.stack([_root_mean_square(bias) for bias in biases])


def _root_mean_square(x: Array) -> Float[Array, ""]:
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def _of_mlp(model: eqx.nn.MLP) -> list[AbstractActivation]:
    """One per layer; without hidden layers Equinox leaves out the final one, too."""
    if model.depth == 0:
        return [Linear()]
    hidden = [activation_of(_of_one_unit(_at(model.activation, layer))) for layer in range(model.depth)]
    final = model.final_activation
    return [*hidden, activation_of(final if model.out_size == "scalar" else _of_one_unit(final))]


def _at(activation: Function, index: int) -> Function:
    return jax.tree.map(lambda x: x[index] if eqx.is_array(x) else x, activation)


def _of_one_unit(activation: Function) -> Function:
    """`eqx.nn.MLP` holds the arrays of an activation once per unit."""
    if any(jnp.any(x != x[:1]) for x in jax.tree.leaves(activation) if eqx.is_array(x)):
        raise ValueError("`model` must have one activation per layer, but its units differ in their parameters.")
    return _at(activation, 0)


def _mlp(
    layers: Sequence[eqx.nn.Linear],
    activations: list[AbstractActivation],
    q0: ArrayLike,
    weights: str | AbstractWeights,
) -> MLP:
    widths = [layers[0].weight.shape[1], *(linear.weight.shape[0] for linear in layers)]
    sigma_w, sigma_b = _scales(layers)
    if len(activations) > 1 and _alike(activations[:-1]):
        return MLP(widths, activations[0], weights, sigma_w, sigma_b, q0, activations[-1])
    return MLP(widths, activations, weights, sigma_w, sigma_b, q0)


def _from_sequential(model: eqx.nn.Sequential, q0: ArrayLike, weights: str | AbstractWeights) -> MLP | Network:
    found, mine = dict(_modules(model, "model")), linears_of(model)
    if mine and all(isinstance(module, eqx.nn.Linear | eqx.nn.Lambda) for module in found.values()):
        return _mlp(mine, _of_layers(found), q0, weights)
    law = as_weights(weights)
    layers = [_layer(place, module, law) for place, module in found.items()]
    width = next(filter(None, map(_num_inputs, found.values())), None)
    if width is None:
        raise ValueError("`model` must have weights: at least one `eqx.nn.Linear`.")
    layers = cast(layers, common_dtype(*(x for x in jax.tree.leaves(model) if eqx.is_inexact_array(x))))
    try:
        return Network(width, layers, q0)
    except ValueError:
        for end, place in enumerate(found, 1):
            _network_to(place, width, layers[:end])
        raise


def _network_to(place: str, width: int, layers: list[AbstractLayer]) -> None:
    """**Raises:** `ValueError` if the last layer, which is found at this place, does not fit behind the others."""
    try:
        Network(width, layers)
    except ValueError as error:
        raise ValueError(f"`{place}` is out of place: {str(error).removeprefix('`layers`: ')}") from error


def _modules(model: eqx.nn.Sequential | tuple[Any, ...], place: str) -> Iterator[tuple[str, Any]]:
    """The modules that do something, one after the other, and where each is found."""
    sequence, name = (model, "") if isinstance(model, tuple) else (model.layers, ".layers")
    for k, module in enumerate(sequence):
        here = f"{place}{name}[{k}]"
        match module:
            case eqx.nn.Sequential():
                yield from _modules(module, here)
            case eqx.nn.Identity():
                pass
            case eqx.nn.Dropout() if module.inference or (isinstance(module.p, int | float) and module.p == 0):
                pass
            case _:
                yield here, module


def _layer(place: str, module: Any, law: AbstractWeights) -> AbstractLayer:
    match module:
        case eqx.nn.Linear():
            (sigma_w,), (sigma_b,) = _scales([module])
            return Dense(module.weight.shape[0], law, sigma_w, sigma_b)
        case GatedLinear():
            (sigma_w, sigma_gate), sigma_b = _scales([module.value, module.gate])
            width, activation = module.gate.weight.shape[0], activation_of(module.activation)
            return Gated(width, activation, sigma_w, sigma_gate, _root_mean_square(sigma_b))
        case CircularConv() | PatchLinear():
            return _conv(module, law)
        case eqx.nn.Lambda():
            return Activation(activation_of(_of_units(module.fn)))
        case eqx.nn.LayerNorm():
            return LayerNorm(*_gain_and_offset(place, module))
        case eqx.nn.RMSNorm():
            if module.bias is not None:
                check(module.bias, lambda bias: bias == 0, f"`{place}`, an RMSNorm, must have no biases but 0.")
            return RMSNorm(_gain_and_offset(place, module)[0])
        case eqx.nn.Dropout():
            return Dropout(module.p)
        case Times():
            return Scale(module.factor)
        case Branches():
            return _branches(place, module, law)
        case _:
            raise ValueError(
                f"`{place}` must be a `Linear`, a `Lambda`, a `LayerNorm`, an `RMSNorm`, a `Dropout`, an `Identity` or "
                "a `Sequential` of `eqx.nn`, or what `jfree.to_equinox` makes of other layers of `jfree.layers`, got "
                f"{type(module).__name__}."
            )


def _branches(place: str, module: Branches, law: AbstractWeights) -> Residual | Parallel:
    found = [
        [_layer(*one, law) for one in _modules(layers, f"{place}.branches[{k}]")]
        for k, layers in enumerate(module.branches)
    ]
    scale = _unless(1, module.scale)
    if len(found) == 1 and module.skip is not None:
        return Residual(found[0], _unless(1, module.skip), scale)
    scales = [] if isinstance(scale, int) else [Scale(scale)]
    return Parallel([layers + scales for layers in found], 0.0 if module.skip is None else module.skip)


def _gain_and_offset(place: str, norm: eqx.nn.LayerNorm | eqx.nn.RMSNorm) -> tuple[Array | float, Array | int]:
    gain, offset = 1.0, 0
    if norm.weight is not None:
        message = (
            f"`{place}`, a norm, must have weights that are positive and alike, within 5 % of their mean: with gains "
            "that differ from unit to unit, it is no multiple of the identity, as which norms are read."
        )
        gain = _root_mean_square(check(norm.weight, lambda x: x.std() <= ALIKE * x.mean(), message))
    if norm.bias is not None:
        message = (
            f"`{place}`, a norm, must have biases that are alike, within 5 % of its gain: its offset is one number."
        )
        offset = jnp.mean(check(norm.bias, lambda x: x.std() <= ALIKE * gain, message))
    return gain, _unless(0, offset)


def _conv(module: CircularConv | PatchLinear, law: AbstractWeights) -> Conv | Patches:
    weight, bias = module.conv.weight, module.conv.bias
    num_out, *rest = weight.shape
    sigma_w = _root_mean_square(weight) * math.prod(rest) ** 0.5
    sigma_b = 0.0 if bias is None else _root_mean_square(bias)
    if isinstance(module, PatchLinear):
        behind = [n // each for n, each in zip(module.positions, rest[1:], strict=True)]
        return Patches(num_out, rest[1:], law, sigma_w, sigma_b, behind)
    return Conv(num_out, rest[1:], law, sigma_w, sigma_b, module.positions)


def _num_inputs(module: Any) -> int | None:
    """Of a module with weights."""
    match module:
        case eqx.nn.Linear():
            return module.weight.shape[1]
        case GatedLinear():
            return module.gate.weight.shape[1]
        case CircularConv() | PatchLinear():
            return module.conv.weight.shape[1] * math.prod(module.positions)
        case Branches():
            return next(filter(None, map(_num_inputs, module.branches[0])), None)
        case _:
            return None


def _unless(neutral: int, value: Any) -> Any:
    """The Python number that costs nothing in its place."""
    return neutral if is_concrete(value) and value == neutral else value


def _of_layers(found: dict[str, Any]) -> list[AbstractActivation]:
    activations = []
    for place, module in found.items():
        if isinstance(module, eqx.nn.Linear):
            activations.append(Linear())
        elif activations and isinstance(activations[-1], Linear):
            activations[-1] = activation_of(_of_units(module.fn))
        else:
            raise ValueError(
                f"`{place}` is out of place: every `eqx.nn.Linear` may be followed by one `eqx.nn.Lambda` at most."
            )
    return activations


def _of_units(fn: Function) -> Function:
    """A function of a layer, if it acts on every unit alone."""
    x = jnp.linspace(-1.0, 2.0, 5)
    message = "`model` must not have an `eqx.nn.Lambda` that mixes units."
    try:
        alone = bool(jnp.allclose(jnp.asarray(fn(x)), jax.vmap(fn)(x)))
    except (TypeError, ValueError, IndexError) as error:  # what JAX raises for a scalar where it wants an axis
        raise ValueError(message) from error
    if not alone:
        raise ValueError(message)
    return fn


def _alike(activations: Sequence[AbstractActivation]) -> bool:
    return all(bool(eqx.tree_equal(activation, activations[0])) for activation in activations)
