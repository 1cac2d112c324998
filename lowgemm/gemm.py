"""The front door: check the arguments, plan, run. Start reading here.

    gemm.py -> engine/: call.py -> plan.py -> packing.py -> tiles.py (-> kernels/) -> output/elementwise.py

`reference.py` says what the result is; everything else is about getting it fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lowgemm import config
from lowgemm.checks.arguments import as_operand
from lowgemm.checks.values import as_array
from lowgemm.engine import entry
from lowgemm.engine.call import Call
from lowgemm.engine.packed_rhs import PackedRhs
from lowgemm.engine.planned import Pattern, PlannedGemm, planned
from lowgemm.engine.ready import ready
from lowgemm.engine.seen import Seen, remember_list, stages_key
from lowgemm.engine.threads import settings as thread_settings
from lowgemm.engine.zero_points import one_for_all, zero_key
from lowgemm.output.base import Stage

_calls = Seen()
#: Kinds of call that came once before Python's way into compiled code was compiled. A program that makes a
#: product of a kind once does not wait for that.
_once = Seen()
#: Settings as they are read in every call: 0.03 us less than as attributes of a module that checks what is
#: assigned.
_settings = vars(config)


def gemm(
    lhs: ArrayLike,
    rhs: ArrayLike | PackedRhs,
    *,
    lhs_zero_point: ArrayLike = 0,
    rhs_zero_point: ArrayLike = 0,
    output: Stage | Sequence[Stage] | None = None,
    out: np.ndarray | None = None,
    accumulate: bool = False,
    num_threads: int | None = None,
    overflow: str = "wrap",
) -> np.ndarray:
    """Multiply 8-bit integer matrices exactly.

    Computes ``sum_k (lhs[..., i, k] - lhs_zero_point[i]) * (rhs[..., k, j] - rhs_zero_point[j])`` in int32
    modulo 2**32 and puts it through the `output` stages.

    Parameters
    ----------
    lhs : array_like of uint8 or int8, shape (..., m, depth) or (depth,)
        Left operand, any strides. Lists of integers are taken as uint8, or as int8 if some are negative.
    rhs : array_like of uint8 or int8, shape (..., depth, n) or (depth,), or PackedRhs
        Right operand, any strides, or the result of `pack_rhs`. Leading dimensions broadcast, and vectors are
        treated, as in `numpy.matmul`.
    lhs_zero_point : int or array_like of int, shape (m,) or (..., m, 1)
        Subtracted from `lhs`, one for all or one for each row; or for each row of each matrix of a stack,
        with one leading dimension or more, which broadcast to the result's. Any int32.
    rhs_zero_point : int or array_like of int, shape (n,) or (..., 1, n)
        Subtracted from `rhs`, likewise by columns.
    output : stage or sequence of stages, optional
        Output pipeline (`lowgemm.BiasAddition`, ...), applied to each tile of the result while it is in
        cache. Without it, the int32 sums are the result.
    out : ndarray, optional
        Array to write the result to: the result's shape and dtype, any strides, no overlap with the inputs.
    accumulate : bool
        Add the int32 product to `out` instead of replacing it.
    num_threads : int, optional
        Upper bound on threads; the default is Numba's setting. Small products use one.
    overflow : {"wrap", "raise"}
        What happens when an int32 sum could pass 2**31 - 1. It cannot up to a depth of 33,025 (uint8 by
        uint8), 65,793 (uint8 by int8) or 131,071 (int8 by int8) without zero points. "raise" counts what
        `out` holds with ``accumulate=True``, and the biases that `output` begins with; it looks at the
        operands' data only when dtypes, zero points and depth leave it open. Later stages do what their
        equations say.

    Returns
    -------
    ndarray, shape (..., m, n)
        int32, or the dtype of the output pipeline; of two vectors a scalar, as from `numpy.matmul`. `out` if
        that was given.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it, and `out` is untouched.
    OverflowError
        With ``overflow="raise"``.
    Exception
        What the function of a `lowgemm.Custom` stage raised; the contents of `out` are not defined then.

    Notes
    -----
    The equation and the name of each part are those of gemmlowp (its docs ``low-precision.md`` and
    ``output.md``), except that gemmlowp adds its offsets and lowgemm subtracts zero points.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> lhs = np.array([[1, 2], [255, 0]], dtype=np.uint8)
    >>> rhs = np.array([[-1, 1], [100, -128]], dtype=np.int8)
    >>> lowgemm.gemm(lhs, rhs)
    array([[ 199, -255],
           [-255,  255]], dtype=int32)
    >>> lowgemm.gemm(lhs, rhs, lhs_zero_point=1, output=[lowgemm.SaturatingCast(np.uint8)])
    array([[100,   0],
           [  0, 255]], dtype=uint8)
    """
    lhs_kind = rhs_kind = int
    if type(rhs_zero_point) is not int:
        rhs_zero_point, rhs_kind = _simplest(rhs_zero_point, rhs, -1)
    if type(lhs_zero_point) is not int:
        lhs_zero_point, lhs_kind = _simplest(lhs_zero_point, lhs, -2)
    # A call of a kind that was seen before has only its values left to check. Equal keys must mean equal
    # treatment, and 1 == 1.0 == True, so the types of scalars are part of the key.
    try:
        key = (
            () if output is None else stages_key(output),
            type(lhs), lhs.shape, lhs.strides, lhs.dtype, type(rhs), rhs.shape, rhs.strides, rhs.dtype,
            lhs_kind, rhs_kind,
            None if out is None else (type(out), out.shape, out.strides, out.dtype),
            accumulate if accumulate is False or accumulate is True else (type(accumulate), accumulate),
            num_threads
            if num_threads is None or type(num_threads) is int
            else (type(num_threads), num_threads),
            overflow, _settings["kernel"],
        )  # fmt: skip
        seen = _calls.get(key)
    except (AttributeError, TypeError):
        key = seen = None
    if (
        seen is not None
        and (seen.made_for is None or seen.made_for == thread_settings())
        and (rhs.strides is not None or rhs.kernel == seen.kernel)
    ):
        result = seen.run(lhs, rhs, out, lhs_zero_point, rhs_zero_point)
        if result is not None:
            return result
    return _checked(
        key, lhs, rhs, lhs_zero_point, rhs_zero_point, output, out, accumulate, num_threads, overflow
    )


def _simplest(zero: Any, operand: Any, axis: int) -> tuple[Any, Any]:
    """A zero point in its cheapest form, and what of its form matters to a kind of call.

    Every per-channel model has vectors of one value. They would cost a pass over both operands that one
    number does not.
    """
    if type(zero) is np.ndarray:
        zero = one_for_all(zero, getattr(operand, "shape", ()), axis)
    return zero, zero_key(zero)


def _checked(
    key: Any, lhs: Any, rhs: Any, lhs_zero: Any, rhs_zero: Any, output: Any, out: Any,
    accumulate: Any, num_threads: Any, overflow: Any,
) -> Any:  # fmt: skip
    """A call of a kind that was not seen before, or whose values need a closer look; its kind is remembered.

    Arguments that are no plain arrays are made such, over the same memory where they have any, and the call
    begins anew.
    """
    left = lhs if _is_plain(lhs) else as_operand(lhs, "lhs")
    right = rhs if _is_plain(rhs) or isinstance(rhs, PackedRhs) else as_operand(rhs, "rhs")
    left_zero, right_zero = _plain_zero(lhs_zero), _plain_zero(rhs_zero)
    to = np.asarray(out) if isinstance(out, np.ndarray) else out
    same = left is lhs and right is rhs and left_zero is lhs_zero and right_zero is rhs_zero and to is out
    if not same:
        result = gemm(
            left, right, lhs_zero_point=left_zero, rhs_zero_point=right_zero, output=output, out=to,
            accumulate=accumulate, num_threads=num_threads, overflow=overflow,
        )  # fmt: skip
        return result if out is None else out
    call = Call(lhs, rhs, lhs_zero, rhs_zero, output, out, accumulate, num_threads, overflow)
    plan = call.run()
    plain_types = {type(lhs), type(rhs)} <= {np.ndarray, PackedRhs}
    if key is not None and plan is not None and plain_types and call.overflow == "wrap":
        if entry.is_made() or _once.get(key):
            remembered = ready(call, plan, lhs_zero, rhs_zero)
            if remembered is not None:
                # the stages that were planned, should another thread have changed the list meanwhile
                _calls.add((stages_key(call.stages), *key[1:]), remembered)
                remember_list(output, call.stages)
        else:
            _once.add(key, True)
    return call.out[()] if out is None and call.out.ndim == 0 else call.out


def _is_plain(operand: Any) -> bool:
    """Whether an operand is an array that compiled code can read, or one that `as_operand` refuses."""
    return type(operand) is np.ndarray and operand.dtype.kind in "ui"


def _plain_zero(value: Any) -> Any:
    """Lists and subclasses as arrays; what NumPy cannot make one of stays, for `Call` to say so."""
    if type(value) is np.ndarray or not isinstance(value, (list, tuple, np.ndarray)):
        return value
    try:
        return np.asarray(value)
    except ValueError:
        return value


def checked_call(
    lhs: ArrayLike,
    rhs: ArrayLike | PackedRhs,
    *,
    lhs_zero_point: ArrayLike = 0,
    rhs_zero_point: ArrayLike = 0,
    output: Stage | Sequence[Stage] | None = None,
    out: np.ndarray | None = None,
    accumulate: bool = False,
    num_threads: int | None = None,
    overflow: str = "wrap",
) -> Call:
    """The arguments of `gemm`, checked but not run (for `explain`)."""
    return Call(lhs, rhs, lhs_zero_point, rhs_zero_point, output, out, accumulate, num_threads, overflow)


def plan(
    lhs: np.ndarray,
    rhs: np.ndarray | PackedRhs,
    *,
    output: Stage | Sequence[Stage] | None = None,
    num_threads: int | None = None,
) -> PlannedGemm:
    """Plan a product once, for calls at the least cost.

    Parameters
    ----------
    lhs : array_like of uint8 or int8, shape (..., m, depth)
        An operand of the shape, strides and dtype of those to come (its values do not matter).
    rhs : array_like of uint8 or int8, shape (..., depth, n), or PackedRhs
        Likewise. Leading dimensions broadcast.
    output, num_threads
        As in `gemm`.

    Returns
    -------
    PlannedGemm
        ``planned(lhs, rhs, out=None, *, lhs_zero_point=0, rhs_zero_point=0)``. It can be copied and pickled.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> x, w = np.ones((2, 3), np.uint8), np.full((3, 2), 5, np.int8)
    >>> planned = lowgemm.plan(x, w)
    >>> planned(x, w)
    array([[15, 15],
           [15, 15]], dtype=int32)
    """
    patterns = []
    for name, value in (("lhs", lhs), ("rhs", rhs)):
        if name == "lhs" or not isinstance(value, PackedRhs):
            own = value
            value = as_operand(own, name)
            if value.ndim < 2 or value.dtype != as_array(own, name, "an array").dtype:
                raise ValueError(
                    "lhs, rhs: expected uint8 or int8 matrices or stacks of them (or a PackedRhs); gemm "
                    "takes vectors and other dtypes"
                )
        patterns.append(Pattern.of(value))
    return planned(*patterns, output, num_threads)


def _matmul(rhs: PackedRhs, lhs: Any) -> np.ndarray:
    """``lhs @ rhs``."""
    return gemm(lhs, rhs)


# said here: a packed matrix belongs to the engine, which knows nothing of what a user calls
PackedRhs.__rmatmul__ = _matmul  # type: ignore[attr-defined]
