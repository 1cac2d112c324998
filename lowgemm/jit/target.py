"""The CPU that Numba compiles for: its name, and the instructions that code for it may use."""

from __future__ import annotations

import functools

import numba

#: What a CPU name implies, of the features that kernels ask for. LLVM knows, but llvmlite has no way to ask
#: it.
_AVX2 = ("sse2", "ssse3", "sse4.1", "avx", "avx2")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl")
_IMPLIED = {
    **dict.fromkeys(["core2"], ("sse2", "ssse3")),
    **dict.fromkeys(["penryn", "nehalem", "westmere", "silvermont", "x86-64-v2"], ("sse2", "ssse3", "sse4.1")),
    **dict.fromkeys(["sandybridge", "ivybridge"], ("sse2", "ssse3", "sse4.1", "avx")),
    **dict.fromkeys(["haswell", "broadwell", "skylake", "znver1", "znver2", "znver3", "x86-64-v3"], _AVX2),
    **dict.fromkeys(["skylake-avx512", "x86-64-v4"], _AVX512),
    **dict.fromkeys(
        ["cascadelake", "cooperlake", "icelake-client", "icelake-server", "tigerlake", "rocketlake", "znver4"],
        (*_AVX512, "avx512vnni"),
    ),
    **dict.fromkeys(
        ["sapphirerapids", "emeraldrapids", "graniterapids", "znver5"], (*_AVX512, "avx512vnni", "avxvnni")
    ),
    **dict.fromkeys(
        ["alderlake", "raptorlake", "meteorlake", "gracemont", "sierraforest", "arrowlake", "lunarlake"],
        (*_AVX2, "avxvnni"),
    ),
}  # fmt: skip
#: What every CPU of an architecture has.
_BASELINE = {"x86_64": frozenset({"sse2"}), "aarch64": frozenset({"neon"}), "arm64": frozenset({"neon"})}


@functools.cache
def target() -> tuple[str, frozenset[str]]:
    """Name and features of the CPU that Numba compiles for (not of the one it runs on).

    An instruction outside this set makes LLVM abort the process, so kernels are chosen by this and by nothing
    else. ``NUMBA_CPU_NAME`` alone leaves Numba's feature list that of the host, so then only what the name
    implies *and* the list has is used; with ``NUMBA_CPU_FEATURES`` set too, the list rules if it is not
    empty.
    """
    from numba.core.registry import cpu_target

    triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    return name, available_features(
        triple.split("-")[0], name, features, name_forced=numba.config.CPU_NAME is not None
    )


def available_features(arch: str, name: str, features: str, *, name_forced: bool) -> frozenset[str]:
    """Features that code for this target may use.

    Examples
    --------
    >>> sorted(available_features("x86_64", "haswell", "+avx2,+avx512f,-sse4a", name_forced=True))
    ['avx2', 'sse2']
    >>> sorted(available_features("x86_64", "znver4", "+avx2,+avx512f,-sse4a", name_forced=False))
    ['avx2', 'avx512f', 'sse2']
    """
    listed = frozenset(f[1:] for f in features.split(",") if f.startswith("+"))
    implied = frozenset(_IMPLIED.get(name, ()))
    if not listed:
        found = implied
    elif name_forced and (implied or name == "generic"):
        found = listed & implied
    else:
        found = listed
    return found | _BASELINE.get(arch, frozenset())
