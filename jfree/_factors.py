"""Operations of unlike layers as operations over all layers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._curve import AbstractOperation
from ._kinds import Kinds, Member, where_layers

Method = Callable[..., AbstractOperation | None]


def over_layers(kinds: Kinds[Member], method: Method, *args: Array) -> tuple[AbstractOperation, ...]:
    """What `method(layer, *args)` gives for every layer: one operation over all layers for each class of operations
    among them, neutral where a layer has one of another class, or none.
    """
    groups: dict[Any, list[int]] = {}
    given = [_given(member, method, *args) for member in kinds.members]
    for k, operation in enumerate(given):
        if operation is not None:
            groups.setdefault(_group(operation), []).append(k)
    found = []
    for group in sorted(groups, key=str):
        operations = [operation for k in groups[group] if (operation := given[k]) is not None]
        found.append(_of_group(operations, kinds.only(groups[group]), method, *args))
    return tuple(found)


def _group(operation: AbstractOperation) -> tuple[Any, ...]:
    """Operations of one group stack, once they are fitted."""
    fits = type(operation).fitted is not AbstractOperation.fitted
    shapes = () if fits else tuple(leaf.shape for leaf in jax.tree.leaves(operation))
    return type(operation).__name__, jax.tree.structure(operation), shapes


def _given(member: Member, method: Method, *args: Array) -> AbstractOperation | None:
    """Its shapes, which are those of the first layer."""
    return jax.eval_shape(lambda *first: method(*jax.tree.map(lambda x: x[0], first)), member, *args)


def _of_group(given: list[AbstractOperation], kinds: Kinds[Member], method: Method, *args: Array) -> AbstractOperation:
    """One operation over all layers, neutral where there is none."""
    points, atoms = max(op.num_points for op in given), max(op.num_atoms for op in given)
    dtype = jnp.result_type(*(leaf.dtype for op in given for leaf in jax.tree.leaves(op)))

    def fitted(member: Member, *args: Array) -> AbstractOperation:
        operation = method(member, *args)
        assert operation is not None
        return operation.fitted(points, atoms, dtype)

    if points and given[0].num_unknowns == 1:  # laws take room: one layer after the other
        found = jax.lax.map(lambda xs: xs[0].here(fitted)(*xs[1:]), (kinds, *args))
    else:
        found = kinds.every(fitted)(*args)
    return where_layers(kinds.there, found, found.neutral()) if kinds.gaps else found
