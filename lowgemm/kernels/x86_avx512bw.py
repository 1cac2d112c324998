"""AVX-512 without VNNI: `vpmaddwd` on 512 bits, two 16-bit products a lane, any pair of signs (hooks in
`pmaddwd.py`).

    acc[n] += lhs[r, 2g] * rhs[2g, n] + lhs[r, 2g + 1] * rhs[2g + 1, n]      s16 x s16 -> int32

    lhs panel, group g (32 bytes)                  rhs panel, group g (64 bytes; elements of 16 bits)
    r0: k0 k1 | r1: k0 k1 | ... r7                 n0: k0 k1 | n1: k0 k1 | ... n15

Tile 8 x 48: 24 accumulators, 3 rhs vectors, 1 broadcast and 1 product in the 32 registers of AVX-512.
"""

from lowgemm.kernels.framework.kernel import Target
from lowgemm.kernels.pmaddwd import Pmaddwd

KERNEL = Pmaddwd(
    name="x86_avx512bw",
    features=("avx512f", "avx512bw"),
    mr=8,
    lanes=16,
    max_nv=3,
    compiled_for=Target("x86_64-unknown-linux-gnu", "skylake-avx512"),
)
