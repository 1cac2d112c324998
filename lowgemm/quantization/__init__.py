"""From float to integers: scales, calibration, practical tricks. `docs/quantization.md` teaches it."""

from lowgemm.quantization.affine import dequantize, fake_quantize, quantize
from lowgemm.quantization.bias import clipped_normal_mean, correct_bias, correct_bias_from_outputs
from lowgemm.quantization.calibrate import calibrate, progress_bar
from lowgemm.quantization.equalization import Equalized, equalize_ranges
from lowgemm.quantization.findings import Finding, TensorReport
from lowgemm.quantization.folding import fold_batch_norm
from lowgemm.quantization.headroom import scale_for_bias
from lowgemm.quantization.observer import Observer
from lowgemm.quantization.observers import MinMax, MovingAverage, Percentile
from lowgemm.quantization.one_array import Quantized, quantize_array
from lowgemm.quantization.qparams import QParams, choose_qparams, quantize_multiplier
from lowgemm.quantization.report import RangeReport, range_report
from lowgemm.quantization.s_shaped import (
    SShapedGain,
    s_shaped_gain,
    s_shaped_input,
    s_shaped_output,
    s_shaped_stages,
    s_shaped_table,
)
from lowgemm.quantization.search import Entropy, MeanSquaredError
from lowgemm.quantization.sqnr import sqnr

__all__ = [
    "Entropy",
    "Equalized",
    "Finding",
    "MeanSquaredError",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Percentile",
    "QParams",
    "Quantized",
    "RangeReport",
    "SShapedGain",
    "TensorReport",
    "calibrate",
    "choose_qparams",
    "clipped_normal_mean",
    "correct_bias",
    "correct_bias_from_outputs",
    "dequantize",
    "equalize_ranges",
    "fake_quantize",
    "fold_batch_norm",
    "progress_bar",
    "quantize",
    "quantize_array",
    "quantize_multiplier",
    "range_report",
    "s_shaped_gain",
    "s_shaped_input",
    "s_shaped_output",
    "s_shaped_stages",
    "s_shaped_table",
    "scale_for_bias",
    "sqnr",
]
