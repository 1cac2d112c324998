"""Networks in integers: layers, conversion from float, dynamic quantization.

`docs/networks.md` explains them and has results.
"""

import importlib
from typing import TYPE_CHECKING, Any

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

#: Modules that are loaded when they are first asked for: the export needs the package onnx.
_LAZY = ("convert", "float_net", "onnx_export")
if TYPE_CHECKING:  # for editors, which do not run `__getattr__`
    from lowgemm.nn import convert, float_net, onnx_export  # noqa: F401


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"lowgemm.nn.{name}")
    raise AttributeError(f"module 'lowgemm.nn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_LAZY})
