"""Quantized ONNX models with lowgemm underneath: `Model`, and `python -m lowgemm run model.onnx`.

Start with `model.py`; `rewrite.py` turns quantize-dequantize pairs into integer operators, `operators.py` and
`contrib.py` are the operators, `convolution.py` the convolutions (no onnx package needed). The package onnx
is imported when a `Model` is made.
"""

from lowgemm.onnx_run.convolution import PackedFilters, conv_integer, qlinear_conv
from lowgemm.onnx_run.model import Model, UnsupportedOperator

__all__ = ["Model", "PackedFilters", "UnsupportedOperator", "conv_integer", "qlinear_conv"]
