"""What a first try does wrong, and what the message says to do instead."""

from __future__ import annotations

import numpy as np
import pytest

import lowgemm
from lowgemm import nn, quantization

X, W = np.arange(12, dtype=np.uint8).reshape(3, 4), np.ones((4, 2), np.int8)
REAL = np.ones((3, 4), np.float32)
P = quantization.QParams(1.0, 0, "uint8")

TRIES = {
    "floats": (lambda: lowgemm.gemm(REAL, W), r"^lhs: .*lowgemm\.quantize\(x\)"),
    "64-bit integers": (lambda: lowgemm.gemm(X.astype(np.int64), W), r"^lhs: .*\.astype\(numpy\.int8\)"),
    "nothing": (lambda: lowgemm.gemm(None, W), "^lhs: .*got None"),
    "what quantize gives": (lambda: lowgemm.gemm(lowgemm.quantize(REAL), W),
                            r"^lhs: .*\.codes.*lhs_zero_point"),
    "a packed left operand": (lambda: lowgemm.gemm(lowgemm.pack_rhs(W), W), "^lhs: .*packed right operand"),
    "packed twice": (lambda: lowgemm.pack_rhs(lowgemm.pack_rhs(W)), "^rhs: .*packed right operand"),
    "a class of stages": (lambda: lowgemm.gemm(X, W, output=lowgemm.Clamp), r"^output: .*Clamp\(\.\.\.\)"),
    "a dtype as output": (lambda: lowgemm.gemm(X, W, output=np.uint8), r"SaturatingCast\(numpy\.uint8\)"),
    "a dtype in the list": (lambda: lowgemm.gemm(X, W, output=[np.dtype("int8")]),
                            r"^output\[0\]: .*SaturatingCast\(numpy\.int8\)"),
    "a function as output": (lambda: lowgemm.gemm(X, W, output=np.tanh), r"lowgemm\.Custom\(function\)"),
    "a name as output": (lambda: lowgemm.gemm(X, W, output="relu"),
                         "^output: expected a stage or a list of stages, got 'relu'$"),
    "a float bias": (lambda: lowgemm.BiasAddition([0.5, 1.5]),
                     r"^bias: .*lowgemm\.Dequantize\(scale, bias=\.\.\.\)"),
    "no zero point": (lambda: lowgemm.gemm(X, W, lhs_zero_point=None), "^lhs_zero_point: .*got None"),
    "64-bit sums": (lambda: lowgemm.requantize(np.zeros((2, 2), np.int64), lowgemm.Clamp(0, 1)),
                    r"^acc: .*astype\(numpy\.int32\)"),
    "float weights": (lambda: lowgemm.dynamic_linear(REAL, W.astype(float), 1.0),
                      r"^weight: .*lowgemm\.quantize\("),
    "a scale for parameters": (lambda: quantization.quantize(REAL, 0.1),
                               r"^qparams: expected QParams\(scale, zero_point, dtype\)"),
    "floats to a layer": (lambda: nn.QuantizedLinear(W, None, P, quantization.QParams(1.0))(REAL),
                          r"^x: .*quantize\(x, input_qparams\)"),
    "a layer of floats": (lambda: nn.QuantizedLinear(REAL, None, P, quantization.QParams(1.0)),
                          "^weight: .*from_float"),
    "a float layer in a network": (lambda: nn.QuantizedSequential([nn.float_net.Linear(REAL)]),
                                   r"^layers\[0\]: .*convert"),
    "one batch": (lambda: nn.convert.convert([nn.float_net.Linear(REAL.T)], REAL), r"^batches: .*\[array\]"),
    "too few parameters": (lambda: lowgemm.gemm(X, W, output=lowgemm.Custom(lambda a: a)),
                           "^function: [^\x1b]*too many positional arguments[^\x1b]*$"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRIES)
def test_the_message_says_what_to_do(name):
    call, said = TRIES[name]
    with pytest.raises(TypeError, match=said):
        call()
