"""Networks: what they are, and which operations on curves they amount to."""

import abc
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int

from ._activations import AbstractActivation, AbstractManySlopes, HardSine, Linear
from ._curve import AbstractOperation, Curve
from ._factors import num_atoms, over_layers
from ._kinds import Kinds, where_layers
from ._meanfield import forward, in_range, MeanField
from ._misc import asarray, check, common_dtype, is_concrete, Reals
from ._names import as_activation, BY_NAME as ACTIVATIONS
from ._operations import ChangeSide, Factor, point_masses, Shift
from ._show import counted, name_of, number, runs, Shown, Table
from ._weights import (
    AbstractWeights,
    as_weights,
    BY_NAME as WEIGHTS,
    centred_layers,
    Orthogonal,
    weight_factors,
)

# Every atom that survives outweighs all those that came after it together: more would lie below rounding.
_MAX_ATOMS = 48


class AbstractNetwork(Shown):
    """A random network in the limit of large widths."""

    @abc.abstractmethod
    def propagate(self) -> MeanField:
        """The mean-field forward pass."""

    @abc.abstractmethod
    def jacobian_curve(self, side: str) -> Curve:
        """The curve of `J^T J` (`"input"`) or `J J^T` (`"output"`)."""

    def padded(self) -> "AbstractNetwork":
        """The same network in arrays of one of few sizes, so that other depths find what is compiled (host)."""
        return self

    def fisher_curve(self) -> Curve:
        """The curve of the dual Fisher information `(1/N_L) J_theta J_theta^T` per sample.

        **Raises:** `ValueError` where no such curve is known.
        """
        raise ValueError(
            f"The Fisher spectrum of a {type(self).__name__} is not available: with skip connections the layers' "
            "shares in J_theta J_theta^T are no longer free of each other. `net` must be an `MLP`."
        )


class MLP(AbstractNetwork):
    """`x_l = phi_l(W_l x_{l-1} + b_l)`, `l = 1..L`, from an input with `|x_0|^2 / N_0 = q0`.

    **Arguments:**

    - `widths`: `N_0..N_L`, real-valued and positive; only their ratios matter.
    - `activation`: a name or an activation for all layers but the last, or a sequence of `L`, one per layer.
    - `weights`: `"gaussian"`, `"orthogonal"` or a weight law for all layers, or a sequence of `L`.
    - `sigma_w`, `sigma_b`: scale of weights (at fan-in) and biases, scalar or of shape `(L,)`.
    - `q0`: mean square of the input's entries.
    - `final_activation`: the last layer's; not along with a sequence of activations, of which the last is that.

    **Raises:** `ValueError` naming the argument, for wrong lengths, unknown names, and values that are negative, zero
    where that is not allowed, or not finite.
    """

    widths: Float[Array, " layers+1"]
    activation: AbstractActivation | tuple[AbstractActivation, ...]
    final_activation: AbstractActivation | None
    weights: tuple[AbstractWeights, ...]
    sigma_w: Float[Array, "..."]
    sigma_b: Float[Array, "..."]
    q0: Float[Array, ""]

    def __init__(
        self,
        widths: Reals,
        activation: str | AbstractActivation | Sequence[str | AbstractActivation] = "tanh",
        weights: str | AbstractWeights | Sequence[str | AbstractWeights] = "orthogonal",
        sigma_w: Reals = 1.0,
        sigma_b: Reals = 0.0,
        q0: ArrayLike = 1.0,
        final_activation: str | AbstractActivation = "linear",
    ):
        dtype = common_dtype(widths, sigma_w, sigma_b, q0)
        widths = floats("widths", widths, dtype)
        if widths.ndim != 1 or widths.shape[0] < 2:
            raise ValueError("`widths` must be a sequence N_0..N_L of at least two widths.")
        self.widths = check(widths, positive, "`widths` must be positive and finite.")
        depth = widths.shape[0] - 1
        if isinstance(activation, str | AbstractActivation):
            self.activation = as_activation(activation)
            self.final_activation = as_activation(final_activation, "final_activation")
        elif final_activation != "linear":
            raise ValueError("`final_activation` is the last of a sequence of activations: give one or the other.")
        else:
            self.activation = several("activation", activation, as_activation, depth, "layer")
            self.final_activation = None
        self.activation, self.final_activation = cast((self.activation, self.final_activation), dtype)
        self.weights = weight_laws(weights, depth, "layer")
        self.sigma_w = _per_layer("sigma_w", floats("sigma_w", sigma_w, dtype), depth, positive, "positive")
        self.sigma_b = _per_layer("sigma_b", floats("sigma_b", sigma_b, dtype), depth, nonnegative, "nonnegative")
        self.q0 = scalar("q0", q0, dtype, positive, "positive and finite")

    @property
    def depth(self) -> int:
        """The number of layers, `L`."""
        return self.widths.shape[-1] - 1

    @property
    def activations(self) -> tuple[AbstractActivation, ...]:
        """One activation per layer."""
        if isinstance(self.activation, tuple):
            return self.activation
        assert self.final_activation is not None
        return (self.activation,) * (self.depth - 1) + (self.final_activation,)

    @property
    def scales(self) -> tuple[Array, Array]:
        """`sigma_w` and `sigma_b` of every layer, of shape `(L,)`."""
        return jnp.broadcast_to(self.sigma_w, (self.depth,)), jnp.broadcast_to(self.sigma_b, (self.depth,))

    def propagate(self) -> MeanField:
        return MLPLayers.of(self).propagate()

    def jacobian_curve(self, side: str) -> Curve:
        return MLPLayers.of(self).jacobian_curve(side)

    def fisher_curve(self) -> Curve:
        missing = 0 if isinstance(self.activations[-1], Linear | HardSine) else 1  # for the last slopes
        return MLPLayers.of(self, missing).fisher_curve().whole()

    def padded(self) -> "MLPLayers":
        return MLPLayers.of(self, num_padded_layers(self.depth) - self.depth)

    def _table(self):
        if self.widths.ndim > 1:
            return None
        layers = zip(
            (f"{number(a)} -> {number(b)}" for a, b in itertools.pairwise(self.widths.tolist())),
            (name_of(activation, ACTIVATIONS) for activation in self.activations),
            (name_of(law, WEIGHTS) for law in self.weights),
            *(map(number, scale.tolist()) for scale in self.scales),
            strict=True,
        )
        header = ("layer", "widths", "activation", "weights", "sigma_w", "sigma_b")
        return Table(f"MLP, {counted(self.depth, 'layer')}, q0 = {number(self.q0)}", header, runs([*layers]))


class MLPLayers(AbstractNetwork):
    """An MLP, layer by layer; those from `depth` on, if there is one, are the identity."""

    widths: Float[Array, " layers+1"]
    activations: Kinds[AbstractActivation]
    weights: Kinds[AbstractWeights]
    sigma_w: Float[Array, " layers"]
    sigma_b: Float[Array, " layers"]
    q0: Float[Array, ""]
    depth: Int[Array | np.ndarray, ""] | None
    refine: int = eqx.field(static=True)

    @staticmethod
    def of(net: MLP, missing: int = 0) -> "MLPLayers":
        """With so many neutral layers behind the last."""
        return MLPLayers(
            widths=extended(net.widths, net.depth + 1, missing),
            activations=Kinds.of((*net.activations, *(Linear(),) * missing)),
            weights=Kinds.of((*net.weights, *(Orthogonal(),) * missing)),
            sigma_w=extended(net.sigma_w, net.depth, missing, 1.0),
            sigma_b=extended(net.sigma_b, net.depth, missing, 0.0),
            q0=net.q0,
            depth=np.asarray(net.depth) if missing else None,
            refine=4 if sum(isinstance(a, AbstractManySlopes) for a in net.activations) == 1 else 1,
        )

    def propagate(self) -> MeanField:
        return forward(self.activations, self.sigma_w, self.sigma_b, self.q0, centred_layers(self.weights))

    def jacobian_curve(self, side: str) -> Curve:
        ratio = self.widths[:-1] / self.widths[1:]
        slopes = slope_factors(self.activations, self.propagate().q, self.refine)
        operations = (*weight_factors(self.weights, ratio, self.sigma_w), ChangeSide(ratio), *slopes)
        last = (ChangeSide(self.widths[-1:] / self.widths[0]),) if side == "input" else ()
        per_output = jnp.prod(ratio) if side == "output" else jnp.ones_like(ratio[0])
        return curve_of(operations, last, per_output, max(2, slope_atoms(self.activations)), self.depth)

    def fisher_curve(self) -> Curve:
        """`H_l = W_l D_{l-1} H_{l-1} D_{l-1} W_l^T + a_l I`, `a_l = (N_{l-1} / N_L) E x_{l-1}^2`, and `D_L` if it is
        not 1: the Jacobian's layers, with shifts (Hayase and Karakida, Section 3; Collins and Hayase, Corollary 5.2).
        """
        layer = jnp.arange(self.sigma_w.size)
        depth = self.sigma_w.size if self.depth is None else self.depth
        ratio, field = self.widths[:-1] / self.widths[1:], self.propagate()
        amount = self.widths[:-1] / self.widths[-1] * jnp.append(self.q0, field.phi2[:-1])
        amount = jnp.where(layer < depth, amount, 0)

        # What the first layers add to the mean may be less than a rounding of it: the last of these starts it all,
        # from half of what it adds to the other half.
        frozen, log_chi = jax.lax.stop_gradient((amount, jnp.log(field.chi)))
        later = jnp.cumsum(log_chi[::-1])[::-1] - log_chi
        log_scale = jax.lax.stop_gradient(2 * jnp.log(self.sigma_w))
        log_share = jax.lax.cumlogsumexp(jnp.log(frozen) + log_chi - log_scale + later)
        first = jnp.sum(log_share < log_share[-1] + 2 * jnp.log(jnp.finfo(ratio.dtype).eps))
        first = jnp.minimum(first, depth - 1)

        weighted = (layer > first) & (layer < depth)
        weights = weight_factors(self.weights, ratio, self.sigma_w)
        starts = point_masses(jnp.where(layer == first, amount / 2, 1), max(w.num_atoms for w in weights))
        explicit, *others = weights if isinstance(weights[0], Factor) else (starts, *weights)
        # A layer begins with the slopes of the one before.
        q = jnp.append(field.q[:1], field.q[:-1])
        slopes = slope_factors(self.activations.after(Linear()), q, self.refine)
        operations = (
            *(where_layers(layer > first, slope, slope.neutral()) for slope in slopes),
            where_layers(weighted, explicit, starts),
            *(where_layers(weighted, factor, factor.neutral()) for factor in others),
            ChangeSide(jnp.where(weighted, ratio, 1)),
            Shift(jnp.where(weighted, amount, jnp.where(layer == first, amount / 2, 0))),
        )
        rows = self.sigma_w.size - (self.depth is not None)
        num_atoms = max(slope_atoms(self.activations), min(num_padded_layers(rows), _MAX_ATOMS))
        return Curve(operations, (), jnp.ones_like(ratio[0]), num_atoms, self._fisher_depth)

    @property
    def _fisher_depth(self) -> ArrayLike | None:
        """The last slopes are a layer of their own, if they are not 1."""
        if self.depth is None:
            return None
        last, members = jnp.asarray(self.activations.kind)[self.depth - 1], self.activations.members
        ones = [k for k, member in enumerate(members) if isinstance(member, Linear | HardSine)]
        return self.depth + 1 - sum(last == k for k in ones)


def extended(x: Array, number: int, missing: int, value: float | None = None) -> Array:
    """`number` rows, of which one may stand for all, and as many as are missing, of a value or like the last; on the
    host where they are known.
    """
    if not is_concrete(x):
        return _extended(x, number, missing, value)
    return _rows(np, np.asarray(x), number, missing, value)


def _rows(numbers: Any, x: Any, number: int, missing: int, value: float | None) -> Any:
    rows = x if x.ndim else numbers.broadcast_to(x, number)
    if not missing:
        return rows
    shape = (missing, *rows.shape[1:])
    rest = numbers.broadcast_to(rows[-1:], shape) if value is None else numbers.full(shape, value, rows.dtype)
    return numbers.concatenate([rows, rest])


_extended = jax.jit(partial(_rows, jnp), static_argnums=(1, 2, 3))


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


def slope_atoms(activations: Kinds[AbstractActivation]) -> int:
    q = jnp.ones(activations.kind.size)
    return num_atoms(activations, lambda phi, q: phi.slope_factor(q), q)


def slope_factors(
    activations: Kinds[AbstractActivation], q: Float[Array, " layers"], refine: int
) -> tuple[AbstractOperation, ...]:
    """The free factors `D_l^2`. Layers with two slopes are explicit; the others take their law's unknown.

    In a network that has both, every layer has both factors, one of them a point mass at 1. Activations of slope 1
    have none.
    """
    return over_layers(activations, lambda phi, q: phi.slope_factor(q, refine), in_range(q))


def positive(x: Array | np.ndarray) -> Array | np.ndarray:
    return (x > 0) & (x < np.inf)


def nonnegative(x: Array | np.ndarray) -> Array | np.ndarray:
    return (x >= 0) & (x < np.inf)


def cast(tree: Any, dtype: DTypeLike):
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, tree)


def several(name: str, values: Any, parse: Callable[[Any], Any], number: int, unit: str) -> tuple[Any, ...]:
    """Parses a sequence of one value per layer, or block."""
    if not isinstance(values, Sequence | np.ndarray):
        hint = " `jfree.activations.FromFunction` makes an activation of a function." if callable(values) else ""
        raise ValueError(f"`{name}` must be one, or a sequence with one per {unit}, got {values!r}.{hint}")
    if len(values) != number:
        raise ValueError(f"`{name}` must be one, or one per {unit}: {number}, got {len(values)}.")
    return tuple(parse(value) for value in values)


def floats(name: str, value: Reals, dtype: DTypeLike) -> Array:
    try:
        if jnp.issubdtype(getattr(value, "dtype", dtype), jnp.complexfloating):
            raise TypeError
        return asarray(value, dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"`{name}` must be numbers, got {value!r}.") from error


def scalar(name: str, value: ArrayLike, dtype: DTypeLike, allowed: Callable[[Any], Any], adjective: str) -> Array:
    array = floats(name, value, dtype)
    if array.ndim:
        raise ValueError(f"`{name}` must be a scalar, got shape {array.shape}.")
    return check(array, allowed, f"`{name}` must be {adjective}.")


def _per_layer(name: str, value: Array, depth: int, allowed: Callable[[Any], Any], adjective: str) -> Array:
    if value.shape not in ((), (depth,)):
        raise ValueError(f"`{name}` must be a scalar or of shape ({depth},), one per layer, got {value.shape}.")
    return check(value, allowed, f"`{name}` must be {adjective} and finite.")


def weight_laws(
    weights: str | AbstractWeights | Sequence[str | AbstractWeights], number: int, unit: str
) -> tuple[AbstractWeights, ...]:
    if isinstance(weights, str | AbstractWeights):
        return (as_weights(weights),) * number
    return several("weights", weights, as_weights, number, unit)


@eqx.filter_jit
def propagate(net: AbstractNetwork) -> MeanField:
    """The mean-field forward pass of a network, in the limit of large widths (Poole et al. 2016).

    **Returns:** of shape `(layers,)` each the variance `q` of the preactivations, `phi2 = E phi(h)^2`, and
    `chi = sigma_w^2 E phi'(h)^2`, which is 1 at the edge of chaos (dimensionless).

    **Raises:** `ValueError` if `net` is not a network.
    """
    return as_network(net).propagate()
