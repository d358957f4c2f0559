"""The activations a network may be built from; strings such as `"tanh"` are short for those without arguments."""

from ._activations import (
    AbstractActivation as AbstractActivation,
    Erf as Erf,
    GELU as GELU,
    HardSine as HardSine,
    HardTanh as HardTanh,
    LeakyReLU as LeakyReLU,
    Linear as Linear,
    ReLU as ReLU,
    ShiftedReLU as ShiftedReLU,
    Sigmoid as Sigmoid,
    SiLU as SiLU,
    Softplus as Softplus,
    Tanh as Tanh,
)
from ._from_function import FromFunction as FromFunction
