"""One model on two CPUs: do lowgemm and onnxruntime give the same numbers with VNNI and without?

    python asv_bench/compare_cpus.py MODEL.onnx[=INPUTS.npz] ...

lowgemm compiles for a CPU that is named: once for this one, once for Haswell, which has AVX2 and no VNNI.
onnxruntime looks at the CPU itself, so it runs once here and once in `qemu-x86_64 -cpu Haswell` (package
qemu-user), where that is installed. Without VNNI its products of uint8 and int8 add two products in 16 bits,
which saturate.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np

#: A CPU with AVX2 and without VNNI, as LLVM and as QEMU call it.
LLVM, QEMU = "haswell", "Haswell"
_OURS = """
from lowgemm.onnx_run import Model
def run(model, feeds): return Model(model, num_threads=1).run(None, feeds)
"""
_THEIRS = """
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 4
def run(model, feeds):
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds)
"""
_ALL = """
import sys, numpy as np
found = [y for m, x in zip(sys.argv[2::2], sys.argv[3::2]) for y in run(m, dict(np.load(x)))]
np.savez(sys.argv[1], *found)
"""


def outputs(
    code: str, models: list[tuple[str, str]], before: tuple[str, ...] = (), **environment: str
) -> list[np.ndarray]:
    """What a process of its own computes for models and files of inputs."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "outputs.npz")
        command = [
            *before,
            sys.executable,
            "-c",
            code + _ALL,
            file,
            *(name for pair in models for name in pair),
        ]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return list(np.load(file).values())


def ours(*models: tuple[str, str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """lowgemm's outputs, compiled for this CPU and for one without VNNI."""
    return outputs(_OURS, [*models]), outputs(_OURS, [*models], NUMBA_CPU_NAME=LLVM, NUMBA_CPU_FEATURES="")


def theirs(*models: tuple[str, str]) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
    """onnxruntime's outputs on this CPU and on an emulated one without VNNI; None if there is no emulator."""
    if shutil.which("qemu-x86_64") is None:
        return None
    return outputs(_THEIRS, [*models]), outputs(_THEIRS, [*models], ("qemu-x86_64", "-cpu", QEMU))


def distance(one: list[np.ndarray], other: list[np.ndarray]) -> str:
    """How many values differ, and by how much of the range at most."""
    count = sum(int(np.count_nonzero(a != b)) for a, b in zip(one, other, strict=True))
    parts = [
        np.abs(a.astype(np.float64) - b).max() / (np.ptp(a.astype(np.float64)) or 1)
        for a, b in zip(one, other, strict=True)
        if a.size
    ]
    return f"{count} of {sum(a.size for a in one)}, by {max(parts, default=0):.1e} of the range"


def main() -> None:
    """Print the table."""
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import compare_onnx

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    print("| model | lowgemm, with and without VNNI | onnxruntime, with and without VNNI |\n|---|---|---|")
    for given in parser.parse_args().models:
        model, _, inputs = given.partition("=")
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "inputs.npz")
            np.savez(file, **compare_onnx.inputs_of(model, inputs))
            found = theirs((model, file))
            print(
                f"| {pathlib.Path(model).stem} | {distance(*ours((model, file)))} | "
                f"{'no emulator' if found is None else distance(*found)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
