"""Products with coded weights of a kind that came before: the same bits, and the slow way where something is
not as it was.
"""

from __future__ import annotations

import concurrent.futures
import copy
import pickle

import numpy as np
import pytest

from lowgemm import config, kernels
from lowgemm.blockwise import gemm_lowbit, job, pack_rhs_lowbit, product4, reference, rowcall, rowtile
from lowgemm.engine import threads

RUNNABLE = [k.name for k in kernels.all_kernels() if not kernels.why_not(k)]
DECODING = [name for name in RUNNABLE if rowtile.decodes(kernels.rhs_packer(kernels.by_name(name)))]
pytestmark = pytest.mark.skipif(not DECODING, reason="no kernel here takes levels from registers")


def definition(x, w, bias=None):
    rows = x.reshape(-1, x.shape[-1])
    codes, scales, _ = reference.vectorwise(rows)
    found = reference.gemm_4bit(
        codes, w.integers(), w.group_scales(), w.group, 0, scales / np.float32(127), bias
    )
    return found.reshape(*x.shape[:-1], w.shape[1])


def same(a, b):
    return np.array_equal(a.view(np.int32), b.view(np.int32))


@pytest.fixture
def counted(monkeypatch):
    """Calls that went on in compiled code, and those that did not."""
    counts = {"again": 0, "slow": 0}
    run, multiply = rowcall.Again.run, product4._multiply

    def noted_run(self, *args):
        found = run(self, *args)
        counts["again"] += found is not None
        return found

    def noted_multiply(*args):
        counts["slow"] += 1
        return multiply(*args)

    monkeypatch.setattr(rowcall.Again, "run", noted_run)
    monkeypatch.setattr(product4, "_multiply", noted_multiply)
    return counts


@pytest.mark.parametrize("kernel", DECODING)
def test_every_kind(kernel, counted, monkeypatch):
    """Shapes, threads, bias, `out`, zero points: from the third call on in compiled code, with the bits of
    the first.
    """
    monkeypatch.setattr(config, "kernel", kernel)
    monkeypatch.setattr(job, "ELEMENTS_PER_THREAD", 1)
    rng = np.random.default_rng(0)
    for depth, n, group, book, zero_points in (
        (256, 100, 64, "int4", False), (130, 49, 32, "nf4", False), (300, 700, 100, "int4", True),
        (512, 33, 128, "ternary", False),
    ):  # fmt: skip
        w = pack_rhs_lowbit(rng.standard_normal((depth, n)), book, group=group, zero_points=zero_points)
        vector = rng.standard_normal(n).astype(np.float32)
        for shape in ((depth,), (1, depth), (3, depth), (2, 2, depth)):
            for num_threads, bias in ((1, None), (2, vector), (None, vector)):
                x = rng.standard_normal(shape).astype(np.float32)
                expected = definition(x, w, bias)
                for number in range(4):
                    before = dict(counted)
                    out = None if number % 2 else np.full(expected.shape, np.nan, np.float32)
                    found = gemm_lowbit(x, w, bias=bias, out=out, num_threads=num_threads)
                    assert same(found, expected) and (out is None or found is out)
                    kind = "again" if number >= 2 else "slow"
                    assert number == 1 or counted[kind] == before[kind] + 1, (number, before, counted)
                    x = x[::-1].copy() if len(shape) == 1 else x + 1
                    expected = definition(x, w, bias)


def remembered(depth=128, n=64, **named):
    """A weight whose products of one row are remembered, and a row."""
    rng = np.random.default_rng(1)
    w = pack_rhs_lowbit(rng.standard_normal((depth, n)), "int4")
    x = rng.standard_normal((1, depth)).astype(np.float32)
    for _ in range(3):
        gemm_lowbit(x, w, **named)
    return x, w


def test_what_does_not_fit_goes_the_slow_way(counted):
    x, w = remembered()
    expected = definition(x, w)
    before = counted["again"]
    far = np.zeros((1, 256), np.float32)
    far[:, ::2] = x
    fields = np.zeros(1, [("a", np.int8), ("x", np.float32, (1, 128))])
    fields["x"] = x

    class Mine(np.ndarray):
        pass

    for other in (
        x.astype(np.float64), far[:, ::2], fields["x"][0], x.view(Mine), x.tolist(), x.astype(">f4"),
        np.asfortranarray(x.T).T[:, ::1],
    ):  # fmt: skip
        assert same(np.asarray(gemm_lowbit(other, w)), expected)
    wide = np.zeros((1, 128), np.float32)
    for out in (wide[:, ::2], np.zeros((64, 1), np.float32).T):
        assert gemm_lowbit(x, w, out=out) is out and same(np.ascontiguousarray(out), expected)
    codes = np.ones((1, 128), np.int8)
    assert same(gemm_lowbit(codes, w), reference.gemm_4bit(codes, w.integers(), w.group_scales(), w.group))
    assert counted["again"] - before <= 2  # an array of another layout that happens to have the same strides
    assert same(gemm_lowbit(x, w), expected)


def test_what_is_refused_is_refused_again():
    x, w = remembered(64, 64)
    y = gemm_lowbit(x, w)
    locked = np.zeros((1, 64), np.float32)
    locked.flags.writeable = False
    mark = np.full((1, 64), 7, np.float32)
    bad = x.copy()
    bad[0, 3] = np.nan
    for call, error in (
        (lambda: gemm_lowbit(x, w, out=x), "^out: expected no overlap"),
        (lambda: gemm_lowbit(x, w, out=locked), "^out:"),
        (lambda: gemm_lowbit(x, w, out=np.zeros(64, np.float32)), "^out:"),
        (lambda: gemm_lowbit(bad, w, out=mark), "^lhs: .*row 0"),
        (lambda: gemm_lowbit(x, w, bias=np.zeros(63, np.float32)), "^bias:"),
        (lambda: gemm_lowbit(x, w, num_threads=0), "^num_threads:"),
        (lambda: gemm_lowbit(x, w, lhs_scale=2.0), "^lhs_zero_point, lhs_scale:"),
        (lambda: gemm_lowbit(x, w, lhs_zero_point=1), "^lhs_zero_point, lhs_scale:"),
    ):
        for _ in range(3):
            with pytest.raises(ValueError, match=error):
                call()
    for num_threads in (True, 1.0, [1]):
        with pytest.raises(TypeError, match=r"^num_threads:"):
            gemm_lowbit(x, w, num_threads=num_threads)
    assert (mark == 7).all()
    assert same(gemm_lowbit(x, w), y) and same(gemm_lowbit(x, w, out=mark), y)


def test_overlap_with_a_bias():
    x, w = remembered(64, 64)
    both = np.zeros(64, np.float32)
    for _ in range(3):
        gemm_lowbit(x, w, bias=np.ones(64, np.float32))
    with pytest.raises(ValueError, match=r"^out: expected no overlap with bias"):
        gemm_lowbit(x, w, bias=both, out=both.reshape(1, 64))


def test_one_record_at_a_time(counted):
    """While a call uses the record of its kind, another one does without."""
    x, w = remembered(num_threads=1)
    known = next(again for again in w.again.values() if again is not None)
    expected, before = definition(x, w), dict(counted)
    known._record["busy"] = 1
    assert known.run(x, None, None) is None
    assert same(gemm_lowbit(x, w, num_threads=1), expected)
    assert counted["slow"] == before["slow"] + 1 and known in w.again.values()
    known._record["busy"] = 0
    assert same(gemm_lowbit(x, w, num_threads=1), expected)
    assert counted["again"] == before["again"] + 1 and counted["slow"] == before["slow"] + 1


def test_threads_at_once():
    """Many Python threads, one weight: large enough to let go of Python's lock."""
    rng = np.random.default_rng(2)
    w = pack_rhs_lowbit(rng.standard_normal((1024, 640)), "nf4")
    xs = rng.standard_normal((12, 1, 1024)).astype(np.float32)
    expected = [definition(x, w) for x in xs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        jobs = [i % len(xs) for i in range(200)]
        for i, found in zip(
            jobs, pool.map(lambda i: gemm_lowbit(xs[i], w, num_threads=1 + i % 2), jobs), strict=True
        ):
            assert same(found, expected[i])


def test_thread_settings_are_followed(monkeypatch):
    monkeypatch.setattr(job, "ELEMENTS_PER_THREAD", 1)
    x, w = remembered()
    y = gemm_lowbit(x, w)
    monkeypatch.setattr(config, "num_threads", 1)
    for _ in range(3):
        assert same(gemm_lowbit(x, w), y)
    known = next(again for key, again in w.again.items() if key[1] is None)
    assert known.made_for == threads.settings() and known._record["workers"][0] == 1


@pytest.mark.skipif(len(DECODING) < 2, reason="only one kernel here takes levels from registers")
def test_another_kernel(monkeypatch):
    x, w = remembered()
    y = gemm_lowbit(x, w)
    for name in DECODING[:2]:
        monkeypatch.setattr(config, "kernel", name)
        for _ in range(3):
            assert same(gemm_lowbit(x, w), y)
    monkeypatch.undo()
    assert same(gemm_lowbit(x, w), y)


def test_copies_keep_nothing():
    x, w = remembered()
    y = gemm_lowbit(x, w)
    for other in (copy.copy(w), copy.deepcopy(w), pickle.loads(pickle.dumps(w))):
        assert other.again == {} and other.ready == {}
        assert same(gemm_lowbit(x, other), y)
    known = next(again for again in w.again.values() if again is not None)
    with pytest.raises(TypeError, match="copy the weight"):
        copy.copy(known)


def test_few_kinds_are_kept():
    rng = np.random.default_rng(3)
    w = pack_rhs_lowbit(rng.standard_normal((40, 24)), "int4")
    for rows in range(1, 40):
        x = rng.standard_normal((rows, 40)).astype(np.float32)
        for _ in range(2):
            assert same(gemm_lowbit(x, w), definition(x, w))
        assert len(w.again) <= product4.KINDS_KEPT


def test_other_interpreters(monkeypatch, counted):
    """Where Python's arrays are not as compiled code expects, calls go the slow way."""
    monkeypatch.setattr(rowcall, "multiply_again", lambda: None)
    monkeypatch.setattr(rowcall, "is_made", lambda: True)
    x, w = remembered()
    assert same(gemm_lowbit(x, w), definition(x, w)) and counted["again"] == 0


def test_a_kind_that_comes_once_compiles_nothing(monkeypatch):
    def fail():
        raise AssertionError("not to be compiled")

    monkeypatch.setattr(rowcall, "multiply_again", fail)
    monkeypatch.setattr(rowcall, "is_made", lambda: False)
    w = pack_rhs_lowbit(np.full((32, 16), -1.0), "ternary")
    assert (gemm_lowbit(np.ones((1, 32), np.float32), w) == -32).all()
