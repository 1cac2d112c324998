"""Each module's test is found by its name: `lowgemm/room/part.py` is tested in `tests/room/test_part.py`.

What is tested elsewhere is listed here, with the file to open and why. A new module needs a test of its name, or a line.
"""

from __future__ import annotations

import fnmatch
import pathlib

import lowgemm

ROOT = pathlib.Path(lowgemm.__file__).parent
TESTS = pathlib.Path(__file__).parent
EVERY_KERNEL = "is emitted code, which only a whole product on each kernel can test"
CHAIN = "is a step of a product: its own test would say again what the product is"
#: Modules by pattern: where they are tested, and why there.
ELSEWHERE: dict[str, tuple[str, str]] = {
    # the root
    "npz": ("nn/test_files.py", "reads and writes the files of networks and optimizers, whose tests damage each part"),
    "requantize": ("output/test_requantize.py", "is the output pipeline without a product"),
    "reference_fixedpoint": ("fixedpoint/test_fixedpoint.py", "is the definition that the fast functions are compared with"),
    # blockwise
    "blockwise/codebook": ("blockwise/test_codebooks.py", "books are compared through the functions that use them"),
    "blockwise/levels": ("blockwise/test_codebooks.py", "makes the levels of those books"),
    "blockwise/coded": ("blockwise/test_coding.py", "is what coding gives"),
    "blockwise/emit": ("blockwise/test_coding.py", "is the emitted code of coding, compared on every target"),
    "blockwise/spans": ("blockwise/test_coding.py", "are the steps of coding a block"),
    "blockwise/routines": ("blockwise/test_coding.py", "are the tasks of coding"),
    "blockwise/packed4": ("blockwise/test_four_bit.py", "packs the weights of that product"),
    "blockwise/product4": ("blockwise/test_four_bit.py", "is that product"),
    "blockwise/rowjob": ("blockwise/test_four_bit.py", "hands out the columns of that product"),
    "blockwise/rowstore": ("blockwise/test_four_bit.py", "is the end of that product"),
    "blockwise/rowtile": ("blockwise/test_four_bit.py", "is the emitted code of that product, compared on every kernel"),
    "blockwise/reference": ("blockwise/test_coding.py", "is the definition that coding is compared with"),
    "blockwise/reference_optimizers": ("blockwise/test_optimizers.py", "is the definition of the steps"),
    "blockwise/rules": ("blockwise/test_optimizers.py", "are the rules of the steps"),
    "blockwise/steps": ("blockwise/test_optimizers.py", "is the loop of the steps"),
    "blockwise/state": ("blockwise/test_optimizers.py", "is the state that steps change"),
    "blockwise/optimizer": ("blockwise/test_optimizers.py", "is what all optimizers share"),
    "blockwise/vectorwise": ("blockwise/test_mixed.py", "codes the rows of that product"),
    # checks
    "checks/onnx": ("compat/test_onnx.py", "checks the arguments of these operators"),
    "checks/values": ("checks/test_arguments.py", "arguments are made of values"),
    # command line
    "cli/*": ("cli/test_cli.py", "commands are tested as they are called, by one file"),
    # compat
    "compat/onnx_passes": ("onnx_run/test_onnx_passes.py", "is used by the runner, which has the models to test it with"),
    # engine
    "engine/array_objects": ("engine/test_zero_points.py", "reads NumPy's objects in compiled code, as these do"),
    "engine/batch": ("test_gemm.py", CHAIN),
    "engine/call": ("test_gemm.py", CHAIN),
    "engine/compensation": ("test_gemm.py", CHAIN),
    "engine/entry": ("engine/test_ready.py", "is Python's way into a remembered call"),
    "engine/packing": ("engine/test_packed_rhs.py", "what is packed is unpacked again, on every kernel"),
    "engine/packing_ir": ("test_gemm.py", CHAIN),
    "engine/plan": ("test_gemm.py", CHAIN),
    "engine/planned": ("engine/test_ready.py", "is a remembered call in the user's hands"),
    "engine/planner": ("in_numba/test_in_numba.py", "is compared in Python and compiled"),
    "engine/records": ("in_numba/test_in_numba.py", "are what the planner fills"),
    "engine/region": ("reliability/test_threads.py", "is the way without a team, tested in processes of their own"),
    "engine/seen": ("engine/test_ready.py", "is the memory of calls"),
    "engine/sums": ("output/test_requantize.py", "runs pipelines on sums that are there"),
    "engine/threadpool_controller": ("reliability/test_thread_limits.py", "is threadpoolctl's way in"),
    "engine/threads": ("reliability/test_threads.py", "is about several threads, in processes of their own"),
    "engine/tiles": ("test_gemm.py", CHAIN),
    # fixed point
    "fixedpoint/*": ("fixedpoint/test_fixedpoint.py", "one file compares all functions, in all their forms, with the definitions"),
    # inside compiled code
    "in_numba/*": ("in_numba/test_in_numba.py", "is one feature, tested from compiled functions"),
    # compiled code
    "jit/addresses": ("test_copies.py", "keeps what holds addresses from being copied"),
    "jit/llvm_features": ("jit/test_target.py", "names what the target has"),
    "jit/disk_cache": ("reliability/test_disk_cache.py", "is about several processes"),
    "jit/memory": ("jit/test_routine.py", "are the intrinsics that routines are made of"),
    "jit/scratch": ("reliability/test_guard_pages.py", "is memory, tested with guard pages around it"),
    # kernels
    "kernels/*": ("kernels/test_kernels.py", EVERY_KERNEL),
    # networks
    "nn/conv": ("nn/test_layers.py", "is a layer"),
    "nn/filters": ("nn/test_routines.py", "runs those routines"),
    "nn/float_net": ("nn/test_convert.py", "is the float network that is converted"),
    "nn/windows": ("nn/test_routines.py", "says where those routines look"),
    "nn/[alpsw]*": ("nn/test_layers.py", "is a layer, or a part of all layers"),
    "nn/maccs": ("nn/test_layers.py", "counts what layers do"),
    "nn/reference": ("nn/test_layers.py", "is the definition that layers are compared with"),
    # ONNX
    "onnx_run/contrib": ("onnx_run/test_onnx_contrib.py", "the file has the name of the package in front"),
    "onnx_run/model": ("onnx_run/test_onnx_model.py", "the file has the name of the package in front"),
    "onnx_run/rewrite": ("onnx_run/test_onnx_rewrite.py", "the file has the name of the package in front"),
    "onnx_run/convolution": ("onnx_run/test_onnx_conv.py", "the file has the operator's name"),
    "onnx_run/geometry": ("onnx_run/test_onnx_conv.py", "is where a convolution's windows lie"),
    "onnx_run/*": ("onnx_run/test_onnx_nodes.py", "operators are tested by onnx's own cases"),
    # output
    "output/*": ("output/test_pipeline.py", "each stage alone, in pairs and in pipelines, on every kernel"),
    "output/stages/*": ("output/test_pipeline.py", "each stage alone, in pairs and in pipelines, on every kernel"),
    # quantization
    "quantization/bias": ("quantization/test_folding.py", "corrects what folding changes"),
    "quantization/calibrate": ("quantization/test_observers.py", "fills observers"),
    "quantization/observer": ("quantization/test_observers.py", "is what all observers share"),
    "quantization/search": ("quantization/test_observers.py", "are two of the observers"),
    "quantization/equalization": ("nn/test_convert.py", "changes two layers together"),
    "quantization/loops": ("quantization/test_affine.py", "are the loops of these functions"),
    "quantization/*": ("quantization/test_report.py", "is a part of the report"),
}  # fmt: skip


def modules() -> list[str]:
    found = (path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.rglob("*.py"))
    return sorted(m for m in found if not m.rpartition("/")[2].startswith("_"))


def has_its_own(module: str) -> bool:
    room, _, name = module.rpartition("/")
    return (TESTS / room / f"test_{name}.py").exists()


def line_of(module: str) -> str | None:
    """The first pattern that fits: as in a shell, but a star stays in its folder, except in `kernels`."""
    for pattern in ELSEWHERE:
        if fnmatch.fnmatchcase(module, pattern):
            deep = module.count("/") > pattern.count("/")
            if not deep or pattern == "kernels/*":
                return pattern
    return None


def test_every_module_has_a_test_of_its_name_or_a_line():
    lost = [m for m in modules() if not has_its_own(m) and line_of(m) is None]
    assert not lost, f"no tests/.../test_NAME.py and no line in ELSEWHERE: {lost}"


def test_every_line_is_needed_and_leads_to_a_test():
    used = {line_of(m) for m in modules() if not has_its_own(m)}
    stale = sorted(set(ELSEWHERE) - used)
    assert not stale, f"these lines of ELSEWHERE fit no module that needs one: {stale}"
    lost = sorted({file for file, _ in ELSEWHERE.values() if not (TESTS / file).exists()})
    assert not lost, lost
