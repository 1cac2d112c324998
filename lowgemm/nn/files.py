"""Saving and loading networks as ``.npz``, read by `lowgemm.npz`. No code is run, and every value is checked.

The file holds plain arrays named ``layer.field``, numbered by layer (``0.weight``, ``2.branch.0.bias``).
Loading calls the layers' constructors, which check everything.
"""

from __future__ import annotations

import os
from typing import IO, Any

import numpy as np

from lowgemm import npz
from lowgemm.nn.add import QuantizedResidual
from lowgemm.nn.conv import QuantizedConv2d
from lowgemm.nn.layer import Layer
from lowgemm.nn.linear import QuantizedLinear
from lowgemm.nn.pool import QuantizedAveragePool2d, QuantizedFlatten, QuantizedMaxPool2d
from lowgemm.nn.sequential import QuantizedSequential
from lowgemm.quantization import QParams

_FORMAT = "lowgemm_nn"
_KINDS: dict[str, Any] = {
    cls.kind: cls
    for cls in (
        QuantizedLinear,
        QuantizedConv2d,
        QuantizedMaxPool2d,
        QuantizedAveragePool2d,
        QuantizedFlatten,
        QuantizedResidual,
    )
}
_DTYPES = ("int8", "uint8")
#: Depth to which residual blocks may lie inside one another, so that no file can exhaust Python's stack.
_DEPTH = 20


def save(file: str | os.PathLike[str] | IO[bytes], model: QuantizedSequential) -> None:
    """Write a network to an ``.npz`` file, without pickle.

    Parameters
    ----------
    file : path or binary file
        Where to.
    model : QuantizedSequential
        Layers of `lowgemm.nn`.

    Raises
    ------
    TypeError
        If `model` is no `QuantizedSequential`, a layer is not one of this package, or `file` is neither a
        path nor a binary file.
    """
    if not isinstance(model, QuantizedSequential):
        raise TypeError(f"model: expected a QuantizedSequential, got {type(model).__name__}")
    arrays: dict[str, Any] = {_FORMAT: np.int64(1)}
    _put_layers(arrays, "", model.layers)
    npz.write(file, **arrays)


def _put_layers(arrays: dict[str, Any], prefix: str, layers: Any) -> None:
    arrays[f"{prefix}layers"] = np.int64(len(layers))
    for i, layer in enumerate(layers):
        if type(layer) is not _KINDS.get(layer.kind):
            raise TypeError(f"model: expected layers of lowgemm.nn, got {type(layer).__name__}")
        arrays[f"{prefix}{i}.kind"] = np.array(layer.kind)
        for name, value in layer.state().items():
            key = f"{prefix}{i}.{name}"
            if isinstance(value, QParams):
                axis = 99 if value.axis is None else value.axis
                arrays[f"{key}.scale"], arrays[f"{key}.zero_point"] = value.scale, value.zero_point
                arrays[f"{key}.range"] = np.array(
                    [_DTYPES.index(value.dtype.name), axis, value.qmin, value.qmax], np.int64
                )
            elif isinstance(value, tuple) and value and isinstance(value[0], Layer):
                _put_layers(arrays, f"{key}.", value)
            elif value is not None:
                arrays[key] = np.asarray(value)


def load(file: str | os.PathLike[str] | IO[bytes], *, max_bytes: int = 1 << 36) -> QuantizedSequential:
    """Read what `save` wrote.

    Parameters
    ----------
    file : path or binary file
        What to read.
    max_bytes : int
        Most bytes of arrays to take.

    Returns
    -------
    QuantizedSequential

    Raises
    ------
    TypeError
        If `file` is neither a path nor a binary file.
    ValueError
        If the file is damaged, or is no network. Memory grows with what is in the file, not with the sizes
        that it names.
    OSError
        If it cannot be opened.

    Examples
    --------
    >>> import io, numpy as np
    >>> from lowgemm.nn import QuantizedFlatten
    >>> from lowgemm.quantization import QParams
    >>> f = io.BytesIO()
    >>> save(f, QuantizedSequential([QuantizedFlatten(QParams(0.5, 3, "uint8"))]))
    >>> load(f)(np.zeros((2, 3, 4, 1), np.uint8)).shape
    (2, 12)
    """
    arrays = npz.read(file, max_bytes=max_bytes)
    version = arrays.pop(_FORMAT, None)
    if version is None or version.shape != () or version.dtype.kind != "i" or version != 1:
        raise ValueError(f"file: expected a network of format 1 ('{_FORMAT}')")
    try:
        model = QuantizedSequential(_take_layers(arrays, "", 0))
    except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
        text = f"no array {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"file: expected a sound network ({text:.300})") from None
    if arrays:
        raise ValueError(f"file: expected no other arrays, got {sorted(arrays)!r:.200}")
    return model


def _take_layers(arrays: dict[str, np.ndarray], prefix: str, depth: int) -> list[Layer]:
    if depth > _DEPTH:
        raise ValueError(f"expected at most {_DEPTH} branches inside branches")
    count = arrays.pop(f"{prefix}layers")
    if count.shape != () or count.dtype.kind != "i" or not 1 <= count <= len(arrays):
        raise ValueError(f"expected a number of layers in '{prefix}layers'")
    return [_take_layer(arrays, f"{prefix}{i}.", depth) for i in range(int(count))]


def _text(a: np.ndarray, name: str) -> str:
    if a.shape != () or a.dtype.kind != "U":
        raise ValueError(f"expected text in '{name}'")
    return str(a)


def _take_layer(arrays: dict[str, np.ndarray], prefix: str, depth: int) -> Layer:
    cls = _KINDS.get(_text(arrays.pop(f"{prefix}kind"), f"{prefix}kind"))
    if cls is None:
        raise ValueError(f"expected one of the kinds {', '.join(_KINDS)} in '{prefix}kind'")
    fields: dict[str, Any] = {}
    if cls is QuantizedResidual:
        fields["branch"] = _take_layers(arrays, f"{prefix}branch.", depth + 1)
    for name in ("input_qparams", "weight_qparams", "output_qparams"):
        qparams = _take_qparams(arrays, f"{prefix}{name}")
        if qparams is not None:
            fields[name] = qparams
    for name in ("weight", "bias"):
        if f"{prefix}{name}" in arrays:
            fields[name] = arrays.pop(f"{prefix}{name}")
    for name in ("activation", "rounding"):
        if f"{prefix}{name}" in arrays:
            fields[name] = _text(arrays.pop(f"{prefix}{name}"), prefix + name)
    for name in ("size", "stride", "padding", "dilation", "groups"):
        if f"{prefix}{name}" in arrays:
            a = arrays.pop(f"{prefix}{name}")
            if a.dtype.kind != "i" or a.size > 4:
                raise ValueError(f"expected a few integers in '{prefix}{name}'")
            fields[name] = int(a) if a.ndim == 0 else tuple(int(v) for v in a.ravel())
    if cls in (QuantizedLinear, QuantizedConv2d):
        fields.setdefault("bias", None)
    return cls(**fields)


def _take_qparams(arrays: dict[str, np.ndarray], key: str) -> QParams | None:
    if f"{key}.scale" not in arrays:
        return None
    scale, zero, extent = (arrays.pop(f"{key}.{name}") for name in ("scale", "zero_point", "range"))
    if extent.shape != (4,) or extent.dtype.kind != "i" or not 0 <= extent[0] < len(_DTYPES):
        raise ValueError(f"expected dtype, axis, smallest and largest integer in '{key}.range'")
    kind, axis, qmin, qmax = (int(v) for v in extent)
    return QParams(scale, zero, _DTYPES[kind], None if axis == 99 else axis, qmin, qmax)
