"""Each module's test is found by its name: `lowgemm/room/part.py` is tested in `tests/room/test_part.py`.

Modules that one file tests together are listed here, with that file and why. A new module needs a test of its
name, or to be named in such a line.
"""

from __future__ import annotations

import fnmatch
import pathlib

import lowgemm

ROOT = pathlib.Path(lowgemm.__file__).parent
TESTS = pathlib.Path(__file__).parent
#: Rooms whose tests have a word in front of the module's name, because `test_model.py` or `test_passes.py`
#: alone would say little in a list of failures.
IN_FRONT = {"onnx_run": "onnx_"}

#: Test file: the modules that it tests beside the one it is called after, and why they have no file of their
#: own.
TOGETHER: dict[str, tuple[str, str]] = {
    # one feature in several modules, which users see as one and tests call as one
    "cli/test_cli": ("cli/*", "commands are tested as they are called"),
    "fixedpoint/test_fixedpoint": ("fixedpoint/* reference_fixedpoint",
                                   "every function in all its forms, beside its definition"),
    "in_numba/test_in_numba": ("in_numba/*", "is one feature, used from functions that the test compiles"),
    "output/test_pipeline": ("output/* output/stages/*",
                             "each stage alone, in pairs and in pipelines, on every kernel"),
    "onnx_run/test_onnx_nodes": ("onnx_run/*", "operators are tested by onnx's own cases"),
    "onnx_run/test_onnx_convolution": ("onnx_run/geometry", "is where a convolution's windows lie"),
    "test_conv": (
        "engine/depthwise engine/filters engine/grouped engine/image engine/line_loop engine/loop_plan",
        "convolutions of every kind, on every kernel"),
    "nn/test_layers": ("nn/[alpsw]* nn/conv nn/maccs nn/reference",
                       "each is a layer, a part of all layers, or their definition"),
    "nn/test_routines": ("nn/windows", "says where those routines look"),
    "nn/test_convert": ("nn/float_net quantization/equalization",
                        "are what it converts, and what it does to two layers together"),
    "nn/test_network_files": ("nn/files npz",
                              "read and write the files of networks, which this damages part by part"),
    "quantization/test_observers": ("quantization/calibrate quantization/observer quantization/search",
                                    "are what observers share or do"),
    "quantization/test_folding": ("quantization/bias", "corrects what folding changes"),
    "quantization/test_affine": ("quantization/loops", "are the loops of these functions"),
    "quantization/test_report": ("quantization/*", "is a part of the report"),
    "blockwise/test_codebooks": ("blockwise/codebook blockwise/levels",
                                 "books and levels are seen through what they code"),
    "blockwise/test_coding": (
        "blockwise/coded blockwise/emit blockwise/spans blockwise/routines blockwise/reference",
        "are the steps of coding a block, compared on every target, its result and its definition"),
    "blockwise/test_four_bit": (
        "blockwise/packed4 blockwise/product4 blockwise/rowjob blockwise/rowstore blockwise/rowtile",
        "is that product, emitted for each kernel"),
    "blockwise/test_mixed": ("blockwise/vectorwise", "codes the rows of that product"),
    "blockwise/test_optimizers": ("blockwise/optimizer blockwise/state",
                                  "are what all optimizers share, and what they change"),
    "blockwise/test_rules": ("blockwise/reference_optimizers", "is the definition of the rules"),
    "compat/test_onnx": ("checks/onnx", "checks the arguments of these operators"),
    "onnx_run/test_onnx_passes": ("compat/onnx_passes onnx_run/average onnx_run/binary onnx_run/look_up",
                                  "are passes that the runner uses, which has the models to test them with"),
    # emitted code, which only a whole product on each kernel can test
    "kernels/test_kernels": ("kernels/* kernels/framework/* kernels/tools/*",
                             "contract, assembly and products of each kernel"),
    # steps of a product: a test of their own would say again what the product is
    "test_gemm": (
        "engine/batch engine/call engine/compensation engine/deep_block engine/packing_ir engine/plan",
        "products of every shape, layout, sign and zero point, on every kernel"),
    "engine/test_ready": ("engine/entry engine/planned engine/seen",
                          "are a remembered call: Python's way in, its handle, its memory"),
    "engine/test_packed_rhs": ("engine/packing", "what is packed is unpacked again, on every kernel"),
    "engine/test_planner": ("engine/records", "are what the planner fills"),
    "engine/test_zero_points": ("engine/array_objects",
                                "reads NumPy's objects in compiled code, as these do"),
    "test_requantize": ("engine/sums", "runs pipelines on sums that are there"),
    "jit/test_target": ("jit/llvm_features", "names what the target has"),
    "jit/test_routine": ("jit/memory", "are the intrinsics that routines are made of"),
    "test_copies": ("jit/addresses", "keeps what holds addresses from being copied"),
    # what needs processes of its own
    "reliability/test_disk_cache": ("jit/disk_cache", "is about several processes"),
    "reliability/test_guard_pages": ("jit/scratch", "is memory, tested with guard pages around it"),
    "reliability/test_threads": ("engine/threads engine/region", "are about several threads"),
    "reliability/test_thread_limits": ("engine/threadpool_controller", "is threadpoolctl's way in"),
}  # fmt: skip


def modules() -> list[str]:
    found = (path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.rglob("*.py"))
    return sorted(m for m in found if not m.rpartition("/")[2].startswith("_"))


def has_its_own(module: str) -> bool:
    room, _, name = module.rpartition("/")
    return (TESTS / room / f"test_{IN_FRONT.get(room, '')}{name}.py").exists()


def pattern_of(module: str) -> str | None:
    """The pattern of `TOGETHER` that fits, as in a shell, where a star stays in its folder; the plain name
    first.
    """
    patterns = [p for names, _ in TOGETHER.values() for p in names.split()]
    fits = [p for p in patterns if fnmatch.fnmatchcase(module, p) and module.count("/") == p.count("/")]
    return max(fits, key=lambda p: ("*" not in p, len(p)), default=None)


def test_every_module_has_a_test_of_its_name_or_a_line():
    lost = [m for m in modules() if not has_its_own(m) and pattern_of(m) is None]
    assert not lost, f"no tests/.../test_NAME.py and no line in TOGETHER: {lost}"


def test_no_two_test_files_share_a_name():
    """pytest imports a test file by its base name: of two with one name it refuses the second."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert not (twice := sorted({n for n in names if names.count(n) > 1})), twice


def test_every_line_is_needed_and_leads_to_a_test():
    used = {pattern_of(m) for m in modules() if not has_its_own(m)}
    stale = [p for names, _ in TOGETHER.values() for p in names.split() if p not in used]
    assert not stale, f"these patterns of TOGETHER fit no module that needs one: {stale}"
    lost = sorted(file for file in TOGETHER if not (TESTS / f"{file}.py").exists())
    assert not lost, lost
