"""How much work a network is: multiply-accumulates, bytes moved, and the ratio of the two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowgemm.checks.values import integer
from lowgemm.nn.layer import Layer
from lowgemm.nn.sequential import QuantizedSequential


@dataclass(frozen=True)
class LayerCost:
    """Work of one layer.

    Parameters
    ----------
    name : str
        Kind of layer, or "gemm".
    output_shape : tuple of int
        Shape of the result.
    maccs : int
        Multiply-accumulates.
    bytes_moved : int
        Input, weights, bias and result, each once: what has to move if nothing stays in a cache.
    """

    name: str
    output_shape: tuple[int, ...]
    maccs: int
    bytes_moved: int

    @property
    def intensity(self) -> float:
        """Multiply-accumulates per byte moved."""
        return self.maccs / self.bytes_moved if self.bytes_moved else 0.0


@dataclass(frozen=True)
class Cost:
    """What `count_maccs` returns; `print` it for a table.

    Parameters
    ----------
    layers : tuple of LayerCost
        In order.
    """

    layers: tuple[LayerCost, ...]

    @property
    def maccs(self) -> int:
        """Multiply-accumulates of all layers."""
        return sum(layer.maccs for layer in self.layers)

    @property
    def bytes_moved(self) -> int:
        """Bytes moved by all layers."""
        return sum(layer.bytes_moved for layer in self.layers)

    def __str__(self) -> str:
        lines = [f"{'layer':16s}{'result':>22s}{'MACC':>16s}{'bytes':>14s}{'MACC/byte':>12s}"]
        for c in self.layers:
            shape = "x".join(map(str, c.output_shape))
            lines.append(f"{c.name:16s}{shape:>22s}{c.maccs:16,d}{c.bytes_moved:14,d}{c.intensity:12.1f}")
        ratio = self.maccs / self.bytes_moved if self.bytes_moved else 0.0
        lines.append(f"{'total':38s}{self.maccs:16,d}{self.bytes_moved:14,d}{ratio:12.1f}")
        return "\n".join(lines)

    __repr__ = __str__  # the table


def count_maccs(
    model: QuantizedSequential | Layer | Sequence[tuple[int, int, int]],
    input_shape: Sequence[int] | None = None,
) -> Cost:
    """Count multiply-accumulates and bytes moved.

    Parameters
    ----------
    model : QuantizedSequential, Layer, or sequence of (m, depth, n)
        A network, or products of 8-bit matrices with int8 results.
    input_shape : sequence of int
        Of the network's input, with the batch. Not for products.

    Returns
    -------
    Cost

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> cost = count_maccs([(1, 4096, 4096), (1024, 1024, 1024)])
    >>> [round(layer.intensity, 1) for layer in cost.layers]
    [1.0, 341.3]
    """
    if isinstance(model, Layer):
        model = QuantizedSequential([model])
    if isinstance(model, QuantizedSequential):
        if input_shape is None:
            raise ValueError("input_shape: expected the shape of the network's input")
        if not isinstance(input_shape, (Sequence, np.ndarray)) or isinstance(input_shape, (str, bytes)):
            raise TypeError(f"input_shape: expected a sequence of integers, got {type(input_shape).__name__}")
        shape = tuple(integer(s, "input_shape", 0) for s in input_shape)
        try:
            return Cost(tuple(_layers(model.layers, shape)))
        except ValueError as error:
            raise ValueError(f"input_shape: a layer's {error}") from None
    if not isinstance(model, Sequence) or isinstance(model, (str, bytes)):
        raise TypeError(
            f"model: expected a network or a sequence of (m, depth, n), got {type(model).__name__}"
        )
    if input_shape is not None:
        raise ValueError("input_shape: expected None where model is a sequence of products")
    costs = []
    for i, product in enumerate(model):
        if not isinstance(product, Sequence) or isinstance(product, str) or len(product) != 3:
            raise TypeError(f"model[{i}]: expected (m, depth, n), got {product!r}")
        m, depth, n = (integer(v, f"model[{i}]", 0) for v in product)
        costs.append(LayerCost("gemm", (m, n), m * depth * n, m * depth + depth * n + m * n))
    return Cost(tuple(costs))


def _layers(layers: Sequence[Layer], shape: tuple[int, ...]) -> list[LayerCost]:
    costs = []
    for layer in layers:
        out = layer.output_shape(shape)
        if layer.kind == "residual":
            costs += _layers(layer.branch, shape)  # type: ignore[attr-defined]
            costs.append(LayerCost("add", out, 0, 3 * math.prod(out)))
        else:
            element = 4 if layer.output_qparams is None else 1
            moved = 0 if layer.kind == "flatten" else math.prod(shape) + element * math.prod(out)
            costs.append(LayerCost(layer.kind, out, layer.maccs(shape), moved + layer.parameter_bytes))
        shape = out
    return costs
