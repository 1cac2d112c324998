"""How calls look on systems that are not here: Windows x64 and macOS on Arm, read from LLVM's assembly for
them.

Both treat an argument on the stack differently from Linux: Windows gives each 8 bytes and leaves the rest of
a narrower one undefined, Apple packs narrower ones side by side. A call that passes 64-bit words is the same
everywhere, which is what these tests look for.
"""

from __future__ import annotations

import re

import numba
import numpy as np
import pytest

from lowgemm import kernels
from lowgemm.engine import compensation, drivers, packing
from lowgemm.jit.routine import call_address, signature
from lowgemm.kernels.tools import cross
from lowgemm.output.store import store32

WINDOWS = cross.Target("x86_64-pc-windows-msvc", "x86-64")
MAC = cross.Target("arm64-apple-macosx11.0.0", "apple-m1")


@numba.cfunc(signature("npnn"), nopython=True)
def pass_all(callee, values, x, y):
    """Every width, in registers and on the stack."""
    v = numba.carray(values, (7,), np.int64)
    call_address(
        callee,
        (
            x > y, np.int8(v[0]), np.uint8(v[1]), np.int16(v[2]), np.uint16(v[3]), np.int32(v[4]),
            np.uint32(v[5]), v[6],
            x > y, np.int8(v[0]), np.uint8(v[1]), np.int16(v[2]), np.uint16(v[3]), np.int32(v[4]),
            np.uint32(v[5]), v[6],
        ),
    )  # fmt: skip


def assembly(compiled: object, target: cross.Target) -> str:
    """Assembly of a routine for a target."""
    return cross.compile_ir(cross.routine_ir(compiled, target.triple, "it"), target)[0]


def test_every_width_is_passed_as_a_word_on_windows():
    """Four arguments in registers; the others at 32(%rsp) and on, each written as a whole word."""
    text = assembly(pass_all, WINDOWS)
    body = text[: re.search(r"callq\s+\*", text).end()]
    stored = {}
    for move, place in re.findall(r"\b(mov[a-z]*)\s+[%$][^,\n]*,\s*(\d+)\(%rsp\)", body):
        stored.setdefault(int(place), set()).add(move)
    outgoing = {place: moves for place, moves in stored.items() if 32 <= place < 32 + 8 * 12}
    assert sorted(outgoing) == list(range(32, 32 + 8 * 12, 8))
    assert all(moves == {"movq"} for moves in outgoing.values()), outgoing


def test_every_width_is_passed_as_a_word_on_macs():
    """Eight arguments in registers; the others on the stack, where Apple would pack narrower ones: 64 bytes
    of x registers.
    """
    text = assembly(pass_all, MAC)
    body = text[: re.search(r"\bblr\s", text).end()]
    places = []
    for move, registers, place in re.findall(r"\b(st[a-z]+)\s+([^\[\n]*)\[sp(?:, #(\d+))?\]\n", body):
        if int(place or 0) < 64:
            names = re.findall(r"\b([a-z]+)\d*\b", registers.replace("xzr", "x31"))
            assert move in ("str", "stp") and set(names) == {"x"}, (move, registers)
            places += [int(place or 0) + 8 * i for i in range(len(names))]
    assert sorted(places) == list(range(0, 64, 8))


#: What the C library and the compiler's runtime of each have; all else is Numba's runtime, which is on each
#: of them.
LIBRARY = {
    "windows": {"memcpy", "memset", "memmove", "__chkstk"},
    "mac": {"_memcpy", "_memset", "_memmove", "_bzero", "_memset_pattern16"},
}
NUMBAS = re.compile(r"^_?(NRT_|numba_|Py|_Py|count_down$|it$)")


def undefined(text: str) -> set[str]:
    """Names that a program takes from elsewhere."""
    called = set(re.findall(r"^\s*(?:callq|jmp|bl|b)[ \t]+([A-Za-z_]\w*)", text, re.MULTILINE))
    loaded = set(re.findall(r"\b([A-Za-z_]\w*)@(?:GOTPAGE|PLT|GOTPCREL)", text))
    made = set(re.findall(r"^([A-Za-z_.]\w*):", text, re.MULTILINE))
    return {name for name in called | loaded if name not in made and not NUMBAS.match(name)}


def portable_routines() -> dict[str, object]:
    """What a product runs through, with the kernel that has no intrinsics of this CPU."""
    kernel = kernels.by_name("portable")
    return {
        "single": drivers.single, "microkernel": kernels.microkernel(kernel), **{
            f"pack_{side}, {by_depth}": packing.pack_routine(kernel, side, by_depth)
            for side in ("lhs", "rhs") for by_depth in (False, True)
        },
        "compensate": compensation.compensate,
        "store32": store32,
    }  # fmt: skip


@pytest.mark.parametrize(("system", "target"), [("windows", WINDOWS), ("mac", MAC)])
def test_no_symbol_is_missing(system, target):
    for name, compiled in portable_routines().items():
        strange = undefined(assembly(compiled, target)) - LIBRARY[system]
        assert not strange, (name, strange)


@pytest.mark.parametrize(
    ("name", "cpu"), [("arm_neon", "apple-m1"), ("arm_dotprod", "apple-m1"), ("arm_i8mm", "apple-m2")]
)
def test_kernels_on_macs(name, cpu):
    """The kernel's instruction is in its depth loops, nothing spills, and nothing is called."""
    kernel = kernels.by_name(name)
    text, code = cross.compile_for(kernel, cross.Target(MAC.triple, cpu))
    assert code[:4] == b"\xcf\xfa\xed\xfe"  # a 64-bit Mach-O object
    loops = cross.depth_loops(text, kernel.expect)
    assert loops and not any(cross.spills(loop) for loop in loops)
    assert not undefined(text) - LIBRARY["mac"]


@pytest.mark.parametrize(
    ("name", "cpu"), [("x86_sse2", "x86-64"), ("x86_avx2", "haswell"), ("x86_avx512vnni", "cascadelake")]
)
def test_kernels_on_windows(name, cpu):
    kernel = kernels.by_name(name)
    text, _ = cross.compile_for(kernel, cross.Target(WINDOWS.triple, cpu))
    assert cross.depth_loops(text, kernel.expect) and not undefined(text) - LIBRARY["windows"]
