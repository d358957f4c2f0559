"""Single eigenvalues outside the bulk."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._numerics.show import number, Shown, Table

# How far outside of the bulk an eigenvalue is told from its end.
_APART = 1e-4


class Outliers(Shown):
    """What is known of single eigenvalues outside the bulk (dimensionless). They have no mass in the limit, so that
    density, cdf, quantiles and edges know nothing of them.

    The slopes of a layer depend on its weights, through the forward pass. So the input, and the vector of ones, which
    activations with a mean add to all signals, are stretched otherwise than other vectors. By how much is exact in the
    limit. It bounds the extreme eigenvalues (Rayleigh and Ritz), but does not say how much farther out these are, nor
    that there are none.

    - `bulk`: the ends of the bulk, as in `edges()`.
    - `smallest_at_most`, `largest_at_least`: bounds of the extreme eigenvalues, whether outside the bulk or not; the
        first is infinite where it says nothing of eigenvalues other than 0.
    """

    bulk: Float[Array, "2"]
    smallest_at_most: Float[Array, ""]
    largest_at_least: Float[Array, ""]

    @staticmethod
    def of(edges: tuple[Array, Array], ritz_values: Float[Array, "2"], has_zeros: Bool[Array, ""]) -> "Outliers":
        return Outliers(jnp.stack(edges), jnp.where(has_zeros, jnp.inf, ritz_values[0]), ritz_values[1])

    @property
    def below(self) -> Bool[Array, ""]:
        """Whether the bounds show an eigenvalue below the bulk."""
        return self.smallest_at_most < self.bulk[0] * (1 - _APART)

    @property
    def above(self) -> Bool[Array, ""]:
        """Whether the bounds show an eigenvalue above the bulk."""
        return self.largest_at_least > self.bulk[1] * (1 + _APART)

    def condition_number_at_least(self) -> Float[Array, ""]:
        """Of the matrix whose squared singular values these are, the eigenvalues outside of the bulk counted."""
        smallest = jnp.minimum(self.bulk[0], self.smallest_at_most)
        return jnp.sqrt(jnp.maximum(self.bulk[1], self.largest_at_least) / smallest)

    @property
    def words(self) -> list[str]:
        """One sentence, or none where nothing is known to lie outside (host)."""
        found = [f"one of at least {number(self.largest_at_least)}"] if self.above else []
        found += [f"one of at most {number(self.smallest_at_most)}"] if self.below else []
        if not found:
            return []
        ends = f"{number(self.bulk[0])} to {number(self.bulk[1])}"
        condition = number(self.condition_number_at_least())
        return [
            f"Outside of the bulk, {ends}, lie single eigenvalues: {' and '.join(found)}. Edges, quantiles and the "
            f"condition number are those of the bulk; with these it is at least {condition}."
        ]

    def _table(self):
        return Table("\n".join(self.words or ["No eigenvalue is known to lie outside of the bulk."]))
