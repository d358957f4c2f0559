"""The spectra of networks."""

from typing import Literal

import equinox as eqx
import numpy as np
from jaxtyping import ArrayLike

from ._calculus.curve import Curve
from ._calculus.universal import universal_curve
from ._networks.abstract import AbstractNetwork, as_network
from ._numerics.arrays import are_concrete, frozen, inexact_asarray
from ._numerics.checks import check
from ._numerics.compile import quickly
from ._spectrum.spectrum import Spectrum


def jacobian_spectrum(net: AbstractNetwork, side: Literal["input", "output"] = "input") -> Spectrum:
    """The limiting spectrum of `J^T J` (`side="input"`) or `J J^T` (`"output"`), `J = D_L W_L ... D_1 W_1`.

    The layers' Jacobians are asymptotically free (Collins and Hayase 2021, Corollary 5.1; Chhaibi, Daouda and Kahn,
    Theorem 3.1 for Gaussian rectangular layers), which makes the spectrum a curve: its points are mapped
    layer by layer.

    **Arguments:** a network, and the side on which `J` is squared: both have the same eigenvalues but for zeros.

    **Raises:** `ValueError` if `side` is neither.
    """
    if side not in ("input", "output"):
        raise ValueError(f"`side` must be 'input' or 'output', got {side!r}.")
    return _jacobian_spectrum(padded(net), side)


def fisher_spectrum(net: AbstractNetwork) -> Spectrum:
    """The limiting spectrum of the dual Fisher information per sample, `(1/N_L) J_theta J_theta^T`, `N_L x N_L`.

    `theta` are all weights; the loss is `|f - y|^2 / (2 N_L)` (Hayase and Karakida 2021, Section 3; Collins
    and Hayase 2021, Corollary 5.2). Eigenvalues are in units of the mean square of the input's entries, `q0`.

    **Arguments:** an `MLP`, or a `Network` without skip connections, whose weights are all `Dense`.

    **Raises:** `ValueError` if `net` is neither.
    """
    return _fisher_spectrum(padded(net))


def padded(net: AbstractNetwork) -> AbstractNetwork:
    """With neutral layers behind the last, where numbers are known. A network that is differentiated has them, too: its
    search for roots is the same program.
    """
    return as_network(net).padded() if are_concrete(frozen(net)) else as_network(net)


def coarse_curve(net: AbstractNetwork) -> Curve:
    """Of `J^T J`, for what is read far from the support."""
    return _coarse_curve(padded(net))


@quickly(eqx.filter_jit)
def _coarse_curve(net: AbstractNetwork) -> Curve:
    return net.coarse().jacobian_curve("input")


@quickly(eqx.filter_jit)
def _jacobian_spectrum(net: AbstractNetwork, side: str) -> Spectrum:
    return Spectrum(net.jacobian_curve(side), net.ritz_values, net.extremes)


@quickly(eqx.filter_jit)
def _fisher_spectrum(net: AbstractNetwork) -> Spectrum:
    return Spectrum(net.fisher_curve())


def universal_resnet_spectrum(theta: ArrayLike) -> Spectrum:
    """The limit of residual networks of ever more blocks with ever smaller branches, `S(m) = exp(-theta (2 m + 1))`.

    `theta = (c/L) sum_l E phi'(h_l)^2` for `sigma_w^2 = c/L` (Ling, He and Qiu, Theorem 2): whatever the activation
    and the weights, only `theta` is left. The edges are `(1 + theta -+ r) exp(-+r)`, `r^2 = theta^2 + 2 theta`.

    **Raises:** `ValueError` if `theta` is not positive and finite.
    """
    theta = inexact_asarray(theta)
    if theta.ndim:
        raise ValueError(f"`theta` must be a scalar, got shape {theta.shape}.")
    theta = check(theta, lambda t: (t > 0) & (t < np.inf), "`theta` must be positive and finite.")
    return Spectrum(universal_curve(theta))
