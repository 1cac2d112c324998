"""Recorded problems that ship with the package.

``recorded_network.npz``: one matrix product of a real 8-bit network, recorded by the gemmlowp authors and
published under the Apache License 2.0 (192 x 1152 by 1152 x 256, uint8, offset 84, gemmlowp's first output
scheme), with the result they recorded.
"""

from __future__ import annotations

import importlib.resources
from typing import Any

import numpy as np


def recorded_network() -> dict[str, Any]:
    """Load the recorded problem.

    Returns
    -------
    dict
        ``lhs`` (192, 1152), ``rhs`` (1152, 256) and ``expected`` (192, 256) as uint8 arrays, and the integers
        ``lhs_zero_point``, ``rhs_zero_point``, ``result_offset``, ``result_mult_int``, ``result_shift``.

    Examples
    --------
    >>> problem = recorded_network()
    >>> problem["lhs"].shape, problem["rhs"].shape, problem["lhs_zero_point"]
    ((192, 1152), (1152, 256), 84)
    """
    path = importlib.resources.files("lowgemm.data") / "recorded_network.npz"
    with path.open("rb") as f, np.load(f, allow_pickle=False) as z:
        problem: dict[str, Any] = {k: int(z[k]) for k in z.files if z[k].ndim == 0}
        problem["lhs"] = z["lhs"]
        problem["rhs"] = z["rhs_transposed"].T
        problem["expected"] = z["expected_transposed"].T
    return problem
