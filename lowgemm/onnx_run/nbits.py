"""MatMulNBits: float32 data times weights of 4, 2 or 8 bits with a scale and a zero point for each block of
depth.

The products are lowgemm's of coded weights (`lowgemm.blockwise`), which are exact integer sums of each block,
scaled and added in float32. They take bytes, so a row of the data becomes three digits: a whole number of 24
bits, with its sign, is 65,536 times the first digit, 256 times the second, and the third. So no number of the
data is off by more than 2**-23 of the largest of its row, which is what float32 sums lose anyway. (A row up
to 1e-31 counts as zeros.) The digits of a row are rows of one product: the weights are decoded once. The
result has the same bits on every CPU and for any number of threads.

With `accuracy_level` 4 onnxruntime codes the data as int8 first, each block of a row with a scale of its own.
So does this, and multiplies the codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lowgemm.checks.values import integer
from lowgemm.onnx_run import nbits_tape
from lowgemm.onnx_run.nbits_weights import PackedBlocks
from lowgemm.onnx_run.state import NotOurs, State
from lowgemm.onnx_run.tape import Recorder

DOMAIN = "com.microsoft"
_f32 = np.float32
_KNOWN = {"K", "N", "bits", "block_size", "accuracy_level"}


def _is_coded(bits: int, block: int, level: int) -> bool:
    """Whether onnxruntime (1.32) codes the data as int8."""
    return level == 4 and (bits != 2 or 32 <= block <= 128)


def _taken(attributes: dict[str, Any], a: Any, scales: Any, zeros: Any, g_idx: Any) -> bool:
    """Whether a node is lowgemm's: float32, zero points in bytes, blocks in order."""
    return (
        not set(attributes) - _KNOWN
        and attributes.get("bits", 4) in (2, 4, 8)
        and g_idx is None
        and (a is None or a.dtype == _f32)
        and scales.dtype == _f32
        and (zeros is None or zeros.dtype == np.uint8)
    )


def _weights(b: Any, scales: np.ndarray, zeros: Any, attributes: dict[str, Any]) -> PackedBlocks:
    depth, bits = integer(attributes["K"], "K", 1), attributes.get("bits", 4)
    block = integer(attributes["block_size"], "block_size", 16)
    if block & (block - 1):
        raise ValueError(f"block_size: expected a power of 2, got {block}")
    if b.dtype != np.uint8 or b.ndim != 3 or b.shape[0] != attributes["N"]:
        raise ValueError(
            f"B: expected uint8 of shape ({attributes['N']}, blocks, bytes), got {b.dtype} of shape {b.shape}"
        )
    return PackedBlocks(b, scales, zeros, depth, bits, block)


def _run(state: State, a: np.ndarray, w: PackedBlocks, bias: Any, level: int) -> np.ndarray:
    if a.dtype != _f32 or not a.ndim or a.shape[-1] != w.depth:
        raise ValueError(f"A: expected float32 of shape (..., {w.depth}), got {a.dtype} of shape {a.shape}")
    n = w.shape[0]
    rows = a.reshape(int(np.prod(a.shape[:-1])), w.depth)
    y = w.product(rows, _is_coded(w.bits, w.block, level), state.num_threads)
    if bias is not None:
        if bias.shape != (n,):
            raise ValueError(f"bias: expected shape ({n},), got {bias.shape}")
        y += bias
    return y.reshape(*a.shape[:-1], n)


def matmul_nbits(
    state: State, a, b, scales, zero_points=None, g_idx=None, bias=None, *, accuracy_level: int = 0,
    **attributes: Any
) -> np.ndarray:  # fmt: skip
    """MatMulNBits, its weights packed for this call."""
    b = b.to_array() if isinstance(b, PackedBlocks) else b
    if not _taken(attributes, a, scales, zero_points, g_idx):
        raise NotOurs
    return _run(state, a, _weights(b, scales, zero_points, attributes), bias, accuracy_level)


def prepared(state: State, constants: Sequence[Any], attributes: dict[str, Any], last: bool) -> Any:
    """MatMulNBits with constant weights."""
    _, b, scales, zeros, g_idx, *_ = [*constants, *[None] * 6][:6]
    level = attributes.get("accuracy_level", 0)
    if b is None or scales is None or not _taken(attributes, None, scales, zeros, g_idx):
        return None
    w = state.blocks(b, scales, zeros, make=lambda: _weights(b, scales, zeros, attributes))

    def run(*inputs: Any) -> Any:
        given = [*inputs, *[None] * 6][:6]
        if given[3] is not zeros or given[4] is not None:  # they come with the data after all
            return NotImplemented
        return _run(state, given[0], w, given[5], level)

    def record(recorder: Recorder, *inputs: Any) -> Any:
        given = [*inputs, *[None] * 6][:6]
        x, bias = given[0], given[5]
        if given[3] is not zeros or given[4] is not None or x.dtype != _f32 or x.shape[-1:] != (w.depth,):
            return None
        if bias is not None and (bias.shape != (w.shape[0],) or bias.dtype != _f32):
            return None
        y = nbits_tape.record(recorder, x, w, bias, _is_coded(w.bits, w.block, level), state.num_threads)
        return None if y is None else (y,)

    run.record = record  # type: ignore[attr-defined]
    return run


OPERATORS = {(DOMAIN, "MatMulNBits"): matmul_nbits}
MAKERS = {(DOMAIN, "MatMulNBits"): prepared}
