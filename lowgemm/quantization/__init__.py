"""From float to integers: scales, calibration, practical tricks. `docs/quantization.md` teaches it."""

from lowgemm.quantization.affine import dequantize, fake_quantize, quantize
from lowgemm.quantization.calibrate import calibrate, progress_bar
from lowgemm.quantization.observer import Observer
from lowgemm.quantization.observers import MinMax, MovingAverage, Percentile
from lowgemm.quantization.qparams import QParams, choose_qparams, quantize_multiplier
from lowgemm.quantization.search import Entropy, MeanSquaredError

__all__ = [
    "Entropy",
    "MeanSquaredError",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Percentile",
    "QParams",
    "calibrate",
    "choose_qparams",
    "dequantize",
    "fake_quantize",
    "progress_bar",
    "quantize",
    "quantize_multiplier",
]
