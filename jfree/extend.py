"""What new activations, weight laws, layers, operations and networks are made of: see "Extending" in the docs."""

from ._activations import (
    AbstractActivation as AbstractActivation,
    AbstractManySlopes as AbstractManySlopes,
    AbstractSmooth as AbstractSmooth,
    AbstractTwoSlopes as AbstractTwoSlopes,
)
from ._curve import (
    AbstractOperation as AbstractOperation,
    Cumulants as Cumulants,
    Curve as Curve,
    Point as Point,
    Signs as Signs,
    Step as Step,
)
from ._laws import Atoms as Atoms, Law as Law
from ._layers import AbstractLayer as AbstractLayer, Entries as Entries, Signal as Signal
from ._misc import (
    exponential as exponential,
    log_one_plus as log_one_plus,
    log_upper as log_upper,
    logarithm as logarithm,
    squared as squared,
    x_log_x as x_log_x,
)
from ._networks import AbstractNetwork as AbstractNetwork, curve_of as curve_of
from ._operations import (
    ChangeSide as ChangeSide,
    Factor as Factor,
    LawFactor as LawFactor,
    point_mass as point_mass,
    Shift as Shift,
)
from ._weights import AbstractWeights as AbstractWeights
