"""The same golden cases where the target has no AVX-512: the scalar twins of the vector steps."""

from __future__ import annotations

import os
import pathlib
import platform
import subprocess
import sys

import pytest

from lowgemm.blockwise import emit

FOLDER = pathlib.Path(__file__).parent


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="a forced x86-64 target")
def test_without_avx512():
    code = (
        "from lowgemm.blockwise import emit; assert not emit.has_vbmi() and not emit.has_avx512(); "
        "import pytest, sys; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *sys.argv[1:]]))"
    )
    tests = [
        "test_coding.py::test_golden_8_bit",
        "test_coding.py::test_golden_4_bit",
        "test_coding.py::test_any_book_and_data",
        "test_optimizers.py::test_golden_steps",
        "test_mixed.py::test_equals_the_definition",
        "test_four_bit.py::test_any_shape",
        "test_four_bit.py::test_codes_of_others_in_any_shape",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *(str(FOLDER / t) for t in tests)],
        # as in test_target.py, so that what one of them has compiled the other finds on disk
        env=os.environ | {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_vector_code_needs_its_instructions(monkeypatch):
    monkeypatch.setattr(emit, "target", lambda: ("haswell", frozenset({"avx2"})))
    assert not emit.has_vbmi() and not emit.has_avx512()
    monkeypatch.setattr(emit, "target", lambda: ("any", frozenset({"avx512f", "avx512bw", "avx512vbmi"})))
    assert emit.has_vbmi() and emit.has_avx512()
