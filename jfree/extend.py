"""What new activations, weight laws, layers, operations and networks are made of: see "Extending" in the docs."""

from ._calculus.atoms import Atoms as Atoms
from ._calculus.curve import Curve as Curve
from ._calculus.extremes import Extremes as Extremes
from ._calculus.factor import Factor as Factor, point_mass as point_mass
from ._calculus.law import Law as Law
from ._calculus.law_factor import LawFactor as LawFactor
from ._calculus.operation import AbstractOperation as AbstractOperation, Moments as Moments, Step as Step
from ._calculus.point import Point as Point, Signs as Signs
from ._calculus.side_and_shift import ChangeSide as ChangeSide, Shift as Shift
from ._layers.layer import AbstractLayer as AbstractLayer, Change as Change, Entries as Entries, Signal as Signal
from ._layers.weights import AbstractWeights as AbstractWeights
from ._networks.abstract import AbstractNetwork as AbstractNetwork, curve_of as curve_of
from ._numerics.complex import (
    exponential as exponential,
    log_one_plus as log_one_plus,
    log_upper as log_upper,
    logarithm as logarithm,
    squared as squared,
    x_log_x as x_log_x,
)
from .activations._base import (
    AbstractActivation as AbstractActivation,
    AbstractManySlopes as AbstractManySlopes,
    AbstractTwoSlopes as AbstractTwoSlopes,
)
from .activations._smooth import AbstractSmooth as AbstractSmooth
