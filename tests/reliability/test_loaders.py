"""Files: what was saved comes back; what is bad raises ValueError, runs nothing and allocates nothing."""

from __future__ import annotations

import io
import pickle
import tracemalloc

import numpy as np
import pytest

import lowgemm
from lowgemm import npz

from . import loaders


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (2, 3, 5), (7, 1)])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_packed_round_trip(shape, dtype, tmp_path):
    w = np.random.default_rng(0).integers(0, 100, shape, dtype=dtype)
    path = tmp_path / "w.npz"
    npz.save_packed(path, lowgemm.pack_rhs(w))
    back = npz.load_packed(path)
    assert (back.to_array() == w).all() and back.dtype == dtype and back.shape == shape
    with np.load(path, allow_pickle=False) as z:  # an ordinary file for NumPy, too
        assert (z["matrix"] == w).all()


def test_arrays_round_trip():
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.asfortranarray(np.ones((3, 2), ">i2")),
        "c": np.array("text"),
    }
    f = io.BytesIO()
    npz.write(f, **arrays)
    back = npz.read(f)
    assert all(np.array_equal(back[k], v) and back[k].dtype == v.dtype for k, v in arrays.items())
    named = {"allow_pickle": np.arange(3), "args": np.ones(2), "kwds": np.zeros(1), "arr_0": np.float32(5)}
    f = io.BytesIO()
    npz.write(f, **named)  # what NumPy calls its own arguments is a name like any other
    back = npz.read(f)
    assert list(back) == list(named) and all(np.array_equal(back[k], v) for k, v in named.items())
    with pytest.raises(TypeError, match="x: expected numbers"):
        npz.write(io.BytesIO(), x=np.array([None]))
    with pytest.raises(ValueError, match="at most 10 bytes"):
        npz.read(f, max_bytes=10)
    with pytest.raises(OSError):
        npz.read("/nonexistent/file.npz")


def test_a_pickle_is_never_run():
    f = io.BytesIO()
    np.savez(f, matrix=np.array([loaders.Payload()], dtype=object))
    with pytest.raises(ValueError, match="file: 'matrix': expected numbers"):
        npz.read(f)
    assert not loaders.RAN
    pickle.loads(pickle.dumps(loaders.Payload()))  # the payload does work
    assert loaders.RAN.pop()


@pytest.mark.parametrize("shape", ["(10**12,)", "(1000000000000,)", "(4000000000,)"])
def test_nothing_is_allocated_for_a_claim(shape):
    entry = loaders.npy(f"{{'descr': '|i1', 'fortran_order': False, 'shape': {shape}, }}\n", b"")
    content = loaders.archive({"matrix.npy": entry})
    tracemalloc.start()
    with pytest.raises(ValueError, match="file: "):
        npz.load_packed(io.BytesIO(content))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_bad_files():
    counts = loaders.run(1000, seed=5)
    assert counts.pop("files") == 1000 * len(loaders.LOADERS)
    assert counts.pop("ValueError") > 2000 and counts.pop("read") > 0
    assert not +counts, counts


@pytest.mark.parametrize("state", [None, {}, {"matrix": None}, {"matrix": [[1.5]]}, {"matrix": np.int8(3)}])
def test_bad_pickles_of_packed_matrices(state):
    w = lowgemm.PackedRhs.__new__(lowgemm.PackedRhs)
    with pytest.raises((TypeError, ValueError, KeyError)):
        w.__setstate__(state)
