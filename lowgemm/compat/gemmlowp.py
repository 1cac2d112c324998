"""gemmlowp's entry points with its names and signs: offsets are added, results are written to a destination.

All functions compute by `lowgemm.gemm`; only the conventions differ. As in gemmlowp, a product with a zero
dimension leaves the destination as it is, even if only the depth is zero. Source: gemmlowp's
``public/gemmlowp.h`` and ``eight_bit_int_gemm/eight_bit_int_gemm.h``.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.checks.arguments import as_operand, as_zero_point
from lowgemm.checks.values import choice, flag, integer, is_masked, number, renamed
from lowgemm.gemm import gemm as _gemm
from lowgemm.output.base import Stage
from lowgemm.output.stages import Dequantize, QuantizeDownInt32ToUint8Scale, SaturatingCast


class MapOrder(enum.Enum):
    """Storage order of a `MatrixMap`."""

    ROW_MAJOR = "row"
    COL_MAJOR = "col"


class BitDepthSetting(enum.Enum):
    """Accepted for compatibility: both settings give the same, full 8-bit, results (as upstream today)."""

    A8B8 = "A8B8"
    A5B7 = "A5B7"


def _member(value: Any, kind: type[enum.Enum], name: str) -> Any:
    """`value` as a member of an enumeration: one already, or the name or value of one."""
    if isinstance(value, str) and value in kind.__members__:
        return kind[value]
    return kind(choice(value, name, [m.value for m in kind]))


@dataclass(frozen=True)
class MatrixMap:
    """A matrix inside a one-dimensional buffer. A deep copy or a pickle has a buffer of its own.

    Parameters
    ----------
    data : ndarray, 1-D
        The buffer.
    order : MapOrder, or "row" or "col"
        Row-major: element (r, c) is ``data[start + r * stride + c]``; column-major:
        ``data[start + r + c * stride]``.
    rows, cols : int
        Size.
    stride : int, optional
        Elements between rows (columns); the width (height) if left out.
    start : int
        Where element (0, 0) is.

    Examples
    --------
    >>> import numpy as np
    >>> MatrixMap(np.arange(6), MapOrder.COL_MAJOR, 3, 2).view()
    array([[0, 3],
           [1, 4],
           [2, 5]])
    """

    data: np.ndarray
    order: MapOrder | str
    rows: int
    cols: int
    stride: int | None = None
    start: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.data, np.ndarray) or self.data.ndim != 1:
            raise TypeError("data: expected a one-dimensional array")
        if is_masked(self.data):
            raise TypeError("data: masked elements have no value; fill them first")
        order = _member(self.order, MapOrder, "order")
        rows, cols = integer(self.rows, "rows", 0), integer(self.cols, "cols", 0)
        inner, outer = (cols, rows) if order is MapOrder.ROW_MAJOR else (rows, cols)
        stride = inner if self.stride is None else integer(self.stride, "stride", 0)
        start = integer(self.start, "start", 0)
        if outer > 1 and stride < inner:
            raise ValueError(f"stride: expected at least {inner}, got {stride}")
        needed = start + (outer - 1) * stride + inner if inner and outer else 0
        if needed > self.data.size:
            raise ValueError(f"data: expected at least {needed} elements, got {self.data.size}")
        fields = {"order": order, "rows": rows, "cols": cols, "stride": stride, "start": start}
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def view(self) -> np.ndarray:
        """The matrix as a view of the buffer, shape (rows, cols).

        It is cut out of the buffer by NumPy's own slices, so that it ends where the buffer does.

        Raises
        ------
        ValueError
            If the buffer was made smaller meanwhile.
        """
        by_rows = self.order is MapOrder.ROW_MAJOR
        inner, outer = (self.cols, self.rows) if by_rows else (self.rows, self.cols)
        data = np.asarray(self.data)
        if inner == 0 or outer == 0:
            return np.empty((self.rows, self.cols), dtype=data.dtype)
        lines = data[self.start :]
        if lines.size >= inner:
            windows = np.lib.stride_tricks.sliding_window_view(lines, inner, writeable=True)
            lines = windows[:: max(self.stride, 1)][:outer]  # type: ignore[type-var]
        if lines.shape != (outer, inner):
            raise ValueError(f"data: expected at least as many elements as before, got {data.size}")
        return lines if by_rows else lines.T


def _matrix(value: Any) -> Any:
    return value.view() if isinstance(value, MatrixMap) else value


def _negated(offset: Any, name: str, size: int, unit: str) -> Any:
    """An added offset as the zero point to subtract, modulo 2**32 (the negative of -2**31 is itself)."""
    checked = as_zero_point(offset, name, size, unit)
    if isinstance(checked, np.ndarray):
        return -checked
    return -checked if checked != -(2**31) else checked


def _run(lhs: Any, rhs: Any, result: Any, lhs_offset: Any, rhs_offset: Any, pipeline: Any) -> None:
    lhs, rhs = as_operand(_matrix(lhs), "lhs"), as_operand(_matrix(rhs), "rhs")
    for name, a in (("lhs", lhs), ("rhs", rhs)):
        if a.dtype != np.uint8:
            raise TypeError(f"{name}: expected dtype uint8, got {a.dtype}")
        if a.ndim != 2:
            raise ValueError(f"{name}: expected a matrix, got {a.ndim} dimensions")
    (m, depth), n = lhs.shape, rhs.shape[1]
    zeros = (
        _negated(lhs_offset, "lhs_offset", m, "lhs row"),
        _negated(rhs_offset, "rhs_offset", n, "rhs column"),
    )
    out = _matrix(result)
    if depth == rhs.shape[0] and 0 in (m, depth, n):
        return
    try:
        _gemm(lhs, rhs, lhs_zero_point=zeros[0], rhs_zero_point=zeros[1], output=pipeline, out=out)
    except (TypeError, ValueError) as error:
        raise renamed(error, out="result", output="output_pipeline") from None


def _to_uint8(offset: Any, multiplier: Any, shift: Any, names: tuple[str, str, str]) -> list[Stage]:
    """The stages of gemmlowp's first output scheme, of arguments with these names."""
    numbers = [integer(value, name) for value, name in zip((offset, multiplier, shift), names, strict=True)]
    try:
        return [QuantizeDownInt32ToUint8Scale(*numbers), SaturatingCast(np.uint8)]
    except ValueError as error:
        raise renamed(error, shift=names[2]) from None


def gemm_with_output_pipeline(
    lhs: MatrixMap | ArrayLike,
    rhs: MatrixMap | ArrayLike,
    result: MatrixMap | np.ndarray,
    lhs_offset: int,
    rhs_offset: int,
    output_pipeline: Sequence[Stage] = (),
) -> None:
    """``GemmWithOutputPipeline``: ``result = pipeline((lhs + lhs_offset) @ (rhs + rhs_offset))``.

    Parameters
    ----------
    lhs, rhs : MatrixMap or ndarray of uint8, shapes (m, depth) and (depth, n)
        Operands.
    result : MatrixMap or ndarray, shape (m, n)
        Destination, of the pipeline's dtype (int32 without a cast).
    lhs_offset, rhs_offset : int
        Added to every element.
    output_pipeline : sequence of stages
        lowgemm's output stages.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> result = np.zeros((1, 1), np.int32)
    >>> gemm_with_output_pipeline(np.array([[3]], np.uint8), np.array([[5]], np.uint8), result, -1, 2)
    >>> result
    array([[14]], dtype=int32)
    """
    for name, value in (("lhs_offset", lhs_offset), ("rhs_offset", rhs_offset)):
        integer(value, name)
    _run(lhs, rhs, result, lhs_offset, rhs_offset, output_pipeline)


def gemm_with_output_pipeline_pc(
    lhs: MatrixMap | ArrayLike,
    rhs: MatrixMap | ArrayLike,
    result: MatrixMap | np.ndarray,
    lhs_offset: ArrayLike,
    rhs_offset: ArrayLike,
    output_pipeline: Sequence[Stage] = (),
) -> None:
    """``GemmWithOutputPipelinePC``: the same with an offset for each lhs row and rhs column.

    Parameters
    ----------
    lhs, rhs, result, output_pipeline
        As in `gemm_with_output_pipeline`.
    lhs_offset : int or array_like of int, shape (m,)
        Added to each row of the lhs.
    rhs_offset : int or array_like of int, shape (n,)
        Added to each column of the rhs.

    Examples
    --------
    >>> import numpy as np
    >>> result = np.zeros((2, 1), np.int32)
    >>> ones = np.ones((2, 2), np.uint8)
    >>> gemm_with_output_pipeline_pc(ones, ones[:, :1], result, [0, 9], 0)
    >>> result
    array([[ 2],
           [20]], dtype=int32)
    """
    _run(lhs, rhs, result, lhs_offset, rhs_offset, output_pipeline)


def gemm(
    lhs: MatrixMap | ArrayLike,
    rhs: MatrixMap | ArrayLike,
    result: MatrixMap | np.ndarray,
    lhs_offset: int,
    rhs_offset: int,
    result_offset: int,
    result_mult_int: int,
    result_shift: int,
) -> None:
    """gemmlowp's first interface, with a uint8 result.

    The result is ``RDP((acc + result_offset) * result_mult_int, result_shift)``.

    Parameters
    ----------
    lhs, rhs, result, lhs_offset, rhs_offset
        As in `gemm_with_output_pipeline`; the result is uint8.
    result_offset, result_mult_int, result_shift : int
        Output scheme.

    Examples
    --------
    >>> import numpy as np
    >>> result = np.zeros((1, 1), np.uint8)
    >>> gemm(np.array([[3]], np.uint8), np.array([[5]], np.uint8), result, 0, 0, 1, 3, 2)
    >>> result
    array([[12]], dtype=uint8)
    """
    names = ("result_offset", "result_mult_int", "result_shift")
    stages = _to_uint8(result_offset, result_mult_int, result_shift, names)
    gemm_with_output_pipeline(lhs, rhs, result, lhs_offset, rhs_offset, stages)


def eight_bit_int_gemm(
    transpose_a: bool,
    transpose_b: bool,
    transpose_c: bool,
    m: int,
    n: int,
    k: int,
    a: np.ndarray,
    a_offset: int,
    lda: int,
    b: np.ndarray,
    b_offset: int,
    ldb: int,
    c: np.ndarray,
    c_offset: float,
    c_mult_int: int | None = None,
    c_shift: int | None = None,
    ldc: int | None = None,
    bit_depth: BitDepthSetting | str = BitDepthSetting.A8B8,
) -> None:
    """``EightBitIntGemm`` on one-dimensional buffers, BLAS style.

    Parameters
    ----------
    transpose_a, transpose_b, transpose_c : bool
        True: that matrix is row-major; False: column-major.
    m, n, k : int
        The result is m x n, the depth k.
    a, b : ndarray of uint8, 1-D
        Buffers of the m x k and k x n operands.
    a_offset, b_offset : int
        Added to every element.
    lda, ldb, ldc : int
        Strides in elements; `ldc` of None is the natural one.
    c : ndarray of uint8 or float32, 1-D
        Buffer of the result, written in place.
    c_offset : int, or float for a float32 result
        For uint8, added to each sum; for float32, the factor each sum is multiplied by (its upstream name).
    c_mult_int, c_shift : int
        For uint8 only: then multiplied, and divided by 2**c_shift with rounding.
    bit_depth : BitDepthSetting, or "A8B8" or "A5B7"
        No effect.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; nothing is written then.

    Examples
    --------
    >>> import numpy as np
    >>> c = np.zeros(1, np.float32)
    >>> two = np.array([2, 3], np.uint8)
    >>> eight_bit_int_gemm(True, True, True, 1, 1, 2, two, 0, 2, two, 0, 1, c, 0.5)
    >>> c
    array([6.5], dtype=float32)
    """
    _member(bit_depth, BitDepthSetting, "bit_depth")
    flags = {"transpose_a": transpose_a, "transpose_b": transpose_b, "transpose_c": transpose_c}
    orders = [
        MapOrder.ROW_MAJOR if flag(value, name) else MapOrder.COL_MAJOR for name, value in flags.items()
    ]
    maps = []
    for name, data, order, (rows, cols), stride, (rows_name, cols_name) in (
        ("a", a, orders[0], (m, k), lda, "mk"), ("b", b, orders[1], (k, n), ldb, "kn"),
        ("c", c, orders[2], (m, n), ldc, "mn"),
    ):  # fmt: skip
        try:
            maps.append(MatrixMap(data, order, rows, cols, stride))
        except (TypeError, ValueError) as error:
            names = {"data": name, "stride": f"ld{name}", "rows": rows_name, "cols": cols_name}
            raise renamed(error, **names) from None
    lhs, rhs, result = maps
    integer(a_offset, "a_offset")
    integer(b_offset, "b_offset")
    if c.dtype == np.float32:
        if c_mult_int is not None or c_shift is not None:
            raise ValueError("c_mult_int, c_shift: expected None for a float32 result")
        stages: list[Stage] = [Dequantize(float(np.float32(number(c_offset, "c_offset"))))]
    elif c.dtype == np.uint8:
        if c_mult_int is None or c_shift is None:
            raise ValueError("c_mult_int, c_shift: expected integers for a uint8 result")
        stages = _to_uint8(c_offset, c_mult_int, c_shift, ("c_offset", "c_mult_int", "c_shift"))
    else:
        raise TypeError(f"c: expected dtype uint8 or float32, got {c.dtype}")
    try:
        gemm_with_output_pipeline(lhs, rhs, result, a_offset, b_offset, stages)
    except (TypeError, ValueError) as error:
        raise renamed(error, lhs="a", rhs="b", result="c") from None
