"""Exact low-precision matrix multiplication for NumPy.

Start with `gemm`; `pack_rhs` and `plan` make repeated products cheaper, `explain` says what happens.
"""

from typing import Any

from lowgemm import config
from lowgemm._version import __version__
from lowgemm.engine import threadpool_controller as _controller  # noqa: F401 (tells threadpoolctl of lowgemm)
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
    "explain",
    "gemm",
    "pack_rhs",
    "plan",
    "relu",
    "relu6",
    "requantize",
]

#: Layers and functions of `lowgemm.nn` that are names of the package too; loaded when first asked for.
_NN = frozenset(
    {"QuantizedConv2d", "QuantizedLinear", "QuantizedSequential", "count_maccs", "dynamic_linear"}
)


def __getattr__(name: str) -> Any:
    if name in _NN:
        from lowgemm import nn

        return getattr(nn, name)
    raise AttributeError(f"module 'lowgemm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_NN})
