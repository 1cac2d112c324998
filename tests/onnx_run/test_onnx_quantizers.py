"""QuantizeLinear and DequantizeLinear with one scale, one for each index of an axis, and one for each block:
recorded, one by one and as written beside onnxruntime, bit for bit.
"""

from __future__ import annotations

import numpy as np
import pytest
from test_onnx_products import _needs, coded, same, zero  # noqa: F401 (a fixture)

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
from onnx import helper as h


@pytest.mark.parametrize("seed", range(60))
def test_scales_of_every_kind(seed, threads):
    g = np.random.default_rng(seed)
    shape = tuple(int(n) for n in g.integers(1, 24, g.integers(2, 5)))
    if seed % 12 == 0:
        shape = (3, 40, 90)  # more than a piece, and shared among threads
    axis = int(g.integers(-len(shape), len(shape)))
    n, block = shape[axis], int(g.integers(1, 20))
    kind = ("tensor", "axis", "blocks")[seed % 3]
    blocks = list(shape)
    blocks[axis] = -(-n // block)
    size = {"tensor": (), "axis": (n,), "blocks": tuple(blocks)}[kind]
    how = {"axis": axis} | ({"block_size": block} if kind == "blocks" else {})
    dtype = (np.uint8, np.int8)[seed // 3 % 2]
    scale = (g.random(size) / 9 + 1e-3).astype(np.float32)
    x = (g.standard_normal(shape) * 9).astype(np.float32)
    whole = g.random(shape) < 0.1  # ties
    x[whole] = np.rint(x[whole])
    if kind == "tensor":
        scale = np.float32(0.5)
    x.reshape(-1)[:3] = np.array([np.inf, -np.inf, 3e38], np.float32)[: x.size]
    constants = {"s": scale, "z": zero(g, dtype, *size)}
    feeds = {"x": x, "q": coded(g, dtype, *shape)}
    nodes = [
        h.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], **how),
        h.make_node("DequantizeLinear", ["q", "s", "z"], ["r"], **how),
    ]
    same(nodes, constants, feeds, threads, ("y", "r"))
    order = [*range(1, len(shape)), 0]  # and of data that do not lie in order, between recorded operators
    places = {k: order.index(i) for i, k in enumerate(range(len(shape)))}
    turned = [h.make_node("Transpose", [n], [f"{n}t"], perm=order) for n in ("x", "q")]
    moved = {"axis": places[axis % len(shape)]} | ({"block_size": block} if kind == "blocks" else {})
    if kind == "blocks":
        constants = {n: np.ascontiguousarray(v.transpose(order)) for n, v in constants.items()}
    nodes = [
        *turned,
        h.make_node("QuantizeLinear", ["xt", "s", "z"], ["y"], **moved),
        h.make_node("DequantizeLinear", ["qt", "s", "z"], ["r"], **moved),
    ]
    same(nodes, constants, feeds, threads, ("y", "r"), recorded=False)


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.int16])
def test_wider_integers(dtype, threads):
    g, info = np.random.default_rng(9), np.iinfo(dtype)
    q = g.integers(info.min, info.max, (4, 6, 10), endpoint=True).astype(dtype)
    z = np.zeros(6, dtype) if dtype == np.int32 else q[0, :, 0].copy()
    constants = {"s": (g.random(6) + 0.01).astype(np.float32), "z": z}
    node = h.make_node("DequantizeLinear", ["q", "s", "z"], ["r"])
    # those of 16 bits are onnxruntime's, unless the model runs as it is written
    same([node], constants, {"q": q}, threads, ("r",), recorded=dtype == np.int32)
