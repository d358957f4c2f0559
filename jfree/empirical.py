"""Finite random networks, to hold limiting spectra against."""

from collections.abc import Callable, Sequence
from typing import Any, cast, Literal, overload, TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from ._finite.lanczos import jacobian_density_lanczos as jacobian_density_lanczos, LanczosDensity as LanczosDensity
from ._finite.sampled_jacobians import (
    fisher_eigenvalues_of_inputs,
    fisher_eigenvalues_of_layers,
    in_batches,
    squared,
    squared_singular_values,
)
from ._finite.sampling import integer_widths, with_all_scales, with_positions
from ._finite.singular_values import ExtremeSingularValues as ExtremeSingularValues
from ._interop.jacobians import extreme_singular_values as extreme_singular_values, singular_values_of_model
from ._networks.abstract import AbstractNetwork
from ._networks.mlp import MLP
from ._networks.network import Network
from ._networks.resnet import ResNet
from ._networks.stacked import check_fisher, unrolled
from ._numerics.arrays import Keys
from ._numerics.checks import integer
from ._numerics.memory import check_memory
from ._spectrum.spectrum import Spectrum

if TYPE_CHECKING:
    import torch


@overload
def jacobian_eigenvalues(
    net: AbstractNetwork,
    key: PRNGKeyArray,
    width: int | None = None,
    num_samples: int = 1,
    side: Literal["input", "output"] = "input",
) -> Float[Array, "samples N"]: ...


@overload
def jacobian_eigenvalues(
    model: "Callable[..., Any] | torch.nn.Module",
    x: "ArrayLike | torch.Tensor",
    /,
    *,
    side: Literal["input", "output"] = "input",
    batched: bool | None = None,
) -> Float[Array, "examples N"]: ...


def jacobian_eigenvalues(
    net: "AbstractNetwork | Callable[..., Any] | torch.nn.Module",
    key: "PRNGKeyArray | ArrayLike | torch.Tensor",
    width: int | None = None,
    num_samples: int = 1,
    side: Literal["input", "output"] = "input",
    batched: bool | None = None,
) -> Float[Array, "rows N"]:
    """Eigenvalues of `J^T J` or `J J^T` of sampled networks of finite width, or of a model, at an input (host).

    `jacobian_eigenvalues(net, key)` samples networks, and takes each at a random input.
    `jacobian_eigenvalues(model, x)` takes a model as it is, at examples: any differentiable function of one example, or
    a PyTorch module whose steps `jfree.from_torch` knows. Its Jacobian is formed, in forward or in reverse mode,
    whichever has fewer directions; where it does not fit, `jacobian_density_lanczos` and `extreme_singular_values` do
    without.

    **Arguments:**

    - `net`: what to sample. The input is Gaussian, scaled such that `|x_0|^2 / N_0 = q0`. Or the `model`.
    - `key`: of `jax.random`. Or `x`: one example of any shape, or several along a first axis.
    - `width`: the largest width; the others keep their ratios to it, rounded. By default `net.widths` are the widths;
        a `ResNet` has none, and needs it. Of convolutions without positions they are channels.
    - `num_samples`: how many networks, all drawn independently.
    - `side`: `"input"` for the `N_0` eigenvalues of `J^T J`, `"output"` for the `N_L` of `J J^T`, zeros included.
    - `batched`: of a model, whether `x` has several examples. By default it has if the model takes only one of them.

    **Returns:** the squared singular values of `J = D_L W_L ... D_1 W_1`, or of the model's Jacobian, dimensionless and
    ascending, one row per network or example.

    **Raises:** `ValueError` if `side` is neither, `num_samples` or `width` is not a positive integer, or a width is
    not an integer or rounds to 0; if a model does not take `x`, takes both `x` and parts of it while `batched` is not
    given, or does not return one array of real numbers; `MemoryError` if the matrices would not fit.
    """
    if side not in ("input", "output"):
        raise ValueError(f"`side` must be 'input' or 'output', got {side!r}.")
    if isinstance(net, AbstractNetwork):
        if batched is not None:
            raise ValueError("`batched` is for examples of a model: a network is sampled.")
        return _eigenvalues_of_samples(net, cast(Array, key), width, num_samples, side)
    if width is not None or num_samples != 1:
        raise ValueError("`width` and `num_samples` are for networks that are sampled: a model is taken as it is.")
    values, *sizes = singular_values_of_model(net, key, batched)
    return squared(values, sizes[0 if side == "input" else 1])


def _eigenvalues_of_samples(
    net: AbstractNetwork, key: PRNGKeyArray, width: int | None, num_samples: int, side: Literal["input", "output"]
) -> Float[Array, "samples N"]:
    net, width = with_positions(net, width)
    widths = _checked(net, width, num_samples)
    assert isinstance(net, MLP | ResNet | Network)
    size = widths[0 if side == "input" else -1]
    num_numbers = 6 * max(widths) ** 2
    check_memory("`width`", num_numbers * net.q0.dtype.itemsize)

    def eigenvalues(keys: Keys) -> Array:
        return squared_singular_values(net, widths, size, keys)

    return in_batches(eigenvalues, key, num_samples, num_numbers, max(widths))


def fisher_eigenvalues(
    net: MLP | Network, key: PRNGKeyArray, width: int | None = None, num_samples: int = 1
) -> Float[Array, "samples N"]:
    """Eigenvalues of `(1/N_L) J_theta J_theta^T` of sampled networks of finite width, at a random input (host).

    Arguments as for `jacobian_eigenvalues`; `theta` are the weights, without the biases.

    **Returns:** `N_L` eigenvalues per network, ascending, zeros included.

    **Raises:** `ValueError` as `jacobian_eigenvalues`, and if `net` is neither an `MLP` nor a `Network` without
    `Residual`.
    """
    if not isinstance(net, Network):
        return full_fisher_eigenvalues(net, key, 1, width, num_samples)
    check_fisher(unrolled(net.layers))
    widths = _checked(net, width, num_samples)
    num_numbers = 6 * max(widths) ** 2
    check_memory("`width`", num_numbers * net.q0.dtype.itemsize)

    def eigenvalues(keys: Keys) -> Array:
        return fisher_eigenvalues_of_layers(net, widths, keys)

    return in_batches(eigenvalues, key, num_samples, num_numbers, max(widths))


def full_fisher_eigenvalues(
    net: MLP,
    key: PRNGKeyArray,
    num_inputs: int,
    width: int | None = None,
    num_samples: int = 1,
    block_diagonal: bool = False,
) -> Float[Array, "samples N"]:
    """Eigenvalues of the dual Fisher information of several inputs, `(1 / (N_L n)) J_theta J_theta^T` (host).

    They are those of the Fisher information of the mean loss over `n` inputs, but for zeros. The matrix has a block of
    `N_L x N_L` for every pair of inputs; those of one input with itself, times `n`, are the dual Fisher informations
    per sample, which `jfree.fisher_spectrum` gives the limit of (Hayase and Karakida 2021, Section 4.3).

    **Arguments:** as for `jacobian_eigenvalues`, and

    - `num_inputs`: `n`, drawn independently, all with `|x_0|^2 / N_0 = q0`.
    - `block_diagonal`: leaves out the blocks of different inputs.

    **Returns:** `n N_L` eigenvalues per network, ascending, zeros included.

    **Raises:** `ValueError` as `jacobian_eigenvalues`, if `num_inputs` is not a positive integer, and if `net` is not
    an `MLP`; `MemoryError` if the matrix would not fit.
    """
    if not isinstance(net, MLP):
        raise ValueError(f"`net` must be an MLP, got {type(net).__name__}: no other Fisher spectrum is available.")
    widths, n = _checked(net, width, num_samples), integer("num_inputs", num_inputs)
    num_numbers = 4 * (n if block_diagonal else n**2) * max(widths) ** 2
    check_memory("`num_inputs` or `width`", num_numbers * net.sigma_w.dtype.itemsize)

    def eigenvalues(keys: Keys) -> Array:
        return fisher_eigenvalues_of_inputs(with_all_scales(net), tuple(widths), n, block_diagonal, keys)

    return in_batches(eigenvalues, key, num_samples, num_numbers, n * max(widths))


def ks_distance(eigenvalues: Float[Array | np.ndarray, "..."], spectrum: Spectrum) -> Float[Array, ""]:
    """The Kolmogorov-Smirnov distance of pooled eigenvalues from a spectrum: `sup |F_empirical - cdf|` (host).

    Eigenvalues that rounding cannot tell from an atom count as lying on it, and those that it cannot tell from 0, below
    `N eps` times the largest, as one point. Places where the solver did not certify the cdf are left out.

    **Arguments:**

    - `eigenvalues`: of any shape; rows of length `N` are pooled.
    - `spectrum`: what to hold them against, of the same side.

    **Returns:** the distance, in `[0, 1]`; NaN if no place was certified.

    **Raises:** `ValueError` if there are no eigenvalues, or some are not finite.
    """
    return jnp.asarray(_distance(*_limit_at(eigenvalues, spectrum)))


def _limit_at(eigenvalues: Array | np.ndarray, spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The eigenvalues, on atoms where they cannot be told from them, and the limit's cdf at and just below each."""
    values = np.asarray(eigenvalues) + 0.0
    if not values.size or not np.all(np.isfinite(values)):
        raise ValueError("`eigenvalues` must be finite, and at least one.")
    rounding = float(np.finfo(values.dtype).eps) * (values.shape or (1,))[-1]
    noise = rounding * np.abs(values).max()
    values = np.where(np.abs(values) <= noise, noise, values)
    jump = np.zeros_like(values)
    for place, mass in zip(*(np.asarray(a) for a in spectrum.atoms()), strict=True):
        if place > 0 and mass > 0:
            near = np.abs(values - place) <= max(1e-8, rounding) * place
            values, jump = np.where(near, place, values), np.where(near, mass, jump)
    at = _at_distinct(spectrum.cdf, values)
    return values, at, np.where(values == noise, 0, at - jump)


def _at_distinct(fun: Callable[[np.ndarray], Array], values: np.ndarray) -> np.ndarray:
    """`fun` once for every distinct value, filled up to a power of two: other numbers of them compile nothing new."""
    distinct, places = np.unique(values, return_inverse=True)
    filled = np.pad(distinct, (0, 2 ** max(6, (distinct.size - 1).bit_length()) - distinct.size), mode="edge")
    return np.asarray(fun(filled))[places.reshape(values.shape)]


def _distance(values: np.ndarray, at: np.ndarray, below: np.ndarray) -> float:
    """The largest from the empirical distribution function of all values."""
    values, at, below = values.ravel(), at.ravel(), below.ravel()
    ranked = np.sort(values)
    distances = [
        np.abs(at - np.searchsorted(ranked, values, "right") / values.size),
        np.abs(below - np.searchsorted(ranked, values, "left") / values.size),
    ]
    return np.nanmax(distances) if np.any(np.isfinite(at)) else np.nan


class Convergence(eqx.Module):
    """How far single samples lie from a limit, on average, and all of one width pooled; `slope` is the exponent of the
    width that the averages grow with.
    """

    widths: Int[Array, " widths"]
    single: Float[Array, " widths"]
    pooled: Float[Array, " widths"]
    slope: Float[Array, ""]


def convergence(
    sample: Callable[[PRNGKeyArray, int, int], Float[Array, "samples N"]],
    spectrum: Spectrum,
    key: PRNGKeyArray,
    widths: Sequence[int] = (50, 100, 200, 400),
    num_samples: int = 16,
) -> Convergence:
    """Kolmogorov-Smirnov distances of samples from a spectrum as the width grows (host).

    Eigenvalues of one matrix are rigid, `O(1/N)`; but each network's own variances `q_l` fluctuate by `O(1/sqrt(N))`,
    and shift its spectrum. Pooling averages the shifts out.

    **Arguments:**

    - `sample`: of a key, a width and a number of samples, such as `functools.partial(jacobian_eigenvalues, net)`.
    - `spectrum`: what to hold the samples against.
    - `key`: of `jax.random`.
    - `widths`: two at least, of the widest layer.
    - `num_samples`: for every width.

    **Returns:** distances, in `[0, 1]`, and the slope of `log distance` over `log width`.

    The slope is NaN where fewer than two distances are positive.

    **Raises:** `ValueError` if there are fewer than two widths, one is not a positive integer, or `sample` does not
    return one row per sample; and as `sample` does.
    """
    widths = [integer("widths", width) for width in widths]
    if len(set(widths)) < 2:
        raise ValueError(f"`widths` must be two different ones at least, got {widths!r}.")
    single, pooled = [], []
    for width, own_key in zip(widths, jax.random.split(key, len(widths)), strict=True):
        rows = sample(own_key, width, num_samples)
        if rows.ndim != 2:
            raise ValueError(f"`sample` must return one row of eigenvalues per sample, got shape {rows.shape}.")
        limit = _limit_at(rows, spectrum)
        single.append(np.mean([_distance(*row) for row in zip(*limit, strict=True)]))
        pooled.append(_distance(*limit))
    known = np.greater(single, 0)
    slope = np.nan
    if known.sum() > 1:
        slope, _ = np.polyfit(np.log(widths)[known], np.log(np.asarray(single)[known]), 1)
    return Convergence(*(jnp.asarray(x) for x in (widths, single, pooled, slope)))


def _checked(net: AbstractNetwork, width: int | None, num_samples: int) -> list[int]:
    integer("num_samples", num_samples)
    return integer_widths(net, width)
