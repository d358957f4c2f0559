"""Any function as an activation."""

import functools
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from .._calculus.atoms import Atoms
from .._calculus.law import Law
from .._numerics.checks import integer
from .._numerics.quadrature import gaussian_density, panel_nodes
from ._base import AbstractManySlopes

# How far zeros of the derivative are looked for, and at how many points: an odd number, 0 among them.
_FARTHEST, _NUM_SEEN = 30.0, 6001


# How many zeros make panels of their own.
_MOST_ZEROS = 32


# Nodes of a panel, at least.
_FEWEST = 48


class FromFunction(AbstractManySlopes):
    """Any scalar JAX function, smooth between `knots` (the kinks and jumps of its derivative).

    Zeros of the derivative, where its logarithm is singular, are found where it changes sign, between -30 and 30: the
    32 nearest to 0.

    Between knots where the derivative is constant, the law of its square is an atom; elsewhere it is a quadrature on
    the real line, `num_nodes` nodes on either side of 0, and points of a spectrum nearer to its support than that
    resolves are reported, not guessed. Moments are NaN where the error, estimated by the rule on every other node, is
    above 1e-9: if `fn` has kinks that are not among its knots, or wiggles, or `q` is huge.

    **Arguments:**

    - `fn`: from a scalar to a scalar, differentiable by JAX.
    - `knots`: where its derivative has kinks or jumps.
    - `num_nodes`: of the quadrature, on either side of 0.

    **Raises:** `ValueError` if `fn` does not map scalars to real scalars, a knot is not finite, or `num_nodes` is not
    an integer, 8 at least.
    """

    fn: Callable[[Array], Array] = eqx.field(static=True)
    knots: tuple[float, ...] = eqx.field(static=True)
    zeros: tuple[float, ...] = eqx.field(static=True, repr=False)
    num_nodes: int = eqx.field(static=True)

    def __init__(self, fn: Callable[[Array], Array], knots: tuple[float, ...] = (), num_nodes: int = 320):
        if not callable(fn):
            raise ValueError("`fn` must be a function of one scalar.")
        try:
            out = jax.eval_shape(fn, jax.ShapeDtypeStruct((), jnp.result_type(float)))
            real = jnp.issubdtype(out.dtype, jnp.floating) and out.shape == ()
        except Exception as error:
            raise ValueError(f"`fn` must map a JAX scalar to a JAX scalar; it raised: {error}") from error
        if not real:
            raise ValueError("`fn` must map a real scalar to a real scalar.")
        self.fn = fn
        self.knots = tuple(sorted(float(k) for k in knots))
        if not all(math.isfinite(k) for k in self.knots):
            raise ValueError("`knots` must be finite.")
        self.num_nodes = integer("num_nodes", num_nodes, least=8)
        self.zeros = _zeros(fn, self.knots)

    @property
    def breaks(self) -> tuple[ArrayLike, ...]:
        return tuple(sorted({*self.knots, 0.0}))

    def __call__(self, x: Array) -> Array:
        return jnp.vectorize(self.fn)(x)

    def derivative(self, x: Array) -> Array:
        return jnp.vectorize(jax.grad(self.fn))(x)

    def _panels(self, q: Array, refine: float = 1) -> tuple[Array, Array, Array]:
        # A knot at 0 in any case: half of all activations have their structure there.
        ends = tuple(sorted({*self.knots, *self.zeros, 0.0}))
        num_nodes = max(_FEWEST, self.num_nodes // (1 + len(self.zeros) // 2) // 2)
        nodes, weights, coarse = panel_nodes(q, ends, round(refine * num_nodes), self.zeros)
        density = gaussian_density(nodes, q)
        return nodes, weights * density, coarse * density

    def _expect(self, fn: Callable[[Array], Array], q: Array) -> Array:
        """`E fn(sqrt(q) Z)`, NaN where the quadrature does not resolve it."""
        nodes, weights, coarse = self._panels(q, refine=4)
        values = fn(nodes)
        fine, rough = (jnp.sum(w * values) / jnp.sum(w) for w in (weights, coarse))
        size = jnp.sum(weights * jnp.abs(values)) / jnp.sum(weights)
        tolerance = max(4e-9, 100 * float(jnp.finfo(q.dtype).eps))  # of kinks the finer rule sees a quarter
        return jnp.where(jnp.abs(fine - rough) <= tolerance * size, fine, jnp.nan)

    def second_moment(self, q: Array) -> Array:
        return self._expect(lambda x: jnp.square(self(x)), q)

    def mean(self, q: Array) -> Array:
        return self._expect(self, q)

    def slope_moment(self, q: Array) -> Array:
        return self._expect(lambda x: jnp.square(self.derivative(x)), q)

    def slope_law(self, q: Array, refine: float = 1) -> Law:
        nodes, weights, coarse = self._panels(q, refine)
        points = jnp.square(self.derivative(nodes))
        # Off by more than 1e-7 in its mean it is another law.
        ratio = jnp.sum(weights * points) / jnp.sum(weights) / self.slope_moment(q)
        tolerance = max(1e-7, 100 * float(jnp.finfo(q.dtype).eps))
        points = jnp.where(jnp.abs(ratio - 1) <= tolerance, points, jnp.nan)
        mass = jnp.sum(weights, 1) / jnp.sum(weights)
        low, high = jnp.min(points, 1), jnp.max(points, 1)
        flat = high - low <= 16 * jnp.finfo(q.dtype).eps * high
        atoms = Atoms(
            1 - jnp.sum(jnp.where(flat & (high == 0), mass, 0)),
            jnp.log(jnp.where(flat & (high > 0), high, 1)),
            jnp.where(flat & (high > 0), mass, 0),
        )
        coarse = jnp.where(flat[:, None], weights, coarse)
        return Law.from_points(points.ravel(), weights.ravel(), coarse.ravel(), atoms)


@functools.lru_cache(256)
def _zeros(fn: Callable[[Array], Array], knots: tuple[float, ...]) -> tuple[float, ...]:
    """Where the derivative changes sign, but for knots."""

    def slope(x: np.ndarray) -> np.ndarray:
        with jax.ensure_compile_time_eval():
            return np.asarray(jax.vmap(jax.grad(fn))(jnp.asarray(x, jnp.result_type(float))))

    x = np.linspace(-_FARTHEST, _FARTHEST, _NUM_SEEN)
    sign = np.sign(slope(x))
    changes = np.flatnonzero(sign[1:] * sign[:-1] < 0)
    low, high = x[changes], x[changes + 1]
    for _ in range(52):
        middle = 0.5 * (low + high)
        same = np.sign(slope(middle)) == sign[changes]
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    lonely = np.flatnonzero((sign[1:-1] == 0) & (sign[2:] != 0) & (sign[:-2] != 0)) + 1
    zeros = np.concatenate([0.5 * (low + high), x[lonely]])
    near = np.min(np.abs(zeros[:, None] - np.asarray([np.inf, *knots])), axis=1)
    nearest = sorted(zeros[near > 1e-6].tolist(), key=abs)[:_MOST_ZEROS]
    return tuple(sorted(nearest))
