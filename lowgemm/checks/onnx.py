"""Zero points and scales as ONNX's operators take them: tensors of one value, or of one per row or column."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowgemm.checks.values import as_array


def zero_point_argument(value: Any, name: str, operand: np.ndarray, size: int) -> Any:
    """Scalar, one value, or one per row/column; of the operand's dtype."""
    if value is None:
        return 0
    a = as_array(value, name, "a number or a vector", operand.dtype)
    if a.dtype != operand.dtype:
        like = name.removesuffix("_zero_point")
        raise TypeError(f"{name}: expected dtype {operand.dtype} like {like}, got {a.dtype}")
    if a.size == 1:
        return int(a.reshape(()))
    flat = a.reshape(-1)
    if flat.size != size or max(a.shape) != size:
        raise ValueError(f"{name}: expected a scalar or {size} values, got shape {a.shape}")
    return flat


def result_zero_point(value: Any, name: str = "y_zero_point") -> tuple[int, np.dtype]:
    """Zero point of an 8-bit result, and its dtype, which is the result's."""
    zero = as_array(value, name, "one value")
    if zero.dtype not in (np.uint8, np.int8) or zero.size != 1:
        raise TypeError(f"{name}: expected one uint8 or int8 value, got {zero.dtype}, shape {zero.shape}")
    return int(zero.reshape(())), zero.dtype


def float_argument(value: Any, name: str) -> np.ndarray:
    """Scales of any shape as float32: finite, and those that something is divided by (`y_scale`) not 0."""
    a = as_array(value, name, "a number or a vector")
    if a.dtype.kind != "f":
        raise TypeError(f"{name}: expected a float scale, got {a.dtype}")
    # nearly all scales are one number, of which Python tells in a tenth of the time
    finite, whole = (math.isfinite(a.item()), a.item()) if a.size == 1 else (np.isfinite(a).all(), a.all())
    if not finite or (name == "y_scale" and not whole):
        raise ValueError(f"{name}: expected finite numbers{' other than 0' if name == 'y_scale' else ''}")
    return a.astype(np.float32)


def scale_argument(value: Any, name: str, size: int) -> np.ndarray:
    """Scalar, or one per row/column, as float32."""
    a = float_argument(value, name)
    if a.size not in (1, size):
        raise ValueError(f"{name}: expected a scalar or {size} values, got shape {a.shape}")
    return a.reshape(-1) if a.size != 1 else a.reshape(())
