"""`lowgemm.dask`: the bits of one `gemm` call, whatever the chunks and whatever happens to the workers."""

from __future__ import annotations

import os
import signal
import time

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE

import lowgemm

da = pytest.importorskip("dask.array", reason="the extra 'dask' is not installed")
import dask  # noqa: E402

import lowgemm.dask  # noqa: E402


def matrices(m, k, n, seed=0, left=np.uint8, right=np.int8):
    rng = np.random.default_rng(seed)
    a, b = (np.iinfo(d) for d in (left, right))
    x = rng.integers(a.min, a.max + 1, (m, k), dtype=left)
    return x, rng.integers(b.min, b.max + 1, (k, n), dtype=right)


def chunks(draw, size):
    cuts = draw(st.lists(st.integers(0, size), max_size=2))
    return tuple(int(d) for d in np.diff([0, *sorted(cuts), size]))


@st.composite
def problems(draw):
    m, k, n = (draw(st.integers(1, 20)) for _ in range(3))
    left, right = (draw(st.sampled_from([np.uint8, np.int8])) for _ in range(2))
    x, w = matrices(m, k, n, draw(st.integers(0, 99)), left, right)
    split = [chunks(draw, size) for size in (m, k, k, n)]
    return x, w, da.from_array(x, chunks=tuple(split[:2])), da.from_array(w, chunks=tuple(split[2:]))


def pipelines(m, n, seed):
    rng = np.random.default_rng(seed)
    columns, rows = rng.integers(-900, 900, n), rng.integers(-900, 900, m)
    return [
        None,
        [lowgemm.BiasAddition(rows, axis=0), lowgemm.Clamp(-5000, 5000)],
        [
            lowgemm.BiasAddition(columns),
            lowgemm.Requantize(scale=rng.random(n) / 500, zero_point=-3, dtype=np.int8, rounding="onnx"),
        ],
        [
            lowgemm.ScaleInt32ByFixedPointAndExponent(
                rng.integers(2**30, 2**31, m), rng.integers(-9, -1, m), 5, axis=0
            ),
            lowgemm.SaturatingCast(np.uint8),
        ],
        lowgemm.Dequantize(rng.random(n)),
        lowgemm.Dequantize(rng.random(n), row_scale=rng.random(m), bias=rng.normal(size=n)),
    ]


@settings(max_examples=20, deadline=None)
@given(problems(), st.integers(0, 99), st.integers(0, 5), st.sampled_from(["raise", "wrap"]))
def test_any_chunks(problem, seed, which, overflow):
    x, w, dx, dw = problem
    rng = np.random.default_rng(seed)
    options = {
        "lhs_zero_point": rng.integers(-300, 300, len(x)) if seed % 2 else 7,
        "rhs_zero_point": rng.integers(-300, 300, w.shape[1]) if seed % 3 else -4,
        "output": pipelines(len(x), w.shape[1], seed)[which],
    }
    got = lowgemm.dask.gemm(dx, dw, overflow=overflow, **options)
    expected = lowgemm.gemm(x, w, **options)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    np.testing.assert_array_equal(got.compute(scheduler="synchronous"), expected)


def test_many_depth_chunks():
    x, w = matrices(3, 300, 4)
    got = lowgemm.dask.gemm(da.from_array(x, chunks=(3, 2)), da.from_array(w, chunks=(3, 4)))
    np.testing.assert_array_equal(got.compute(scheduler="threads", num_workers=2), lowgemm.gemm(x, w))


@pytest.mark.parametrize("m", [0, 3])
@pytest.mark.parametrize("n", [0, 3])
def test_no_depth_in_any_chunks(m, n):
    """Dask leaves the chunks of some empty arrays as they are when asked for others."""
    x, w = np.zeros((m, 0), np.uint8), np.zeros((0, n), np.int8)
    dx = da.from_array(x, chunks=((0, m), (0, 0, 0)))
    dw = da.from_array(w, chunks=((0, 0), (n, 0)))
    bias = lowgemm.BiasAddition(np.arange(n))
    got = lowgemm.dask.gemm(dx, dw, output=bias).compute(scheduler="synchronous")
    np.testing.assert_array_equal(got, lowgemm.gemm(x, w, output=bias))


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_a_packed_rhs(scheduler):
    """One chunk, however the lhs is cut; on a worker in another process too."""
    x, w = matrices(41, 30, 7)
    packed = lowgemm.pack_rhs(w)
    options = {
        "lhs_zero_point": np.arange(41),
        "rhs_zero_point": np.arange(7),
        "output": lowgemm.BiasAddition(np.arange(7)),
    }
    expected = lowgemm.gemm(x, w, **options)
    for lhs in (da.from_array(x, chunks=(16, 11)), da.from_array(x, chunks=(41, 30)), x):
        got = lowgemm.dask.gemm(lhs, packed, **options)
        assert got.chunks[1] == (7,) and got.dtype == expected.dtype
        np.testing.assert_array_equal(got.compute(scheduler=scheduler), expected)
    # the same matrix has the same name, another one another
    names = [lowgemm.dask.gemm(x, lowgemm.pack_rhs(r)).name for r in (w, w.copy(), w // 2)]
    assert names[0] == names[1] != names[2]
    deep = np.full((1, 40_000), 255, np.uint8)
    full = lowgemm.pack_rhs(np.full((40_000, 1), 255, np.uint8))
    with pytest.raises(OverflowError):
        lowgemm.dask.gemm(deep, full).compute(scheduler=scheduler)
    assert lowgemm.dask.gemm(deep, full, overflow="wrap").compute(scheduler=scheduler) == np.int64(
        255 * 255 * 40_000
    ).astype(np.int32)


def test_packed_rhs_that_do_not_fit():
    x, w = matrices(4, 6, 3)
    with pytest.raises(ValueError, match=r"^rhs: expected a matrix, got a PackedRhs of 3 dimensions"):
        lowgemm.dask.gemm(x, lowgemm.pack_rhs(np.stack([w, w])))
    with pytest.raises(ValueError, match=r"^rhs: expected depth 6 to match lhs, got 5"):
        lowgemm.dask.gemm(x, lowgemm.pack_rhs(w[:5]))
    with pytest.raises(TypeError, match=r"^lhs: expected"):
        lowgemm.dask.gemm(lowgemm.pack_rhs(w), lowgemm.pack_rhs(w))


def test_wrapping_is_never_silent():
    x, w = np.full((2, 70_000), 255, np.uint8), np.full((70_000, 2), -128, np.int8)
    dx, dw = da.from_array(x, chunks=(1, 20_000)), da.from_array(w, chunks=(20_000, 2))
    assert 70_000 * 255 * 128 > 2**31
    with pytest.raises(OverflowError, match="a sum passes the int32 range"):
        lowgemm.dask.gemm(dx, dw).compute(scheduler="synchronous")
    wrapped = lowgemm.dask.gemm(dx, dw, overflow="wrap").compute(scheduler="synchronous")
    np.testing.assert_array_equal(wrapped, lowgemm.gemm(x, w))
    # partial sums that pass the range and come back do fit
    w[35_000:] = 127
    got = lowgemm.dask.gemm(dx, da.from_array(w, chunks=(35_000, 2))).compute(scheduler="synchronous")
    np.testing.assert_array_equal(got, x.astype(np.int64) @ w.astype(np.int64))
    # within one chunk it is the chunk's own check that speaks
    with pytest.raises(OverflowError):
        lowgemm.dask.gemm(dx.rechunk(-1), np.full((70_000, 2), -128, np.int8)).compute(
            scheduler="synchronous"
        )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lhs": np.zeros((2, 3))}, TypeError, "lhs: expected dtype"),
        ({"lhs": da.zeros((2, 3))}, TypeError, "lhs: expected dtype"),
        ({"lhs": da.zeros((2, 2, 3), dtype=np.uint8)}, ValueError, "lhs: expected a matrix"),
        ({"rhs": np.zeros(3, np.int8)}, ValueError, "rhs: expected a matrix"),
        ({"rhs": da.zeros((4, 2), dtype=np.int8)}, ValueError, "rhs: expected depth 3"),
        ({"lhs_zero_point": [1, 2, 3]}, ValueError, "lhs_zero_point: expected a scalar or 2"),
        ({"rhs_zero_point": 2**31}, ValueError, "rhs_zero_point: expected"),
        ({"output": [3]}, TypeError, "output"),
        ({"output": lowgemm.BiasAddition([1, 2, 3])}, ValueError, "BiasAddition"),
        ({"overflow": "ignore"}, ValueError, "overflow: expected"),
        ({"num_threads": 0}, ValueError, "num_threads: expected"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"lhs": np.zeros((2, 3), np.uint8), "rhs": np.zeros((3, 2), np.int8), **change}
    with pytest.raises(error, match=message):
        lowgemm.dask.gemm(arguments.pop("lhs"), arguments.pop("rhs"), **arguments)


def test_unknown_chunks_and_custom_stage():
    x = da.from_array(np.zeros((4, 3), np.uint8), chunks=2)
    with pytest.raises(ValueError, match="lhs: expected known chunk sizes"):
        lowgemm.dask.gemm(x[x[:, 0] > 0], np.zeros((3, 2), np.int8))
    if not numba.config.DISABLE_JIT:
        custom = lowgemm.Custom(numba.njit(lambda acc, row, col: acc + col))
        with pytest.raises(ValueError, match="Custom"):
            lowgemm.dask.gemm(x, np.zeros((3, 2), np.int8), output=[custom])


# ---- real workers -----------------------------------------------------------------------------------------
def _count_packs():
    from lowgemm.engine import packed_rhs

    packed_rhs.counted, original = 0, packed_rhs.packed_by

    def counting(*arguments):
        packed_rhs.counted += 1
        return original(*arguments)

    packed_rhs.packed_by = counting


def _packs():
    from lowgemm.engine import packed_rhs

    return packed_rhs.counted


def _threads_started():
    from lowgemm.jit.team import the_team

    team = the_team()
    return 0 if team is None else team.started


def _when_open(block, gate, block_info=None):
    """The block, but those of the last row of chunks only once the file `gate` is there; meanwhile the worker
    does other tasks.
    """
    place, count = block_info[0]["chunk-location"], block_info[0]["num-chunks"]
    if place[0] == count[0] - 1:
        from distributed import secede

        secede()
        while not os.path.exists(gate):
            time.sleep(0.02)
    return block


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed", reason="the extra 'dask' is not installed")
    settings = {
        "distributed.comm.timeouts.connect": "60s",
        "distributed.worker.daemon": True,
        # Every two seconds it drops copies that no task waits for at the moment. On a machine so busy that
        # the test takes minutes, chunks that were dropped were packed again, and the count of packs said so.
        "distributed.scheduler.active-memory-manager.start": False,
    }
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=3, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def problem():
    x, w = matrices(240, 300, 200, 5)
    rng = np.random.default_rng(5)
    options = {
        "lhs_zero_point": rng.integers(0, 255, 240),
        "rhs_zero_point": 3,
        "output": lowgemm.Requantize(
            scale=rng.random(200) / 1000, zero_point=9, dtype=np.uint8, rounding="onnx"
        ),
    }
    return x, w, options, lowgemm.gemm(x, w, **options)


def test_cluster_packs_once_per_worker(client, problem):
    x, w, options, expected = problem
    client.run(_count_packs)
    dw = da.from_array(w, chunks=(100, 100))
    got = lowgemm.dask.gemm(da.from_array(x, chunks=(20, 100)), dw, **options).compute()
    np.testing.assert_array_equal(got, expected)
    packs = client.run(_packs)
    assert len(packs) == 3 and sum(packs.values()) >= dw.npartitions
    assert max(packs.values()) <= dw.npartitions  # 12 row chunks use each: once a worker, not once a product
    assert set(client.run(_threads_started).values()) == {0}


def test_worker_killed_in_the_middle(client, problem, tmp_path):
    """The product cannot end before the gate is open, and that is after the kill, whichever of them
    is slow.
    """
    x, w, options, expected = problem
    gate = tmp_path / "open"
    dx = da.from_array(x, chunks=(20, 50)).map_blocks(_when_open, gate=str(gate), dtype=np.uint8)
    product = lowgemm.dask.gemm(dx, da.from_array(w, chunks=(50, 50)), **options)
    pids = set(client.run(os.getpid).values())
    future = client.compute(product)

    def finished():
        counts = client.run_on_scheduler(
            lambda dask_scheduler: [t.state for t in dask_scheduler.tasks.values() if "partial" in str(t.key)]
        )
        return sum(state in ("memory", "released", "forgotten") for state in counts), len(counts)

    while finished()[0] < 10:
        time.sleep(0.02)
    assert finished()[0] < finished()[1] and future.status == "pending"
    os.kill(min(pids), signal.SIGKILL)
    gate.touch()
    np.testing.assert_array_equal(future.result(timeout=PATIENCE), expected)
    assert min(pids) not in client.run(os.getpid).values()


def test_a_bias_that_wraps_is_seen():
    lhs, rhs = np.ones((2, 4), np.uint8), np.ones((4, 2), np.uint8)
    for bias, fits in (([0, 2**31 - 5], True), ([0, 2**31 - 4], False)):
        lazy = lowgemm.dask.gemm(
            da.from_array(lhs, chunks=(1, 2)), rhs, output=[lowgemm.BiasAddition(bias)], overflow="raise"
        )
        if fits:
            assert lazy.compute(scheduler="synchronous")[0].tolist() == [4, 2**31 - 1]
        else:
            with pytest.raises(OverflowError, match="passes the int32 range"):
                lazy.compute(scheduler="synchronous")
