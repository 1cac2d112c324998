"""Upper bounds for a kernel: its product instruction on registers alone, and its microkernel on data in L1.

A microkernel cannot be faster than `register_loop`, which issues the same products on as many accumulators as
the main tile has, but loads and stores nothing.
"""

from __future__ import annotations

import functools

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lowgemm.jit import arm
from lowgemm.jit.routine import Routine, call_address, routine, unpack_words
from lowgemm.kernels import by_id, id_of, stamp_of, why_not
from lowgemm.kernels.framework.kernel import Kernel, at, const, i64, store


def _hide(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Make LLVM forget where a register's value comes from, so that it cannot move a product out of
    the loop.
    """
    register = "w" if b.module.triple.startswith(arm.NAMES) else "x"
    if isinstance(value.type, ir.VectorType) and value.type.count * value.type.element.width > 256:
        register = "v"
    return b.asm(ir.FunctionType(value.type, [value.type]), "", f"={register},0", [value], side_effect=True)


def _emit_loop(k: Kernel, b: ir.IRBuilder, steps: ir.Value, source: ir.Value, sink: ir.Value) -> None:
    if k.emit_products(b, steps, source):
        return
    fn = b.function
    lhs = k.load_lhs(b, source)
    # Distinct values, or LLVM would compute equal products once.
    rhs = [k.load_rhs(b, at(b, source, 64 * (v + 1))) for v in range(k.max_nv)]
    zero = k.zero()
    entry, body, done = b.block, fn.append_basic_block("peak"), fn.append_basic_block("peak_done")
    b.branch(body)
    b.position_at_end(body)
    step = b.phi(i64)
    step.add_incoming(const(i64, 0), entry)
    rows = range(0, k.row_tiles[0], k.lhs_rows)
    phis = {}
    for r in rows:
        for v in range(k.max_nv):
            regs = []
            for z in zero:
                p = b.phi(z.type)
                p.add_incoming(z, entry)
                regs.append(p)
            phis[r, v] = tuple(regs)
    # The lhs is one register, hidden anew for each row and carried around the loop: no copies, no equal
    # products.
    carried = left = b.phi(lhs.type)
    carried.add_incoming(lhs, entry)
    panels: list = rhs
    if k.reloads_rhs:  # there is no register for each panel, so one is hidden anew in place of each load
        again = b.phi(rhs[0].type)
        again.add_incoming(rhs[0], entry)
        current = [again]

        def panel() -> ir.Value:
            current.append(_hide(b, current[-1]))
            return current[-1]

        panels = [panel] * k.max_nv
    accs = {}
    for r in rows:
        left = _hide(b, left)
        row = k.row_products(b, [phis[r, v] for v in range(k.max_nv)], left, panels)
        accs.update({(r, v): acc for v, acc in enumerate(row)})
    carried.add_incoming(left, body)
    if k.reloads_rhs:
        again.add_incoming(current[-1], body)
    next_index = b.add(step, const(i64, 1))
    step.add_incoming(next_index, body)
    for key, regs in phis.items():
        for p, a in zip(regs, accs[key], strict=True):
            p.add_incoming(a, body)
    b.cbranch(b.icmp_signed("<", next_index, steps), body, done)
    b.position_at_end(done)
    total = None
    for regs in accs.values():
        for a in regs:
            total = a if total is None else b.add(total, a)
    store(b, total, sink)


def module_ir(kernel: Kernel, triple: str) -> str:
    """LLVM IR of a module with the register-only loop as one C function, for `cross.compile_ir`."""
    module = ir.Module(name=kernel.name)
    module.triple = triple
    pointer = ir.IntType(8).as_pointer()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [i64, pointer, pointer]), "registers")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    _emit_loop(kernel, builder, *function.args)
    builder.ret_void()
    return str(module)


@intrinsic(prefer_literal=True)
def _loop_body(typingctx, kernel_id, args):
    """Body of `register_loop` for kernel number `kernel_id` (a constant); `args` is a tuple of its three
    arguments.
    """
    kernel = by_id(kernel_id.literal_value)

    def codegen(context, builder, signature, values):
        _emit_loop(kernel, builder, *unpack_words(context, builder, signature.args[1], values[1]))
        return context.get_dummy_value()

    return types.void(kernel_id, args), codegen


def _make(kernel_id: int, key: int) -> Routine:
    @routine("npp", key)
    def loop(steps, source, sink):
        """`source` points to 1024 bytes of operands, `sink` to memory for one register."""
        _loop_body(kernel_id, (steps, source, sink))

    return loop


@functools.cache
def register_loop(kernel: Kernel) -> Routine:
    """Loop ``(steps, source, sink)``; a step is one depth group of the main tile.

    Raises
    ------
    ValueError
        If the target lacks the kernel's instructions, or the kernel is plain loops without hooks.
    """
    if why_not(kernel) or hasattr(kernel, "compile"):
        raise ValueError(f"kernel: {kernel.name!r} has no register-only loop here")
    return _make(id_of(kernel), stamp_of(kernel))


def macs_per_step(kernel: Kernel) -> int:
    """Multiply-accumulates of one step of the register-only loop."""
    return kernel.row_tiles[0] * kernel.nr * kernel.step_depth


@numba.njit(nogil=True)
def repeat(address, times, args):
    """Call the C routine at an address `times` times; `args` is a tuple of its arguments, integers or
    pointers.
    """
    for _ in range(times):
        call_address(address, args)
