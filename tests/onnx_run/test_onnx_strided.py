"""Copies along any axes with any strides, and rows by index, beside NumPy's."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from lowgemm.engine.parts import run
from lowgemm.onnx_run import strided
from lowgemm.onnx_run.addresses import address

DTYPES = [np.bool_, np.int8, np.uint8, np.int16, np.float16, np.int32, np.float32, np.int64, np.float64]

pytestmark = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="the passes are compiled")


def numbers(g, shape, dtype):
    return g.integers(0, 2 if dtype == np.bool_ else 100, shape).astype(dtype)


def some(g, shape, dtype):
    """An array of this shape somewhere in a larger one: axes in any order, backwards, with gaps, repeated."""
    order = g.permutation(len(shape))
    steps = [int(s) for s in g.choice([1, 1, 1, -1, 2, -3], len(shape))]
    once = [bool(r) for r in g.random(len(shape)) < 0.15]
    sizes = [1 if once[a] else 1 + (shape[a] - 1) * abs(steps[a]) for a in order]
    x = numbers(g, sizes, dtype).transpose(np.argsort(order))
    x = x[tuple(slice(None) if r else slice(None, None, s) for s, r in zip(steps, once, strict=True))]
    return np.broadcast_to(x, shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_are_numpys(dtype, threads):
    g = np.random.default_rng(3)
    for _ in range(60):
        shape = tuple(int(n) for n in g.integers(1, (70, 20, 9, 5, 4, 3)[: g.integers(0, 7)]))
        x = some(g, shape, dtype)
        whole = numbers(g, [n + 2 for n in shape], dtype)
        before, inside = whole.copy(), tuple(slice(1, n + 1) for n in shape)
        y = whole[(*inside, ...)]
        assert strided.takes(y, x)
        strided.run_copy(y, x, address, run, threads)
        before[(*inside, ...)] = x
        np.testing.assert_array_equal(whole, before, err_msg=f"{shape} {x.strides}")  # and nothing around it


@pytest.mark.parametrize("dtype", DTYPES)
def test_squares_are_turned_over(dtype, threads):
    """Transposed matrices and stacks of them, with gaps, of any size from a square on; nothing around them is
    written.
    """
    g, passes = np.random.default_rng(5), []

    def noted(work, *args):
        passes.append(work)
        run(work, *args)

    for _ in range(40):
        outer, rows, columns = (int(n) for n in g.integers((1, 10, 10), (4, 60, 60)))
        behind, between = (int(n) for n in g.integers(0, 3, 2))
        stack = numbers(g, (rows, outer + between, columns + behind), dtype)[:, :outer, :columns]
        x = stack.transpose(1, 2, 0) if g.random() < 0.5 else stack.transpose(2, 1, 0)
        whole = numbers(g, [n + 2 for n in x.shape], dtype)
        before, inside = whole.copy(), tuple(slice(1, n + 1) for n in x.shape)
        y = whole[inside]
        strided.run_copy(y, x, address, noted, threads)
        before[inside] = x
        np.testing.assert_array_equal(whole, before, err_msg=f"{x.shape} {x.strides}")
        fits = np.dtype(dtype).itemsize in (1, 4) and min(rows, columns) >= 16
        assert passes.pop() is (strided.turn if fits else strided.copy)


def test_more_axes_than_there_is_room_for():
    """Counted are those that do not lie one behind the other."""
    y = np.empty((2,) * 12, np.int8)
    x = np.zeros((3,) * 12, np.int8)[(slice(None, None, 2),) * 12]
    assert not strided.takes(y, x)
    assert strided.takes(y, y)
    assert not strided.takes(np.empty(0, np.int8), np.empty(0, np.int8))
    assert not strided.takes(np.empty(3, np.complex128), np.zeros(3, np.complex128))


@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_rows_are_numpys(kind, threads):
    g = np.random.default_rng(4)
    for _ in range(40):
        tables, rows, count, size = (int(n) for n in g.integers(1, (4, 30, 20, 200)))
        x = numbers(g, (tables, rows, size), np.uint8)
        indices = g.integers(-rows, rows, count).astype(kind)
        y, found = np.zeros((tables, count, size), np.uint8), np.zeros(1, np.float32)
        args = [address(x), address(indices), indices.itemsize, count, rows, size, address(y), address(found)]
        run(strided.take_rows, args, tables * count, threads)
        np.testing.assert_array_equal(y, x[:, indices])
        assert found[0] == 0
        indices[g.integers(count)] = g.choice([rows, -rows - 1, 2**31 - 1, -(2**31)])
        run(strided.take_rows, args, tables * count, threads)
        assert np.isnan(found[0])
