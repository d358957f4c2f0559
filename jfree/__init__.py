from importlib.metadata import version

from . import activations as activations
from ._follow import RESULTS as RESULTS
from ._meanfield import critical_sigma_w as critical_sigma_w, fixed_point as fixed_point, MeanField as MeanField
from ._networks import AbstractNetwork as AbstractNetwork, MLP as MLP, propagate as propagate
from ._resnet import ResNet as ResNet
from ._spectrum import (
    fisher_spectrum as fisher_spectrum,
    jacobian_spectrum as jacobian_spectrum,
    Solution as Solution,
    Spectrum as Spectrum,
    universal_resnet_spectrum as universal_resnet_spectrum,
)
from ._weights import Gaussian as Gaussian, Orthogonal as Orthogonal

__version__ = version("jfree")
