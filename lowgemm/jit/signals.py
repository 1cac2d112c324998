"""Ctrl-C and other signals wait while something is compiled.

Neither Numba nor LLVM can be left halfway. Numba reads its lists of declarations by generators, and an
exception inside a generator ends it for the rest of the process. LLVM calls back into Python, and no
exception can pass through it. But Python runs the handler of a signal between any two of its steps, and the
handler of Ctrl-C raises.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

#: Not empty while signals wait.
_wait: list[bool] = []


class _Noted:
    """In place of a handler: notes that the signal came, as long as signals wait."""

    def __init__(self, number: int, handler: Callable[..., Any], came: list[_Noted]) -> None:
        self.number, self.came = number, came
        # one that an exception has left in place
        self.handler: Callable[..., Any] = handler.handler if isinstance(handler, _Noted) else handler

    def __call__(self, number: int, frame: Any) -> Any:
        """What Python calls."""
        if not _wait:  # the handler is not back yet
            return self.handler(number, frame)
        if self not in self.came:  # as systems do: a signal that waits comes once
            self.came.append(self)
        return None


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Handle signals that come inside the block at its end.

    Python runs handlers in the main thread alone, so nothing is done in any other. Signals that the system
    or a library in C handles are left alone.
    """
    if _wait or threading.get_ident() != threading.main_thread().ident:
        yield
        return
    came: list[_Noted] = []
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    noted = [_Noted(number, handler, came) for number, handler in handlers.items() if callable(handler)]
    try:
        with contextlib.suppress(
            ValueError
        ):  # Python does not take this thread for its main one: no handler runs here
            for one in noted:
                signal.signal(one.number, one)
        _wait.append(True)
        yield
    finally:
        _wait.clear()
        try:
            for one in noted:
                if signal.getsignal(one.number) is one:  # else somebody has put in another meanwhile
                    signal.signal(one.number, one.handler)
        finally:
            _handle(came)


def _handle(came: list[_Noted]) -> None:
    """Call the handlers of the signals that came, all of them, even if one raises."""
    if came:
        first, *rest = came
        try:
            first.handler(first.number, sys._getframe())
        finally:
            _handle(rest)
