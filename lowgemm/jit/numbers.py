"""Numbers of compiled functions: no two processes use the same.

Numba numbers the functions that it compiles, from 1 on in each process, and the number is a part of the
function's name in machine code. Code from disk keeps the names of the process that compiled it. Closures of
one factory have the same name but for that number. Where two processes had compiled one of them each under
the same number, a third that loaded both had two functions of one name, and its linker took the first for
both: a convolution with groups of 8 channels ran the loop for groups of 4.

So here the numbers of a process begin at a random place, and those of a child that is forked at another.
"""

from __future__ import annotations

import itertools
import os

from numba.core.bytecode import FunctionIdentity

from lowgemm.jit.host import after_fork_in_child

#: Random bytes of the first number. A process numbers some thousand functions.
RANDOM = 8

#: Whether this Numba numbers functions in a way that is known here. If not, nothing is kept on disk.
KNOWN = hasattr(FunctionIdentity, "_unique_ids")


def renumber() -> None:
    """Go on with numbers that no other process gives."""
    FunctionIdentity._unique_ids = itertools.count(int.from_bytes(os.urandom(RANDOM), "big"))


if KNOWN:
    renumber()
    after_fork_in_child(renumber)
