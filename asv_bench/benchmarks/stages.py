"""Packing and output stages by themselves."""

import numpy as np

import lowgemm

from .common import operands, pipeline


class Packing:
    params = ([256, 1024], ["C", "F"])
    param_names = ("n", "order")

    def setup(self, n, order):
        _, rhs, _ = operands(n, n, n)
        self.rhs = np.asarray(rhs, order=order)
        lowgemm.pack_rhs(self.rhs)

    def time_pack_rhs(self, n, order):
        lowgemm.pack_rhs(self.rhs)


class Requantize:
    params = (["pipeline to uint8", "onnx", "dequantize"],)
    param_names = ("stages",)

    def setup(self, stages):
        self.acc = np.random.default_rng(0).integers(-(2**20), 2**20, (512, 512)).astype(np.int32)
        self.output = {
            "pipeline to uint8": pipeline(512),
            "onnx": lowgemm.Requantize(1e-4, 3, np.uint8, rounding="onnx"),
            "dequantize": lowgemm.Dequantize(1e-4),
        }[stages]
        lowgemm.requantize(self.acc, self.output)

    def time_requantize(self, stages):
        lowgemm.requantize(self.acc, self.output)
