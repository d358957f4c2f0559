"""Operations of unlike layers as operations over all layers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._curve import AbstractOperation
from ._kinds import Kinds, Member

Method = Callable[..., AbstractOperation | None]


def over_layers(kinds: Kinds[Member], method: Method, *args: Array) -> tuple[AbstractOperation, ...]:
    """What `method(layer, *args)` gives for every layer: one operation over all layers for each class of operations
    among them, neutral where a layer has one of another class, or none.
    """
    given = [_given(member, method, *args) for member in kinds.members]
    groups: dict[Any, list[AbstractOperation]] = {}
    for operation in given:
        if operation is not None:
            groups.setdefault(_group(operation), []).append(operation)
    return tuple(_of_group(group, groups[group], kinds, method, *args) for group in sorted(groups, key=str))


def _group(operation: AbstractOperation) -> tuple[Any, ...]:
    """Operations of one group stack, once they are fitted."""
    fits = type(operation).fitted is not AbstractOperation.fitted
    shapes = () if fits else tuple(leaf.shape for leaf in jax.tree.leaves(operation))
    return type(operation).__name__, jax.tree.structure(operation), shapes


def _given(member: Member, method: Method, *args: Array) -> AbstractOperation | None:
    """Its shapes, which are those of the first layer."""
    return jax.eval_shape(lambda *first: method(*jax.tree.map(lambda x: x[0], first)), member, *args)


def _of_group(
    group: tuple[Any, ...], mine: list[AbstractOperation], kinds: Kinds[Member], method: Method, *args: Array
) -> AbstractOperation:
    points, atoms = max(op.num_points for op in mine), max(op.num_atoms for op in mine)
    dtype = jnp.result_type(*(leaf.dtype for op in mine for leaf in jax.tree.leaves(op)))

    def fitted(member: Member, *args: Array) -> AbstractOperation:
        operation = method(member, *args)
        if operation is not None and _group(operation) == group:
            return operation.fitted(points, atoms, dtype)
        like = jax.eval_shape(lambda: _zeros(mine[0]).fitted(points, atoms, dtype))
        layers = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), like)
        return jax.tree.map(lambda x: x[0], layers.neutral())

    if not points or mine[0].num_unknowns > 1:
        return kinds.every(fitted)(*args)
    # Laws take room: one layer after the other.
    return jax.lax.map(lambda xs: xs[0].here(fitted)(*xs[1:]), (kinds, *args))


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
