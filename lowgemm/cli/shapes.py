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
    try:
        parts = tuple(int(x) for x in text.lower().split("x"))
    except ValueError:
        parts = ()
    if len(parts) == 1:
        parts = parts * 3
    if len(parts) != 3 or min(parts) < 1:
        raise argparse.ArgumentTypeError(f"expected MxKxN or N, got {text!r}")
    return parts  # type: ignore[return-value]


def parse_shapes(text: str) -> list[tuple[int, int, int]]:
    """Several shapes, separated by commas."""
    return [parse_shape(part) for part in text.split(",") if part]
