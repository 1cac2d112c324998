"""Arm's newer instructions: used where LLVM's code generator and the CPU both have them, and nowhere else."""

from __future__ import annotations

import llvmlite.binding as llvm
import pytest

from lowgemm.jit import arm, host

BOTH = {"dotprod", "i8mm"}
#: What LLVM says to Numba about a Neoverse N1.
LISTED = "+aes,+crc,+fp-armv8,+lse,+neon,-rand,+sha2,-sve"


@pytest.fixture(autouse=True, scope="module")
def _all_targets():
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


@pytest.mark.parametrize(
    "triple", ["aarch64-unknown-linux-gnu", "arm64-apple-darwin", "aarch64-pc-windows-msvc"]
)
@pytest.mark.parametrize(
    ("cpu", "features", "expected"),
    [
        ("cortex-a53", LISTED, set()),
        ("cortex-a72", LISTED, set()),
        ("neoverse-n1", LISTED, {"dotprod"}),
        ("neoverse-v1", LISTED, BOTH),
        ("neoverse-v2", LISTED, BOTH),
        ("apple-m1", LISTED, {"dotprod"}),
        ("apple-m2", LISTED, BOTH),
        ("generic", LISTED, set()),
        ("generic", "+neon,+dotprod", {"dotprod"}),
        ("neoverse-v1", "+neon,-i8mm", {"dotprod"}),
    ],
)
def test_what_llvm_generates_for_a_name(triple, cpu, features, expected):
    assert arm.generated(triple, cpu, features) == expected


@pytest.mark.parametrize(
    ("cpu", "features", "present", "expected"),
    [
        ("neoverse-v1", "+neon", BOTH, BOTH),
        ("neoverse-v1", "+neon", {"dotprod"}, {"dotprod"}),  # a virtual machine that hides one
        ("neoverse-v1", "+neon,+i8mm", set(), set()),  # forced on a CPU without
        ("neoverse-v1", "+neon", None, BOTH),  # the system does not say
        ("cortex-a53", "+neon", BOTH, set()),  # LLVM would give up
        ("generic", "+neon,+dotprod", BOTH, {"dotprod"}),
    ],
)
def test_both_must_have_it(monkeypatch, cpu, features, present, expected):
    monkeypatch.setattr(host, "arm_features", lambda: present)
    listed = frozenset(f[1:] for f in features.split(","))
    assert arm.usable(listed, "aarch64-unknown-linux-gnu", cpu, features) == expected | {"neon"}
