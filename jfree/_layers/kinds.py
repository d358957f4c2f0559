"""What differs from layer to layer in more than its numbers: activations, weight laws or whole layers, by kinds."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from .._numerics.arrays import are_concrete, HostArray, is_concrete

# Where another kind stands: a mean square, a mean or a width that suits all layers.
_SAFE = 0.5


Member = TypeVar("Member", bound=eqx.Module)


class Kinds(eqx.Module, Generic[Member]):
    """Layers, or their activations or weight laws, by structure: one member of each, its leaves over all layers; and
    which kind each layer is of, -1 where there is none.
    """

    members: tuple[Member, ...]
    kind: Int[Array | np.ndarray, "*layers"]
    gaps: bool = eqx.field(static=True, default=False)

    @staticmethod
    def of(layers: Sequence[Member | None]) -> "Kinds[Member]":
        there = {id(layer): layer for layer in layers if layer is not None}
        structure_of = {key: jax.tree.structure(layer) for key, layer in there.items()}
        kinds = list(set(structure_of.values()))
        kinds = sorted(kinds, key=str) if len(kinds) > 1 else kinds
        kind = np.asarray([-1 if layer is None else kinds.index(structure_of[id(layer)]) for layer in layers])
        return Kinds(tuple(_over_layers(layers, kind == k) for k in range(len(kinds))), kind, bool(np.any(kind < 0)))

    @property
    def there(self) -> Bool[Array, "*layers"]:
        """Where there is one."""
        return jnp.asarray(self.kind) >= 0

    def each(self, method: Callable[[Member], Any]) -> "Kinds[Any]":
        """What `method` makes of every kind, its leaves over all layers."""
        return Kinds(tuple(map(method, self.members)), self.kind, self.gaps)

    def only(self, kinds: Sequence[int]) -> "Kinds[Member]":
        """Those of some kinds; where another one is, there is none."""
        if len(kinds) == len(self.members):
            return self
        numbers = np if isinstance(self.kind, np.ndarray) else jnp
        kind = numbers.full_like(self.kind, -1)
        for new, old in enumerate(kinds):
            kind = numbers.where(self.kind == old, new, kind)
        return Kinds(tuple(self.members[k] for k in kinds), kind, gaps=True)

    def at(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """`fn(l, *args) = method(layers[l], *args)` for a traced layer index."""
        return lambda layer, *args: jax.tree.map(lambda x: jnp.asarray(x)[layer], self).here(method)(*args)

    def here(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """`fn(*args) = method(layer, *args)` inside a loop over layers, where only the current one is left: one branch
        per kind.
        """
        branches = [partial(method, member) for member in self.members]
        if len(branches) == 1:
            return branches[0]
        return lambda *args: jax.lax.switch(self.kind, branches, *args)

    def every(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """`fn(*args)[l] = method(layers[l], *(arg[l] for arg in args))`, all layers at once."""

        def apply(*args: Array) -> Any:
            found = None
            for k, member in enumerate(self.members):
                mine = jnp.asarray(self.kind == k)
                # Where another kind is stands what suits all: what this one makes of it is dropped.
                own = [jnp.where(mine, x, _SAFE) if len(self.members) > 1 else x for x in args]
                values = jax.vmap(method, axis_size=self.kind.size)(member, *own)
                found = values if found is None else where_layers(mine, values, found)
            return found

        return apply


def _over_layers(layers: Sequence[Member | None], mine: np.ndarray) -> Member:
    """Leaves of those that are `mine`; those of the first of them stand for the others."""
    first = next(layer for layer, own in zip(layers, mine, strict=True) if own and layer is not None)
    rows = [layer if own else first for layer, own in zip(layers, mine, strict=True)]
    if all(row is first for row in rows):
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (len(rows), *jnp.shape(x))), first)
    return jax.tree.map(lambda *xs: stacked(xs), *rows)


def stacked(xs: Sequence[HostArray]) -> HostArray:
    """With an axis over them, on the host where all are known."""
    return np.stack(xs) if are_concrete(xs) else jnp.stack(xs)  # pyright: ignore[reportReturnType]


def where_layers(layers: Bool[Array, "*layers"], some: Any, others: Any) -> Any:
    """Layer by layer one of two."""
    return jax.tree.map(lambda x, y: jnp.where(layers.reshape(-1, *(1,) * (x.ndim - 1)), x, y), some, others)


def extended(x: HostArray, number: int, missing: int, value: float | None = None) -> HostArray:
    """`number` rows, of which one may stand for all, and as many as are missing, of a value or like the last; on the
    host where they are known.
    """
    if not is_concrete(x):
        return _extended(x, number, missing, value)
    return _rows(np, np.asarray(x), number, missing, value)


def _rows(numbers: Any, x: Any, number: int, missing: int, value: float | None) -> Any:
    rows = x if x.ndim else numbers.broadcast_to(x, number)
    if not missing:
        return rows
    shape = (missing, *rows.shape[1:])
    rest = numbers.broadcast_to(rows[-1:], shape) if value is None else numbers.full(shape, value, rows.dtype)
    return numbers.concatenate([rows, rest])


_extended = jax.jit(partial(_rows, jnp), static_argnums=(1, 2, 3))
