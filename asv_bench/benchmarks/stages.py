"""Output stages by themselves."""

import numpy as np

from .common import feature, pipeline


class Requantize:
    params = (["pipeline to uint8", "onnx", "dequantize"],)
    param_names = ("stages",)

    def setup(self, stages):
        self.requantize = feature("requantize")
        self.acc = np.random.default_rng(0).integers(-(2**20), 2**20, (512, 512)).astype(np.int32)
        make = {
            "pipeline to uint8": lambda: pipeline(512),
            "onnx": lambda: feature("Requantize")(1e-4, 3, np.uint8, rounding="onnx"),
            "dequantize": lambda: feature("Dequantize")(1e-4),
        }
        self.output = make[stages]()
        self.requantize(self.acc, self.output)

    def time_requantize(self, stages):
        self.requantize(self.acc, self.output)
