"""Convolutions."""

import abc
import math
from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .._numerics.checks import integer
from .._numerics.show import name_of, number
from .dense import AbstractWeighted, draw
from .layer import checked_positive, sampled_size
from .weights import AbstractWeights, BY_NAME as WEIGHTS, Gaussian, Orthogonal


class AbstractConv(AbstractWeighted):
    """Weights that see several positions of all channels. Vectors hold all channels, each with all its positions, the
    last ones next to each other.

    Without `positions` the widths of a network are channels: units at one position, and all positions are alike. With
    them widths count the units at all positions, which other layers may tell from each other.
    """

    size: tuple[int, ...] = eqx.field(static=True)
    positions: tuple[int, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        channels: ArrayLike,
        size: int | Sequence[int],
        weights: str | AbstractWeights,
        sigma_w: ArrayLike,
        sigma_b: ArrayLike,
        positions: int | Sequence[int] | None,
    ):
        name, kind = self._size_name, type(self).__name__
        sizes = tuple(size) if isinstance(size, Sequence) else (size,)
        self.positions = None
        if positions is not None:
            several = isinstance(positions, Sequence)
            self.positions = tuple(integer("positions", n) for n in (positions if several else (positions,)))
            sizes = sizes if isinstance(size, Sequence) else sizes * len(self.positions)
            if len(sizes) != len(self.positions):
                axes = len(self.positions)
                raise ValueError(f"`{name}` must be an integer, or {axes} as `positions`, got {size!r}.")
        self.size = tuple(integer(name, n) for n in sizes)
        super().__init__(checked_positive("channels", channels) * self._num_positions, weights, sigma_w, sigma_b)
        if not isinstance(self.weights, Gaussian | Orthogonal):
            raise ValueError(f"`weights` of a `{kind}` must be Gaussian or orthogonal, got {self.weights!r}.")

    _size_name: ClassVar[str]

    @property
    def _num_positions(self) -> int:
        return math.prod(self.positions or ())

    @property
    def channels(self) -> Float[Array, ""]:
        """How many behind it."""
        return self.width / self._num_positions

    @abc.abstractmethod
    def at(self, positions: tuple[int, ...]) -> "AbstractConv":
        """The same layer with so many positions behind it."""

    def _channels_in(self, size: int, positions: int) -> int:
        channels, rest = divmod(size, positions)
        if rest:
            kind = type(self).__name__
            raise ValueError(f"`positions` of a `{kind}` are {self.positions}: {size} units are no multiple of them.")
        return channels

    def _known_positions(self) -> tuple[int, ...]:
        if self.positions is None:
            raise ValueError(f"`positions` of a `{type(self).__name__}` must be given to make a model of it.")
        return self.positions

    def row(self) -> tuple[str, str]:
        scales = f"sigma_w {number(self.sigma_w)}, sigma_b {number(self.sigma_b)}"
        sizes = f"{self._size_name} {' x '.join(map(str, self.size))}"
        if self.positions is not None:
            sizes += f", {' x '.join(map(str, self.positions))} positions"
        return self._row_name, f"{number(self.channels)} channels, {sizes}, {name_of(self.weights, WEIGHTS)}, {scales}"

    _row_name: ClassVar[str]


class Conv(AbstractConv):
    """A convolution of stride 1 with circular padding.

    In the limit of many channels the spectrum is that of dense layers: by translation invariance all positions are
    alike. Gaussian weights have entries of mean square `sigma_w^2 / N`, `N` being the kernel's size times the channels
    that come in; orthogonal ones are delta-orthogonal (Xiao et al. 2018): 0 but for the middle of the kernel.

    **Arguments:**

    - `channels`: how many behind it.
    - `kernel`: its size along each axis; an integer for one axis, or for all of `positions`.
    - `weights`, `sigma_w`, `sigma_b`: as of `Dense`.
    - `positions`: how many along each axis, before and behind it; an integer for one axis. Where no layer has any,
        widths are channels, dense layers act on each position alone, and samples take twice as many as the largest
        kernel.

    **Raises:** `ValueError` naming the argument, for sizes that are not positive integers, an unknown law, or values
    out of range.
    """

    _size_name: ClassVar[str] = "kernel"
    _row_name: ClassVar[str] = "convolution"

    def __init__(
        self,
        channels: ArrayLike,
        kernel: int | Sequence[int] = 3,
        weights: str | AbstractWeights = "gaussian",
        sigma_w: ArrayLike = 1.0,
        sigma_b: ArrayLike = 0.0,
        positions: int | Sequence[int] | None = None,
    ):
        super().__init__(channels, kernel, weights, sigma_w, sigma_b, positions)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Its size along each axis."""
        return self.size

    def at(self, positions: tuple[int, ...]) -> "Conv":
        return Conv(self.channels, self.kernel, self.weights, self.sigma_w, self.sigma_b, positions)

    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> "CircularConv":
        positions = self._known_positions()
        sizes = (size, sampled_size(self.width, scale))
        num_in, num_out = (self._channels_in(n, self._num_positions) for n in sizes)
        kernel = self.kernel
        blank = eqx.nn.Conv(
            len(positions), num_in, num_out, kernel, padding="SAME", padding_mode="CIRCULAR", dtype=dtype, key=key
        )
        return CircularConv(
            eqx.tree_at(lambda c: (c.weight, c.bias), blank, self._drawn(num_in, num_out, key)), positions
        )

    def _drawn(self, num_in: int, num_out: int, key: PRNGKeyArray) -> tuple[Array, Array]:
        ones = (1,) * len(self.kernel)
        if isinstance(self.weights, Orthogonal):
            matrix, bias = draw(self.weights, (num_out, num_in), self.sigma_w, self.sigma_b, key)
            middle = tuple((n - 1) // 2 for n in self.kernel)
            weight = jnp.zeros((num_out, num_in, *self.kernel), matrix.dtype).at[(..., *middle)].set(matrix)
        else:
            shape = (num_out, num_in * math.prod(self.kernel))
            matrix, bias = draw(self.weights, shape, self.sigma_w, self.sigma_b, key)
            weight = matrix.reshape(num_out, num_in, *self.kernel)
        return weight, bias.reshape(num_out, *ones)


class Patches(AbstractConv):
    """Patches side by side, each seen by the same weights: a convolution whose stride is its kernel.

    All units of a patch come into one dense layer: `N_in` is the patch's size times the channels that come in.

    **Arguments:**

    - `channels`: how many behind it.
    - `patch`: its size along each axis; an integer for one axis, or for all of `positions`.
    - `weights`, `sigma_w`, `sigma_b`: as of `Dense`.
    - `positions`: how many patches there are along each axis; see `Conv`.

    **Raises:** `ValueError` as `Conv`.
    """

    _size_name: ClassVar[str] = "patch"
    _row_name: ClassVar[str] = "patches"

    def __init__(
        self,
        channels: ArrayLike,
        patch: int | Sequence[int],
        weights: str | AbstractWeights = "gaussian",
        sigma_w: ArrayLike = 1.0,
        sigma_b: ArrayLike = 0.0,
        positions: int | Sequence[int] | None = None,
    ):
        super().__init__(channels, patch, weights, sigma_w, sigma_b, positions)

    @property
    def patch(self) -> tuple[int, ...]:
        """Its size along each axis."""
        return self.size

    @property
    def positions_per_position(self) -> int:
        return math.prod(self.patch) if self.positions is None else 1

    def at(self, positions: tuple[int, ...]) -> "Patches":
        return Patches(self.channels, self.patch, self.weights, self.sigma_w, self.sigma_b, positions)

    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> "PatchLinear":
        positions = self._known_positions()
        num_in = self._channels_in(size, self._num_positions * math.prod(self.patch))
        num_out = self._channels_in(sampled_size(self.width, scale), self._num_positions)
        shape = (num_out, num_in * math.prod(self.patch))
        weight, bias = draw(self.weights, shape, self.sigma_w, self.sigma_b, key)
        blank = eqx.nn.Conv(len(positions), num_in, num_out, self.patch, self.patch, dtype=dtype, key=key)
        drawn = weight.reshape(num_out, num_in, *self.patch), bias.reshape(num_out, *(1,) * len(positions))
        before = tuple(n * each for n, each in zip(positions, self.patch, strict=True))
        return PatchLinear(eqx.tree_at(lambda c: (c.weight, c.bias), blank, drawn), before)


class CircularConv(eqx.Module):
    """A convolution of vectors, an Equinox module."""

    conv: eqx.nn.Conv
    positions: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, x: Array, *, key: PRNGKeyArray | None = None) -> Array:
        return self.conv(x.reshape(-1, *self.positions)).ravel()


class PatchLinear(eqx.Module):
    """A convolution of vectors whose stride is its kernel, an Equinox module."""

    conv: eqx.nn.Conv
    positions: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, x: Array, *, key: PRNGKeyArray | None = None) -> Array:
        return self.conv(x.reshape(-1, *self.positions)).ravel()
