"""The CPU that Numba compiles for: its name, and the instructions that code for it may use."""

from __future__ import annotations

import functools

import numba

from lowgemm.jit import arm
from lowgemm.jit.llvm_features import implied_features

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
    arch = triple.split("-")[0]
    found = available_features(arch, name, features, name_forced=numba.config.CPU_NAME is not None)
    return name, arm.usable(found, triple, name, features) if arch in arm.NAMES else found


def available_features(arch: str, name: str, features: str, *, name_forced: bool) -> frozenset[str]:
    """Features that code for this target may use.

    Raises
    ------
    ValueError
        If the name was set by hand, and LLVM knows no such x86-64 CPU.

    Examples
    --------
    >>> sorted(available_features("x86_64", "haswell", "+avx2,+avx512f,-sse4a", name_forced=True))
    ['avx2', 'sse2']
    >>> sorted(available_features("x86_64", "znver4", "+avx2,+avx512f,-sse4a", name_forced=False))
    ['avx2', 'avx512f', 'sse2']
    """
    listed = frozenset(f[1:] for f in features.split(",") if f.startswith("+"))
    implied = implied_features(name) if arch == "x86_64" and (name_forced or not listed) else frozenset()
    if not listed:
        found = implied
    elif name_forced and arch == "x86_64":
        found = listed & implied
    else:
        found = listed
    return found | _BASELINE.get(arch, frozenset())


def round_even_name(kind: str) -> str:
    """LLVM's function that rounds to the nearest whole number, ties to even, for a type like "f32".

    An x86 CPU before SSE4.1 has no instruction for it. LLVM calls the C library's ``roundeven`` then, which
    Windows lacks, and ends the process. ``rint`` is there, and rounds so unless the process has set another
    mode.
    """
    features = target()[1]
    before_sse41 = "sse2" in features and "sse4.1" not in features
    return f"llvm.{'rint' if before_sse41 else 'roundeven'}.{kind}"
