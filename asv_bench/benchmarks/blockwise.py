"""Block-wise codes and optimizers with 8-bit state."""

import numpy as np

from .common import feature
from .measure import ratio

BLOCKWISE = "lowgemm.blockwise"
ELEMENTS = 1 << 20


class Coding:
    params = (["dynamic", "dynamic_unsigned", "nf4"], [64, 256])
    param_names = ("code", "blocksize")

    def setup(self, code, blocksize):
        self.quantize = feature("quantize_blockwise", BLOCKWISE)
        self.dequantize = feature("dequantize_blockwise", BLOCKWISE)
        x = np.random.default_rng(0).standard_normal(ELEMENTS, dtype=np.float32)
        self.x = np.square(x) if code == "dynamic_unsigned" else x
        self.options = {"code": code, "blocksize": blocksize, "num_threads": 1}
        self.coded = self.quantize(self.x, **self.options)
        self.values = np.empty_like(self.x)

    def time_quantize(self, code, blocksize):
        self.quantize(self.x, out=self.coded, **self.options)

    def time_dequantize(self, code, blocksize):
        self.dequantize(self.coded, out=self.values, num_threads=1)


class Step:
    params = (["Adam", "AdEMAMix", "SGD", "RMSprop", "Lion"], [8, 32])
    param_names = ("optimizer", "state_bits")

    def setup(self, optimizer, state_bits):
        rng = np.random.default_rng(0)
        parameters, self.gradient = rng.standard_normal((2, ELEMENTS), dtype=np.float32)
        least = 0 if state_bits == 8 else ELEMENTS + 1
        self.optimizer = feature(optimizer, BLOCKWISE)(
            parameters, lr=1e-3, min_8bit_size=least, num_threads=1
        )
        self.optimizer.step(self.gradient)
        self.other = np.empty_like(parameters)

    def time_step(self, optimizer, state_bits):
        self.optimizer.step(self.gradient)

    def track_step_over_copy(self, optimizer, state_bits):
        return ratio(lambda: self.optimizer.step(self.gradient), lambda: np.copyto(self.other, self.gradient))

    track_step_over_copy.unit = "time of copying the gradient"
