"""The spectrum of a random matrix, read off its curve."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Complex, Float, Int

from ._certificate import RESULTS
from ._curve import Curve
from ._edges import edges, support
from ._follow import polish, Roots, solve
from ._implicit import implicit_root
from ._misc import (
    check,
    complex_dtype,
    exponential,
    inexact_asarray,
    integer,
    is_concrete,
    is_finite,
    log_max,
    magnitude,
    Reals,
    reciprocal,
)
from ._moments import log_moment, log_moments, mean_log
from ._networks import AbstractNetwork, as_network, floats
from ._resnet import universal_curve
from ._show import counted, number, Shown, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Solution(eqx.Module):
    """What the solver found, per point: `m = M(z)`, `G(z) = (m+1)/z`, the verdict, and Newton steps spent.

    `m` and `G` are NaN where `result` is not `RESULTS.successful`.
    """

    m: Complex[Array, "..."]
    G: Complex[Array, "..."]
    result: RESULTS  # pyright: ignore[reportInvalidTypeForm]
    num_steps: Int[Array, "..."]


class Spectrum(Shown):
    """A limiting eigenvalue distribution `mu` on `[0, inf)`: for Jacobians, of squared singular values (dimensionless).

    Every method works under `jit`, `vmap` and `grad`, unless it says that it runs on the host, and follows the dtype
    of the network the spectrum was made from.
    """

    curve: Curve

    def solve(self, z: ArrayLike | Sequence[complex]) -> Solution:
        """The certified solve behind all other methods.

        **Arguments:** `z`, of any shape, `Im z >= 0`; a real `z` means the limit from above.

        **Returns:** a `Solution`, its arrays of the shape of `z`.

        **Raises:** `ValueError` if some `Im z < 0` or `z` is not finite.
        """
        z = self._complex(z, lambda z: is_finite(z) & (z.imag >= 0), "`z` must be finite, with Im z >= 0.")
        return _solve(self, z)

    def stieltjes(self, z: ArrayLike | Sequence[complex]) -> Complex[Array, "..."]:
        """`G(z) = int mu(dt) / (z - t)`.

        **Raises:** `ValueError` if some `Im z <= 0` or `z` is not finite.
        """
        z = self._complex(z, lambda z: is_finite(z) & (z.imag > 0), "`z` must be finite, with Im z > 0.")
        return _solve(self, z).G

    def density(self, x: Reals, smoothing: ArrayLike | None = None) -> Float[Array, "..."]:
        """The absolutely continuous part of `mu` at real `x`: `-Im G(x + i0) / pi`.

        With `smoothing = y > 0` instead `-Im G(x + iy) / pi`, the convolution of `mu`, atoms included, with a Cauchy
        law of scale `y`. NaN where the solver did not certify the point; `solve(x).result` says why.

        **Raises:** `ValueError` if some `x` is not finite or `smoothing` is not positive.
        """
        x = self._real(x)
        if smoothing is None:
            return _density(self, x)
        y = check(
            floats("smoothing", smoothing, x.dtype), lambda y: (y > 0) & (y < np.inf), "`smoothing` must be positive."
        )
        return _smoothed_density(self, _above_axis(x, y))

    def cdf(self, x: Reals) -> Float[Array, "..."]:
        """`mu([0, x])`, atoms included: `1 - Im Phi(x + i0) / pi` with `Phi' = G`; nothing is integrated.

        **Raises:** `ValueError` if some `x` is not finite.
        """
        return _cdf(self, self._real(x))

    def log_potential(self, x: Reals) -> Float[Array, "..."]:
        """`int log|x - t| mu(dt) = Re Phi(x + i0)`; at `x = 0` it is `-inf` if there is mass at 0.

        **Raises:** `ValueError` if some `x` is not finite.
        """
        return _log_potential(self, self._real(x))

    def quantile(self, p: Reals) -> Float[Array, "..."]:
        """The smallest `x` with `cdf(x) >= p`, the inverse of `cdf`; atoms take all `p` of their mass. Of the shape of
        `p`.

        **Raises:** `ValueError` if some `p` is outside `[0, 1]`.
        """
        p = check(floats("p", p, self._dtype), lambda p: (p >= 0) & (p <= 1), "`p` must lie in [0, 1].")
        return _quantile(self, p)

    def edges(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """`(lower, upper)`: smallest and largest point of the support away from 0, atoms included.

        `lower` is 0 when the bulk reaches down to 0, as far as can be told. Where the density fades out without an
        edge, an end is where the mass beyond it falls below 1e5 roundings, or where the layers' laws are resolved no
        further. NaN where no point outside can be certified.
        """
        return _edges(self)

    def support(self) -> list[tuple[float, float]]:
        """The intervals `(a, b)` of the absolutely continuous part, in increasing order (host).

        **Raises:** `ValueError` under `jit` or `vmap`.
        """
        if not is_concrete(self.curve.rank):
            raise ValueError("`support` runs on the host and cannot be traced; `edges` can.")
        lower, upper = self.edges()
        return support(self.curve, _atoms(self), float(lower), float(upper))

    def atoms(self) -> tuple[Float[Array, " atoms"], Float[Array, " atoms"]]:
        """`(locations, masses)`, of shape `(atoms,)` each, zero first; free slots have mass 0.

        Found by propagation (Belinschi 2003), not by the solver; how many slots there are depends on the network.
        """
        atoms = _atoms(self)
        locations = jnp.where(atoms.masses > 0, jnp.exp(atoms.log_locations), 0)
        return jnp.append(0, locations).astype(self._dtype), jnp.append(atoms.zero, atoms.masses)

    def mass_at_zero(self) -> Float[Array, ""]:
        """`mu({0})`."""
        return _atoms(self).zero

    def mean(self) -> Float[Array, ""]:
        """`int t mu(dt)`, by propagation."""
        return jnp.exp(self.curve.cumulants.log_mean)

    def variance(self) -> Float[Array, ""]:
        """`int (t - mean)^2 mu(dt)`, by propagation."""
        cumulants = self.curve.cumulants
        return jnp.exp(2 * cumulants.log_mean) * cumulants.spread

    def moment(self, k: int) -> Float[Array, ""]:
        """`int t^k mu(dt)`, the trapezoid rule on a circle of curve parameters.

        **Raises:** `ValueError` if `k` is not a nonnegative integer.
        """
        k = integer("k", k, least=0)
        return jnp.ones((), self._dtype) if k == 0 else jnp.exp(log_moment(self.curve, k))

    def mean_log(self) -> Float[Array, ""]:
        """`int_{t>0} log t mu(dt) / mu((0, inf))`: twice the mean logarithm of the nonzero singular values.

        NaN where nearly all mass is at 0, all but a root of the rounding.
        """
        return mean_log(self.curve)

    def log_variance(self) -> Float[Array, ""]:
        """`int_{t>0} (log t - mean_log)^2 mu(dt) / mu((0, inf))`: four times that of the nonzero singular values.

        A quadrature along the negative axis, where nothing is singular: it is defined and smooth whatever the spectrum,
        good to twelve digits for explicit laws, to some for smooth ones, and to some per cent for slopes a factor 100
        apart. NaN where it is worse.
        """
        return log_moments(self.curve)[1]

    def condition_number(self) -> Float[Array, ""]:
        """`sqrt(upper / lower)` of `edges()`: of the matrix whose squared singular values these are."""
        lower, upper = self.edges()
        return jnp.sqrt(upper / lower)

    def learning_rate_bound(self) -> Float[Array, ""]:
        """`2 / upper edge`: for a Fisher spectrum, where gradient descent on the quadratic model turns unstable."""
        return 2 / self.edges()[1]

    def plot(
        self,
        ax: "Axes | None" = None,
        scale: Literal["linear", "log"] = "linear",
        singular_values: bool = False,
    ) -> "Axes":
        """Draws the density, atoms as stems (host; needs matplotlib).

        With `scale="log"` the density is that of `log10 t`, the scale on which deep spectra are read; with
        `singular_values` it is that of `sqrt(t)`. Returns the axes.

        **Raises:** `ValueError` for an unknown scale, `ImportError` without matplotlib.
        """
        from .plot import plot_spectrum

        return plot_spectrum(self, ax, scale, singular_values)

    def _table(self):
        if self.curve.rank.ndim:
            return None
        numbers = f"mean {number(self.mean())}, standard deviation {number(jnp.sqrt(self.variance()))}"
        return Table(f"Spectrum, {counted(self.curve.num_layers, 'layer')}, {self._dtype}: {numbers}")

    def _repr_png_(self) -> bytes | None:
        """Its picture, for notebooks."""
        from .plot import as_png

        return as_png(self)

    @property
    def _dtype(self):
        return self.curve.rank.dtype

    def _real(self, x: Reals) -> Array:
        return check(floats("x", x, self._dtype), is_finite, "`x` must be finite.")

    def _complex(self, z: ArrayLike | Sequence[complex], allowed, message: str) -> Array:
        return check(jnp.asarray(z, complex_dtype(self._dtype)), allowed, message)


@eqx.filter_jit
def jacobian_spectrum(net: AbstractNetwork, side: Literal["input", "output"] = "input") -> Spectrum:
    """The limiting spectrum of `J^T J` (`side="input"`) or `J J^T` (`"output"`), `J = D_L W_L ... D_1 W_1`.

    The layers' Jacobians are asymptotically free (Collins and Hayase 2021, Corollary 5.1; Chhaibi, Daouda and Kahn,
    Theorem 3.1 for Gaussian rectangular layers), which makes the spectrum a curve: see `ARCHITECTURE.md`.

    **Arguments:** a network, and the side on which `J` is squared: both have the same eigenvalues but for zeros.

    **Raises:** `ValueError` if `side` is neither.
    """
    if side not in ("input", "output"):
        raise ValueError(f"`side` must be 'input' or 'output', got {side!r}.")
    return Spectrum(as_network(net).jacobian_curve(side))


@eqx.filter_jit
def fisher_spectrum(net: AbstractNetwork) -> Spectrum:
    """The limiting spectrum of the dual Fisher information per sample, `(1/N_L) J_theta J_theta^T`, `N_L x N_L`.

    `theta` are all weights of an MLP; the loss is `|f - y|^2 / (2 N_L)` (Hayase and Karakida 2021, Section 3; Collins
    and Hayase 2021, Corollary 5.2). Eigenvalues are in units of the mean square of the input's entries, `q0`.

    **Arguments:** an `MLP`.

    **Raises:** `ValueError` if `net` is not an `MLP`.
    """
    return Spectrum(as_network(net).fisher_curve())


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


@eqx.filter_jit
def _atoms(spectrum):
    return spectrum.curve.atoms()


def _lanes(method):
    """Lets `method(spectrum, lanes)` take arrays of any shape: at most eight sizes per doubling are compiled."""

    def wrapped(spectrum, x):
        if x.size == 0:
            raise ValueError("At least one point is needed, got an empty array.")
        grain = max(16, 2 ** (x.size - 1).bit_length() // 8)
        padding = -x.size % grain
        if padding == 0 and x.ndim == 1:
            return method(spectrum, x)
        return _unpadded(method(spectrum, jnp.pad(x.ravel(), (0, padding), mode="edge")), x.shape)

    return wrapped


@partial(jax.jit, static_argnums=1)
def _unpadded(tree, shape: tuple[int, ...]):
    return jax.tree.map(lambda y: y[: math.prod(shape)].reshape(shape), tree)


# Compiled apart from what is read off the roots, and so once for all methods.
_roots = jax.jit(solve)


@jax.jit
def _read_values(curve: Curve, z: Array, roots: Roots) -> tuple[Array, Array]:
    """`m` and `G`, NaN where they are not certified."""
    point = curve.point(roots.omega, roots.unknowns)
    scale = jnp.exp(-point.log_scale)
    G = point.one_plus(1) * reciprocal(jnp.where(roots.certified, z, 1) * scale) * scale
    nan = jnp.asarray(complex(np.nan, np.nan), z.dtype)
    return jnp.where(roots.certified, point.side * point.m, nan), jnp.where(roots.certified, G, nan)


@_lanes
def _solve(spectrum, z):
    roots = _roots(spectrum.curve, z)
    m, G = _read_values(spectrum.curve, z, roots)
    return Solution(m, G, roots.result, roots.num_steps)


def _on_axis(x: Array) -> Array:
    """Positive points as they are, others at 0, where nothing is solved: their values are known."""
    return jax.lax.complex(jnp.maximum(x, 0), jnp.zeros_like(x))


@jax.jit
def _density_points(curve: Curve, x: Array) -> Array:
    """At 0 the density is infinite or 0, as the bulk reaches it or not."""
    near_zero = jnp.exp(curve.cumulants.log_mean - 0.2 * log_max(x.dtype))
    return _on_axis(jnp.where(x == 0, near_zero, x))


@jax.jit
def _read_density(curve: Curve, x: Array, z: Array, roots: Roots) -> Array:
    _, G = _read_values(curve, z, roots)
    density = jnp.maximum(-G.imag, 0) / jnp.pi
    density = jnp.where((x == 0) & (density > 0), jnp.inf, density)
    return jnp.where(x < 0, 0, density)


@_lanes
def _density(spectrum, x):
    z = _density_points(spectrum.curve, x)
    return _read_density(spectrum.curve, x, z, _roots(spectrum.curve, z))


@jax.jit
def _above_axis(x: Array, y: Array) -> Array:
    return jax.lax.complex(*jnp.broadcast_arrays(x, y))


@jax.jit
def _read_smoothed_density(curve: Curve, z: Array, roots: Roots) -> Array:
    _, G = _read_values(curve, z, roots)
    return -G.imag / jnp.pi


@_lanes
def _smoothed_density(spectrum, z):
    return _read_smoothed_density(spectrum.curve, z, _roots(spectrum.curve, z))


def _atom_at(curve: Curve, x: Array) -> tuple[Array, Array]:
    """The mass of the atom that `x` lies on, 0 if there is none, and a point just below it, or `x`."""
    eps = jnp.finfo(x.dtype).eps
    atoms = curve.atoms()
    places = jnp.where(atoms.masses > 0, jnp.exp(jax.lax.stop_gradient(atoms.log_locations)), jnp.inf)
    nearest = jnp.argmin(jnp.abs(x[:, None] - places), axis=1)
    there = (atoms.masses[nearest] > 0) & (jnp.abs(x - places[nearest]) <= 8 * eps * places[nearest])
    below = jnp.where(there, places[nearest], 1) * (1 - curve.next_to_atoms())
    return jnp.where(there, atoms.masses[nearest], 0), jnp.where(there, below, x)


@jax.jit
def _off_atoms(curve: Curve, x: Array) -> Array:
    """The curve is singular at an atom, and certified up to some distance from it."""
    return _on_axis(_atom_at(curve, x)[1])


@jax.jit
def _read_cdf(curve: Curve, x: Array, roots: Roots) -> Array:
    point, phi, _ = curve.potential(roots.omega, roots.unknowns)
    mass, below = _atom_at(curve, x)
    up_to_atom = jnp.maximum(-point.one_plus(1).imag, 0) * jnp.where(mass > 0, 1 - below / jnp.where(mass > 0, x, 1), 0)
    cdf = 1 - (phi.imag - up_to_atom) / jnp.pi + mass
    cdf = jnp.where(roots.certified, jnp.clip(cdf, 0, 1), jnp.nan)
    return jnp.where(x < 0, 0, jnp.where(x == 0, curve.atoms().zero, cdf))


@_lanes
def _cdf(spectrum, x):
    return _read_cdf(spectrum.curve, x, _roots(spectrum.curve, _off_atoms(spectrum.curve, x)))


@jax.jit
def _read_log_potential(curve: Curve, x: Array, roots: Roots) -> Array:
    phi = curve.potential(roots.omega, roots.unknowns)[1]
    potential = jnp.where(roots.certified, phi.real, jnp.nan)
    at_zero = jnp.where(curve.atoms().zero > 0, -jnp.inf, mean_log(curve))
    return jnp.where(x == 0, at_zero, potential)


@_lanes
def _log_potential(spectrum, x):
    z = jax.lax.complex(jnp.where(x == 0, 1, x), jnp.zeros_like(x))
    return _read_log_potential(spectrum.curve, x, _roots(spectrum.curve, z))


@eqx.filter_jit
def _edges(spectrum):
    return edges(spectrum.curve, _atoms(spectrum))


def _above_p(log_x, curve, p, guess):
    """`cdf(exp(log_x)) - p`, whose root is the quantile."""
    z = _on_axis(jnp.exp(log_x))
    roots = solve(curve, z, guess)
    return 1 - curve.potential(roots.omega, roots.unknowns)[1].imag / jnp.pi - p


def _quantile(spectrum, p):
    """Newton's method on the cdf in log x, kept in a bracket that a table of the cdf between the edges gives it."""
    tiny = float(jnp.finfo(p.dtype).tiny)
    lower, upper = _edges(spectrum)
    atoms = _atoms(spectrum)
    frozen, now, ends = jax.lax.stop_gradient((spectrum, atoms, jnp.stack([lower, upper])))
    ends = ends.at[0].set(jnp.where(lower > tiny, ends[0], tiny))  # of NaN, too: the table goes as far as it can
    log_ends = jnp.log(jnp.maximum(ends, tiny))
    log_ends = log_ends.at[0].max(log_ends[1] - 0.45 * log_max(p.dtype))
    # Graded towards the upper edge: where the bulk reaches down to 0, the table spans hundreds of decades.
    span = log_ends[1] - log_ends[0]
    s = jnp.linspace(1, 0, 62, dtype=p.dtype)[1:-1]
    table = log_ends[1] - span * s ** jnp.where(span > 50, 4, 1)
    x = jnp.exp(jnp.concatenate([table, now.log_locations]))
    roots = _roots(frozen.curve, _off_atoms(frozen.curve, x))
    heights = _read_cdf(frozen.curve, x, roots)
    places = jnp.concatenate([log_ends[:1], table, log_ends[1:]])
    tabulated = roots.omega[: table.size], roots.unknowns[..., : table.size]
    slack = 64 * float(jnp.finfo(p.dtype).eps)
    top = heights[table.size :]
    level = p[..., None]
    inside = (atoms.masses > 0) & (level <= top + slack) & (level > top - atoms.masses + slack)
    on_atom = jnp.any(inside, axis=-1)
    known = on_atom | (p <= now.zero) | (p >= 1)
    quantile = _quantile_between((spectrum, places, heights[: table.size], *tabulated), jnp.where(known, _KNOWN, p))
    quantile = jnp.where(on_atom, jnp.exp(atoms.log_locations)[jnp.argmax(inside, axis=-1)], quantile)
    quantile = jnp.where(p >= 1, upper, quantile)
    return jnp.where(p <= now.zero, jnp.where(now.zero > 0, 0, lower), quantile)


_KNOWN = 2.0  # stands for a level whose quantile is known


@_lanes
@eqx.filter_jit
def _quantile_between(tabulated, p):
    spectrum, places, heights, *roots = tabulated
    dtype = p.dtype
    eps, tiny = float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).tiny)
    known = p == _KNOWN
    p = jnp.where(known, 0.5, p)
    frozen, target = jax.lax.stop_gradient((spectrum, p))
    heights = jax.lax.cummax(jnp.where(jnp.isfinite(heights), heights, 0))
    index = jnp.searchsorted(heights, target)
    heights = jnp.concatenate([frozen.mass_at_zero()[None], heights, jnp.ones(1, dtype)])
    low, high = places[index], places[index + 1]
    share = (target - heights[index]) / jnp.maximum(heights[index + 1] - heights[index], tiny)
    guess = low + (high - low) * jnp.clip(share, 0.02, 0.98)
    nearest = jnp.clip(index - (share < 0.5), 0, places.size - 3)
    omega, unknowns = (x[..., nearest] for x in roots)

    noise = 4 * eps * (1 + frozen.curve.num_layers / 16)  # of the cdf

    def correct(find, state):
        k, x, (omega, unknowns), low, high, done, _ = state
        found = find(frozen.curve, _on_axis(jnp.exp(x)), (omega, unknowns))
        point, phi, _ = frozen.curve.potential(found.omega, found.unknowns)
        per_log_x = -point.one_plus(1).imag / jnp.pi
        error = jnp.where(found.certified, 1 - phi.imag / jnp.pi - target, jnp.nan)
        low, high = jnp.where(error < 0, x, low), jnp.where(error >= 0, x, high)
        newton = x - error / jnp.maximum(per_log_x, tiny)
        rounding = 4 * eps * jnp.maximum(1, jnp.abs(x))
        inside = (newton >= low - rounding) & (newton <= high + rounding)
        # A point that is not certified tells no side: on towards one that is.
        aside = jnp.where(found.certified, 0.5 * (low + high), 0.5 * (low + x))
        new = jnp.where(done, x, jnp.where(inside, newton, aside))
        ahead = (new - x) * reciprocal(point.dz)
        ahead = jnp.where(found.certified & (magnitude(ahead) < 1), ahead, 0)
        next_guess = jnp.where(found.certified, found.omega * exponential(ahead), omega)
        roots = next_guess, jnp.where(found.certified, found.unknowns, unknowns)
        ended = (jnp.abs(new - x) <= rounding) | (jnp.abs(error) <= noise)
        done |= ended & (found.certified | (find is solve))
        return k + 1, new, roots, low, high, done, error

    def unfinished(most, state):
        k, *_, done, _ = state
        return (k < most) & ~jnp.all(done)

    # Next to the table hardly anything has to be searched for.
    state = (jnp.asarray(0), guess, (omega, unknowns), low, high, known, jnp.zeros_like(p))
    state = jax.lax.while_loop(partial(unfinished, 20), partial(correct, polish), state)
    k, x, roots, low, high, done, error = state
    state = (k, jnp.where(jnp.isnan(error), 0.5 * (low + high), x), roots, low, high, done, error)
    state = jax.lax.while_loop(partial(unfinished, 120), partial(correct, solve), state)
    _, x, (omega, unknowns), *_, error = state
    # On an atom the cdf jumps past p, and below the table's end, out of the range of floats, it cannot reach p.
    found = ~known & (jnp.abs(error) < 10 * eps**0.5)
    x = jnp.where(found, x, places[-1] + 1)  # where nothing is singular
    quantile = jnp.exp(implicit_root(_above_p, x, (spectrum.curve, p, (omega, unknowns)), found))
    return jnp.where(found, quantile, jnp.nan)
