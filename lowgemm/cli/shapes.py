"""Shapes on the command line: MxKxN, or N for a cube."""

from __future__ import annotations

import argparse


def parse_shape(text: str) -> tuple[int, int, int]:
    """Rows, depth and columns.

    Examples
    --------
    >>> parse_shape("8x4096x1024"), parse_shape("64")
    ((8, 4096, 1024), (64, 64, 64))
    """
    parts = _numbers(text)
    if len(parts) == 1:
        parts = parts * 3
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"expected MxKxN or N, got {text!r}")
    return parts  # type: ignore[return-value]


def parse_product(text: str) -> tuple[int, ...]:
    """Rows, depth and columns, with the number of products before them for a batch.

    Examples
    --------
    >>> parse_product("8x4096x1024"), parse_product("64"), parse_product("2x3x4x5")
    ((8, 4096, 1024), (64, 64, 64), (2, 3, 4, 5))
    """
    return _numbers(text) if text.lower().count("x") == 3 else parse_shape(text)


def parse_shapes(text: str) -> list[tuple[int, ...]]:
    """Several shapes, separated by commas; one of four numbers is a batch of products.

    Examples
    --------
    >>> parse_shapes("8x4096x1024,64,2x3x4x5")
    [(8, 4096, 1024), (64, 64, 64), (2, 3, 4, 5)]
    """
    found = [parse_product(part) for part in text.split(",") if part]
    if not found:
        raise argparse.ArgumentTypeError(f"expected shapes with commas between them, got {text!r}")
    return found


def _numbers(text: str) -> tuple[int, ...]:
    try:
        parts = tuple(int(x) for x in text.lower().split("x"))
    except ValueError:
        parts = ()
    if not parts or min(parts) < 1:
        raise argparse.ArgumentTypeError(f"expected whole numbers above 0 with x between them, got {text!r}")
    return parts
