"""From a float network to an integer one: calibrate, and optionally equalize and correct biases."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lowgemm.nn import float_net as fl
from lowgemm.nn.add import QuantizedResidual
from lowgemm.nn.conv import QuantizedConv2d
from lowgemm.nn.layer import Layer, tensor_qparams
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


def new_observer(pattern: Any) -> Observer:
    """An observer for one tensor: a copy of `pattern`, or what it makes when called."""
    if isinstance(pattern, Observer):
        made = copy.deepcopy(pattern)
    elif callable(pattern):
        made = pattern()
        if not isinstance(made, Observer):
            raise TypeError(
                f"observer: expected a function that makes an Observer, got a {type(made).__name__}"
            )
    else:
        raise TypeError(
            f"observer: expected an Observer or a function that makes one, got {type(pattern).__name__}"
        )
    if made.channels is not None:
        raise ValueError("observer: expected one that has observed nothing yet")
    if made.axis is not None or made.options["dtype"].itemsize != 1:
        raise ValueError("observer: expected one range per tensor (axis None) and dtype int8 or uint8")
    return made


class _Converter:
    def __init__(self, observer: Observer | Callable[[], Observer], options: dict) -> None:
        self.observer, self.options = observer, options

    def network(
        self, layers: Sequence[Any], real: list[np.ndarray], p: QParams
    ) -> tuple[QuantizedSequential, float]:
        """The integer network, and the sum of squares of what its results on `real` are off."""
        done, expected, got = self.chain(layers, real, [quantize(b, p) for b in real], p, True)
        made = QuantizedSequential(done)
        if made.output_qparams is not None:
            got = [dequantize(g, made.output_qparams) for g in got]
        off = [(y - g).astype(np.float64) for y, g in zip(expected, got, strict=True)]
        return made, sum(float((d**2).sum()) for d in off)

    def range_of(self, tensors: Sequence[np.ndarray]) -> QParams:
        observer = new_observer(self.observer)
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
        options = layer.options if isinstance(layer, fl.Conv2d) else {}
        cls = QuantizedConv2d if isinstance(layer, fl.Conv2d) else QuantizedLinear
        made = cls.from_float(
            layer.weight,
            bias,
            p,
            weight_p,
            result,
            activation=layer.activation,
            rounding=o["rounding"],
            **options,
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
    observer: Observer | Callable[[], Observer] | None = None,
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
        `Linear`, `Conv2d`, `MaxPool2d`, `AveragePool2d`, `Flatten`, `Residual` of `lowgemm.nn.float_net`.
        Fold batch normalisations first (`lowgemm.quantization.fold_batch_norm`).
    batches : sequence of array_like of float
        Inputs for calibration.
    observer : Observer, or a function or class that makes one
        For tensors of activations: 8-bit and one range per tensor. An observer is a pattern, copied for each
        tensor; it must have observed nothing yet. Default: ``MinMax("uint8")``. For fewer bits:
        ``MinMax("uint8", bits=4)``.
    input_qparams : QParams, optional
        Of the network's input, if known (pixels). Default: observed like the others.
    per_channel : bool
        Each layer's weights have one scale per output, or one scale for all.
    symmetric_weights : bool
        Weights have zero point 0 and a narrow range. Otherwise they may have any zero point.
    weight_bits : int
        Fewer than 8 are simulated in int8.
    equalize : bool
        Equalize the ranges of neighbouring layers first, which changes nothing in float. The factors are
        bounded, so that no channel's activations become so large that they decide the scale of all. Where
        ranges are alike already, equalizing costs precision. So the network is converted both ways, and the
        one is taken whose results on `batches` are closer to float.
    correct_biases : bool
        Correct each bias so that the layer's mean outputs on `batches` are those of the float network.
    float_output : bool
        Let the last layer, if it is linear or a convolution, give float32.
    rounding : str
        As for `lowgemm.Requantize`.

    Returns
    -------
    QuantizedSequential
        `scale_raised` of a layer says where a scale of its weights was raised so that int32 sums hold its
        bias, and how far.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Notes
    -----
    Krishnamoorthi 2018 (arXiv:1806.08342), section 3; Nagel et al. 2019 (arXiv:1906.04721) for the last two
    options.

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
        raise TypeError(
            f"batches: expected a list of arrays, got {type(batches).__name__}; of one array make [array]"
        )
    real = [np.asarray(b, np.float32) for b in batches]
    options = {
        "per_channel": per_channel,
        "symmetric_weights": symmetric_weights,
        "weight_bits": weight_bits,
        "correct_biases": correct_biases,
        "float_output": float_output,
        "rounding": rounding,
    }
    converter = _Converter(MinMax("uint8") if observer is None else observer, options)
    new_observer(converter.observer)  # so that a wrong one is an error even if nothing has to be observed
    p = converter.range_of(real) if input_qparams is None else tensor_qparams(input_qparams, "input_qparams")
    made, off = converter.network(layers, real, p)
    if equalize:
        other, other_off = converter.network(equalized(layers, real), real, p)
        made = other if other_off < off else made
    return made


def equalized(layers: Sequence[Any], batches: Sequence[np.ndarray] | None = None) -> list[Any]:
    """The same network with equalized ranges between neighbouring layers.

    Parameters
    ----------
    layers : sequence of float layers
        Chains end at residual blocks, grouped convolutions that are not depthwise, and ReLU6.
    batches : sequence of float32 ndarray, optional
        Inputs. With them the factors are bounded by the ranges of the activations (`equalize_ranges`).

    Returns
    -------
    list of float layers
    """
    out = [copy.copy(layer) for layer in layers]
    chain: list[_Link] = []

    def finish() -> None:
        if len(chain) > 1:
            _equalize_chain(chain)
        chain.clear()

    flattened = False
    for layer in out:
        before = batches
        largest = None
        if batches is not None:
            if isinstance(layer, (fl.Linear, fl.Conv2d)):
                sums = [layer.linear(b) for b in batches]
                largest = np.max([_largest(s) for s in sums], axis=0)
                batches = [fl.activate(s, layer.activation) for s in sums]
            else:
                batches = [layer(b) for b in batches]
        if isinstance(layer, fl.Residual):
            finish()
            layer.branch = equalized(layer.branch, before)
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
            chain.append(_Link(layer, flattened, largest))
            flattened = False
            if layer.activation == "relu6":
                finish()
    finish()
    return out


class _Link(NamedTuple):
    """A layer of a chain, whether it follows a flattening, and the largest magnitude of each of its sums."""

    layer: Any
    flattened: bool
    largest: np.ndarray | None


def _largest(sums: np.ndarray) -> np.ndarray:
    """Before the activation. A ReLU that lets nothing through on these data may do so on others."""
    return np.abs(sums.reshape(-1, sums.shape[-1])).max(axis=0, initial=0.0)


def _equalize_chain(chain: list[_Link]) -> None:
    weights, ins, outs = [], [], []
    for i, (layer, flattened, _) in enumerate(chain):
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
    ranges = None if chain[0].largest is None else [link.largest for link in chain[:-1]]
    biases = [link.layer.bias for link in chain]
    result = equalize_ranges(weights, biases, out_axis=outs, in_axis=ins, ranges=ranges)
    for (layer, _, _), w, b in zip(chain, result.weights, result.biases, strict=True):
        layer.weight, layer.bias = w.reshape(layer.weight.shape), b
