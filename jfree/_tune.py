"""Tuning: gradient descent on anything a spectrum tells."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from tqdm.auto import tqdm

from . import objectives
from ._finite.diagnosis import alarm
from ._networks.abstract import AbstractNetwork, as_network
from ._networks.mlp import MLP
from ._networks.network import Network
from ._networks.nonlinearity import too_linear, usual_nonlinearity
from ._numerics.arrays import inexact_asarray, is_concrete, Reals
from ._numerics.checks import integer
from ._numerics.compile import much, quickly
from ._numerics.show import counted, is_interactive, number, Shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# First updates of logarithms, which fall to 0 as a cosine does: of the mean over a leaf's entries, if there were one of
# them, and of what these differ from it by.
_OF_MEAN, _OF_REST = 0.2, 0.05

_CHUNK = 10  # steps between two looks at the progress


class TuneResult(Shown):
    """What `tune` found.

    - `net`: the best network on the way, with the constraint applied.
    - `objective`: its objective, without what too little nonlinearity costs.
    - `history`: the objective at the start and after every step; NaN after an early stop.
    - `rounded`, `rounded_objective`: if widths were tuned, the network with integer widths, and its objective.
    """

    net: AbstractNetwork
    objective: Float[Array, ""]
    history: Float[Array, " values"]
    rounded: AbstractNetwork | None
    rounded_objective: Float[Array, ""] | None

    def _table(self):
        taken = self.history[jnp.isfinite(self.history)]
        table = self.net._table()
        if self.objective.ndim or table is None:
            return None
        title = f"{number(taken[0])} -> {number(self.objective)} in {counted(taken.size - 1, 'step')}: {table.title}"
        return table._replace(title=title)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draws the objective against the step (host; needs matplotlib). Returns the axes.

        **Raises:** `ImportError` without matplotlib.
        """
        from .plot import plot_history

        return plot_history(self.history, ax)


def _sigma_w(net: Any) -> Any:
    return net.sigma_w


def _annealed(updates: Any, state: Any, params: Any = None, **known: Any):
    """Updates, scaled by a cosine that falls to 0 over all steps."""
    left = 0.5 * (1 + jnp.cos(jnp.pi * known["share"]))
    return jax.tree.map(lambda u: u * left.astype(u.dtype), updates), state


def _by_mean_and_rest(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Leaves as their mean and what they differ from it by, each scaled by `inner` on its own. All layers together are
    a stiff direction: the mean moves the less, the more there are.
    """

    def split(leaves: Any) -> Any:
        return jax.tree.map(lambda x: (jnp.mean(x), x - jnp.mean(x)), leaves)

    def init(params: Any) -> Any:
        return inner.init(split(params))

    def update(updates: Any, state: Any, params: Any = None, **_: Any):
        scaled, state = inner.update(split(updates), state)

        def joined(update: Array, both: tuple[Array, Array]) -> Array:
            mean, rest = both
            return -_OF_MEAN * mean / update.size**0.5 - _OF_REST * (rest - jnp.mean(rest))

        return jax.tree.map(joined, updates, scaled), state

    return optax.GradientTransformationExtraArgs(init, update)


# One for all calls: a new one is compiled anew. Gradients fall by orders of magnitude on the way: they must not be
# remembered for long.
_ADAM = optax.chain(
    _by_mean_and_rest(optax.scale_by_adam(b2=0.9)),
    optax.GradientTransformationExtraArgs(optax.init_empty_state, _annealed),
)


def _unconstrained(net: AbstractNetwork) -> AbstractNetwork:
    return net


def tune(
    net: AbstractNetwork,
    objective: Callable[[AbstractNetwork], Array] = objectives.weighted_isometry,
    where: Callable[[Any], Any] = _sigma_w,
    optimizer: optax.GradientTransformation = _ADAM,
    steps: int = 200,
    constraint: Callable[[AbstractNetwork], AbstractNetwork] | None = None,
    progress: bool = True,
    stop_at: float = -np.inf,
    q0: Reals | None = None,
    nonlinearity: float | None = None,
) -> TuneResult:
    """Minimises an objective over some leaves of a network by gradient descent.

    Entries of leaves that are positive stay positive: their logarithms are what is optimised. With `progress=False` it
    works under `jax.vmap`, from a batch of starting points, for example.

    **Arguments:**

    - `net`: where to start. Share one `sigma_w` among all layers by giving a scalar, tune each with an array.
    - `objective`: from a network to a scalar, of `jfree.objectives` or your own.
    - `where`: from a network to the leaf, or tuple of leaves, to tune, as in `eqx.tree_at`.
    - `optimizer`: any optax optimizer, if not given Adam with `b2 = 0.9` and a learning rate that falls to 0 as a
        cosine does, from 0.2; of a leaf with `n` numbers from `0.2 / sqrt(n)` for their mean, and from 0.05 for what
        they differ from it by. A new one is compiled anew.
    - `steps`: how many updates.
    - `constraint`: from a network to one that obeys, see `jfree.constraints`.
    - `progress`: shows a bar, in a terminal or a notebook.
    - `stop_at`: stops once the objective is not above this. It also stops where objective or gradient is not finite.
    - `q0`: mean squares of inputs, if the objective is to be the mean over several, such as quantiles of those of data;
        `jfree.objectives.over_inputs` takes the worst.
    - `nonlinearity`: the sum of `jfree.nonlinearity` that an `MLP` or a `Network` keeps, every layer its part: a
        network that is linear is isometric for nothing. By default 0.5, but no more than 0.025 for each nonlinear
        layer; 0 lets it be.

    **Returns:** a `TuneResult`, with the best network on the way.

    **Warns:** if the network's signal fades, explodes, or is so unstable that inputs which differ little in their norms
    differ much in the end.

    **Raises:** `ValueError` if `where` does not give floating-point arrays of the network, `steps` is not a positive
    integer, `optimizer` is none, `constraint` does not give a network, `q0` is not positive, `nonlinearity` is
    negative or not finite, or the objective is not a real scalar, or it or its gradient is not finite at the start.
    """
    steps = integer("steps", steps)
    if nonlinearity is None:
        nonlinearity = usual_nonlinearity(net) if isinstance(net, MLP | Network) else 0.0
    if not isinstance(nonlinearity, int | float | np.number) or not 0 <= nonlinearity < np.inf:
        raise ValueError(f"`nonlinearity` must be at least 0 and finite, got {nonlinearity!r}.")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(f"`optimizer` must be an optax optimizer, got {optimizer!r}.")
    for name, function in (("objective", objective), ("constraint", constraint or _unconstrained)):
        if not callable(function):
            raise ValueError(f"`{name}` must be a function of a network, got {function!r}.")
    leaves = _leaves(as_network(net), where)
    positive, start = _logarithms(leaves)
    problem = _Problem(
        net,
        positive,
        where,
        objective if q0 is None else objectives.over_inputs(objective, q0),
        _unconstrained if constraint is None else constraint,
        jnp.asarray(nonlinearity) if nonlinearity and isinstance(net, MLP | Network) else None,
        _with_extra_args(optimizer),
    )
    value = _checked(problem, start)
    state = _started(problem, start, value.dtype)
    history, first, watched = [], 0, True
    with tqdm(total=steps, desc="tune", disable=not (progress and is_interactive())) as bar:
        while first <= steps:
            index = np.arange(first, first + _CHUNK if watched else steps + 1)
            state, values = _advance(problem, state, index, np.asarray(steps), jnp.asarray(stop_at))
            history.append(values)
            first += index.size
            watched = is_concrete(state.best_value)
            if not watched:
                continue  # under a transformation: the rest in one go
            history[-1] = values = np.asarray(values)
            bar.update(min(first, steps) - bar.n)
            bar.set_postfix(objective=f"{float(state.best_objective):.4g}")
            if not np.isfinite(history[0][0]):
                raise ValueError(f"`objective` must be finite at the start, got {float(history[0][0])}.")
            if history[0][0] > stop_at and np.isnan(history[0][1]):
                raise ValueError("`objective` must have a finite gradient at the start.")
            if bool(state.done):
                break
    numpy = np if watched else jnp
    history = numpy.concatenate(history)[: steps + 1]
    history = jnp.asarray(numpy.pad(history, (0, steps + 1 - history.size), constant_values=np.nan))
    best = _finished(problem, state.best)
    if watched:
        inputs = getattr(best, "q0", None) if q0 is None else q0
        fault = None if inputs is None else alarm(best, jnp.atleast_1d(inexact_asarray(inputs)))
        if fault:
            warnings.warn(fault, stacklevel=2)
    rounded = rounded_objective = None
    if isinstance(net, MLP) and isinstance(best, MLP) and any(leaf is net.widths for leaf in leaves):
        rounded, rounded_objective = _rounded(best, objective)
    return TuneResult(best, state.best_objective, history, rounded, rounded_objective)


def _leaves(net: AbstractNetwork, where: Callable[..., Any]) -> list[Array]:
    try:
        leaves = where(net)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"`where` must give leaves of the network: {error}.") from error
    leaves = jax.tree.leaves(leaves)
    own = {id(leaf) for leaf in jax.tree.leaves(net)}
    if not leaves or not all(eqx.is_inexact_array(leaf) and id(leaf) in own for leaf in leaves):
        raise ValueError("`where` must give a floating-point array of the network, or a tuple of them, each a whole.")
    return leaves


_with_extra_args = functools.lru_cache(optax.with_extra_args_support)  # which makes new functions, to compile anew


@quickly(eqx.filter_jit)
def _logarithms(leaves: list[Array]) -> tuple[list[Array], list[Array]]:
    """Which entries are positive, and what is optimised: the logarithms of these."""
    positive = [leaf > 0 for leaf in leaves]
    return positive, [jnp.where(p, jnp.log(jnp.where(p, x, 1)), x) for p, x in zip(positive, leaves, strict=True)]


def _checked(problem: "_Problem", parameters: list[Array]) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the objective, nothing computed."""
    net = eqx.filter_eval_shape(problem.network, parameters)
    if not isinstance(net, AbstractNetwork):
        raise ValueError(f"`constraint` must give a network, got {type(net).__name__}.")
    value = eqx.filter_eval_shape(lambda parameters: problem.objective(problem.network(parameters)), parameters)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"`objective` must give a real scalar, got {value}.")
    return value


class _Problem(eqx.Module):
    net: AbstractNetwork
    positive: list[Array]
    where: Callable[..., Any]
    objective: Callable[..., Array]
    constraint: Callable[..., AbstractNetwork]
    nonlinearity: Array | None
    optimizer: optax.GradientTransformationExtraArgs

    def network(self, parameters: list[Array]) -> AbstractNetwork:
        values = [jnp.where(p, jnp.exp(jnp.where(p, x, 0)), x) for p, x in zip(self.positive, parameters, strict=True)]
        net = eqx.tree_at(lambda net: jax.tree.leaves(self.where(net)), self.net, values)
        return self.constraint(net)

    def value(self, parameters: list[Array]) -> tuple[Array, Array]:
        """What is minimised, and the objective."""
        net = self.network(parameters)
        value = self.objective(net)
        if self.nonlinearity is None or not isinstance(net, MLP | Network):
            return value, value
        return value + too_linear(net, self.nonlinearity).astype(value.dtype), value


class _State(eqx.Module):
    parameters: list[Array]
    optimizer: Any
    best: list[Array]
    best_value: Array
    best_objective: Array
    done: Array


@quickly(eqx.filter_jit)
def _started(problem: _Problem, parameters: list[Array], dtype: jnp.dtype) -> _State:
    none = jnp.asarray(jnp.inf, dtype)
    return _State(parameters, problem.optimizer.init(parameters), parameters, none, none, jnp.asarray(False))


@quickly(eqx.filter_jit, much)
def _advance(
    problem: _Problem, state: _State, index: Array | np.ndarray, steps: Array | np.ndarray, stop_at: Array
) -> tuple[_State, Array]:
    """The next steps, those of `index` up to `steps`."""

    def work(state: _State, k: Array) -> tuple[_State, Array]:
        (value, objective), grad = jax.value_and_grad(problem.value, has_aux=True)(state.parameters)
        finite = jnp.isfinite(value) & jnp.all(jnp.asarray([jnp.all(jnp.isfinite(g)) for g in grad]))

        # Line searches hand on what they get.
        def value_fn(parameters: list[Array], share: Array | None = None) -> Array:
            return problem.value(parameters)[0]

        known = {"value": value, "grad": grad, "value_fn": value_fn, "share": k / steps}
        updates, optimizer = problem.optimizer.update(grad, state.optimizer, state.parameters, **known)
        parameters: Any = optax.apply_updates(state.parameters, updates)
        better = value < state.best_value
        keep = lambda new, old: jnp.where(better, new, old)  # noqa: E731
        best, lowest = jax.tree.map(keep, state.parameters, state.best), keep(value, state.best_value)
        done = ~finite | (objective <= stop_at)
        return _State(parameters, optimizer, best, lowest, keep(objective, state.best_objective), done), objective

    def step(state: _State, k: Array) -> tuple[_State, Array]:
        idle = state.done | (k > steps)
        return jax.lax.cond(idle, lambda s, _: (s, jnp.full_like(s.best_value, jnp.nan)), work, state, k)

    return jax.lax.scan(step, state, jnp.asarray(index))


@quickly(eqx.filter_jit)
def _finished(problem: _Problem, parameters: list[Array]) -> AbstractNetwork:
    return problem.network(parameters)


@quickly(eqx.filter_jit)
def _rounded(net: MLP, objective: Callable[..., Array]) -> tuple[MLP, Array]:
    """With integer widths, and the objective there."""
    rounded = eqx.tree_at(lambda n: n.widths, net, jnp.maximum(jnp.round(net.widths), 1))
    return rounded, objective(rounded)
