"""Objectives: plain functions from a network to a scalar, the smaller the better, and functions that make such.

All are differentiable. None knows what else a network is for: with an odd activation and no biases most of them are
best in the trivial limit `q -> 0`, where every layer is linear. `jfree.tune` and `jfree.constraints` rule it out.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ._networks.abstract import AbstractNetwork, as_network
from ._numerics.arrays import inexact_asarray, Reals
from ._numerics.checks import check, floats, positive
from ._numerics.compile import with_gradient
from ._spectra import coarse_curve, fisher_spectrum, jacobian_spectrum, padded
from ._spectrum.moments import log_moment, log_moments
from ._spectrum.spectrum import Spectrum

Objective = Callable[[AbstractNetwork], Float[Array, ""]]


def isometry(net: AbstractNetwork) -> Float[Array, ""]:
    """Mean square of the logarithms of the nonzero singular values of the Jacobian: 0 if and only if all are 1.

    Smooth whatever the spectrum, and the cheapest after `moments`. Mass at zero is left out: it is a matter of widths
    and dead units. Atoms count like everything else. Good to five digits, mostly to more, or NaN; next to 0
    to some roundings, in single precision to 1e-7 or so. In deep networks of SiLU, GELU and their like it is ruled by
    units that are nearly dead; see `weighted_isometry`.
    """
    return _mean_square_log(net, 0.0)


def weighted_isometry(net: AbstractNetwork) -> Float[Array, ""]:
    """`isometry` with every singular value's own size as its weight: 0 if and only if all that are not 0 are 1.

    Units that are nearly dead count for next to nothing, as those that are dead count for nothing. Of a log-normal
    spectrum that scale is best at which the mean square is 1, so that gradients neither vanish nor explode.
    """
    return _mean_square_log(net, 0.5)


def _mean_square_log(net: AbstractNetwork, power: float) -> Float[Array, ""]:
    return _mean_square_log_of(padded(net), power)


@with_gradient
def _mean_square_log_of(net: AbstractNetwork, power: float) -> Float[Array, ""]:
    # Without weights they are ruled by the smallest eigenvalues, next to the support.
    curve = coarse_curve(net) if power else jacobian_spectrum(net).curve
    mean, variance = log_moments(curve, power)
    return 0.25 * (jnp.square(mean) + variance)


def condition_number(net: AbstractNetwork) -> Float[Array, ""]:
    """Largest over smallest nonzero singular value of the Jacobian, at least 1; atoms count, mass at zero does not.

    Where the bulk reaches down to 0 it would be infinite, and is the fourth root of the largest float, constant.
    """
    return jnp.sqrt(_edge_ratio(jacobian_spectrum(net)))


def fisher_condition(net: AbstractNetwork) -> Float[Array, ""]:
    """Largest over smallest nonzero eigenvalue of the Fisher information, at least 1.

    Where the bulk reaches down to 0 it would be infinite, and is the square root of the largest float, constant.

    **Raises:** `ValueError` as `jfree.fisher_spectrum`.
    """
    return _edge_ratio(fisher_spectrum(net))


def stability(net: AbstractNetwork) -> Float[Array, ""]:
    """Square of the logarithm by which a relative difference of variances grows from the first layer to the last; 0
    where none does, so that inputs of different norms, and samples of finite width, fare alike.
    """
    net = as_network(net)
    elasticity = jnp.abs(net.propagate().elasticity[0])
    return jnp.square(jax.nn.relu(jnp.log(jnp.maximum(elasticity, jnp.finfo(elasticity.dtype).tiny))))


def over_inputs(objective: Objective, q0: Reals, worst: bool = False) -> Objective:
    """The mean of an objective, or the `worst`, over inputs of several mean squares `q0`.

    **Raises:** `ValueError` if `q0` is not a positive and finite number, or several.
    """
    values = jnp.atleast_1d(check(inexact_asarray(q0), positive, "`q0` must be positive and finite."))
    if values.ndim != 1 or not values.size:
        raise ValueError(f"`q0` must be a number or several, got shape {values.shape}.")
    return _OverInputs(objective, values, bool(worst))


class _OverInputs(eqx.Module):
    objective: Objective
    q0: Float[Array, " inputs"]
    worst: bool = eqx.field(static=True)

    def __call__(self, net: AbstractNetwork) -> Float[Array, ""]:
        if not hasattr(net, "q0"):
            raise ValueError(f"`net` must have a `q0` to be replaced; a {type(net).__name__} has none.")

        def at(q0: Array) -> Array:
            return self.objective(eqx.tree_at(lambda n: n.q0, net, q0))

        values = jax.vmap(at)(self.q0.astype(net.q0.dtype))  # pyright: ignore[reportAttributeAccessIssue]
        return jnp.max(values) if self.worst else jnp.mean(values)


def _edge_ratio(spectrum: Spectrum) -> Float[Array, ""]:
    lower, upper = spectrum.edges()
    return jnp.where(lower == 0, jnp.finfo(upper.dtype).max ** 0.5, upper / jnp.where(lower == 0, 1, lower))


def log_spread(p_low: float = 0.05, p_high: float = 0.95) -> Objective:
    """Difference of the logarithms of two quantiles of the nonzero singular values of the Jacobian, at least 0.

    It does not see how large they are, only how far apart. Within an atom its gradient is that of the atom.

    **Raises:** `ValueError` unless `0 < p_low < p_high < 1`.
    """
    if not all(isinstance(p, int | float | np.number) for p in (p_low, p_high)) or not 0 < p_low < p_high < 1:
        raise ValueError(f"`p_low` and `p_high` must be 0 < p_low < p_high < 1, got {p_low!r} and {p_high!r}.")

    def objective(net: AbstractNetwork) -> Float[Array, ""]:
        spectrum = jacobian_spectrum(net)
        zero = spectrum.mass_at_zero()
        low, high = spectrum.quantile(zero + (1 - zero) * jnp.asarray([p_low, p_high], zero.dtype))
        return 0.5 * (jnp.log(high) - jnp.log(low))

    return objective


def moments(*targets: ArrayLike) -> Objective:
    """Sum of the squared logarithms of `m_k / target_k`, `m_k` the mean of the k-th power of the squared singular
    values. Means include mass at zero: of a network that keeps all dimensions, `moments(1.0, 1.0)` asks for isometry.

    **Raises:** `ValueError` if there are no targets, or one is not positive.
    """
    if not targets:
        raise ValueError("`targets` must be at least one.")
    log_targets = [_log_positive("targets", target) for target in targets]

    def objective(net: AbstractNetwork) -> Float[Array, ""]:
        curve = jacobian_spectrum(net).curve
        c = curve.moments
        known = [c.log_mean, 2 * c.log_mean + jnp.log1p(c.relative_variance)]
        logs = known[: len(targets)] + [log_moment(curve, k) for k in range(3, len(targets) + 1)]
        pairs = zip(logs, log_targets, strict=True)
        return sum((jnp.square(m - t.astype(m.dtype)) for m, t in pairs), jnp.zeros_like(c.log_mean))

    return objective


def _log_positive(name: str, value: ArrayLike) -> Array:
    value = floats(name, value, jnp.result_type(float))
    return jnp.log(check(value, positive, f"`{name}` must be positive and finite."))


def _log_distance(value: Array, log_target: Array) -> Array:
    return jnp.square(jnp.log(value) - log_target.astype(value.dtype))


def target(objective: Objective, value: ArrayLike) -> Objective:
    """Squared logarithm of `objective / value`: it wants a positive objective to be `value`.

    **Raises:** `ValueError` if `value` is not positive and finite.
    """
    log_value = _log_positive("value", value)
    return lambda net: _log_distance(objective(net), log_value)


def weighted(*terms: tuple[float, Objective]) -> Objective:
    """The sum of `weight * objective(net)` over pairs `(weight, objective)`.

    **Raises:** `ValueError` if there are no terms.
    """
    if not terms or not all(isinstance(term, tuple) and len(term) == 2 and callable(term[1]) for term in terms):
        raise ValueError("`terms` must be pairs of a weight and an objective, at least one.")
    return lambda net: sum((weight * objective(net) for weight, objective in terms[1:]), terms[0][0] * terms[0][1](net))
