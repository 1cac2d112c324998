"""The real gemmlowp's results, bit for bit, on every kernel, one and two threads."""

from __future__ import annotations

from collections import Counter

import golden

import lowgemm
from lowgemm import reference


def run_all(gemm, **options) -> Counter:
    """Run every case; counts what ran by tag, and what was skipped by reason."""
    counts: Counter = Counter()
    for case in golden.cases("gemm"):
        if 0 in (case["m"], case["k"], case["n"]):
            # gemmlowp leaves the destination alone; lowgemm.compat.gemmlowp does too, gemm() has NumPy's
            # habit
            counts["skipped: vacuous"] += 1
            continue
        golden.run_gemm_case(case, gemm, **options)
        counts["run"] += 1
        counts.update(f"run: {tag}" for tag in case["tags"])
    return counts


def check(counts: Counter) -> None:
    """Every kind of case was there, and nothing but the vacuous ones was left out."""
    print(dict(counts))
    assert counts["run"] + counts["skipped: vacuous"] == len(golden.cases("gemm"))
    assert counts["skipped: vacuous"] < 0.1 * counts["run"]
    for tag in (
        "pipeline",
        "raw_int32",
        "extremes",
        "int32_wrap",
        "rows_cols",
        "orders",
        "depth",
        "gemv",
        "stage_order",
    ):
        assert counts[f"run: {tag}"] > 0, f"no case tagged {tag} was run"


def test_definition_gives_gemmlowps_results():
    check(run_all(reference.gemm))


def test_gemm_gives_gemmlowps_results(any_kernel, threads):
    check(run_all(lowgemm.gemm, num_threads=threads))
