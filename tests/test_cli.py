"""The commands run, print what they promise, and exit with the right status."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lowgemm.__main__ import main
from lowgemm.data import recorded_network


def test_demo_compares_with_the_recorded_result(capsys, monkeypatch):
    assert main(["demo"]) == 0
    text = capsys.readouterr().out
    assert "0 of 49152 elements differ" in text and "GMAC/s" in text and "float32 NumPy" in text
    problem = recorded_network()
    problem["expected"] = problem["expected"] ^ np.uint8(1)
    monkeypatch.setattr("lowgemm.cli.demo.recorded_network", lambda: problem)
    assert main(["demo"]) == 1
    assert "49152 of 49152 elements differ" in capsys.readouterr().out


def test_info(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for word in ("lowgemm", "numba", "LLVM", "target", "caches", "kernel", "portable", "settings"):
        assert word in text


def test_explain(capsys):
    assert main(["explain", "64x32x16", "--threads", "1"]) == 0
    assert "64 x 32 by 32 x 16" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["explain", "64y32"])


def test_bench_writes_its_figures(tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert main(["bench", "--shapes", "16,8x16x24", "--seconds", "0.05", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert [s["shape"] for s in figures["shapes"]] == [[16, 16, 16], [8, 16, 24]]
    assert all(g > 0 for s in figures["shapes"] for g in s["gmacs"].values())
    assert "float32" in capsys.readouterr().out
    assert main(["bench", "--threads", "0"]) == 2


def test_warmup_fills_the_cache(tmp_path):
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    call = [sys.executable, "-m", "lowgemm", "warmup"]
    done = subprocess.run(call, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "pieces ready" in done.stdout and len(list(tmp_path.rglob("*.nbc"))) >= 15
