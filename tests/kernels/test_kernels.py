"""Microkernels: their contract, their machine code, and the Arm ones under emulation."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys
import warnings
from collections import Counter

import numpy as np
import pytest
from patience import PATIENCE

import lowgemm
from lowgemm import kernels
from lowgemm.kernels import __main__ as command
from lowgemm.kernels import vnni, x86_avxvnni
from lowgemm.kernels.__main__ import main
from lowgemm.kernels.framework.kernel import Kernel
from lowgemm.kernels.tools import cross, peak, verify
from lowgemm.kernels.tools.cases import cases

HOOKED = [k for k in kernels.all_kernels() if k.name in cross.TARGETS and type(k).emit is Kernel.emit]
ARM = [k for k in HOOKED if k.compiled_for.emulator]


def test_every_real_kernel_is_covered_here():
    named = {k.name for k in kernels.all_kernels() if not k.name.startswith("test_")}
    assert named == {name for name in cross.TARGETS if not name.startswith("test_")} | {"portable"}


def test_contract(any_kernel):
    assert verify.verify_native(kernels.by_name(any_kernel)) == 0


def test_vectors_reach_every_tile():
    kernel = kernels.by_name("portable")
    found = list(cases(kernel, count=60))
    assert {v.m for v in found} >= set(range(1, 2 * kernel.mr + 3)) and {v.add_c for v in found} == {0, 1}
    assert any(v.groups == 0 for v in found)


#: One part of the contract at a time, changed after the right answer was computed.
PARTS = {
    "one row compensation": lambda v: dataclasses.replace(
        v, row_compensation=v.row_compensation + (np.arange(v.m) == v.m - 1)
    ),
    "one column compensation": lambda v: dataclasses.replace(
        v, col_compensation=v.col_compensation + (np.arange(v.col_compensation.size) == 0)
    ),
    "the lhs panel": lambda v: dataclasses.replace(v, lhs=v.lhs ^ 1),
    "the rhs panel": lambda v: dataclasses.replace(v, rhs=v.rhs ^ 1),
    "the depth": lambda v: dataclasses.replace(v, groups=max(v.groups - 1, 0)),
    "whether c is added": lambda v: dataclasses.replace(v, add_c=1 - v.add_c),
    "a row less": lambda v: dataclasses.replace(v, m=v.m - 1) if v.m > 1 else v,
    "the stride of c": lambda v: dataclasses.replace(v, ldc=v.ldc - 1) if v.m > 1 else v,
    "one bit of one result": lambda v: dataclasses.replace(
        v, expected=v.expected ^ (np.arange(v.expected.size) == 0).reshape(v.expected.shape)
    ),
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_vectors_tell_right_from_wrong(monkeypatch, part):
    """A kernel that errs in that part and the verifier: the vectors ask for every part, and the verifier
    counts.
    """

    def changed(kernel, **more):
        for v in cases(kernel, **more):
            other = PARTS[part](v)
            as_before = {
                name: getattr(v, name).dtype
                for name in ("row_compensation", "col_compensation", "lhs", "rhs", "expected")
            }
            yield dataclasses.replace(other, **{n: getattr(other, n).astype(d) for n, d in as_before.items()})

    monkeypatch.setattr(verify, "cases", changed)
    wrong = verify.verify_native(kernels.by_name("portable"), count=60)
    assert wrong == 60 if part == "one bit of one result" else wrong > 20


def test_the_emulated_verifier_counts(monkeypatch):
    absent = verify.missing_tools()
    if absent:
        pytest.skip(f"does not work here: {', '.join(absent)} ({verify.PACKAGES})")
    monkeypatch.setattr(verify, "cases", lambda *a, **m: map(PARTS["one bit of one result"], cases(*a, **m)))
    assert verify.verify_emulated(ARM[0], count=20) == 20
    assert main(["verify", "--target", "aarch64"]) == 1


def test_the_command_fails_where_a_kernel_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(verify, "cases", lambda *a, **m: map(PARTS["one bit of one result"], cases(*a, **m)))
    assert main(["verify"]) == 1
    assert "portable: 200 wrong elements" in capsys.readouterr().out


@pytest.mark.parametrize("kernel", HOOKED, ids=lambda k: k.name)
def test_depth_loop(kernel):
    """The instruction is there, as often as the tile wants it, and nothing is spilled."""
    assembly, code = cross.compile_for(kernel)
    assert code[:4] == b"\x7fELF"
    loops = cross.depth_loops(assembly, kernel.expect)
    assert len(loops) >= len(kernel.row_tiles) * kernel.max_nv
    for loop in loops:
        assert cross.spills(loop) == [], f"{kernel.name} spills in a depth loop"
    # the main tile: one instruction for each accumulator (LLVM may unroll further)
    accumulators = kernel.mr // kernel.lhs_rows * kernel.max_nv * len(kernel.zero()) * kernel.unroll
    counts = [sum(kernel.expect in line for line in loop) for loop in loops]
    assert any(count >= accumulators and count % accumulators == 0 for count in counts), counts


#: A vector register of x86 or Arm.
_VECTOR = re.compile(r"%[xyz]mm|\b[vq]\d+\b")


def arithmetic(loop: list[str]) -> Counter:
    """Instructions of a loop that compute on vectors: no loads, stores, copies, broadcasts of loads or loop
    counting.
    """
    lines = [line.removeprefix("{vex}").strip() for line in loop]
    opcodes = [line.split()[0].replace("shufps", "pshufd") for line in lines if _VECTOR.search(line)]
    return Counter(op for op in opcodes if not re.match(r"v?mov|v?p?broadcast|ld|st|mov|dup|fmov|ext", op))


@pytest.mark.parametrize("kernel", HOOKED, ids=lambda k: k.name)
def test_register_loop_is_the_same_mix_without_loads(kernel):
    """The peak that the microkernel is measured against has all of its arithmetic, and touches no memory."""
    target = kernel.compiled_for
    [loop] = cross.depth_loops(
        cross.compile_ir(peak.module_ir(kernel, target.triple), target)[0], kernel.expect
    )
    loop = [line for line in loop if not line.startswith("#")]
    assert not [line for line in loop if re.search(r"\(%|\[", line)]
    loops = cross.depth_loops(cross.compile_for(kernel)[0], kernel.expect)
    main = arithmetic(max(loops, key=lambda body: (sum(kernel.expect in line for line in body), -len(body))))
    one = arithmetic(loop)
    assert one.total() >= kernel.row_tiles[0] // kernel.lhs_rows * kernel.max_nv
    turns = sum(n for op, n in main.items() if kernel.expect in op) // sum(
        n for op, n in one.items() if kernel.expect in op
    )
    assert {op: n * turns for op, n in one.items()} == main


@pytest.mark.parametrize(
    ("name", "cpu", "instruction"),
    [
        *(("x86_avx512vnni", cpu, "vpdpbusd") for cpu in ("cascadelake", "icelake-server", "sapphirerapids",
                                                          "znver4", "znver5")),
        ("x86_avx512bw", "skylake-avx512", "vpmaddwd"),
        ("x86_avx512bw", "icelake-server", "vpdpwssd"),  # LLVM fuses pmaddwd and the addition where it can
    ],
)  # fmt: skip
def test_512_bits_stay_512_bits(name, cpu, instruction):
    """Intel CPUs prefer 256-bit vectors in LLVM's eyes; the kernel must not be split."""
    kernel = kernels.by_name(name)
    assembly, _ = cross.compile_for(kernel, cross.Target("x86_64-unknown-linux-gnu", cpu))
    loops = cross.depth_loops(assembly, instruction)
    assert len(loops) >= len(kernel.row_tiles) * kernel.max_nv
    for loop in loops:
        assert all("zmm" in line for line in loop if instruction in line)
        assert not any("ymm" in line for line in loop) and cross.spills(loop) == []


#: What came with SSSE3 and SSE4.1.
AFTER_SSE2 = re.compile(
    r"p(shufb|alignr|sign|abs|maddubsw|mulhrsw|h(add|sub)\w*)"
    r"|p(mulld|muldq|minsb|minsd|minu[wd]|maxsb|maxsd|maxu[wd])|packusdw|pmov[sz]x\w+|p?blend\w+|ptest"
    r"|pcmpeqq|pinsr[bdq]|pextr[bdq]|insertps|extractps|round[ps][sd]|dpp[sd]|movntdqa|mpsadbw"
)


@pytest.mark.parametrize("cpu", ["x86-64", "core2"])
def test_sse2_needs_no_more_than_it_says(cpu):
    """Nor where LLVM may take more: Core 2 has SSSE3."""
    assert all(map(AFTER_SSE2.match, ["pshufb", "palignr", "pblendw", "pmovzxbw", "pmulld", "pextrd"]))
    assert not any(map(AFTER_SSE2.match, ["pshufd", "pmaddwd", "punpckldq", "pminub", "packssdw", "pextrw"]))
    kernel = kernels.by_name("x86_sse2")
    assert kernel.features == ("sse2",)
    assembly, _ = cross.compile_for(kernel, cross.Target("x86_64-unknown-linux-gnu", cpu))
    names = set(re.findall(r"^\s+([a-z]\w*)", assembly, re.M))
    assert {"pmaddwd", "pshufd", "paddd"} <= names
    assert not [n for n in names if n.startswith("v") or AFTER_SSE2.match(n)]


def test_the_old_name_forces_a_renamed_kernel(monkeypatch):
    kernel = kernels.by_name("x86_sse2")
    if kernels.missing_features(kernel):
        pytest.skip("needs sse2")
    monkeypatch.setattr(lowgemm.config, "kernel", "x86_sse41")
    with pytest.warns(FutureWarning, match="^kernel: 'x86_sse41' is now called 'x86_sse2'"):
        assert kernels.by_name("x86_sse41") is kernel
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        x = np.full((5, 7), 255, np.uint8)
        assert (lowgemm.gemm(x, x.T) == 7 * 255 * 255).all()
        assert "x86_sse2 (forced" in str(lowgemm.explain(x, x.T)) and lowgemm.pack_rhs(x).kernel == "x86_sse2"


def test_avxvnni_uses_the_vex_form():
    """The code for Alder Lake has no 512-bit register, no EVEX-only register and no mask."""
    loops = cross.depth_loops(cross.compile_for(kernels.by_name("x86_avxvnni"))[0], "vpdpbusd")
    text = "\n".join("\n".join(loop) for loop in loops)
    assert (
        "{vex}" in text and "ymm" in text and "zmm" not in text and "%ymm16" not in text and "%k" not in text
    )


TWIN = kernels.register(
    dataclasses.replace(x86_avxvnni.KERNEL, name="test_vnni_256", features=("avx512vl", "avx512vnni"))
)


def test_avxvnni_tiles_run_in_their_evex_twin(monkeypatch):
    """Same hooks, tile and IR as x86_avxvnni, on CPUs that have the EVEX form of the 256-bit instruction."""
    missing = kernels.missing_features(TWIN)
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    assert verify.verify_native(TWIN) == 0
    monkeypatch.setattr(lowgemm.config, "kernel", TWIN.name)
    a = np.random.default_rng(0).integers(0, 256, (50, 70), dtype=np.uint8)
    np.testing.assert_array_equal(lowgemm.gemm(a, a.T), a.astype(int) @ a.T.astype(int))


PLAIN = [kernels.in_software(kernels.by_name(name)) for name in ("x86_avxvnni", "x86_avxvnniint8")]


@pytest.mark.parametrize("twin", PLAIN, ids=lambda k: k.name)
def test_short_vnni_tiles_run_on_any_cpu(monkeypatch, twin):
    """The product in plain IR, all else of the program the same; also below whole products of every pair of
    signs.
    """
    assert twin.features == () and verify.verify_native(twin) == 0
    monkeypatch.setattr(lowgemm.config, "kernel", twin.name)
    x = np.random.default_rng(0).integers(0, 256, (50, 70), dtype=np.uint8)
    for a in (x, x.view(np.int8)):
        for b in (x.T, x.view(np.int8).T):
            np.testing.assert_array_equal(lowgemm.gemm(a, b), a.astype(int) @ b.astype(int))


def test_a_plain_product_of_other_signs_is_noticed(monkeypatch):
    twin = PLAIN[0]
    monkeypatch.setattr(verify, "cases", lambda k, **m: cases(PLAIN[1], **m))
    assert verify.verify_native(twin, count=60) > 0


@pytest.mark.parametrize("kernel", ARM, ids=lambda k: k.name)
def test_arm_kernels_under_emulation(kernel):
    absent = verify.missing_tools()
    if absent:
        pytest.skip(f"does not work here: {', '.join(absent)} ({verify.PACKAGES})")
    assert verify.verify_emulated(kernel) == 0


def test_missing_tools_are_named(monkeypatch, capsys):
    monkeypatch.setattr(verify, "EMULATOR", "no-such-emulator")
    with pytest.raises(FileNotFoundError, match="no-such-emulator"):
        verify.verify_emulated(ARM[0])
    assert main(["verify", "--target", "aarch64"]) == 2
    assert "no-such-emulator" in capsys.readouterr().out


def test_each_kernel_is_a_file_of_its_name_that_says_what_it_does():
    """Equation, both packed panels, and the description itself, where a porter looks for them."""
    for kernel in kernels.all_kernels():
        if kernel.name.startswith("test_"):
            continue
        module = importlib.import_module(f"lowgemm.kernels.{kernel.name}")
        assert module.KERNEL is kernel
        assert "+=" in module.__doc__
        assert "lhs panel" in module.__doc__ and "rhs panel" in module.__doc__, kernel.name


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kr": 3}, "^kr: expected groups of 1, 2, 4, 8 or 16 bytes.* got 3 steps of s8, 3 bytes"),
        ({"kr": 32}, "^kr: .* got 32 steps"),
        ({"kr": 0}, "^kr: expected at least 1"),
        ({"lhs_type": "s16"}, "^rhs_type: expected 16 bits on both sides or on neither"),
        ({"lhs_type": "u4"}, "^lhs_type: expected 'u8' or 's8' or 's16'.*got 'u4'"),
        ({"lhs_type": "u8 or s8"}, "^lhs_type: "),
        ({"row_bytes": 64}, "^lhs_type: expected 'u8 or s8'"),
        ({"row_bytes": 48, "lhs_type": "u8 or s8"}, "^row_bytes: expected a multiple of 64"),
        ({"row_tiles": (16, 1)}, "^row_tiles: "),
        ({"least_rows": 4}, "^fallback: "),
    ],
)
def test_a_description_that_cannot_work_is_refused(changes, says):
    fields = {"name": "x", "features": (), "mr": 8, "lanes": 8, "max_nv": 2, "kr": 4}
    with pytest.raises(ValueError, match=says):
        vnni.Vnni(**{**fields, **changes})


def test_registering_a_name_twice():
    with pytest.raises(ValueError, match="name"):
        kernels.register(kernels.by_name("portable"))


def test_register_loop_needs_hooks():
    with pytest.raises(ValueError, match="portable"):
        peak.register_loop(kernels.by_name("portable"))


def test_command_line(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(k.name in listed for k in HOOKED) and "runs here" in listed
    assert main(["x86_avxvnni", "--asm"]) == 0
    assert "vpdpbusd" in capsys.readouterr().out
    assert main(["arm_i8mm", "--ll"]) == 0
    assert "usmmla" in capsys.readouterr().out
    assert main(["portable"]) == 0
    assert "0 wrong elements" in capsys.readouterr().out
    assert main(["nonsense"]) == 2
    assert main(["portable", "--asm"]) == 2


@pytest.mark.parametrize("name", cross.TARGETS)
def test_the_command_shows_every_fused_store(capsys, name):
    """Each kernel's, in a loop of its own or beside the products, or the word that there is none."""
    kernel = kernels.by_name(name)
    assert main([name, "--asm"]) == 0
    shown, said = capsys.readouterr()
    if kernel.fuses_requantize:
        assert "# fused store" in shown and kernel.expect_fused in shown and kernel.expect_fused in said
        assert ("beside the products" in said) == kernel.defers_requantize
    else:
        assert "fused store: none" in said and kernel.expect_fused not in shown


def test_a_tile_that_spills_in_its_fused_store_is_found():
    """14 x 32 fits the registers for int32 and not beside the scaling of a register."""
    fields = {"name": "test_14x32", "mr": 14, "max_nv": 2, "row_tiles": (14, 8, 4, 2, 1)}
    kernel = dataclasses.replace(kernels.by_name("x86_avx512vnni"), **fields)
    plain = max(
        cross.depth_loops(cross.compile_for(kernel)[0], kernel.expect),
        key=lambda loop: sum("vpdpbusd" in x for x in loop) - len(loop) / 1000,
    )
    assert sum("vpdpbusd" in line for line in plain) == 28 and not cross.spills(plain)
    assert command._assembly(kernel) == 1


def test_immediates_of_arm_are_shown():
    """`#16` is a number there, `# text` a comment elsewhere."""
    for name, wanted in (
        ("arm_dotprod", r"add\s+x\d+, x\d+, #\d+"),
        ("x86_avx2", r"^add[ql]\s+\$\d+, %\w+$"),
    ):
        kernel = kernels.by_name(name)
        loops = cross.depth_loops(cross.compile_for(kernel)[0], kernel.expect)
        assert any(re.search(wanted, line) for loop in loops for line in loop), name
        assert not [line for loop in loops for line in loop if re.search(r"# \w|//", line)]


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "lowgemm.kernels"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0 and "portable" in done.stdout


@pytest.mark.parametrize("name", ["x86_avx512vnni", "x86_avx512bw"])
def test_fused_requantization_is_vector_code(name):
    """Products of 8 sums at a time on 512-bit registers, and 16 results narrowed by one store."""
    kernel = kernels.by_name(name)
    assert kernel.fuses_requantize
    assembly, _ = cross.compile_for(kernel)
    products = [line for line in assembly.splitlines() if "vpmuldq" in line]
    assert products and all("zmm" in line for line in products)
    main_tile = kernel.mr * kernel.max_nv
    assert len(products) >= 2 * main_tile
    assert sum("vpmovdb" in line and "(" in line for line in assembly.splitlines()) >= main_tile


@pytest.mark.parametrize("name", ["x86_avx512vnni"])
def test_scaling_overlaps_with_the_depth_loop(name):
    """A loop of the main tile's products also scales, bounds and stores a register of the tile before, and
    nothing spills.
    """
    kernel = kernels.by_name(name)
    assert kernel.defers_requantize
    assembly, _ = cross.compile_for(kernel)
    loops = cross.depth_loops(assembly, kernel.expect)
    tile = kernel.row_tiles[0] * kernel.max_nv

    def count(loop, mnemonic):
        return sum(mnemonic in line and "zmm" in line for line in loop)

    both = [loop for loop in loops if count(loop, kernel.expect) == tile and count(loop, "vpmuldq") == 2]
    assert len(both) == 1
    for mnemonic, times in {"vpsravd": 1, "vpmaxsd": 1, "vpminsd": 1, "vpmovdb": 1, "vpcmp": 0}.items():
        assert count(both[0], mnemonic) == times, mnemonic
    assert not cross.spills(both[0])


@pytest.mark.parametrize("rounding", ["gemmlowp", "onnx"])
def test_fused_and_tiled_requantization_agree(monkeypatch, rounding):
    """The same bytes from the kernel's registers and from the routine on a tile."""
    fused = [k for k in kernels.all_kernels() if k.fuses_requantize and not kernels.why_not(k)]
    if not fused:
        pytest.skip("no kernel with 512-bit registers runs here")
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 256, (45, 77), dtype=np.uint8), rng.integers(-128, 128, (77, 130), dtype=np.int8)
    output = [
        lowgemm.BiasAddition(rng.integers(-5000, 5000, 130)),
        lowgemm.Requantize(2.0 ** -rng.uniform(5, 12, 130), 9, np.int8, rounding=rounding),
    ]
    expected = lowgemm.requantize(lowgemm.gemm(a, b), output)
    for kernel in fused:
        monkeypatch.setattr(lowgemm.config, "kernel", kernel.name)
        assert lowgemm.explain(a, b, output=output).plan.fused
        np.testing.assert_array_equal(lowgemm.gemm(a, b, output=output), expected)
        wide = np.zeros((90, 400), np.int8)
        lowgemm.gemm(a, b, output=output, out=wide[::2, 7:137])
        np.testing.assert_array_equal(wide[::2, 7:137], expected)
        wide[::2, 7:137] = 0
        assert not wide.any(), "wrote outside out"
