"""What the convolutions mean: one window at a time, in int64."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowgemm.onnx_run.geometry import geometry


def conv_sums(
    x: np.ndarray, w: np.ndarray, x_zero_point: Any = 0, w_zero_point: Any = 0, **attributes: Any
) -> np.ndarray:
    """``y[i, f, p] = sum over channels c and offsets o of (x[i, c, p * stride + o * dilation] - x_zero) *
    (w[f, c, o] - w_zero)``.

    Elements outside of `x` count as 0, that is, as `x_zero_point` before it is subtracted.

    Parameters
    ----------
    x, w : ndarray of integers
        (images, channels, ...) and (filters, channels / group, ...).
    x_zero_point : int
        Subtracted from `x`.
    w_zero_point : int or array of int
        Subtracted from `w`, one for all or one a filter.
    **attributes
        As in `geometry`.

    Returns
    -------
    ndarray of int64, shape (images, filters, ...)

    Examples
    --------
    >>> import numpy as np
    >>> conv_sums(np.array([[[1, 2, 3]]]), np.array([[[1, 1]]]))
    array([[[3, 5]]])
    """
    g = geometry(x.shape, w.shape, **attributes)
    axes = len(g.size)
    x = x.astype(np.int64) - int(x_zero_point)
    zero = np.asarray(w_zero_point, dtype=np.int64).reshape(-1, *(1,) * (axes + 1))
    w = w.astype(np.int64) - zero
    x = np.pad(x, [(0, 0), (0, 0), *zip(g.begin, g.end, strict=True)])
    y = np.zeros((x.shape[0], w.shape[0], *g.out), dtype=np.int64)
    per_group = w.shape[0] // g.group
    for f in range(w.shape[0]):
        first = f // per_group * w.shape[1]
        for p in np.ndindex(*g.out):
            window = tuple(
                slice(i * s, i * s + (k - 1) * d + 1, d)
                for i, s, k, d in zip(p, g.strides, g.kernel, g.dilations, strict=True)
            )
            part = x[(slice(None), slice(first, first + w.shape[1]), *window)]
            y[(slice(None), f, *p)] = (part * w[f]).sum(axis=tuple(range(1, part.ndim)))
    return y
