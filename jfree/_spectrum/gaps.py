"""Gaps of the support, from the solver's verdicts."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from .._calculus.atoms import Atoms
from .._calculus.curve import Curve
from .._numerics.arrays import at_once
from .._numerics.complex import complex_dtype
from .reading import cdf, solution


@at_once
def support(curve: Curve, atoms: Atoms, lower: float, upper: float) -> list[tuple[float, float]]:
    """The intervals of the bulk: a scan between the edges, and bisection of every change to a gap (host)."""
    pad = 1e-6
    low = np.log(lower) if lower > 0 else float(curve.moments.log_mean) - 60.0
    scan = _refined(curve, atoms, np.linspace(low + pad, np.log(upper) - pad, 1001))
    changes = np.flatnonzero(scan.bulk[1:] != scan.bulk[:-1])
    low_ends, high_ends, left = scan.log_x[changes], scan.log_x[changes + 1], scan.bulk[changes]
    for _ in range(46 if len(changes) else 0):
        middle = 0.5 * (low_ends + high_ends)
        same = _verdicts(curve, middle)[0] == left
        low_ends, high_ends = np.where(same, middle, low_ends), np.where(same, high_ends, middle)
    cuts = np.exp(0.5 * (low_ends + high_ends))
    ends = [lower] * bool(scan.bulk[:1].any()) + [float(c) for c in cuts] + [upper] * bool(scan.bulk[-1:].any())
    return list(zip(ends[::2], ends[1::2], strict=True))


class _Scan(NamedTuple):
    """Certified points in increasing order, which of them lie in the bulk, and the mass above each."""

    log_x: np.ndarray
    bulk: np.ndarray
    above: np.ndarray


def _verdicts(curve: Curve, log_x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which points are not off the support, the mass above each, and which of these verdicts are certified."""
    x = jnp.asarray(np.exp(log_x), curve.rank.dtype)
    above = 1 - np.asarray(cdf(curve, x))
    off = np.asarray(solution(curve, x.astype(complex_dtype(x.dtype))).m.imag) == 0
    return ~off, above, ~np.isnan(above)


def _scan(curve: Curve, log_x: np.ndarray) -> _Scan:
    bulk, above, certified = _verdicts(curve, log_x)
    return _Scan(log_x[certified], bulk[certified], above[certified])


def _refined(curve: Curve, atoms: Atoms, log_x: np.ndarray) -> _Scan:
    """A scan, finer wherever mass goes missing between two points that are not in the bulk."""
    masses = np.asarray(atoms.masses)
    places = np.where(masses > 0, np.asarray(atoms.log_locations), 0)
    slack = 1e3 * float(np.finfo(masses.dtype).eps) ** 0.75
    shares = np.arange(1, 16) / 16
    scan = _scan(curve, log_x)
    for _ in range(12):
        left, right = scan.log_x[:-1, None], scan.log_x[1:, None]
        missing = scan.above[:-1] - scan.above[1:] - np.sum(((left < places) & (places < right)) * masses, axis=1)
        hidden = ~scan.bulk[:-1] & ~scan.bulk[1:] & (missing > slack)
        if not hidden.any():
            break
        found = _scan(curve, (left + (right - left) * shares)[hidden].ravel())
        order = np.argsort(np.append(scan.log_x, found.log_x))
        scan = _Scan(*(np.append(old, new)[order] for old, new in zip(scan, found, strict=True)))
    return scan
