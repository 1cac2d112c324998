"""What a second thread gives."""

import os

import lowgemm

from .common import operands
from .measure import named, ratio


class Threads:
    params = ([256, 512, 1024],)
    param_names = ("n",)

    def setup(self, n):
        if (os.cpu_count() or 1) < 2:
            raise NotImplementedError("needs two cores")
        self.lhs, _, self.packed = operands(n, n, n)
        for threads in (1, 2):
            self.call(threads)

    def call(self, threads):
        lowgemm.gemm(self.lhs, self.packed, num_threads=threads)

    def time_two_threads(self, n):
        self.call(2)

    @named("time / time of one thread", "Two threads relative to one (0.5 is perfect)")
    def track_time_ratio_to_one_thread(self, n):
        return ratio(lambda: self.call(2), lambda: self.call(1))
