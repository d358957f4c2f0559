"""The wide limit of the forward pass, layer by layer: what `propagate` returns."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._numerics.show import counted, number, runs, Shown, Table


class MeanField(Shown):
    """Per layer: `q` the variance of the preactivations, `phi2 = E phi(h)^2`, `chi = sigma_w^2 E phi'(h)^2`, and how
    variances are passed on, `chi_q = d q_{l+1} / d q_l = sigma_w^2 E[phi'(h)^2 + phi(h) phi''(h)]`, with `sigma_w` of
    the next layer, of the last as if another like it followed (Schoenholz et al. 2017, equation 5).

    With `chi_q` above 1 in layer after layer, inputs whose norms differ a little, or samples of finite width, have
    variances that differ much: the forward pass is unstable. `elasticity` is `d log q_L / d log q_l`. In a residual
    network both are those of the mean square of the stream, block by block.
    """

    q: Float[Array, " layers"]
    phi2: Float[Array, " layers"]
    chi: Float[Array, " layers"]
    chi_q: Float[Array, " layers"]
    elasticity: Float[Array, " layers"]

    def _table(self):
        if self.q.ndim > 1:
            return None
        title = f"Mean field, {counted(self.q.shape[0], 'layer')}"
        return Table(title, ("layer", *COLUMNS), runs(self.rows))

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """What tables say of each layer."""
        columns = (np.asarray(getattr(self, name)).tolist() for name in COLUMNS)
        return [tuple(map(number, row)) for row in zip(*columns, strict=True)]


COLUMNS = ("q", "phi2", "chi", "chi_q", "elasticity")


def elasticities(q: Float[Array, " layers"], chi_q: Float[Array, " layers"]) -> Float[Array, " layers"]:
    """`d log q_L / d log q_l`, from those of one layer to the next."""
    onwards = q[:-1] / q[1:] * chi_q[:-1]
    return jnp.append(jnp.cumprod(onwards[::-1])[::-1], jnp.ones_like(q[-1:]))
