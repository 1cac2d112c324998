"""How lowgemm talks to Numba: the target, the cache stamp, and calls through function pointers.

Every piece of machine code that touches matrix memory (a microkernel, a packing routine, an output stage)
is a `numba.cfunc` with pointer arguments. The tile loop in `engine/tiles.py` only does integer arithmetic on
addresses and calls these pieces through `call_address`. So there is one tile loop to compile, whatever the
kernel and whatever the output pipeline, and each piece is compiled at most once and cached on disk by itself.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import llvmlite
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lowgemm.jit import disk_cache


@functools.cache
def source_stamp(*more: str) -> int:
    """Number that changes with any source file of the engine, with Numba and with llvmlite.

    `more` names further folders of the package ("blockwise") whose files count too: code built on the engine
    asks for its own, so that a change in it does not recompile the engine.

    Numba's disk cache notices a change in the file of the cached function only, not in what that function
    calls or in an intrinsic's emitter. Each cached function captures this number, which makes it part of the
    cache key: an upgraded lowgemm can never be served yesterday's machine code.
    """
    digest = hashlib.sha256()
    here = pathlib.Path(__file__).parents[1]
    import lowgemm.kernels  # its files lie in another folder when the package is installed for editing

    folders = [
        here,
        here / "checks",
        here / "engine",
        here / "fixedpoint",
        here / "jit",
        here / "output",
        *(here / name for name in more),
        pathlib.Path(lowgemm.kernels.__file__).parent,
    ]
    for folder in folders:
        for path in sorted(folder.glob("*.py") if folder == here else folder.rglob("*.py")):
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    digest.update(f"{numba.__version__} {llvmlite.__version__}".encode())
    return int.from_bytes(digest.digest()[:7], "little")


#: What a CPU name implies, of the features that kernels ask for. LLVM knows, but llvmlite has no way to ask it.
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
    implies *and* the list has is used; with ``NUMBA_CPU_FEATURES`` set too, the list rules if it is not empty.
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


def signature(letters: str) -> Any:
    """C signature of a routine that returns nothing: `p` for a pointer, `n` for a 64-bit integer.

    Examples
    --------
    >>> signature("pn")
    (void*, int64) -> none
    """
    return types.void(*({"p": types.voidptr, "n": types.intp}[letter] for letter in letters))


def compile_c(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.cfunc` with lowgemm's options: cached on disk, no Python objects inside."""
    return disk_cache.cfunc(signature)


@intrinsic
def call_address(typingctx, address, args):
    """Call the C function at `address` (int64) with the tuple `args`; returns nothing.

    Integers of the tuple are passed as they are: on every supported ABI a pointer-sized integer and a pointer
    travel in the same register, and the callee declares the pointers as such. Nothing is loaded or stored
    through them on this side (LLVM 22 can miscompile memory access by `inttoptr` arithmetic).
    """
    sig = types.void(address, args)

    def codegen(context, builder, signature, values):
        addr, tup = values
        items = cgutils.unpack_tuple(builder, tup)
        fnty = ir.FunctionType(ir.VoidType(), [i.type for i in items])
        fn = builder.inttoptr(addr, fnty.as_pointer())
        builder.call(fn, items)
        return context.get_dummy_value()

    return sig, codegen
