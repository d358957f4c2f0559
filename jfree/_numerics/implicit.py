"""Derivatives of what a solver finds: the implicit function theorem, and steps of Newton's method."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

Residual = Callable[..., tuple[Array, Array]]


def implicit_root(
    residual: Residual, root: Array, args: tuple[Any, ...], found: Bool[Array, "..."] | bool = True
) -> Array:
    """Gives `root` the derivatives of the solution of `residual(root, *args) = 0`, elementwise in `root`.

    `residual` returns its value and its slope in `root`; `with_slope` makes it of a function that returns the value.
    How the root was found does not matter, and is never differentiated:

        d root = -(d residual / d root)^-1 sum_i (d residual / d args_i) d args_i.

    Where none was `found` it is a constant. (NaN there, masked by the caller, would be NaN again in reverse mode.)
    Derivatives of every order follow in forward mode; in reverse mode, inside a scan, those of first and second order.
    """
    dynamic, static = eqx.partition(args, eqx.is_inexact_array)
    return _attach(residual, (static, jnp.asarray(found)), jax.lax.stop_gradient(root), dynamic)


def at_extremum(
    value: Callable[..., Array],
    residual: Residual,
    root: Array,
    args: tuple[Any, ...],
    found: Bool[Array, "..."] | bool = True,
) -> Array:
    """`value(root, *args)` where its slope in `root` vanishes, which `residual` says as in `implicit_root`.

    Its first derivatives are those at a fixed root; those of the root enter only the second ones.
    """
    dynamic, static = eqx.partition(args, eqx.is_inexact_array)
    return _extremal(value, residual, (static, jnp.asarray(found)), jax.lax.stop_gradient(root), dynamic)


@eqx.filter_custom_jvp
def _extremal(value: Callable[..., Array], residual: Residual, static: Any, root: Array, dynamic: Any) -> Array:
    return value(root, *eqx.combine(dynamic, static[0]))


@_extremal.def_jvp
def _extremal_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    value, residual, static, root, dynamic = primals
    root = _attach(residual, static, root, dynamic)
    changes = (instantiated(dynamic, tangents[-1]),)
    return jax.jvp(lambda d: value(root, *eqx.combine(d, static[0])), (dynamic,), changes)


def instantiated(primals: Any, tangents: Any) -> Any:
    """With zeros in place of what does not change."""
    return jax.tree.map(
        lambda x, t: jnp.zeros_like(x) if t is None and x is not None else t,
        primals,
        tangents,
        is_leaf=lambda x: x is None,
    )


def with_slope(fn: Callable[..., Array]) -> Residual:
    """A residual whose slope is found by differentiation."""

    def residual(root: Array, *args: Any) -> tuple[Array, Array]:
        return jax.jvp(lambda r: fn(r, *args), (root,), (jnp.ones_like(root),))

    return residual


@eqx.filter_custom_jvp
def _attach(residual: Residual, static: Any, root: Array, dynamic: Any) -> Array:
    return root


@_attach.def_jvp
def _attach_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    residual, (static, found), root, dynamic = primals
    *_, dynamic_tangent = tangents

    def at(root: Array, dynamic: Any) -> tuple[Array, Array]:
        value, slope = residual(root, *eqx.combine(dynamic, static))
        return jnp.where(found, value, 0), jnp.where(found, slope, 1)

    dynamic_tangent = instantiated(dynamic, dynamic_tangent)

    def along(root: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        return jax.jvp(lambda d: at(root, d), (dynamic,), (dynamic_tangent,))

    # JAX forgets custom rules when it transposes a scan. The step of Newton's method, which goes nowhere, has the
    # derivatives of the root without one; and so have roots inside the residual, as `jax.jvp` applies their rules.
    root = _attach(residual, (static, found), root, dynamic)
    (value, slope), _ = along(root)
    root = root - value / jax.lax.stop_gradient(slope)
    (_, slope), (change, _) = along(root)
    return root, -change / slope


def at_roots(
    read: Callable[..., Any],
    correct: Callable[..., tuple[Array, ...]],
    slopes: bool,
    given: Any,
    args: tuple[Any, ...],
    roots: tuple[Array, ...],
) -> Any:
    """`read(given, *args, *roots)` for roots that were found, and are constants: a step of Newton's method,
    `correct(given, *args, *roots)`, leaves them as they are.

    What is read ends the roots with such a step, too. From a constant the step has the first derivatives of the root,
    and from what has first derivatives it has the second ones. So the rule takes one before, and differentiates what is
    read from there; no equation is solved, and nothing is evaluated beside. Where `slopes` at the roots are read, they
    take another step.
    """
    return _at_roots(read, correct, slopes, given, args, jax.lax.stop_gradient(roots))


@eqx.filter_custom_jvp
def _at_roots(
    read: Any, correct: Any, slopes: bool, given: Any, args: tuple[Any, ...], roots: tuple[Array, ...]
) -> Any:
    return read(given, *args, *roots)


@_at_roots.def_jvp
def _at_roots_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    read, correct, slopes, given, args, roots = primals
    dynamic, static = eqx.partition((given, args), eqx.is_inexact_array)
    roots = _at_roots(correct, correct, False, given, args, roots)  # or those of third order would be missing

    def at(dynamic: Any) -> Any:
        given, args = eqx.combine(dynamic, static)
        return read(given, *args, *(correct(given, *args, *roots) if slopes else roots))

    return jax.jvp(at, (dynamic,), (instantiated(dynamic, tangents[3:5]),))


def without_value(x: Array) -> Array:
    """0, with the derivatives of `x`."""
    return x - jax.lax.stop_gradient(x)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def of_correction(linear: Callable[[Any, Any], Any], correction: Any, args: Any) -> Any:
    """`linear(correction, args)` for a correction that vanishes at a root: the derivatives of `args` count for nothing
    there, and are left out. For second derivatives those of the correction have to vanish, too, as they do where the
    root has its own.
    """
    return linear(correction, args)


@of_correction.defjvp
def _of_correction_jvp(linear: Callable[[Any, Any], Any], primals: Any, tangents: Any) -> tuple[Any, Any]:
    correction, args = primals
    return linear(correction, args), linear(tangents[0], args)


def bisect(fn: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """The sign change of a scalar function that goes from negative to positive."""

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        below = fn(middle) < 0
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    return jax.lax.fori_loop(0, 60, halve, (low, high))[0]
