"""`gemm` and `PackedRhs` inside functions that the user compiles."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import textwrap
import threading

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE

import lowgemm
from lowgemm import in_numba, reference
from lowgemm.in_numba import linked
from lowgemm.jit.stamp import source_stamp

if numba.config.DISABLE_JIT:
    pytest.skip("compiled code only", allow_module_level=True)

in_numba.init()


@numba.njit(nogil=True)
def product(x, w):
    return lowgemm.gemm(x, w)


@numba.njit(nogil=True)
def with_zeros(x, w, x_zero, w_zero):
    return lowgemm.gemm(x, w, lhs_zero_point=x_zero, rhs_zero_point=w_zero)


@numba.njit(nogil=True)
def into(x, w, x_zero, out, add):
    return lowgemm.gemm(x, w, lhs_zero_point=x_zero, out=out, accumulate=add)


def matrices(seed, m, k, n, left=np.uint8, right=np.int8):
    rng = np.random.default_rng(seed)
    a, b = (np.iinfo(d) for d in (left, right))
    return (
        rng.integers(a.min, a.max + 1, (m, k), dtype=left),
        rng.integers(b.min, b.max + 1, (k, n), dtype=right),
    )


SIZES = st.tuples(*[st.sampled_from([0, 1, 2, 3, 7, 17, 48, 65, 130])] * 3)
DEEP = [(5, 20000, 50), (300, 3, 2), (1, 1000, 300), (260, 515, 517)]


@pytest.mark.parametrize("left", [np.uint8, np.int8])
@pytest.mark.parametrize("right", [np.uint8, np.int8])
def test_every_sign(left, right):
    @settings(max_examples=25, deadline=None)
    @given(SIZES, st.integers(0, 99))
    def check(size, seed):
        x, w = matrices(seed, *size, left, right)
        got = product(x, w)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, reference.gemm(x, w))

    check()


@pytest.mark.parametrize("size", DEEP)
def test_blocked_sizes(size):
    x, w = matrices(1, *size)
    expected = lowgemm.gemm(x, w)
    np.testing.assert_array_equal(product(x, w), expected)
    np.testing.assert_array_equal(product(x, lowgemm.pack_rhs(w)), expected)


def test_packed_sign_and_extremes():
    for value in (-128, 127):
        x, w = np.full((9, 300), 255, np.uint8), np.full((300, 70), value, np.int8)
        np.testing.assert_array_equal(product(x, lowgemm.pack_rhs(w)), reference.gemm(x, w))
    x, w = matrices(2, 9, 300, 70, np.uint8, np.uint8)
    np.testing.assert_array_equal(product(x, lowgemm.pack_rhs(w)), reference.gemm(x, w))


def test_strides():
    @settings(max_examples=25, deadline=None)
    @given(SIZES, st.sampled_from([-2, -1, 2, 3]), st.integers(0, 99))
    def check(size, step, seed):
        m, k, n = size
        x, w = matrices(seed, m * 3, k, n * 3)
        x, w = x[::3][:, ::step], np.asfortranarray(w[:, ::3])[:: -1 if step < 0 else 1]
        x = np.ascontiguousarray(x.T).repeat(2, axis=1).T[::2]
        k = min(x.shape[1], w.shape[0])
        x, w = x[:, :k], w[:k]
        # the layout "A" of both, whatever the sizes: few types to compile
        got = product_strided(x, w)
        np.testing.assert_array_equal(got, reference.gemm(x, w))

    check()


_u8, _s8 = (numba.types.Array(t, 2, "A", readonly=True) for t in (numba.uint8, numba.int8))


@numba.njit(numba.int32[:, ::1](_u8, _s8), nogil=True)
def product_strided(x, w):
    return lowgemm.gemm(x, w)


int32_edges = st.one_of(st.integers(-300, 300), st.sampled_from([-(2**31), 2**31 - 1]))


def test_scalar_zero_points():
    @settings(max_examples=30, deadline=None)
    @given(SIZES, int32_edges, int32_edges)
    def check(size, a, b):
        x, w = matrices(3, *size)
        expected = reference.gemm(x, w, lhs_zero_point=a, rhs_zero_point=b)
        np.testing.assert_array_equal(with_zeros(x, w, a, b), expected)

    check()


def test_vector_zero_points():
    @settings(max_examples=30, deadline=None)
    @given(SIZES, st.integers(0, 99), st.booleans())
    def check(size, seed, single):
        m, _, n = size
        x, w = matrices(seed, *size)
        rng = np.random.default_rng(seed)
        a = rng.integers(-(2**31), 2**31, 1 if single else m)
        b = rng.integers(-(2**31), 2**31, n)
        packed = lowgemm.pack_rhs(w)
        expected = reference.gemm(x, w, lhs_zero_point=a, rhs_zero_point=b)
        np.testing.assert_array_equal(with_zeros(x, packed, a, b), expected)
        expected = reference.gemm(x, w, lhs_zero_point=-5, rhs_zero_point=b)
        np.testing.assert_array_equal(with_zeros(x, packed, -5, b), expected)

    check()


def test_out_and_accumulate():
    x, w = matrices(4, 33, 70, 45)
    big = np.full((66, 90), 7, np.int32)
    out = big[::2, ::2]
    got = into(x, w, 3, out, False)
    assert got.ctypes.data == out.ctypes.data
    expected = reference.gemm(x, w, lhs_zero_point=3)
    np.testing.assert_array_equal(out, expected)
    assert (big[1::2] == 7).all() and (big[:, 1::2] == 7).all()
    into(x, w, 3, out, True)
    np.testing.assert_array_equal(out, 2 * expected)


def test_errors_at_run_time():
    x, w = matrices(5, 4, 6, 8)
    with pytest.raises(ValueError, match="rhs: expected its depth"):
        product(x, w[:5])
    with pytest.raises(ValueError, match="rhs: expected its depth"):
        product(x, lowgemm.pack_rhs(w[:5]))
    with pytest.raises(ValueError, match="lhs_zero_point: expected -2147483648"):
        with_zeros(x, w, 2**31, 0)
    with pytest.raises(ValueError, match="rhs_zero_point: expected -2147483648"):
        with_zeros(x, w, 0, -(2**31) - 1)
    packed = lowgemm.pack_rhs(w)
    with pytest.raises(ValueError, match="lhs_zero_point: expected a scalar or one"):
        with_zeros(x, packed, np.zeros(3, np.int64), np.zeros(8, np.int64))
    with pytest.raises(ValueError, match="rhs_zero_point: expected -2147483648"):
        with_zeros(x, packed, np.zeros(4, np.int64), np.full(8, 2**31))
    out = np.zeros((8, 16), np.int32)
    for bad in (out[::2, ::2][:3], out[:, ::2]):
        with pytest.raises(ValueError, match="out: expected the shape"):
            into(x, w, 0, bad, False)
    with pytest.raises(ValueError, match="out: expected distinct"):
        into(x, w, 0, np.lib.stride_tricks.as_strided(out, (4, 8), (8, 4)), False)
    memory = np.zeros(1024, np.uint8)
    place = memory[:128].view(np.int32).reshape(4, 8)
    bytes_ = memory[100:124].reshape(4, 6)
    with pytest.raises(ValueError, match="out: expected no overlap with lhs"):
        into(bytes_, w, 0, np.lib.stride_tricks.as_strided(place), False)
    with pytest.raises(ValueError, match="out: expected no overlap with rhs"):
        into(x, memory[100:148].view(np.int8).reshape(6, 8), 0, np.lib.stride_tricks.as_strided(place), False)
    assert not memory.any()


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        (lambda x, w: lowgemm.gemm(x, w), (np.zeros((2, 2)), np.zeros((2, 2), np.int8)),
         "lhs: expected a uint8"),
        (lambda x, w: lowgemm.gemm(x, w), (np.zeros((2, 2), np.int8), np.zeros(2, np.int8)),
         "rhs: expected a uint8"),
        (lambda x: lowgemm.gemm(x, x, output=3), (np.zeros((2, 2), np.int8),), "output: not supported"),
        (lambda x: lowgemm.gemm(x, x, num_threads=2), (np.zeros((2, 2), np.int8),),
         "num_threads: not supported"),
        (lambda x: lowgemm.gemm(x, x, overflow="raise"), (np.zeros((2, 2), np.int8),),
         "overflow: not supported"),
        (lambda x: lowgemm.gemm(x, x, accumulate=True), (np.zeros((2, 2), np.int8),),
         "accumulate: expected out="),
        (lambda x: lowgemm.gemm(x, x, lhs_zero_point=0.5), (np.zeros((2, 2), np.int8),),
         "lhs_zero_point: expected an"),
        (lambda x: lowgemm.gemm(x, x, 3), (np.zeros((2, 2), np.int8),),
         "lhs_zero_point: expected by keyword"),
        (lambda x: lowgemm.gemm(x, x, 3, 4), (np.zeros((2, 2), np.int8),),
         "lhs_zero_point: expected by keyword"),
        (lambda x: lowgemm.gemm(x, x, rhs_zero_point=True), (np.zeros((2, 2), np.int8),),
         "rhs_zero_point: expected"),
        (lambda x, o: lowgemm.gemm(x, x, out=o), (np.zeros((2, 2), np.int8), np.zeros((2, 2))),
         "out: expected a wri"),
    ],
)  # fmt: skip
def test_unsupported_is_a_compile_time_error(call, arguments, message):
    with pytest.raises(numba.core.errors.TypingError, match=message):
        numba.njit(call)(*arguments)


def test_packed_goes_through_and_back():
    @numba.njit
    def first(a, b):
        return a, a.shape, b

    w = lowgemm.pack_rhs(matrices(6, 1, 20, 30)[1])
    before = sys.getrefcount(w)
    for _ in range(10):
        a, shape, b = first(w, w)
        assert a is w and b is w and shape == (20, 30)
    del a, b
    assert sys.getrefcount(w) == before
    with pytest.raises(numba.core.errors.TypingError, match="PackedRhs"):
        first(lowgemm.pack_rhs(np.zeros((2, 3, 4), np.int8)), w)


def test_panels_of_every_kernel(any_kernel):
    """A packed rhs is multiplied by the kernel that it was packed for, whatever the process's choice is."""
    x, w = matrices(7, 10, 37, 41)
    w = np.maximum(w, -127)
    packed = lowgemm.pack_rhs(w)
    assert packed.kernel == any_kernel
    np.testing.assert_array_equal(product(x, packed), reference.gemm(x, w))


def test_prange_and_threads():
    @numba.njit(parallel=True)
    def batch(xs, w):
        out = np.empty((xs.shape[0], xs.shape[1], w.shape[1]), np.int32)
        for i in numba.prange(xs.shape[0]):
            lowgemm.gemm(xs[i], w, out=out[i])
        return out

    xs = np.random.default_rng(8).integers(0, 256, (12, 20, 60), dtype=np.uint8)
    w = matrices(8, 1, 60, 33)[1]
    packed = lowgemm.pack_rhs(w)
    expected = np.stack([reference.gemm(x, w) for x in xs])
    np.testing.assert_array_equal(batch(xs, packed), expected)

    wrong = []

    def work(x, y):
        for _ in range(50):
            if not np.array_equal(product(x, packed), y):
                wrong.append(1)

    workers = [threading.Thread(target=work, args=(x, y)) for x, y in zip(xs[:4], expected, strict=False)]
    for t in workers:
        t.start()
    for t in workers:
        t.join()
    assert not wrong


PROGRAM = """
import numba, numpy as np, lowgemm
from lowgemm import in_numba
{init}
@numba.njit(cache=True)
def inner(x, w):
    return lowgemm.gemm(x, w, lhs_zero_point=1)
@numba.njit(cache=True)
def outer(x, w):
    return inner(x, w).sum()
x, w = np.full((3, 4), 5, np.uint8), np.full((4, 2), -3, np.int8)
print(outer(x, lowgemm.pack_rhs(w)), sum(outer.stats.cache_hits.values()))
"""


def test_user_function_from_disk_cache(tmp_path):
    """Machine code that holds no address of the process that compiled it, and loads without the entry
    point.
    """
    script = tmp_path / "program.py"
    env = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), **os.environ}
    script.write_text(textwrap.dedent(PROGRAM).format(init="in_numba.init()"))
    outputs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.split())
    assert outputs[0] == [str(3 * 2 * 4 * 4 * -3), "0"]
    assert outputs[1] == [str(3 * 2 * 4 * 4 * -3), "1"]


def test_code_of_other_sources_is_compiled_again(tmp_path):
    with pytest.raises(OSError, match="other sources"):
        linked._ticket(source_stamp("in_numba") + 1)
    # the same with a real cache: the second process claims to have other sources
    script = tmp_path / "program.py"
    other = "from lowgemm.in_numba import linked; linked.source_stamp = lambda *more: 7"
    # the engine's own pieces from the session's cache, where there is one; the script's are found by its path
    env = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), **os.environ}
    hits = []
    for init in ("in_numba.init()", f"in_numba.init(); {other}", f"in_numba.init(); {other}"):
        script.write_text(textwrap.dedent(PROGRAM).format(init="exec(open(__file__ + '.init').read())"))
        (tmp_path / "program.py.init").write_text(init)
        os.utime(
            script, ns=(10**18, 10**18)
        )  # the same file for Numba each time: only our stamp tells them apart
        done = subprocess.run(
            [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        hits.append(done.stdout.split()[1])
    assert hits == ["0", "0", "1"]


def test_arguments_have_the_names_and_kinds_of_the_python_function():
    """`gemm` compiled takes what `gemm` takes, by keyword what it takes by keyword, with the same
    defaults.
    """
    outside = inspect.signature(lowgemm.gemm).parameters
    inside = inspect.signature(in_numba._product._gemm_overload).parameters
    inside = {name: p for name, p in inside.items() if p.kind is not p.VAR_POSITIONAL}  # they are refused
    assert {n: (p.kind, p.default) for n, p in inside.items()} == {
        n: (p.kind, p.default) for n, p in outside.items()
    }
    x = np.ones((2, 2), np.int8)
    with pytest.raises(TypeError, match="positional"):
        lowgemm.gemm(x, x, 3)


def test_import_compiles_nothing():
    code = (
        "import numba.core.compiler as c, sys; import lowgemm.in_numba as n; n.init(); import "
        "lowgemm.in_numba.linked as i;"
        "from lowgemm import kernels; from lowgemm.engine import drivers; assert i._ADDRESSES.sum() == 0;"
        "assert 'compiled' not in vars(drivers.single) and not kernels.microkernel.cache_info().currsize"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
