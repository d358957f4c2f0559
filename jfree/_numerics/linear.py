"""Linear maps of which both directions are given."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Map = Callable[[Any, Any], Any]


def linear(push: Map, pull: Map, given: Any, x: Any, like: Any) -> Any:
    """`push(given, x)`, linear in `x` and of the shapes of `like`, with the transpose `pull(given, y)`.

    Where nothing is traced around it both are called as they are, so that each may be a program of its own;
    `jax.custom_derivatives.linear_call` makes them parts of one. `given` is a constant to derivatives.
    """
    (constants, given_tree), (arrays, x_tree), (shapes, y_tree) = map(jax.tree.flatten, (given, x, like))

    def on_leaves(of_trees: Map, tree: Any) -> Map:
        return lambda given, x: jax.tree.leaves(
            of_trees(jax.tree.unflatten(given_tree, given), jax.tree.unflatten(tree, x))
        )

    maps = on_leaves(push, x_tree), on_leaves(pull, y_tree)
    types = tuple(map(jax.typeof, arrays)), tuple(map(jax.typeof, shapes))
    return jax.tree.unflatten(y_tree, _linear.bind(*constants, *arrays, maps=maps, types=types))


_linear = Primitive("linear")
_linear.multiple_results = True


def _parts(args: Any, types: Any) -> tuple[Any, Any]:
    """What is given, and what the map is linear in."""
    num_given = len(args) - len(types[0])
    return args[:num_given], args[num_given:]


def _apply(*args: Any, maps: Any, types: Any) -> Any:
    return maps[0](*_parts(args, types))


def _shapes(*args: Any, maps: Any, types: Any) -> Any:
    return types[1]


def _transpose(cotangents: Any, *args: Any, maps: Any, types: Any) -> Any:
    given, _ = _parts(args, types)
    cotangents = map(ad.instantiate_zeros, cotangents)
    pulled = _linear.bind(*given, *cotangents, maps=maps[::-1], types=types[::-1])
    return [None] * len(given) + pulled


def _tangents(primals: Any, tangents: Any, maps: Any, types: Any) -> Any:
    given, _ = _parts(primals, types)
    _, changes = _parts(tangents, types)
    changes = _linear.bind(*given, *map(ad.instantiate_zeros, changes), maps=maps, types=types)
    return _linear.bind(*primals, maps=maps, types=types), changes


def _batch(args: Any, axes: Any, maps: Any, types: Any) -> Any:
    mapped = jax.vmap(lambda *args: _apply(*args, maps=maps, types=types), in_axes=axes)(*args)
    return mapped, [0] * len(mapped)


_linear.def_impl(_apply)
_linear.def_abstract_eval(_shapes)
ad.primitive_transposes[_linear] = _transpose
ad.primitive_jvps[_linear] = _tangents
batching.primitive_batchers[_linear] = _batch
mlir.register_lowering(_linear, mlir.lower_fun(_apply, multiple_results=True))
