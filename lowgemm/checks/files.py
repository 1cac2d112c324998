"""Check of what a caller names as a file."""

from __future__ import annotations

import io
import os
from typing import Any


def check_file(value: Any, name: str, method: str) -> None:
    """TypeError if `value` is neither a path nor a binary file that has the method "read" or "write".

    An integer is refused too, because Python would take it for the number of an open file.
    """
    if isinstance(value, io.TextIOBase):
        raise TypeError(
            f"{name}: expected a path or a binary file, got {type(value).__name__}; open it in binary mode"
        )
    if not isinstance(value, (str, bytes, os.PathLike)) and not hasattr(value, method):
        raise TypeError(f"{name}: expected a path or a binary file, got {type(value).__name__}")
