"""Operands that the subjects share. What a commit does not have yet is skipped there (shown as n/a), not
failed.
"""

import importlib

import numpy as np

CUBES = [64, 256, 1024]


def feature(name, *modules):
    """Attribute or submodule of lowgemm, or of the first of `modules` that has it; a commit without it skips
    the benchmark.

    NotImplementedError is asv's word for a skip. `check.py` looks for this message: the newest commit has
    everything.
    """
    modules = modules or ("lowgemm",)
    for module in modules:
        try:
            found = importlib.import_module(module)
            return (
                getattr(found, name) if hasattr(found, name) else importlib.import_module(f"{module}.{name}")
            )
        except ImportError:
            continue
    raise NotImplementedError(f"this commit has no {modules[0]}.{name}")


def operand(rng, dtype, shape):
    """Random over the whole range of its type; writing it touches its pages."""
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def operands(m, k, n, lhs="uint8", rhs="int8"):
    """Both operands, and the rhs packed."""
    rng = np.random.default_rng(m + k + n)
    left, right = operand(rng, lhs, (m, k)), operand(rng, rhs, (k, n))
    return left, right, feature("pack_rhs")(right)


def shape_of(text):
    """Numbers of "MxKxN"."""
    return tuple(int(x) for x in text.split("x"))


def pipeline(n):
    """Bias, scale, clamp and cast to uint8."""
    return [
        feature("BiasAddition")(np.arange(n)),
        feature("ScaleInt32ByFixedPointAndExponent")(1518500250, -11, 128),
        feature("Clamp")(0, 255),
        feature("SaturatingCast")(np.uint8),
    ]
