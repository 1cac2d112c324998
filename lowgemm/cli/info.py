"""`python -m lowgemm info`: what a bug report needs."""

from __future__ import annotations

import argparse
import os
import platform

import llvmlite
import numba
import numpy as np

import lowgemm
from lowgemm import config, kernels
from lowgemm.engine.entry import usable
from lowgemm.explain import why_kernel
from lowgemm.jit import numbers
from lowgemm.jit.caches import cache_sizes
from lowgemm.jit.disk_cache import loaded
from lowgemm.jit.part import lowering
from lowgemm.jit.target import target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options (none)."""


_READ_HERE = "arrays are read by compiled code"
_ASKED_FOR = "NumPy is asked for addresses, 1 to 3 us per call: this Python or NumPy keeps arrays otherwise"
_ONCE = "once for a routine with its parts"
_USUAL_WAY = "the usual way of Numba, which takes longer: this Numba lacks what lowgemm reaches into"
_MACHINE_CODE = "machine code alone, until a caller links the rest"
_NOTHING = "nothing is kept: this Numba names functions in a way that lowgemm does not know"
_ALL_CODE = "LLVM code as well, ten times its bytes in memory: this Numba lacks what lowgemm reaches into"


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    name, features = target()
    selected = kernels.selected()
    asked = sorted(features & {f for kernel in kernels.all_kernels() for f in kernel.features})
    cache = numba.config.CACHE_DIR or "beside the installed package, or the user's cache folder"
    interesting = ("NUMBA_", "LOWGEMM_", "OMP_", "OPENBLAS_", "MKL_", "KMP_")
    settings = {k: v for k, v in sorted(os.environ.items()) if k.startswith(interesting)}
    lines = [
        f"lowgemm   {lowgemm.__version__}",
        f"python    {platform.python_version()} ({platform.python_implementation()}), {platform.platform()}",
        f"numba     {numba.__version__}, llvmlite {llvmlite.__version__}, LLVM "
        + ".".join(map(str, llvmlite.binding.llvm_version_info)),
        f"numpy     {np.__version__}",
        f"target    {name}, {len(features)} features, of those that kernels ask for: "
        f"{', '.join(asked) or 'none'}",
        f"cores     {os.cpu_count()} seen, {numba.config.NUMBA_NUM_THREADS} threads for Numba",
        "caches    L1 {} KiB, L2 {} KiB, L3 {} KiB".format(*(size >> 10 for size in cache_sizes())),
        f"kernel    {selected.name}: {why_kernel(selected)}",
        f"calls     {_READ_HERE if usable() else _ASKED_FOR}",
        f"layer     {numba.config.THREADING_LAYER} requested (priority "
        f"{numba.config.THREADING_LAYER_PRIORITY})",
        f"jit       {'disabled by NUMBA_DISABLE_JIT' if numba.config.DISABLE_JIT else 'enabled'}; cache "
        f"{cache}",
        f"compiler  {_ONCE if lowering else _USUAL_WAY}",
        f"from disk {(_MACHINE_CODE if loaded else _ALL_CODE) if numbers.KNOWN else _NOTHING}",
        f"threads   lowgemm.config.num_threads = {config.num_threads}",
        "settings  " + (", ".join(f"{k}={v}" for k, v in settings.items()) or "none"),
        "kernels",
    ]
    for kernel in kernels.all_kernels():
        state = kernels.why_not(kernel) or "runs here"
        lines.append(f"  {kernel.name:<18} {kernel.mr:>2} x {kernel.nr:<3} kr {kernel.kr}  {state}")
    print("\n".join(lines))
    return 0
