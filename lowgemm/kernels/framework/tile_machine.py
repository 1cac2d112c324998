"""Tile registers in software: a kernel's tile instructions, executed by the manual's definition on any CPU.

A kernel that emits its tile instructions through hooks is emitted a second time with `SoftwareTiles` in front
of it. Each instruction then is a call of a routine here that works on 8 registers of 16 rows x 64 bytes in
memory (Intel's manual, volume 1, chapter "Programming with Intel AMX", and the instructions' pages in volume
2). All else of the program is the same: addresses, loops, configurations, stores.

What the CPU would refuse is noted: an instruction without a configuration, a configuration that is not
allowed, shapes that do not fit a product, registers that are not released at the end. From then on every
stored tile is noise and the result's first byte is wrong, so that no test of results can miss it; `faults()`
says what it was.

Arguments of the routines: `state` is the address of the machine's memory, `tile` the number of a register, as
are `acc`, `lhs` and `rhs` in a product; `config` is the address of a configuration. `address` is where the
rows of a register are in memory, `stride` bytes apart, and `c` where the result of the kernel begins.
"""

from __future__ import annotations

import functools
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils

from lowgemm.jit.memory import load_i32, load_i64, load_s8, load_u8, offset, store_8, store_32
from lowgemm.jit.routine import routine
from lowgemm.kernels.framework.irtools import const, i8, i64

#: Registers, their rows and the bytes of each.
TILES, ROWS, BYTES = 8, 16, 64
#: Where things are in the machine's memory: the registers, the rows and bytes of each as configured, whether
#: there is a configuration, and how often each fault occurred.
_SHAPES, _CONFIGURED, _FAULTS = TILES * ROWS * BYTES, TILES * ROWS * BYTES + 64, TILES * ROWS * BYTES + 128
_SIZE = _FAULTS + 64
NAMES = ("no configuration", "a configuration that is not allowed", "shapes that do not fit", "not released")
_CODES = len(NAMES)
_PREFIX, _LOG_SYMBOL = "lowgemm_tiles_", "lowgemm_tiles_faults"
_LOG = np.zeros(len(NAMES), np.int64)


def faults(clear: bool = True) -> dict[str, int]:
    """What went wrong on the machine since the last time, and how often."""
    found = {name: int(count) for name, count in zip(NAMES, _LOG, strict=True) if count}
    if clear:
        _LOG[:] = 0
    return found


@numba.njit(nogil=True)
def _fault(state, code):
    """Note fault number `code`."""
    place = offset(state, _FAULTS)
    store_32(place, code, load_i32(place, code) + 1)


@numba.njit(nogil=True)
def _usable(state, tile):
    """Whether a register has a shape; notes a fault."""
    if load_u8(state, _CONFIGURED) == 0 or load_u8(state, _SHAPES + 2 * tile) == 0:
        _fault(state, 0)
        return False
    return True


@routine("p")
def tile_begin(state):
    """Start: no configuration, no faults."""
    for i in range(_SHAPES, _FAULTS + 4 * _CODES):
        store_8(state, i, 0)


@routine("pp")
def tile_configure(state, config):
    """`ldtilecfg`: shapes from 64 bytes, and cleared registers."""
    palette = load_u8(config, 0)
    good = palette == 1
    for i in range(1, 16):
        good = good and load_u8(config, i) == 0
    for i in range(16):
        rows, width = (
            load_u8(config, 48 + i),
            load_u8(config, 16 + 2 * i) + 256 * load_u8(config, 17 + 2 * i),
        )
        if i >= 8:
            good = good and rows == 0 and width == 0
        good = good and rows <= 16 and width <= 64 and (rows == 0) == (width == 0)
        if i < 8:
            store_8(state, _SHAPES + 2 * i, rows)
            store_8(state, _SHAPES + 2 * i + 1, width)
    for i in range(_SHAPES):
        store_8(state, i, 0)
    store_8(state, _CONFIGURED, 1 if good else 0)
    if not good:
        _fault(state, 1)


@routine("p")
def tile_release(state):
    """`tilerelease`."""
    store_8(state, _CONFIGURED, 0)


@routine("pn")
def tile_clear(state, tile):
    """`tilezero`."""
    if _usable(state, tile):
        for i in range(1024):
            store_8(state, tile * 1024 + i, 0)


@routine("pnpn")
def tile_load(state, tile, address, stride):
    """`tileloadd`: rows of memory, and zeros around them."""
    if _usable(state, tile):
        rows, width = load_u8(state, _SHAPES + 2 * tile), load_u8(state, _SHAPES + 2 * tile + 1)
        for r in range(16):
            for j in range(64):
                value = 0
                if r < rows and j < width:
                    value = load_u8(address, r * stride + j)
                store_8(state, tile * 1024 + r * 64 + j, value)


@routine("pnnnn")
def tile_multiply(state, acc, lhs, rhs, signed):
    """`tdpbusd`, or with `signed` `tdpbssd`."""
    if not (_usable(state, acc) and _usable(state, lhs) and _usable(state, rhs)):
        return
    rows, width = load_u8(state, _SHAPES + 2 * acc), load_u8(state, _SHAPES + 2 * acc + 1)
    lhs_rows, lhs_width = load_u8(state, _SHAPES + 2 * lhs), load_u8(state, _SHAPES + 2 * lhs + 1)
    rhs_rows, rhs_width = load_u8(state, _SHAPES + 2 * rhs), load_u8(state, _SHAPES + 2 * rhs + 1)
    fits = rows == lhs_rows and width == rhs_width and lhs_width == 4 * rhs_rows and width % 4 == 0
    if not fits or acc in (lhs, rhs) or lhs == rhs:
        _fault(state, 2)
        return
    sums, left, right = offset(state, acc * 1024), offset(state, lhs * 1024), offset(state, rhs * 1024)
    for r in range(rows):
        for n in range(width // 4):
            total = load_i32(sums, r * 16 + n)
            for g in range(rhs_rows):
                for k in range(4):
                    x = load_s8(left, r * 64 + 4 * g + k)
                    if not signed:
                        x = x & 255
                    total += x * load_s8(right, g * 64 + 4 * n + k)
            store_32(sums, r * 16 + n, total)


@routine("pnpn")
def tile_store(state, tile, address, stride):
    """`tilestored`; noise once something was wrong."""
    wrong = 0
    for code in range(_CODES):
        wrong += load_i32(offset(state, _FAULTS), code)
    if _usable(state, tile):
        rows, width = load_u8(state, _SHAPES + 2 * tile), load_u8(state, _SHAPES + 2 * tile + 1)
        for r in range(rows):
            for j in range(width):
                value = load_u8(state, tile * 1024 + r * 64 + j)
                store_8(address, r * stride + j, value ^ 0x5A if wrong else value)


@routine("ppp")
def tile_end(state, c, log):
    """The return: what is configured now was not released. Adds up the faults in `log`, and spoils the result
    of a faulty run.
    """
    if load_u8(state, _CONFIGURED) != 0:
        _fault(state, 3)
    wrong = 0
    for code in range(_CODES):
        count = load_i32(offset(state, _FAULTS), code)
        wrong += count
        place = offset(log, 8 * code)
        store_32(place, 0, load_i64(place, 0) + count)
    if wrong:
        store_8(c, 0, load_u8(c, 0) ^ 0x5A)


_MACHINE = (
    tile_begin, tile_configure, tile_release, tile_clear, tile_load, tile_multiply, tile_store,
    tile_end,
)  # fmt: skip


@functools.cache
def ready() -> None:
    """Compile the machine and tell the linker where its parts are."""
    for made in _MACHINE:
        llvm.add_symbol(_PREFIX + made.__name__, made.address)
    llvm.add_symbol(_LOG_SYMBOL, _LOG.ctypes.data)


class SoftwareTiles:
    """In front of a kernel with tile hooks: the same program on the machine."""

    def refusal(self) -> str:
        """Runs anywhere."""
        ready()
        return ""

    def add_sums(self, builder: ir.IRBuilder, acc: ir.Value, packed: ir.Value, side: str) -> None:
        """Plain code, for any CPU."""
        return None

    def emit(
        self,
        builder: ir.IRBuilder,
        args: dict[str, ir.Value],
        lhs_signed: bool,
        scaling: Any,
        scattered: bool = False,
    ) -> bool:
        """The program, between the start of a machine and the check that it was released."""
        with builder.goto_entry_block():
            state = builder.alloca(ir.ArrayType(i8, _SIZE))
        state.align = 64
        builder.function.tile_state = builder.bitcast(state, i8.as_pointer())
        self._call(builder, "begin")
        super().emit(builder, args, lhs_signed, scaling, scattered)  # type: ignore[misc]
        module = builder.module
        log = module.globals.get(_LOG_SYMBOL)
        if log is None:
            log = ir.GlobalVariable(module, ir.ArrayType(i64, len(NAMES)), _LOG_SYMBOL)
        self._call(builder, "end", args["c"], builder.bitcast(log, i8.as_pointer()))
        return True

    def _call(self, b: ir.IRBuilder, name: str, *args: ir.Value) -> None:
        words = [b.function.tile_state, *args]
        of = ir.FunctionType(ir.VoidType(), [w.type for w in words])
        b.call(cgutils.get_or_insert_function(b.module, of, f"{_PREFIX}tile_{name}"), words)

    def configure(self, b: ir.IRBuilder, address: ir.Value) -> None:
        """`ldtilecfg`."""
        self._call(b, "configure", address)

    def clear(self, b: ir.IRBuilder, tile: int) -> None:
        """`tilezero`."""
        self._call(b, "clear", const(i64, tile))

    def load_tile(self, b: ir.IRBuilder, tile: int, address: ir.Value, stride: ir.Value) -> None:
        """`tileloadd`."""
        self._call(b, "load", const(i64, tile), address, stride)

    def multiply(self, b: ir.IRBuilder, acc: int, lhs: int, rhs: int, signed: bool) -> None:
        """`tdpbssd` or `tdpbusd`."""
        self._call(b, "multiply", *(const(i64, x) for x in (acc, lhs, rhs, int(signed))))

    def store_tile(self, b: ir.IRBuilder, tile: int, address: ir.Value, stride: ir.Value) -> None:
        """`tilestored`."""
        self._call(b, "store", const(i64, tile), address, stride)

    def release(self, b: ir.IRBuilder) -> None:
        """`tilerelease`."""
        self._call(b, "release")
