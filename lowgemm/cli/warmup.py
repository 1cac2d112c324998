"""`python -m lowgemm warmup`: compile all that `gemm` can need here, into the cache on disk."""

from __future__ import annotations

import argparse
import importlib
import itertools
import pkgutil
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from lowgemm import kernels, output
from lowgemm.engine import compensation, drivers, entry, packing, sums
from lowgemm.jit.routine import Routine
from lowgemm.jit.team import the_team
from lowgemm.kernels.framework.kernel import EITHER
from lowgemm.kernels.framework.requant import SCALES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--all-kernels", action="store_true", help="every kernel that runs here, not only the best"
    )


def routines_of(room: ModuleType) -> dict[str, Routine]:
    """Every routine that a module of a folder declares, by its name."""
    found = {}
    for info in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
        for value in vars(importlib.import_module(info.name)).values():
            for declared in value.values() if type(value) is dict else (value,):
                if isinstance(declared, Routine):
                    found[declared.__name__] = declared
    return found


def pieces(all_kernels: bool = False) -> dict[str, Callable[[], Any]]:
    """Everything there is to compile, by name."""
    chosen = [k for k in kernels.all_kernels() if not kernels.why_not(k)]
    if not all_kernels:
        chosen = list(dict.fromkeys([kernels.selected(), kernels.rhs_packer(kernels.selected())]))
    todo: dict[str, Callable[[], Any]] = {}
    for kernel in chosen:
        for signed in (False, True) if kernel.lhs_type == EITHER else (False,):
            for scale in range(len(SCALES) if kernel.fuses_requantize else 1):
                name = f"kernel {kernel.name}{', signed' * signed}{f', scale {scale}' * (scale > 0)}"
                todo[name] = lambda k=kernel, of=(signed, scale): kernels.microkernel(k, *of)
        for side, by_depth in itertools.product(("lhs", "rhs"), (True, False)):
            name = f"packing {side} {kernel.name}, {'depth' if by_depth else 'rows or columns'} contiguous"
            todo[name] = lambda k=kernel, of=(side, by_depth): packing.pack_routine(k, *of)
    todo["compensation"] = lambda: compensation.compensate
    todo["tile loop"] = lambda: drivers.single
    todo["tile loop, several threads"] = lambda: drivers.several
    todo["worker of a product"] = lambda: drivers.work
    for name, declared in routines_of(output).items():
        todo[f"output {name}"] = lambda r=declared: r.compiled
    todo["entry"] = entry.enter
    todo["requantize, entry"] = sums.apply
    if the_team() is None:
        todo["threads"] = lambda: drivers.in_region.dispatcher
    return todo


def run(args: argparse.Namespace) -> int:
    """Compile each piece, with a line that says which."""
    todo = pieces(args.all_kernels)
    terminal = sys.stdout.isatty()
    start = time.perf_counter()
    for i, (name, compile_piece) in enumerate(todo.items(), 1):
        begin = time.perf_counter()
        if terminal:
            print(f"\r\033[K[{i}/{len(todo)}] {name}", end="", flush=True)
        made = compile_piece()
        if isinstance(made, Routine):
            made.compiled  # noqa: B018 (compiles it, or loads it)
        if not terminal:
            print(f"[{i}/{len(todo)}] {name}: {time.perf_counter() - begin:.2f} s", flush=True)
    print(
        f"{chr(13) + chr(27) + '[K' if terminal else ''}{len(todo)} pieces ready in "
        f"{time.perf_counter() - start:.1f} s"
    )
    return 0
