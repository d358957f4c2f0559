"""Convolutions."""

import math
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .._numerics.checks import integer
from .._numerics.show import name_of, number
from .dense import AbstractWeighted, draw
from .layer import checked_positive, sampled_size
from .weights import AbstractWeights, BY_NAME as WEIGHTS, Gaussian, Orthogonal


class Conv(AbstractWeighted):
    """A convolution of stride 1 with circular padding. Vectors hold all channels, each with all its positions, the
    last ones next to each other.

    In the limit of many channels the spectrum is that of dense layers: by translation invariance all positions are
    alike. Gaussian weights have entries of mean square `sigma_w^2 / N`, `N` being the kernel's size times the channels
    that come in; orthogonal ones are delta-orthogonal (Xiao et al. 2018): 0 but for the middle of the kernel.

    **Arguments:**

    - `channels`: how many behind it.
    - `positions`: how many along each axis, before and behind it; an integer for one axis.
    - `kernel`: its size along each axis, or along all.
    - `weights`, `sigma_w`, `sigma_b`: as of `Dense`.

    **Raises:** `ValueError` naming the argument, for sizes that are not positive integers, an unknown law, or values
    out of range.
    """

    positions: tuple[int, ...] = eqx.field(static=True)
    kernel: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        channels: ArrayLike,
        positions: int | Sequence[int],
        kernel: int | Sequence[int] = 3,
        weights: str | AbstractWeights = "gaussian",
        sigma_w: ArrayLike = 1.0,
        sigma_b: ArrayLike = 0.0,
    ):
        several = isinstance(positions, Sequence)
        self.positions = tuple(integer("positions", n) for n in (positions if several else (positions,)))
        kernels = kernel if isinstance(kernel, Sequence) else (kernel,) * len(self.positions)
        self.kernel = tuple(integer("kernel", n) for n in kernels)
        if len(self.kernel) != len(self.positions):
            raise ValueError(f"`kernel` must be an integer, or {len(self.positions)} as `positions`, got {kernel!r}.")
        super().__init__(checked_positive("channels", channels) * math.prod(self.positions), weights, sigma_w, sigma_b)
        if not isinstance(self.weights, Gaussian | Orthogonal):
            raise ValueError(f"`weights` of a `Conv` must be Gaussian or orthogonal, got {self.weights!r}.")

    @property
    def channels(self) -> Float[Array, ""]:
        """How many behind it."""
        return self.width / math.prod(self.positions)

    def sample(self, size: int, scale: float, key: PRNGKeyArray, dtype: DTypeLike) -> "CircularConv":
        num_in, num_out = (self._num_channels(n) for n in (size, sampled_size(self.width, scale)))
        pad = eqx.nn.Conv(
            len(self.positions),
            num_in,
            num_out,
            self.kernel,
            padding="SAME",
            padding_mode="CIRCULAR",
            dtype=dtype,
            key=key,
        )
        weight, bias = self._drawn(num_in, num_out, key)
        return CircularConv(eqx.tree_at(lambda c: (c.weight, c.bias), pad, (weight, bias)), self.positions)

    def _num_channels(self, size: int) -> int:
        channels, rest = divmod(size, math.prod(self.positions))
        if rest:
            raise ValueError(f"`positions` of a `Conv` are {self.positions}: {size} units are no multiple of them.")
        return channels

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

    def row(self) -> tuple[str, str]:
        scales = f"sigma_w {number(self.sigma_w)}, sigma_b {number(self.sigma_b)}"
        sizes = f"kernel {' x '.join(map(str, self.kernel))}, {' x '.join(map(str, self.positions))} positions"
        return "convolution", f"{number(self.channels)} channels, {sizes}, {name_of(self.weights, WEIGHTS)}, {scales}"


class CircularConv(eqx.Module):
    """A convolution of vectors, an Equinox module."""

    conv: eqx.nn.Conv
    positions: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, x: Array, *, key: PRNGKeyArray | None = None) -> Array:
        return self.conv(x.reshape(-1, *self.positions)).ravel()
