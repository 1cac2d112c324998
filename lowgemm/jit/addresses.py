"""Objects that hold addresses of memory or of compiled code: what a copy of one would be.

A copy, or a pickle read in another process, would take the numbers along but not what lies there: it would
read memory that was given back. So such a class either describes how to make another one (``__reduce__``), or
is a `NotCopied`.
"""

from __future__ import annotations

from typing import NoReturn, SupportsIndex


class NotCopied:
    """Base of classes that `copy` and `pickle` refuse; `instead` says what to do.

    Examples
    --------
    >>> import copy
    >>> class Table(NotCopied):
    ...     instead = "copy what it was made of"
    >>> copy.copy(Table())
    Traceback (most recent call last):
    TypeError: Table: holds addresses of this process, so it cannot be copied or pickled;
    copy what it was made of
    """

    instead: str

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__}: holds addresses of this process, so it cannot be copied or pickled; "
            f"{self.instead}"
        )
