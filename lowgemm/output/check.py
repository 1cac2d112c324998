"""Is this a pipeline, and does it fit the result?"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowgemm.output.base import Stage


def _advice(value: Any) -> str:
    """What was probably meant by something that is no stage."""
    if isinstance(value, type) and issubclass(value, Stage):
        return f"; make one of the class: {value.__name__}(...)"
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return f"; lowgemm.SaturatingCast(numpy.{np.dtype(value)}) casts to it"
    return "; lowgemm.Custom(function) makes a stage of a function" if callable(value) else ""


def check_pipeline(output: Any, m: int, n: int) -> tuple[tuple[Stage, ...], np.dtype]:
    """Check a pipeline for an m x n result.

    Parameters
    ----------
    output : None, stage or sequence of stages
        As given to `gemm`.
    m, n : int
        Size of the result.

    Returns
    -------
    stages : tuple of Stage
        The stages.
    dtype : dtype
        Type of the result: that of the last stage's cast, or int32.

    Raises
    ------
    TypeError
        If something is not a stage.
    ValueError
        If a stage that decides the result's type is not last, or a vector's length does not fit.
    """
    if output is None:
        return (), np.dtype(np.int32)
    if isinstance(output, Stage):
        output = (output,)
    if not isinstance(output, (list, tuple)):
        raise TypeError(f"output: expected a stage or a list of stages, got {output!r:.80}{_advice(output)}")
    stages = tuple(output)
    for i, stage in enumerate(stages):
        if not isinstance(stage, Stage):
            raise TypeError(f"output[{i}]: expected an output stage, got {stage!r:.80}{_advice(stage)}")
        if stage.result_dtype is not None and i + 1 < len(stages):
            raise ValueError(f"output[{i}]: {type(stage).__name__} gives the result's dtype and must be last")
        stage.check(m, n)
    result = stages[-1].result_dtype if stages else None
    return stages, np.dtype(np.int32) if result is None else result
