"""Products: cubes, and shapes of convolutions and transformers. One thread unless the name says otherwise."""

import lowgemm

from .common import CUBES, operands, pipeline, ratio_to_float32


class Cubes:
    params = (CUBES, ["fresh", "packed", "packed to uint8"])
    param_names = ("n", "operands")

    def setup(self, n, kind):
        self.lhs, self.rhs, packed = operands(n, n, n)
        rhs = self.rhs if kind == "fresh" else packed
        output = pipeline(n) if kind.endswith("uint8") else None
        self.call = lambda: lowgemm.gemm(self.lhs, rhs, output=output, num_threads=1)
        self.call()

    def time_gemm(self, n, kind):
        self.call()

    def track_time_ratio_to_float32(self, n, kind):
        return ratio_to_float32(self.lhs, self.rhs, self.call)[0]

    track_time_ratio_to_float32.unit = "int8 time / float32 time"
    track_time_ratio_to_float32.pretty_name = "Time relative to float32 BLAS"

    def track_gmacs(self, n, kind):
        return n**3 / ratio_to_float32(self.lhs, self.rhs, self.call)[1] / 1e9

    track_gmacs.unit = "GMAC/s (higher is better)"
    track_gmacs.pretty_name = "Throughput (to read, not to judge by)"


class Shapes:
    params = (["8x4096x1024", "128x768x768", "3136x576x64", "49x4608x512", "1x4096x4096"],)
    param_names = ("shape",)

    def setup(self, shape):
        m, k, n = (int(x) for x in shape.split("x"))
        self.lhs, self.rhs, self.packed = operands(m, k, n)
        lowgemm.gemm(self.lhs, self.packed, num_threads=1)

    def time_packed(self, shape):
        lowgemm.gemm(self.lhs, self.packed, num_threads=1)


class Threads:
    params = ([512, 1024], [1, 2])
    param_names = ("n", "threads")

    def setup(self, n, threads):
        self.lhs, _, self.packed = operands(n, n, n)
        lowgemm.gemm(self.lhs, self.packed, num_threads=threads)

    def time_packed(self, n, threads):
        lowgemm.gemm(self.lhs, self.packed, num_threads=threads)
