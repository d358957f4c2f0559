"""What a network is to everything else: a forward pass, and a curve."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._calculus.curve import Curve
from .._calculus.extremes import Extremes
from .._calculus.operation import AbstractOperation
from .._meanfield.mean_field import MeanField
from .._numerics.compile import quickly
from .._numerics.show import Shown


class AbstractNetwork(Shown):
    """A random network in the limit of large widths."""

    @abc.abstractmethod
    def propagate(self) -> MeanField:
        """The mean-field forward pass."""

    @abc.abstractmethod
    def jacobian_curve(self, side: str) -> Curve:
        """The curve of `J^T J` (`"input"`) or `J J^T` (`"output"`)."""

    def ritz_values(self) -> Float[Array, "2"]:
        """The smallest and the largest `|J v|^2 / |v|^2` for `v` in the span of the input and the vector of ones. The
        smallest eigenvalue of `J^T J` is at most the one, the largest at least the other. Where there are fewer outputs
        than inputs, the first would be one of 0, and is infinite. NaN where they are not known.
        """
        return jnp.full(2, jnp.nan)

    def coarse(self) -> "AbstractNetwork":
        """The same network, with half the points for laws that have a choice. Away from the support, and unless small
        eigenvalues count, half of them give six digits.
        """
        return self

    def extremes(self) -> Extremes:
        """The extreme eigenvalues of `J^T J` in the limit, those outside the bulk among them, where they are known."""
        return Extremes.unknown(jnp.result_type(float))

    def padded(self) -> "AbstractNetwork":
        """The same network in arrays of one of few sizes, so that other depths find what is compiled (host)."""
        return self

    def fisher_curve(self) -> Curve:
        """The curve of the dual Fisher information `(1/N_L) J_theta J_theta^T` per sample.

        **Raises:** `ValueError` where no such curve is known.
        """
        raise ValueError(
            f"The Fisher spectrum of a {type(self).__name__} is not available: `net` must be an `MLP`, or a `Network` "
            "without skip connections."
        )


def as_network(net: object) -> AbstractNetwork:
    if not isinstance(net, AbstractNetwork):
        hint = "; `jfree.from_equinox` makes one" if isinstance(net, eqx.Module) else ""
        raise ValueError(f"`net` must be a jfree network, got {type(net).__name__}{hint}.")
    return net


def num_padded_layers(depth: int) -> int:
    """More than there are: Fisher spectra may need one more, and neutral ones cost next to nothing."""
    return 16 << max(0, (depth // 16).bit_length())


def curve_of(
    operations: tuple[AbstractOperation, ...],
    last: tuple[AbstractOperation, ...],
    input_per_output: Array,
    num_atoms: int,
    depth: ArrayLike | None = None,
) -> Curve:
    """A curve whose parameter starts at the rank that its last operation leaves, so that `omega = 0` at `z = 0`."""
    last = tuple(jax.tree.map(lambda x: x[0], operation) for operation in last)
    curve = Curve(operations, last, jnp.ones_like(input_per_output), num_atoms, depth)
    return eqx.tree_at(lambda c: c.rank, curve, curve.atoms().rank / input_per_output)


@quickly(eqx.filter_jit)
def propagate(net: AbstractNetwork) -> MeanField:
    """The mean-field forward pass of a network, in the limit of large widths (Poole et al. 2016).

    **Returns:** of shape `(layers,)` each, dimensionless: the variance `q` of the preactivations, or the mean square of
    what enters a layer of a `Network`; `phi2 = E phi(h)^2`; `chi = sigma_w^2 E phi'(h)^2`, which is 1 at the edge of
    chaos; `chi_q`, by which a layer passes changes of the variance on; and the `elasticity` of the last
    variance, of a `Network` that of its output.

    **Raises:** `ValueError` if `net` is not a network.
    """
    return as_network(net).propagate()
