"""The real task: integer networks are as accurate as the float ones."""

import importlib.util
import pathlib

import numpy as np
import pytest
import threadpoolctl

from lowgemm import quantization as lq
from lowgemm.nn import float_net as fl
from lowgemm.nn.convert import convert

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
PATH = pathlib.Path(__file__).parents[2] / "examples" / "digits_training.py"


@pytest.fixture(scope="module")
def training():
    spec = importlib.util.spec_from_file_location("digits_training", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_8_bits_per_channel_within_half_a_point_of_float(training, kind):
    x, y, test_x, test_y = training.load()
    with threadpoolctl.threadpool_limits(
        1, user_api="blas"
    ):  # a second thread doubles the work, not the speed
        net = training.trained(kind, 0, x, y)
    model = convert(net, [x[:300]], input_qparams=lq.choose_qparams(0, 1, "uint8"))
    real, got = (
        100 * (z.argmax(1) == test_y).mean() for z in (fl.run_float(net, test_x), model.predict(test_x))
    )
    assert real > 96
    assert got >= real - 0.5
    q = lq.quantize(test_x[:50], model.input_qparams)
    np.testing.assert_array_equal(model(q), model.reference(q))
