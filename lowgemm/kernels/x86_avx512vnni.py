"""AVX512-VNNI: `vpdpbusd` on 512 bits, four u8 x s8 products a lane (hooks in `vnni.py`).

    acc[n] += sum_{k<4} lhs[r, 4g + k] * rhs[4g + k, n]      u8 x s8 -> int32

    lhs panel, group g (32 bytes)                  rhs panel, group g (64 bytes)
    r0: k0 k1 k2 k3 | r1: k0 k1 k2 k3 | ... r7     n0: k0 k1 k2 k3 | n1: k0 k1 k2 k3 | ... n15

Tile 8 x 48: 24 accumulators, 3 rhs vectors and 1 broadcast in the 32 registers of AVX-512; 24 products need
11 loads.
"""

from lowgemm.kernels.framework.kernel import Target
from lowgemm.kernels.vnni import Vnni

KERNEL = Vnni(
    name="x86_avx512vnni",
    features=("avx512f", "avx512bw", "avx512vl", "avx512vnni"),
    mr=8,
    lanes=16,
    max_nv=3,
    # On Zen 5, 256 against 128 rows: 256 cubed 2 % faster, 512 to 1536 cubed 1 %, 3136 x 576 x 64 1 %; 512
    # rows gain nothing more.
    block_rows=256,
    compiled_for=Target("x86_64-unknown-linux-gnu", "cascadelake"),
)
