"""Real models that packages ship (extra `models`), quantized here by onnxruntime's tool, beside onnxruntime.

QOperator and dynamic models, and those that are shipped in int8: equal to onnxruntime's run of the model as
written, fused too. Quantize-dequantize models: the same without fusion; with it, differences are counted, and
a step of a few of them has one cause: float sums round, integer sums do not.
"""

from __future__ import annotations

import importlib.util
import pathlib

import numpy as np
import peers
import pytest

pytest.importorskip("onnx", reason="the package onnx is not installed (extra `test`)")
import onnx
import onnx_models as om

from lowgemm.onnx_run import Model

#: Package, file inside of it, shape of its input.
MODELS = {
    "text direction": ("rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", (1, 3, 48, 192)),
    "text detection": ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx", (1, 3, 96, 96)),
    "file type": ("magika", "models/standard_v3_3/model.onnx", (1, 2048)),
}

#: Models that are shipped in int8: package, file, name of the input. They hold DynamicQuantizeLSTM.
SHIPPED = {
    "vowel signs": ("text2tashkeel", "models/rawi_v3.int8.onnx", "input"),
    "vowel signs, three layers": ("text2tashkeel", "models/bilstm.int8.onnx", "input_ids"),
}


def found(package, file):
    spec = importlib.util.find_spec(package)
    for folder in spec.submodule_search_locations if spec else []:
        if (pathlib.Path(folder) / file).exists():
            return str(pathlib.Path(folder) / file)
    return pytest.skip(f"the package {package} with {file} is not installed (extra `models`)")


@pytest.fixture(scope="module", params=list(MODELS))
def real(request):
    peers.need("onnxruntime")
    package, file, shape = MODELS[request.param]
    proto = onnx.load(found(package, file))
    name = proto.graph.input[0].name
    dtype = onnx.helper.tensor_dtype_to_np_dtype(proto.graph.input[0].type.tensor_type.elem_type)
    g = np.random.default_rng(0)

    def draw():
        values = g.standard_normal(shape) / 2 if dtype == np.float32 else g.integers(0, 256, shape)
        return {name: values.astype(dtype)}

    return proto, draw


def quantize(proto, draw, path, kind):
    from onnxruntime import quantization as tool
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(tool.CalibrationDataReader):
        def __init__(self):
            self.left = iter([draw(), draw()])

        def get_next(self):
            return next(self.left, None)

    before, after = str(path / "float.onnx"), str(path / "quantized.onnx")
    onnx.save(proto, before)
    quant_pre_process(before, before, skip_symbolic_shape=True)
    if kind == "dynamic":
        tool.quantize_dynamic(before, after, weight_type=tool.QuantType.QUInt8)
    else:
        form = tool.QuantFormat.QDQ if kind == "qdq" else tool.QuantFormat.QOperator
        tool.quantize_static(before, after, Batches(), quant_format=form, weight_type=tool.QuantType.QInt8)
    return onnx.load(after)


@pytest.mark.parametrize("kind", ["dynamic", "qdq", "qoperator"])
def test_as_written(real, kind, tmp_path):
    """Every output is equal to onnxruntime's without its optimizer, bit for bit."""
    proto, draw = real
    model, feeds = quantize(proto, draw, tmp_path, kind), draw()
    want = om.onnxruntime_run(model, feeds, "ORT_DISABLE_ALL")
    for fuse in (False,) if kind == "qdq" else (False, True):
        ours = Model(model, fuse=fuse)
        for _ in range(2):  # the second run is that of prepared nodes
            got = dict(zip([t.name for t in ours.outputs], ours.run(None, feeds), strict=True))
            for name, value in want.items():
                np.testing.assert_array_equal(got[name], value, err_msg=name)
        owners = {r.runs_on for r in ours.profile}
        assert owners == {"lowgemm", "onnxruntime"}


def test_fused(real, tmp_path):
    """A quantize-dequantize model on integers: within what few steps of its integers can do."""
    proto, draw = real
    model, feeds = quantize(proto, draw, tmp_path, "qdq"), draw()
    ours = Model(model)
    want = om.onnxruntime_run(model, feeds)
    got = dict(zip([t.name for t in ours.outputs], ours.run(None, feeds), strict=True))
    for name, value in want.items():
        differ = np.count_nonzero(got[name] != value)
        print(f"\n{name}: {differ} of {value.size} differ, by {np.abs(got[name] - value).max():.1e} at most")
        assert differ <= max(2, value.size // 50)
    assert ours.rewritten


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped(name):
    """As it is shipped, fused and not, on texts of several lengths: equal to onnxruntime's run of the model
    as written.
    """
    peers.need("onnxruntime")
    package, file, names = SHIPPED[name]
    proto, g = onnx.load(found(package, file)), np.random.default_rng(1)
    models = [Model(proto), Model(proto, fuse=False)]
    for length in (1, 7, 40):
        feeds = {names: g.integers(1, 30, (1, length))}
        want = om.onnxruntime_run(proto, feeds, "ORT_DISABLE_ALL")
        for model in models:
            for t, got in zip(model.outputs, model.run(None, feeds), strict=True):
                np.testing.assert_array_equal(got, want[t.name], err_msg=t.name)
    assert {r.runs_on for r in models[0].profile if "DynamicQuantizeLSTM" in r.op} == {"lowgemm"}
