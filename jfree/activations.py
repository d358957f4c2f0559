"""The activations a network may be built from; strings such as `"tanh"` are short for those without arguments."""

from ._activations import (
    AbstractActivation as AbstractActivation,
    Erf as Erf,
    GELU as GELU,
    GELUTanh as GELUTanh,
    HardSine as HardSine,
    HardTanh as HardTanh,
    LeakyReLU as LeakyReLU,
    Linear as Linear,
    LogSigmoid as LogSigmoid,
    Mish as Mish,
    ReLU as ReLU,
    ShiftedReLU as ShiftedReLU,
    Sigmoid as Sigmoid,
    SiLU as SiLU,
    Softplus as Softplus,
    Squareplus as Squareplus,
    Tanh as Tanh,
)
from ._from_function import FromFunction as FromFunction
from ._piecewise import (
    CELU as CELU,
    Clip as Clip,
    ELU as ELU,
    HardSiLU as HardSiLU,
    ReLUSquared as ReLUSquared,
    Sine as Sine,
    Softsign as Softsign,
    SparsePlus as SparsePlus,
    Swish as Swish,
)
