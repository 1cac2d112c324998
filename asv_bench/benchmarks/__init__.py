"""The suite. BLAS is held to one thread here, before anything imports NumPy, whichever way asv starts a benchmark."""

import os

for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ[_name] = "1"
