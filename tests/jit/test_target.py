"""Every x86 kernel runs for real, in processes whose Numba target is an older CPU."""

from __future__ import annotations

import os
import pathlib
import platform
import subprocess
import sys

import pytest
from patience import PATIENCE

from lowgemm import kernels
from lowgemm.jit import target as target_module
from lowgemm.jit.target import available_features, target

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the forced targets are x86 CPUs"
)

#: Forced CPU name -> the kernel that must be chosen there, given that the host has all of its features. Names
#: whose other features LLVM uses by itself (sapphirerapids: AVX512-FP16) end with an illegal instruction
#: elsewhere. Of the CPUs before AVX there is one without SSE4.1, which rounds to even by itself, and one with
#: it.
TARGETS = {
    "generic": "x86_sse2",
    "nehalem": "x86_sse2",
    "haswell": "x86_avx2",
    "skylake-avx512": "x86_avx512bw",
    "cascadelake": "x86_avx512vnni",
    "alderlake": "x86_avxvnni",
}
#: Where NaN and infinity are looked at too: one target for each way to compare and to round, by SSE2 and
#: by AVX2. By AVX-512 `test_nonfinite.py` looks at them wherever that could be forced.
NONFINITE = {"generic", "haswell"}
#: Where all kernels run that can, not only the chosen one. With AVX-512 the others are compiled as they are
#: here, where each test of kernels runs them.
ALL_KERNELS = {"generic", "nehalem", "haswell"}


def run(cpu: str, *wanted: str, features: str | None = "") -> subprocess.CompletedProcess:
    env = {**os.environ, "NUMBA_CPU_NAME": cpu}
    env.pop("NUMBA_CPU_FEATURES", None)
    if features is not None:
        env["NUMBA_CPU_FEATURES"] = features
    script = pathlib.Path(__file__).parents[1] / "forced_target.py"
    call = [sys.executable, script, *wanted]
    return subprocess.run(call, env=env, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.parametrize("cpu", TARGETS)
def test_forced_cpu(cpu):
    needed = kernels.by_name(TARGETS[cpu]).features
    if not set(needed) <= target()[1]:
        pytest.skip(f"this machine cannot run {TARGETS[cpu]}: it needs {', '.join(needed)}")
    done = run(cpu, *["nonfinite"] * (cpu in NONFINITE), *["default"] * (cpu not in ALL_KERNELS))
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"default kernel {TARGETS[cpu]}" in done.stdout
    assert ("NaN and infinity as documented" in done.stdout) == (cpu in NONFINITE)


def test_name_alone_uses_only_what_name_and_host_share():
    """`NUMBA_CPU_NAME=alderlake` on a machine without the VEX form of vpdpbusd must not emit it.

    With the form (Alder Lake, Zen 5 and later) `test_forced_cpu` runs it for real; without it,
    `test_kernels.py` reads its assembly and runs its tiles by the EVEX form and in plain IR.
    """
    known = "avxvnni" in target()[1]
    done = run("alderlake", "choice" if known else "default", features=None)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = "x86_avxvnni" if known else "x86_avx2"
    assert f"default kernel {expected}" in done.stdout or "avx2" not in target()[1]


def test_forcing_what_the_target_lacks_is_an_error_not_an_abort():
    code = "import numpy as np, lowgemm; x = np.ones((2, 2), np.uint8); lowgemm.gemm(x, x)"
    env = {**os.environ, "NUMBA_CPU_NAME": "generic", "LOWGEMM_KERNEL": "x86_avx512vnni"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 1
    assert "ValueError: kernel: 'x86_avx512vnni' needs avx512f" in done.stderr


@pytest.mark.parametrize(
    ("arch", "name", "features", "forced", "has", "lacks"),
    [
        ("x86_64", "znver4", "+avx2,+avx512vnni,-avxvnni", False, "avx512vnni", "avxvnni"),
        ("x86_64", "generic", "", True, "sse2", "avx2"),
        ("x86_64", "alderlake", "", True, "avxvnni", "avx512f"),
        ("x86_64", "haswell", "+avx2,+avx512f", True, "avx2", "avx512f"),
        ("x86_64", "unheard-of", "+avx2", False, "avx2", "avx512f"),
        ("x86_64", "sapphirerapids", "", True, "amx-int8", "avxvnniint8"),
        ("x86_64", "znver3", "", True, "avx2", "avx512f"),
        ("aarch64", "neoverse-n1", "+neon,+dotprod", False, "dotprod", "sse2"),
    ],
)
def test_available_features(arch, name, features, forced, has, lacks):
    found = available_features(arch, name, features, name_forced=forced)
    assert has in found and lacks not in found


@pytest.mark.parametrize("features", ["", "+avx2"])
def test_a_name_that_llvm_does_not_know_is_refused(features):
    with pytest.raises(ValueError, match=r"^NUMBA_CPU_NAME: LLVM knows no CPU called 'unheard-of'"):
        available_features("x86_64", "unheard-of", features, name_forced=True)


@pytest.mark.parametrize(
    ("features", "name"),
    [
        ({"sse2"}, "llvm.rint.f32"), ({"sse2", "sse4.1", "avx2"}, "llvm.roundeven.f32"),
        ({"neon"}, "llvm.roundeven.f32"), (set(), "llvm.roundeven.f32"),
    ],
)  # fmt: skip
def test_rounding_where_windows_has_no_function_for_it(features, name, monkeypatch):
    monkeypatch.setattr(target_module, "target", lambda: ("a CPU", frozenset(features)))
    assert target_module.round_even_name("f32") == name


def test_rounding_on_a_cpu_without_an_instruction_for_it(tmp_path):
    code = """
import numpy as np, numba
from lowgemm.jit.memory import round_even
f = numba.njit(lambda x: round_even(x))
x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 2.4999998, 8388609.0, np.inf, 1e-30])
for kind in (np.float32, np.float64):
    got = np.array([f(kind(v)) for v in x])
    assert (got == np.rint(x.astype(kind))).all() and (np.signbit(got) == np.signbit(x)).all()
text = "".join(f.inspect_llvm().values())
print("roundeven" in text, "rint" in text)
"""
    env = {
        **os.environ,
        "NUMBA_CPU_NAME": "core2",
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr[-1500:]
    assert done.stdout.split() == ["False", "True"]
