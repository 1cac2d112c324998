"""Calls through function pointers: what is passed is 64 bits wide, on every CPU."""

from __future__ import annotations

import pathlib
import re
import subprocess

import llvmlite.binding as llvm
import numba
import numpy as np
import pytest
from numba import types
from numba.core import errors

import lowgemm
from lowgemm import in_numba, kernels
from lowgemm.blockwise import job, product4, rowcall, rowjob, steps
from lowgemm.blockwise.rowtile import decodes
from lowgemm.engine import (
    channels_last,
    compensation,
    depthwise,
    drivers,
    entry,
    grouped,
    image,
    line_loop,
    packing,
    parts,
    pixels,
    planner,
    sums,
)
from lowgemm.engine.deep_block import deep_block
from lowgemm.engine.plan import Operand, Plan
from lowgemm.engine.records import PLAN
from lowgemm.jit import caches, team
from lowgemm.jit.memory import (
    address,
    arrive_field,
    as_address,
    atomic_add,
    load_behind,
    record_at,
    take,
    take_field,
)
from lowgemm.jit.routine import Routine, call_address, call_for_address, signature
from lowgemm.kernels.tools import cross, peak, verify
from lowgemm.nn import program
from lowgemm.nn import routines as layers
from lowgemm.onnx_run import lstm_steps, nbits_tape, tape, way_in
from lowgemm.output.apply import apply
from lowgemm.output.store import store32

if numba.config.DISABLE_JIT:
    pytest.skip("compiled code only", allow_module_level=True)

AARCH64 = cross.Target("aarch64-unknown-linux-gnu", "generic", "+neon")
WIDTHS = [
    types.boolean, types.int8, types.uint8, types.int16, types.uint16, types.int32, types.uint32, types.int64,
    types.uint64
]  # fmt: skip


# ---- values -----------------------------------------------------------------------------------------------
@numba.cfunc(
    signature("p" + "n" * 15), nopython=True
)  # not cached: its file does not change when `jit/routine.py` does
def keep(to, a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14):
    """Store what arrives. The first arguments travel in registers (8 on aarch64, 4 on Windows), the others on
    the stack.
    """
    at = numba.carray(to, (15,), np.int64)
    at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7] = a0, a1, a2, a3, a4, a5, a6, a7
    at[8], at[9], at[10], at[11], at[12], at[13], at[14] = a8, a9, a10, a11, a12, a13, a14


@numba.njit
def pass_on(callee, to, x, y):
    at = as_address(address(to))
    call_address(callee, (at, x, 1, y, 3, x, 5, y, 7, x, 9, y, 11, 12, x, y))


@numba.njit
def pass_comparison(callee, to, x, y):
    at = as_address(address(to))
    call_address(callee, (at, x > y, x == y, x, y, 4, 5, 6, 7, 8, 9, 10, x > y, x < y, x >= y, True))


def extremes(ty) -> list[int]:
    if ty is types.boolean:
        return [0, 1]
    low, high = int(ty.minval), int(ty.maxval)
    return sorted({low, high, 0, 1, high // 2 + 1, max(low, -1)})


@pytest.mark.parametrize("ty", WIDTHS, ids=str)
def test_every_integer_width_arrives_whole(ty):
    made = np.bool_ if ty is types.boolean else getattr(np, str(ty))
    to = np.zeros(15, np.int64)
    for x in extremes(ty):
        for y in extremes(ty):
            pass_on(keep.address, to, made(x), made(y))
            expected = [x, 1, y, 3, x, 5, y, 7, x, 9, y, 11, 12, x, y]
            assert to.tolist() == [v - 2**64 if v >= 2**63 else v for v in expected]


def test_comparisons_arrive_as_0_and_1():
    to = np.zeros(15, np.int64)
    for x, y in ((1, 2), (2, 2), (2, 1)):
        pass_comparison(keep.address, to, x, y)
        assert to.tolist() == [x > y, x == y, x, y, 4, 5, 6, 7, 8, 9, 10, x > y, x < y, x >= y, 1]


# ---- refusals ---------------------------------------------------------------------------------------------
_LETTER = np.zeros(1, dtype=[("a", "i4")])


@pytest.mark.parametrize(
    "value",
    [1.0, np.float32(1), 1j, (1, 2), None, "a", np.zeros(2), np.datetime64(1, "s"), _LETTER[0]],
    ids=["float64", "float32", "complex", "tuple", "none", "text", "array", "date", "record"],
)
@pytest.mark.parametrize("call", [call_address, call_for_address], ids=["call", "for_address"])
def test_what_is_no_word_is_refused_when_compiled(call, value):
    @numba.njit
    def caller(x):
        call(0, (1, x))

    with pytest.raises(errors.TypingError, match=r"args\[1\]: expected an integer, a bool or a pointer, got"):
        caller(value)


@pytest.mark.parametrize("call", [call_address, call_for_address], ids=["call", "for_address"])
def test_address_and_tuple_are_checked_too(call):
    @numba.njit
    def caller(at, x):
        call(at, x)

    for at in (1.0, np.int32(1), True, None):
        with pytest.raises(errors.TypingError, match="address: expected a 64-bit integer, got"):
            caller(at, (1,))
    with pytest.raises(errors.TypingError, match="args: expected a tuple, got int64"):
        caller(1, 1)


# ---- every call that is compiled ---------------------------------------------------------------------------
@numba.njit(nogil=True)
def embedded(x, w, x_zero):
    return lowgemm.gemm(x, w, lhs_zero_point=x_zero)


def callers() -> dict[str, list]:
    """What makes calls through addresses, by source file: C routines and compiled functions."""
    in_numba.init()
    x, w = np.ones((2, 3), np.uint8), np.ones((3, 2), np.int8)
    for zero in (1, np.array([1, 2])):
        embedded(x, w, zero)
        embedded(x, lowgemm.pack_rhs(w), zero)
    peak.repeat(keep.address, 1, (np.zeros(15, np.int64).ctypes.data, *range(15)))
    kinds = [k for k in kernels.all_kernels() if not kernels.why_not(k)]
    for make in (entry.enter, sums.apply):
        make()
    return {
        "lowgemm/engine/tiles.py": [drivers.single, drivers.work],
        "lowgemm/engine/deep_block.py": [deep_block],
        "lowgemm/engine/drivers.py": [drivers.alone, drivers.in_region],
        "lowgemm/jit/team.py": [team.run, team._helper],
        "lowgemm/engine/entry.py": [k for k in entry._kept if isinstance(k, Routine)],
        "lowgemm/in_numba/product.py": [embedded],
        "lowgemm/output/apply.py": [apply],
        "lowgemm/engine/sums.py": [sums._apply],
        "lowgemm/engine/zero_points.py": [k for k in entry._kept if isinstance(k, Routine)],
        "lowgemm/blockwise/job.py": [job.work],
        "lowgemm/blockwise/steps.py": [steps.step],
        "lowgemm/blockwise/rowjob.py": [
            r for k in {kernels.rhs_packer(k) for k in kinds} if decodes(k) for r in rowjob.routines(k, 4)[:2]
        ],
        "lowgemm/blockwise/rowcall.py": [rowcall._multiply_again],
        "lowgemm/blockwise/product4.py": [r for k in kinds for r in product4.routines(k)[:2]],
        "lowgemm/nn/program.py": [program.run_calls],
        "lowgemm/nn/routines.py": [layers.multiply],
        "lowgemm/engine/image.py": [image.pack_image],
        "lowgemm/engine/pixels.py": [pixels.pack_pixels],
        "lowgemm/engine/channels_last.py": [channels_last._copy],
        "lowgemm/engine/line_loop.py": [
            depthwise.block_routine(0),
            grouped.block_routine(0, 4, 4),
            line_loop.loop_single,
            line_loop.loop_work,
        ],
        "lowgemm/onnx_run/lstm_steps.py": [lstm_steps.run_directions],
        "lowgemm/onnx_run/nbits_tape.py": [nbits_tape.multiply_rows],
        "lowgemm/onnx_run/tape.py": [tape.run_tape, tape.run_plan],
        "lowgemm/onnx_run/way_in.py": [way_in._put, way_in._run_tape],
        "lowgemm/engine/parts.py": [parts.work_on_parts],
        "lowgemm/kernels/tools/peak.py": [peak.repeat],
    }


def modules_of(compiled) -> list[llvm.ModuleRef]:
    """LLVM modules, from memory or from the cache on disk."""
    compiled = getattr(compiled, "dispatcher", compiled)
    if hasattr(compiled, "overloads"):
        return [r.library._get_module_for_linking() for r in compiled.overloads.values()]
    return [getattr(compiled, "compiled", compiled)._library._get_module_for_linking()]


def indirect_calls(module: llvm.ModuleRef) -> list[list[str]]:
    """Types of the arguments of each call whose callee is a computed address."""
    found = []
    for function in module.functions:
        for block in function.blocks:
            for instruction in block.instructions:
                if instruction.opcode in ("call", "invoke"):
                    *arguments, callee = instruction.operands
                    if callee.value_kind == llvm.ValueKind.instruction:
                        found.append([str(a.type) for a in arguments])
    return found


def test_every_compiled_call_passes_words_only():
    """On every target: what the IR says is 64 bits wide is passed as 64 bits by every ABI."""
    root = pathlib.Path(lowgemm.__file__).parents[1]
    listed = callers()
    calling = {
        path.relative_to(root).as_posix()
        for path in (root / "lowgemm").rglob("*.py")
        if re.search(r"^ .*\bcall_(?:for_)?address\(", path.read_text(), re.MULTILINE)
    }
    assert calling == set(listed), "a file that makes calls is not walked"
    for file, compiled in listed.items():
        calls = [call for one in compiled for module in modules_of(one) for call in indirect_calls(module)]
        assert calls, file
        narrow = [call for call in calls if not set(call) <= {"i64", "ptr", "i8*"}]
        assert not narrow, (file, narrow)


# ---- on another CPU ----------------------------------------------------------------------------------------
def build_and_run(folder: pathlib.Path, main: str, objects: dict[str, bytes], data: bytes) -> bytes:
    """Output of a program for aarch64 under emulation."""
    for name, code in objects.items():
        (folder / f"{name}.o").write_bytes(code)
    (folder / "main.c").write_text(
        "#include <stdint.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n" + main
    )
    (folder / "in").write_bytes(data)
    files = ["main.c", *(f"{name}.o" for name in objects)]
    # what only an error would need (Python's exceptions) stays undefined
    flags = ["-O1", "-static", "-Wl,--unresolved-symbols=ignore-all", "-o", "run"]
    for command in ([verify.COMPILER, *flags, *files], [verify.EMULATOR, "-cpu", "max", "run", "in", "out"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.returncode, done.stderr[-2000:])
    return (folder / "out").read_bytes()


needs_emulation = pytest.mark.skipif(
    bool(verify.missing_tools()), reason=f"not installed: {', '.join(verify.missing_tools())}"
)


def for_aarch64(compiled, symbol: str) -> bytes:
    return cross.compile_ir(cross.routine_ir(compiled, AARCH64.triple, symbol), AARCH64)[1]


@numba.cfunc(
    signature("npnn"), nopython=True
)  # not cached: its file does not change when `jit/routine.py` does
def pass_all(callee, values, x, y):
    """Every width on the stack: arguments 9 to 16 of the callee."""
    v = numba.carray(values, (7,), np.int64)
    call_address(
        callee,
        (
            0, 1, 2, 3, 4, 5, 6, 7, np.int8(v[0]), np.uint8(v[1]), np.int16(v[2]), np.uint16(v[3]),
            np.int32(v[4]),
            np.uint32(v[5]), x > y, v[6],
        ),
    )  # fmt: skip


@needs_emulation
def test_every_integer_width_on_aarch64(tmp_path):
    main = """
    static FILE *out;
    void pass_all(int64_t callee, void *values, int64_t x, int64_t y);
    void seen(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f, int64_t g, int64_t h,
              int64_t i, int64_t j, int64_t k, int64_t l, int64_t m, int64_t n, int64_t o, int64_t p) {
        int64_t all[] = {a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p};
        fwrite(all, sizeof all, 1, out);
    }
    __attribute__((noinline)) static void soil(void) {  /* what the stack holds afterwards */
        volatile char memory[4096];
        memset((char *)memory, 0xa5, sizeof memory);
    }
    int main(int argc, char **argv) {
        int64_t v[9];
        FILE *in = fopen(argv[1], "rb");
        out = fopen(argv[2], "wb");
        while (fread(v, sizeof v, 1, in) == 1) {
            soil();
            pass_all((int64_t)seen, v, v[7], v[8]);
        }
        return fclose(out);
    }
    """
    calls = np.array(
        [
            [-1, 255, -1, 65535, -1, 2**32 - 1, -1, 2, 1],
            [-128, 128, -(2**15), 2**15, -(2**31), 2**31, -(2**63), 1, 2],
            [0] * 9,
        ]
    )
    got = build_and_run(tmp_path, main, {"pass_all": for_aarch64(pass_all, "pass_all")}, calls.tobytes())
    for sent, seen in zip(calls.tolist(), np.frombuffer(got, np.int64).reshape(-1, 16).tolist(), strict=True):
        assert seen == [*range(8), *sent[:6], int(sent[7] > sent[8]), sent[6]]


#: The tile loop under emulation: the plan's addresses are entered, and one product is computed.
PRODUCT = """
void single(void *p, int64_t lhs, int64_t rhs, int64_t sums, int64_t out, int64_t space,
            int64_t lhs_zero, int64_t rhs_zero, int64_t lhs_zeros, int64_t rhs_zeros);
void microkernel(void); void pack_lhs(void); void pack_rhs(void);
void compensate(void); void deep_block(void);
void store32(void);
static void *get(FILE *f, int64_t n) {
    void *p = aligned_alloc(64, (n + 127) / 64 * 64);
    if (fread(p, 1, n, f) != (size_t)n) exit(3);
    return p;
}
int main(int argc, char **argv) {
    FILE *in = fopen(argv[1], "rb"), *out = fopen(argv[2], "wb");
    int64_t h[6], params[3] = {0, 0, 0};
    if (fread(h, sizeof h, 1, in) != 1) return 2;
    int64_t *p = get(in, h[0]);
    void *lhs = get(in, h[1]), *rhs = get(in, h[2]), *result = malloc(h[3]);
    p[KERNEL] = (int64_t)microkernel, p[PACK_LHS] = (int64_t)pack_lhs, p[PACK_RHS] = (int64_t)pack_rhs;
    p[COMPENSATION_ROUTINE] = (int64_t)compensate;
    p[DEEP_BLOCK] = p[DEEP_BLOCK] ? (int64_t)deep_block : 0;
    p[NO_COMPENSATION] = (int64_t)calloc(1 << 16, 1);
    p[STAGE] = (int64_t)store32, p[STAGE + 1] = (int64_t)params;
    void *space = aligned_alloc(64, h[4] + 4096);
    memset(space, 0xa5, h[4]);
    single(p, (int64_t)lhs, (int64_t)rhs, 0, (int64_t)result, (int64_t)space, 128, 3, 0, 0);
    fwrite(result, 1, h[3], out);
    return fclose(out);
}
"""


@needs_emulation
@pytest.mark.parametrize("shape", [(64, 4096, 64), (5, 9000, 40), (64, 100, 33)], ids=str)
def test_product_on_aarch64(tmp_path, monkeypatch, shape):
    """The tile loop as it runs on Arm, with the depth in several blocks and in one."""
    monkeypatch.setattr(planner, "cache_sizes", lambda: caches.FALLBACK)
    m, depth, n = shape
    kernel = kernels.by_name("portable")
    rng = np.random.default_rng(sum(shape))
    a = rng.integers(0, 256, (m, depth), dtype=np.uint8)
    b = rng.integers(-128, 128, (depth, n), dtype=np.int8)
    plan = Plan(
        kernel, Operand(a.shape, a.strides, "u"), Operand(b.shape, b.strides, "i"), result=np.dtype(np.int32),
        out_strides=(4 * n, 4), num_threads=1,
    )  # fmt: skip
    assert plan.one_by_one and (plan.blocking.depth_blocks > 1) == (depth > 100)
    routines = {
        "single": drivers.single, "microkernel": kernels.microkernel(kernel),
        "pack_lhs": packing.pack_routine(kernel, "lhs", True),
        "pack_rhs": packing.pack_routine(kernel, "rhs", False),
        "compensate": compensation.compensate, "store32": store32, "deep_block": deep_block,
    }  # fmt: skip
    names = (
        "kernel",
        "pack_lhs",
        "pack_rhs",
        "compensation_routine",
        "deep_block",
        "no_compensation",
        "stage",
    )
    main = "".join(f"#define {name.upper()} {PLAN.fields[name][1] // 8}\n" for name in names) + PRODUCT
    head = np.array([plan.numbers.nbytes, a.nbytes, b.nbytes, 4 * m * n, plan.scratch_bytes, 0], np.int64)
    data = b"".join(x.tobytes() for x in (head, plan.numbers, a, b))
    objects = {name: for_aarch64(compiled, name) for name, compiled in routines.items()}
    got = np.frombuffer(build_and_run(tmp_path, main, objects, data), np.int32).reshape(m, n)
    assert np.array_equal(got, (a.astype(np.int64) - 128) @ (b.astype(np.int64) - 3))


# ---- atomics -----------------------------------------------------------------------------------------------
WORDS = np.dtype([("first", np.int64), ("taken", np.int64), ("last", np.int64)], align=True)
words_at = record_at(WORDS)


@numba.cfunc(signature("p"), nopython=True)  # not cached, like the next
def count_in_record(job):
    words = words_at(job)
    words.first = take_field(words, "taken", 2)
    words.last = load_behind(words, 0) + arrive_field(words, "last", 3)


@numba.cfunc(signature("p"), nopython=True)  # not cached: its file does not change when `jit/routine.py` does
def count_both(job):
    words = numba.carray(job, (4,), np.int64)
    words[2] = take(words, 0, 1)
    words[3] = atomic_add(job, 1, 1)


def test_orders_of_atomic_additions():
    """The order is in the IR, and on aarch64 in the instructions: x86 has but one addition, which orders
    everything.
    """
    words = np.array([5, 7, 0, 0], np.int64)
    count_both.ctypes(words.ctypes.data)
    assert words.tolist() == [6, 8, 5, 7]
    text = cross.routine_ir(count_both, AARCH64.triple, "count_both")
    assert re.findall(r"atomicrmw add .* (\w+), align", text) == ["monotonic", "seq_cst"]
    with_lse = cross.Target(AARCH64.triple, "generic", "+neon,+lse")
    assert re.findall(r"\b(ldadd\w*)\s", cross.compile_ir(text, with_lse)[0]) == ["ldadd", "ldaddal"]


def test_atomic_additions_to_a_record():
    words = np.array([0, 5, 11, 70], np.int64)
    count_in_record.ctypes(words.ctypes.data)
    assert words.tolist() == [5, 7, 81, 70]
    text = cross.routine_ir(count_in_record, AARCH64.triple, "count_in_record")
    assert re.findall(r"atomicrmw add .* (\w+), align", text) == ["monotonic", "acq_rel"]


def test_threads_that_read_what_others_wrote_acquire_it():
    """Counts of what is done order memory: of packed columns, of splits. Numbers are handed out by additions
    that all threads see in one order.
    """
    text = "".join(str(module) for module in modules_of(drivers.work))
    orders = re.findall(r"atomicrmw add ptr .* (\w+), align", text)
    assert set(orders) == {"acq_rel", "seq_cst"}
    assert orders.count("acq_rel") == 1
    assert set(re.findall(r"load atomic .* (\w+), align", text)) == {"acquire"}
