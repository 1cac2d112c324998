"""Quantized ONNX models with lowgemm underneath: `Model`, and `python -m lowgemm run model.onnx`.

Start with `model.py`; `rewrite.py` turns quantize-dequantize pairs into integer operators, `operators.py` and
`contrib.py` are the operators, `convolution.py` the convolutions (no onnx package needed). The package onnx
is imported when a `Model` is made.

Arguments of compiled functions that mean the same in all files of this room: `x`, `a` and `b` are what is
read, `y`, `out` and `to` what is written, arrays or addresses of their first elements. `begin` and `at` are
the indices in them to begin at, `at_a`, `at_b`, `at_out` likewise in `a`, `b`, `out`; `count` elements lie
one after the other from there on. `total` is a sum of floats, or a row of such sums. `scale`, `zero` are
those of quantized values, `low` and `high` the bounds of a result, float32 or int32. The arguments of a pass
are those of `engine/parts.py`.
"""

from lowgemm.onnx_run.convolution import PackedFilters, conv_integer, qlinear_conv
from lowgemm.onnx_run.model import Model, UnsupportedOperator

__all__ = ["Model", "PackedFilters", "UnsupportedOperator", "conv_integer", "qlinear_conv"]
