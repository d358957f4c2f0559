"""Layers from the [[layers]] tables of a TOML file, and back."""

import inspect
import json as jsonlib
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .. import layers as public
from .._layers.layer import AbstractLayer
from .._layers.weights import BY_NAME as WEIGHT_LAWS
from .._networks.network import Network
from .._numerics.show import name_of
from ..activations import Shaped
from ..activations._names import BY_NAME as ACTIVATIONS
from ._network import check_value, DEEPEST, SHAPED

_LONGEST_PERIOD = 8  # of stretches of layers that are written once


def _name(kind: type) -> str:
    """`RMSNorm` is an `rms_norm`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind.__name__).lower()


# By the names that tables have for them: all layers that are public.
_KINDS: dict[str, type[AbstractLayer]] = {
    _name(kind): kind for kind in vars(public).values() if isinstance(kind, type) and not inspect.isabstract(kind)
}


def _parameters(kind: type[AbstractLayer]) -> dict[str, inspect.Parameter]:
    """What the constructor takes by position: the keys that a table may hold."""
    parameters = inspect.signature(kind).parameters
    return {name: p for name, p in parameters.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD}


def read(tables: Any, tuned: Sequence[str] = (), place: str = "layers") -> list[AbstractLayer]:
    """The layers of tables, those of one table being one object.

    **Arguments:** the tables; names of numbers that are to be leaves, even if they are 1; and where the tables stand.
    """
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"`config`: `{place}` must be tables, in double brackets.")
    found = []
    for index, table in enumerate(tables):
        table, here = dict(table), f"{place}[{index}]"
        repeat, left = table.pop("repeat", 1), DEEPEST - len(found)
        if not isinstance(repeat, int) or isinstance(repeat, bool) or repeat < 1:
            raise ValueError(f"`config`: `repeat` in {here} must be a positive integer, got {repeat!r}.")
        layers = _read_table(table, tuned, here)
        if repeat * len(layers) > left:
            raise ValueError(f"`config`: `{place}` must be at most {DEEPEST} layers; see `repeat` in {here}.")
        found += repeat * layers
    return found


def _read_table(table: dict[str, Any], tuned: Sequence[str], place: str) -> list[AbstractLayer]:
    """A table without a `kind` stands for its layers."""
    if table.keys() == {"layers"}:
        return read(table["layers"], tuned, f"{place}.layers")
    name = table.pop("kind", None)
    if not isinstance(name, str) or name not in _KINDS:
        raise ValueError(f"`config`: `kind` in {place} must be one of {', '.join(_KINDS)}, got {name!r}.")
    parameters = _parameters(_KINDS[name])
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in table]
    for key in [key for key in table if key not in parameters] + missing:
        word = "missing" if key in missing else "unknown"
        held = ", ".join(["kind", *parameters, "repeat"])
        raise ValueError(f"`config`: {word} key `{key}` in {place}; {name} holds {held}.")
    values = {key: _value(key, value, parameters[key], tuned, place) for key, value in table.items()}
    values |= {key: jnp.asarray(float(values.get(key, parameters[key].default))) for key in tuned if key in parameters}
    try:
        return [_KINDS[name](**values)]
    except ValueError as error:
        raise ValueError(f"`config`: in {place}, {error}") from error


def _value(key: str, value: Any, parameter: inspect.Parameter, tuned: Sequence[str], place: str) -> Any:
    """Checked against the type that the constructor gives the key."""
    if typing.get_args(parameter.annotation) == (AbstractLayer,):
        return read(value, tuned, f"{place}.{key}")
    if parameter.annotation == Sequence[Sequence[AbstractLayer]]:
        return _read_branches(value, tuned, f"{place}.{key}")
    kinds = (parameter.annotation, *typing.get_args(parameter.annotation))
    if parameter.annotation in (int | Sequence[int], int | Sequence[int] | None):
        check_value(key, tuple(value) if isinstance(value, list) else (value,), int, place)
        return value
    check_value(key, (value,), str if str in kinds else float, place)
    return value


def _read_branches(tables: Any, tuned: Sequence[str], place: str) -> list[list[AbstractLayer]]:
    if not isinstance(tables, list) or not all(isinstance(x, dict) and x.keys() == {"layers"} for x in tables):
        raise ValueError(f"`config`: `{place}` must be tables of nothing but `layers`, in double brackets.")
    return [read(table["layers"], tuned, f"{place}[{k}].layers") for k, table in enumerate(tables)]


def written(layers: Sequence[AbstractLayer]) -> list[dict[str, Any]]:
    """The tables that these layers can be read from; what repeats stands once."""
    return _folded([_table(layer) for layer in layers])


def _table(layer: AbstractLayer) -> dict[str, Any]:
    values = {key: _written(getattr(layer, key)) for key in _parameters(type(layer))}
    return {"kind": _name(type(layer)), **{key: value for key, value in values.items() if value is not None}}


def _written(value: Any) -> Any:
    """None for a number that does nothing."""
    match value:
        case None:
            return None
        case tuple():
            if all(isinstance(x, tuple) for x in value):
                return [{"layers": written(layers)} for layers in value]
            return list(value) if all(isinstance(x, int) for x in value) else written(value)
        case int():
            return value
        case eqx.Module():
            return flag(value)
        case _:
            return float(np.asarray(value))


def flag(module: eqx.Module) -> str:
    """The name that flags and tables have for a weight law or an activation."""
    if isinstance(module, Shaped):
        return SHAPED + flag(module.activation)
    return name_of(module, ACTIVATIONS | WEIGHT_LAWS)


def _folded(tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stretches that repeat, with how often."""
    found, start = [], 0
    while start < len(tables):
        times = {period: _times(tables, start, period) for period in range(1, _LONGEST_PERIOD + 1)}
        period = max(times, key=lambda p: (times[p] > 1) * p * times[p])
        repeat = {"repeat": times[period]} if times[period] > 1 else {}
        once = tables[start : start + period]
        found.append(once[0] | repeat if period == 1 else repeat | {"layers": _folded(once)})
        start += period * times[period]
    return found


def _times(tables: list[dict[str, Any]], start: int, period: int) -> int:
    """How often the tables from `start` on repeat, at least once."""
    times = 1
    while tables[start : start + period] == tables[(at := start + period * times) : at + period]:
        times += 1
    return times


def toml(table: dict[str, Any], place: str = "") -> list[str]:
    """Its lines, tables within it last; what JSON writes for numbers and strings is TOML."""
    within = {key: value for key, value in table.items() if isinstance(value, list) and isinstance(value[0], dict)}
    lines = [f"{k} = {jsonlib.dumps(value, ensure_ascii=False)}" for k, value in table.items() if k not in within]
    for key, tables in within.items():
        for inner in tables:
            lines += ["", f"[[{place}{key}]]", *toml(inner, f"{place}{key}.")]
    return lines


def numbers(net: Network, names: Sequence[str]) -> list[Any]:
    """The numbers of these names of all layers, those within others included."""

    def found(layers: Sequence[Any]) -> Iterator[Any]:
        for layer in layers:
            if not isinstance(layer, AbstractLayer):
                continue
            values = (getattr(layer, name) for name in names if name in _parameters(type(layer)))
            yield from (value for value in values if value is not None)
            for key in _parameters(type(layer)):
                if isinstance(inner := getattr(layer, key), tuple):
                    for part in inner:
                        yield from found(part if isinstance(part, tuple) else [part])

    return list(found(net.layers))


class Tied(eqx.Module):
    """Numbers of these names, those of one table being one.

    **Arguments:** a network whose layers were read, and names.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    first: tuple[int, ...] = eqx.field(static=True)  # for every number, the one that it is equal to

    def __init__(self, net: Network, names: Sequence[str]):
        self.names = tuple(names)
        place: dict[int, int] = {}
        self.first = tuple(place.setdefault(id(x), k) for k, x in enumerate(numbers(net, names)))

    def where(self, net: Any) -> list[Any]:
        """One of each, for `tune`."""
        found = numbers(net, self.names)
        return [found[k] for k in dict.fromkeys(self.first)]

    def constrain(self, net: Any) -> Any:
        """Sets the others to these."""
        found = numbers(net, self.names)
        return eqx.tree_at(lambda n: numbers(n, self.names), net, [found[k] for k in self.first])
