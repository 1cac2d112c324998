"""Packages that are compared with, and from which version on they are right themselves."""

from __future__ import annotations

import importlib.metadata

import pytest

#: Version, and what is wrong before it.
SOUND = {
    "onnx": (
        (1, 22),
        "its QLinearMatMul wraps where it should saturate, and some of its cases cannot be read back",
    ),
    "onnxruntime": (
        (1, 25),
        "its QLinearMatMul gives wrong bytes on some CPUs, and it has no ConvInteger of int8 filters",
    ),
}


def need(package: str) -> None:
    """Skip the test, and say why, where the installed version is known to be wrong."""
    pytest.importorskip(package, reason=f"{package} is not installed (extra `test`)")
    found = importlib.metadata.version(package)
    version, fault = SOUND[package]
    if tuple(int(part) for part in found.split(".")[:2]) < version:
        least = ".".join(map(str, version))
        pytest.skip(f"{package} {found} is older than {least}: {fault}")
