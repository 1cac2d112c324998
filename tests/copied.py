"""One object of every public class, and a use of each that shows whether a copy computes the same.

`OBJECTS` maps a name to the class, how to make an object, and what to ask it. A class that is not copied is
in `REFUSED`; the few with nothing to copy are in `BASES`. `test_copies.py` fails for a class that is in none
of them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from optimizers import public_optimizers

import lowgemm
from lowgemm import blockwise as bw
from lowgemm import kernels, nn, quantization
from lowgemm.blockwise import hyper, job, rowcall, rowjob
from lowgemm.blockwise.optimizer import Optimizer
from lowgemm.blockwise.records import Record
from lowgemm.blockwise.state import StateKind, TensorState
from lowgemm.compat import gemmlowp, onnx_passes
from lowgemm.conv import Prepared
from lowgemm.engine import (
    batch,
    blocking,
    call,
    image,
    planned,
    planner,
    ready,
    records,
    seen,
    sums,
    zero_points,
)
from lowgemm.engine.channels_last import ChannelsLast
from lowgemm.engine.filters import Filters, GivenFilters
from lowgemm.engine.loop_plan import LoopPlan, LoopShape, LoopWeights
from lowgemm.engine.plan import Operand, Plan
from lowgemm.in_numba.packed_type import _TYPES, PackedRhsType
from lowgemm.jit import caches, loaded, lowering, team
from lowgemm.jit.addresses import NotCopied
from lowgemm.jit.disk_cache import CheckedCache, CheckedFile, Lazy
from lowgemm.jit.routine import Routine
from lowgemm.kernels.framework import deferred, requant, tile_machine
from lowgemm.kernels.framework.kernel import TileLoop
from lowgemm.kernels.tools import cases, cross, timing
from lowgemm.nn import float_net, maccs, program, weighted
from lowgemm.nn.layer import Layer
from lowgemm.nn.routines import LayerRoutine
from lowgemm.nn.windows import Windows
from lowgemm.output import elementwise, parameters, pipeline, scale_and_store, tile_routine
from lowgemm.output.custom_routine import CustomRoutine
from lowgemm.output.stages import clamp, float_scale, scale, single_rounding
from lowgemm.quantization import QParams, advice, equalization, histogram, observer, report, s_shaped

#: The module; the package has the function of this name.
explaining = importlib.import_module("lowgemm.explain")

G = np.random.default_rng(11)
X = G.integers(0, 256, (9, 40), dtype=np.uint8)
W = G.integers(-128, 128, (40, 24), dtype=np.int8)
BIAS = np.arange(24, dtype=np.int32) * 1000
ACC = G.integers(-(2**20), 2**20, (9, 24)).astype(np.int32)
IMAGES = G.integers(0, 256, (2, 6, 6, 4), dtype=np.uint8)
REAL = G.standard_normal((9, 40)).astype(np.float32)
P = QParams(0.05, 3, "uint8")
STAGES = [lowgemm.BiasAddition(BIAS), lowgemm.Requantize(np.linspace(1e-4, 1e-3, 24), 2, np.int8)]


def plain(value: Any) -> Any:
    """Something that can be compared and that another process can send back."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value if isinstance(value, (int, float, str, bytes, bool, type(None))) else str(value)


def fields(x: Any) -> Any:
    return vars(x)


def module_function(acc, row, col):
    return acc // 7 + row - col


@numba.njit
def compiled_function(acc, row, col, table):
    return acc - table[col]


def stage(made: Any) -> tuple[Any, Any]:
    return lambda: made, lambda s: lowgemm.requantize(ACC, [s])


def layer(make: Callable[[], Any]) -> tuple[Any, Any]:
    return make, lambda n: n(IMAGES)


def real_layer(made: Callable[[], Any]) -> tuple[Any, Any]:
    return made, fields


def observed(cls: Any, **options: Any) -> tuple[Any, Any]:
    return lambda: cls(**options).observe(REAL), lambda o: o.observe(REAL * 2).range()


def weights(*shape: int) -> tuple[Any, Any, Any, Any]:
    g = np.random.default_rng(3)
    bias = g.integers(-999, 999, shape[-1]).astype(np.int32)
    return (
        g.integers(-128, 128, shape, dtype=np.int8),
        bias,
        P,
        QParams(np.full(shape[-1], 0.01), 0, "int8", -1),
    )


def network() -> Any:
    branch = [nn.QuantizedConv2d(*weights(3, 3, 4, 4), P, padding=1)]
    layers = [
        nn.QuantizedConv2d(*weights(3, 3, 4, 4), P, padding=1),
        nn.QuantizedResidual(branch, P),
        nn.QuantizedMaxPool2d(P, 2),
        nn.QuantizedFlatten(P),
        nn.QuantizedLinear(*weights(36, 5)),
    ]
    return nn.QuantizedSequential(layers)


def used(x: Any, use: Callable[[Any], Any]) -> Any:
    """With everything made that is made at the first use."""
    use(x)
    return x


def stepped(cls: Any, **options: Any) -> tuple[Any, Any]:
    def make() -> Any:
        g = np.random.default_rng(4)
        o = cls(
            [g.standard_normal(5000).astype(np.float32), g.standard_normal((3, 4)).astype(np.float32)],
            **options,
        )
        o.step([np.full(5000, 0.5, np.float32), np.ones((3, 4), np.float32)])
        return o

    def use(o: Any) -> Any:
        o.step([np.linspace(-1, 1, 5000, dtype=np.float32), np.ones((3, 4), np.float32)])
        return o.params, o.steps_done, o.state_dict()

    return make, use


def runner_use(r: Any) -> Any:
    return r.run(IMAGES, False)


_OBJECTS: list[tuple[str, type, Any, Any]] = [
    ("plan", planned.PlannedGemm, lambda: lowgemm.plan(X, W, output=STAGES),
     lambda p: p(X, W, lhs_zero_point=3)),
    ("plan of a packed rhs", planned.PlannedGemm, lambda: lowgemm.plan(X, lowgemm.pack_rhs(W), output=STAGES),
     lambda p: p(X, lowgemm.pack_rhs(W), rhs_zero_point=-5)),
    ("plan of many threads", planned.PlannedGemm,
     lambda: lowgemm.plan(np.ones((300, 400), np.uint8), np.ones((400, 500), np.int8), num_threads=2),
     lambda p: p(np.full((300, 400), 2, np.uint8), np.full((400, 500), 3, np.int8))),
    ("plan of a stack with a function", planned.PlannedGemm,
     lambda: lowgemm.plan(np.stack([X, X]), W[None, :, ::2], output=lowgemm.Custom(module_function)),
     lambda p: p(np.stack([X, X]), W[None, :, ::2])),
    ("packed", lowgemm.PackedRhs, lambda: lowgemm.pack_rhs(W), lambda w: (lowgemm.gemm(X, w), w.to_array())),
    ("packed stack", lowgemm.PackedRhs, lambda: lowgemm.pack_rhs(np.stack([W, W[::-1]])),
     lambda w: lowgemm.gemm(X, w)),
    ("explanation", type(lowgemm.explain(X, W)), lambda: lowgemm.explain(X, W),
     lambda e: (e.text, e.kernel, e.threads)),
    ("seen", seen.Seen, seen.Seen, lambda s: s.get("x")),
    ("pattern", planned.Pattern, lambda: planned.Pattern.of(X), tuple),
    ("operand", Operand, lambda: Operand((2, 3), (3, 1), "u"), tuple),
    ("batch", batch.Batch, lambda: batch.Batch((2,), ((2,), (4,)), ((), ()), (8,)), lambda b: b.layout()),
    ("blocking", blocking.Blocking, lambda: lowgemm.explain(X, W).plan.blocking, lambda b: str(b)),
    ("cache sizes", caches.CacheSizes, lambda: caches.CacheSizes(1, 2, 3), tuple),
    # ---- stages
    ("bias", lowgemm.BiasAddition, *stage(lowgemm.BiasAddition(BIAS))),
    ("quantize down", lowgemm.QuantizeDownInt32ByFixedPoint,
     *stage(lowgemm.QuantizeDownInt32ByFixedPoint(2**30, 3, 5))),
    ("scale by exponent", lowgemm.ScaleInt32ByFixedPointAndExponent,
     *stage(lowgemm.ScaleInt32ByFixedPointAndExponent(np.full(24, 2**30), np.arange(-12, 12), 3))),
    ("legacy scale", lowgemm.QuantizeDownInt32ToUint8Scale,
     *stage(lowgemm.QuantizeDownInt32ToUint8Scale(BIAS, 3, 9))),
    ("clamp", lowgemm.Clamp, *stage(lowgemm.Clamp(-5, 90))),
    ("tanh", lowgemm.Tanh, *stage(lowgemm.Tanh(3, 2000))),
    ("saturating cast", lowgemm.SaturatingCast, *stage(lowgemm.SaturatingCast(np.int16))),
    ("truncating cast", lowgemm.TruncatingCast, *stage(lowgemm.TruncatingCast())),
    ("logistic", lowgemm.Logistic, *stage(lowgemm.Logistic(20))),
    ("table", lowgemm.Lut, *stage(lowgemm.Lut(np.arange(256, dtype=np.uint8)[::-1]))),
    ("requantize", lowgemm.Requantize, *stage(STAGES[1])),
    ("dequantize", lowgemm.Dequantize, *stage(lowgemm.Dequantize(np.linspace(-1, 1, 24)))),
    ("dequantize, affine", lowgemm.Dequantize, *stage(lowgemm.Dequantize(0.5, bias=np.linspace(-1, 1, 24)))),
    ("float scale", float_scale.FloatScale, *stage(float_scale.FloatScale(0.01, 3, -900, 900, True))),
    ("single rounding", single_rounding.SingleRoundingScale,
     *stage(single_rounding.SingleRoundingScale(2**30, -3, 1))),
    ("saturating scale", scale.SaturatingScale, *stage(scale.SaturatingScale(2**30, 3, 5))),
    ("scale and store", scale_and_store.OnePass, lambda: scale_and_store.one_pass([2**30, 5], -3, 1), tuple),
    ("scale in float32 and store", scale_and_store.FloatOnePass,
     lambda: scale_and_store.FloatOnePass(np.float32([1, 2]), 3, 0, 255, False), tuple),
    ("elementwise", elementwise.Elementwise, lambda: clamp.clamp,
     lambda r: (r.__name__, r.step(low=1, high=2).record.tolist())),
    ("records", parameters.Filler, lambda: parameters.Filler(parameters.described(low=parameters.NUMBER)),
     lambda f: f({"low": 3})[0].tolist()),
    ("function of a module", lowgemm.Custom, *stage(lowgemm.Custom(module_function))),
    ("compiled function", lowgemm.Custom, *stage(lowgemm.Custom(compiled_function, (BIAS,)))),
    ("lambda", lowgemm.Custom, *stage(lowgemm.Custom(lambda acc, row, col: acc ^ 1))),
    # ---- networks
    ("linear", nn.QuantizedLinear, lambda: used(nn.QuantizedLinear(*weights(40, 5), P), lambda n: n(X)),
     lambda n: (n(X), n.weight.flags.writeable)),
    ("convolution", nn.QuantizedConv2d,
     *layer(lambda: used(nn.QuantizedConv2d(*weights(3, 3, 4, 5), P), lambda n: n(IMAGES)))),
    ("depthwise convolution", nn.QuantizedConv2d,
     *layer(lambda: nn.QuantizedConv2d(*weights(3, 3, 1, 4), P, groups=4))),
    ("max pool", nn.QuantizedMaxPool2d, *layer(lambda: nn.QuantizedMaxPool2d(P, 2))),
    ("average pool", nn.QuantizedAveragePool2d, *layer(lambda: nn.QuantizedAveragePool2d(P, 2))),
    ("flatten", nn.QuantizedFlatten, *layer(lambda: nn.QuantizedFlatten(P))),
    ("add", nn.QuantizedAdd, lambda: nn.QuantizedAdd(P, P, P), lambda a: a(X, X[::-1])),
    ("residual", nn.QuantizedResidual, *layer(lambda: network().layers[1])),
    ("network", nn.QuantizedSequential, lambda: used(network(), lambda n: n(IMAGES)),
     lambda n: (n(IMAGES), n.predict(IMAGES.astype(np.float32) / 9))),
    ("runner", program.Runner, lambda: used(program.Runner(network().layers, serial=True), runner_use),
     runner_use),
    ("place", program.Place, lambda: program.Place(1, 2, 3), tuple),
    ("filters", lowgemm.PackedFilters,
     lambda: used(lowgemm.pack_filters(weights(3, 3, 2, 6)[0], 2), lambda f: lowgemm.conv(IMAGES, f)),
     lambda f: (f.shape, f.groups, plain(f.to_array()))),
    ("cost of a layer", maccs.LayerCost, lambda: nn.count_maccs(network(), (1, 6, 6, 4)).layers[0], str),
    ("cost", maccs.Cost, lambda: nn.count_maccs(network(), (1, 6, 6, 4)), str),
    ("float linear", float_net.Linear, *real_layer(lambda: float_net.Linear(np.ones((3, 2)), None, "relu"))),
    ("float convolution", float_net.Conv2d, *real_layer(lambda: float_net.Conv2d(np.ones((3, 3, 1, 2))))),
    ("float max pool", float_net.MaxPool2d, *real_layer(lambda: float_net.MaxPool2d(2))),
    ("float average pool", float_net.AveragePool2d, *real_layer(lambda: float_net.AveragePool2d(2))),
    ("float flatten", float_net.Flatten, *real_layer(float_net.Flatten)),
    ("float residual", float_net.Residual, lambda: float_net.Residual([float_net.Flatten()]),
     lambda r: len(r.branch)),
    # ---- block-wise
    ("book", bw.CodeBook, lambda: bw.CodeBook(np.linspace(-1, 1, 9, dtype=np.float32)),
     lambda b: (b.values, b.blob, b.blob.ctypes.data % 64)),
    ("coded", bw.BlockwiseArray, lambda: bw.quantize_blockwise(REAL), bw.dequantize_blockwise),
    ("coded in 4 bits, nested", bw.BlockwiseArray,
     lambda: bw.quantize_blockwise(REAL, "nf4", blocksize=64, nested=True), bw.dequantize_blockwise),
    ("mixed weight", bw.MixedWeight, lambda: bw.MixedWeight(REAL.T), lambda w: bw.mixed_linear(REAL, w)),
    ("packed in 4 bits", bw.PackedRhs4bit, lambda: bw.pack_rhs_4bit(REAL.T), lambda w: bw.gemm_4bit(REAL, w)),
    ("state", TensorState, lambda: TensorState((5, 60), False, 64, (StateKind("m", "dynamic"),)),
     lambda s: s.decoded()),
    ("kind of state", StateKind, lambda: StateKind("v", "dynamic_unsigned", True), tuple),
    ("number of a class", hyper.Number, lambda: hyper.Number(0, 1), fields),
    ("eps of a class", hyper.Eps, lambda: hyper.Eps(), fields),
    ("decays of a class", hyper.Decays, lambda: hyper.Decays(2), fields),
    ("steps of a class", hyper.Steps, lambda: hyper.Steps(), fields),
    *((cls.__name__, cls, *stepped(cls, **({"lr": 0.1} if issubclass(cls, bw.SGD) else {})))
      for cls in public_optimizers()),
    # ---- quantization
    ("parameters", QParams, lambda: QParams(np.linspace(1, 2, 4), 0, "int8", 0),
     lambda p: (p.scale, p.zero_point, p.axis, str(p.dtype))),
    ("min and max", quantization.MinMax, *observed(quantization.MinMax, axis=1)),
    ("moving average", quantization.MovingAverage, *observed(quantization.MovingAverage)),
    ("percentile", quantization.Percentile, *observed(quantization.Percentile)),
    ("squared error", quantization.MeanSquaredError, *observed(quantization.MeanSquaredError)),
    ("entropy", quantization.Entropy, *observed(quantization.Entropy)),
    ("histogram", histogram.Histogram, lambda: filled(histogram.Histogram(64)), fields),
    ("finding", advice.Finding, lambda: advice.Finding("a", "outliers", "text", (1,)), fields),
    ("equalized", equalization.Equalized, lambda: quantization.equalize_ranges([REAL.T[:, :9], REAL]),
     fields),
    ("report", report.RangeReport, lambda: quantization.range_report({"x": REAL}), lambda r: r.text()),
    ("report of a tensor", report.TensorReport, lambda: quantization.range_report({"x": REAL}).tensors[0],
     fields),
    ("gain", s_shaped.SShapedGain, lambda: s_shaped.SShapedGain(*["tanh", *range(1, 7)]), fields),
    # ---- compatibility, kernels, Numba
    ("order", gemmlowp.MapOrder, lambda: gemmlowp.MapOrder.COL_MAJOR,
     lambda o: o is gemmlowp.MapOrder.COL_MAJOR),
    ("bit depth", gemmlowp.BitDepthSetting, lambda: gemmlowp.BitDepthSetting.A5B7,
     lambda o: o is gemmlowp.BitDepthSetting.A5B7),
    ("layout of parameters", onnx_passes.Layout, lambda: onnx_passes.layout((4, 6), 8, 1, 3), tuple),
    ("map", gemmlowp.MatrixMap, lambda: gemmlowp.MatrixMap(np.arange(30), "col", 3, 4, 7, 2),
     lambda m: m.view()),
    ("scale", cases.Scale, lambda: cases.Scale(*np.ones((2, 3), np.int32), 0, 0, 255, 0), fields),
    ("vector", cases.Case, lambda: cases.Case(*range(7), *np.ones((6, 3))), fields),
    ("target", cross.Target, lambda: cross.Target("a", "b"), fields),
    ("progress", timing.Progress, lambda: timing.Progress(3), fields),
    ("blas", timing.Blas, lambda: timing.Blas("a", True), tuple),
    ("table writer", timing.TableWriter, lambda: timing.TableWriter(["a", "b"], 3), fields),
    ("quantized array", quantization.Quantized, lambda: lowgemm.quantize(REAL),
     lambda q: (q.codes, q.qparams)),
    ("Numba's type", PackedRhsType, lambda: _TYPES["u"], lambda t: t == _TYPES["u"]),
    *((f"kernel {k.name}", type(k), functools.partial(kernels.by_id, i),
       lambda k: (k.name, kernels.by_id(kernels.id_of(k)).name))
      for i, k in enumerate(kernels.all_kernels()) if not k.name.startswith("test_")),
]  # fmt: skip


def filled(h: Any) -> Any:
    h.observe(REAL)
    return h


if importlib.util.find_spec("onnx") is not None:
    from lowgemm.onnx_run import (
        binary,
        block_weights,
        branches,
        chain_groups,
        chain_plan,
        chain_rows,
        chains,
        convolution,
        copies,
        engines,
        frame,
        geometry,
        lstm_gates,
        lstm_prepared,
        model,
        nbits_weights,
        rewrite,
        state,
        tables,
        tape,
        windows,
    )
    from lowgemm.onnx_run import program as onnx_program

    def onnx_model() -> Any:
        import onnx

        h, t = onnx.helper, onnx.TensorProto
        nodes = [
            h.make_node("DequantizeLinear", ["x", "s", "u"], ["a"]),
            h.make_node("DequantizeLinear", ["w", "s", "i"], ["b"]),
            h.make_node("MatMul", ["a", "b"], ["y"]),
            h.make_node("QuantizeLinear", ["y", "s", "u"], ["z"]),
        ]  # which run on integers, as one QLinearMatMul
        constants = {"w": W, "s": np.float32(0.5), "u": np.uint8(7), "i": np.int8(0)}
        graph = h.make_graph(
            nodes, "g", [h.make_tensor_value_info("x", t.UINT8, [None, 40])],
            [h.make_tensor_value_info("z", t.UINT8, [None, 24])],
            [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
        )  # fmt: skip
        return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)

    def packed_blocks() -> Any:
        codes = np.arange(5 * 2 * 8, dtype=np.uint8).reshape(5, 2, 8)
        return nbits_weights.PackedBlocks(codes, np.ones((5, 2), np.float32), None, 30, 4, 16)

    def run(m: Any) -> Any:
        return m.run({"x": X}), m.packed_bytes, m.rewritten, m.inputs, m.state.rounding

    _OBJECTS += [
        ("model", model.Model, lambda: used(model.Model(onnx_model(), rounding="onnx_reference"), run), run),
        ("tensor", model.Tensor, lambda: model.Model(onnx_model()).inputs[0], tuple),
        ("row", model.Row, lambda: model.Row("a", "b", 1, 2.0), tuple),
        ("unsupported", model.UnsupportedOperator, lambda: model.UnsupportedOperator("text"), str),
        ("not ours", state.NotOurs, state.NotOurs, str),
        ("engine context", engines.Context, lambda: engines.Context("onnx.reference", {"": 17}, 8, None),
         tuple),
        ("packed filters", convolution.PackedFilters,
         lambda: convolution.PackedFilters(np.ones((4, 2, 3, 3), np.int8), 2),
         lambda f: [s.to_array() for s in f.slices]),
        ("packed directions", lstm_prepared.PackedDirections,
         lambda: lstm_prepared.PackedDirections(np.ones((2, 3, 8), np.int8)), lambda p: p.to_array()),
        ("blocks", nbits_weights.PackedBlocks, packed_blocks, lambda b: [b.to_array().tolist(), b.nbytes]),
        ("packed blocks", nbits_weights.PackedBlocks, packed_blocks,
         lambda b: (b.to_array(), b.nbytes, b.block)),
        ("windows", windows.Windows, lambda: windows.windows((8, 8), (3, 3)), tuple),
        ("geometry", geometry.Geometry, lambda: geometry.geometry((1, 3, 8, 8), (5, 3, 3, 3)), fields),
        ("weights of blocks", block_weights.Weights,
         lambda: block_weights.Weights(np.eye(2), np.ones(2), np.zeros(2), 4, 32), tuple),
        ("coded tensor", rewrite.Coded, lambda: rewrite.Coded("a", "b", "c", np.ones(1), np.zeros(1), 0),
         tuple),
        ("weight held packed", state.Packed, lambda: state.Packed(lowgemm.pack_rhs(W), True),
         lambda p: (p.plain(), p.transposed)),
        ("rows of a chain", chain_rows.Rows, lambda: chain_rows.rows_of((2, 3), [(0, 1)]), tuple),
        ("copies of a model", copies.Found, lambda: copies.Found({"n"}, set()), tuple),
        ("results of a frame", frame.Own, lambda: frame.Own([1]), list),
        ("chain's nodes", chain_groups.Group, lambda: chain_groups.Group([], ["x"], ["y"], [], []), tuple),
        ("what ran", frame.Seen, lambda: frame.Seen(None, [], {}, False), tuple),
        ("table's nodes", tables.Table, lambda: tables.Table([], "x", "y"), tuple),
        ("activation", lstm_gates.Activation, lambda: lstm_gates.Activation(lstm_gates.AFFINE, 2.0, 1.0), tuple),
        ("gates", lstm_gates.Gates, lambda: lstm_gates.gates_of({"clip": 2.0})[0], tuple),
        ("rewriter", rewrite.Rewriter, lambda: rewrite.Rewriter(onnx_model()), lambda r: r.constants["w"]),
        ("names of a model", branches.Names, lambda: branches.Names(onnx_model()), lambda n: n.only("w")),
    ]  # fmt: skip

OBJECTS = {name: (cls, make, use) for name, cls, make, use in _OBJECTS}
assert len(OBJECTS) == len(_OBJECTS), "two objects of one name"


def _again() -> rowcall.Again:
    """What a weight keeps of a call that came before."""
    w = bw.pack_rhs_lowbit(np.ones((32, 16), np.float32), "int4")
    for _ in range(3):
        bw.gemm_lowbit(np.ones((1, 32), np.float32), w)
    return next(known for known in w.again.values() if known is not None)


#: Classes whose objects refuse, how to make one, and the class to copy instead.
REFUSED: dict[type, Callable[[], Any]] = {
    Plan: lambda: lowgemm.plan(X, W).plan,
    ready.Ready: lambda: lowgemm.plan(X, W)._ready,
    ready.ReadyWithFunctions: lambda: lowgemm.plan(X, W, output=lowgemm.Custom(module_function))._ready,
    sums.ReadySums: lambda: sums.ReadySums((lowgemm.Clamp(0, 9),), ACC, np.empty_like(ACC), ACC.shape),
    zero_points.Zeros: lambda: lowgemm.plan(X, W)._ready._zeros,
    pipeline.CompiledPipeline: lambda: lowgemm.plan(X, W, output=STAGES).plan.pipeline,
    tile_routine.Step: lambda: clamp.clamp.step(low=1, high=2),
    CustomRoutine: lambda: lowgemm.Custom(module_function).step().routine,
    rowcall.Again: _again,
    rowjob.LaidOut: lambda: rowjob.laid_out(
        bw.pack_rhs_lowbit(np.ones((32, 16), np.float32), "int4"), 1, False
    ),
    rowjob.Ready: lambda: rowjob.Ready(bw.pack_rhs_lowbit(np.ones((32, 16), np.float32), "int4"), 1),
    team.Team: lambda: team.Team(1),
    program.Program: lambda: program.Program(network().layers, IMAGES.shape, False),
    Prepared: lambda: Prepared(
        lowgemm.pack_filters(np.ones((3, 3, 4, 2), np.int8)),
        (1, 6, 6, 4),
        np.uint8,
        (0, 0),
        1,
        0,
        1,
        None,
        None,
    ),
    ChannelsLast: lambda: ChannelsLast((1, 4, 4, 2), (32, 4, 1, 16)),
    LoopPlan: lambda: lowgemm.explain(IMAGES, lowgemm.pack_filters(np.ones((3, 3, 1, 4), np.int8), 4)).plan,
}
if importlib.util.find_spec("onnx") is not None:
    REFUSED[state.State] = lambda: model.Model(onnx_model()).state
    REFUSED[onnx_program.Program] = lambda: model.Model(onnx_model())._program
    REFUSED[engines.Subgraph] = lambda: engines.Subgraph(
        [], [], [], {}, engines.Context("onnx.reference", {}, 8, None)
    )
    REFUSED[chain_plan.Plan] = lambda: chain_plan.Plan((1,), False)
    REFUSED[chains.Chain] = lambda: chains.Chain(chain_groups.Group([], [], [], [], []), {}, list)
    REFUSED[tape.Recorder] = lambda: tape.Recorder({})
    REFUSED[tape.Group] = lambda: tape.Group([], set(), set(), 1)
    REFUSED[tape.Tape] = lambda: tape.Tape(tape.Recorder({}), [])
    REFUSED[frame.Frame] = lambda: frame.Frame([], [], {}, [])
    REFUSED[frame.Frames] = lambda: frame.Frames([], [], [], 1)
    REFUSED[tables.LookUp] = lambda: tables.LookUp(lambda x: x)
    REFUSED[binary.Binary] = lambda: binary.Binary(binary.add, binary.ADD, {"ra": 1.0})
    REFUSED[convolution.Convolution] = lambda: convolution.Convolution(
        convolution.PackedFilters(np.ones((4, 2, 3, 3), np.int8)), np.uint8, (None, None), {}
    )

#: Classes without objects of their own, what belongs to the disk cache, declared code, and what lives only
#: while code is emitted or for one call.
BASES = {
    deferred.Deferred, tile_machine.SoftwareTiles, call.Call, call.PatternCall, program.Emitter,
    tile_routine.TileRoutine, Record, *Record.__subclasses__(),
    *job.Job.__subclasses__(), *job.BlocksJob.__subclasses__(), Routine, LayerRoutine, Lazy, planner.Template,
    records.RhsAddresses, records.ItemAddresses, Windows, image.Windows, LoopWeights, LoopShape, Filters,
    GivenFilters,
    requant.FixedPoint, requant.Float32, cases.FloatScale,
    lowgemm.Stage, Layer, weighted.Weighted, Optimizer, observer.Observer, NotCopied, CheckedCache,
    CheckedFile, quantization.observers.HistogramObserver, kernels.Kernel, TileLoop, explaining.Prediction,
    explaining.TellsItself,
    lowering.LowerPart, lowering.LowerRoutine, lowering.PartCompiler, lowering.PartLibrary,
    lowering.RoutineCompiler, lowering.RoutineLibrary, loaded.Saved, loaded.LoadedLibrary,
    loaded.LoadingContext,
}  # fmt: skip
if importlib.util.find_spec("onnx") is not None:
    BASES.add(convolution.GivenFilters)
