"""One call: a model is read, tuned, and written back."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TYPE_CHECKING, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from . import constraints, objectives
from ._finite.diagnosis import diagnose, Diagnosis
from ._interop.model import Parameters, parameters_of, read
from ._interop.parts import Slot
from ._interop.torch import assign_, examples_of, parameters_of_torch
from ._interop.writing import write, Written
from ._layers.dense import AbstractWeighted, Dense
from ._layers.gated import Gated
from ._layers.weights import AbstractWeights
from ._networks.abstract import AbstractNetwork, propagate
from ._networks.mlp import MLP
from ._networks.network import Network
from ._networks.nonlinearity import too_linear, usual_nonlinearity
from ._numerics.compile import quickly
from ._numerics.show import number, Shown, Table
from ._spectra import fisher_spectrum, jacobian_spectrum
from ._spectrum.outliers import Outliers
from ._tune import tune, TuneResult
from .plot import pyplot

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes

Model = TypeVar("Model")
Objective = Callable[[AbstractNetwork], Array]

# Quantiles of the singular values that are not 0.
_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)

# What is tuned of layers that have it, by what it is called in a call.
_LEAVES = {
    "weights": ("sigma_w", "sigma_gate"),
    "biases": ("sigma_b",),
    "gains": ("gain",),
    "scales": ("scale", "factor"),
    "activations": ("activation",),
}
_What = Literal["weights", "biases", "gains", "scales", "activations"]


class Account(Shown):
    """What is known of a network (dimensionless).

    - `net`: the network.
    - `singular_values`: quantiles of those of the Jacobian that are not 0, at 5, 25, 50, 75 and 95 %.
    - `chi`: the geometric mean over layers of the growth of squared gradients.
    - `outliers`: what is known of eigenvalues outside the bulk.
    - `learning_rate_bound`: steps of gradient descent on the squared error of one example diverge above it, see
        `jfree.Spectrum.learning_rate_bound`; NaN of networks that are no MLP.
    - `diagnosis`: what is to be expected of the signal, and of samples of these widths.
    """

    net: Network
    singular_values: Float[Array, "5"]
    chi: Float[Array, ""]
    outliers: Outliers
    learning_rate_bound: Float[Array, ""]
    diagnosis: Diagnosis

    @staticmethod
    def of(net: Network, q0: Float[Array, " inputs"]) -> "Account":
        plain = net.as_mlp()  # of which there is more to be said, in less time
        used = net if plain is None else plain
        spectrum = jacobian_spectrum(used)
        zero = spectrum.mass_at_zero()
        quantiles = spectrum.quantile(zero + (1 - zero) * jnp.asarray(_LEVELS, zero.dtype))
        chi = jnp.exp(jnp.mean(jnp.log(propagate(used).chi)))
        bound = jnp.full_like(chi, jnp.nan) if plain is None else fisher_spectrum(plain).learning_rate_bound()
        return Account(net, jnp.sqrt(quantiles), chi, spectrum.outliers(), bound, diagnose(used, q0))

    def rows(self) -> dict[str, str]:
        found = self.diagnosis
        rows = {
            f"singular value, {level:.0%}": number(value)
            for level, value in zip(_LEVELS, self.singular_values, strict=True)
        }
        rows |= {"q of the last layer": number(found.q[found.q.size // 2]), "chi": number(self.chi)}
        rows |= {"chi_q": number(found.chi_q)}
        if jnp.isfinite(self.learning_rate_bound):
            rows["learning-rate bound, squared error"] = number(self.learning_rate_bound)
        if jnp.isfinite(found.signal_spread):
            rows["spread of log q at these widths"] = number(found.signal_spread)
        return rows

    def _table(self):
        return Table("\n".join(self.diagnosis.words + self.outliers.words), ("", ""), list(self.rows().items()))


class Report(Shown):
    """What `initialize` did.

    - `before`, `after`: of the network as it was read, and as it was written.
    - `tuning`: how the objective went.
    - `num_written`: in how many arrays of the model something was written.
    - `left`: the names of weights that were not read, and are as they were.
    """

    before: Account
    after: Account
    tuning: TuneResult
    num_written: int = eqx.field(static=True)
    left: tuple[str, ...] = eqx.field(static=True)

    def _table(self):
        before, after = self.before.rows(), self.after.rows()
        rows = [(name, before.get(name, ""), after.get(name, "")) for name in after]
        rows.append(("objective", "", number(self.tuning.objective)))
        words = [*self.after.diagnosis.words, *self.after.outliers.words]
        left = f" Not read, and left alone: {', '.join(self.left)}." if self.left else ""
        title = f"Wrote {self.num_written} arrays.{left}"
        return Table("\n".join([title, *words]), ("", "before", "after"), rows)

    def plot(self) -> "tuple[Axes, Axes]":
        """Draws the densities of the singular values before and after, side by side (host; needs matplotlib). Returns
        both axes.

        **Raises:** `ImportError` without matplotlib.
        """
        _, (left, right) = pyplot().subplots(1, 2, figsize=(11, 4), layout="constrained")
        for ax, account, title in ((left, self.before, "before"), (right, self.after, "after")):
            jacobian_spectrum(account.net).plot(ax, "log", singular_values=True)
            ax.set_title(title)
        return left, right


def initialize(
    model: Model,
    x: ArrayLike,
    key: PRNGKeyArray,
    objective: Objective = objectives.weighted_isometry,
    what: Sequence[_What] = ("weights",),
    weights: str | AbstractWeights = "auto",
    steps: int = 200,
    progress: bool = True,
) -> tuple[Model, Report]:
    """A model with weights drawn so that its singular values are near 1, and a report (host).

    Reads the model as `jfree.from_model` does, tunes the scales of its layers by `jfree.tune` at the data's own norms,
    and writes new weights as `jfree.reinitialize` does.

    **Arguments:**

    - `model`: what `jfree.from_model` reads and holds its parameters: an Equinox or Flax NNX module, or a
        `functools.partial` of a function and its parameters.
    - `x`: one example, or several along a first axis.
    - `key`: of `jax.random`.
    - `objective`: what is minimised, of `jfree.objectives` or your own.
    - `what`: what is tuned, layer by layer: the scales of `"weights"`, of `"biases"`, the `"gains"` of norms, the
        `"scales"` that branches are multiplied by, and the parameters of `"activations"`, such as the slope of a PReLU.
    - `weights`: the law of the new weights: `"auto"` for the one that they look like, `"orthogonal"`, `"gaussian"`.
    - `steps`: of tuning.
    - `progress`: shows a bar, in a terminal or a notebook.

    **Returns:** the model, with shapes and dtypes as they were, and a `Report`, which prints as a table and has a
    `plot`.

    **Warns** as `jfree.tune`: if the signal fades, explodes or is unstable.

    **Raises:** `ValueError` as `jfree.from_model`, `jfree.reinitialize` and `jfree.tune`, and if there is nothing of
    `what` to tune.
    """
    written, report = _initialized(parameters_of(model), x, key, objective, what, weights, steps, progress)
    return written.model, report


def initialize_torch_(
    module: "torch.nn.Module",
    x: "ArrayLike | torch.Tensor",
    seed: int,
    objective: Objective = objectives.weighted_isometry,
    what: Sequence[_What] = ("weights",),
    weights: str | AbstractWeights = "auto",
    steps: int = 200,
    progress: bool = True,
) -> Report:
    """Draws the weights of a PyTorch module in place, so that its singular values are near 1 (host).

    **Arguments:** as of `jfree.initialize`, of a module that `jfree.from_torch` reads, and a `seed` of random numbers.

    **Returns:** a `Report`.

    **Warns** and **raises** as `jfree.initialize`; `ImportError` without PyTorch.
    """
    examples = examples_of(x)
    parameters = parameters_of_torch(module)
    key = jax.random.key(seed)
    written, report = _initialized(parameters, examples, key, objective, what, weights, steps, progress)
    assign_(module, written)
    return report


def _initialized(
    parameters: Parameters,
    x: ArrayLike,
    key: PRNGKeyArray,
    objective: Objective,
    what: Sequence[str],
    weights: str | AbstractWeights,
    steps: int,
    progress: bool,
) -> tuple[Written, Report]:
    unknown = [name for name in what if name not in _LEAVES]
    if isinstance(what, str) or unknown or not what:
        raise ValueError(f"`what` must be a sequence of {', '.join(map(repr, _LEAVES))}, got {what!r}.")
    names = tuple(name for one in what for name in _LEAVES[one])
    net, slots, examples = read(parameters, x, weights)
    _check_parameters(slots, what)
    if not _Leaves(names)(net):
        raise ValueError(f"`what` must name something that the model has: it has no {', '.join(what)}.")
    q0 = norms(examples, net)
    best, tuned = tuned_network(net, objective, names, steps, progress, q0)
    written = write(parameters, best, key)
    report = Report(Account.of(net, q0), Account.of(best, q0), tuned, len(written.names), tuple(written.left))
    return written, report


def tuned_network(
    net: Network,
    objective: Objective,
    names: tuple[str, ...],
    steps: int,
    progress: bool,
    q0: Float[Array, " inputs"],
) -> tuple[Network, TuneResult]:
    """A network that was read, with its numbers of these names tuned; as an MLP, if it is one, in less time."""
    plain = net.as_mlp() if set(names) <= {"sigma_w", "sigma_gate", "sigma_b"} else None
    start = net if plain is None else even_start(plain) if "sigma_w" in names else plain
    result = tune(start, objective, _Leaves(names), steps=steps, progress=progress, q0=q0)
    best = result.net if plain is None else _with_scales(net, result.net)
    assert isinstance(best, Network)
    return best, result


class _Leaves(eqx.Module):
    """All numbers of these names, of all layers: one object for all calls with the same, to be compiled once."""

    names: tuple[str, ...] = eqx.field(static=True)

    def __call__(self, net: AbstractNetwork) -> tuple[Array, ...]:
        leaves, _ = jax.tree_util.tree_flatten_with_path(net)
        return tuple(leaf for path, leaf in leaves if self._is_meant([getattr(key, "name", "") for key in path]))

    def _is_meant(self, path: list[str]) -> bool:
        return "activation" in self.names if "activation" in path else path[-1] in self.names


# Mean squares of all preactivations, of which the best is where tuning starts.
_MEAN_SQUARES = np.geomspace(1e-3, 30, 61)


@quickly(eqx.filter_jit)
def even_start(net: MLP, nonlinearity: float | None = None) -> MLP:
    """With weights of a scale per layer, by which all preactivations have one mean square: that at which the mean of
    the squared singular values that are not 0 and the mean of their squares are nearest to 1, and no layer is too
    linear nor unstable. Where singular values are far from 1, gradients are.
    """
    least = usual_nonlinearity(net) if nonlinearity is None else nonlinearity

    def even(q: Array) -> MLP:
        found = constraints.fixed_variance(q)(net)
        assert isinstance(found, MLP)
        return found

    def cost(q: Array) -> Array:
        even_net = even(q)
        rank = 1 - jacobian_spectrum(even_net).mass_at_zero()
        near_isometry = objectives.moments(rank, rank)(even_net) + objectives.stability(even_net)
        return near_isometry + too_linear(even_net, jnp.asarray(least, q.dtype))

    of_biases = jnp.max(jnp.square(net.sigma_b))  # which stay as they are
    squares = jnp.asarray(_MEAN_SQUARES, net.q0.dtype) + 1.02 * of_biases
    costs = jax.vmap(cost)(squares)
    return even(squares[jnp.nanargmin(costs)])


def _with_scales(net: Network, tuned: AbstractNetwork) -> Network:
    """The scales of an MLP that a network is."""
    assert isinstance(tuned, MLP)
    sigma_w, sigma_b = (iter(scales) for scales in tuned.scales)

    def own(layer: Any) -> Any:
        if not isinstance(layer, Dense):
            return layer
        return eqx.tree_at(lambda dense: (dense.sigma_w, dense.sigma_b), layer, (next(sigma_w), next(sigma_b)))

    return eqx.tree_at(lambda n: n.layers, net, tuple(map(own, net.layers)))


def scales(net: Network) -> list[Array]:
    """Of all weights, in the order of `jfree.sample_weights`; of a gate first that of the values."""
    found: list[Array] = []
    for layer in net.layers:
        for part in layer.parts():
            if isinstance(part, Gated):
                found += [part.sigma_w, part.sigma_gate]
            elif isinstance(part, AbstractWeighted):
                found.append(part.sigma_w)
    return found


def _check_parameters(slots: list[Slot], what: Sequence[str]) -> None:
    """**Raises:** `ValueError` if the model has no parameter for something that is to be tuned."""
    first, second, every = slice(1), slice(1, 2), slice(None)
    needed = {("biases", "weights"): second, ("gains", "norm"): first, ("scales", "scale"): first}
    needed |= {("scales", "sum"): second, ("activations", "activation"): every}
    for one in what:
        for slot in slots:
            parts = slot.parts[needed.get((one, slot.kind), slice(0))]
            if any(part is None or part.origin is None for part in parts):
                raise ValueError(f"`what` must not have {one!r}: no parameter for the {slot.kind}{slot.place}.")


def norms(x: ArrayLike, net: Network) -> Float[Array, " inputs"]:
    """Quantiles of the mean squares of examples, at 5, 50 and 95 %; of one, its own."""
    assert net.shape is not None
    examples = np.asarray(x, float).reshape(-1, int(np.prod(net.shape)))
    squares = np.mean(np.square(examples), axis=1)
    squares = np.unique(np.quantile(squares[squares > 0], (0.05, 0.5, 0.95)))
    return jnp.asarray(squares, net.q0.dtype)
