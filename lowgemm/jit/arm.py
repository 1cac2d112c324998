"""Which of Arm's newer instructions Numba's code may use.

LLVM's list of an Arm host's features leaves out ``dotprod`` and ``i8mm``, although every CPU since the
Neoverse N1 and Apple's M1 has the former. Its code generator takes them from the CPU's name. So both are
asked: the generator, since an instruction that it does not take ends the process, and the CPU
(`host.arm_features`), since one that it lacks ends the process too.
"""

from __future__ import annotations

import llvmlite.binding as llvm

from lowgemm.jit import host

#: Feature -> how the first operand of the dot product below is widened, and the instruction that it becomes
#: with the feature.
_PROBES = {"dotprod": ("sext", "sdot"), "i8mm": ("zext", "usdot")}
#: A dot product in plain LLVM IR: with the feature it is one instruction, without it many, and never an
#: error.
_DOT = """
target triple = "{triple}"
declare i32 @llvm.vector.reduce.add.v16i32(<16 x i32>)
define i32 @dot(<16 x i8> %a, <16 x i8> %b) {{
  %x = {widen} <16 x i8> %a to <16 x i32>
  %y = sext <16 x i8> %b to <16 x i32>
  %p = mul <16 x i32> %x, %y
  %s = call i32 @llvm.vector.reduce.add.v16i32(<16 x i32> %p)
  ret i32 %s
}}
"""
#: Architectures as triples spell them: Linux and Windows, and Apple.
NAMES = ("aarch64", "arm64")


def generated(triple: str, name: str, features: str) -> frozenset[str]:
    """Which of ``dotprod`` and ``i8mm`` LLVM's code generator uses for a CPU (4 ms)."""
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=name, features=features, opt=2)
    found = set()
    for feature, (widen, instruction) in _PROBES.items():
        assembly = machine.emit_assembly(llvm.parse_assembly(_DOT.format(triple=triple, widen=widen)))
        if f"\t{instruction}" in assembly:
            found.add(feature)
    return frozenset(found)


def usable(listed: frozenset[str], triple: str, name: str, features: str) -> frozenset[str]:
    """Features of an Arm target: those listed, with ``dotprod`` and ``i8mm`` where both the generator and the
    CPU have them.
    """
    found = (listed - _PROBES.keys()) | generated(triple, name, features)
    present = host.arm_features()
    return found if present is None else found - (_PROBES.keys() - present)
