"""`lowgemm.gemm` and `PackedRhs` inside ``@njit`` functions.

Numba calls `init` through the ``numba_extensions`` entry point, which registers types and compiles nothing.
What a user's function then holds is small: it asks a C function for the plan of the product (`planning.py`,
with the planner that Python runs) and hands it to `drivers.single`, both by address. So the engine is not
compiled a second time into each user's function, and no Python runs and no lock is taken during a product: it
is serial, and safe without the GIL and in a `prange`.

`product.py` is `gemm` as Numba sees it, `arguments.py` its checks, `packed_type.py` the type of a
`PackedRhs`, and `linked.py` how code that Numba keeps on disk finds the addresses of the process it is loaded
in.

Next file to open: `product.py`.
"""

from lowgemm.in_numba import product as _product  # noqa: F401 (registers the overload)
from lowgemm.in_numba.linked import init
from lowgemm.in_numba.packed_type import PackedRhsType

__all__ = ["PackedRhsType", "init"]
