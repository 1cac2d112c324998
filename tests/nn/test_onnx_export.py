"""Exported networks run by onnxruntime."""

import numpy as np
import pytest
from test_convert import conv_net, data

from lowgemm import nn
from lowgemm import quantization as lq
from lowgemm.nn import float_net as fl
from lowgemm.nn.convert import convert

pytest.importorskip("onnx", reason="export needs onnx")
ort = pytest.importorskip("onnxruntime", reason="compares with onnxruntime")


def theirs(model, x, shape):
    from lowgemm.nn.onnx_export import to_onnx

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    proto = to_onnx(model, shape).SerializeToString()
    return ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("float_output", [False, True])
def test_layer_by_layer(per_channel, float_output):
    """Each layer, fed by its predecessors: integers differ by one step at most, and rarely.

    Means of windows differ most: half of an integer goes away from zero here, and to even there.
    """
    g = np.random.default_rng(5)
    net = conv_net(g)
    model = convert(net, [data(g, 100)], per_channel=per_channel, float_output=float_output, rounding="onnx")
    x = data(g, 60)
    for i in range(1, len(model) + 1):
        part = nn.QuantizedSequential(model.layers[:i])
        ours, got = part.predict(x), theirs(part, x, (None, 6, 6, 2))
        assert ours.shape == got.shape
        unit = 1e-5 if part.output_qparams is None else float(part.output_qparams.scale)
        steps = np.abs(ours - got) / unit
        if i <= 4:  # before the residual addition and the mean
            assert steps.max() < 1.5 and (steps > 0.5).mean() < 0.01
        elif part.output_qparams is not None:
            assert steps.max() < 4
    assert (ours.argmax(1) != got.argmax(1)).mean() <= 0.05


def test_export_writes_a_file(tmp_path):
    from lowgemm.nn.onnx_export import export, to_onnx

    g = np.random.default_rng(6)
    model = convert(conv_net(g), [data(g, 10)])
    export(model, tmp_path / "net.onnx", (None, 6, 6, 2))
    assert (tmp_path / "net.onnx").read_bytes() == to_onnx(model, (None, 6, 6, 2)).SerializeToString()
    with pytest.raises(TypeError, match=r"^model:"):
        to_onnx([], (1,))
    narrow = convert(conv_net(g), [data(g, 10)], observer=lambda: lq.MinMax("uint8", bits=4))
    with pytest.raises(ValueError, match=r"^model: expected all integers"):
        to_onnx(narrow, (None, 6, 6, 2))


def test_channels_of_nearly_no_weight():
    """Their scales were raised, so int32 biases say what they should in onnxruntime and in our own runner
    too.
    """
    from lowgemm.nn.onnx_export import to_onnx
    from lowgemm.onnx_run import Model

    g = np.random.default_rng(7)
    net = conv_net(g)
    for at, size in ((0, 1e-9), (2, 1e-7), (7, 1e-30), (8, 0.0)):
        net[at].weight[..., 1] *= size
        net[at].bias[1] = 0.5
    x = data(g, 60)
    real = fl.run_float(net, x)
    for per_channel in (False, True):
        model = convert(net, [x], per_channel=per_channel, rounding="onnx")
        for got in (
            model.predict(x),
            theirs(model, x, (None, 6, 6, 2)),
            Model(to_onnx(model, (None, 6, 6, 2))).run({"x": x})[0],
        ):
            assert 10 * np.log10((real**2).sum() / ((real - got) ** 2).sum()) > 24
            np.testing.assert_allclose(got[:, 1], 0.5, rtol=1e-5)
