"""Operators that only say anew where elements lie: NumPy does them without a copy, so either side may run
them.

They run beside whatever surrounds them: within a part of onnxruntime's, or between two operators of
lowgemm's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lowgemm.onnx_run.state import State
from lowgemm.onnx_run.tape import Recorder


def identity(state: State, x: Any) -> Any:
    """Identity."""
    return x


def reshape(state: State, x: np.ndarray, shape: Any, *, allowzero: int = 0) -> np.ndarray:
    """Reshape: 0 keeps a size unless `allowzero`, -1 is what is left."""
    sizes = [int(n) for n in np.asarray(shape).reshape(-1)]
    if not allowzero:
        if any(n == 0 and i >= x.ndim for i, n in enumerate(sizes)):
            raise ValueError(f"shape: expected no 0 beyond the {x.ndim} axes of the data, got {sizes}")
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(state: State, x: np.ndarray, *, axis: int = 1) -> np.ndarray:
    """Flatten to a matrix."""
    if not -x.ndim <= axis <= x.ndim:
        raise ValueError(f"axis: expected {-x.ndim} to {x.ndim}, got {axis}")
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))


def _axes(given: Any, axes: Any) -> Any:
    """Of an input (operator set 13 on) or an attribute."""
    value = axes if given is None else given
    return None if value is None else tuple(int(a) for a in np.asarray(value).reshape(-1))


def squeeze(state: State, x: np.ndarray, given: Any = None, *, axes: Any = None) -> np.ndarray:
    """Squeeze: without axes all sizes of 1 go."""
    return np.squeeze(x, _axes(given, axes))


def unsqueeze(state: State, x: np.ndarray, given: Any = None, *, axes: Any = None) -> np.ndarray:
    """Unsqueeze."""
    return np.expand_dims(x, _axes(given, axes) or ())


def transpose(state: State, x: np.ndarray, *, perm: Any = None) -> np.ndarray:
    """Transpose."""
    return np.transpose(x, perm)


def recorded(move: Callable[..., np.ndarray]) -> Callable[..., Any]:
    """What takes an operator down (`tape.Group`), whose inputs but the first are constants, or values that
    the tape is for alone.
    """

    def record(recorder: Recorder, x: Any, *more: Any) -> Any:
        if not isinstance(x, np.ndarray) or not recorder.can_view(x):
            return None
        if not all(v is None or recorder.is_constant(v) for v in more):
            return None
        try:
            y = move(x, *more)
            if y is not x and not np.shares_memory(x, y):  # rows that do not follow one another
                x = recorder.in_order(x)
                y = move(x, *more)
        except (TypeError, ValueError, IndexError):  # said when it runs
            return None
        return (y,) if (y is x or np.shares_memory(x, y)) and recorder.can_view(y) else None

    return record


#: Operators of the default domain.
OPERATORS: dict[tuple[str, str], Callable[..., Any]] = {
    ("", "Identity"): identity,
    ("", "Reshape"): reshape,
    ("", "Flatten"): flatten,
    ("", "Squeeze"): squeeze,
    ("", "Unsqueeze"): unsqueeze,
    ("", "Transpose"): transpose,
}
