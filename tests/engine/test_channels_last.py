"""Images with their channels in front, turned over on one thread and on two, beside NumPy's copy."""

from __future__ import annotations

import numpy as np
import pytest

from lowgemm.engine import parts
from lowgemm.engine.channels_last import ChannelsLast

SHAPES = [
    (1, 1, 1, 1), (2, 3, 5, 7), (1, 16, 4, 4), (3, 17, 5, 9), (2, 40, 1, 16), (1, 15, 20, 20),
    (2, 64, 33, 31), (3, 5, 16, 16), (2, 70, 3, 5), (4, 33, 17),
    (1, 3, 4, 4), (4, 3, 17), (2, 3, 33, 31), (3, 3, 15), (1, 3, 5, 20),
]  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_turned_over(shape, threads, monkeypatch):
    """Planes one after another, and with gaps between them, between images, and inside of them."""
    monkeypatch.setattr(parts, "NANOSECONDS", 1e-9)  # whatever has two pieces is shared
    g = np.random.default_rng(sum(shape))
    for way in ("whole", "planes", "images", "lines"):
        wide = list(shape)
        step = {"whole": None, "planes": 1, "images": 0, "lines": len(shape) - 1}[way]
        if step is not None:
            wide[step] *= 2
        x = g.integers(0, 256, wide, dtype=np.uint8).view(np.int8)
        if step is not None:
            x = x[tuple(slice(None, None, 2 if i == step else 1) for i in range(x.ndim))]
        last = np.moveaxis(x, 1, -1)
        copied = ChannelsLast(last.shape, last.strides)
        for quickly in (False, True):
            got = copied.run(last, quickly, threads)
            assert got.flags.c_contiguous and got.dtype == x.dtype
            np.testing.assert_array_equal(got, last, err_msg=way)
