"""Thread limits by threadpoolctl: ``threadpool_limits(1)`` and ``threadpool_limits(1, user_api="lowgemm")``
hold here too.

threadpoolctl finds controllers by the shared libraries of a process. Numba's threading layers are loaded only
when threads are first needed, so lowgemm stands behind llvmlite's library, which is there from the start.
"""

from __future__ import annotations

from typing import Any

import llvmlite

from lowgemm import config
from lowgemm._version import __version__
from lowgemm.engine import threads

try:
    import threadpoolctl
except ImportError:  # optional
    threadpoolctl = None

#: What was reported while no limit was set: setting that again means no limit again.
_unlimited: int | None = None


def get_limit() -> int:
    """Threads that a large product may use."""
    global _unlimited
    count = threads.default_threads()
    if config.num_threads is None:
        _unlimited = count
    return count


def set_limit(count: int) -> None:
    """Bound the threads of products that do not say ``num_threads=``."""
    config.num_threads = None if count == _unlimited else max(1, int(count))


def register() -> bool:
    """Tell threadpoolctl; whether there is one that takes controllers (version 3.5 and later)."""
    if not hasattr(threadpoolctl, "register"):
        return False

    class LowgemmController(threadpoolctl.LibController):  # type: ignore[name-defined, misc]
        """Bounds `lowgemm.config.num_threads`."""

        user_api = "lowgemm"
        internal_api = "lowgemm"
        filename_prefixes = ("libllvmlite", "llvmlite")

        def get_num_threads(self) -> int:
            return get_limit()

        def set_num_threads(self, num_threads: Any) -> None:
            if num_threads is not None:
                set_limit(num_threads)

        def get_version(self) -> str:
            return f"{__version__} (llvmlite {llvmlite.__version__})"

    threadpoolctl.register(LowgemmController)
    return True


registered = register()
