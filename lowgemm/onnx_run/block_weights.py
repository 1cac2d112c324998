"""Weights of 4 or 2 bits that a model dequantizes: ``DequantizeLinear -> MatMul`` becomes MatMulNBits.

This is how ONNX itself (operator set 21 and later) writes weight-only quantization: constant weights of type
int4, uint4, int2 or uint2, with a scale for each block of the depth, for each column, or for all, and float32
data. The weights stay packed, an eighth of their size in float32, and each row of data is multiplied by
`nbits_weights.py` to within 2**-23 of what the model says.

onnxruntime's optimizer makes the same replacement, but then codes the data as int8 as well (its
`accuracy_level` 4), which is some thousand times less exact. This does not.

Smaller weights (`LEAST`) stay in float32: a call of a small product takes longer than its arithmetic.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lowgemm.onnx_run.contrib import DOMAIN
from lowgemm.onnx_run.nbits_weights import packed

#: Weights from which a product is rewritten. One row times 1024 x 1024 takes 0.85 of the float32 product's
#: time, 512 x 512 1.5 (one thread of a Xeon).
LEAST = 1 << 20
#: Depth of a block where the scales have none: a whole column is so many blocks of one scale.
WHOLE_COLUMN = 128
_FLOAT32 = 1
#: Names of ONNX's element types, and the bits and smallest value of each.
_TYPES = {"INT4": (4, -8), "UINT4": (4, 0), "INT2": (2, -2), "UINT2": (2, 0)}


class Weights(NamedTuple):
    """Codes from 0 on (depth, columns), and for each block of the depth a scale and a zero point."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    bits: int
    block: int


def _type_of(r: Any, name: str) -> tuple[int, int] | None:
    """Bits and smallest value of an initializer's element type; None if it is not one of `_TYPES`."""
    from onnx import TensorProto

    kinds = {getattr(TensorProto, n): t for n, t in _TYPES.items() if hasattr(TensorProto, n)}
    return next((kinds.get(t.data_type) for t in r.model.graph.initializer if t.name == name), None)


def _by_blocks(values: np.ndarray, axis: int, blocks: int, columns: int) -> np.ndarray | None:
    """One value for each block and column, from as many, one for each column, or one; None if it is not so.

    `axis`: that of the columns, where the values are those of columns.
    """
    if values.ndim == 2 and values.shape == (blocks, columns):
        return values
    if values.size == 1 or (values.shape == (columns,) and axis == 1):
        return np.broadcast_to(values.reshape(1, -1), (blocks, columns))
    return None


def _weights(r: Any, name: str, turned: bool) -> Weights | None:
    """The weights behind a tensor that a product reads; `turned`: it reads the transposed."""
    node = r.makers.get(name)
    if node is not None and node.op_type == "Transpose" and node.domain in ("", "ai.onnx"):
        turned, node = not turned, r.makers.get(node.input[0])
    if node is None or node.op_type != "DequantizeLinear" or node.domain not in ("", "ai.onnx"):
        return None
    given = {a.name: a.i for a in node.attribute}
    block = given.get("block_size", 0)
    codes, scale = r.constants.get(node.input[0]), r.constants.get(node.input[1])
    kind = _type_of(r, node.input[0])
    if codes is None or scale is None or kind is None or codes.ndim != 2 or codes.size < LEAST:
        return None
    if (
        scale.dtype != np.float32
        or not np.isfinite(scale).all()
        or given.get("output_dtype", 0) not in (0, _FLOAT32)
    ):
        return None
    bits, least = kind
    zero = np.zeros(scale.shape, np.int8)
    if len(node.input) > 2 and node.input[2]:
        if (found := r.constants.get(node.input[2])) is None or found.shape != scale.shape:
            return None
        zero = found
    axis = given.get("axis", 1) % 2
    # all as if the product read them as they are: (depth, columns)
    codes, scale, zero = codes.astype(np.int8), scale, zero.astype(np.int8)
    if turned:
        codes, axis = codes.T, 1 - axis
        scale, zero = (scale.T, zero.T) if scale.ndim == 2 else (scale, zero)
    if block:
        if axis != 0 or block < 16 or block & (block - 1) or scale.ndim != 2:
            return None
    elif scale.ndim == 2:
        return None
    depth, columns = codes.shape
    blocks = -(-depth // (block or WHOLE_COLUMN))
    scales, zeros = (_by_blocks(v, axis, blocks, columns) for v in (scale, zero))
    if scales is None or zeros is None:
        return None
    return Weights(
        (codes - np.int8(least)).view(np.uint8), scales, (zeros - np.int8(least)).view(np.uint8), bits,
        block or WHOLE_COLUMN
    )  # fmt: skip


def product(r: Any, node: Any) -> bool:
    """Rewrite a MatMul or a Gemm whose right operand is such weights. `r` is a `rewrite.Rewriter`."""
    from onnx import helper

    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if given.get("transA") or given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0:
        return False
    w = _weights(r, node.input[1], bool(given.get("transB")))
    if w is None:
        return False
    depth, columns = w.codes.shape
    bias = node.input[2] if len(node.input) > 2 else ""
    if bias and (bias not in r.constants or r.constants[bias].shape != (columns,)):
        return False
    whole = np.zeros((columns, w.scales.shape[0] * w.block), np.uint8)
    whole[:, :depth] = w.codes.T
    name = f"{node.output[0]}_weights"
    inputs = [
        node.input[0],
        r.constant(name, packed(whole.reshape(columns, -1, w.block), w.bits)),
        r.constant(f"{name}_scales", np.ascontiguousarray(w.scales.T)),
        r.constant(f"{name}_zero_points", packed(np.ascontiguousarray(w.zeros.T), w.bits)),
    ]
    inputs += ["", bias] if bias else []
    attributes = {"K": depth, "N": columns, "bits": w.bits, "block_size": w.block}
    r.replace(
        node, [], "MatMulNBits", DOMAIN, inputs, node.output[0],
        [helper.make_attribute(n, v) for n, v in attributes.items()],
    )  # fmt: skip
    return True
