"""The commands run, print what they promise, and exit with the right status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from patience import PATIENCE

import lowgemm
from lowgemm.__main__ import main
from lowgemm.cli import weights
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


@pytest.mark.parametrize("name", ["lowering", "loaded"])
def test_info_says_what_this_numba_lacks(name, capsys, monkeypatch):
    lacks = "this Numba lacks what lowgemm reaches into"
    for has in ("lowering", "loaded"):
        monkeypatch.setattr(f"lowgemm.cli.info.{has}", object())
    main(["info"])
    assert lacks not in capsys.readouterr().out
    monkeypatch.setattr(f"lowgemm.cli.info.{name}", None)
    main(["info"])
    assert capsys.readouterr().out.count(lacks) == 1


def test_info_says_that_nothing_is_kept_on_disk(capsys, monkeypatch):
    monkeypatch.setattr("lowgemm.jit.numbers.KNOWN", False)
    main(["info"])
    assert "from disk nothing is kept" in capsys.readouterr().out


def test_explain(capsys):
    assert main(["explain", "64x32x16", "--threads", "1"]) == 0
    assert "64 x 32 by 32 x 16" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["explain", "64y32"])


def test_explain_takes_a_batch(capsys):
    assert main(["explain", "3x64x32x16", "--threads", "1"]) == 0
    assert "64 x 32 by 32 x 16" in capsys.readouterr().out


def test_version_and_what_is_unknown(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0 and capsys.readouterr().out == f"lowgemm {lowgemm.__version__}\n"
    with pytest.raises(SystemExit) as done:
        main(["bench", "--shape-of-things"])
    said = capsys.readouterr().err
    assert done.value.code == 2 and "usage: python -m lowgemm bench" in said and "--shape-of-things" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["bench", "--threads", "0"], "--threads: expected 1 to"),
        (["bench", "--threads", "100000"], "--threads: expected 1 to"),
        (["demo", "--threads", "100000"], "--threads: expected 1 to"),
        (["bench", "--seconds", "-1"], "--seconds: expected more than 0"),
        (["bench", "--seconds", "nan"], "--seconds: "),
        (["bench", "--json", "/no/such/folder/x.json"], "--json: cannot write"),
        (["bench", "--plot", "/no/such/folder/x.png"], "--plot: cannot write"),
        pytest.param(
            ["bench", "--plot", "x.foo"], "--plot: expected a name that ends in .",
            marks=pytest.mark.skipif(find_spec("matplotlib") is None,
                                     reason="matplotlib knows which names, and is not installed"),
        ),
    ],
)  # fmt: skip
def test_refused_before_anything_is_measured(options, said, capsys, monkeypatch):
    monkeypatch.setattr("lowgemm.cli.bench._limits", lambda kernel: pytest.fail("measured first"))
    assert main(options) == 2
    assert f"error: {said}" in capsys.readouterr().err


def test_bench_prints_rows_as_they_come_and_keeps_them_when_interrupted(tmp_path, capsys, monkeypatch):
    path, seen = tmp_path / "figures.json", []

    def measured(shape, kernel, args):
        seen.append(capsys.readouterr().out)
        if len(seen) == 3:
            raise KeyboardInterrupt
        names = ("float32", "lowgemm", "lowgemm packed", "lowgemm packed -> uint8")
        return {"shape": list(shape), "gmacs": dict.fromkeys(names, 2.0), "scaling": {}, "notes": {}}

    monkeypatch.setattr(
        "lowgemm.cli.bench._limits", lambda kernel: {"microkernel_gmacs": 1.0, "read_gbytes": 1.0}
    )
    monkeypatch.setattr("lowgemm.cli.bench._shape", measured)
    assert main(["bench", "--shapes", "16,24,32,48", "--json", str(path)]) == 130
    assert "16 x 16 x 16" in seen[1] and "24 x 24 x 24" in seen[2]
    assert "interrupted" in capsys.readouterr().out
    assert [s["shape"] for s in json.loads(path.read_text())["shapes"]] == [[16] * 3, [24] * 3]


def test_no_ratio_to_a_blas_that_was_not_held(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert main(["demo"]) == 0
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith(("float32 NumPy", "lowgemm ->"))]
    assert len(lines) == 4 and all(line.endswith(" -") for line in lines)
    assert "not held to 1 thread" in said and "note: OPENBLAS_CORETYPE=Haswell is set" in said


def test_bench_writes_its_figures(tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert main(["bench", "--shapes", "16,8x16x24", "--seconds", "0.05", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert [s["shape"] for s in figures["shapes"]] == [[16, 16, 16], [8, 16, 24]]
    assert all(g > 0 for s in figures["shapes"] for g in s["gmacs"].values())
    assert "float32" in capsys.readouterr().out


@pytest.mark.parametrize("book", ["int4", "ternary"])
def test_bench_of_weights(book, tmp_path, capsys):
    path = tmp_path / "figures.json"
    options = ["--shapes", "1x256x96,3x256x40", "--seconds", "0.02", "--rotate", "0", "--json", str(path)]
    assert main(["bench", "--weights", book, *options]) == 0
    figures = json.loads(path.read_text())
    assert [s["shape"] for s in figures["shapes"]] == [[1, 256, 96], [3, 256, 40]]
    for s in figures["shapes"]:
        assert (
            s["seconds"]["lowgemm"] > 0
            and s["error"]["lowgemm"] < 0.02
            and s["error"]["NumPy float32"] < 1e-5
        )
        assert s["error"].get("onnxruntime MatMulNBits", 0) < 0.02
        assert set(s["seconds"]) | set(s["notes"]) == set(weights.CANDIDATES)
    assert "of the read speed" in capsys.readouterr().out
    for wrong in (["--rotate", "-1"], ["--plot", str(tmp_path / "x.png")], ["--shapes", "2x1x64x64"]):
        assert main(["bench", "--weights", book, *options, *wrong]) == 2


def test_bench_of_weights_prints_shapes_as_they_come_and_keeps_them_when_interrupted(
    tmp_path, capsys, monkeypatch
):
    path, seen = tmp_path / "figures.json", []

    def measured(shape, args):
        seen.append(capsys.readouterr().out)
        if len(seen) == 3:
            raise KeyboardInterrupt
        names = dict.fromkeys(weights.CANDIDATES, 0.5)
        return {"shape": list(shape), "seconds": names, "bytes": names, "error": names, "notes": {}}

    monkeypatch.setattr(weights, "read_speed", lambda mebibytes, threads: 2.0)
    monkeypatch.setattr(weights, "measure", measured)
    options = ["--shapes", "1x16x24,2x16x24,3x16x24", "--rotate", "0", "--json", str(path)]
    assert main(["bench", "--weights", "int4", *options]) == 130
    assert "1 x 16 x 24  " in seen[1] and "2 x 16 x 24  " in seen[2]
    assert "interrupted" in capsys.readouterr().out
    figures = json.loads(path.read_text())
    assert [s["shape"] for s in figures["shapes"]] == [[1, 16, 24], [2, 16, 24]]
    assert figures["read_gbytes"] == 2e-9


PIPELINES = """
import numpy as np, lowgemm as lg
rng = np.random.default_rng(0)
a, b = rng.integers(0, 256, (70, 90), dtype=np.uint8), rng.integers(-128, 128, (90, 50), dtype=np.int8)
stages = [
    lg.BiasAddition(np.arange(50)), lg.BiasAddition(np.arange(70), axis=0), lg.Clamp(-9, 9000),
        lg.Tanh(3, 500),
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
