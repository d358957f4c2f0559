"""Special functions of a complex argument that JAX has for real ones only."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex


def _weideman(num_terms: int) -> tuple[float, list[float]]:
    """Coefficients of Weideman's rational series for the Faddeeva function (SIAM J. Numer. Anal. 31, 1994)."""
    m = 2 * num_terms
    scale = math.sqrt(num_terms / math.sqrt(2))
    theta = np.arange(-m + 1, m) * np.pi / m
    t = scale * np.tan(theta / 2)
    f = np.concatenate([[0.0], np.exp(-t * t) * (scale**2 + t * t)])
    coefficients = np.real(np.fft.fft(np.fft.fftshift(f))) / (2 * m)
    return scale, coefficients[1 : num_terms + 1].tolist()


_SCALE, _COEFFICIENTS = _weideman(40)


def faddeeva(z: Complex[Array, "..."]) -> Complex[Array, "..."]:
    """`exp(-z^2) erfc(-i z)` for `Im z >= 0`, to about 1e-13."""
    down = 1 / (_SCALE - 1j * z)
    ratio = (_SCALE + 1j * z) * down
    series = jnp.zeros_like(z)
    for coefficient in _COEFFICIENTS[::-1]:
        series = series * ratio + coefficient
    return 2 * series * down * down + down / math.sqrt(math.pi)


def complex_ndtr(x: Complex[Array, "..."]) -> Complex[Array, "..."]:
    """The normal distribution function continued to complex `x` near the real axis."""
    right = x.real > 0
    y = jnp.where(right, -x, x)  # Re y <= 0, where the distribution function is small
    tail = 0.5 * jnp.exp(-jnp.square(y) / 2) * faddeeva(-1j * y / math.sqrt(2))
    return jnp.where(right, 1 - tail, tail)
