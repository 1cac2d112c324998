"""Products that wait for memory: float32 rows by 4-bit and ternary weights, few rows by int8 weights that are
not packed, and results that are large beside their depth. One thread, and two where the name says so.

Weights are taken in turn, so that the second-level cache holds none of those that come next.
"""

import itertools

import numpy as np

import lowgemm

from .common import feature, operand, shape_of
from .measure import float32_ratio, hold_blas, ratio

#: Weights that take turns: 16 of 4096 x 4096 in 4 bits are 134 MB, in 8 bits twice that.
TURNS = 16


class LowBit:
    params = (
        ["1x4096x4096", "4x4096x4096", "16x4096x4096"],
        ["int4", "int4 with zero points", "nf4", "ternary"],
    )
    param_names = ("shape", "weights")
    threads = 1

    def setup(self, shape, book):
        m, k, n = shape_of(shape)
        pack, product = (
            feature("pack_rhs_lowbit", "lowgemm.blockwise"),
            feature("gemm_lowbit", "lowgemm.blockwise"),
        )
        rng = np.random.default_rng(0)
        x, weight = (
            rng.standard_normal((m, k), dtype=np.float32),
            rng.standard_normal((k, n), dtype=np.float32),
        )
        name, _, more = book.partition(" ")
        options = {"zero_points": True} if more else {}  # which older versions do not have
        coded = [pack(weight, name, group=64 if name == "nf4" else 128, **options)]
        coded += [coded[0].__class__.__new__(coded[0].__class__) for _ in range(TURNS - 1)]
        for other in coded[1:]:
            other.__setstate__(coded[0].__getstate__())
        turn = itertools.cycle(coded)
        self.call = lambda: product(x, next(turn), num_threads=self.threads)
        self.base = lambda: x @ weight
        self.call()

    def time_product(self, shape, book):
        self.call()

    @float32_ratio
    def track_time_ratio_to_float32(self, shape, book):
        with hold_blas():
            return ratio(self.call, self.base)


class LowBitTwoThreads(LowBit):
    params = (["1x4096x4096", "16x4096x4096"], ["int4", "nf4"])
    threads = 2


class InPlace:
    params = (["1x4096x4096", "4x4096x4096"], ["rows", "columns"])
    param_names = ("shape", "contiguous")

    def setup(self, shape, contiguous):
        m, k, n = shape_of(shape)
        rng = np.random.default_rng(0)
        x = operand(rng, "uint8", (m, k))
        turn = itertools.cycle([operand(rng, "int8", (k, n)) for _ in range(TURNS)])
        right = (lambda: next(turn).T) if contiguous == "columns" else (lambda: next(turn))
        f_x, f_w = x.astype(np.float32), next(turn).astype(np.float32)
        self.call = lambda: lowgemm.gemm(x, right(), num_threads=1)
        self.base = lambda: f_x @ f_w
        self.call()

    def time_product(self, shape, contiguous):
        self.call()

    @float32_ratio
    def track_time_ratio_to_float32(self, shape, contiguous):
        with hold_blas():
            return ratio(self.call, self.base)


class Skinny:
    params = ["100000x16x64", "20000x64x500"]
    param_names = ("shape",)

    def setup(self, shape):
        m, k, n = shape_of(shape)
        rng = np.random.default_rng(0)
        x, w = operand(rng, "uint8", (m, k)), lowgemm.pack_rhs(operand(rng, "int8", (k, n)))
        f_x, f_w = x.astype(np.float32), rng.standard_normal((k, n), dtype=np.float32)
        out, f_out = np.empty((m, n), np.int32), np.empty((m, n), np.float32)
        self.call = lambda: lowgemm.gemm(x, w, out=out, num_threads=1)
        self.base = lambda: np.matmul(f_x, f_w, out=f_out)
        self.call()

    def time_product(self, shape):
        self.call()

    @float32_ratio
    def track_time_ratio_to_float32(self, shape):
        with hold_blas():
            return ratio(self.call, self.base)
