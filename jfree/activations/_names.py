"""Activations that go by a name."""

from collections.abc import Callable

from ._base import AbstractActivation
from ._linear_pieces import Clip, HardSine, HardTanh, LeakyReLU, Linear, ReLU
from ._periodic import Sine
from ._piecewise import ELU, HardSiLU, ReLUSquared, Softsign, SparsePlus
from ._smooth import Erf, GELU, GELUTanh, LogSigmoid, Mish, Sigmoid, SiLU, Softplus, Squareplus, Tanh
from ._stretched import CELU, Swish

# Of self-normalising networks, in which variance 1 is a fixed point (Klambauer et al. 2017).
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


BY_NAME: dict[str, Callable[[], AbstractActivation]] = {
    "linear": Linear,
    "relu": ReLU,
    "leaky_relu": LeakyReLU,
    "hard_tanh": HardTanh,
    "hard_sine": HardSine,
    "tanh": Tanh,
    "erf": Erf,
    "sigmoid": Sigmoid,
    "silu": SiLU,
    "gelu": GELU,
    "softplus": Softplus,
    "gelu_tanh": GELUTanh,
    "swish": Swish,
    "quick_gelu": lambda: Swish(1.702),
    "mish": Mish,
    "squareplus": Squareplus,
    "log_sigmoid": LogSigmoid,
    "elu": ELU,
    "selu": lambda: ELU(_SELU_ALPHA, _SELU_SCALE),
    "celu": CELU,
    "softsign": Softsign,
    "sin": Sine,
    "relu6": lambda: Clip(0.0, 6.0),
    "prelu": lambda: LeakyReLU(0.25),
    "relu_squared": ReLUSquared,
    "hard_sigmoid": lambda: Clip(-3.0, 3.0, 1 / 6, 0.5),
    "hard_silu": HardSiLU,
    "sparse_sigmoid": lambda: Clip(-1.0, 1.0, 0.5, 0.5),
    "sparse_plus": SparsePlus,
}


def as_activation(activation: str | AbstractActivation, argument: str = "activation") -> AbstractActivation:
    if isinstance(activation, AbstractActivation):
        return activation
    if isinstance(activation, str) and activation in BY_NAME:
        return BY_NAME[activation]()
    raise ValueError(
        f"`{argument}` must be one of {', '.join(map(repr, BY_NAME))} or an activation from `jfree.activations`, "
        f"got {activation!r}."
    )
