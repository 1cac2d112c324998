"""Settings that hold for the whole process.

Attributes
----------
kernel : str or None
    Name of the kernel to use instead of the best one for this CPU (`python -m lowgemm.kernels` lists them).
    Starts as the environment variable ``LOWGEMM_KERNEL``. A name that does not exist, or whose instructions the
    target lacks, is refused with a `ValueError` by the next call; it is never silently replaced.
num_threads : int or None
    Upper bound on the threads of a call that does not say ``num_threads=``. Starts as ``LOWGEMM_NUM_THREADS``;
    None means Numba's own setting (`numba.get_num_threads`).
"""

from __future__ import annotations

import os

kernel: str | None = os.environ.get("LOWGEMM_KERNEL") or None
num_threads: int | None = (
    int(os.environ["LOWGEMM_NUM_THREADS"]) if "LOWGEMM_NUM_THREADS" in os.environ else None
)
