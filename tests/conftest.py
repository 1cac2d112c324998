"""Kernels that tests run on: every registered one that this machine can run, and odd ones made for tests."""

from __future__ import annotations

import dataclasses
import os

import hypothesis
import pytest

import lowgemm
from lowgemm import kernels
from lowgemm.kernels.portable import Portable

#: No example fails because it took long: neither the first one, which compiles, nor any on a busy machine.
hypothesis.settings.register_profile(
    "lowgemm", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("lowgemm")

#: Odd tiles and every sign treatment: what is only right by luck of a power of two fails here.
ODD = [
    kernels.register(Portable("test_3x5x2", (), 3, 5, 2, 2, "s16", "s16", row_tiles=(1,))),
    kernels.register(Portable("test_5x3x4_s8_u8", (), 5, 3, 3, 4, "s8", "u8", row_tiles=(1,))),
    kernels.register(Portable("test_1x7x2_u8_u8", (), 1, 7, 1, 2, "u8", "u8", row_tiles=(1,))),
    kernels.register(Portable("test_7x1x8_s8_s8", (), 7, 1, 2, 8, "s8", "s8", row_tiles=(1,))),
    # tile registers in software, for products of every size, and what packs the rhs for them
    kernels.in_software(kernels.by_name("x86_amx_int8")),
    kernels.by_name("test_panels_16x4"),
]
#: The AMX kernel for products of every size, which it would leave to another kernel where they are small.
_AMX = dataclasses.replace(
    kernels.by_name("x86_amx_int8"), name="test_amx_every_size", least_rows=1, least_depth=1, least_work=1
)
if not kernels.why_not(_AMX):
    ODD.append(kernels.register(_AMX))
RUNNABLE = [k.name for k in kernels.all_kernels() if not kernels.why_not(k) and k not in ODD]
ALL = RUNNABLE + [k.name for k in ODD]


@pytest.fixture(scope="session", autouse=True)
def _digits_are_trained_once(tmp_path_factory):
    """A test and two examples want the same networks; the workers of a parallel run share them."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "digits"
    folder.mkdir(exist_ok=True)
    os.environ["DIGITS_FOLDER"] = str(folder)


@pytest.fixture(params=RUNNABLE)
def kernel(request, monkeypatch) -> str:
    """Each real kernel in turn, forced."""
    monkeypatch.setattr(lowgemm.config, "kernel", request.param)
    return request.param


@pytest.fixture(params=ALL)
def any_kernel(request, monkeypatch) -> str:
    """Each real and each odd kernel in turn, forced."""
    monkeypatch.setattr(lowgemm.config, "kernel", request.param)
    return request.param


@pytest.fixture(params=[1, 2])
def threads(request, monkeypatch) -> int:
    """One and two threads, whatever the size of the product."""
    from lowgemm.engine import threads as module

    monkeypatch.setattr(module, "MACS_PER_THREAD", 1)
    return request.param
