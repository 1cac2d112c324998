"""A user's function as an output stage: what it may return, what becomes of its exceptions, how often it is
compiled.
"""

from __future__ import annotations

import threading

import numba
import numpy as np
import pytest

import lowgemm
from lowgemm import reference
from lowgemm.output import custom_routine
from lowgemm.output.code_key import code_key

SUMS = np.array([[3, -4, 9], [1, 2, 3]], np.int32)


def of(function, arrays=(), acc=SUMS):
    return lowgemm.requantize(acc, [lowgemm.Custom(function, arrays)])


def no_column_one(acc, row, col):
    return acc // (col - 1)


def not_nine(acc, row, col):
    if acc == 9:
        raise LookupError("nine", row)
    return acc


def beyond(acc, row, col, values):
    return acc * values[col]


CASES = [
    (no_column_one, (), ZeroDivisionError),
    (lambda acc, row, col: acc / (col - 1), (), ZeroDivisionError),
    (lambda acc, row, col: acc % (row - 1), (), ZeroDivisionError),
    (not_nine, (), LookupError),
    (beyond, (np.array([1, 2]),), IndexError),
    (lambda acc, row, col, v: v[row + 1, col], (np.ones((2, 3)),), IndexError),
    (lambda acc, row, col: np.nan if acc == 9 else 1.0, (), ValueError),
    (lambda acc, row, col: np.float32(np.inf) if acc == 9 else np.float32(1), (), OverflowError),
    (lambda acc, row, col: -np.inf if acc == 9 else 1.0, (), OverflowError),
]


@pytest.mark.parametrize(("function", "arrays", "error"), CASES)
def test_what_fails_raises_in_python(function, arrays, error, capfd):
    for f in (function, numba.njit(function)):
        with pytest.raises(error) as caught:
            of(f, arrays)
        assert str(caught.value.__cause__).startswith("output: ")
    with pytest.raises(error):
        reference.apply_pipeline(SUMS, (lowgemm.Custom(function, arrays),))
    assert capfd.readouterr() == ("", "")  # nothing is left for Numba to print


def test_exception_is_the_function_s_own_and_its_cause_says_where():
    with pytest.raises(LookupError) as caught:
        of(not_nine)
    assert caught.value.args == ("nine", 0)
    place = "output: not_nine(9, 0, 2) of a Custom stage failed: sum 9 at row 0, column 2"
    assert str(caught.value.__cause__) == place


def test_object_mode_leaves_no_exception_behind():
    def parsed(acc, row, col):
        with numba.objmode(y="int64"):
            y = int("x" if acc == 9 else "3")
        return y

    with pytest.raises(ValueError, match="invalid literal"):
        of(parsed)
    assert of(parsed, acc=SUMS[1:]).tolist() == [[3, 3, 3]]


def test_function_is_not_called_any_more_once_it_failed():
    def count(acc, row, col, calls):
        calls[0] += 1
        if calls[0] > 1000:
            raise LookupError
        return acc

    stage = lowgemm.Custom(count, (np.zeros(1, np.int64),))
    with pytest.raises(LookupError):
        lowgemm.requantize(np.zeros((600, 700), np.int32), stage)
    assert stage.arrays[0][0] == 1002  # the last of them to raise it in Python


def test_function_that_fails_only_once_is_reported_too():
    def second_time(acc, row, col, state):
        state[0] += 1
        if state[0] == 2:
            raise LookupError
        return acc

    with pytest.raises(RuntimeError, match="called once more it did not fail"):
        of(second_time, (np.zeros(1, np.int64),))


WIDE = (
    np.array([[0, 1], [7, 200]], np.uint8),
    np.array([[-128, 3, 5], [1, 0, 2]], np.int8),
)  # a sum of 1 at (0, 0)


def refuse_one(acc, row, col):
    if acc == 1:
        raise LookupError(row, col)
    return acc + col


@pytest.fixture
def big():
    """Operands whose product is spread over threads, with the one sum that the function refuses."""
    rng = np.random.default_rng(0)
    lhs, rhs = np.zeros((600, 300), np.uint8), rng.integers(-128, 128, (300, 400), dtype=np.int8)
    lhs[511, 7], rhs[7] = 1, 0
    rhs[7, 399] = 1
    lhs[17:40] = 2 * rng.integers(0, 128, (23, 300))
    return lhs, rhs


def ways(lhs, rhs, stages, num_threads):
    """Each way into a product with output stages."""
    packed = lowgemm.pack_rhs(rhs)
    planned = lowgemm.plan(lhs, rhs, output=stages, num_threads=num_threads)
    planned_packed = lowgemm.plan(lhs, packed, output=stages, num_threads=num_threads)
    how = {"output": stages, "num_threads": num_threads}
    zeros = np.zeros(rhs.shape[-1], np.int32)
    out = np.empty((*lhs.shape[:-1], rhs.shape[-1]), np.int32)
    return {
        "gemm": lambda: lowgemm.gemm(lhs, rhs, **how),
        "out": lambda: lowgemm.gemm(lhs, rhs, out=out, **how),
        "strided": lambda: lowgemm.gemm(
            lhs, rhs, out=np.empty((*out.shape[:-1], 2 * out.shape[-1]), np.int32)[..., ::2], **how
        ),
        "packed": lambda: lowgemm.gemm(lhs, packed, **how),
        "zero points": lambda: lowgemm.gemm(lhs, rhs, rhs_zero_point=zeros, **how),
        "plan": lambda: planned(lhs, rhs),
        "plan packed": lambda: planned_packed(lhs, packed),
        "requantize": lambda: lowgemm.requantize(lowgemm.gemm(lhs, rhs), stages),
    }  # fmt: skip


@pytest.mark.parametrize("size", ["small", "big"])
def test_every_way_into_a_product_raises_each_time(size, big, threads):
    lhs, rhs = WIDE if size == "small" else big
    good = np.zeros_like(lhs)
    stages = [lowgemm.Custom(refuse_one), lowgemm.Clamp(-(10**6), 10**6)]
    calls, fine = ways(lhs, rhs, stages, threads), ways(good, rhs, stages, threads)
    expected = np.broadcast_to(np.arange(rhs.shape[1]), (lhs.shape[0], rhs.shape[1]))
    for name, call in calls.items():
        for _ in range(3):  # the second finds a plan, the third a planned call
            with pytest.raises(LookupError):
                call()
            np.testing.assert_array_equal(fine[name](), expected, err_msg=name)


def test_batches_and_deep_products(threads):
    rng = np.random.default_rng(1)
    lhs, rhs = (
        rng.integers(0, 3, (3, 2, 9000), dtype=np.uint8),
        rng.integers(-2, 3, (2, 9000, 5), dtype=np.int8)[:1],
    )
    sums = lowgemm.gemm(lhs, rhs)
    value = int(sums[2, 1, 3])
    with pytest.raises(LookupError):
        lowgemm.gemm(lhs, rhs, output=lowgemm.Custom(refuse(value)), num_threads=threads)
    fine = lowgemm.Custom(refuse(int(sums.max()) + 1))
    np.testing.assert_array_equal(lowgemm.gemm(lhs, rhs, output=fine, num_threads=threads), sums)


def refuse(value):
    def function(acc, row, col):
        if acc == value:
            raise LookupError
        return acc

    return function


def test_threads_that_share_a_plan_do_not_share_its_failures(big):
    lhs, rhs = big
    stage = lowgemm.Custom(refuse_one)
    planned = lowgemm.plan(lhs, rhs, output=stage, num_threads=1)
    good = np.zeros_like(lhs)
    wrong = []

    def work(operand, fails):
        for _ in range(20):
            try:
                planned(operand, rhs)
                wrong.extend([fails] if fails else [])
            except LookupError:
                wrong.extend([] if fails else [fails])

    workers = [
        threading.Thread(target=work, args=(o, f)) for o, f in ((lhs, True), (good, False), (good, False))
    ]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert wrong == []


def test_first_of_two_functions_that_fail_is_the_one_raised():
    def two(acc, row, col):
        if acc == 2:
            raise KeyError("two")
        return acc

    def any_sum(acc, row, col):
        if acc > 0:
            raise IndexError("second")
        return acc

    with pytest.raises(KeyError):
        lowgemm.requantize(SUMS[1:, 1:2], [lowgemm.Custom(two), lowgemm.Custom(any_sum)])
    with pytest.raises(IndexError):
        lowgemm.requantize(SUMS[1:, 2:], [lowgemm.Custom(two), lowgemm.Custom(any_sum)])


@pytest.mark.parametrize(
    "function",
    [
        lambda acc, row, col: acc * 0.75,
        lambda acc, row, col: acc * 3e9,
        lambda acc, row, col: acc * -1e15,
        lambda acc, row, col: acc * 2.0**52,
        lambda acc, row, col: acc * 123456789123456789.0**2,
        lambda acc, row, col: np.float32(acc) * np.float32(1e28),
        lambda acc, row, col: acc * 10**9,
        lambda acc, row, col: np.uint64(2**64 - 1) - np.uint64(col),
        lambda acc, row, col: np.int8(acc & 127) - np.int8(1),
        lambda acc, row, col: acc > 2,
        lambda acc, row, col: 7,
        lambda acc, row, col: True,
        lambda acc, row, col: acc * 9223372036854775807.0,
    ],
)
def test_numbers_are_cut_to_whole_ones_modulo_2_to_the_32(function):
    """Floats too, of any size: int(value) modulo 2**32, on every CPU."""
    acc = np.array([[3, -4, 9, 0, 2**31 - 1, -(2**31), 77, -1]], np.int32)
    expected = reference.apply_pipeline(acc, (lowgemm.Custom(function),))
    np.testing.assert_array_equal(of(function, acc=acc), expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "none"), ((1, 2), "Tuple"), (1j, "complex128"), ("a", "str")],
)
def test_functions_that_give_no_number_are_refused(value, text):
    with pytest.raises(
        TypeError, match=f"^function: expected it to return an integer or a float, got .*{text}"
    ):
        lowgemm.Custom(lambda acc, row, col: value)
    with pytest.raises(TypeError, match=r"^function: expected it to return .*Optional"):
        lowgemm.Custom(lambda acc, row, col: acc if acc > 0 else None)


def test_what_is_no_function_is_refused():
    for thing in (max, np.add, object(), "f"):
        with pytest.raises(TypeError, match=r"^function: expected a function"):
            lowgemm.Custom(thing)
    with pytest.raises(TypeError, match=r"^arrays:"):
        lowgemm.Custom(beyond, (np.array(3),))


def test_options_of_njit_are_kept():
    assert of(numba.njit("int32(int16, int32, int32)")(not_nine), acc=SUMS[1:] + 65536).tolist() == [
        [1, 2, 3]
    ]
    quotient = numba.njit(lambda acc, row, col: acc / (col - 1), error_model="numpy")
    with pytest.raises(OverflowError):  # infinity, which that error model has for a division by 0
        of(quotient)


# ---- compiled once ----------------------------------------------------------------------------------------
def routine(function, arrays=()):
    return custom_routine.custom_routine(lowgemm.Custom(function, arrays))


def plus(k):
    return lambda acc, row, col: acc + k


def test_same_code_is_compiled_once():
    first = routine(plus(11))
    known = len(custom_routine._compiled)
    for _ in range(20):
        assert routine(plus(11)) is first
    assert routine(lambda acc, row, col: acc + KEPT) is routine(lambda acc, row, col: acc + KEPT)
    assert len(custom_routine._compiled) == known + 1
    assert routine(plus(12)) is not first and of(plus(12)).tolist() == (SUMS + 12).tolist()
    assert routine(plus(11.0)) is not first and routine(plus(True)) is not first
    assert routine(numba.njit(plus(11))) is not routine(numba.njit(plus(11), fastmath=True))
    one, other = (np.array([1, 2, 3]),), (np.array([4, 5, 6]),)
    assert routine(beyond, one) is routine(beyond, other)  # arrays are passed when it runs
    assert of(beyond, other).tolist() == (SUMS * other[0]).tolist()
    assert routine(beyond, (np.array([1.5, 2, 3]),)) is not routine(beyond, one)


KEPT = 5
TABLE = np.array([1, 2, 3])


def test_code_that_sees_other_values_is_not_the_same(monkeypatch):
    def from_table(acc, row, col):
        return acc + TABLE[col] * KEPT + np.int64(np.pi)

    def see():
        np.testing.assert_array_equal(of(from_table), SUMS + TABLE * KEPT + int(np.pi))
        return routine(from_table)

    seen = [see()]
    monkeypatch.setitem(globals(), "KEPT", 6)
    seen.append(see())
    monkeypatch.setitem(globals(), "TABLE", np.array([1, 2, 4]))
    seen.append(see())
    TABLE[0] = 9
    seen.append(see())
    monkeypatch.setattr(np, "pi", 7.5)
    seen.append(see())
    assert len(set(map(id, seen))) == len(seen)


def test_a_list_is_not_known_by_what_its_function_was(monkeypatch):
    """The same list, and in it the same function, which sees another value now."""
    kept = []
    for seen in (5, 6, 5):
        monkeypatch.setitem(globals(), "KEPT", seen)
        kept[:] = [lowgemm.Custom(plus_kept)]
        for _ in range(3):
            assert lowgemm.requantize(SUMS, kept).tolist() == (SUMS + seen).tolist()
            assert lowgemm.gemm(ONES, ONES, output=kept).tolist() == [[2 + seen] * 2] * 2
    first = lowgemm.Custom(plus_kept)
    assert first == lowgemm.Custom(plus_kept)
    monkeypatch.setitem(globals(), "KEPT", 7)  # a stage keeps what its function saw when it was made
    assert lowgemm.requantize(SUMS, [first]).tolist() == (SUMS + 5).tolist()
    assert first != lowgemm.Custom(plus_kept)


def test_a_stage_made_while_nothing_is_compiled_runs_compiled_later(monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(numba.config, "DISABLE_JIT", 1)
        stage = lowgemm.Custom(plus(3))
    assert lowgemm.requantize(SUMS, [stage]).tolist() == (SUMS + 3).tolist()


def plus_kept(acc, row, col):
    return acc + KEPT


ONES = np.ones((2, 2), np.uint8)


def test_keys():
    def make(f, x):
        return lambda acc: f(acc) + x

    def fact(n):
        return 1 if n == 0 else n * fact(n - 1)

    helper = numba.njit(lambda x: x)
    assert code_key(make(plus(1), 2)) == code_key(make(plus(1), 2)) != code_key(make(plus(2), 2))
    assert code_key(make(helper, 0.0)) == code_key(make(helper, 0.0)) != code_key(make(helper, -0.0))
    assert code_key(make(numba.njit(lambda x: x), 0)) != code_key(make(helper, 0))
    assert code_key(make(helper, np.int8(1))) != code_key(make(helper, np.int16(1)))
    assert (
        code_key(make(helper, (1, [2])))
        == code_key(make(helper, (1, [2])))
        != code_key(make(helper, (1, [3])))
    )
    assert hash(code_key(fact)) == hash(code_key(fact)) and code_key(fact) == code_key(fact)
    assert code_key(lambda x: x + 1) != code_key(lambda x: x - 1)
    assert code_key(lambda x, y=1: x) != code_key(lambda x, y=2: x)
    assert code_key(lambda x: x.real) != code_key(lambda x: x.imag)
