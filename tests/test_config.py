"""Settings are checked when they are set, not at the next product."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest

import lowgemm
from lowgemm import config, kernels


@pytest.fixture(autouse=True)
def as_they_were(monkeypatch):
    monkeypatch.setattr(config, "kernel", None)
    monkeypatch.setattr(config, "num_threads", None)


@pytest.mark.parametrize(
    ("name", "value", "error", "match"),
    [
        ("kernel", "nope", ValueError, "kernel: no kernel is called 'nope'; there are x86_amx_int8, "),
        ("kernel", "", ValueError, "kernel: no kernel is called ''"),
        ("kernel", 3, TypeError, "kernel: expected a kernel's name or None, got int"),
        ("kernel", ["portable"], TypeError, "kernel: expected a kernel's name or None, got list"),
        ("num_threads", 0, ValueError, "num_threads: expected at least 1, got 0"),
        ("num_threads", -1, ValueError, "num_threads: expected at least 1"),
        ("num_threads", 1.0, TypeError, "num_threads: expected an integer or None, got float"),
        ("num_threads", True, TypeError, "num_threads: expected an integer or None, got bool"),
        ("num_threads", "2", TypeError, "num_threads: expected an integer or None, got str"),
        ("threads", 2, AttributeError, "threads: no such setting; there are kernel and num_threads"),
    ],
)
def test_refused_when_set(name, value, error, match):
    config.kernel, config.num_threads = "portable", 2
    with pytest.raises(error, match=match):
        setattr(config, name, value)
    assert (config.kernel, config.num_threads) == ("portable", 2)
    assert not hasattr(config, "threads")
    assert lowgemm.gemm(np.ones((1, 2), np.uint8), np.ones((2, 1), np.uint8)) == 2


def test_instructions_that_the_target_lacks_are_refused_when_set():
    foreign = next(k for k in kernels.all_kernels() if kernels.missing_features(k))
    with pytest.raises(
        ValueError, match=rf"kernel: '{foreign.name}' needs .*, which Numba's target .* lacks"
    ):
        config.kernel = foreign.name
    assert config.kernel is None


def test_numpy_integers_become_ints_and_patches_come_back(monkeypatch):
    config.num_threads = np.int64(3)
    assert type(config.num_threads) is int and config.num_threads == 3
    with monkeypatch.context() as patch:
        patch.setattr(config, "kernel", "portable")
        assert kernels.selected().name == "portable"
        with pytest.raises(ValueError, match="kernel: no kernel"):
            patch.setattr(config, "kernel", "nope")
    assert config.kernel is None
    importlib.reload(config)
    with pytest.raises(ValueError, match="num_threads: expected at least 1"):
        config.num_threads = 0


@pytest.mark.parametrize("text", ["0", "-1", "two", " ", "1.5"])
def test_a_number_of_threads_from_the_environment_is_named_when_refused(text):
    env = {**os.environ, "LOWGEMM_NUM_THREADS": text}
    done = subprocess.run([sys.executable, "-c", "import lowgemm"], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ValueError: LOWGEMM_NUM_THREADS: expected an integer of at least 1, got {text!r}" in done.stderr
