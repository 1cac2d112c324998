"""Settings that hold for the whole process.

Attributes
----------
kernel : str or None
    Name of the kernel to use instead of the best one for this CPU (`python -m lowgemm.kernels` lists them).
    Starts as the environment variable ``LOWGEMM_KERNEL``. A name that does not exist, or whose instructions
    the target lacks, is refused with a `ValueError` when it is set (one from the environment by the first
    call); it is never silently replaced.
num_threads : int or None
    Upper bound on the threads of a call that does not say ``num_threads=``, at least 1. Starts as
    ``LOWGEMM_NUM_THREADS``; None means Numba's own setting (`numba.get_num_threads`).

Examples
--------
>>> import lowgemm
>>> lowgemm.config.kernel = "fastest"  # doctest: +ELLIPSIS
Traceback (most recent call last):
ValueError: kernel: no kernel is called 'fastest'; there are x86_amx_int8, ...
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from typing import Any

#: What checks a new value of each setting: `kernels` and `engine.threads`, which know what is possible, put
#: theirs here.
_checks: dict[str, Callable[[Any], Any]] = globals().get("_checks", {})  # they outlive a reload


def check_with(name: str, check: Callable[[Any], Any]) -> None:
    """Have `check` look at each new value of a setting: it returns what is kept, or raises an error that
    names the setting.
    """
    _checks[name] = check


def _checked(name: str, value: Any) -> Any:
    if name not in ("kernel", "num_threads"):
        raise AttributeError(f"{name}: no such setting; there are kernel and num_threads")
    return _checks[name](value)


class _Settings(types.ModuleType):
    """This module, which checks what is assigned to it."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value if name.startswith("_") else _checked(name, value))


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if not text:
        return None
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(f"{variable}: expected an integer of at least 1, got {text!r}")
    return int(text)


kernel: str | None = os.environ.get("LOWGEMM_KERNEL") or None
num_threads: int | None = _number("LOWGEMM_NUM_THREADS")
sys.modules[__name__].__class__ = _Settings
