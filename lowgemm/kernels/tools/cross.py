"""Code for any CPU that LLVM knows: assembly and object files of microkernels and of what Numba compiled for
this one.

Tests read the assembly (the expected instruction, no stack spill, full register width), and `verify.py` runs
Arm objects under emulation.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from lowgemm.jit.disk_cache import linkable
from lowgemm.kernels import all_kernels
from lowgemm.kernels.framework.kernel import ARGUMENTS, POINTERS, Kernel, Target, i8, i64
from lowgemm.kernels.framework.unroll import emit_microkernel

#: The CPU that each kernel names.
TARGETS: dict[str, Target] = {k.name: k.compiled_for for k in all_kernels() if k.compiled_for is not None}


def module_ir(
    kernel: Kernel,
    triple: str,
    symbol: str = "kernel",
    lhs_signed: bool = False,
    scattered: bool = False,
) -> str:
    """LLVM IR of a module with the kernel as one C function."""
    module = ir.Module(name=kernel.name)
    module.triple = triple
    types = [i8.as_pointer() if a in POINTERS else i64 for a in ARGUMENTS]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), types), symbol)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    args = dict(zip(ARGUMENTS, function.args, strict=True))
    emit_microkernel(kernel, builder, args, lhs_signed, scattered=scattered)
    builder.ret_void()
    return str(module)


@functools.cache
def compile_for(
    kernel: Kernel,
    target: Target | None = None,
    symbol: str = "kernel",
    lhs_signed: bool = False,
    scattered: bool = False,
) -> tuple[str, bytes]:
    """Assembly and object code of a kernel for a CPU.

    Parameters
    ----------
    kernel : Kernel
        A kernel with tile hooks.
    target : Target, optional
        The one of `TARGETS` if left out.
    symbol : str
        Name of the C function.
    lhs_signed : bool
        Which one, of a kernel that takes both signs.
    scattered : bool
        Whether the one for a scattered lhs, of a kernel that has it.

    Returns
    -------
    (str, bytes)
        Assembly text and relocatable object.
    """
    target = target or kernel.compiled_for
    if target is None:
        raise ValueError(f"kernel: {kernel.name!r} names no CPU to compile for (`compiled_for`)")
    return compile_ir(module_ir(kernel, target.triple, symbol, lhs_signed, scattered), target)


def compile_ir(text: str, target: Target) -> tuple[str, bytes]:
    """Assembly and object code of a module for a CPU."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()

    def built() -> tuple[llvm.ModuleRef, llvm.TargetMachine]:
        machine = llvm.Target.from_triple(target.triple).create_target_machine(
            cpu=target.cpu, features=target.features, opt=3, reloc="pic", codemodel="default"
        )
        module = llvm.parse_assembly(text)
        module.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        passes = llvm.create_pass_builder(machine, options)
        passes.getModulePassManager().run(module, passes)
        return module, machine

    module, machine = built()
    assembly = machine.emit_assembly(module)
    module, machine = built()  # printing assembly spends the module
    return assembly, machine.emit_object(module)


def routine_ir(routine: Any, triple: str, symbol: str) -> str:
    """LLVM IR of a routine that Numba compiled for this CPU, as a C function of that name for another one.

    For routines of scalar code and plain vectors (the portable kernel's): intrinsics of this CPU would stay.
    What the routine needs of Numba's runtime stays undefined.
    """
    compiled = getattr(routine, "compiled", routine)
    module = llvm.parse_bitcode(linkable(compiled._library).as_bitcode())
    for function in module.functions:
        if function.name == compiled.native_name:
            function.name, function.linkage = symbol, "external"
        elif not function.is_declaration:
            function.linkage = "internal"
    module.triple = triple
    text = re.sub(r"^target datalayout = .*$", "", str(module), flags=re.MULTILINE)
    text = re.sub(r'"(?:target-cpu|target-features|probe-stack)"="[^"]*"', "", text)
    # The runtime counts references by an x86 intrinsic; elsewhere this is a function like any other.
    return text.replace("@llvm.x86.atomic.sub.cc.i64", "@count_down").replace("immarg", "")


_LABEL = re.compile(r"^([.\w$]+):")
_JUMP = re.compile(r"^\s+(?:j\w+|b|b\.\w+|cbn?z\s+\w+,|tbn?z\s+\w+,\s*#\w+,)\s+([.\w$]+)\s*$")
#: A spilled register lies at a fixed place; an address with an index register is a buffer (see
#: `framework/deferred.py`).
_STACK = re.compile(r"\(%[re]sp\)|\[sp\b")


def depth_loops(assembly: str, instruction: str) -> list[list[str]]:
    """Innermost loops that contain an instruction: the depth loops of each tile."""
    # a comment is "# text" on x86 and "// text" on Arm, where "#16" is a number
    lines = [re.split(r"\s#\s|//", line)[0].rstrip() for line in assembly.splitlines()]
    where: dict[str, int] = {}
    loops = []
    for i, line in enumerate(lines):
        label = _LABEL.match(line)
        if label:
            where[label.group(1)] = i
        jump = _JUMP.match(line)
        if jump and jump.group(1) in where:
            loops.append((where[jump.group(1)], i))
    inner = [(a, b) for a, b in loops if not any(a <= c and d <= b and (c, d) != (a, b) for c, d in loops)]
    bodies = [[line.strip() for line in lines[a + 1 : b + 1] if line.startswith("\t")] for a, b in inner]
    return [body for body in bodies if any(instruction in line for line in body)]


def fused_loops(kernel: Kernel, assembly: str) -> list[list[str]]:
    """Innermost loops that scale finished sums to bytes; the part of the fused store that runs inside a depth
    loop is among them.
    """
    return depth_loops(assembly, kernel.expect_fused) if kernel.fuses_requantize else []


def spilled_vectors(loop: list[str]) -> list[str]:
    """The spilled registers of a loop that are vectors: an address that waits on the stack costs little
    beside a tile's scaling.
    """
    return [line for line in spills(loop) if re.search(r"%[xyz]mm", line)]


def spills(loop: list[str]) -> list[str]:
    """Instructions of a loop that use a fixed place on the stack: spilled registers."""
    return [line for line in loop if _STACK.search(line)]
