"""The microkernels, one per file, and their registry.

Adding a kernel: one file with a description (see `framework/kernel.py`), one line in `_REGISTRY`. The order
is the order of preference: the first one whose features Numba's target has is used.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
import sys
import warnings
from typing import Any

from numba import types
from numba.extending import intrinsic

from lowgemm import config
from lowgemm.jit.routine import Routine, routine, unpack_words
from lowgemm.jit.target import target
from lowgemm.kernels import (
    arm_dotprod,
    arm_i8mm,
    arm_neon,
    portable,
    x86_amx_int8,
    x86_avx2,
    x86_avx512bw,
    x86_avx512vnni,
    x86_avxvnni,
    x86_avxvnniint8,
    x86_sse2,
)
from lowgemm.kernels.framework.kernel import ARGUMENTS, EITHER, SIGNATURE, Kernel
from lowgemm.kernels.framework.requant import SCALES
from lowgemm.kernels.framework.unroll import emit_microkernel

_REGISTRY: list[Kernel] = [
    x86_amx_int8.KERNEL,
    x86_avx512vnni.KERNEL,
    x86_avxvnni.KERNEL,
    x86_avxvnniint8.KERNEL,
    x86_avx512bw.KERNEL,
    x86_avx2.KERNEL,
    x86_sse2.KERNEL,
    arm_i8mm.KERNEL,
    arm_dotprod.KERNEL,
    arm_neon.KERNEL,
    portable.KERNEL,
]


#: Names that kernels had, which still force them.
_FORMER = {"x86_sse41": "x86_sse2"}


def all_kernels() -> tuple[Kernel, ...]:
    """Every registered kernel, the preferred first."""
    return tuple(_REGISTRY)


def register(kernel: Kernel) -> Kernel:
    """Add a kernel that is never chosen by itself (tests use this for odd tiles); returns it."""
    if any(k.name == kernel.name for k in _REGISTRY):
        raise ValueError(f"name: a kernel called {kernel.name!r} is registered already")
    _REGISTRY.append(kernel)
    return kernel


def in_software(kernel: Kernel) -> Kernel:
    """The kernel's twin, which runs the same program on any CPU, registered, and with it what packs its rhs.

    Raises
    ------
    ValueError
        If it has none.
    """
    twin = kernel.twin()
    if twin is None:
        raise ValueError(f"kernel: {kernel.name!r} has no program in software")
    known = {k.name: k for k in _REGISTRY}
    if twin.fallback and twin.fallback not in known:
        register(
            portable.Portable(
                name=twin.fallback, features=(), mr=8, lanes=twin.lanes, max_nv=3, kr=twin.kr, lhs_type="u8",
                rhs_type=twin.rhs_type, row_tiles=(1,),
            )
        )  # fmt: skip
    return known[twin.name] if twin.name in known else register(twin)


def by_id(index: int) -> Kernel:
    """Kernel number `index`."""
    return _REGISTRY[index]


def id_of(kernel: Kernel) -> int:
    """Number of a registered kernel."""
    return _REGISTRY.index(kernel)


@functools.cache
def stamp_of(kernel: Kernel) -> int:
    """Number of a kernel's description, for the key of what is compiled for it.

    Compiled code captures a kernel as its number in the registry. Two programs may register different kernels
    under one number and share a disk cache, so the description, and the source of a class from outside, must
    be part of the key.
    """
    cls = type(kernel)
    text = f"{cls.__module__}.{cls.__qualname__} {kernel!r}".encode()
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if file is not None and not cls.__module__.startswith("lowgemm."):
        text += pathlib.Path(file).read_bytes()
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "little")


def by_name(name: str) -> Kernel:
    """Kernel of that name; one that was renamed is found by its old name too, with a `FutureWarning`.

    Raises
    ------
    ValueError
        If there is none.
    """
    for kernel in _REGISTRY:
        if kernel.name == name:
            return kernel
    if name in _FORMER:
        warnings.warn(
            f"kernel: {name!r} is now called {_FORMER[name]!r}; use that name", FutureWarning, stacklevel=2
        )
        return by_name(_FORMER[name])
    raise ValueError(
        f"kernel: no kernel is called {name!r}; there are {', '.join(k.name for k in _REGISTRY)}"
    )


def missing_features(kernel: Kernel) -> list[str]:
    """Features that the kernel needs and Numba's target lacks; an empty list means that code for it can be
    compiled.
    """
    has = target()[1]
    return [f for f in kernel.features if f not in has]


def why_not(kernel: Kernel) -> str:
    """Why a kernel cannot run here, or "" if it can: the target lacks its instructions, or the operating
    system refuses them.
    """
    missing = missing_features(kernel)
    if missing:
        return f"needs {', '.join(missing)}, which Numba's target {target()[0]!r} lacks"
    refused = kernel.refusal()
    return f"cannot run here: {refused}" if refused else ""


def refused_before(kernel: Kernel) -> dict[str, str]:
    """Kernels preferred to this one that the target could run and the operating system refuses, and why."""
    before = _REGISTRY[: _REGISTRY.index(kernel)]
    return {k.name: why_not(k) for k in before if not missing_features(k) and why_not(k)}


def rhs_packer(kernel: Kernel) -> Kernel:
    """The kernel whose routine packs this one's rhs: its fallback, where it has one, since both read the same
    panels.
    """
    return by_name(kernel.fallback) if kernel.fallback else kernel


def suited(kernel: Kernel, m: int, n: int, depth: int) -> Kernel:
    """The kernel itself, or its fallback for a product that would not pay on it."""
    return kernel if not kernel.fallback or kernel.takes(m, n, depth) else by_name(kernel.fallback)


def check_runs(name: str) -> Kernel:
    """Kernel of that name, if the target can run it.

    Raises
    ------
    ValueError
        If there is none, or the target lacks its instructions.
    """
    kernel = by_name(name)
    why = why_not(kernel)
    if why:
        raise ValueError(f"kernel: {name!r} {why}")
    return kernel


def _setting(name: Any) -> str | None:
    """A new value of `config.kernel`."""
    if name is not None:
        if not isinstance(name, str):
            raise TypeError(f"kernel: expected a kernel's name or None, got {type(name).__name__}")
        check_runs(name)
    return name


config.check_with("kernel", _setting)


def selected() -> Kernel:
    """Kernel in use: the forced one, or the first of the registry that the target can run.

    Raises
    ------
    ValueError
        If the forced kernel does not exist or the target lacks its instructions.
    """
    return _choice(config.kernel)


@functools.cache
def _choice(forced: str | None) -> Kernel:
    if forced is not None:
        try:
            return check_runs(forced)
        except ValueError as error:
            raise ValueError(f"{error} (LOWGEMM_KERNEL, or lowgemm.config.kernel, asks for it)") from None
    return next(k for k in _REGISTRY if not why_not(k))


@intrinsic(prefer_literal=True)
def microkernel_body(typingctx, kernel_id, lhs_signed, scale, scattered, args):
    """Body of the microkernel number `kernel_id` of the registry, with scale number `scale`."""
    kernel, signed = by_id(kernel_id.literal_value), bool(lhs_signed.literal_value)
    scaling, listed = SCALES[scale.literal_value], bool(scattered.literal_value)

    def codegen(context, builder, signature, values):
        items = unpack_words(context, builder, signature.args[4], values[4])
        emit_microkernel(kernel, builder, dict(zip(ARGUMENTS, items, strict=True)), signed, scaling, listed)
        return context.get_dummy_value()

    return types.void(kernel_id, lhs_signed, scale, scattered, args), codegen


@functools.cache
def _make(kernel_id: int, lhs_signed: int, scale: int, scattered: int, key: int) -> Routine:
    @routine(SIGNATURE, key)
    def microkernel(
        m,
        nv,
        groups,
        lhs,
        lhs_stride,
        rhs,
        rhs_stride,
        c,
        ldc,
        row_compensation,
        col_compensation,
        add_c,
        requant,
        col,
    ):
        """The arguments are described in `framework/kernel.py`."""
        microkernel_body(
            kernel_id,
            lhs_signed,
            scale,
            scattered,
            (
                m, nv, groups, lhs, lhs_stride, rhs, rhs_stride, c, ldc, row_compensation, col_compensation,
                add_c, requant, col,
            ),
        )  # fmt: skip

    return microkernel


@functools.cache
def microkernel(kernel: Kernel, lhs_signed: bool = False, scale: int = 0, scattered: bool = False) -> Any:
    """The microkernel, a `Routine` (its contract is in `framework/kernel.py`); `lhs_signed` tells those apart
    that take both signs, `scale` is the number (in `framework/requant.py`) of the scale that it does, if it
    can do one, `scattered` asks for the one that reads an lhs through a list.

    Raises
    ------
    ValueError
        If Numba's target lacks the kernel's instructions (compiling it would abort the process).
    """
    why = why_not(kernel)
    if why:
        raise ValueError(f"kernel: {kernel.name!r} {why}")
    compile_own = getattr(kernel, "compile", None)
    if compile_own is not None:
        return compile_own(id_of(kernel), stamp_of(kernel))
    signed = int(lhs_signed and kernel.lhs_type == EITHER)
    fused = scale if kernel.fuses_requantize else 0
    return _make(id_of(kernel), signed, fused, int(scattered and kernel.scatters), stamp_of(kernel))
