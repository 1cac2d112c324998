"""Microkernels on data in L1, beside their product instruction on registers alone."""

from lowgemm import kernels
from lowgemm.cli import limits
from lowgemm.cli.timing import interleave

RUNNABLE = [k.name for k in kernels.all_kernels() if not kernels.missing_features(k)]
#: Plain loops have no product hook to put on registers.
HOOKED = [name for name in RUNNABLE if name != "portable"]


class Microkernels:
    params = (RUNNABLE,)
    param_names = ("kernel",)

    def setup(self, name):
        self.call, _ = limits.microkernel_call(kernels.by_name(name))
        self.call()

    def time_microkernel(self, name):
        self.call()


class Peak:
    params = (HOOKED,)
    param_names = ("kernel",)

    def track_share_of_peak(self, name):
        kernel = kernels.by_name(name)
        (micro, macs), (peak, peak_macs) = limits.microkernel_call(kernel), limits.register_call(kernel)
        times = interleave({"micro": micro, "peak": peak}, seconds=0.5)
        return 100 * (macs / times["micro"]) / (peak_macs / times["peak"])

    track_share_of_peak.unit = "% of the register-only loop (higher is better)"
