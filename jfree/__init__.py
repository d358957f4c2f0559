from importlib.metadata import version

from . import (
    activations as activations,
    constraints as constraints,
    empirical as empirical,
    extend as extend,
    layers as layers,
    objectives as objectives,
    plot as plot,
)
from ._finite.diagnosis import diagnose as diagnose, Diagnosis as Diagnosis, signal_spread as signal_spread
from ._finite.sampling import sample_weights as sample_weights
from ._initialize import (
    Account as Account,
    initialize as initialize,
    initialize_torch_ as initialize_torch_,
    Report as Report,
)
from ._interop.equinox import from_equinox as from_equinox, to_equinox as to_equinox
from ._interop.model import from_model as from_model
from ._interop.residual_mlp import ResidualMLP as ResidualMLP
from ._interop.torch import from_torch as from_torch, reinitialize_torch_ as reinitialize_torch_
from ._interop.writing import reinitialize as reinitialize
from ._layers.weights import Gaussian as Gaussian, Orthogonal as Orthogonal
from ._meanfield.fixed_points import (
    correlation_map as correlation_map,
    critical_points as critical_points,
    critical_sigma_w as critical_sigma_w,
    fixed_point as fixed_point,
    fixed_points as fixed_points,
    FixedPoints as FixedPoints,
    Gain as Gain,
    gain as gain,
)
from ._meanfield.mean_field import MeanField as MeanField
from ._networks.abstract import AbstractNetwork as AbstractNetwork, propagate as propagate
from ._networks.measured import from_weights as from_weights
from ._networks.mlp import MLP as MLP
from ._networks.network import Network as Network
from ._networks.nonlinearity import nonlinearity as nonlinearity
from ._networks.resnet import ResNet as ResNet
from ._numerics.cache import keep_compiled as keep_compiled
from ._solve.certificate import RESULTS as RESULTS
from ._spectra import (
    fisher_spectrum as fisher_spectrum,
    jacobian_spectrum as jacobian_spectrum,
    universal_resnet_spectrum as universal_resnet_spectrum,
)
from ._spectrum.outliers import Outliers as Outliers
from ._spectrum.reading import Solution as Solution
from ._spectrum.spectrum import Spectrum as Spectrum
from ._sweep import stack as stack, Sweep as Sweep, sweep as sweep
from ._tune import tune as tune, TuneResult as TuneResult

__version__ = version("jfree")
