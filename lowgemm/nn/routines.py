"""The layers' loops as C functions ``routine(params, src, src2, dst, space)``, which `program.py` runs.

Each has a record of parameters with named fields, written by `LayerRoutine.record` and read by the same
description. int8 is taken as uint8 with the top bit flipped (``v = (u ^ flip) - flip``), so each is compiled
once. Loops count in unsigned integers: Numba wraps signed indices around, and such loops do not vectorise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from lowgemm.jit.memory import as_address, pointer_at, store_32
from lowgemm.jit.routine import Routine, call_address, inner, signature

_u64 = np.uint64


def _fields(names: str, of: Any = np.int64) -> list[tuple[str, Any]]:
    return [(name, of) for name in names.split()]


#: Where windows lie: the number, size and channels of the images; the size of the result and of a window; the
#: step from window to window and the step inside a window; the padding in front. `windows.Windows.fields`
#: writes these.
_WINDOWS = _fields("images height width channels oh ow kh kw sy sx dy dx top left")
#: A planned product: its routine and plan, the panels and sums of the packed weights, and the zero points (or
#: addresses of vectors of them).
MULTIPLY = np.dtype(_fields("routine plan panels sums lhs_zero rhs_zero lhs_zeros rhs_zeros"))
#: Quantization of `count` real numbers.
QUANTIZE = np.dtype([("count", np.int64), *_fields("scale zero_point low high", np.float64)])
#: Images with `row` bytes per line, and their margin: its lines, its bytes per line, and the value in it.
PAD = np.dtype(_fields("images height row top bottom left right zero"))
#: The input's flip; whether the mean is wanted.
POOL = np.dtype(_WINDOWS + _fields("flip average"))
#: Address of the table of all pairs; elements.
ADD = np.dtype(_fields("table count"))
_TABLE = 0
assert ADD.names is not None and ADD.names[_TABLE] == "table"


class LayerRoutine(Routine):
    """A routine that runs on addresses, and the description of its parameters.

    Parameters
    ----------
    function : callable
        Of (params, src, src2, dst, space), all pointers; `params` points to a record.
    parameters : dtype
        Of the record.
    """

    def __init__(self, function: Callable[..., Any], parameters: np.dtype) -> None:
        super().__init__(function, signature("ppppp"))
        self.parameters = parameters

    def record(self, **values: float) -> np.ndarray:
        """Parameters, each by its name: an array of one record.

        Raises
        ------
        TypeError
            If one is missing, or there is none of that name.

        Examples
        --------
        >>> add.record(table=0, count=3)["count"]
        array([3])
        """
        names = self.parameters.names or ()
        if values.keys() != set(names):
            raise TypeError(f"values: expected {', '.join(names)}, got {', '.join(values)}")
        return np.array([tuple(values[name] for name in names)], self.parameters)

    def run(self, params: np.ndarray, src: np.ndarray, src2: np.ndarray, dst: np.ndarray, space: Any) -> None:
        """Run on arrays, which have the sizes that the parameters say."""
        self.ctypes(*(a.ctypes.data for a in (params, src, src2, dst, space)))


def _layer_routine(parameters: np.dtype) -> Callable[[Callable[..., Any]], LayerRoutine]:
    return lambda function: LayerRoutine(function, parameters)


@inner
def _copy(a, source, b, to, count):
    """`count` elements of the array `a` from index `source` on to those of `b` from `to` on."""
    s, t = _u64(source), _u64(to)
    for i in range(_u64(count)):
        b[t + i] = a[s + i]


@inner
def _fill(b, to, count, value):
    """`count` elements of the array `b` from index `to` on become `value`."""
    t = _u64(to)
    for i in range(_u64(count)):
        b[t + i] = value


@numba.njit(nogil=True, error_model="numpy")
def _quantize(x, scale, zero_point, low, high, out):
    """As `lowgemm.quantization.quantize`, of the float array `x` to the bytes `out`: `x` / `scale` to the
    nearest integer plus `zero_point`, between `low` and `high`, float64. Returns the number of NaNs.
    """
    nans = 0
    for i in range(x.size):
        v = np.float64(x[i])
        t = np.rint(v / scale) + zero_point
        t = t if t < high else high  # a NaN becomes `high`: the conversion below is always defined
        t = t if t > low else low
        nans += v != v
        out[i] = np.uint8(np.int32(t) & 255)
    return nans


@inner
def _add_up(x, at, sums, count, flip):
    """Add `count` bytes of the array `x` from index `at` on, flipped, to `sums`, int32."""
    s = _u64(at)
    for c in range(_u64(count)):
        sums[c] += np.int32(x[s + c]) ^ flip


@inner
def _largest(x, at, sums, count, flip):
    """Like `_add_up`, but `sums` keeps the largest."""
    s = _u64(at)
    for c in range(_u64(count)):
        sums[c] = max(sums[c], np.int32(x[s + c]) ^ flip)


@numba.njit(nogil=True, error_model="numpy")
def _means(sums, count, area, flip, out, at):
    """Nearest integers to ``sum / area - flip``, ties away from zero, to `out` from index `at` on; float64
    holds every sum exactly.
    """
    t, wide = _u64(at), 1.0 / np.float64(2 * area)
    for c in range(_u64(count)):
        twice = np.float64(2 * (sums[c] - area * flip))
        # floor((2 |sum| + area) / (2 area)): the quotient is no closer to the next integer than 1 / (2 area)
        v = np.floor((abs(twice) + area + 0.5) * wide)
        out[t + c] = np.uint8(np.int32(v if twice >= 0 else -v) & 255)


@_layer_routine(MULTIPLY)
def multiply(params, src, src2, dst, space):
    """A planned product."""
    p = numba.carray(params, (1,), MULTIPLY)[0]
    call_address(
        p.routine,
        (
            p.plan, as_address(src), p.panels, p.sums, as_address(dst), as_address(space), p.lhs_zero,
            p.rhs_zero, p.lhs_zeros, p.rhs_zeros,
        ),
    )  # fmt: skip


@_layer_routine(QUANTIZE)
def quantize(params, src, src2, dst, space):
    """Real numbers to integers; the number of NaNs goes to `src2`."""
    p = numba.carray(params, (1,), QUANTIZE)[0]
    x, out = numba.carray(src, (p.count,), np.float32), numba.carray(dst, (p.count,), np.uint8)
    nans = _quantize(x, p.scale, p.zero_point, p.low, p.high, out)
    store_32(src2, 0, min(nans, 1 << 30))


@_layer_routine(PAD)
def pad(params, src, src2, dst, space):
    """Images with a margin."""
    p = numba.carray(params, (1,), PAD)[0]
    images, height, row = p.images, p.height, p.row
    top, bottom, left, right = p.top, p.bottom, p.left, p.right
    width = left + row + right
    size = images * (top + height + bottom) * width
    x, out = numba.carray(src, (images * height * row,), np.uint8), numba.carray(dst, (size,), np.uint8)
    value = np.uint8(p.zero)
    at = 0
    for i in range(images):
        _fill(out, at, top * width, value)
        at += top * width
        for y in range(height):
            _fill(out, at, left, value)
            _copy(x, (i * height + y) * row, out, at + left, row)
            _fill(out, at + left + row, right, value)
            at += width
        _fill(out, at, bottom * width, value)
        at += bottom * width


@_layer_routine(POOL)
def pool(params, src, src2, dst, space):
    """Largest value or mean of windows."""
    p = numba.carray(params, (1,), POOL)[0]
    n, height, width, channels, oh, ow = p.images, p.height, p.width, p.channels, p.oh, p.ow
    kh, kw, sy, sx, top, left = p.kh, p.kw, p.sy, p.sx, p.top, p.left
    flip, average = np.int32(p.flip), p.average
    x = numba.carray(src, (n * height * width * channels,), np.uint8)
    out = numba.carray(dst, (n * oh * ow * channels,), np.uint8)
    sums = numba.carray(space, (channels,), np.int32)
    at = 0
    for i in range(n):
        for oy in range(oh):
            y0, y1 = max(oy * sy - top, 0), min(oy * sy - top + kh, height)
            for ox in range(ow):
                x0, x1 = max(ox * sx - left, 0), min(ox * sx - left + kw, width)
                for c in range(channels):
                    sums[c] = 0
                for y in range(y0, y1):
                    for xx in range(x0, x1):
                        source = ((i * height + y) * width + xx) * channels
                        if average:
                            _add_up(x, source, sums, channels, flip)
                        else:
                            _largest(x, source, sums, channels, flip)
                if average:
                    _means(sums, channels, (y1 - y0) * (x1 - x0), flip, out, at)
                else:
                    for c in range(channels):
                        out[at + c] = sums[c] ^ flip
                at += channels


@_layer_routine(ADD)
def add(params, src, src2, dst, space):
    """Sums of 8-bit integers from a table of all pairs."""
    count = numba.carray(params, (1,), ADD)[0].count
    a, b = numba.carray(src, (count,), np.uint8), numba.carray(src2, (count,), np.uint8)
    out = numba.carray(dst, (count,), np.uint8)
    table = numba.carray(pointer_at(params, _TABLE), (1 << 16,), np.uint8)
    for i in range(count):
        out[i] = table[(np.int64(a[i]) << 8) | np.int64(b[i])]
