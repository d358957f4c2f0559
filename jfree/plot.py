"""Pictures: of spectra, phase diagrams, and histories of tuning. Needs matplotlib."""

import io
from typing import Literal, TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._meanfield.fixed_points import critical_points, fixed_point
from ._meanfield.moments import in_range
from ._numerics.arrays import inexact_asarray, Reals
from ._numerics.compile import much, quickly
from .activations._base import AbstractActivation
from .activations._names import as_activation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ._spectrum.spectrum import Spectrum

_NUM_POINTS = 400


# Where a bulk reaches down to 0, the picture starts at the first of these shares of it, and shows all of the density
# beyond the second: nearer to 0 that diverges.
_SHARES = np.array([0.001, 0.1])


def plot_spectrum(
    spectrum: "Spectrum",
    ax: "Axes | None" = None,
    scale: Literal["linear", "log"] = "linear",
    singular_values: bool = False,
) -> "Axes":
    """Draws the density of a spectrum over its support, and its atoms as stems, each labelled with its mass (host).

    **Arguments:**

    - `spectrum`: the law of `t`.
    - `ax`: axes to draw on; new ones by default.
    - `scale`: `"linear"` draws the density of `t`; `"log"` that of `log10 t`, over a logarithmic axis, where an atom
      at 0 can only be named.
    - `singular_values`: draw the density of `s = sqrt(t)`, `2 s rho(s^2)`, instead.

    **Returns:** the axes. The height of a stem is its mass as a share of the axes' height.

    **Raises:** `ValueError` for an unknown `scale`, `ImportError` without matplotlib.
    """
    if scale not in ("linear", "log"):
        raise ValueError(f"`scale` must be 'linear' or 'log', got {scale!r}.")
    ax = pyplot().subplots()[1] if ax is None else ax
    symbol, power = ("s", 0.5) if singular_values else ("t", 1.0)
    log = scale == "log"
    places, masses = (np.asarray(a) for a in spectrum.atoms())
    start, shown, upper = _range(spectrum, masses)

    height = 1.0
    if masses.sum() < 1 - 1e-9:
        x = _grid(start**power, upper**power, log)
        density = _density(spectrum, x, power) * (x * np.log(10) if log else 1)
        ax.plot(x, density)
        height = 1.1 * np.nanmax(density[x >= (start if log else shown) ** power], initial=1e-300)
    if log:
        _log_axis(ax, (upper / start) ** power)
    ax.set_ylim(0, height)
    for place, mass in zip(places**power, masses, strict=True):
        if mass > 0:
            _draw_atom(ax, place, mass, height, log)
    ax.set_xlabel(f"{'singular value' if singular_values else 'eigenvalue'} ${symbol}$")
    ax.set_ylabel(rf"density of $\log_{{10}}\,{symbol}$" if log else f"density of ${symbol}$")
    return ax


def plot_phase_diagram(
    activation: str | AbstractActivation,
    sigma_w: Reals,
    sigma_b: Reals,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws `log10 chi` at the fixed point over increasing `sigma_w` and `sigma_b`, and the line `chi = 1` (host),
    dotted where variances move away from the fixed point, `chi_q > 1`.

    Blue is order, where gradients vanish with depth, red chaos, where they explode (Poole et al. 2016). White where
    there is no stable fixed point, so that signals explode, or `chi` is 0.

    **Returns:** the axes.

    **Raises:** `ValueError` for an unknown activation, `ImportError` without matplotlib.
    """
    ax = pyplot().subplots()[1] if ax is None else ax
    sigma_w, sigma_b = inexact_asarray(sigma_w), inexact_asarray(sigma_b)
    chi, line, stable = _phases(as_activation(activation), sigma_w, sigma_b)
    log_chi = np.log10(np.where(chi > 0, chi, np.nan))
    top = np.nanmax(np.abs(log_chi), initial=1e-12)
    drawn = ax.pcolormesh(sigma_w, sigma_b, log_chi, cmap="RdBu_r", vmin=-top, vmax=top, shading="gouraud")
    for part, style, label in ((stable, "k-", r"$\chi = 1$"), (~stable, "k:", r"$\chi = 1$, unstable")):
        if part.any():
            ax.plot(np.where(part, line, np.nan), sigma_b, style, label=label)
    ax.set_xlim(float(sigma_w[0]), float(sigma_w[-1]))
    ax.set_xlabel("sigma_w")
    ax.set_ylabel("sigma_b")
    ax.legend(frameon=False)
    ax.figure.colorbar(drawn, ax=ax, label=r"$\log_{10} \chi$")
    return ax


def _log_axis(ax: "Axes", ratio: float) -> None:
    """Over less than two decades matplotlib's labels run into each other."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set_xscale("log")
    ax.xaxis.set_minor_formatter(NullFormatter())
    if ratio < 100:
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")


@quickly(eqx.filter_jit, much)
def _phases(activation: AbstractActivation, sigma_w: Array, sigma_b: Array) -> tuple[Array, Array, Array]:
    """`chi` at the fixed point, a row for every `sigma_b`, and the critical `sigma_w` of each and its stability."""

    def chi(sigma_w: Array, sigma_b: Array) -> Array:
        q = fixed_point(activation, sigma_w, sigma_b)
        return jnp.where(jnp.isnan(q), jnp.nan, jnp.square(sigma_w) * activation.slope_moment(in_range(q)))

    grid = jax.vmap(lambda b: jax.vmap(lambda w: chi(w, b))(sigma_w))(sigma_b)
    critical = jax.vmap(lambda b: critical_points(activation, b).best)(sigma_b)
    return grid, critical.sigma_w, critical.stable


def plot_history(history: Reals, ax: "Axes | None" = None) -> "Axes":
    """Draws an objective against the step, over a logarithmic axis where it is positive (host). Returns the axes.

    **Raises:** `ImportError` without matplotlib.
    """
    ax = pyplot().subplots()[1] if ax is None else ax
    history = np.asarray(history)
    ax.plot(history)
    if np.nanmin(history) > 0:
        ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("objective")
    return ax


def as_png(spectrum: "Spectrum") -> bytes | None:
    """The picture of a spectrum for notebooks, which print it where there is none: without matplotlib, say."""
    try:
        figure, ax = pyplot().subplots(figsize=(5, 3), layout="constrained")
    except ImportError:
        return None
    buffer = io.BytesIO()
    try:
        plot_spectrum(spectrum, ax, "log")
        ax.set_title(str(spectrum), fontsize="small")
        figure.savefig(buffer, format="png", dpi=120)
    finally:
        pyplot().close(figure)
    return buffer.getvalue()


def pyplot():
    """`matplotlib.pyplot`, or an `ImportError` that says how to get it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'jfree[plot]'.") from error
    return plt


def _range(spectrum: "Spectrum", masses: np.ndarray) -> tuple[float, float, float]:
    """Where the picture starts, from where all of the density must be in it, and where it ends."""
    lower, upper = (float(e) for e in spectrum.edges())
    if lower > 0:
        return lower, lower, upper
    start, shown = np.asarray(spectrum.quantile(masses[0] + _SHARES * (1 - masses[0])))
    return float(np.fmax(start, 1e-30 * upper)), float(shown), upper


def _grid(start: float, stop: float, log: bool) -> np.ndarray:
    """Points between the ends, crowded towards both: a density leaves an edge like a square root."""
    share = 0.5 - 0.5 * np.cos(np.pi * (np.arange(_NUM_POINTS) + 0.5) / _NUM_POINTS)
    return start * (stop / start) ** share if log else start + (stop - start) * share


def _density(spectrum: "Spectrum", x: np.ndarray, power: float) -> np.ndarray:
    """Of `t^power` at `x`."""
    t = x ** (1 / power)
    return np.asarray(spectrum.density(t)) * t / (power * x)


def _draw_atom(ax: "Axes", place: float, mass: float, height: float, log: bool) -> None:
    label = f"mass {mass:.3g}"
    if log and place == 0:
        ax.plot([], [], " ", label=f"{label} at 0")
        ax.legend(frameon=False)
        return
    ax.plot([place, place], [0, mass * height], color="C1")
    ax.plot(place, mass * height, "o", color="C1", clip_on=False)
    ax.annotate(label, (place, mass * height), (0, 6), textcoords="offset points", ha="center", annotation_clip=False)
