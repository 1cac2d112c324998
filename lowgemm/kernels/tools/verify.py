"""Check a microkernel against its contract: natively, or for Arm under user-mode emulation.

Natively the compiled kernel is called on the test cases of `cases.py`. For ``aarch64`` it is cross-compiled
to an object file, linked with the small C program below, and run by ``qemu-aarch64`` on the same cases
(Debian: packages ``gcc-aarch64-linux-gnu``, ``libc6-dev-arm64-cross`` and ``qemu-user``).
"""

from __future__ import annotations

import functools
import itertools
import pathlib
import subprocess
import tempfile

import numpy as np

from lowgemm.kernels import microkernel
from lowgemm.kernels.framework.kernel import Kernel
from lowgemm.kernels.tools.cases import Case, FloatScale, cases, scaled
from lowgemm.kernels.tools.cross import compile_for

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
PACKAGES = "Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user"

#: The smallest program that shows that both work, a C library to link with included.
PROBE = '#include <stdio.h>\nint main(void) { return puts("works") < 0; }\n'

#: Reads calls from a file (13 numbers, then the arrays), makes them, writes each `c`.
HARNESS = r"""
#include <stdio.h>
#include <stdlib.h>
#include <stdint.h>
void kernel(int64_t m, int64_t nv, int64_t groups, void *lhs, int64_t lhs_stride, void *rhs,
            int64_t rhs_stride, void *c, int64_t ldc, void *row_compensation, void *col_compensation,
            int64_t add_c, void *requant, int64_t col);
static void *get(FILE *f, int64_t n) {
    void *p = aligned_alloc(64, (n + 127) / 64 * 64);
    if (!p || (n && fread(p, 1, n, f) != (size_t)n)) exit(3);
    return p;
}
int main(int argc, char **argv) {
    FILE *in = fopen(argv[1], "rb"), *out = fopen(argv[2], "wb");
    int64_t h[12];
    if (!in || !out || argc != 3) return 2;
    while (fread(h, sizeof h, 1, in) == 1) {
        void *lhs = get(in, h[7]), *rhs = get(in, h[8]), *rows = get(in, h[9]), *cols = get(in, h[10]);
        void *c = get(in, h[11]);
        kernel(h[0], h[1], h[2], lhs, h[5], rhs, h[6], c, h[4], rows, cols, h[3], 0, 0);
        if (fwrite(c, 1, h[11], out) != (size_t)h[11]) return 4;
        free(lhs); free(rhs); free(rows); free(cols); free(c);
    }
    return fclose(out) ? 5 : 0;
}
"""


def missing_tools() -> list[str]:
    """Programs that emulation needs and that do not work on this machine, each with the reason."""
    return list(_missing(COMPILER, EMULATOR))


def _complaint(command: list[str], folder: str) -> str | None:
    """Why a command did not do its work, or None if it did."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except OSError as error:
        return f"{command[0]} ({error.strerror})"
    if done.returncode == 0:
        return None
    said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
    return f"{command[0]} ({said:.200})"


@functools.cache
def _missing(compiler: str, emulator: str) -> tuple[str, ...]:
    """Both are tried, not looked for by name: a cross compiler may have come without its C library."""
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "probe.c").write_text(PROBE)
        built = _complaint([compiler, "-static", "-o", "probe", "probe.c"], folder)
        runs = _complaint([emulator, "--version" if built else "./probe"], folder)
    return tuple(text for text in (built, runs) if text)


def verify_native(kernel: Kernel, count: int = 200) -> int:
    """Wrong elements over `count` calls of the kernel as Numba compiled it, and as many with each fused scale
    if it has them.
    """
    from lowgemm.jit.scratch import aligned_empty

    wrong = 0
    todo = [cases(kernel, count=count)]
    if kernel.fuses_requantize:
        todo += [scaled(kernel, count=count), scaled(kernel, count=count, float32=True)]
    for v in itertools.chain(*todo):
        call = microkernel(kernel, v.lhs_signed, int(isinstance(v.scale, FloatScale))).ctypes
        placed = []
        for a in (v.lhs, v.rhs):  # panels are 64-byte aligned by contract
            buffer = aligned_empty(a.nbytes)
            buffer[:] = np.frombuffer(a.tobytes(), np.uint8)
            placed.append(buffer)
        c = v.c.copy()
        record = None if v.scale is None else v.scale.record()
        call(
            v.m, v.nv, v.groups, placed[0].ctypes.data, v.lhs_stride, placed[1].ctypes.data, v.rhs_stride,
            c.ctypes.data, v.ldc, v.row_compensation.ctypes.data, v.col_compensation.ctypes.data, v.add_c,
            None if record is None else record.ctypes.data, 0 if v.scale is None else v.scale.col,
        )  # fmt: skip
        wrong += int(np.count_nonzero(c != v.expected))
    return wrong


def _serialise(v: Case) -> bytes:
    arrays = [np.ascontiguousarray(a) for a in (v.lhs, v.rhs, v.row_compensation, v.col_compensation, v.c)]
    header = [v.m, v.nv, v.groups, v.add_c, v.ldc, v.lhs_stride, v.rhs_stride, *(a.nbytes for a in arrays)]
    return np.array(header, dtype="<i8").tobytes() + b"".join(a.tobytes() for a in arrays)


def verify_emulated(kernel: Kernel, count: int = 200) -> int:
    """Wrong elements over `count` calls of the kernel cross-compiled for aarch64, under emulation.

    Raises
    ------
    FileNotFoundError
        If the cross compiler or the emulator does not work here.
    RuntimeError
        If the program does not build or run.
    """
    absent = missing_tools()
    if absent:
        raise FileNotFoundError(f"does not work here: {', '.join(absent)} ({PACKAGES})")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "kernel.o").write_bytes(compile_for(kernel)[1])
        (folder / "main.c").write_text(HARNESS)
        todo = list(cases(kernel, count=count))
        (folder / "in").write_bytes(b"".join(_serialise(v) for v in todo))
        commands = [
            [COMPILER, "-O1", "-static", "-o", "run", "main.c", "kernel.o"],
            [*kernel.compiled_for.emulator, "run", "in", "out"],
        ]
        for command in commands:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(
                    f"{' '.join(command)}: exit status {done.returncode}: {done.stderr[-500:]}"
                )
        got = np.frombuffer((folder / "out").read_bytes(), np.int32)
    expected = np.concatenate([v.expected.ravel() for v in todo])
    if got.size != expected.size:
        raise RuntimeError(f"the program wrote {got.size} of {expected.size} results")
    return int(np.count_nonzero(got != expected))
