"""Packing the rhs by itself; packing the lhs shows in `gemm.Cubes`, operands "fresh"."""

import numpy as np

import lowgemm

from .common import operands
from .measure import named, ratio


class Packing:
    params = ([256, 1024], ["C", "F"])
    param_names = ("n", "order")

    def setup(self, n, order):
        self.rhs = np.asarray(operands(n, n, n)[1], order=order)
        lowgemm.pack_rhs(self.rhs)

    def time_pack_rhs(self, n, order):
        lowgemm.pack_rhs(self.rhs)

    @named("time / time of a copy", "Packing relative to copying the matrix")
    def track_time_ratio_to_copy(self, n, order):
        return ratio(lambda: lowgemm.pack_rhs(self.rhs), lambda: self.rhs.copy(order="K"))
