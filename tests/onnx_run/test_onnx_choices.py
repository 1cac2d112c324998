"""QLinearWhere: recorded, one by one and as written beside onnxruntime, bit for bit, with operands that are
repeated along any axes.
"""

from __future__ import annotations

import numpy as np
import pytest
from test_onnx_products import MS, _needs, coded, same, zero  # noqa: F401 (a fixture)

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
from onnx import helper as h


@pytest.mark.parametrize("seed", range(24))
def test_operands_of_every_shape(seed, threads):
    g = np.random.default_rng(seed)
    shape = tuple(int(n) for n in g.integers(1, 9, g.integers(1, 5)))
    if seed % 8 == 0:
        shape = (5, 31, 60)  # more than a piece, and shared among threads
    dtype = (np.uint8, np.int8)[seed % 2]

    def part():
        """A shape that is repeated to the result's."""
        some = [1 if g.random() < 0.3 else n for n in shape]
        return tuple(some[int(g.integers(0, len(some))) :] if g.random() < 0.3 else some)

    feeds = {"c": g.random(part()) < 0.5, "x": coded(g, dtype, *part()), "w": coded(g, dtype, *part())}
    feeds[str(g.choice(["x", "w"]))] = coded(g, dtype, *shape)
    constants = {n: np.float32(g.random() / 20 + 1e-3) for n in ("xs", "ws", "ys")}
    constants |= {n: zero(g, dtype) for n in ("xz", "wz", "yz")}
    if seed % 3 == 0:  # one of them is a constant
        constants["w"] = feeds.pop("w")
    names = ["c", "x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    nodes = [h.make_node("QLinearWhere", names, ["y"], domain=MS)]
    same(nodes, constants, feeds, threads)
    if feeds["x"].ndim > 1:  # and data that do not lie in order
        order = list(range(feeds["x"].ndim))[::-1]
        feeds["x"] = np.ascontiguousarray(feeds["x"].transpose(order))
        nodes.insert(0, h.make_node("Transpose", ["x"], ["t"], perm=order))
        nodes[1] = h.make_node("QLinearWhere", ["c", "t", *names[2:]], ["y"], domain=MS)
        same(nodes, constants, feeds, threads)
