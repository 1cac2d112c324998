"""Networks in integers: layers, conversion from float, dynamic quantization.

`docs/networks.md` explains them and has results.
"""

from lowgemm.nn.add import QuantizedAdd, QuantizedResidual
from lowgemm.nn.conv import QuantizedConv2d
from lowgemm.nn.dynamic import dynamic_linear, weight_only_linear
from lowgemm.nn.files import load, save
from lowgemm.nn.layer import Layer
from lowgemm.nn.linear import QuantizedLinear
from lowgemm.nn.maccs import Cost, LayerCost, count_maccs
from lowgemm.nn.pool import QuantizedAveragePool2d, QuantizedFlatten, QuantizedMaxPool2d
from lowgemm.nn.sequential import QuantizedSequential

__all__ = [
    "Cost",
    "Layer",
    "LayerCost",
    "QuantizedAdd",
    "QuantizedAveragePool2d",
    "QuantizedConv2d",
    "QuantizedFlatten",
    "QuantizedLinear",
    "QuantizedMaxPool2d",
    "QuantizedResidual",
    "QuantizedSequential",
    "count_maccs",
    "dynamic_linear",
    "load",
    "save",
    "weight_only_linear",
]
