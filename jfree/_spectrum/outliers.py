"""Single eigenvalues outside the bulk."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from .._calculus.extremes import Extremes
from .._numerics.show import number, Shown, Table

# How far outside of the bulk bounds show an eigenvalue.
_APART = 1e-4

# How far outside a predicted one is told from the end: of residual networks the theory leaves out as much, and samples
# have their largest eigenvalue farther from the end up to widths of many thousands. The end has to be known as well.
_TOLD_APART = 1e-3


class Outliers(Shown):
    """What is known of single eigenvalues outside the bulk (dimensionless). They have no mass in the limit, so that
    density, cdf, quantiles and edges know nothing of them.

    The slopes of a layer depend on its weights, through the forward pass. So the input, and the vector of ones, which
    activations with a mean add to all signals, are stretched otherwise than other vectors, and eigenvalues leave the
    bulk.

    - `bulk`: the ends of the bulk, as in `edges()`.
    - `smallest_at_most`, `largest_at_least`: bounds of the extreme eigenvalues, whether outside the bulk or not
        (Rayleigh and Ritz): how the input and the vector of ones are stretched, which is exact in the limit. The first
        is infinite where it says nothing of eigenvalues other than 0. NaN of measured networks.
    - `smallest`, `largest`: the extreme eigenvalues in the limit; the ends of the bulk where none lies more than a
        thousandth outside. NaN where not known: then there are only the bounds. Constants to derivatives.

    The extreme eigenvalues are exact for MLPs: Gaussian weights and any widths, orthogonal ones where they are square;
    and have an error of about 0.1 % for residual networks of one layer `x + phi(W x + b)` per block. They are not known
    of all others: norms, gates, convolutions, dropout, centred weights, several layers per block, measured networks; of
    activations with slopes that are not bounded; nor where the two theories disagree, those of the bounds and of these.
    The smallest one is 0 wherever the bulk reaches 0, and not known where there is mass at 0 apart from the bulk.
    """

    bulk: Float[Array, "2"]
    smallest_at_most: Float[Array, ""]
    largest_at_least: Float[Array, ""]
    smallest: Float[Array, ""]
    largest: Float[Array, ""]

    @staticmethod
    def of(
        edges: tuple[Array, Array], ritz_values: Float[Array, "2"], has_zeros: Bool[Array, ""], extremes: Extremes
    ) -> "Outliers":
        bulk, at_most = jnp.stack(edges), jnp.where(has_zeros, jnp.inf, ritz_values[0])
        smallest, largest = _predicted(lax.stop_gradient((bulk, at_most, ritz_values[1], has_zeros, extremes)))
        return Outliers(bulk, at_most, ritz_values[1], smallest, largest)

    @property
    def below(self) -> Bool[Array, ""]:
        """Whether an eigenvalue is known to lie below the bulk."""
        at_most = jnp.fmin(self.smallest, self.smallest_at_most)
        return at_most < self.bulk[0] * (1 - _APART)

    @property
    def above(self) -> Bool[Array, ""]:
        """Whether an eigenvalue is known to lie above the bulk."""
        at_least = jnp.fmax(self.largest, self.largest_at_least)
        return at_least > self.bulk[1] * (1 + _APART)

    @property
    def is_known(self) -> Bool[Array, ""]:
        """Whether both extreme eigenvalues are known, rather than bounds of them."""
        return jnp.isfinite(self.smallest) & jnp.isfinite(self.largest)

    def condition_number_at_least(self) -> Float[Array, ""]:
        """Of the matrix whose squared singular values these are, the eigenvalues outside of the bulk counted: as they
        are where they are known, by their bounds elsewhere.
        """
        smallest = jnp.where(jnp.isnan(self.smallest), jnp.minimum(self.bulk[0], self.smallest_at_most), self.smallest)
        largest = jnp.where(jnp.isnan(self.largest), jnp.maximum(self.bulk[1], self.largest_at_least), self.largest)
        return jnp.sqrt(largest / smallest)

    @property
    def words(self) -> list[str]:
        """One sentence, or none where nothing is known to lie outside (host)."""
        found = [_one(self.largest, "at least", self.largest_at_least)] if self.above else []
        found += [_one(self.smallest, "at most", self.smallest_at_most)] if self.below else []
        if not found:
            return []
        ends = f"{number(self.bulk[0])} to {number(self.bulk[1])}"
        condition, these = self.condition_number_at_least(), "these" if len(found) > 1 else "this"
        with_these = f"; with {these} it is {'about' if self.is_known else 'at least'} {number(condition)}"
        lie = "lie single eigenvalues" if len(found) > 1 else "lies a single eigenvalue"
        return [
            f"Outside of the bulk, {ends}, {lie}: {' and '.join(found)}. Edges, quantiles and the condition number are "
            f"those of the bulk{with_these if jnp.isfinite(condition) else ''}."
        ]

    def _table(self):
        none = "lies" if self.is_known else "is known to lie"
        return Table("\n".join(self.words or [f"No eigenvalue {none} outside of the bulk."]))


@jax.custom_jvp
def without_derivatives(value: Float[Array, ""], of: Float[Array, ""]) -> Float[Array, ""]:
    """An extreme eigenvalue, a constant to derivatives, that is refused where something is differentiated on which
    another value `of` the same network depends.
    """
    return value


@without_derivatives.defjvp
def _refused(primals: tuple[Array, Array], tangents: tuple[Array, Array]):
    raise ValueError(
        "`outliers` must be False where something is differentiated: single eigenvalues have no derivatives."
    )


def _one(value: Float[Array, ""], bounded: str, bound: Float[Array, ""]) -> str:
    return f"one of {bounded} {number(bound)}" if jnp.isnan(value) else f"one of about {number(value)}"


def _predicted(known: tuple[Array, Array, Array, Array, Extremes]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The smallest and the largest eigenvalue: NaN where the ends of the bulk are others than the solver's, or the
    eigenvalues are nearer to the bulk than their bounds.
    """
    bulk, at_most, at_least, has_zeros, extremes = known
    values, rounding = extremes.values, jnp.finfo(bulk.dtype).eps ** 0.4

    def outside(x: Array, of: Array, share: ArrayLike) -> Array:
        return jnp.asarray([-1, 1]) * (x / of - 1) > share

    bounds = jnp.stack([at_most, at_least])
    contradicted = outside(bounds, values, extremes.error + rounding)
    contradicted |= ~(jnp.abs(extremes.ends / bulk - 1) < _TOLD_APART)
    told = outside(values, bulk, _TOLD_APART) | outside(bounds, bulk, _APART)
    smallest, largest = jnp.where(contradicted, jnp.nan, jnp.where(told, values, bulk))
    smallest, largest = jnp.minimum(smallest, at_most), jnp.maximum(largest, at_least)  # the error of these is none
    smallest = jnp.where(has_zeros, jnp.nan, smallest)
    return jnp.where(bulk[0] == 0, 0, smallest), largest
