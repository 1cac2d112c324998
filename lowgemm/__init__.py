"""Exact low-precision matrix multiplication for NumPy.

Start with `gemm`; `pack_rhs` and `plan` make repeated products cheaper, `explain` says what happens.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lowgemm import config
from lowgemm._version import __version__
from lowgemm.conv import conv, pack_filters
from lowgemm.engine import threadpool_controller as _controller  # noqa: F401 (tells threadpoolctl of lowgemm)
from lowgemm.engine.filters import PackedFilters
from lowgemm.engine.packed_rhs import PackedRhs, pack_rhs
from lowgemm.explain import explain
from lowgemm.gemm import gemm, plan
from lowgemm.output.stages import (
    BiasAddition,
    Clamp,
    Custom,
    Dequantize,
    Logistic,
    Lut,
    QuantizeDownInt32ByFixedPoint,
    QuantizeDownInt32ToUint8Scale,
    SaturatingCast,
    ScaleInt32ByFixedPointAndExponent,
    Stage,
    Tanh,
    TruncatingCast,
    relu,
    relu6,
)
from lowgemm.output.stages.requantize import Requantize
from lowgemm.requantize import requantize

__all__ = [
    "BiasAddition",
    "Clamp",
    "Custom",
    "Dequantize",
    "Logistic",
    "Lut",
    "PackedFilters",
    "PackedRhs",
    "QuantizeDownInt32ByFixedPoint",
    "QuantizeDownInt32ToUint8Scale",
    "Requantize",
    "SaturatingCast",
    "ScaleInt32ByFixedPointAndExponent",
    "Stage",
    "Tanh",
    "TruncatingCast",
    "__version__",
    "config",
    "conv",
    "explain",
    "gemm",
    "pack_filters",
    "pack_rhs",
    "plan",
    "relu",
    "relu6",
    "requantize",
]

#: Packages and modules that are loaded when they are first asked for, as attributes of `lowgemm`.
_LAZY = ("blockwise", "compat", "dask", "nn", "onnx_run", "quantization")
#: Names of the package that live in one of those, by their name there.
_FROM = {
    "QuantizedConv2d": ("nn", "QuantizedConv2d"),
    "QuantizedLinear": ("nn", "QuantizedLinear"),
    "QuantizedSequential": ("nn", "QuantizedSequential"),
    "count_maccs": ("nn", "count_maccs"),
    "dynamic_linear": ("nn", "dynamic_linear"),
    "quantize": ("quantization", "quantize_array"),
}
if TYPE_CHECKING:  # for editors, which do not run `__getattr__`
    from lowgemm import blockwise, compat, nn, onnx_run, quantization  # noqa: F401
    from lowgemm.nn import (  # noqa: F401
        QuantizedConv2d,
        QuantizedLinear,
        QuantizedSequential,
        count_maccs,
        dynamic_linear,
    )
    from lowgemm.quantization import quantize_array as quantize  # noqa: F401


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"lowgemm.{name}")
    if name in _FROM:
        room, own = _FROM[name]
        return getattr(importlib.import_module(f"lowgemm.{room}"), own)
    raise AttributeError(f"module 'lowgemm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_LAZY, *_FROM})
