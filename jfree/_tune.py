"""Tuning: gradient descent on anything a spectrum tells."""

import sys
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from tqdm.auto import tqdm

from . import objectives
from ._misc import is_concrete
from ._networks import AbstractNetwork, MLP

_CHUNK = 10  # steps between two looks at the progress


class TuneResult(eqx.Module):
    """What `tune` found.

    - `net`: the best network on the way, with the constraint applied.
    - `objective`: its objective.
    - `history`: the objective at the start and after every step; NaN after an early stop.
    - `rounded`, `rounded_objective`: if widths were tuned, the network with integer widths, and its objective.
    """

    net: AbstractNetwork
    objective: Float[Array, ""]
    history: Float[Array, " steps+1"]
    rounded: AbstractNetwork | None
    rounded_objective: Float[Array, ""] | None


def _sigma_w(net: Any) -> Array:
    return net.sigma_w


def _unconstrained(net: AbstractNetwork) -> AbstractNetwork:
    return net


def tune(
    net: AbstractNetwork,
    objective: Callable[[AbstractNetwork], Array] = objectives.isometry,
    where: Callable[[Any], Any] = _sigma_w,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 200,
    constraint: Callable[[AbstractNetwork], AbstractNetwork] | None = None,
    progress: bool = True,
    stop_at: float = -np.inf,
) -> TuneResult:
    """Minimises an objective over some leaves of a network by gradient descent.

    Entries of leaves that are positive stay positive: their logarithms are what is optimised. With `progress=False` it
    works under `jax.vmap`, from a batch of starting points, for example.

    **Arguments:**

    - `net`: where to start. Share one `sigma_w` among all layers by giving a scalar, tune each with an array.
    - `objective`: from a network to a scalar, of `jfree.objectives` or your own.
    - `where`: from a network to the leaf, or tuple of leaves, to tune, as in `eqx.tree_at`.
    - `optimizer`: any optax optimizer; `optax.adam(0.05)` by default.
    - `steps`: how many updates.
    - `constraint`: from a network to one that obeys, see `jfree.constraints`.
    - `progress`: shows a bar, in a terminal or a notebook.
    - `stop_at`: stops once the objective is not above this. It also stops where objective or gradient is not finite.

    **Raises:** `ValueError` if `where` does not give floating-point arrays, `steps` is not a positive integer, or the
    objective is not finite at the start.
    """
    if not isinstance(steps, int | np.integer) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"`steps` must be a positive integer, got {steps!r}.")
    leaves = _leaves(net, where)
    positive = [leaf > 0 for leaf in leaves]
    start = [jnp.where(p, jnp.log(jnp.where(p, leaf, 1)), leaf) for p, leaf in zip(positive, leaves, strict=True)]
    problem = _Problem(
        net,
        positive,
        where,
        objective,
        _unconstrained if constraint is None else constraint,
        optax.adam(0.05) if optimizer is None else optimizer,
    )
    state = _State(
        start, problem.optimizer.init(start), start, jnp.asarray(jnp.inf, start[0].dtype), jnp.asarray(False)
    )
    watched = is_concrete(start[0])
    size = _CHUNK if watched else steps + 1
    history = []
    shown = progress and watched and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    with tqdm(total=steps, desc="tune", disable=not shown) as bar:
        for first in range(0, steps + 1, size):
            index = jnp.arange(first, first + size)
            state, values = _advance(problem, state, index, jnp.asarray(steps), jnp.asarray(stop_at))
            history.append(values)
            bar.update(min(size, steps - first))
            bar.set_postfix(objective=f"{float(state.best_value):.4g}" if watched else "")
            if watched and not np.isfinite(history[0][0]):
                raise ValueError(f"`objective` must be finite at the start, got {float(history[0][0])}.")
            if watched and bool(state.done):
                break
    history = jnp.concatenate(history)[: steps + 1]
    history = jnp.pad(history, (0, steps + 1 - history.size), constant_values=jnp.nan)
    best = _finished(problem, state.best)
    rounded = rounded_objective = None
    if isinstance(net, MLP) and isinstance(best, MLP) and any(leaf is net.widths for leaf in leaves):
        rounded = eqx.tree_at(lambda n: n.widths, best, jnp.maximum(jnp.round(best.widths), 1))
        rounded_objective = objective(rounded)
    return TuneResult(best, state.best_value, history, rounded, rounded_objective)


def _leaves(net: AbstractNetwork, where: Callable) -> list[Array]:
    try:
        leaves = where(net)
    except AttributeError as error:
        raise ValueError(f"`where` must give leaves of the network: {error}.") from error
    leaves = list(leaves) if isinstance(leaves, tuple | list) else [leaves]
    if not leaves or not all(eqx.is_inexact_array(leaf) for leaf in leaves):
        raise ValueError("`where` must give a floating-point array of the network, or a tuple of them.")
    return leaves


class _Problem(eqx.Module):
    net: AbstractNetwork
    positive: list[Array]
    where: Callable
    objective: Callable
    constraint: Callable
    optimizer: optax.GradientTransformation

    def network(self, free: list[Array]) -> AbstractNetwork:
        values = [jnp.where(p, jnp.exp(jnp.where(p, x, 0)), x) for p, x in zip(self.positive, free, strict=True)]
        several = isinstance(self.where(self.net), tuple | list)
        net = eqx.tree_at(self.where, self.net, type(self.where(self.net))(values) if several else values[0])
        return self.constraint(net)


class _State(eqx.Module):
    free: list[Array]
    optimizer: Any
    best: list[Array]
    best_value: Array
    done: Array


@eqx.filter_jit
def _advance(problem: _Problem, state: _State, index: Array, steps: Array, stop_at: Array):
    """The next steps, those of `index` up to `steps`."""

    def work(state):
        value, grad = jax.value_and_grad(lambda free: problem.objective(problem.network(free)))(state.free)
        finite = jnp.isfinite(value) & jnp.all(jnp.asarray([jnp.all(jnp.isfinite(g)) for g in grad]))
        updates, optimizer = problem.optimizer.update(grad, state.optimizer, state.free)
        free: Any = optax.apply_updates(state.free, updates)
        better = value < state.best_value
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.free, state.best)
        done = ~finite | (value <= stop_at)
        return _State(free, optimizer, best, jnp.where(better, value, state.best_value), done), value

    def step(state, k):
        idle = state.done | (k > steps)
        return jax.lax.cond(idle, lambda s: (s, jnp.full_like(s.best_value, jnp.nan)), work, state)

    return jax.lax.scan(step, state, index)


@eqx.filter_jit
def _finished(problem: _Problem, free: list[Array]) -> AbstractNetwork:
    return problem.network(free)
