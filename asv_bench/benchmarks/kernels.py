"""Microkernels on data in L1, beside their product instruction on registers alone."""

from .common import feature
from .measure import in_turn, median_seconds, named

#: Written out, not read from the registry: asv finds a parameter by its place, so a list that
#: differs between commits or machines would file one kernel's time under another's name.
NAMES = [
    "x86_avx512vnni", "x86_avxvnni", "x86_avx512bw", "x86_avx2", "x86_sse2",
    "arm_i8mm", "arm_dotprod", "arm_neon", "portable", "x86_amx_int8", "x86_avxvnniint8",
]  # fmt: skip
#: What kernels were called in earlier commits.
FORMER = {"x86_sse2": "x86_sse41"}


def _kernel(name):
    """The kernel, or a skip where this commit has none of that name or this CPU cannot run it."""
    kernels, limits = feature("kernels"), feature("limits", "lowgemm.kernels.tools", "lowgemm.cli")
    try:
        known = {kernel.name for kernel in kernels.all_kernels()}
        kernel = kernels.by_name(name if name in known else FORMER.get(name, name))
    except (AttributeError, KeyError, ValueError):
        raise NotImplementedError(f"this commit has no kernel {name}") from None
    if kernels.missing_features(kernel):
        raise NotImplementedError(f"this CPU cannot run {name}")
    return kernel, limits


class Microkernels:
    params = (NAMES,)
    param_names = ("kernel",)

    def setup(self, name):
        kernel, limits = _kernel(name)
        self.call, self.macs = limits.microkernel_call(kernel)
        self.call()

    def time_microkernel(self, name):
        self.call()

    @named("GMAC/s (higher is better)", "Microkernel in L1 (to read, not to judge by)")
    def track_gmacs(self, name):
        return self.macs / median_seconds(self.call) / 1e9


class Peak:
    #: Plain loops have no product to put on registers.
    params = ([name for name in NAMES if name != "portable"],)
    param_names = ("kernel",)

    def setup(self, name):
        kernel, limits = _kernel(name)
        (self.micro, self.macs), (self.peak, self.peak_macs) = (
            limits.microkernel_call(kernel),
            limits.register_call(kernel),
        )

    @named("% of the register-only loop (higher is better)", "Microkernel's share of peak (to read)")
    def track_share_of_peak(self, name):
        micro, peak = in_turn(self.micro, self.peak)
        return 100 * float((self.macs / self.peak_macs) / sorted(micro / peak)[len(micro) // 2])
