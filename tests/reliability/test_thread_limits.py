"""Who decides how many threads run: arguments, lowgemm's, Numba's and threadpoolctl's settings, Dask and
joblib workers.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import lowgemm
from lowgemm.engine import threadpool_controller, threads

from . import child

ASK = """
import numpy as np, lowgemm
from lowgemm.engine import threads
threads.MACS_PER_THREAD = 1000
x = np.ones((99, 99), np.uint8)
print(lowgemm.explain(x, x).threads, lowgemm.explain(x, x, num_threads=3).threads)
"""


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"NUMBA_NUM_THREADS": "4"}, "4 3"),
        ({"NUMBA_NUM_THREADS": "4", "OMP_NUM_THREADS": "1"}, "4 3"),  # joblib's workers: both are set
        ({"NUMBA_NUM_THREADS": "2", "LOWGEMM_NUM_THREADS": "1"}, "1 2"),
        ({"NUMBA_NUM_THREADS": None, "OMP_NUM_THREADS": "1"}, "1"),  # Dask's workers
        ({"NUMBA_NUM_THREADS": None, "OMP_NUM_THREADS": "nonsense"}, ""),
    ],
)
def test_environment(env, expected):
    assert child.run(ASK, **{"LOWGEMM_NUM_THREADS": None, "OMP_NUM_THREADS": None, **env}).startswith(
        expected
    )


def test_numba_setting(monkeypatch):
    import numba

    monkeypatch.setattr(threads, "MACS_PER_THREAD", 1000)
    monkeypatch.setattr(threads, "_inherited", None)
    x = np.ones((99, 99), np.uint8)
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        assert lowgemm.explain(x, x).threads == lowgemm.explain(x, x, num_threads=2).threads == 1
        assert (lowgemm.gemm(x, x) == 99).all()
    finally:
        numba.set_num_threads(before)
    assert lowgemm.explain(x, x).threads == before


@pytest.mark.skipif(
    importlib.util.find_spec("threadpoolctl") is None, reason="threadpoolctl is not installed"
)
def test_threadpoolctl(monkeypatch):
    import threadpoolctl

    assert threadpool_controller.registered
    monkeypatch.setattr(lowgemm.config, "num_threads", None)
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 6)
    monkeypatch.setattr(threads, "_inherited", None)

    def reported() -> int:
        (info,) = [i for i in threadpoolctl.threadpool_info() if i["user_api"] == "lowgemm"]
        return info["num_threads"]

    assert reported() == 6
    for options in ({}, {"user_api": "lowgemm"}):
        with threadpoolctl.threadpool_limits(1, **options):
            assert reported() == 1 == threads.choose_threads(None, 10**12)
            with threadpoolctl.threadpool_limits(2, **options):
                assert threads.choose_threads(None, 10**12) == 2
            assert threads.choose_threads(None, 10**12) == 1
        assert lowgemm.config.num_threads is None and threads.choose_threads(None, 10**12) == 6
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        assert reported() == 6
    monkeypatch.setattr(lowgemm.config, "num_threads", 3)
    with threadpoolctl.threadpool_limits(2):
        assert reported() == 2
    assert lowgemm.config.num_threads == 3
