"""From a float network to an integer one: calibrate, and optionally equalize and correct biases."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lowgemm.nn import float_net as fl
from lowgemm.nn.add import QuantizedResidual
from lowgemm.nn.conv import QuantizedConv2d
from lowgemm.nn.layer import Layer
from lowgemm.nn.linear import QuantizedLinear
from lowgemm.nn.pool import QuantizedAveragePool2d, QuantizedFlatten, QuantizedMaxPool2d
from lowgemm.nn.sequential import QuantizedSequential
from lowgemm.quantization import (
    MinMax,
    Observer,
    QParams,
    choose_qparams,
    correct_bias_from_outputs,
    dequantize,
    equalize_ranges,
    fake_quantize,
    quantize,
    scale_for_bias,
)


def weight_parameters(weight: np.ndarray, per_channel: bool, symmetric: bool, bits: int) -> QParams:
    """Scale (and zero point) of weights from their smallest and largest values."""
    axes = tuple(range(weight.ndim - 1)) if per_channel else None
    low, high = weight.min(axes), weight.max(axes)
    return choose_qparams(
        low,
        high,
        "int8",
        bits=bits,
        symmetric=symmetric,
        narrow_range=symmetric,
        axis=-1 if per_channel else None,
    )


class _Converter:
    def __init__(
        self, observer: Callable[[], Observer], calibration: Sequence[np.ndarray], options: dict
    ) -> None:
        self.observer, self.batches, self.options = observer, calibration, options

    def range_of(self, tensors: Sequence[np.ndarray]) -> QParams:
        observer = self.observer()
        for t in tensors:
            observer.observe(t)
        return observer.qparams()

    def chain(
        self, layers: Sequence[Any], real: list[np.ndarray], got: list[np.ndarray], p: QParams, last: bool
    ) -> tuple[list[Layer], list[np.ndarray], list[np.ndarray]]:
        """Convert layers; `real` are their float inputs, `got` the integers that the layers before gave."""
        done: list[Layer] = []
        for i, layer in enumerate(layers):
            made, real = self.layer(layer, real, got, p, last and i == len(layers) - 1)
            got = [made(g) for g in got]
            if made.output_qparams is not None:
                p = made.output_qparams
            done.append(made)
        return done, real, got

    def layer(
        self, layer: Any, real: list[np.ndarray], got: list[np.ndarray], p: QParams, last: bool
    ) -> tuple[Layer, list[np.ndarray]]:
        if isinstance(layer, (fl.Linear, fl.Conv2d)):
            return self.weighted(layer, real, got, p, last)
        if isinstance(layer, fl.Residual):
            branch, inner, _ = self.chain(layer.branch, real, got, p, False)
            outputs = [fl.activate(r + b, layer.activation) for r, b in zip(real, inner, strict=True)]
            return QuantizedResidual(branch, self.range_of(outputs), activation=layer.activation), outputs
        outputs = [layer(r) for r in real]
        if isinstance(layer, fl.Flatten):
            return QuantizedFlatten(p), outputs
        kind = QuantizedAveragePool2d if isinstance(layer, fl.AveragePool2d) else QuantizedMaxPool2d
        return kind(p, layer.size, stride=layer.stride, padding=layer.padding), outputs

    def weighted(
        self, layer: Any, real: list[np.ndarray], got: list[np.ndarray], p: QParams, last: bool
    ) -> tuple[Layer, list[np.ndarray]]:
        o = self.options
        weight_p = weight_parameters(layer.weight, o["per_channel"], o["symmetric_weights"], o["weight_bits"])
        sums = [layer.linear(r) for r in real]
        outputs = [fl.activate(s, layer.activation) for s in sums]
        chosen, bias = weight_p.scale, layer.bias
        weight_p = scale_for_bias(weight_p, layer.weight, bias, p)[0]
        if o["correct_biases"]:
            bias = self.corrected(layer, weight_p, sums, got, p)
            higher = scale_for_bias(weight_p, layer.weight, bias, p)[0]
            if higher != weight_p:  # the corrected bias needs more room, and other weights another correction
                weight_p = higher
                bias = self.corrected(layer, weight_p, sums, got, p)
        result = None if last and o["float_output"] else self.range_of(outputs)
        more = layer.options if isinstance(layer, fl.Conv2d) else {}
        cls = QuantizedConv2d if isinstance(layer, fl.Conv2d) else QuantizedLinear
        made = cls.from_float(
            layer.weight,
            bias,
            p,
            weight_p,
            result,
            activation=layer.activation,
            rounding=o["rounding"],
            **more,
        )
        made.scale_raised = made.weight_qparams.scale / chosen
        return made, outputs

    def corrected(
        self, layer: Any, weight_p: QParams, sums: list[np.ndarray], got: list[np.ndarray], p: QParams
    ) -> np.ndarray:
        """The bias with which the rounded weights give the mean of the real `sums`."""
        rounded = copy.copy(layer)
        rounded.weight = fake_quantize(layer.weight, weight_p)
        inexact = [rounded.linear(dequantize(g, p)) for g in got]
        return correct_bias_from_outputs(layer.bias, np.concatenate(sums), np.concatenate(inexact))


def convert(
    layers: Sequence[Any],
    batches: Sequence[Any],
    *,
    observer: Callable[[], Observer] | None = None,
    input_qparams: QParams | None = None,
    per_channel: bool = True,
    symmetric_weights: bool = True,
    weight_bits: int = 8,
    equalize: bool = False,
    correct_biases: bool = False,
    float_output: bool = True,
    rounding: str = "gemmlowp",
) -> QuantizedSequential:
    """Post-training quantization of a float network.

    Parameters
    ----------
    layers : sequence of float layers
        `Linear`, `Conv2d`, `MaxPool2d`, `AveragePool2d`, `Flatten`, `Residual` of `lowgemm.nn.float_net`. Fold
        batch normalisations first (`lowgemm.quantization.fold_batch_norm`).
    batches : sequence of array_like of float
        Inputs for calibration.
    observer : callable
        Makes an observer for a tensor of activations, 8-bit and per tensor. Default: ``lambda: MinMax("uint8")``. For
        fewer bits: ``lambda: MinMax("uint8", bits=4)``.
    input_qparams : QParams, optional
        Of the network's input, if known (pixels). Default: observed like the others.
    per_channel : bool
        A scale per output of each layer's weights, or one.
    symmetric_weights : bool
        Zero point 0 and a narrow range, or any zero point.
    weight_bits : int
        Fewer than 8 are simulated in int8.
    equalize : bool
        Equalize the ranges of neighbouring layers first (changes nothing in float).
    correct_biases : bool
        Correct each bias so that the layer's mean outputs on `batches` are those of the float network.
    float_output : bool
        Let the last layer, if it is linear or a convolution, give float32.
    rounding : str
        As for `lowgemm.Requantize`.

    Returns
    -------
    QuantizedSequential
        `scale_raised` of a layer says where a scale of its weights was raised so that int32 sums hold its bias, and how far.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Notes
    -----
    Krishnamoorthi 2018 (arXiv:1806.08342), section 3; Nagel et al. 2019 (arXiv:1906.04721) for the last two options.

    Examples
    --------
    >>> import numpy as np
    >>> from lowgemm.nn.float_net import Linear, run_float
    >>> x = np.random.default_rng(0).uniform(-1, 1, (100, 8))
    >>> net = [Linear(np.eye(8), activation="relu"), Linear(np.ones((8, 1)))]
    >>> q = convert(net, [x])
    >>> bool(np.abs(q.predict(x) - run_float(net, x)).max() < 0.05)
    True
    """
    kinds = (fl.Linear, fl.Conv2d, fl.MaxPool2d, fl.Flatten, fl.Residual)
    if not isinstance(layers, Sequence) or not layers:
        raise TypeError("layers: expected a sequence of float layers")
    for i, layer in enumerate(layers):
        if not isinstance(layer, kinds):
            raise TypeError(f"layers[{i}]: expected a float layer, got {type(layer).__name__}")
    if isinstance(batches, np.ndarray) or not isinstance(batches, Sequence) or not batches:
        raise TypeError("batches: expected a sequence of arrays")
    real = [np.asarray(b, np.float32) for b in batches]
    options = {
        "per_channel": per_channel,
        "symmetric_weights": symmetric_weights,
        "weight_bits": weight_bits,
        "correct_biases": correct_biases,
        "float_output": float_output,
        "rounding": rounding,
    }
    converter = _Converter(observer or _default_observer, real, options)
    p = input_qparams or converter.range_of(real)
    net = equalized(layers) if equalize else layers
    done, _, _ = converter.chain(net, real, [quantize(b, p) for b in real], p, True)
    return QuantizedSequential(done)


def _default_observer() -> Observer:
    return MinMax("uint8")


def equalized(layers: Sequence[Any]) -> list[Any]:
    """The same network with equalized ranges between neighbouring layers.

    Parameters
    ----------
    layers : sequence of float layers
        Chains end at residual blocks, grouped convolutions that are not depthwise, and ReLU6.

    Returns
    -------
    list of float layers
    """
    out = [copy.copy(layer) for layer in layers]
    chain: list[tuple[Any, bool]] = []  # layer, and whether it follows a flattening

    def finish() -> None:
        if len(chain) > 1:
            _equalize_chain(chain)
        chain.clear()

    flattened = False
    for layer in out:
        if isinstance(layer, fl.Residual):
            finish()
            layer.branch = equalized(layer.branch)
        elif isinstance(layer, fl.Flatten):
            flattened = True
        elif isinstance(layer, (fl.Linear, fl.Conv2d)):
            depthwise = isinstance(layer, fl.Conv2d) and layer.groups == layer.weight.shape[3] > 1
            if (
                isinstance(layer, fl.Conv2d)
                and layer.groups > 1
                and not (depthwise and layer.weight.shape[2] == 1)
            ):
                finish()
                continue
            chain.append((layer, flattened))
            flattened = False
            if layer.activation == "relu6":
                finish()
    finish()
    return out


def _equalize_chain(chain: list[tuple[Any, bool]]) -> None:
    weights, ins, outs = [], [], []
    for i, (layer, flattened) in enumerate(chain):
        w = layer.weight
        if isinstance(layer, fl.Linear):
            if flattened and i:
                channels = weights[-1].shape[-1]
                w = w.reshape(-1, channels, w.shape[1])
            in_axis = w.ndim - 2
        else:
            in_axis = 3 if layer.groups > 1 else 2
        weights.append(w)
        ins.append(in_axis)
        outs.append(w.ndim - 1)
    result = equalize_ranges(weights, [layer.bias for layer, _ in chain], out_axis=outs, in_axis=ins)
    for (layer, _), w, b in zip(chain, result.weights, result.biases, strict=True):
        layer.weight, layer.bias = w.reshape(layer.weight.shape), b
