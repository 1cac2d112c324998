"""MatMulNBits taken down for a tape, beside the same product by Python, bit for bit."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
from onnx import helper as h
from onnx_models import one_by_one
from test_onnx_nbits import MS, Case

from lowgemm import config, kernels
from lowgemm.blockwise import rowtile
from lowgemm.onnx_run import Model, nbits, nbits_weights

RUNNABLE = [k.name for k in kernels.all_kernels() if not kernels.why_not(k)]


def tapes(model):
    """The tapes that runs have made."""
    groups = [t.group for t in model._program._turns if hasattr(t, "group")]
    return [r.tape for g in groups for found in g.found for r in found.values() if r.tape is not None]


def by_python(case, x, level, bias):
    """The product as `PackedBlocks` has it, one thread."""
    given = case.given
    w = nbits_weights.PackedBlocks(given["b"], given["s"], given.get("z"), case.attributes["K"],
                                   case.attributes["bits"],
                           case.attributes["block_size"])  # fmt: skip
    coded = nbits._is_coded(w.bits, w.block, level)
    y = w.product(x.reshape(-1, x.shape[-1]), coded, 1).reshape(*x.shape[:-1], -1)
    return y if bias is None else y + bias


#: Bits, zero points and level of all kinds of products; and few that together compile least.
ALL, FEW = list(itertools.product((4, 8, 2), (None, "bytes"), (0, 4))), [(4, "bytes", 0), (8, "bytes", 0)]


@pytest.mark.parametrize("kernel", [None, *RUNNABLE])
def test_as_by_python(kernel, monkeypatch):
    """All bits, zero points or none, levels, with a bias or not, one row or more than a block of rows, depths
    that end inside of a block, one thread and two; on kernels that take no codes from registers there is no
    tape.
    """
    monkeypatch.setattr(config, "kernel", kernel)
    g = np.random.default_rng(0)
    for i, (bits, zeros, level) in enumerate(ALL if kernel is None else FEW):
        depth, n, shape = (256, 300, 65)[i % 3], int(g.integers(1, 200)), ((1,), (2, 35), (3,))[i // 2 % 3]
        case = Case(g, bits, 32, depth, n, zeros)
        bias = g.standard_normal(n).astype(np.float32) if i % 3 else None
        x = g.standard_normal((*shape, depth)).astype(np.float32)
        want = by_python(case, x, level, bias)
        for threads in (1, 2):
            model = Model(case.model(level, bias), num_threads=threads)
            for _ in range(2):
                np.testing.assert_array_equal(model.run(None, {"x": x})[0], want)
            np.testing.assert_array_equal(one_by_one(model, None, {"x": x})[0], want)
            recorded = rowtile.decodes(kernels.rhs_packer(kernels.selected()))
            assert len(tapes(model)) == int(recorded)


def test_large_products_on_two_threads():
    """Several tasks, so that threads share them; the same bits, also from several threads at once."""
    g = np.random.default_rng(1)
    for level in (0, 4):
        case = Case(g, 4, 32, 512, 1500)
        model = Model(case.model(level), num_threads=2)
        xs = [g.standard_normal((3, 512)).astype(np.float32) for _ in range(6)]
        want = [by_python(case, x, level, None) for x in xs]
        model.run(None, {"x": xs[0]})
        with ThreadPoolExecutor(3) as pool:
            for x, y in zip(xs * 5, pool.map(lambda x: model.run(None, {"x": x})[0], xs * 5), strict=True):
                np.testing.assert_array_equal(y, want[next(i for i, v in enumerate(xs) if v is x)])


def test_infinities_leave_the_tape():
    """The steps run by Python then, which computes infinities; and the tape is taken again afterwards."""
    g = np.random.default_rng(2)
    case, x = Case(g, 4, 32, 64, 9), g.standard_normal((3, 64)).astype(np.float32)
    for level in (0, 4):
        model, bad = Model(case.model(level)), x.copy()
        bad[1, 5] = np.inf
        first = model.run(None, {"x": x})[0]
        got = model.run(None, {"x": bad})[0]
        np.testing.assert_array_equal(got[[0, 2]], first[[0, 2]])
        assert not np.isfinite(got[1]).any()
        np.testing.assert_array_equal(model.run(None, {"x": x})[0], first)


def test_several_products_are_one_tape():
    """Two products of one input and one of their result, whose weights have codes of their own."""
    g = np.random.default_rng(3)
    cases = [Case(g, bits, 32, depth, n) for bits, depth, n in ((4, 64, 40), (8, 64, 40), (2, 40, 7))]
    nodes, held = [], []
    for i, (case, reads) in enumerate(zip(cases, ("x", "y0", "y0"), strict=True)):
        if i == 1:
            case = cases[1] = Case(g, 4, 32, 40, 40)
        held += [onnx.numpy_helper.from_array(v, f"{n}{i}") for n, v in case.given.items()]
        nodes.append(
            h.make_node("MatMulNBits", [reads, f"b{i}", f"s{i}"], [f"y{i}"], domain=MS, **case.attributes)
        )
    graph = h.make_graph(
        nodes, "g", [h.make_tensor_value_info("x", 1, None)],
        [onnx.ValueInfoProto(name=n) for n in ("y1", "y2")], held,
    )  # fmt: skip
    proto = h.make_model(graph, opset_imports=[h.make_opsetid("", 17), h.make_opsetid(MS, 1)], ir_version=8)
    model, x = Model(proto), g.standard_normal((2, 64)).astype(np.float32)
    middle = by_python(cases[0], x, 0, None)
    for _ in range(2):
        got = model.run(None, {"x": x})
        np.testing.assert_array_equal(got[0], by_python(cases[1], middle, 0, None))
        np.testing.assert_array_equal(got[1], by_python(cases[2], middle, 0, None))
    assert len(tapes(model)) == 1
