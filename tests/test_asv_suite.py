"""What the airspeed-velocity suite must keep to; `asv_bench/check.py` runs it."""

from __future__ import annotations

import ast
import json
import pathlib
import re

from lowgemm import kernels

SUITE = pathlib.Path(__file__).resolve().parent.parent / "asv_bench"


def test_every_kernel_has_a_benchmark():
    """The names are written out there (see the reason there), so a new kernel must be added by hand."""
    tree = ast.parse((SUITE / "benchmarks" / "kernels.py").read_text())
    [names] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "NAMES"
    ]
    # tests register kernels of their own, here and in other files
    assert set(names) == {k.name for k in kernels.all_kernels() if not k.name.startswith("test_")}


def test_higher_is_better_is_only_for_reading():
    """asv takes every number as lower-is-better: what is not must be kept out of regression detection."""
    off = json.loads((SUITE / "asv.conf.json").read_text())["regressions_first_commits"]
    assert all(commit is None for commit in off.values())
    seen = 0
    for path in sorted((SUITE / "benchmarks").glob("*.py")):
        for group in ast.parse(path.read_text()).body:
            for method in getattr(group, "body", []):
                if not getattr(method, "name", "").startswith("track_") or not isinstance(
                    group, ast.ClassDef
                ):
                    continue
                marks = " ".join(ast.unparse(d) for d in method.decorator_list)
                higher = "higher is better" in marks or marks == "throughput"
                name = f"{path.stem}.{group.name}.{method.name}(1)"
                assert bool([r for r in off if re.match(r, name)]) == higher, (name, marks)
                seen += higher
    assert seen >= 4


def test_regression_thresholds_reach_the_benchmarks():
    """asv matches these from the start of ``module.Class.method``: `time_.*` alone would match nothing."""
    thresholds = json.loads((SUITE / "asv.conf.json").read_text())["regressions_thresholds"]
    names = [
        "gemm.Cubes.time_gemm(64)",
        "start.Start.timeraw_import",
        "gemm.Cubes.track_time_ratio_to_float32(64)",
    ]
    for name in [*names, "memory.Peak.track_peak_extra_memory(1)"]:
        assert [r for r in thresholds if re.match(r, name)], name
