"""The convolutions against their definition, the onnx package, and themselves packed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowgemm import requantize
from lowgemm.onnx_run import PackedFilters, conv_integer, qlinear_conv
from lowgemm.onnx_run.reference import conv_sums
from lowgemm.output.stages import BiasAddition
from lowgemm.output.stages.requantize import Requantize


@st.composite
def problems(draw):
    axes = draw(st.integers(1, 3))
    group, per_group, filters = (
        draw(st.sampled_from([1, 1, 2, 3])),
        draw(st.integers(0, 4)),
        draw(st.integers(0, 4)),
    )
    if draw(st.booleans()):
        per_group = filters = 1  # depthwise
    size = [draw(st.integers(1, 7)) for _ in range(axes)]
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    attributes = {
        "strides": [draw(st.integers(1, 3)) for _ in range(axes)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(axes)],
        "group": group,
    }
    how = draw(st.sampled_from(["pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if how == "pads":
        attributes["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * axes)]
    else:
        attributes["auto_pad"] = how
    g = np.random.default_rng(draw(st.integers(0, 2**32)))
    types = draw(
        st.sampled_from([("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8"), ("int8", "uint8")])
    )

    def integers(shape, dtype):
        return g.integers(0, 256, shape, dtype=np.uint8).view(dtype)

    x = integers((draw(st.integers(1, 3)), group * per_group, *size), types[0])
    if draw(st.booleans()):
        x = np.asfortranarray(x)
    w = integers((group * filters, per_group, *kernel), types[1])
    w_zero = integers((group * filters,) if draw(st.booleans()) else (), types[1])
    return x, w, integers((), types[0]), w_zero, attributes, g


@settings(deadline=None, max_examples=150)
@given(problems())
def test_any_geometry(problem):
    x, w, x_zero, w_zero, attributes, g = problem
    try:
        sums = conv_sums(x, w, x_zero, w_zero, **attributes)
    except ValueError as error:  # windows that do not fit are refused alike
        with pytest.raises(ValueError, match=str(error)[:6]):
            conv_integer(x, w, x_zero, w_zero, **attributes)
        return
    got = conv_integer(x, w, x_zero, w_zero, **attributes)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, sums)
    packed = PackedFilters(w, attributes["group"])
    np.testing.assert_array_equal(conv_integer(x, packed, x_zero, w_zero, **attributes), sums)
    filters = w.shape[0]
    w_scale = g.uniform(0.001, 0.1, filters if g.random() < 0.5 else ()).astype(np.float32)
    x_scale, y_scale, y_zero = (
        np.float32(0.02),
        np.float32(g.uniform(0.01, 1)),
        np.int8(g.integers(-128, 128)),
    )
    bias = g.integers(-3000, 3000, filters).astype(np.int32)
    for rounding in ("onnx", "onnx_reference"):
        got = qlinear_conv(
            x,
            x_scale,
            x_zero,
            packed,
            w_scale,
            w_zero,
            y_scale,
            y_zero,
            bias,
            rounding=rounding,
            **attributes,
        )
        scale = x_scale * w_scale / y_scale
        stages = [BiasAddition(bias), Requantize(scale, int(y_zero), np.int8, rounding=rounding)]
        pixels = np.prod([n for i, n in enumerate(sums.shape) if i != 1])
        rows = np.moveaxis(sums, 1, -1).reshape(pixels, filters).astype(np.int32)
        right = requantize(rows, stages).reshape(*np.moveaxis(sums, 1, -1).shape)
        np.testing.assert_array_equal(np.moveaxis(got, 1, -1), right)


def test_groups_with_a_stride_along_one_axis():
    g = np.random.default_rng(0)
    x, w = (
        g.integers(0, 256, (2, 4, 13, 11), dtype=np.uint8),
        g.integers(-128, 128, (6, 2, 3, 3), dtype=np.int8),
    )
    options = {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 1]}
    np.testing.assert_array_equal(
        conv_integer(x, w, np.uint8(9), np.int8(-3), **options), conv_sums(x, w, 9, -3, **options)
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x": np.zeros((1, 2, 4, 4), np.int16)}, r"^x: expected dtype"),
        ({"x": np.zeros((1, 2), np.uint8)}, r"^x: expected images"),
        ({"x": np.zeros((1, 3, 4, 4), np.uint8)}, r"^w: expected 3 / 1 channels"),
        ({"w": np.zeros((2, 2), np.int8)}, r"^w: expected"),
        ({"w": np.zeros((2, 2, 9, 9), np.int8)}, r"^w, dilations: expected windows within"),
        ({"w": np.zeros((2, 2, 0, 1), np.int8)}, r"^w: "),
        ({"x_zero_point": np.int8(1)}, r"^x_zero_point: expected dtype uint8"),
        ({"w_zero_point": np.zeros(3, np.int8)}, r"^w_zero_point: expected a scalar or 2"),
        ({"strides": [0, 1]}, r"^strides: expected 1"),
        ({"strides": [1]}, r"^strides: expected 2 values"),
        ({"dilations": [1, 1.5]}, r"^dilations: expected an integer"),
        ({"pads": [1, -1, 0, 0]}, r"^pads: expected 0"),
        ({"auto_pad": "SAME"}, r"^auto_pad: expected 'NOTSET'"),
        ({"kernel_shape": [2, 2]}, r"^kernel_shape: expected"),
        ({"group": 0}, r"^group: expected"),
        ({"group": 3}, r"^group: expected|^w: expected"),
    ],
)
def test_bad_arguments_are_named(change, match):
    arguments = {"x": np.zeros((1, 2, 4, 4), np.uint8), "w": np.zeros((2, 2, 3, 3), np.int8)} | change
    with pytest.raises((TypeError, ValueError), match=match):
        conv_integer(**arguments)
    scales = {
        "x_scale": np.float32(1),
        "w_scale": np.float32(1),
        "y_scale": np.float32(1),
        "y_zero_point": np.uint8(0),
    }
    points = {"x_zero_point": np.uint8(0), "w_zero_point": np.int8(0)}
    with pytest.raises((TypeError, ValueError), match=match):
        qlinear_conv(**(scales | points | arguments))


def test_bad_arguments_of_qlinear_conv():
    x, w, one, zero = (
        np.zeros((1, 2, 4, 4), np.uint8),
        np.zeros((2, 2, 3, 3), np.int8),
        np.float32(1),
        np.uint8(0),
    )
    with pytest.raises(TypeError, match=r"^y_zero_point: expected one uint8"):
        qlinear_conv(x, one, zero, w, one, np.int8(0), one, np.int16(0))
    with pytest.raises(ValueError, match=r"^bias: expected 2 int32"):
        qlinear_conv(x, one, zero, w, one, np.int8(0), one, zero, np.zeros(3, np.int32))
    with pytest.raises(ValueError, match=r"^w_scale: expected"):
        qlinear_conv(x, one, zero, w, np.ones(3, np.float32), np.int8(0), one, zero)
    with pytest.raises(ValueError, match=r"^w: expected filters packed for 1 groups"):
        conv_integer(x, PackedFilters(np.zeros((2, 1, 3, 3), np.int8), 2), group=1)
