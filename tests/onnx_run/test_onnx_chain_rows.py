"""Rows of a result, and where operands that are repeated are in each: beside NumPy's own repeating."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lowgemm.onnx_run.chain_rows import ALONG, EACH, MANY, ONE, PERIOD, SHORT, WIDE, rows_of, steps_over


def drawn(g, shape):
    """An operand that NumPy repeats to a shape: some of its axes, some of them of 1."""
    own = shape[g.integers(len(shape) + 1) :]
    return tuple(n if g.random() < 0.5 else 1 for n in own)


def by_rows(rows, numbers):
    """What each operand has for the result, row by row as the walks say."""
    found = []
    for kind, walk, held in zip(rows.kinds, rows.walks, numbers, strict=True):
        own = []
        for index in itertools.product(*(range(n) for n in rows.outer)):
            begin = sum(i * s for i, s in zip(index, walk, strict=True))
            if kind == EACH:
                own.append(np.repeat(held[begin : begin + rows.length // rows.period], rows.period))
                continue
            count = {ONE: 1, PERIOD: rows.period, ALONG: rows.length}[kind]
            own.append(np.resize(held[begin : begin + count], rows.length))
        found.append(np.concatenate(own))
    return found


@pytest.mark.parametrize("seed", range(200))
def test_beside_numpy(seed):
    g = np.random.default_rng(seed)
    axes = int(g.integers(1, 6))
    shape = tuple(
        int(n) for n in g.choice([1, 2, 3, 5, 7, WIDE, 300], axes, p=[0.2, 0.2, 0.2, 0.2, 0.1, 0.05, 0.05])
    )
    if np.prod(shape) > 50_000:
        shape = tuple(min(n, 7) for n in shape)
    order = (0, *range(2, axes), 1) if axes > 2 and seed % 2 else tuple(range(axes))
    operands = [g.standard_normal(drawn(g, shape)).astype(np.float32) for _ in range(g.integers(1, 4))]
    steps = [steps_over(shape, order, x.shape, [s // 4 for s in x.strides]) for x in operands]
    rows = rows_of([shape[a] for a in order], steps)
    wanted = [np.broadcast_to(x, shape).transpose(order).reshape(-1) for x in operands]
    if rows is None:  # an operand that does not lie in the result's order, or rows too short
        assert order != tuple(range(axes)) or np.prod(shape) > MANY
        return
    assert rows.count * rows.length == np.prod(shape)
    for got, want in zip(by_rows(rows, [x.reshape(-1) for x in operands]), wanted, strict=True):
        np.testing.assert_array_equal(got, want)


def test_kinds():
    """One a channel, of few and of many; one a column; three a vector; two repeated against one another."""
    assert rows_of((2, 3, WIDE), [(3, 1, 0)])[1:4] == (WIDE, 1, (ONE,))
    assert rows_of((2, 3, 40), [(3, 1, 0)])[1:4] == (240, 40, (EACH,))
    vectors = rows_of((300, 128, 3), [(128, 1, 0), (3, 0, 1), (0, 0, 0)])
    assert vectors == ((300,), 384, 3, (EACH, PERIOD, ONE), ((128,), (3,), (0,)))
    assert rows_of((2, 3, 40), [(0, 0, 1)])[1:4] == (240, 40, (PERIOD,))
    assert rows_of((2, 3, WIDE), [(0, 0, 1)])[1:4] == (WIDE, 1, (ALONG,))
    against = rows_of((6, 7, 500), [(500, 0, 1), (0, 500, 1)])
    assert against == ((6, 7), 500, 1, (ALONG, ALONG), ((500, 0), (0, 500)))
    against = rows_of((6, 7, 50), [(50, 0, 1), (0, 50, 1)])
    assert against == ((6,), 350, 50, (PERIOD, ALONG), ((50,), (0,)))
    assert rows_of((1, 1), [(0, 0)])[:4] == ((), 1, 1, (ONE,))


def test_what_is_no_row():
    assert steps_over((3, 4), (0, 1), (2, 3, 4), (12, 4, 1)) is None
    assert steps_over((3, 4), (0, 1), (1, 1, 4), (4, 4, 1)) == (0, 1)
    assert rows_of((3, 4), [(1, 3)]) is None  # its numbers lie the other way round
    assert rows_of((MANY + 1, SHORT - 1), [(2, 0)]) is None
    assert rows_of((MANY + 1, SHORT), [(2, 0)]) is not None
