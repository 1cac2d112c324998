"""Room for the bias: the weight scale at which bias and products fit an int32 sum.

A bias is an int32 in units of ``input scale * weight scale``. A channel whose weights are nearly 0 has a tiny
scale. A bias of ordinary size is then more of these units than int32 can hold. It would saturate, or the sum
of bias and products would wrap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lowgemm.checks.values import INT32_MAX
from lowgemm.quantization.affine import quantize
from lowgemm.quantization.folding import axis_in, finite_array, per_channel
from lowgemm.quantization.qparams import REAL_MAX, SCALE_MIN, QParams, round_scale_up

#: Largest magnitude that a sum may reach. It is one less than int32 holds, because float64 may round a bias.
LARGEST_SUM = INT32_MAX - 1


def scale_for_bias(
    weight_qparams: QParams, weight: ArrayLike, bias: ArrayLike, input_qparams: QParams, *, out_axis: int = -1
) -> tuple[QParams, np.ndarray]:
    """Weight parameters whose scale is raised where bias and products would not fit an int32 sum.

    Parameters
    ----------
    weight_qparams : QParams
        How the weights are to be quantized; per tensor, or per channel along `out_axis`.
    weight : array_like of float
        The real weights.
    bias : array_like of float, shape (outputs,), or None
        The real bias.
    input_qparams : QParams
        Of the inputs; one scale.
    out_axis : int
        The axis of the weights that runs along the outputs.

    Returns
    -------
    QParams
        As given, but for the scales. No scale falls, except that of a channel whose weights are all 0. Such a
        scale only says how fine the bias is, and becomes as small as the bias allows. A scale that is a power
        of two stays a power of two.
    float64 ndarray, of the shape of the scale
        What each scale was multiplied by: 1 nearly everywhere.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the message names it.

    Notes
    -----
    With X the largest magnitude of an input less its zero point (255 at most), n weights w per output, input
    scale t and weight scale s, each weight becomes an integer of magnitude ``|w| / s + 1/2`` at most, so no
    sum passes ``|b| / (s * t) + 1/2 + X * (sum|w| / s + n / 2)``. That is at most the largest sum L if
    ``s >= (|b| / t + X * sum|w|) / (L - 1/2 - X * n / 2)``. It costs little: where the bias decides, rounding
    the weights moves a result by ``|b| * X * n / 2**32`` at most. Nor may ``s * t`` drop out of float32's
    normal range: scales that are smaller are raised too.

    Examples
    --------
    >>> import numpy as np
    >>> from lowgemm.quantization import choose_qparams
    >>> w, inputs = np.array([[1e-9, 0.5], [-1e-9, 1.0]]), QParams(1 / 255, 0, "uint8")
    >>> chosen = choose_qparams(w.min(0), w.max(0), symmetric=True, axis=1)
    >>> p, raised = scale_for_bias(chosen, w, [1.0, 1.0], inputs)
    >>> int(raised[0]), int(raised[1])
    (15080, 1)
    >>> float(1 / (p.scale[0] * inputs.scale)) < 2**31
    True
    """
    if not isinstance(weight_qparams, QParams):
        raise TypeError(f"weight_qparams: expected QParams, got {type(weight_qparams).__name__}")
    if not isinstance(input_qparams, QParams):
        raise TypeError(f"input_qparams: expected QParams, got {type(input_qparams).__name__}")
    if input_qparams.per_channel:
        raise ValueError("input_qparams: expected one scale, got one per channel")
    w = finite_array(weight, "weight")
    axis = axis_in(out_axis, w.ndim, "out_axis")
    outputs = w.shape[axis]
    if weight_qparams.per_channel and axis_in(weight_qparams.axis, w.ndim, "weight_qparams") != axis:
        raise ValueError(f"weight_qparams: expected scales on axis {out_axis}, got {weight_qparams.axis}")
    units = np.zeros(outputs) if bias is None else np.abs(per_channel(bias, "bias", outputs))
    units = units / float(input_qparams.scale)  # of s
    if not w.size:
        return weight_qparams, np.ones(weight_qparams.scale.shape)
    others = tuple(i for i in range(w.ndim) if i != axis)
    info, zero = np.iinfo(input_qparams.dtype), int(input_qparams.zero_point)
    reach = max(zero - info.min, info.max - zero)
    integers = quantize(w, weight_qparams).astype(np.int64) - weight_qparams.along(w.ndim)[1]
    sums = reach * np.abs(integers).sum(others).astype(np.float64)
    size, old = np.abs(w).sum(others), weight_qparams.scale
    with np.errstate(over="ignore"):
        over = sums + units / old + 0.5 > LARGEST_SUM
    idle = (size == 0) & (units > 0)
    room = LARGEST_SUM - 0.5 - reach * (w.size // outputs) / 2
    if over.any() and room <= 0:
        raise ValueError(
            f"weight: expected fewer weights per output, got {w.size // outputs}: sums pass int32"
        )
    needed = (units + reach * size) / max(room, 1.0)
    if not weight_qparams.per_channel:
        over, idle, needed = over.any(), not size.any() and idle.any(), needed.max()
    # s * t is the unit of the sums: float32 in files and in the last step
    least = min(SCALE_MIN / float(input_qparams.scale), 1.0)
    scale = np.maximum(np.where(over | idle, needed, old), least)
    if (scale > REAL_MAX).any():
        raise ValueError("bias: expected numbers that int32 sums can hold at a scale that float32 can hold")
    powers = np.frexp(old)[0] == 0.5
    rounded = np.where(powers, round_scale_up(scale, True), round_scale_up(scale))
    scale = np.where(scale == old, old, rounded)
    p = weight_qparams
    return QParams(scale, p.zero_point, p.dtype, p.axis, p.qmin, p.qmax), scale / old
