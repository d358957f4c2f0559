"""Layers that a `jfree.Network` is made of."""

from ._layers import (
    AbstractLayer as AbstractLayer,
    Activation as Activation,
    Dense as Dense,
    Dropout as Dropout,
    LayerNorm as LayerNorm,
    RMSNorm as RMSNorm,
    Scale as Scale,
)
from ._residual import Residual as Residual
