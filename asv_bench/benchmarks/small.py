"""Small calls: the Python around the product."""

import numpy as np

import lowgemm

from .common import feature, operand, operands


class Calls:
    params = ([8, 32, 64], ["gemm", "plan"])
    param_names = ("n", "by")

    def setup(self, n, by):
        self.lhs, _, self.packed = operands(n, n, n)
        self.call = feature("plan")(self.lhs, self.packed) if by == "plan" else lowgemm.gemm
        for _ in range(2):  # the second call is the first to take the short way
            self.call(self.lhs, self.packed)

    def time_call(self, n, by):
        self.call(self.lhs, self.packed)


class Subclass(np.ndarray):
    """A kind of array of the user's."""


class Forms:
    """32-cubed products and 32 x 32 sums in every form of call; none should cost much more than the plain
    one.
    """

    params = [
        "plain", "packed", "scalar zero points", "NumPy's scalar", "rhs vector of int32",
        "both vectors of int32", "both vectors of int64",
        "both vectors of uint8", "list", "accumulate", "lhs is a vector", "rhs is a vector", "two vectors",
        "num_threads", "out",
        "out strided", "out of a subclass", "lhs of a subclass", "stages", "stages and vector", "Custom",
        "stack", "stack, vector for each",
        "requantize", "requantize into out", "requantize a vector", "requantize a stack",
    ]  # fmt: skip
    param_names = ("form",)

    def setup(self, form):
        size = 32
        a, b, packed = operands(size, size, size)
        zeros, out = np.arange(size, dtype=np.int32), np.zeros((size, size), np.int32)
        strided = np.zeros((size, 2 * size), np.int32)[:, ::2]
        stages = [feature("Requantize")(1e-4, 3, np.int8)]
        custom = feature("Custom")(lambda acc, row, col: acc + row)
        both = {"lhs_zero_point": zeros, "rhs_zero_point": zeros}
        requantize = feature("requantize")
        a3, b3, zeros3 = np.stack([a] * 4), np.stack([b] * 4), np.stack([zeros[None]] * 4)
        gemm = {
            "plain": (a, b, {}),
            "packed": (a, packed, {}),
            "scalar zero points": (a, b, {"lhs_zero_point": 3, "rhs_zero_point": -2}),
            "NumPy's scalar": (a, b, {"lhs_zero_point": np.uint8(3)}),
            "rhs vector of int32": (a, b, {"rhs_zero_point": zeros}),
            "both vectors of int32": (a, b, both),
            "both vectors of int64": (a, b, {k: v.astype(np.int64) for k, v in both.items()}),
            "both vectors of uint8": (a, b, {k: v.astype(np.uint8) for k, v in both.items()}),
            "list": (a, b, {"rhs_zero_point": zeros.tolist()}),
            "accumulate": (a, b, {"out": out, "accumulate": True}),
            "lhs is a vector": (a[0], b, {}),
            "rhs is a vector": (a, b[0], {}),
            "two vectors": (a[0], b[0], {}),
            "num_threads": (a, b, {"num_threads": 2}),
            "out": (a, b, {"out": out}),
            "out strided": (a, b, {"out": strided}),
            "out of a subclass": (a, b, {"out": out.view(Subclass)}),
            "lhs of a subclass": (a.view(Subclass), b, {}),
            "stages": (a, b, {"output": stages}),
            "stages and vector": (a, b, {"output": stages, "rhs_zero_point": zeros}),
            "Custom": (a, b, {"output": custom}),
            "stack": (a3, b3, {}),
            "stack, vector for each": (a3, b3, {"rhs_zero_point": zeros3}),
        }  # fmt: skip
        acc = np.arange(size * size, dtype=np.int32).reshape(size, size)
        sums = {
            "requantize": (acc, {}),
            "requantize into out": (acc, {"out": np.zeros(acc.shape, np.int8)}),
            "requantize a vector": (acc[0], {}),
            "requantize a stack": (np.stack([acc] * 4), {}),
        }
        if form in gemm:
            lhs, rhs, options = gemm[form]
            self.call = lambda: lowgemm.gemm(lhs, rhs, **options)
        else:
            given, options = sums[form]
            self.call = lambda: requantize(given, stages, **options)
        for _ in range(2):  # the second call is the first to take the short way
            self.call()

    def time_call(self, form):
        self.call()


class Batch:
    """Many tiny products in one call, a packed rhs for each."""

    params = ([(64, 64, 64, 64)], [1, 2])
    param_names = ("shape", "threads")

    def setup(self, shape, threads):
        batch, m, k, n = shape
        rng = np.random.default_rng(0)
        self.lhs = operand(rng, "uint8", (batch, m, k))
        self.packed = feature("pack_rhs")(operand(rng, "int8", (batch, k, n)))
        for _ in range(2):
            self.time_batch(shape, threads)

    def time_batch(self, shape, threads):
        lowgemm.gemm(self.lhs, self.packed, num_threads=threads)


class FewRows:
    """An rhs that is used once, without packing it first. One thread."""

    params = ([1, 8], ["rows", "columns"])
    param_names = ("m", "contiguous")

    def setup(self, m, contiguous):
        self.lhs, rhs, _ = operands(m, 4096, 4096)
        self.rhs = np.asfortranarray(rhs) if contiguous == "columns" else rhs
        self.time_fresh(m, contiguous)

    def time_fresh(self, m, contiguous):
        lowgemm.gemm(self.lhs, self.rhs, num_threads=1)
