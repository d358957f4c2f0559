"""Operations of unlike layers as operations over all layers."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._calculus.operation import AbstractOperation
from .._layers.kinds import Kinds, Member, where_layers

Given = tuple[AbstractOperation | None, ...]


def over_layers(kinds: Kinds[Member], method: Callable[..., Given], *args: Array) -> tuple[AbstractOperation, ...]:
    """What `method(layer, *args)` gives for every layer, one operation after the other: at each place of these, one
    over all layers for each class of operations among them, neutral where a layer has one of another class, or none.
    """
    groups: dict[Any, dict[int, AbstractOperation]] = {}
    for k, member in enumerate(kinds.members):
        for place, operation in enumerate(_shapes(member, method, *args)):
            if operation is not None:
                groups.setdefault((place, *_group(operation)), {})[k] = operation
    found = []
    for group in sorted(groups, key=str):
        mine = groups[group]
        found.append(_of_group(group[0], [*mine.values()], kinds.only([*mine]), method, *args))
    return tuple(found)


def _group(operation: AbstractOperation) -> tuple[Any, ...]:
    """Operations of one group stack, once they are fitted."""
    fits = type(operation).fitted is not AbstractOperation.fitted
    shapes = () if fits else tuple(leaf.shape for leaf in jax.tree.leaves(operation))
    return type(operation).__name__, jax.tree.structure(operation), shapes


def _shapes(member: eqx.Module, method: Callable[..., Given], *args: Array) -> Given:
    """Those of the first layer, which are those of all."""
    return jax.eval_shape(lambda *first: method(*jax.tree.map(lambda x: x[0], first)), member, *args)


def _of_group(
    place: int, given: list[AbstractOperation], kinds: Kinds[Member], method: Callable[..., Given], *args: Array
) -> AbstractOperation:
    """One operation over all layers, neutral where there is none."""
    points, atoms = max(op.num_points for op in given), max(op.num_atoms for op in given)
    dtype = jnp.result_type(*(leaf.dtype for op in given for leaf in jax.tree.leaves(op)))

    def fitted(member: Member, *args: Array) -> AbstractOperation:
        operation = method(member, *args)[place]
        assert operation is not None
        return operation.fitted(points, atoms, dtype)

    if points and given[0].num_unknowns == 1:  # laws take room: one layer after the other
        found = jax.lax.map(lambda xs: xs[0].here(fitted)(*xs[1:]), (kinds, *args))
    else:
        found = kinds.every(fitted)(*args)
    return where_layers(kinds.there, found, found.neutral()) if kinds.gaps else found
