"""The activations a network may be built from; strings such as `"tanh"` are short for those without arguments."""

from ._base import AbstractActivation as AbstractActivation
from ._from_function import FromFunction as FromFunction
from ._linear_pieces import (
    Clip as Clip,
    HardSine as HardSine,
    HardTanh as HardTanh,
    LeakyReLU as LeakyReLU,
    Linear as Linear,
    ReLU as ReLU,
    ShiftedReLU as ShiftedReLU,
)
from ._periodic import Sine as Sine
from ._piecewise import (
    ELU as ELU,
    HardSiLU as HardSiLU,
    ReLUSquared as ReLUSquared,
    Softsign as Softsign,
    SparsePlus as SparsePlus,
)
from ._shaped import Shaped as Shaped, shaped as shaped
from ._smooth import (
    Erf as Erf,
    GELU as GELU,
    GELUTanh as GELUTanh,
    LogSigmoid as LogSigmoid,
    Mish as Mish,
    Sigmoid as Sigmoid,
    SiLU as SiLU,
    Softplus as Softplus,
    Squareplus as Squareplus,
    Tanh as Tanh,
)
from ._stretched import CELU as CELU, Swish as Swish
