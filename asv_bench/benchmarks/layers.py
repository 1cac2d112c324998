"""Layers of a network, beside the same layer in float32. Rhs packed."""

import numpy as np

import lowgemm

from .common import feature, shape_of
from .measure import float32_ratio, hold_blas, ratio


class Linear:
    """128 tokens through a transformer's layer, and one: "static" int8 in and out, "dynamic" float32 in and
    out.
    """

    params = (["128x768x768", "1x768x3072"], ["static", "dynamic"])
    param_names = ("shape", "quantization")

    def setup(self, shape, quantization):
        lowgemm.config.num_threads = 1  # a process has one set of parameters only
        m, k, n = shape_of(shape)
        rng = np.random.default_rng(0)
        self.x, weight = (
            rng.standard_normal((m, k), dtype=np.float32),
            rng.standard_normal((k, n), dtype=np.float32),
        )
        bias = np.zeros(n, np.float32)
        coded = np.clip(np.rint(weight * 32), -127, 127).astype(np.int8)
        if quantization == "dynamic":
            linear, packed = feature("dynamic_linear", "lowgemm.nn"), lowgemm.pack_rhs(coded)
            scale = np.full(n, 1 / 32, np.float32)
            self.call = lambda: linear(self.x, packed, scale, bias, num_threads=1)
        else:
            # outputs have a standard deviation of sqrt(k): 24 steps of it, so few saturate
            one, wide = feature("QParams", "lowgemm.quantization"), np.sqrt(k) / 24
            layer = feature("QuantizedLinear", "lowgemm.nn")(
                coded, np.zeros(n, np.int32), one(1 / 32, 0), one(1 / 32), one(float(wide), 0)
            )
            q = np.clip(np.rint(self.x * 32), -127, 127).astype(np.int8)
            self.call = lambda: layer(q)
        self.base = lambda: self.x @ weight + bias
        self.call()

    def time_linear(self, shape, quantization):
        self.call()

    @float32_ratio
    def track_time_ratio_to_float32(self, shape, quantization):
        with hold_blas():
            return ratio(self.call, self.base)


class FewBitWeights:
    """Float32 in and out: NF4 weights in groups of 64, and LLM.int8() with two columns of outliers."""

    params = (["128x768x768", "1x768x3072"], ["gemm_4bit", "mixed_linear"])
    param_names = ("shape", "by")

    def setup(self, shape, by):
        m, k, n = shape_of(shape)
        rng = np.random.default_rng(0)
        self.x, weight = (
            rng.standard_normal((m, k), dtype=np.float32),
            rng.standard_normal((k, n), dtype=np.float32),
        )
        self.x[:, [3, k // 2]] *= 20
        product = feature(by, "lowgemm.blockwise")
        make = feature("pack_rhs_4bit" if by == "gemm_4bit" else "MixedWeight", "lowgemm.blockwise")
        coded = make(weight)
        self.call = lambda: product(self.x, coded, num_threads=1)
        self.base = lambda: self.x @ weight
        self.call()

    def time_product(self, shape, by):
        self.call()

    @float32_ratio
    def track_time_ratio_to_float32(self, shape, by):
        with hold_blas():
            return ratio(self.call, self.base)
