"""AVX2: `vpmaddwd` on 256 bits, two 16-bit products a lane, any pair of signs (hooks in `pmaddwd.py`).

    acc[n] += lhs[r, 2g] * rhs[2g, n] + lhs[r, 2g + 1] * rhs[2g + 1, n]      s16 x s16 -> int32

    lhs panel, group g (24 bytes)                  rhs panel, group g (32 bytes; elements of 16 bits)
    r0: k0 k1 | r1: k0 k1 | ... r5                 n0: k0 k1 | n1: k0 k1 | ... n7

Tile 6 x 16: 12 accumulators, 2 rhs vectors, 1 broadcast and 1 product in the 16 registers of AVX.
"""

from lowgemm.kernels.framework.kernel import Target
from lowgemm.kernels.pmaddwd import Pmaddwd

KERNEL = Pmaddwd(
    name="x86_avx2",
    features=("avx2",),
    mr=6,
    lanes=8,
    max_nv=2,
    unroll=2,
    compiled_for=Target("x86_64-unknown-linux-gnu", "haswell"),
)
