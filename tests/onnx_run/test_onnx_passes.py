"""The compiled passes beside the NumPy operations that say what they compute: no element may differ."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from lowgemm.compat import onnx as ox
from lowgemm.onnx_run import average, contrib, elementwise, look_up
from lowgemm.onnx_run.softmax import qlinear_softmax
from lowgemm.onnx_run.state import State


@pytest.fixture
def state(threads):
    return State(num_threads=threads)


@pytest.fixture
def slowly(monkeypatch):
    """Call a function by NumPy alone."""

    def call(function, *args, **more):
        with monkeypatch.context() as m:
            m.setattr(numba.config, "DISABLE_JIT", True)
            return function(*args, **more)

    return call


def same(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)


def whole(g, shape, dtype):
    return np.asarray(g.integers(0, 256, shape, dtype=np.uint8)).view(dtype)


def laid_out(g, shape, dtype):
    """Bytes of any order of axes in memory, now and then with gaps or backwards."""
    order = g.permutation(len(shape))
    x = g.integers(0, 256, [shape[i] for i in order], dtype=np.uint8).view(dtype).transpose(np.argsort(order))
    if x.ndim and g.random() < 0.3:
        axis = int(g.integers(x.ndim))
        x = np.flip(np.repeat(x, 2, axis=axis)[(slice(None),) * axis + (slice(None, None, 2),)], axis)
    return x


@pytest.mark.parametrize("name", ["qlinear_add", "qlinear_mul"])
def test_two_operands(name, slowly, state):
    """Every broadcast of up to five axes, any memory order, scales of ties and extremes, both types."""
    g, function = np.random.default_rng(1), getattr(elementwise, name)
    for _ in range(400):
        shape = g.integers(0 if g.random() < 0.1 else 1, 6, g.integers(0, 6))
        shapes = [
            np.where(g.random(shape.size) < 0.4, 1, shape)[
                int(g.integers(0, shape.size + 1)) * (i == g.integers(3)) :
            ]
            for i in range(2)
        ]
        dtype = g.choice([np.uint8, np.int8])
        a, b = (laid_out(g, tuple(map(int, s)), dtype) for s in shapes)
        arguments = []
        for x in (a, b, None):
            scale = (
                2.0 ** int(g.integers(-4, 5))
                if g.random() < 0.4
                else 10 ** g.uniform(-30, 30)
                if g.random() < 0.1
                else g.random() + 0.01
            )
            zero = np.asarray(g.integers(0, 256, dtype=np.uint8)).view(dtype)
            arguments += [*([] if x is None else [x]), np.float32(scale), zero]
        same([function(state, *arguments)], [slowly(function, state, *arguments)])


@pytest.mark.parametrize("name", ["qlinear_add", "qlinear_mul"])
def test_lines_of_any_length(name, slowly, state):
    """In vectors and what is left, with one of the operands repeated along the line that lies in memory."""
    g, function = np.random.default_rng(3), getattr(elementwise, name)
    for trial in range(120):
        dtype, n = (np.uint8, np.int8)[trial % 2], int(g.choice([1, 63, 64, 65, 130, 200, 5000]))
        long, short = whole(g, (n, 3), dtype), whole(g, (1, 3), dtype)
        if trial % 3:
            long = np.asfortranarray(long)
        pair = [(long, short), (short, long), (long, long[::-1].copy(order="K"))][trial // 2 % 3]
        coded = [np.float32(g.random() / 20 + 0.001), whole(g, (), dtype)]
        arguments = [
            pair[0],
            *coded,
            pair[1],
            np.float32(0.02),
            whole(g, (), dtype),
            np.float32(0.03),
            coded[1],
        ]
        same([function(state, *arguments)], [slowly(function, state, *arguments)])


@pytest.mark.parametrize("name", ["qlinear_add", "qlinear_mul"])
def test_every_pair_of_bytes(name, slowly, state):
    """All 65,536, once side by side and once with the second or the first repeated; where rounding twice
    would show.
    """
    g, function = np.random.default_rng(4), getattr(elementwise, name)
    every = np.arange(256, dtype=np.uint8)
    for _ in range(12):
        scales = [np.float32(g.random() + 0.01) for _ in range(3)]
        zeros = [np.uint8(z) for z in g.integers(0, 256, 3)]
        pairs = (
            (np.repeat(every, 256), np.tile(every, 256)),
            (every[None], every[:, None]),
            (every[:, None], every[None]),
        )
        for a, b in pairs:
            arguments = a, scales[0], zeros[0], b, scales[1], zeros[1], scales[2], zeros[2]
            same([function(state, *arguments)], [slowly(function, state, *arguments)])


def test_quantize_and_dequantize(slowly):
    """Any shape and memory order, per tensor and per axis, with NaN and infinities."""
    g = np.random.default_rng(2)
    for _ in range(200):
        shape = tuple(g.integers(0, 6, g.integers(0, 5)))
        x = (g.standard_normal(shape) * 10 ** g.uniform(-3, 9)).astype(np.float32)
        if x.size:
            x.reshape(-1)[g.integers(0, x.size, 2)] = g.choice(
                np.float32([np.nan, np.inf, -np.inf, -0.0, 3.4e38, 0.5]), 2
            )
        x = x.transpose(g.permutation(x.ndim))
        dtype = g.choice([np.uint8, np.int8, np.uint16, np.int16])
        info = np.iinfo(dtype)
        axis = int(g.integers(-x.ndim, x.ndim)) if x.ndim else 0
        for size in ((), (x.shape[axis],)) if x.ndim else ((),):
            zero = np.asarray(g.integers(info.min, info.max, size, endpoint=True)).astype(dtype)
            args = x, np.float32(10 ** g.uniform(-5, 5, size)), zero
            same([ox.quantize_linear(*args, axis=axis)], [slowly(ox.quantize_linear, *args, axis=axis)])
        kind = g.choice([np.uint8, np.int8, np.int32])
        info = np.iinfo(kind)
        v = g.integers(info.min, info.max, x.shape, endpoint=True).astype(kind)
        for size in ((), (x.shape[axis],)) if x.ndim else ((),):
            args = (
                v,
                np.float32(10 ** g.uniform(-5, 5, size)),
                np.asarray(g.integers(0, 100, size)).astype(kind),
            )
            same([ox.dequantize_linear(*args, axis=axis)], [slowly(ox.dequantize_linear, *args, axis=axis)])
        if x.size:
            same(ox.dynamic_quantize_linear(x), slowly(ox.dynamic_quantize_linear, x))


def test_tables_and_sums(slowly, threads):
    g = np.random.default_rng(3)
    for _ in range(100):
        dtype = g.choice([np.uint8, np.int8])
        x = laid_out(g, tuple(map(int, g.integers(1, 9, g.integers(2, 6)))), dtype)
        table = g.integers(0, 256, 256, dtype=np.uint8).view(dtype)
        same([look_up.by_table(table, x, threads)], [table[np.ascontiguousarray(x).view(np.uint8)]])
        same([average.sum_spatial(x, threads)], [slowly(average.sum_spatial, x)])


def test_softmax(slowly, state):
    """Lengths around the table's, both types, any axis, ties and long rows."""
    g = np.random.default_rng(5)
    for trial in range(60):
        dtype, opset = g.choice([np.uint8, np.int8]), int(g.choice([11, 13]))
        x = laid_out(g, tuple(map(int, g.integers(1, 300 if trial % 5 == 0 else 9, g.integers(1, 4)))), dtype)
        scales = [np.float32(10 ** g.uniform(-4, 0)) for _ in range(2)]
        zero = np.asarray(g.integers(0, 256, dtype=np.uint8)).view(dtype)
        arguments = x, scales[0], np.zeros((), dtype), scales[1] if trial % 2 else np.float32(1 / 256), zero
        more = {"axis": int(g.integers(-x.ndim, x.ndim)), "opset": opset}
        same(
            [qlinear_softmax(state, *arguments, **more)], [slowly(qlinear_softmax, state, *arguments, **more)]
        )


def test_average_pool(slowly, state):
    """Kernels, strides, padding, windows that are counted whole or not, channels second or last."""
    g = np.random.default_rng(6)
    for _ in range(80):
        dtype = g.choice([np.uint8, np.int8])
        kernel = [int(n) for n in g.integers(1, 4, 2)]
        x = laid_out(g, (*map(int, g.integers(1, 20, 2)), *(int(n) for n in g.integers(4, 12, 2))), dtype)
        scales = [np.float32(10 ** g.uniform(-3, 0)) for _ in range(2)]
        zeros = [np.asarray(g.integers(0, 256, dtype=np.uint8)).view(dtype) for _ in range(2)]
        more = {
            "kernel_shape": kernel, "strides": [int(n) for n in g.integers(1, 3, 2)],
            "ceil_mode": int(g.integers(2)), "pads": [int(n) for n in (g.random(4) * [*kernel, *kernel])],
            "count_include_pad": int(g.integers(2)),
        }  # fmt: skip
        arguments = x, scales[0], zeros[0], scales[1], zeros[1]
        same(
            [contrib.qlinear_average_pool(state, *arguments, **more)],
            [slowly(contrib.qlinear_average_pool, state, *arguments, **more)],
        )
