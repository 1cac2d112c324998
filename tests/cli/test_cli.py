"""The commands run, print what they promise, and exit with the right status."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from patience import PATIENCE

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


PIPELINES = """
import numpy as np, lowgemm as lg
rng = np.random.default_rng(0)
a, b = rng.integers(0, 256, (70, 90), dtype=np.uint8), rng.integers(-128, 128, (90, 50), dtype=np.int8)
stages = [
    lg.BiasAddition(np.arange(50)), lg.BiasAddition(np.arange(70), axis=0), lg.Clamp(-9, 9000), lg.Tanh(3, 500),
    lg.ScaleInt32ByFixedPointAndExponent(rng.integers(0, 2**31, 50), rng.integers(-9, 3, 50), 5),
    lg.QuantizeDownInt32ByFixedPoint(2**30, 7, 1), lg.QuantizeDownInt32ToUint8Scale(3, 5, 7), lg.Logistic(9),
]
ends = [[], [lg.SaturatingCast(np.uint8)], [lg.SaturatingCast(np.int8)], [lg.SaturatingCast(np.int16)],
        [lg.TruncatingCast()], [lg.Lut(np.arange(256, dtype=np.uint8))], [lg.Dequantize(0.1)],
        *([lg.Requantize(1e-3, 3, np.int8, rounding=r)] for r in
          ("gemmlowp", "tflite_single", "onnx", "onnx_reference", "torch"))]
for trial in range(120):
    chosen = [stages[i] for i in rng.integers(0, len(stages), rng.integers(0, 4))] + ends[trial % len(ends)]
    zero = rng.integers(-9, 9, 70) if trial % 5 == 0 else int(rng.integers(0, 256))
    right = lg.pack_rhs(b) if trial % 3 == 0 else b
    sums = lg.gemm(a, b, lhs_zero_point=zero)
    got = lg.gemm(a, right, lhs_zero_point=zero, output=chosen, num_threads=1 + trial % 2)
    assert (got == lg.requantize(sums, chosen)).all()
"""


def test_warmup_fills_the_cache(tmp_path):
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    call = [sys.executable, "-m", "lowgemm", "warmup"]
    done = subprocess.run(call, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    made = {p.name for p in tmp_path.rglob("*.nbc")}
    assert "pieces ready" in done.stdout and len(made) >= 15
    # after that, no pipeline of standard stages compiles anything, whatever its parameters
    done = subprocess.run(
        [sys.executable, "-c", PIPELINES], env=env, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.rglob("*.nbc")} == made, "a standard pipeline compiled something new"
