"""Every parameter of every public function is given what it may not be: arrays where one number is expected,
lists that are no array, tables, objects. The call works, or its exception names the parameter.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from optimizers import public_optimizers
from reliability.outcomes import DOCUMENTED, NAMED
from test_signatures import MODULES, public

import lowgemm as lg
from lowgemm import blockwise, nn, quantization

#: What may stand where something else is expected. Each is made anew: an iterator is used up by a call.
JUNK: dict[str, Callable[[], Any]] = {
    "two integers": lambda: np.array([1, 2]),
    "two floats": lambda: np.array([1.5, 0.25]),
    "two flags": lambda: np.array([True, False]),
    "two words": lambda: np.array(["last", "none"]),
    "two objects": lambda: np.array(["last", None], object),
    "a matrix": lambda: np.array([[1, 2], [3, 4]], np.int8),
    "no numbers": lambda: np.zeros(0),
    "fields": lambda: np.zeros(2, [("x", "i4")]),
    "a masked array": lambda: np.ma.array([1, 2], mask=[0, 1]),
    "a list": lambda: [1, 2],
    "lists": lambda: [[1, 2], [3]],
    "a tuple of words": lambda: ("a", "b"),
    "a table": lambda: {"a": 1},
    "a set": lambda: {1, 2},
    "an iterator": lambda: iter([1, 2]),
    "an object": object,
    "a function": lambda: len,
    "a word": lambda: "nonsense",
    "bytes": lambda: b"ab",
    "no number": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "beyond 64 bits": lambda: 2**70,
    "below": lambda: -(2**40),
    "a fraction": lambda: 1.5,
    "a complex number": lambda: 1j,
    "nothing": lambda: None,
    "a flag": lambda: True,
    "a time": lambda: np.datetime64("2020"),
}
#: Results that functions return, what the package's own parts hand to each other, and layers, which check
#: what they are called with where a network begins.
GIVEN_BY_THE_PACKAGE = re.compile(
    r"""lowgemm\.(
        (PackedFilters|PackedRhs|Stage|nn\.Layer|nn\.Quantized(Linear|Conv2d|Flatten|Add|Residual)
        |blockwise\.PackedRhsLowbit|quantization\.RangeReport)(\.\w+)
        |PackedFilters|PackedRhs|nn\.(Cost|LayerCost)|blockwise\.(PackedRhsLowbit|Optimizer)
        |quantization\.(Equalized|Finding|RangeReport|SShapedGain|TensorReport)
        |quantization\.(Observer(\.rows)?|QParams\.along)
        |\w+\.axis_of_field|compat\.onnx\.(zero_points|scaled_product)|nn\.QuantizedSequential\.output_shape
    )$""",
    re.VERBOSE,
)

#: Packages that parts of lowgemm need.
EXTRAS = {"dask": "lowgemm.dask", "onnx": "lowgemm.onnx_run"}

X8, W8 = np.arange(6, dtype=np.uint8).reshape(2, 3), np.arange(12, dtype=np.int8).reshape(3, 4)
SUMS = np.arange(8, dtype=np.int32).reshape(2, 4)
IMAGE, FILTERS = np.ones((1, 4, 4, 2), np.uint8), np.ones((2, 2, 2, 3), np.int8)
P, W = quantization.QParams(0.5, 3, "uint8"), quantization.QParams(0.25)
FLOATS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def optimizer(**own: Any) -> dict[str, Any]:
    """Arguments of an optimizer."""
    return {"params": np.zeros(8, np.float32), "lr": 0.5, **own}


#: A call of each that works.
CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "lowgemm.BiasAddition": lambda: {"bias": [1, 2, 3, 4]},
    "lowgemm.Clamp": lambda: {"min": 0, "max": 9},
    "lowgemm.Custom": lambda: {"function": lambda acc, row, col: acc},
    "lowgemm.Dequantize": lambda: {"scale": 0.5},
    "lowgemm.Logistic": lambda: {"integer_bits": 4},
    "lowgemm.Lut": lambda: {"table": np.arange(256, dtype=np.uint8)},
    "lowgemm.QuantizeDownInt32ByFixedPoint": lambda: {"multiplier": 2**30, "shift": 1},
    "lowgemm.QuantizeDownInt32ToUint8Scale": lambda: {"offset": 1, "mult_int": 2, "shift": 3},
    "lowgemm.Requantize": lambda: {"scale": 0.5},
    "lowgemm.SaturatingCast": lambda: {"dtype": np.int8},
    "lowgemm.ScaleInt32ByFixedPointAndExponent": lambda: {"multiplier": 2**30, "exponent": -1},
    "lowgemm.Tanh": lambda: {"real_zero": 1, "real_amplitude": 9},
    "lowgemm.TruncatingCast": dict,
    "lowgemm.conv": lambda: {"image": IMAGE, "filters": FILTERS},
    "lowgemm.explain": lambda: {"lhs": X8, "rhs": W8},
    "lowgemm.gemm": lambda: {"lhs": X8, "rhs": W8},
    "lowgemm.pack_filters": lambda: {"filters": FILTERS},
    "lowgemm.pack_rhs": lambda: {"rhs": W8},
    "lowgemm.plan": lambda: {"lhs": X8, "rhs": W8},
    "lowgemm.relu": dict,
    "lowgemm.relu6": lambda: {"scale": 0.5},
    "lowgemm.requantize": lambda: {"acc": SUMS, "output": lg.Clamp(0, 9)},
    "lowgemm.nn.QuantizedAdd": lambda: {"a_qparams": P, "b_qparams": P, "output_qparams": P},
    "lowgemm.nn.QuantizedAveragePool2d": lambda: {"input_qparams": P, "size": 2},
    "lowgemm.nn.QuantizedConv2d": lambda: {
        "weight": FILTERS, "bias": np.zeros(3, np.int32), "input_qparams": P, "weight_qparams": W,
        "output_qparams": P
    },
    "lowgemm.nn.QuantizedFlatten": lambda: {"input_qparams": P},
    "lowgemm.nn.QuantizedLinear": lambda: {
        "weight": W8, "bias": None, "input_qparams": P, "weight_qparams": W, "output_qparams": P
    },
    "lowgemm.nn.QuantizedMaxPool2d": lambda: {"input_qparams": P, "size": 2},
    "lowgemm.nn.QuantizedResidual": lambda: {
        "branch": [nn.QuantizedLinear(np.eye(3, dtype=np.int8), None, P, W, P)], "output_qparams": P
    },
    "lowgemm.nn.QuantizedSequential": lambda: {"layers": [nn.QuantizedFlatten(P)]},
    "lowgemm.nn.QuantizedSequential.predict": lambda: {"self": NET, "x": FLOATS.T},
    "lowgemm.nn.QuantizedSequential.reference": lambda: {"self": NET, "x": X8},
    "lowgemm.nn.count_maccs": lambda: {"model": NET, "input_shape": (2, 3)},
    "lowgemm.nn.dynamic_linear": lambda: {"x": FLOATS.T, "weight": W8, "weight_scale": 0.5},
    "lowgemm.nn.load": lambda: {"file": saved()},
    "lowgemm.nn.save": lambda: {"file": io.BytesIO(), "model": NET},
    "lowgemm.nn.weight_only_linear": lambda: {"x": FLOATS.T, "weight": W8, "weight_scale": 0.5},
    "lowgemm.quantization.Entropy": dict,
    "lowgemm.quantization.MeanSquaredError": dict,
    "lowgemm.quantization.MinMax": dict,
    "lowgemm.quantization.MovingAverage": dict,
    "lowgemm.quantization.Observer.observe": lambda: {"self": quantization.MinMax(), "x": FLOATS},
    "lowgemm.quantization.Observer.merge": lambda: {
        "self": quantization.MinMax(), "other": quantization.MinMax(),
    },
    "lowgemm.quantization.Percentile": dict,
    "lowgemm.quantization.QParams": lambda: {"scale": 0.5},
    "lowgemm.quantization.calibrate": lambda: {"observer": quantization.MinMax(), "batches": [FLOATS]},
    "lowgemm.quantization.choose_qparams": lambda: {"low": -1.0, "high": 1.0},
    "lowgemm.quantization.clipped_normal_mean": lambda: {"mean": [0.5], "std": [1.0]},
    "lowgemm.quantization.correct_bias": lambda: {
        "bias": np.zeros(4, np.float32), "weight": FLOATS, "rounded_weight": FLOATS,
        "input_mean": np.zeros(3, np.float32)
    },
    "lowgemm.quantization.correct_bias_from_outputs": lambda: {
        "bias": np.zeros(4, np.float32), "expected": FLOATS, "got": FLOATS
    },
    "lowgemm.quantization.dequantize": lambda: {"q": W8, "qparams": W},
    "lowgemm.quantization.equalize_ranges": lambda: {"weights": [FLOATS, FLOATS.T]},
    "lowgemm.quantization.fake_quantize": lambda: {"x": FLOATS, "qparams": W},
    "lowgemm.quantization.fold_batch_norm": lambda: {
        "weight": FLOATS, **{n: np.ones(4, np.float32) for n in ("bias", "gamma", "beta", "mean", "variance")}
    },
    "lowgemm.quantization.progress_bar": lambda: {"batches": [1], "stream": io.StringIO()},
    "lowgemm.quantization.quantize": lambda: {"x": FLOATS, "qparams": W},
    "lowgemm.quantization.quantize_array": lambda: {"x": FLOATS},
    "lowgemm.quantization.quantize_multiplier": lambda: {"real_scale": 0.5},
    "lowgemm.quantization.range_report": lambda: {"tensors": {"x": FLOATS}},
    "lowgemm.quantization.s_shaped_gain": lambda: {"kind": "tanh", "x": FLOATS},
    "lowgemm.quantization.s_shaped_input": lambda: {"kind": "tanh", "low": -1.0, "high": 1.0},
    "lowgemm.quantization.s_shaped_output": lambda: {"kind": "tanh"},
    "lowgemm.quantization.s_shaped_stages": lambda: {
        "kind": "tanh", "accumulator_scale": 0.01, "input_qparams": W,
    },
    "lowgemm.quantization.s_shaped_table": lambda: {"kind": "tanh", "input_qparams": W},
    "lowgemm.quantization.scale_for_bias": lambda: {
        "weight_qparams": W, "weight": FLOATS, "bias": np.zeros(4, np.float32), "input_qparams": P
    },
    "lowgemm.quantization.sqnr": lambda: {"x": FLOATS, "qparams": W},
    **{f"lowgemm.blockwise.{cls.__name__}": optimizer for cls in public_optimizers()},
    "lowgemm.blockwise.AdEMAMix.warmed_up": lambda: {
        "self": blockwise.AdEMAMix(np.zeros(8, np.float32), t_alpha=9, t_beta3=9), "step": 3,
    },
    "lowgemm.blockwise.Optimizer.step": lambda: {"self": adam(), "grads": np.ones(8, np.float32)},
    "lowgemm.blockwise.Optimizer.state_of": lambda: {"self": adam(), "index": 0},
    "lowgemm.blockwise.Optimizer.load_state_dict": lambda: {"self": adam(), "state": adam().state_dict()},
    "lowgemm.blockwise.Optimizer.save": lambda: {"self": adam(), "path": io.BytesIO()},
    "lowgemm.blockwise.Optimizer.load": lambda: {"self": adam(), "path": saved_optimizer()},
    "lowgemm.blockwise.BlockwiseArray": lambda: {
        "codes": np.zeros(3, np.uint8), "scales": np.ones(1, np.float32), "blocksize": 64, "book": "linear",
        "shape": (3,)
    },
    "lowgemm.blockwise.CodeBook": lambda: {"values": [-1.0, 0.0, 1.0]},
    "lowgemm.blockwise.MixedWeight": lambda: {"weight": FLOATS},
    "lowgemm.blockwise.as_codebook": lambda: {"code": "nf4"},
    "lowgemm.blockwise.block_scales": lambda: {"q": blockwise.quantize_blockwise(FLOATS)},
    "lowgemm.blockwise.dequantize_blockwise": lambda: {"q": blockwise.quantize_blockwise(FLOATS)},
    "lowgemm.blockwise.gemm_4bit": lambda: {
        "lhs": X8.astype(np.float32), "rhs": blockwise.pack_rhs_4bit(FLOATS, "nf4"),
    },
    "lowgemm.blockwise.gemm_lowbit": lambda: {
        "lhs": X8.astype(np.float32), "rhs": blockwise.pack_rhs_lowbit(FLOATS),
    },
    "lowgemm.blockwise.mixed_linear": lambda: {"x": X8.astype(np.float32), "weight": FLOATS},
    "lowgemm.blockwise.pack_rhs_4bit": lambda: {"weight": FLOATS},
    "lowgemm.blockwise.pack_rhs_codes": lambda: {
        "codes": np.zeros((4, 3), np.uint8), "scales": np.ones((2, 3), np.float32), "group": 2
    },
    "lowgemm.blockwise.pack_rhs_lowbit": lambda: {"weight": FLOATS},
    "lowgemm.blockwise.quantize_blockwise": lambda: {"x": FLOATS},
    "lowgemm.blockwise.quantize_vectorwise": lambda: {"x": FLOATS},
    "lowgemm.dask.gemm": lambda: {"lhs": X8, "rhs": W8},
    "lowgemm.compat.gemmlowp.MatrixMap": lambda: {"data": X8.ravel(), "order": "row", "rows": 2, "cols": 3},
    "lowgemm.compat.gemmlowp.gemm_with_output_pipeline": lambda: {
        "lhs": X8, "rhs": X8.T, "result": np.zeros((2, 2), np.int32), "lhs_offset": 1, "rhs_offset": 2
    },
    "lowgemm.compat.gemmlowp.gemm_with_output_pipeline_pc": lambda: {
        "lhs": X8, "rhs": X8.T, "result": np.zeros((2, 2), np.int32), "lhs_offset": 1, "rhs_offset": 2
    },
    "lowgemm.compat.gemmlowp.gemm": lambda: {
        "lhs": X8, "rhs": X8.T, "result": np.zeros((2, 2), np.uint8), "lhs_offset": 1, "rhs_offset": 2,
        "result_offset": 3, "result_mult_int": 4, "result_shift": 5,
    },
    "lowgemm.compat.gemmlowp.eight_bit_int_gemm": lambda: {
        "transpose_a": False, "transpose_b": False, "transpose_c": False, "m": 2, "n": 2, "k": 3,
        "a": X8.ravel(),
        "a_offset": 1, "lda": 2, "b": X8.ravel(), "b_offset": 2, "ldb": 3, "c": np.zeros(4, np.uint8),
        "c_offset": 3, "c_mult_int": 4, "c_shift": 5, "ldc": 2,
    },
    "lowgemm.compat.onnx.matmul_integer": lambda: {"A": X8, "B": W8},
    "lowgemm.compat.onnx.qlinear_matmul": lambda: {
        "a": X8, "a_scale": np.float32(1), "a_zero_point": np.uint8(3), "b": W8, "b_scale": np.float32(1),
        "b_zero_point": np.int8(3), "y_scale": np.float32(1), "y_zero_point": np.uint8(3),
    },
    "lowgemm.compat.onnx.quantize_linear": lambda: {"x": FLOATS, "y_scale": np.float32(1)},
    "lowgemm.compat.onnx.dequantize_linear": lambda: {"x": W8, "x_scale": np.float32(1)},
    "lowgemm.compat.onnx.dynamic_quantize_linear": lambda: {"x": FLOATS},
    "lowgemm.onnx_run.PackedFilters": lambda: {"w": FILTERS.transpose(3, 2, 0, 1)},
    "lowgemm.onnx_run.conv_integer": lambda: {
        "x": IMAGE.transpose(0, 3, 1, 2), "w": FILTERS.transpose(3, 2, 0, 1),
    },
    "lowgemm.onnx_run.qlinear_conv": lambda: {
        "x": IMAGE.transpose(0, 3, 1, 2), "x_scale": np.float32(1), "x_zero_point": np.uint8(3),
        "w": FILTERS.transpose(3, 2, 0, 1), "w_scale": np.float32(1), "w_zero_point": np.int8(0),
        "y_scale": np.float32(1), "y_zero_point": np.uint8(3),
    },
    "lowgemm.onnx_run.Model": lambda: {"source": model_bytes()},
    "lowgemm.onnx_run.Model.run": lambda: {"self": model(), "input_feed": {"x": X8}},
    "lowgemm.onnx_run.Model.timed": lambda: {"self": model(), "input_feed": {"x": X8}},
}  # fmt: skip
for name in ("exp_on_interval_between_negative_one_quarter_and_0_excl",
             "one_minus_x_over_one_plus_x_for_x_in_0_1", "one_over_one_plus_x_for_x_in_0_1"):  # fmt: skip
    CALLS[f"lowgemm.fixedpoint.{name}"] = lambda: {"a": np.int32(-5)}
for name in ("exp_on_negative_values", "logistic", "tanh"):
    CALLS[f"lowgemm.fixedpoint.{name}"] = lambda: {"a": np.int32(-5), "integer_bits": 4}
for name in ("rounding_half_sum", "saturating_add", "saturating_rounding_doubling_high_mul"):
    CALLS[f"lowgemm.fixedpoint.{name}"] = lambda: {"a": np.int32(-5), "b": np.int32(7)}
for name in ("rounding_divide_by_pot", "saturating_rounding_multiply_by_pot", "shift_left"):
    CALLS[f"lowgemm.fixedpoint.{name}"] = lambda: {"x": np.int32(-5), "exponent": 3}

NET = nn.QuantizedSequential([nn.QuantizedLinear(W8, None, P, W, P)])


def saved() -> io.BytesIO:
    """A file of a network."""
    file = io.BytesIO()
    nn.save(file, NET)
    file.seek(0)
    return file


def model_bytes() -> bytes:
    """An ONNX model of one product."""
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [2, 4])], [numpy_helper.from_array(W8, "w")],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


@functools.cache
def model() -> Any:
    """That model, ready to run."""
    from lowgemm.onnx_run import Model

    return Model(model_bytes())


def adam() -> blockwise.Adam:
    """An optimizer of eight parameters."""
    return blockwise.Adam(np.zeros(8, np.float32))


def saved_optimizer() -> io.BytesIO:
    """A file of its state."""
    file = io.BytesIO()
    adam().save(file)
    file.seek(0)
    return file


def function_of(name: str) -> Callable[..., Any]:
    """The function, class or method of that name."""
    module = max((m for m in MODULES if name.startswith(m + ".")), key=len)
    found: Any = importlib.import_module(module)
    for part in name[len(module) + 1 :].split("."):
        found = getattr(found, part)
    return found


def outcome(function: Callable[..., Any], arguments: dict[str, Any]) -> Exception | None:
    """What the call raises. It may print and warn."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            function(**arguments)
        except Exception as error:
            return error
    return None


def why_wrong(error: Exception | None, parameter: str, is_flag: bool, junk: str) -> str:
    """What is wrong with the exception of a call whose `parameter` was junk; nothing if the call worked."""
    if error is None or isinstance(error, MemoryError):
        return ""
    if isinstance(error, OSError) and parameter in ("file", "path", "source"):
        return ""  # no such file
    if not isinstance(error, DOCUMENTED) or not NAMED.match(str(error)):
        return "names no argument"
    if is_flag and junk == "a flag":
        return ""  # it may be right, and another argument wrong for it
    return "" if re.search(rf"\b{parameter}\b", str(error), re.IGNORECASE) else "names another argument"


@pytest.mark.parametrize("name", CALLS)
def test_the_message_names_the_parameter(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # "nonsense" is a good name of a file to write
    for extra, module in EXTRAS.items():
        if name.startswith(module):
            pytest.importorskip(extra, reason=f"{module}: its extra is not installed")
    function = function_of(name)
    assert outcome(function, CALLS[name]()) is None
    wrong = []
    for p in inspect.signature(function).parameters.values():
        if p.name == "self":
            continue
        for junk, make in JUNK.items():
            error = outcome(function, {**CALLS[name](), p.name: make()})
            why = why_wrong(error, p.name, p.annotation in ("bool", bool), junk)
            if why:
                wrong.append(f"{p.name}={junk}: {why}: {error!r:.200}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", MODULES)
def test_every_public_function_is_here(module):
    for extra, needs in EXTRAS.items():
        if module == needs:
            pytest.importorskip(extra, reason=f"{module}: its extra is not installed")
    for name, function in public(module):
        parameters = [p for p in inspect.signature(function).parameters if p != "self"]
        assert name in CALLS or not parameters or GIVEN_BY_THE_PACKAGE.match(name), name


def test_the_rules_tell_a_good_message_from_a_bad_one():
    assert not why_wrong(ValueError("scale: expected a positive number"), "scale", False, "nothing")
    assert why_wrong(ValueError("The truth value of an array is ambiguous"), "scale", False, "nothing")
    assert why_wrong(ValueError("zero_point: expected an integer"), "scale", False, "nothing")
    assert why_wrong(AttributeError("scale: no attribute"), "scale", False, "nothing")
    assert why_wrong(FileNotFoundError("no such file"), "scale", False, "nothing")
    assert not why_wrong(FileNotFoundError("no such file"), "file", False, "nothing")
