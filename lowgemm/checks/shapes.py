"""Shapes by NumPy's rules, for any number of dimensions that an array can have."""

from __future__ import annotations

import itertools

Shape = tuple[int, ...]


def broadcast(a: Shape, b: Shape) -> Shape:
    """Shape of two leading shapes together, by NumPy's rules, for up to 64 dimensions.

    `np.broadcast_shapes` stops at 32 dimensions.

    Raises
    ------
    ValueError
        If they do not fit.

    Examples
    --------
    >>> broadcast((2, 1), (5, 1, 3))
    (5, 2, 3)
    """
    shape = []
    for x, y in itertools.zip_longest(reversed(a), reversed(b), fillvalue=1):
        if x != y and 1 not in (x, y):
            raise ValueError(f"shapes {a} and {b} do not broadcast")
        shape.append(y if x == 1 else x)
    return tuple(reversed(shape))
