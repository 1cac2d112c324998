"""Output stages, one per file: fields, parameters, equation and what runs on a tile (docs/stages.md)."""

from lowgemm.output.base import Stage
from lowgemm.output.stages.bias import BiasAddition
from lowgemm.output.stages.clamp import Clamp, relu, relu6
from lowgemm.output.stages.custom import Custom
from lowgemm.output.stages.dequantize import Dequantize
from lowgemm.output.stages.fixed_point import QuantizeDownInt32ByFixedPoint
from lowgemm.output.stages.legacy_scale import QuantizeDownInt32ToUint8Scale
from lowgemm.output.stages.logistic import Logistic
from lowgemm.output.stages.lut import Lut
from lowgemm.output.stages.saturating_cast import SaturatingCast
from lowgemm.output.stages.scale import ScaleInt32ByFixedPointAndExponent
from lowgemm.output.stages.tanh import Tanh
from lowgemm.output.stages.truncating_cast import TruncatingCast

__all__ = [
    "BiasAddition",
    "Clamp",
    "Custom",
    "Dequantize",
    "Logistic",
    "Lut",
    "QuantizeDownInt32ByFixedPoint",
    "QuantizeDownInt32ToUint8Scale",
    "SaturatingCast",
    "ScaleInt32ByFixedPointAndExponent",
    "Stage",
    "Tanh",
    "TruncatingCast",
    "relu",
    "relu6",
]
