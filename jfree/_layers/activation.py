"""Activations, entry by entry."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .._calculus.factor import Factor, point_mass
from .._calculus.law_factor import LawFactor
from .._calculus.operation import AbstractOperation
from .._meanfield.moments import first_moment, in_range, second_moment
from .._numerics.arrays import inexact_asarray
from .._numerics.show import name_of
from ..activations._base import AbstractActivation, AbstractManySlopes, AbstractTwoSlopes
from ..activations._names import as_activation, BY_NAME as ACTIVATIONS
from .layer import AbstractLayer, Entries, python_number, Signal


class Activation(AbstractLayer):
    """`phi(x)`, entry by entry, behind weights.

    **Arguments:** a name or an activation of `jfree.activations`.

    **Raises:** `ValueError` for an unknown name.
    """

    activation: AbstractActivation
    keep: Float[Array, ""] | None

    def __init__(self, activation: str | AbstractActivation, *, keep: ArrayLike | None = None):
        self.activation = as_activation(activation)
        self.keep = None if keep is None else inexact_asarray(keep)

    @staticmethod
    def given(activation: AbstractActivation) -> "Activation":
        """One or many."""
        return Activation(activation)

    @property
    def num_laws(self) -> int:
        if isinstance(self.activation, AbstractTwoSlopes | AbstractManySlopes):
            return int(isinstance(self.activation, AbstractManySlopes))
        factor = jax.eval_shape(lambda phi: phi.slope_factor(jnp.ones(())), self.activation)
        return int(isinstance(factor, LawFactor))

    def receive(self, entries: Entries) -> Entries:
        if not entries.gaussian:
            raise ValueError(
                "`layers`: an `Activation` must follow weights, such as `Dense`, with at most scales, and norms whose "
                "offset is known to be 0, between them: its input has to be Gaussian of mean 0. It may follow "
                "a sum whose terms all come out of weights, or stand in a branch, as in `x + W phi(V x)`."
            )
        return Entries(gaussian=False, bent=True)

    def dropped(self, rate: Array) -> "Activation":
        """With a share of its entries set to 0: one law, since two that act entry by entry are not free."""
        return Activation(self.activation, keep=(1 - rate) * (1 if self.keep is None else self.keep))

    def forward(self, signal: Signal) -> Signal:
        keep = 1 if self.keep is None else self.keep
        square = second_moment(self.activation, signal.square) / keep
        return signal.passed(square, lambda _: first_moment(self.activation, signal.square))

    def operations(self, signal: Signal, refine: float) -> tuple[AbstractOperation | None, ...]:
        factor = self.activation.slope_factor(in_range(signal.square), refine)
        if self.keep is None:
            return (factor,)
        one = jnp.ones_like(signal.square)
        factor = point_mass(one) if factor is None else factor
        if not isinstance(factor, Factor | LawFactor):
            raise ValueError(f"`Dropout` must not follow an activation whose slopes are a {type(factor).__name__}.")
        return (factor.masked(self.keep),)

    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> Callable[..., Array]:
        values = eqx.nn.Lambda(self.activation)
        return (
            values if self.keep is None else eqx.nn.Sequential([values, eqx.nn.Dropout(python_number(1 - self.keep))])
        )

    def row(self) -> tuple[str, str]:
        return "activation", name_of(self.activation, ACTIVATIONS)
