"""From float to integers: scales, calibration, practical tricks. `docs/quantization.md` teaches it."""

from lowgemm.quantization.affine import dequantize, fake_quantize, quantize
from lowgemm.quantization.qparams import QParams, choose_qparams, quantize_multiplier

__all__ = [
    "QParams",
    "choose_qparams",
    "dequantize",
    "fake_quantize",
    "quantize",
    "quantize_multiplier",
]
