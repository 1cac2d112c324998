"""Fuzz steps for what stands on the engine: `compat.gemmlowp`, `compat.onnx` and `fixedpoint`."""

from __future__ import annotations

from typing import Any

import numpy as np

import lowgemm as lg
from lowgemm import fixedpoint, reference
from lowgemm import reference_fixedpoint as ref
from lowgemm.compat import gemmlowp, onnx

from . import pipelines
from .arrays import JUNK, broken, dressed, integers, spaced

#: NumPy 2 moved it.
byte_bounds = getattr(np.lib, "array_utils", np).byte_bounds
DOCUMENTED = (TypeError, ValueError, MemoryError)


def _same(got: Any, expected: Any) -> bool:
    got, expected = np.asarray(got), np.asarray(expected)
    equal = np.array_equal(got, expected, equal_nan=got.dtype.kind == "f")
    return got.dtype == expected.dtype and got.shape == expected.shape and equal


# ---- gemmlowp ----------------------------------------------------------------------------------------------
def _buffer(s: Any, a: np.ndarray) -> tuple[np.ndarray, gemmlowp.MatrixMap]:
    """`a` inside a one-dimensional buffer, as a map of either order."""
    order = s.r.choice(list(gemmlowp.MapOrder))
    outer, inner = a.shape if order is gemmlowp.MapOrder.ROW_MAJOR else a.shape[::-1]
    stride, start = inner + s.r.choice((0, 0, 3)), s.r.choice((0, 2))
    data = np.full(start + outer * stride + 5, 66, a.dtype)
    m = gemmlowp.MatrixMap(data, order, a.shape[0], a.shape[1], stride, start)
    m.view()[...] = a
    return data, m


def lowp(s: Any) -> None:
    """gemmlowp's three matrix entry points."""
    r = s.r
    m, k, n = (s.size() for _ in range(3))
    a, b = (integers(r, s.g, np.uint8, shape) for shape in ((m, k), (k, n)))
    lhs, rhs = (x if r.random() < 0.5 else _buffer(s, x)[1] for x in (a, b))
    offsets = [r.choice((0, -128, 5, pipelines.int32(r))) for _ in range(2)]
    kind = r.randrange(3)
    if kind == 0:
        scheme = (pipelines.int32(r), pipelines.int32(r), r.randrange(32))
        stages: Any = [lg.QuantizeDownInt32ToUint8Scale(*scheme), lg.SaturatingCast(np.uint8)]
        function, tail = gemmlowp.gemm, scheme
    else:
        stages = pipelines.sound(r, s.g, m, n) or []
        stages = [stages] if isinstance(stages, lg.Stage) else stages
        function, tail = gemmlowp.gemm_with_output_pipeline, (stages,)
        if kind == 2:
            function = gemmlowp.gemm_with_output_pipeline_pc
            offsets = [
                r.choice((o, pipelines.vector(r, s.g, size))) for o, size in zip(offsets, (m, n), strict=True)
            ]
    zeros = [-np.asarray(o, dtype=np.int64) for o in offsets]
    expected = reference.gemm(a, b, lhs_zero_point=zeros[0], rhs_zero_point=zeros[1], output=list(stages))
    result = np.full((m, n), 44, expected.dtype)
    data, out = _buffer(s, result) if r.random() < 0.5 else (result, result)
    before = data.copy()
    s.call("compat.gemmlowp", function, lhs, rhs, out, *offsets, *tail)
    view = out.view() if isinstance(out, gemmlowp.MatrixMap) else out
    s.expect(_same(view, expected if 0 not in (m, k, n) else np.full_like(expected, 44)), function.__name__)
    view[...] = 44
    s.expect(_same(data, before), f"{function.__name__}: wrote outside")


def lowp_odd(s: Any) -> None:
    """The same with arguments that do not fit; what is taken is not looked at further than that it
    returns.
    """
    r = s.r
    a = integers(r, s.g, np.uint8, (s.size(), s.size()))
    args = [a, a.T, np.zeros((a.shape[0],) * 2, np.int32), 0, 0, []]
    if r.random() < 0.3:
        where = r.randrange(6)
        fields = [np.zeros(60, np.uint8), gemmlowp.MapOrder.ROW_MAJOR, 5, 4, None, 0]
        fields[where] = r.choice((*JUNK, -1, 100, 2**31 - 1))
        try:
            m = s.call("compat.gemmlowp", gemmlowp.MatrixMap, *fields)
        except DOCUMENTED:
            s.counts["compat.gemmlowp refused"] += 1
            return
        low, high = byte_bounds(m.view()) if m.view().size else (0, 0)
        begin, end = byte_bounds(m.data) if m.data.size else (0, 0)
        s.expect(low == high or (begin <= low and high <= end), "MatrixMap: view outside of the buffer")
        return
    where = r.randrange(6)
    args[where] = broken(r, a) if where < 3 else r.choice((*JUNK, [lg.SaturatingCast(np.uint8)]))
    function = r.choice((gemmlowp.gemm_with_output_pipeline, gemmlowp.gemm_with_output_pipeline_pc))
    try:
        s.call("compat.gemmlowp", function, *args)
    except DOCUMENTED as error:
        s.refused("compat.gemmlowp", error)


def eight_bit(s: Any) -> None:
    """`eight_bit_int_gemm`, sound."""
    r = s.r
    m, k, n = (s.size() for _ in range(3))
    a, b = (integers(r, s.g, np.uint8, shape) for shape in ((m, k), (k, n)))
    flags = [r.random() < 0.5 for _ in range(3)]
    pads = [r.choice((0, 0, 2)) for _ in range(3)]

    def flat(x: np.ndarray, by_rows: bool, pad: int) -> tuple[np.ndarray, int]:
        y = x if by_rows else x.T
        z = np.full((y.shape[0], y.shape[1] + pad), 9, x.dtype)
        z[:, : y.shape[1]] = y
        return z.ravel(), y.shape[1] + pad

    fa, lda = flat(a, flags[0], pads[0])
    fb, ldb = flat(b, flags[1], pads[1])
    offsets = r.choice((0, -100, pipelines.int32(r))), r.choice((0, -7, pipelines.int32(r)))
    if r.random() < 0.5:
        scheme: tuple[Any, ...] = (pipelines.int32(r), pipelines.int32(r), r.randrange(32))
        stages: Any = [lg.QuantizeDownInt32ToUint8Scale(*scheme), lg.SaturatingCast(np.uint8)]
    else:
        scheme = (r.choice((1.0, 0.1, -2.5, 1e-20, float(s.g.normal()))), None, None)
        stages = [lg.Dequantize(float(np.float32(scheme[0])))]
    zeros = {"lhs_zero_point": -np.int64(offsets[0]), "rhs_zero_point": -np.int64(offsets[1])}
    expected = reference.gemm(a, b, output=stages, **zeros)
    if 0 in (m, k, n):
        expected = np.full_like(expected, 9)
    fc, ldc = flat(np.full((m, n), 9, expected.dtype), flags[2], pads[2])
    arguments = (*flags, m, n, k, fa, offsets[0], lda, fb, offsets[1], ldb, fc, *scheme, ldc)
    s.call("compat.gemmlowp", gemmlowp.eight_bit_int_gemm, *arguments)
    s.expect(_same(fc, flat(expected, flags[2], pads[2])[0]), "eight_bit_int_gemm")


def eight_bit_odd(s: Any) -> None:
    """`eight_bit_int_gemm` with one argument that does not fit."""
    x, c = np.zeros(30, np.uint8), np.full(30, 9, np.uint8)
    args = [True, True, True, 5, 5, 5, x, 0, 5, x, 0, 5, c, 0, 1, 0, 5, gemmlowp.BitDepthSetting.A8B8]
    args[s.r.randrange(3, len(args))] = s.r.choice(
        (*JUNK, -1, 6, np.zeros(24, np.uint8), np.zeros((5, 6), np.uint8))
    )
    try:
        s.call("compat.gemmlowp", gemmlowp.eight_bit_int_gemm, *args)
    except DOCUMENTED:
        s.counts["compat.gemmlowp refused"] += 1
        s.expect(bool((c == 9).all()), "eight_bit_int_gemm: refused but wrote")


# ---- onnx --------------------------------------------------------------------------------------------------
def onnx_matmul(s: Any) -> None:
    """MatMulInteger and QLinearMatMul, sound."""
    r = s.r
    a, b = s.problem()
    m, n = (a.shape[-2] if a.ndim > 1 else 1), (b.shape[-1] if b.ndim > 1 else 1)
    az = r.choice((None, a.dtype.type(7), integers(r, s.g, a.dtype, (m,))))
    bz = r.choice((None, b.dtype.type(9), integers(r, s.g, b.dtype, (n,))))
    zeros = {
        "lhs_zero_point": 0
        if az is None
        else az
        if np.ndim(az) and np.size(az) != 1
        else int(np.ravel(az)[0]),
        "rhs_zero_point": 0
        if bz is None
        else bz
        if np.ndim(bz) and np.size(bz) != 1
        else int(np.ravel(bz)[0]),
    }
    got = s.call("compat.onnx", onnx.matmul_integer, dressed(r, a), dressed(r, b), az, bz)
    s.expect(_same(got, reference.gemm(a, b, **zeros)), "matmul_integer")
    if az is None or bz is None:
        return
    rounding = r.choice(("onnx", "onnx_reference"))
    sa, sb, sy = (np.float32(r.choice((0.5, 0.02, r.random()))) for _ in range(3))
    y_zero = r.choice((np.uint8(3), np.int8(-4), np.array([5], np.uint8)))
    sy = sy or np.float32(1)
    scale = float(np.float32(np.float32(sa * sb) / sy))
    stage = lg.Requantize(scale, int(np.ravel(y_zero)[0]), np.asarray(y_zero).dtype, rounding=rounding)
    got = s.call("compat.onnx", onnx.qlinear_matmul, a, sa, az, b, sb, bz, sy, y_zero, rounding=rounding)
    s.expect(_same(got, reference.gemm(a, b, output=stage, **zeros)), "qlinear_matmul")


def onnx_linear(s: Any) -> None:
    """QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear, sound, against element-wise definitions."""
    r = s.r
    shape = tuple(s.size() for _ in range(r.choice((1, 2, 3))))
    x = (s.g.normal(size=shape) * r.choice((1, 100, 1e6))).astype(np.float32)
    dtype = np.dtype(r.choice((np.uint8, np.int8, np.uint16, np.int16)))
    info = np.iinfo(dtype)
    axis = r.randrange(-len(shape), len(shape))
    per_axis = r.random() < 0.5
    count = shape[axis] if per_axis else 1
    scale = s.g.uniform(0.01, 3, count).astype(np.float32)
    zero = integers(r, s.g, dtype, (count,))
    along = [1] * len(shape)
    along[axis] = -1
    wide_scale, wide_zero = (v.reshape(along) if per_axis else v[0] for v in (scale, zero))
    if not per_axis:
        scale, zero = r.choice(((scale, zero), (scale[0], zero[0])))
    expected = np.clip(
        np.rint(x / wide_scale).astype(np.float64) + wide_zero.astype(np.float64), info.min, info.max
    )
    got = s.call("compat.onnx", onnx.quantize_linear, x, scale, zero, axis=axis)
    s.expect(_same(got, expected.astype(dtype)), "quantize_linear")
    q = got
    got = s.call("compat.onnx", onnx.dequantize_linear, q, scale, zero, axis=axis)
    exact = (q.astype(np.float32) - wide_zero.astype(np.float32)) * wide_scale
    s.expect(_same(got, exact.astype(np.float32)), "dequantize_linear")
    if x.size:
        y, y_scale, y_zero = s.call("compat.onnx", onnx.dynamic_quantize_linear, x)
        error = np.abs((y.astype(np.float64) - float(y_zero)) * float(y_scale) - x)
        s.expect(bool((error <= 1.01 * float(y_scale)).all()), "dynamic_quantize_linear")


def onnx_odd(s: Any) -> None:
    """ONNX operators with arguments that do not fit."""
    r = s.r
    a = s.operand(s.size(), s.size())
    junk = (*JUNK, broken(r, a), np.float32(0.5), np.uint8(3), np.zeros(3, np.uint8), np.ones(3, np.float32))
    kind = r.randrange(5)
    if kind == 0:
        function, args = onnx.matmul_integer, [a, a.T, None, None]
    elif kind == 1:
        one, zero = np.float32(0.1), a.dtype.type(3)
        function, args = onnx.qlinear_matmul, [a, one, zero, a.T, one, zero, one, np.uint8(3)]
    elif kind == 2:
        function, args = onnx.quantize_linear, [a.astype(np.float32), np.float32(0.5), np.uint8(1)]
    elif kind == 3:
        function, args = onnx.dequantize_linear, [a, np.float32(0.5), a.dtype.type(1)]
    else:
        function, args = onnx.dynamic_quantize_linear, [a.astype(np.float32)]
    for _ in range(r.choice((1, 1, 2))):
        args[r.randrange(len(args))] = r.choice(junk)
    named = {"axis": r.choice(JUNK)} if kind in (2, 3) and r.random() < 0.3 else {}
    try:
        s.call("compat.onnx", function, *args, **named)
    except DOCUMENTED as error:
        s.refused("compat.onnx", error)


# ---- fixedpoint --------------------------------------------------------------------------------------------
_BINARY = {
    "saturating_rounding_doubling_high_mul": (True, (16, 32)),
    "rounding_half_sum": (False, (16, 32)),
    "saturating_add": (True, (8, 16, 32)),
}
_SHIFT = {
    "rounding_divide_by_pot": (0, False),
    "shift_left": (0, True),
    "saturating_rounding_multiply_by_pot": (1, True),
}
_UNARY = (
    "exp_on_interval_between_negative_one_quarter_and_0_excl",
    "one_over_one_plus_x_for_x_in_0_1",
    "one_minus_x_over_one_plus_x_for_x_in_0_1",
)
_BITS = {"exp_on_negative_values": 0, "tanh": 1, "logistic": 0}


def fixed(s: Any) -> None:
    """Each function against its definition."""
    r = s.r
    shape = r.choice(((), (3,), (s.size(), s.size())))
    name = r.choice((*_BINARY, *_SHIFT, *_UNARY, *_BITS))
    bits = r.choice(_BINARY[name][1] if name in _BINARY else (8, 16, 32) if name in _SHIFT else (16, 32))
    dtype = np.dtype(f"i{bits // 8}")
    a = integers(r, s.g, dtype, shape)
    if name in _BINARY:
        b = integers(r, s.g, dtype, r.choice((shape, ())))
        args, expected = (
            (a, b),
            (getattr(ref, name)(a, b, bits) if _BINARY[name][0] else getattr(ref, name)(a, b)),
        )
        if name == "rounding_half_sum":
            expected = ref.rounding_half_sum(a, b)
    elif name in _SHIFT:
        signed, takes_bits = _SHIFT[name]
        e = s.g.integers(-(bits - 1) if signed else 0, bits - 1, r.choice((shape, ())), endpoint=True)
        args, expected = (a, e), getattr(ref, name)(a, e, *((bits,) if takes_bits else ()))
    elif name in _UNARY:
        if name != _UNARY[0]:
            a = np.abs(np.maximum(a, -a.dtype.type(np.iinfo(dtype).max)))
        args, expected = (a,), getattr(ref, name)(a, bits)
    else:
        integer_bits = r.randrange(bits - 3 - _BITS[name] + 1)
        if name == "exp_on_negative_values":
            a = np.minimum(a, 0).astype(dtype)
        args, expected = (a, integer_bits), getattr(ref, name)(a, integer_bits, bits)
    given = tuple(spaced(r, x)[0] if np.ndim(x) and r.random() < 0.4 else x for x in args)
    got = np.asarray(s.call("fixedpoint", getattr(fixedpoint, name), *given))
    s.expect(got.dtype == dtype and np.array_equal(got, np.asarray(expected)), f"fixedpoint.{name}")


def fixed_odd(s: Any) -> None:
    """Arguments that do not fit."""
    r = s.r
    name = r.choice((*_BINARY, *_SHIFT, *_UNARY, *_BITS))
    args: list[Any] = [integers(r, s.g, r.choice((np.int16, np.int32)), (4,))]
    if name not in _UNARY:
        args.append(args[0] if name in _BINARY else 2)
    args[r.randrange(len(args))] = r.choice(
        (*JUNK, np.zeros(5, np.int16), np.zeros(4, ">i4"), np.int16(99), [0, 1, 2])
    )
    try:
        s.call("fixedpoint", getattr(fixedpoint, name), *args)
    except DOCUMENTED:
        s.counts["fixedpoint refused"] += 1


STEPS = (
    ("lowp", 6), ("lowp_odd", 4), ("eight_bit", 4), ("eight_bit_odd", 3), ("onnx_matmul", 4),
    ("onnx_linear", 3), ("onnx_odd", 5), ("fixed", 8), ("fixed_odd", 4),
)  # fmt: skip
