"""The tour runs, and what it shows is so."""

import pathlib
import runpy
import sys

import numba
import numpy as np
import pytest

TOUR = pathlib.Path(__file__).parents[2] / "examples" / "quantization_tour.py"


def test_tour(monkeypatch, capsys, tmp_path):
    arguments = [str(TOUR)]
    try:
        import matplotlib  # noqa: F401

        arguments.append(str(tmp_path / "tour.png"))
    except ImportError:
        pass  # the tour itself needs no matplotlib
    monkeypatch.setattr(sys, "argv", arguments)
    if numba.config.DISABLE_JIT:
        pytest.skip("the tour packs weights, which needs compiled code")
    if not TOUR.exists():
        pytest.skip("examples are not installed with the package")
    shown = runpy.run_path(str(TOUR), run_name="__main__")
    assert all((tmp_path / "tour.png").stat().st_size > 10_000 for _ in arguments[1:])
    assert shown["error"] <= 0.5001 * shown["px"].scale
    assert shown["worst"][1] > shown["worst"][0] + 20
    assert shown["ratio"] > 30
    acc = (shown["qx"].astype(np.int64) - shown["px"].zero_point) @ lq_weights(shown)
    real = acc * (shown["px"].scale * shown["pw"].scale / shown["py"].scale)
    expected = np.clip(np.rint(real) + shown["py"].zero_point, -128, 127)
    # The pipeline rounds twice in fixed point, the line above once: they may differ by one step at near ties.
    difference = np.abs(expected - shown["qy"])
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    assert shown["merged"] == shown["observers"]["Entropy"].qparams()
    assert shown["plain"] + 10 < shown["better"] < shown["best"]
    assert {f.case for f in shown["report"].findings} == {
        "not normalised",
        "channel ranges differ",
        "mixed ranges",
        "outliers",
        "dead channels",
        "clipped channels",
    }
    assert "8. the range report" in capsys.readouterr().out


def lq_weights(shown):
    """The integer weights of the tour's layer."""
    return shown["lq"].quantize(shown["w"], shown["pw"]).astype(np.int64)
