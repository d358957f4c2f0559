"""Layers that a `jfree.Network` is made of."""

from ._layers.activation import Activation as Activation
from ._layers.conv import Conv as Conv, Patches as Patches
from ._layers.dense import Dense as Dense
from ._layers.dropout import Dropout as Dropout
from ._layers.gated import Gated as Gated
from ._layers.layer import AbstractLayer as AbstractLayer
from ._layers.normalisation import LayerNorm as LayerNorm, RMSNorm as RMSNorm
from ._layers.repeat import Repeat as Repeat
from ._layers.scale import Scale as Scale
from ._networks.branches import Parallel as Parallel, Residual as Residual
