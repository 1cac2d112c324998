"""No test's verdict depends on speed: time limits are for what hangs, and nothing is compared with a
clock.
"""

from __future__ import annotations

import ast
import pathlib

import hypothesis
import pytest

TESTS = pathlib.Path(__file__).parent
CLOCKS = {"time", "monotonic", "perf_counter", "process_time", "thread_time"}
CLOCKS |= {f"{name}_ns" for name in CLOCKS}


def judged_by_speed(text: str) -> list[str]:
    """Time limits with a number of their own, and comparisons with the time of a clock."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "import" in node.value:
            try:  # programs for processes of their own
                found += judged_by_speed(node.value) if node.value != text else []
            except (SyntaxError, RecursionError):
                continue
        if isinstance(node, ast.keyword) and node.arg in ("timeout", "deadline"):
            kept = ast.unparse(node.value)
            if kept not in ("PATIENCE", "None"):
                found.append(f"{node.arg}={kept}")
        called = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
        names = {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in called}
        if isinstance(node, (ast.Compare, ast.Assert)) and names & CLOCKS:
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "path",
    sorted(set(TESTS.rglob("*.py")) - {pathlib.Path(__file__)}),
    ids=lambda p: str(p.relative_to(TESTS)),
)
def test_nothing_is_judged_by_its_speed(path):
    assert not judged_by_speed(path.read_text())


@pytest.mark.parametrize(
    "line",
    [
        "run(x, timeout=120)", "settings(deadline=200)", "assert time.time() - start < 5",
        "while time.monotonic() < end: x()",
        "CODE = 'import time\\nassert perf_counter() < 3'",
    ],
)  # fmt: skip
def test_what_is_judged_by_its_speed_is_seen(line):
    assert judged_by_speed(line)


def test_no_example_has_a_time_limit():
    """The profile of conftest.py; hypothesis's own is 200 ms an example."""
    assert hypothesis.settings.default.deadline is None
    assert hypothesis.HealthCheck.too_slow in hypothesis.settings.default.suppress_health_check
