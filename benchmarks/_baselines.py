"""What jfree is measured against, in plain Python and NumPy, written from the papers' descriptions.

A master equation is a list of factors `(c, a)`, meaning `z = (1/m) prod (c + a m)`, with `c, a > 0`. The solvers map it
and an array of `z` to the density `-Im G(z) / pi`. Single points use Python's own complex numbers, which are
faster there than NumPy's arrays of 21 factors.
"""

import numpy as np

Factors = list[tuple[float, float]]


def linear_gaussian(widths: np.ndarray, sigma_w: float) -> Factors:
    """`J^T J` of a linear network with Gaussian weights at fan-in: (3.4) of Chhaibi, Daouda and Kahn with `c = 1`."""
    variance = sigma_w**2 * widths[1:] / widths[:-1]
    slope = widths[0] / widths[1:]
    return [(1.0, 1.0), *zip(variance.tolist(), (variance * slope).tolist(), strict=True)]


class _Phi:
    """`phi_z(m) = P(m) / z - m`, whose zero is `M(z)`: (4.1) of Chhaibi, Daouda and Kahn."""

    def __init__(self, factors: Factors):
        self.factors = factors
        self.coefficients: list[float] = np.poly1d(_product(factors)).coeffs.tolist()

    def __call__(self, z: complex, m: complex) -> tuple[complex, complex]:
        """Value and derivative."""
        value = slope = 0j
        for coefficient in self.coefficients:
            slope = slope * m + value
            value = value * m + coefficient
        return value / z - m, slope / z - 1

    def curvature(self, z: complex, m: complex, radius: float) -> float:
        """Bounds `|phi''|` on a disk. Factor by factor: with `|m|` in `P''` instead, disks shrink to nothing."""
        product, total, squares = 1.0, 0.0, 0.0
        for c, a in self.factors:
            bound = abs(c + a * m) + a * radius
            product *= bound
            total += a / bound
            squares += (a / bound) ** 2
        return product * (total * total - squares) / abs(z)

    def in_basin(self, z: complex, m: complex) -> bool:
        """Kantorovich's criterion (Theorem 4.1), with `2 delta` for `t*`."""
        value, slope = self(z, m)
        delta = abs(value / slope)
        return delta / abs(slope) * self.curvature(z, m, 2 * delta) < 0.5

    def newton(self, z: complex, m: complex, tolerance: float = 1e-12) -> complex:
        """Algorithm 4.1."""
        while True:
            value, slope = self(z, m)
            if abs(value) < tolerance:
                return m
            m -= value / slope


def _product(factors: Factors) -> np.ndarray:
    product = np.ones(1)
    for c, a in factors:
        product = np.convolve(product, (a, c))
    return product


def _density(z: np.ndarray, m: np.ndarray) -> np.ndarray:
    return -((m + 1) / z).imag / np.pi


def lilypads(factors: Factors, z: np.ndarray) -> np.ndarray:
    """Newton lilypads, Algorithm 4.2 of Chhaibi, Daouda and Kahn, each point's proxy the point before it."""
    phi = _Phi(factors)
    proxy = _far_lilypad(phi, complex(z[0]))
    found = []
    for goal in z.tolist():
        proxy = _hop(phi, goal, *proxy)
        found.append(proxy[1])
    return _density(z, np.array(found))


def _far_lilypad(phi: _Phi, z: complex) -> tuple[complex, complex]:
    while not phi.in_basin(z, 0j):
        z = complex(z.real, 2 * z.imag)
    return z, phi.newton(z, 0j)


def _hop(phi: _Phi, goal: complex, z: complex, m: complex) -> tuple[complex, complex]:
    while z != goal:
        step, ahead = goal - z, goal
        while not phi.in_basin(ahead, m):
            step *= 0.5
            ahead = z + step
        z, m = ahead, phi.newton(ahead, m)
    return z, m


def root_following(factors: Factors, z: np.ndarray, ratio: float = 1.5, height: float = 64.0) -> np.ndarray:
    """In the manner of Algorithm 1 of Pennington, Schoenholz and Ganguli 2018: every point on its own, straight down.

    From `Im z = height`, where `M(z)` is about `1/z`, in steps of `ratio` (the published code's); of the roots at each
    step the one that Newton's method finds from the last, much faster than finding all of them to pick the nearest.
    """
    phi = _Phi(factors)
    found = []
    for goal in z.tolist():
        y, m = height, 1 / complex(goal.real, height)
        while y > goal.imag:
            y = max(y / ratio, goal.imag)
            m = phi.newton(complex(goal.real, y), m)
        found.append(m)
    return _density(z, np.array(found))


def reference(factors: Factors, z: np.ndarray, ratio: float = 1.1, height: float = 1e6) -> np.ndarray:
    """The truth to compare with: straight down in tiny steps, then Newton's method in extended precision.

    Real `z` are the limit from above. Slow, but for all points together.
    """
    c, a = (np.array(column)[:, None] for column in zip(*factors, strict=True))

    def newton_step(z, m):
        terms = c + a * m
        product = np.prod(terms, axis=0) / z
        return (product - m) / (product * np.sum(a / terms, axis=0) - 1)

    x, floor = np.real(z), np.maximum(np.imag(z), 1e-12)
    m = 1 / (x + 1j * height)
    for y in height / ratio ** np.arange(1, np.log(height / floor.min()) / np.log(ratio) + 2):
        at = x + 1j * np.maximum(y, floor)
        for _ in range(2):
            m = m - newton_step(at, m)
    exact_z, m = z.astype(np.clongdouble), m.astype(np.clongdouble)
    for _ in range(8):
        m = m - newton_step(exact_z, m)
    last = np.max(np.abs(newton_step(exact_z, m)))
    if last > 1e-14:
        raise ArithmeticError(f"The reference has not converged: last step {last:.1e}.")
    return _density(exact_z, m).astype(float)


def monte_carlo(width: int, depth: int, rng: np.random.Generator) -> np.ndarray:
    """Singular values of the Jacobian of one ReLU network: square Gaussian layers, `sigma_w^2 = 2`, no biases."""
    x, jacobian = rng.standard_normal(width), np.eye(0)
    for layer in range(depth):
        weight = rng.standard_normal((width, width)) * np.sqrt(2 / width)
        h = weight @ x
        x = np.maximum(h, 0)
        jacobian = (h > 0)[:, None] * (weight @ jacobian if layer else weight)
    return np.sqrt(np.maximum(np.linalg.eigvalsh(jacobian.T @ jacobian), 0))
