"""Layers over layers: the arrays that all networks come to."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._calculus.curve import Curve
from .._calculus.extremes import Extremes
from .._calculus.factor import point_mass
from .._calculus.operation import AbstractOperation
from .._calculus.side_and_shift import ChangeSide, Shift
from .._layers.activation import Activation
from .._layers.dense import Dense
from .._layers.dropout import Dropout
from .._layers.kinds import Kinds, stacked, where_layers
from .._layers.layer import AbstractLayer, Change, log_growth, Signal
from .._meanfield.mean_field import MeanField
from .._numerics.arrays import HostArray
from .abstract import AbstractNetwork, curve_of, num_padded_layers
from .factors import over_layers
from .outliers import extremes_of_chain, extremes_of_stream
from .rounds import after_round, after_rounds, all_forward, along_basis, parts_of, signal_of, state_of

# So many layers are compiled one by one, if not more than one of them is costly, rather than as rounds of a loop.
_FEW = 8

# Times the points of a law that is the only one: nothing else smooths its quadrature, and it costs little.
_REFINED = 4

# More atoms of a Fisher spectrum than this lie below rounding.
_MAX_ATOMS = 48


class StackedNetwork(AbstractNetwork):
    """Layers in rounds: every round has a place for each class of layers, where one may be missing.

    Leaves of all layers of a class have an axis over rounds, so that programs do not grow with depth. In the rounds
    from `depth` on, if there are more, all are missing. `widths` are those that come into every place. `order` says
    which round and place the layers have one after the other, where that is known. If all rounds are `alike`, the
    curve is that of one of them, as often as there are rounds. Of the input's `positions` one is left in the end.
    """

    places: tuple[Kinds[AbstractLayer], ...]
    widths: tuple[Float[HostArray, "... rounds"], ...]
    last_width: Float[HostArray, "..."]
    q0: Float[HostArray, "..."]
    mean0: Float[HostArray, "..."]
    depth: Int[Array | np.ndarray, ""] | None
    order: tuple[tuple[int, int], ...] | None = eqx.field(static=True)
    refine: float = eqx.field(static=True)
    reads_mean: bool = eqx.field(static=True)
    alike: bool = eqx.field(static=True)
    positions: int = eqx.field(static=True)

    @staticmethod
    def of(
        layers: Sequence[AbstractLayer],
        width: HostArray,
        q0: HostArray,
        mean0: HostArray,
        pad: bool = False,
        one_round: bool = False,
    ) -> "StackedNetwork":
        """Of layers one after the other, with missing rounds behind the last if it is to be padded; in `one_round`,
        which has a place for each, if they are few.
        """
        classes = [type(layer) for layer in layers]
        classes = classes if one_round and _are_few(layers) else list(dict.fromkeys(classes))
        order, rounds, place = [], 0, -1
        for layer in layers:
            later = [k for k, kind in enumerate(classes) if kind is type(layer) and k > place]
            rounds += not later
            place = later[0] if later else classes.index(type(layer))
            order.append((rounds, place))
        depth = rounds + 1
        number_of_rounds = num_padded_layers(depth) if pad else depth
        table: list[list[AbstractLayer | None]] = [[None] * number_of_rounds for _ in classes]
        for layer, (own_round, place) in zip(layers, order, strict=True):
            table[place][own_round] = layer
        entering: list[list[Array]] = [[] for _ in classes]
        for layers_of_round in zip(*table, strict=True):
            for place, layer in enumerate(layers_of_round):
                entering[place].append(width)
                width = width if layer is None else layer.width_behind(width)
        return StackedNetwork.made(
            places=tuple(map(Kinds.of, table)),
            widths=tuple(map(stacked, entering)),
            last_width=width,
            q0=q0,
            mean0=mean0,
            depth=depth if pad else None,
            order=None if pad else tuple(order),
            positions=math.prod(layer.positions_per_position for layer in layers),
        )

    @staticmethod
    def made(
        places: tuple[Kinds[AbstractLayer], ...],
        depth: int | None,
        order: tuple[tuple[int, int], ...] | None,
        widths: tuple[HostArray, ...],
        last_width: HostArray,
        q0: HostArray,
        mean0: HostArray,
        refine: float | None = None,
        alike: bool = False,
        positions: int = 1,
    ) -> "StackedNetwork":
        """With what follows from its places."""
        refine = refine or (_REFINED if sum(map(_num_laws, places)) == 1 else 1)
        if depth is None:  # not to be compiled at once: custom rules take no constants of the host
            places, widths, q0, mean0 = jax.tree.map(jnp.asarray, (places, widths, q0, mean0))
        return StackedNetwork(
            places=places,
            widths=widths,
            last_width=last_width,
            q0=q0,
            mean0=mean0,
            depth=None if depth is None else np.asarray(depth),
            order=order,
            refine=refine,
            reads_mean=any(layer.reads_mean for place in places for layer in place.members),
            alike=alike,
            positions=positions,
        )

    def signals(self) -> tuple[Signal, ...]:
        """What comes into every place of every round."""
        start = jnp.stack([self.q0, self.mean0]) if self.reads_mean else self.q0[None]
        states = start[None]
        if self.places[0].kind.size > 1:
            states = jnp.concatenate([states, after_rounds(self.places, start)[:-1]])
        found = [jax.vmap(signal_of)(states, self.widths[0])]
        for place, width in zip(self.places[:-1], self.widths[1:], strict=True):
            found.append(eqx.tree_at(lambda s: s.width, all_forward(place, found[-1]), width))
        return tuple(found)

    def after_rounds(self, signals: tuple[Signal, ...]) -> Signal:
        """What goes out of every round, but for the widths."""
        return all_forward(self.places[-1], signals[-1])

    def end(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean square and mean of the network's output, whether a layer reads the mean or not."""
        start = jnp.stack([self.q0, self.mean0])
        if self.places[0].kind.size == 1:
            square, mean = after_round(start, jax.tree.map(lambda x: x[0], self.places))
        else:
            square, mean = after_rounds(self.places, start)[-1]
        return square, mean

    def change(self, change: Change) -> Change:
        """How what goes out changes, as what comes in does."""

        def one(state: tuple[Array, ...], rounds: tuple[Any, ...]) -> tuple[tuple[Array, ...], None]:
            for place, width in zip(*rounds, strict=True):

                def behind(layer: AbstractLayer, *state: Array, width: Array = width) -> tuple[Array, ...]:
                    signal = Signal(width, *state[:2])
                    new, change = layer.forward(signal), layer.change(signal, Change(*state[2:]))
                    assert new.mean is not None
                    return new.square, new.mean, change.overlap, change.mean, change.square

                new = place.here(behind)(*state)
                if place.gaps:
                    new = tuple(jnp.where(place.there, x, old) for x, old in zip(new, state, strict=True))
                state = new
            return state, None

        rounds = jax.tree.map(jnp.asarray, (self.places, self.widths))
        state = tuple(map(jnp.asarray, (self.q0, self.mean0, change.overlap, change.mean, change.square)))
        if self.places[0].kind.size == 1:
            state, _ = one(state, jax.tree.map(lambda x: x[0], rounds))
        else:
            state, _ = jax.lax.scan(one, state, rounds)
        return Change(*state[2:])

    def ritz_values(self) -> Float[Array, "2"]:
        q0, mean0 = self.q0, self.mean0
        # Along the input, and along what is left of the vector of ones.
        share = mean0 / jnp.sqrt(q0)
        rest = jnp.sqrt(jnp.maximum(1 - jnp.square(share), 0))
        weights = jnp.asarray([[1, 0], [0, 1], [0.5**0.5, 0.5**0.5]], q0.dtype)
        overlaps, means = weights @ jnp.stack([jnp.sqrt(q0), jnp.zeros_like(q0)]), weights @ jnp.stack([share, rest])
        changes = jax.vmap(self.change)(Change(overlaps, means, jnp.ones_like(means)))
        per_output = self.last_width / (self.positions * self.widths[0][0])
        along, other, between = changes.square * per_output
        between = between - (along + other) / 2
        middle, half = (along + other) / 2, jnp.hypot((along - other) / 2, between)
        narrower = per_output * (1 + jnp.finfo(q0.dtype).eps ** 0.5) < 1
        return jnp.stack([jnp.where(narrower, jnp.inf, jnp.maximum(middle - half, 0)), middle + half])

    def extremes(self) -> Extremes:
        first, *others = self.places
        stream = self.signals()[0]
        if self.positions != 1 or len(others) > 1:
            return Extremes.unknown(self.q0.dtype)
        branches = [branch for layer in first.members if (branch := layer.bent_branch()) is not None]
        if others or len(branches) < len(first.members):
            return extremes_of_chain(first, others[0] if others else None, stream.square, stream.width)
        weights, activations = (
            parts[0] if isinstance(parts[0], Kinds) else Kinds(parts, first.kind, first.gaps)
            for parts in zip(*branches, strict=True)
        )
        assert stream.mean is not None
        return extremes_of_stream(weights, activations, stream.square, stream.mean)

    def operations(
        self, signals: tuple[Signal, ...], refine: float | None = None
    ) -> list[tuple[AbstractOperation, ...]]:
        """Of every place, over all rounds."""
        refine = refine or self.refine
        return [_of_place(place, signal, refine) for place, signal in zip(self.places, signals, strict=True)]

    def propagate(self) -> MeanField:
        signals = self.signals()
        log_gains = [
            _log_gain(found, signal.square) for found, signal in zip(self.operations(signals), signals, strict=True)
        ]
        slopes = self.slopes(signals)

        def before(onwards: Array, slope: Array) -> tuple[Array, Array]:
            onwards = onwards @ slope
            return onwards, onwards

        last_first = slopes.reshape(-1, *slopes.shape[2:])[::-1]
        start = jnp.zeros_like(last_first[0, 0]).at[0].set(1)
        onwards = jax.lax.scan(before, start, last_first)[1][::-1, 0].reshape(slopes.shape[:2])
        assert self.order is not None
        rows = tuple(np.asarray(self.order).T)
        square, log_gain = (jnp.stack(x, 1)[rows] for x in ([s.square for s in signals], log_gains))
        phi2 = jnp.append(square[1:], self.after_rounds(signals).square[-1])
        elasticity = onwards[rows] * square / phi2[-1]
        return MeanField(q=square, phi2=phi2, chi=jnp.exp(log_gain), chi_q=slopes[rows][:, 0, 0], elasticity=elasticity)

    def slopes(self, signals: tuple[Signal, ...]) -> Float[Array, "rounds places moments moments"]:
        """Derivatives of mean square, and mean if it is read, behind all places with respect to those before."""
        found = []
        for place, signal in zip(self.places, signals, strict=True):
            states = jax.vmap(state_of)(signal)

            def behind(states: Array, place: Kinds[AbstractLayer] = place, signal: Signal = signal) -> Array:
                return jax.vmap(state_of)(all_forward(place, jax.vmap(signal_of)(states, signal.width)))

            basis = jnp.eye(states.shape[1], dtype=states.dtype)
            found.append(along_basis(behind, states, basis))
        return jnp.stack(found, 1)

    def coarse(self) -> "StackedNetwork":
        return dataclasses.replace(self, refine=self.refine / 2)

    def jacobian_curve(self, side: str) -> Curve:
        signals = self.signals()
        operations = [operation for found in self.operations(signals) for operation in found]
        per_output = self.positions * self.widths[0][0] / self.last_width
        back = (ChangeSide(1 / per_output[None]),) if side == "input" else ()
        per_output = per_output if side == "output" else jnp.ones_like(per_output)
        depth = self.depth
        if self.alike:
            operations, depth = [operation.together() for operation in operations], None
        num_atoms = max(2, *(operation.num_atoms for operation in operations))
        return curve_of(tuple(operations), back, per_output, num_atoms, depth)

    def fisher_curve(self) -> Curve:
        """`H -> W H W^T + a I` at all weights, `a` the mean square of their input times `N_in / N_L`; `H -> J H J^T`
        elsewhere.
        """
        dense = [k for k, place in enumerate(self.places) if isinstance(place.members[0], Dense)]
        check_fisher([layer for place in self.places for layer in place.members])
        if len(dense) != 1:
            raise ValueError("`net` must have weights to have a Fisher spectrum.")
        (place,) = dense
        signals = self.signals()
        operations = self.operations(signals)
        there = self.places[place].there
        amount = jnp.where(there, signals[place].width / self.last_width * signals[place].square, 0)

        first = self._first_that_counts(operations, place, amount)
        rounds = jnp.arange(amount.size)
        half = amount / 2
        unit = half[first]
        found: list[AbstractOperation] = []
        for k, mine in enumerate(operations):
            counts = rounds > first if k <= place else rounds >= first
            found += [where_layers(counts, operation, operation.neutral()) for operation in mine]
            if k == place:
                shift = jnp.where(counts, amount, jnp.where(rounds == first, half, 0)) / unit
                found.append(Shift(shift))
        rounds_there = amount.size if self.depth is not None else num_padded_layers(amount.size)
        num_atoms = max(*(operation.num_atoms for operation in found), min(rounds_there, _MAX_ATOMS))
        return Curve(tuple(found), (point_mass(unit),), jnp.ones_like(self.q0), num_atoms, self.depth)

    def _first_that_counts(
        self, operations: list[tuple[AbstractOperation, ...]], place: int, amount: Float[Array, " rounds"]
    ) -> Array:
        """The first round to start with: what earlier weights add to the mean may be less than a rounding of it. Half
        of what its own add is a multiple of the identity, which starts it all, and to that comes the other half.
        """
        gains = [jax.lax.stop_gradient(_log_gain(found, amount)) for found in operations]
        behind = sum(gains[place + 1 :], jnp.zeros_like(amount))
        total = sum(gains[1:], gains[0])
        later = jnp.cumsum(total[::-1])[::-1] - total
        frozen = jax.lax.stop_gradient(amount)
        log_share = jnp.where(frozen > 0, jnp.log(jnp.where(frozen > 0, frozen, 1)) + behind + later, -jnp.inf)
        log_share = jax.lax.cumlogsumexp(log_share)
        first = jnp.sum(log_share < log_share[-1] + 2 * jnp.log(jnp.finfo(amount.dtype).eps))
        last_weights = jnp.max(jnp.where(self.places[place].there, jnp.arange(amount.size), 0))
        return jnp.minimum(first, last_weights)


def check_fisher(layers: Sequence[AbstractLayer]) -> None:
    """**Raises:** `ValueError` if the Fisher spectrum of a network of these layers is not known."""
    if any(layer.skips for layer in layers):
        raise ValueError(
            "The Fisher spectrum of a network with skip connections is not available: the layers' shares in "
            "J_theta J_theta^T are no longer free of each other. `net` must be an `MLP`, or a `Network` without "
            "`Residual`."
        )
    if any(layer.has_weights and not isinstance(layer, Dense) for layer in layers):
        raise ValueError("The Fisher spectrum of a network is available where all its weights are `Dense` layers.")


def unrolled(layers: Sequence[AbstractLayer]) -> list[AbstractLayer]:
    """With those that stand for several written out."""
    return [one for layer in layers for one in layer.unrolled()]


def joined(layers: Sequence[AbstractLayer]) -> list[AbstractLayer]:
    """Layers one after the other, those that act as one in one."""
    found: list[AbstractLayer] = []
    for layer in unrolled(layers):
        last = found[-1] if found else None
        if isinstance(layer, Dropout) and isinstance(last, Activation):
            found[-1] = last.dropped(layer.rate)
        else:
            found.append(layer)
    return found


def _are_few(layers: Sequence[AbstractLayer]) -> bool:
    return len(layers) <= _FEW and sum(layer.num_laws > 0 or layer.skips for layer in layers) <= 1


def _of_place(place: Kinds[AbstractLayer], signals: Signal, refine: float) -> tuple[AbstractOperation, ...]:
    """Operations of all rounds, one after the other."""

    def given(layer: AbstractLayer, *at: Array) -> tuple[AbstractOperation | None, ...]:
        return layer.operations(Signal(*at), refine)

    return over_layers(place, given, *parts_of(signals))


def _num_laws(place: Kinds[AbstractLayer]) -> int:
    """How many laws without an elementary S-transform all layers of a place bring."""
    first = (jax.tree.map(lambda x: x[0], member) for member in place.members)
    return sum(layer.num_laws * int(np.sum(place.kind == k)) for k, layer in enumerate(first))


def _log_gain(operations: tuple[AbstractOperation, ...], like: Float[Array, " rounds"]) -> Float[Array, " rounds"]:
    """Of all rounds, the logarithm of the mean of the operations of one place."""
    if not operations:
        return jnp.zeros_like(like)
    return jax.vmap(lambda *operations: log_growth(operations, jnp.zeros((), like.dtype)))(*operations)
