"""What LLVM says that a CPU's name implies, which llvmlite has no way to ask directly.

LLVM inlines a function into another only if the other's CPU has every feature of the first. So one small
function is written for each feature, a caller for the CPU in question calls them all, and what was inlined
says what it has. No machine code is made.
"""

from __future__ import annotations

import functools

import llvmlite.binding as llvm

#: Every named x86-64 CPU has it ("generic" implies nothing), and a name that LLVM does not know does not.
_COMMON = "cmov"


@functools.cache
def implied_features(name: str) -> frozenset[str]:
    """Features of an x86-64 CPU, among those whose names LLVM lists for this machine.

    Raises
    ------
    ValueError
        If LLVM knows no CPU of that name.

    Examples
    --------
    >>> sorted({"sse2", "cmov"} & implied_features("haswell"))
    ['cmov', 'sse2']
    """
    llvm.initialize_all_targets()
    features = sorted({_COMMON, "sse2", *llvm.get_host_cpu_features()})
    lines = ['target triple = "x86_64-unknown-linux-gnu"']
    for i, feature in enumerate(features):
        does = f"store volatile i32 {i}, ptr %p"
        lines.append(
            f'define internal void @f{i}(ptr %p) "target-features"="+{feature}" {{ {does}\n ret void }}'
        )
    # an unknown name implies not even 64 bits, for which LLVM ends the process
    lines.append(f'define void @caller(ptr %p) "target-cpu"="{name}" "target-features"="+64bit" {{')
    lines += [f"call void @f{i}(ptr %p)" for i in range(len(features))]
    module = llvm.parse_assembly("\n".join([*lines, "ret void }"]))
    machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(cpu="x86-64", opt=2)
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    body = str(module.get_function("caller"))
    found = frozenset(feature for i, feature in enumerate(features) if f"store volatile i32 {i}," in body)
    if _COMMON not in found and name != "generic":
        raise ValueError(
            f"NUMBA_CPU_NAME: LLVM knows no CPU called {name!r}; expected a name like 'haswell', 'znver4' or "
            "'generic'"
        )
    return found
