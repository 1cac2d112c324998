"""Small float networks as ONNX graphs, and onnxruntime's quantization tool on them."""

from __future__ import annotations

import itertools

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

from lowgemm.onnx_run.program import ALONE

OPSET = 17


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(nodes, inputs, outputs, constants, opset=OPSET, checked=True):
    graph = helper.make_graph(
        nodes, "g", inputs, outputs, [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if checked:
        checker.check_model(model)
    return model


def dynamic_convolution(source, w, n="", **attributes):
    """Nodes of a dynamically quantized convolution of `source` and weights `w`, whose zero point is "wz" and
    whose scale is "ws": quantized "q", "s" and "z", "sums", and "c", each with `n` behind its name.
    """
    return [
        helper.make_node("DynamicQuantizeLinear", [source], [f"q{n}", f"s{n}", f"z{n}"]),
        helper.make_node("ConvInteger", [f"q{n}", w, f"z{n}", "wz"], [f"sums{n}"], **attributes),
        helper.make_node("Cast", [f"sums{n}"], [f"real{n}"], to=1),
        helper.make_node("Mul", [f"s{n}", "ws"], [f"scale{n}"]),
        helper.make_node("Mul", [f"real{n}", f"scale{n}"], [f"c{n}"]),
    ]


def weights(g, constants, name, *shape):
    constants[name] = (g.standard_normal(shape) * (2 / np.prod(shape[1:] or shape)) ** 0.5).astype(np.float32)
    return name


def mlp(g, gemm=True):
    """64 -> 48 -> 32 -> 10 with ReLU and Softmax, as Gemm or as MatMul and Add."""
    nodes, constants, now, sizes = [], {}, "x", (64, 48, 32, 10)
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        w, c = weights(g, constants, f"w{i}", a, b), weights(g, constants, f"b{i}", b)
        if gemm:
            nodes.append(helper.make_node("Gemm", [now, w, c], [f"g{i}"]))
        else:
            nodes.append(helper.make_node("MatMul", [now, w], [f"m{i}"]))
            nodes.append(helper.make_node("Add", [f"m{i}", c], [f"g{i}"]))
        now = f"g{i}"
        if i < 2:
            nodes.append(helper.make_node("Relu", [now], [f"r{i}"]))
            now = f"r{i}"
    nodes.append(helper.make_node("Softmax", [now], ["y"], axis=-1))
    return model_of(nodes, [value("x", [None, 64])], [value("y", [None, 10])], constants), (64,)


def conv_net(g):
    """Convolutions 3x3, depthwise, 1x1 and in groups with strides; a residual sum, both pools,
    Flatten, Gemm.
    """
    constants, nodes = {}, []

    def node(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], **attributes))

    def conv(source, name, output, *shape, **attributes):
        w, b = weights(g, constants, f"w_{name}", *shape), weights(g, constants, f"b_{name}", shape[0])
        node("Conv", [source, w, b], output, **attributes)

    around = [1, 1, 1, 1]
    conv("x", "first", "c0", 8, 1, 3, 3, pads=around)
    node("Relu", ["c0"], "r0")
    conv("r0", "depthwise", "c1", 8, 1, 3, 3, pads=around, group=8)
    node("Relu", ["c1"], "r1")
    conv("r1", "pointwise", "c2", 8, 8, 1, 1)
    node("Add", ["c2", "r0"], "a0")
    node("Relu", ["a0"], "r2")
    node("MaxPool", ["r2"], "p0", kernel_shape=[2, 2], strides=[2, 2])
    conv("p0", "grouped", "c3", 16, 4, 3, 3, pads=around, strides=[2, 2], group=2)
    node("Relu", ["c3"], "r3")
    node("GlobalAveragePool", ["r3"], "p1")
    node("Flatten", ["p1"], "f")
    weights(g, constants, "w_last", 10, 16)
    weights(g, constants, "b_last", 10)
    node("Gemm", ["f", "w_last", "b_last"], "g", transB=1)
    node("Softmax", ["g"], "y", axis=-1)
    return model_of(nodes, [value("x", [None, 1, 8, 8])], [value("y", [None, 10])], constants), (1, 8, 8)


def quantized(model, path, kind, batches):
    """The model as onnxruntime's tool quantizes it: "dynamic", or "qdq" or "qoperator" with "_channel" and
    "_s8" after.
    """
    import onnx
    from onnxruntime import quantization as tool

    class Batches(tool.CalibrationDataReader):
        def __init__(self):
            self.left = iter([{"x": x} for x in batches])

        def get_next(self):
            return next(self.left, None)

    before = str(path) + ".float"
    onnx.save(model, before)
    if kind == "dynamic":
        tool.quantize_dynamic(before, str(path))
    else:
        tool.quantize_static(
            before, str(path), Batches(),
            quant_format=tool.QuantFormat.QDQ if kind.startswith("qdq") else tool.QuantFormat.QOperator,
            per_channel="_channel" in kind,
            activation_type=tool.QuantType.QInt8 if "_s8" in kind else tool.QuantType.QUInt8,
            weight_type=tool.QuantType.QInt8,
        )  # fmt: skip
    return onnx.load(str(path))


def every_tensor(model):
    """The model with every intermediate tensor as an output too."""
    from onnx import ModelProto

    more = ModelProto()
    more.CopyFrom(model)
    known = {o.name for o in more.graph.output}
    more.graph.output.extend(
        helper.make_empty_tensor_value_info(o)
        for n in more.graph.node
        for o in n.output
        if o and o not in known
    )
    return more


def one_by_one(model, *args):
    """`run`, where each step runs by itself: what recordings are compared with."""
    return model._run_so(ALONE, *args)


def onnxruntime_run(model, feeds, level="ORT_ENABLE_ALL"):
    """All outputs by name, by onnxruntime on one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
