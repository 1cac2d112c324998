"""The contributed operators (`com.microsoft`) against onnxruntime: no element may differ."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `test`)")
import onnx_models as om
from onnx import helper, numpy_helper

from lowgemm.onnx_run import Model
from lowgemm.onnx_run.contrib import OPERATORS, matmul_integer_16
from lowgemm.onnx_run.elementwise import fma
from lowgemm.onnx_run.state import State

BYTES = (np.uint8, np.int8)
CONTRIB = "com.microsoft"


def whole(g, dtype, shape=()):
    """Integers of the whole range."""
    info = np.iinfo(dtype)
    return np.asarray(g.integers(info.min, info.max, shape, dtype=dtype, endpoint=True))


def scale(g, low=-3.0, high=0.0):
    """A scale; powers of two now and then, which make ties."""
    value = 2.0 ** int(g.integers(-6, 2)) if g.random() < 0.3 else 10 ** g.uniform(low, high)
    return np.array(value, np.float32)


def coded(g, dtype, name):
    return {f"{name}_scale": scale(g), f"{name}_zero": whole(g, dtype)}


def model_of(op, inputs, result, domain, constants, opset, attributes):
    """One node; an input whose value is None is left out."""
    names = [n if v is not None else "" for n, v in inputs.items()]
    given = {n: v for n, v in inputs.items() if v is not None}
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], domain=domain, **attributes)],
        "g",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in given.items()
            if n not in constants
        ],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(result)), None)],
        [numpy_helper.from_array(v, n) for n, v in given.items() if n in constants],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(CONTRIB, 1)]
    feeds = {n: v for n, v in given.items() if n not in constants}
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), feeds


def same(op, inputs, result, domain=CONTRIB, constants=(), opset=21, **attributes):
    """Compare one node with onnxruntime; the number of elements."""
    model, feeds = model_of(op, inputs, result, domain, constants, opset, attributes)
    want = om.onnxruntime_run(model, feeds, "ORT_DISABLE_ALL")["y"]
    ours = Model(model)
    got = ours.run(None, feeds)[0]
    assert got.dtype == want.dtype and got.shape == want.shape, (got.dtype, got.shape, want.dtype, want.shape)
    np.testing.assert_array_equal(got, want, err_msg=f"{op} {attributes}")
    assert [r.runs_on for r in ours.profile] == ["lowgemm"]
    return got.size


def test_every_operator_has_a_test_here():
    """QLinearReduceMean alone is not compared: onnxruntime has its schema and no CPU kernel."""
    source = pathlib.Path(__file__).read_text(encoding="utf-8")
    named = set(re.findall(r'"([A-Z]\w+)"', source))
    assert {op for domain, op in OPERATORS if domain == CONTRIB} <= named


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_sum_and_product_of_all_pairs(op):
    """All 65,536 pairs at a time, and operands that broadcast."""
    g, compared = np.random.default_rng(0), 0
    for trial in range(30):
        dtype = BYTES[trial % 2]
        info = np.iinfo(dtype)
        every = np.arange(info.min, info.max + 1).astype(dtype)
        a, b = (np.ascontiguousarray(v) for v in np.meshgrid(every, every, indexing="ij"))
        a, b = [
            (a, b),
            (a, b[:1]),
            (a, whole(g, dtype)),
            (whole(g, dtype), b),
            (a[:, :-7].copy(), b[:, :-7].copy()),
        ][trial % 5]
        inputs = {"a": a, **coded(g, dtype, "a"), "b": b, **coded(g, dtype, "b"), **coded(g, dtype, "y")}
        if trial % 6 == 5:
            del inputs["y_zero"]  # 0 of the operands' dtype
        compared += same(op, inputs, dtype, constants=list(inputs)[1:3] if trial % 2 else ())
    print(f"{op}: {compared} compared, 0 differ")
    assert compared > 1_500_000


def test_near_ties_of_sum_and_product():
    """Cases where another order of the same operations, or another place of a rounding, differs."""
    g, found = np.random.default_rng(1), 0
    a, b = (v.astype(np.uint8) for v in np.meshgrid(np.arange(256), np.arange(256), indexing="ij"))
    f = np.float32
    while found < 12:
        sa, sb, sy = (f(10 ** g.uniform(-3, 0)) for _ in range(3))
        za, zb, zy = (f(v) for v in g.integers(0, 256, 3))
        ra, rb, product = sa / sy, sb / sy, (a - za) * (b - zb)
        sums = [
            fma(a, ra, fma(b, rb, fixed)) for fixed in (zy - (ra * za + rb * zb), zy - fma(ra, za, rb * zb))
        ]
        products = [
            product * (sa * sb / sy) + zy,
            fma(product, sa * sb / sy, zy),
            product * (sa * (sb / sy)) + zy,
        ]
        ways = {"QLinearAdd": sums, "QLinearMul": products}
        for op, values in ways.items():
            bytes_of = [np.clip(np.rint(v), 0, 255) for v in values]
            if all((v == bytes_of[0]).all() for v in bytes_of):
                continue
            found += 1
            inputs = {
                "a": a, "as": np.array(sa), "az": np.array(za, np.uint8), "b": b, "bs": np.array(sb),
                "bz": np.array(zb, np.uint8), "ys": np.array(sy), "yz": np.array(zy, np.uint8),
            }  # fmt: skip
            same(op, inputs, np.uint8)


def test_one_rounding():
    """`fma` against exact rational arithmetic, at values whose float64 sum lies on or beside a
    float32 tie.
    """
    from fractions import Fraction

    def rounded(x):
        """The float32 nearest to a fraction, ties to even."""
        near = np.float32(float(x))
        about = [near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))]
        return min(about, key=lambda v: (abs(Fraction(float(v)) - x), int(v.view(np.int32)) & 1))

    g, twice = np.random.default_rng(2), 0
    for _ in range(3000):
        c = np.float32(g.integers(1, 2**24))
        a, b = (
            np.float32(g.integers(1, 2**24) | 1),
            np.float32((g.integers(1, 2**24) | 1) * 2.0 ** -int(g.integers(40, 80))),
        )
        if g.random() < 0.5:  # half a unit of c and a little
            a, b = np.float32(2**-12 if c < 2**23 else 0.5), np.float32(1 + 2.0 ** -int(g.integers(1, 24)))
            c = np.float32(g.integers(2**23, 2**24)) * (1 if g.random() < 0.5 else -1)
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        assert fma(a, b, c) == rounded(exact)
        twice += np.float32(np.float64(a) * np.float64(b) + np.float64(c)) != rounded(exact)
    c, tiny = np.float32(2**23), np.float32(2.0**-20)
    assert fma(np.float32(0.5) + tiny * 0, np.float32(1), c) == 2**23  # a tie, to even
    assert fma(np.float32(0.5), np.float32(1 + 2**-23), c) == 2**23 + 1
    deep = fma(np.float32(2.0**-60), np.float32(1), np.float32(1))
    assert deep == 1
    print(f"{twice} of 3000 would have been rounded twice")


@pytest.mark.parametrize("opset", [12, 13])
def test_softmax(opset):
    """All axes, lengths up to thousands, scales of rows of one value and of rows that are nearly equal."""
    g, compared = np.random.default_rng(opset), 0
    for trial in range(300):
        dtype, axes = BYTES[trial % 2], 1 + trial % 4
        shape = tuple(int(n) for n in g.integers(1, (2000, 50, 12, 7)[axes - 1], axes))
        x = whole(g, dtype, shape)
        inputs = {"x": x, "xs": scale(g, -4, 1), "xz": whole(g, dtype)}
        inputs["ys"] = np.array((1 / 256, 1 / 255, 0.0039215684, float(scale(g)))[trial % 4], np.float32)
        inputs["yz"] = whole(g, dtype) if trial % 5 else np.array(np.iinfo(dtype).min, dtype)
        more = {} if trial % 7 == 0 else {"axis": int(g.integers(-axes, axes))}
        model, feeds = model_of(
            "QLinearSoftmax", inputs, dtype, CONTRIB, ("xs",), 21, {"opset": opset, **more}
        )
        want = om.onnxruntime_run(model, feeds, "ORT_DISABLE_ALL")["y"]
        np.testing.assert_array_equal(
            Model(model).run(None, feeds)[0], want, err_msg=f"{shape} {more} {inputs['xs']}"
        )
        compared += x.size
    print(f"QLinearSoftmax of operator set {opset}: {compared} compared, 0 differ")


def test_softmax_ties():
    """Two or four equal largest values: halves and quarters of 255, which the last bits of the table and the
    sum decide.
    """
    g, compared = np.random.default_rng(3), 0
    for _ in range(25):
        length, step = int(g.integers(2, 30)), float(np.float32(g.uniform(0.2, 8)))
        x = np.empty((200, length), np.uint8)
        for row in x:
            top = int(g.integers(60, 256))
            row[:] = g.integers(max(0, top - int(20 / step)), top + 1, length)
            row[g.permutation(length)[: g.integers(1, 3) * 2]] = top
        inputs = {
            "x": x, "xs": np.array(step, np.float32), "xz": np.array(0, np.uint8),
            "ys": np.array(0.0039215684, np.float32), "yz": np.array(0, np.uint8),
        }  # fmt: skip
        attributes = {"axis": -1, "opset": 13}
        model, feeds = model_of("QLinearSoftmax", inputs, np.uint8, CONTRIB, (), 21, attributes)
        want = om.onnxruntime_run(model, feeds, "ORT_DISABLE_ALL")["y"]
        np.testing.assert_array_equal(Model(model).run(None, feeds)[0], want)
        compared += x.size
    print(f"ties: {compared} compared, 0 differ")


@pytest.mark.parametrize("op", ["QLinearSigmoid", "QLinearLeakyRelu", "QLinearGlobalAveragePool"])
@pytest.mark.parametrize("dtype", BYTES)
def test_one_operand(op, dtype):
    g = np.random.default_rng(4)
    for trial in range(20):
        x = whole(g, dtype, tuple(int(n) for n in g.integers(1, 9, 4)))
        inputs = {"x": x, **coded(g, dtype, "x"), **coded(g, dtype, "y")}
        more = {}
        if op == "QLinearLeakyRelu":
            more["alpha"] = float(g.uniform(-0.5, 0.9))
        if op == "QLinearGlobalAveragePool":
            more["channels_last"] = trial % 2
        same(op, inputs, dtype, **more)


@pytest.mark.parametrize("dtype", BYTES)
def test_sigmoid_in_small_steps(dtype):
    """Where the function is below 1e-7, onnxruntime's quotient of polynomials is 0 or another number."""
    g = np.random.default_rng(12)
    every = np.arange(256, dtype=np.uint8).view(dtype)
    for step in 10 ** g.uniform(-10, -5, 40):
        inputs = {"x": np.tile(every, 2), **coded(g, dtype, "x"), **coded(g, dtype, "y")}
        inputs |= {
            "x_scale": np.array(g.uniform(0.05, 0.4), np.float32),
            "y_scale": np.array(step, np.float32),
        }
        same("QLinearSigmoid", inputs, dtype)


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("op", ["QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearReduceMean"])
def test_a_zero_point_left_out_is_zero_of_the_operands_dtype(op, dtype):
    """onnxruntime crashes without one in the first two, so it is not asked."""
    g = np.random.default_rng(11)
    inputs = {"x": whole(g, dtype, (3, 5)), **coded(g, dtype, "x"), "y_scale": scale(g)}
    more = {"axes": [1], "keepdims": 1} if op == "QLinearReduceMean" else {}
    more |= {"opset": 13} if op == "QLinearSoftmax" else {}
    results = []
    for zero in ({}, {"y_zero": np.array(0, dtype)}):
        model, feeds = model_of(op, {**inputs, **zero}, dtype, CONTRIB, (), 21, more)
        results.append(Model(model).run(None, feeds)[0])
    assert results[0].dtype == dtype
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("count_include_pad", [0, 1])
def test_average_pool(count_include_pad, ceil_mode):
    g = np.random.default_rng(5)
    how = {"count_include_pad": count_include_pad, "ceil_mode": ceil_mode}
    for trial in range(24):
        dtype, axes = BYTES[trial % 2], 1 + trial % 3
        last = trial // 2 % 2
        size, channels = tuple(int(n) for n in g.integers(4, 9, axes)), int(g.integers(1, 4))
        shape = (2, *size, channels) if last else (2, channels, *size)
        kernel = [int(n) for n in g.integers(1, 4, axes)]
        more = {"pads": [int(g.integers(0, k)) for k in kernel * 2]}
        if trial % 5 == 4 and not ceil_mode:
            more = {"auto_pad": ("SAME_UPPER", "SAME_LOWER", "VALID")[trial // 5 % 3]}
        inputs = {"x": whole(g, dtype, shape), **coded(g, dtype, "x"), **coded(g, dtype, "y")}
        strides = [int(n) for n in g.integers(1, 4, axes)]
        same(
            "QLinearAveragePool",
            inputs,
            dtype,
            channels_last=last,
            kernel_shape=kernel,
            strides=strides,
            **how,
            **more,
        )


@pytest.mark.parametrize("size, kernel, strides",
                         [((7, 1), (2, 2), (2, 2)), ((15, 3), (15, 3), (1, 3)), ((4,), (4,), (1,)),
                                                   ((2, 6), (3, 2), (2, 3)), ((1,), (3,), (3,))])  # fmt: skip
def test_average_pool_of_whole_or_larger_windows(size, kernel, strides):
    """onnxruntime takes a window of the whole image for a global pool, which rounds elsewhere; and a window
    that is larger by less than its stride counts.
    """
    g = np.random.default_rng(7)
    for trial in range(8):
        dtype, channels_last = BYTES[trial % 2], trial // 2 % 2
        shape = (2, *size, 9) if channels_last else (2, 9, *size)
        inputs = {"x": whole(g, dtype, shape), **coded(g, dtype, "x"), **coded(g, dtype, "y")}
        how = {"kernel_shape": list(kernel), "strides": list(strides), "ceil_mode": trial // 4}
        same("QLinearAveragePool", inputs, dtype, channels_last=channels_last, **how)


def test_concat_and_where():
    g = np.random.default_rng(6)
    for trial in range(12):
        dtype = BYTES[trial % 2]
        inputs = coded(g, dtype, "y")
        for i in range(3):
            inputs |= {f"x{i}": whole(g, dtype, (2, i + 1, 3)), **coded(g, dtype, f"x{i}")}
        constants = [n for n in inputs if len(n) > 2] if trial % 3 else ()
        same("QLinearConcat", inputs, dtype, constants=constants, axis=(1, -2)[trial // 2 % 2])
        shape = tuple(int(n) for n in g.integers(1, 7, 3))
        inputs = {"c": g.random(shape) < 0.5, "x": whole(g, dtype, shape), **coded(g, dtype, "x"),
                  "w": whole(g, dtype, shape[1:]), **coded(g, dtype, "w"),
                  **coded(g, dtype, "y")}  # fmt: skip
        same("QLinearWhere", inputs, dtype, constants=[n for n in inputs if len(n) > 1])


BIASES = ((), (1,), (1, 1), "n", "1n", "m1", "mn", None)


@pytest.mark.parametrize("bias", BIASES)
def test_qgemm(bias):
    """C of every shape that broadcasts to the result, with factors of both signs."""
    g = np.random.default_rng(7)
    for trial in range(24):
        left = BYTES[trial % 2]
        right = np.int8 if left == np.int8 else BYTES[trial // 2 % 2]
        m, k, n = (int(v) for v in g.integers(1, 20, 3))
        flip_a, flip_b = trial // 4 % 2, trial // 8 % 2
        column = trial % 3 == 0
        shape = {"n": (n,), "1n": (1, n), "m1": (m, 1), "mn": (m, n)}.get(bias, bias)
        inputs = {
            "a": whole(g, left, (k, m) if flip_a else (m, k)), **coded(g, left, "a"),
            "b": whole(g, right, (n, k) if flip_b else (k, n)), **coded(g, right, "b"),
            "c": None if bias is None else np.asarray(g.integers(-9999, 9999, shape)).astype(np.int32),
            "ys": scale(g, -2, 1), "yz": whole(g, left),
        }  # fmt: skip
        if column:
            inputs["b_scale"] = (g.random(n) * 0.1 + 1e-3).astype(np.float32)
            inputs["b_zero"] = whole(g, right, (n,))
        if trial % 4 == 3:
            del inputs["ys"], inputs["yz"]
        result = left if "ys" in inputs else np.float32
        constants = ("b", "b_scale", "b_zero") if trial % 2 else ()
        factor = (1.0, 0.5, -1.3)[trial % 3 if trial % 5 else 2]
        same("QGemm", inputs, result, constants=constants, alpha=factor, transA=flip_a, transB=flip_b)


def test_qgemm_refuses_a_bias_that_does_not_fit():
    a, one, zero = np.zeros((4, 3), np.uint8), np.array(1, np.float32), np.array(0, np.uint8)
    inputs = {"a": a, "as": one, "az": zero, "b": np.zeros((3, 5), np.uint8), "bs": one, "bz": zero}
    for bias, error in (
        (np.zeros(4, np.int32), ValueError), (np.zeros((5, 1), np.int32), ValueError),
        (np.zeros((1, 4, 5), np.int32), ValueError),
        (np.zeros(5, np.float32), TypeError), (np.zeros((8, 5), np.int32), ValueError),
    ):  # fmt: skip
        model, feeds = model_of("QGemm", {**inputs, "c": bias}, np.float32, CONTRIB, (), 21, {})
        with pytest.raises(error, match="QGemm, output y: C: expected"):
            Model(model).run(None, feeds)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (5, 1), (1, 1), (), (5, 5)])
def test_qgemm_of_constants_with_a_bias(shape):
    """Five rows and columns, so that a bias of one a row has as many numbers as one of one a column."""
    g = np.random.default_rng(17)
    constants = {**coded(g, np.uint8, "a"), "b": whole(g, np.int8, (3, 5)), **coded(g, np.int8, "b")}
    constants |= {"c": g.integers(-20000, 20000, shape).astype(np.int32), **coded(g, np.uint8, "y")}
    same("QGemm", {"a": whole(g, np.uint8, (5, 3)), **constants}, np.uint8, constants=tuple(constants))


@pytest.mark.parametrize("stack", [(), (2,), (3, 2)])
@pytest.mark.parametrize(
    "op", ["MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger", "QLinearMatMul"]
)
def test_products_of_stacks(op, stack):
    """Scales and zero points of one value, one a column, and one a column of each matrix."""
    g = np.random.default_rng(8)
    for trial in range(16):
        right = BYTES[trial % 2]
        left = np.uint8 if right == np.uint8 or trial % 4 < 2 else np.int8
        m, k, n = (int(v) for v in g.integers(1, 16, 3))
        n = 3 if trial % 5 == 0 else n
        each = (*stack, 1, n) if stack else (n,)
        b = {"b_scale": scale(g), "b_zero": whole(g, right)}
        if trial % 3:
            b = {"b_scale": (g.random(each) * 0.1 + 1e-3).astype(np.float32), "b_zero": whole(g, right, each)}
        x, w = whole(g, left, (*stack, m, k)), whole(g, right, (*stack, k, n))
        bias = g.standard_normal(n).astype(np.float32) if trial % 2 else None
        constants, domain, result = (("w", *b) if trial % 4 == 1 else ()), CONTRIB, np.float32
        a_scale, a_zero = coded(g, left, "a").values()
        if op == "MatMulIntegerToFloat":
            inputs = {
                "x": x,
                "w": w,
                "xs": a_scale,
                "b_scale": b["b_scale"],
                "xz": a_zero,
                "b_zero": b["b_zero"],
            }
        elif op == "DynamicQuantizeMatMul":
            inputs = {"x": (g.standard_normal(x.shape) * 3).astype(np.float32), "w": w, **b}
        elif op == "MatMulInteger":
            inputs, domain, result = {"x": x, "w": w, "xz": a_zero, "b_zero": b["b_zero"]}, "", np.int32
        else:
            inputs, domain, result = (
                {"x": x, "xs": a_scale, "xz": a_zero, "w": w, **b, **coded(g, left, "y")},
                "",
                left,
            )
        if result == np.float32 and bias is not None:
            inputs["bias"] = bias
        same(op, inputs, result, domain, [n for n in constants if n in inputs])


def test_products_of_16_bits():
    """Against onnxruntime for int16 by int16; all four sign pairs, shapes of `numpy.matmul`, against
    int64.
    """
    g = np.random.default_rng(9)
    kinds = (np.int16, np.uint16)
    for trial in range(56):
        left, right = kinds[trial % 2], kinds[trial // 2 % 2]
        m, k, n = (int(v) for v in g.integers(1, 40, 3))
        shapes = (
            ((m, k), (k, n)), ((k,), (k, n)), ((m, k), (k,)), ((k,), (k,)), ((2, m, k), (k, n)),
            ((3, 1, m, k), (2, k, n)),
            ((2, m, k), (k,)),
        )[trial % 7]  # fmt: skip
        a, b = whole(g, left, shapes[0]), whole(g, right, shapes[1])
        if trial % 4 == 0:  # sums that pass 2**32 many times
            a[...], b[...] = np.iinfo(left).min or 65535, np.iinfo(right).min or 65535
        want = np.matmul(a.astype(np.int64), b.astype(np.int64))
        got = matmul_integer_16(State(), a, b)
        unsigned = left == right == np.uint16
        assert got.dtype == (np.uint32 if unsigned else np.int32) and got.shape == want.shape
        np.testing.assert_array_equal(got, want.astype(got.dtype))
        if left == right == np.int16 and a.ndim == b.ndim == 2:
            same("MatMulInteger16", {"a": a, "b": b}, np.int32)
    a = whole(g, np.int16, (9, 8))[::-2, ::2]  # any strides
    b = whole(g, np.uint16, (3, 4)).T
    np.testing.assert_array_equal(matmul_integer_16(State(), a, b), a.astype(int) @ b.astype(int))
    with pytest.raises(TypeError, match=r"^A: expected int16 or uint16, got int8"):
        matmul_integer_16(State(), a.astype(np.int8), b)


def test_quantizers_and_convolution_of_the_domain():
    g = np.random.default_rng(10)
    for dtype in (np.uint8, np.int8, np.uint16, np.int16):
        x = (g.standard_normal((3, 4, 5)) * 50).astype(np.float32)
        same("QuantizeLinear", {"x": x, "s": scale(g), "z": whole(g, dtype)}, dtype)
        same(
            "QuantizeLinear",
            {"x": x, "s": (g.random(4) + 0.01).astype(np.float32), "z": whole(g, dtype, (4,))},
            dtype,
            axis=1,
        )
        same(
            "DequantizeLinear",
            {"x": whole(g, dtype, (3, 4)), "s": scale(g), "z": whole(g, dtype)},
            np.float32,
        )
        half = (g.standard_normal(4000) * 5000).astype(np.float16)  # divided in float32
        small = np.array(g.uniform(0.01, 0.5), np.float16)
        same("QuantizeLinear", {"x": half, "s": small, "z": whole(g, dtype)}, dtype, domain="")
    for trial in range(8):
        last, group = trial % 2, 1 + trial // 2 % 2
        inputs = {
            "x": whole(g, np.uint8, (1, 6, 5, 4) if last else (1, 4, 6, 5)), **coded(g, np.uint8, "x"),
            "w": whole(g, np.int8, (6, 4 // group, 3, 2)), "ws": scale(g), "wz": np.array(0, np.int8),
            "ys": scale(g, -1, 1), "yz": whole(g, np.uint8), "b": g.integers(-999, 999, 6).astype(np.int32),
        }  # fmt: skip
        same("QLinearConv", inputs, np.uint8, group=group, channels_last=last, pads=[1, 0, 1, 1])
