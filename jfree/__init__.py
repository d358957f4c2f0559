from importlib.metadata import version

from . import activations as activations
from ._follow import RESULTS as RESULTS
from ._meanfield import MeanField as MeanField, critical_sigma_w as critical_sigma_w, fixed_point as fixed_point
from ._networks import MLP as MLP, AbstractNetwork as AbstractNetwork, propagate as propagate
from ._spectrum import Solution as Solution, Spectrum as Spectrum, jacobian_spectrum as jacobian_spectrum
from ._weights import Gaussian as Gaussian, Orthogonal as Orthogonal

__version__ = version("jfree")
