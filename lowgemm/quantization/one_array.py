"""One array of real numbers to integers in one call: its range, its parameters, its codes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from lowgemm.checks.values import MAX_DIMS, integer
from lowgemm.quantization.affine import dequantize, quantize, real_array
from lowgemm.quantization.qparams import QParams, choose_qparams


class Quantized(NamedTuple):
    """What `quantize_array` gives. It unpacks: ``codes, qparams = lowgemm.quantize(x)``.

    Attributes
    ----------
    codes : ndarray of int8 or uint8
        Of the shape of the array.
    qparams : QParams
        What the codes stand for: ``real = scale * (code - zero_point)``.
    """

    codes: np.ndarray
    qparams: QParams

    @property
    def scale(self) -> np.ndarray:
        """Size of a step: one, or one per channel."""
        return self.qparams.scale

    @property
    def zero_point(self) -> np.ndarray:
        """The code of 0.0: one, or one per channel. `gemm` takes it as it is."""
        return self.qparams.zero_point

    def dequantize(self) -> np.ndarray:
        """The real numbers that the codes stand for, as float32."""
        return dequantize(self.codes, self.qparams)


def quantize_array(
    x: ArrayLike, dtype: DTypeLike = "int8", *, axis: int | None = None, symmetric: bool = False
) -> Quantized:
    """Quantize an array by its own smallest and largest number.

    It is also called `lowgemm.quantize`. To quantize by a range that was observed before, choose the
    parameters with an observer or `choose_qparams`, and call `lowgemm.quantization.quantize`.

    Parameters
    ----------
    x : array_like of real numbers, any shape
        Finite.
    dtype : dtype
        int8 or uint8 for `gemm`; int16 and int32 too.
    axis : int, optional
        Give each index along this axis a scale and a zero point of its own. For the right operand of a
        product that is 1, for the left one 0: one per row or column of the result.
    symmetric : bool
        Zero point in the middle, 0 for signed integers. Usual for weights: a zero point of 0 costs a product
        nothing.

    Returns
    -------
    Quantized
        Codes and parameters.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or `x` has NaN or infinity; the message names it.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> x = np.array([[0.5, -1.0], [2.0, 1.5]])
    >>> w = np.array([[0.25, -4.0], [1.0, 2.0]])
    >>> a, b = lowgemm.quantize(x, "uint8"), lowgemm.quantize(w, axis=1, symmetric=True)
    >>> to_floats = lowgemm.Dequantize(a.scale * b.scale)
    >>> y = lowgemm.gemm(a.codes, b.codes, lhs_zero_point=a.zero_point, output=to_floats)
    >>> print(y.round(1), x @ w, sep="\\n")
    [[-0.9 -4. ]
     [ 2.  -5. ]]
    [[-0.875 -4.   ]
     [ 2.    -5.   ]]
    """
    real = real_array(x)
    if not np.isfinite(real).all():
        raise ValueError("x: expected finite numbers, got NaN or infinity")
    others = None
    if axis is not None:
        axis = integer(axis, "axis", -MAX_DIMS, MAX_DIMS - 1)
        if not -real.ndim <= axis < real.ndim:
            raise ValueError(f"axis: expected an axis of x, whose shape is {real.shape}, got {axis}")
        others = tuple(i for i in range(real.ndim) if i != axis % real.ndim)
    # 0 is in every range, so an array without elements has one too
    low, high = real.min(axis=others, initial=0.0), real.max(axis=others, initial=0.0)
    qparams = choose_qparams(low, high, dtype, symmetric=symmetric, axis=axis)
    return Quantized(quantize(real, qparams), qparams)
