"""Products: cubes, and shapes of convolutions and transformers. One thread."""

import lowgemm

from .common import CUBES, operands, pipeline, shape_of
from .measure import float32_ratio, median_seconds, ratio_to_float32, throughput


class Cubes:
    params = (CUBES, ["fresh", "packed", "packed to uint8"])
    param_names = ("n", "operands")

    def setup(self, n, kind):
        self.lhs, self.rhs, packed = operands(n, n, n)
        rhs = self.rhs if kind == "fresh" else packed
        options = {"output": pipeline(n)} if kind.endswith("uint8") else {}
        self.call = lambda: lowgemm.gemm(self.lhs, rhs, num_threads=1, **options)
        self.call()

    def time_gemm(self, n, kind):
        self.call()

    @float32_ratio
    def track_time_ratio_to_float32(self, n, kind):
        return ratio_to_float32(self.lhs, self.rhs, self.call)

    @throughput
    def track_gmacs(self, n, kind):
        return n**3 / median_seconds(self.call) / 1e9


class Shapes:
    """Rhs packed. ResNet-50's convolutions as products, a transformer's layer, small batches of tokens."""

    params = (["8x4096x1024", "128x768x768", "3136x576x64", "49x4608x512"],)
    param_names = ("shape",)

    def setup(self, shape):
        self.lhs, self.rhs, packed = operands(*shape_of(shape))
        self.call = lambda: lowgemm.gemm(self.lhs, packed, num_threads=1)
        self.call()

    def time_packed(self, shape):
        self.call()

    @float32_ratio
    def track_time_ratio_to_float32(self, shape):
        return ratio_to_float32(self.lhs, self.rhs, self.call)

    @throughput
    def track_gmacs(self, shape):
        m, k, n = shape_of(shape)
        return m * k * n / median_seconds(self.call) / 1e9
