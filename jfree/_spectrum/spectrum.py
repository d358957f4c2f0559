"""What is known of a limiting spectrum."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TYPE_CHECKING

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Complex, Float

from .._calculus.curve import Curve
from .._calculus.extremes import Extremes
from .._numerics.arrays import asarray, is_concrete, Reals
from .._numerics.checks import check, floats, integer, is_finite
from .._numerics.compile import quickly
from .._numerics.complex import complex_dtype
from .._numerics.show import counted, number, Shown, Table
from .._solve.solve import find_atoms
from . import reading
from .edges import edges
from .gaps import support
from .moments import log_moment, log_moments, mean_log
from .outliers import Outliers, without_derivatives
from .quantiles import quantile
from .reading import Solution

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Spectrum(Shown):
    """A limiting eigenvalue distribution `mu` on `[0, inf)`: for Jacobians, of squared singular values (dimensionless).

    Every method works under `jit`, `vmap` and `grad`, unless it says that it runs on the host, and follows the dtype
    of the network the spectrum was made from.
    """

    curve: Curve
    ritz_values: Callable[[], Float[Array, "2"]] | None = None
    extremes: Callable[[], Extremes] | None = None

    def solve(self, z: ArrayLike | Sequence[complex]) -> Solution:
        """The certified solve behind all other methods.

        **Arguments:** `z`, of any shape, `Im z >= 0`; a real `z` means the limit from above.

        **Returns:** a `Solution`, its arrays of the shape of `z`.

        **Raises:** `ValueError` if some `Im z < 0` or `z` is not finite.
        """
        z = self._complex(z, lambda z: is_finite(z) & (z.imag >= 0), "`z` must be finite, with Im z >= 0.")
        return reading.solution(self.curve, z)

    def stieltjes(self, z: ArrayLike | Sequence[complex]) -> Complex[Array, "..."]:
        """`G(z) = int mu(dt) / (z - t)`.

        **Raises:** `ValueError` if some `Im z <= 0` or `z` is not finite.
        """
        z = self._complex(z, lambda z: is_finite(z) & (z.imag > 0), "`z` must be finite, with Im z > 0.")
        return reading.solution(self.curve, z).G

    def density(self, x: Reals, smoothing: ArrayLike | None = None) -> Float[Array, "..."]:
        """The absolutely continuous part of `mu` at real `x`: `-Im G(x + i0) / pi`.

        With `smoothing = y > 0` instead `-Im G(x + iy) / pi`, the convolution of `mu`, atoms included, with a Cauchy
        law of scale `y`. NaN where the solver did not certify the point; `solve(x).result` says why.

        **Raises:** `ValueError` if some `x` is not finite or `smoothing` is not positive.
        """
        x = self._real(x)
        if smoothing is None:
            return reading.density(self.curve, x)
        y = check(
            floats("smoothing", smoothing, x.dtype), lambda y: (y > 0) & (y < np.inf), "`smoothing` must be positive."
        )
        return reading.smoothed_density(self.curve, x, y)

    def cdf(self, x: Reals) -> Float[Array, "..."]:
        """`mu([0, x])`, atoms included: `1 - Im Phi(x + i0) / pi` with `Phi' = G`; nothing is integrated.

        **Raises:** `ValueError` if some `x` is not finite.
        """
        return reading.cdf(self.curve, self._real(x))

    def log_potential(self, x: Reals) -> Float[Array, "..."]:
        """`int log|x - t| mu(dt) = Re Phi(x + i0)`; at `x = 0` it is `-inf` if there is mass at 0.

        **Raises:** `ValueError` if some `x` is not finite.
        """
        return reading.log_potential(self.curve, self._real(x))

    def quantile(self, p: Reals) -> Float[Array, "..."]:
        """The smallest `x` with `cdf(x) >= p`, the inverse of `cdf`; atoms take all `p` of their mass. Of the shape of
        `p`.

        **Raises:** `ValueError` if some `p` is outside `[0, 1]`.
        """
        p = check(floats("p", p, self._dtype), lambda p: (p >= 0) & (p <= 1), "`p` must lie in [0, 1].")
        return quantile(self.curve, p)

    def edges(self, outliers: bool = False) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """`(lower, upper)`: smallest and largest point of the support away from 0, atoms included.

        `lower` is 0 when the bulk reaches down to 0, as far as can be told. Where the density fades out without an
        edge, an end is where the mass beyond it falls below 1e5 roundings, or where the layers' laws are resolved no
        further. NaN where no point outside can be certified.

        With `outliers`, the extreme eigenvalues, single ones outside the bulk counted: `smallest` and `largest` of
        `outliers()`, NaN where these are not known.

        **Raises:** `ValueError` with `outliers`, as `outliers()` does, and where it is differentiated.
        """
        if outliers:
            found = self.outliers()
            smallest, largest = map(without_derivatives, (found.smallest, found.largest), found.bulk)
            return smallest, largest
        return edges(self.curve)

    def support(self) -> list[tuple[float, float]]:
        """The intervals `(a, b)` of the absolutely continuous part, in increasing order (host).

        **Raises:** `ValueError` under `jit` or `vmap`.
        """
        if not is_concrete(self.curve.rank):
            raise ValueError("`support` runs on the host and cannot be traced; `edges` can.")
        lower, upper = self.edges()
        return support(self.curve, find_atoms(self.curve), float(lower), float(upper))

    def atoms(self) -> tuple[Float[Array, " atoms"], Float[Array, " atoms"]]:
        """`(locations, masses)`, of shape `(atoms,)` each, zero first; empty slots have mass 0.

        Found by propagation (Belinschi 2003), not by the solver; how many slots there are depends on the network.
        """
        atoms = find_atoms(self.curve)
        locations = jnp.where(atoms.masses > 0, jnp.exp(atoms.log_locations), 0)
        return jnp.append(0, locations).astype(self._dtype), jnp.append(atoms.zero, atoms.masses)

    def mass_at_zero(self) -> Float[Array, ""]:
        """`mu({0})`."""
        return find_atoms(self.curve).zero

    def mean(self) -> Float[Array, ""]:
        """`int t mu(dt)`, by propagation."""
        return jnp.exp(self.curve.moments.log_mean)

    def variance(self) -> Float[Array, ""]:
        """`int (t - mean)^2 mu(dt)`, by propagation."""
        moments = self.curve.moments
        return jnp.exp(2 * moments.log_mean) * moments.relative_variance

    def moment(self, k: int) -> Float[Array, ""]:
        """`int t^k mu(dt)`, the trapezoid rule on a circle of curve parameters.

        **Raises:** `ValueError` if `k` is not a nonnegative integer.
        """
        k = integer("k", k, least=0)
        return jnp.ones((), self._dtype) if k == 0 else jnp.exp(log_moment(self.curve, k))

    def mean_log(self) -> Float[Array, ""]:
        """`int_{t>0} log t mu(dt) / mu((0, inf))`: twice the mean logarithm of the nonzero singular values.

        A sum over the layers, with no quadrature but those of their laws, and good to six digits. NaN where a law gives
        fewer, or nearly all mass is at 0.
        """
        return mean_log(self.curve)

    def log_variance(self) -> Float[Array, ""]:
        """`int_{t>0} (log t - mean_log)^2 mu(dt) / mu((0, inf))`: four times that of the nonzero singular values.

        A quadrature along the negative axis, where nothing is singular: it is defined and smooth whatever the spectrum,
        and good to five digits, mostly to more. NaN where it is worse.
        """
        return log_moments(self.curve)[1]

    def condition_number(self, outliers: bool = False) -> Float[Array, ""]:
        """`sqrt(upper / lower)` of `edges(outliers)`: of the matrix whose squared singular values these are, or of its
        bulk.

        **Raises:** `ValueError` with `outliers`, as `edges` does.
        """
        lower, upper = self.edges(outliers)
        return jnp.sqrt(upper / lower)

    def outliers(self) -> Outliers:
        """What is known of single eigenvalues outside the bulk of a Jacobian's spectrum, which others leave out: the
        extreme eigenvalues, where they are known, and bounds of them.

        Residual networks have them where activations have a mean, as ReLU does, which blocks add up: of 100 such blocks
        with `sigma_w^2 = 1/100` the bulk ends at 8.0, and the largest eigenvalue is 1687.

        **Raises:** `ValueError` if the spectrum is not one that `jacobian_spectrum` has made.
        """
        if self.ritz_values is None:
            raise ValueError("`outliers()` are known of Jacobian spectra, as `jacobian_spectrum` makes them.")
        ritz_values = _called(self.ritz_values)
        unknown = Extremes.unknown(self._dtype)
        extremes = unknown if self.extremes is None else _called(self.extremes)
        return Outliers.of(self.edges(), ritz_values, self.mass_at_zero() > 0, extremes)

    def learning_rate_bound(self) -> Float[Array, ""]:
        """`2 / upper edge`: for a Fisher spectrum, where gradient descent on the quadratic model turns unstable. Single
        eigenvalues above the bulk would lower it.
        """
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
        from ..plot import plot_spectrum

        return plot_spectrum(self, ax, scale, singular_values)

    def _table(self):
        if self.curve.rank.ndim:
            return None
        numbers = f"mean {number(self.mean())}, standard deviation {number(jnp.sqrt(self.variance()))}"
        layers = counted(int(self.curve.depth), "layer")
        return Table(f"Spectrum, {layers}, {self._dtype}: {numbers}")

    def _repr_png_(self) -> bytes | None:
        """Its picture, for notebooks."""
        from ..plot import as_png

        return None if self._shown() is None else as_png(self)

    @property
    def _dtype(self):
        return self.curve.rank.dtype

    def _real(self, x: Reals) -> Array:
        return check(floats("x", x, self._dtype), is_finite, "`x` must be finite.")

    def _complex(self, z: ArrayLike | Sequence[complex], allowed: Callable[[Any], Any], message: str) -> Array:
        return check(asarray(z, complex_dtype(self._dtype)), allowed, message)


@quickly(eqx.filter_jit)
def _called(method: Callable[[], Any]) -> Any:
    return method()
