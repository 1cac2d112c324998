"""AVX-VNNI: `vpdpbusd` on 256 bits in its VEX form, for CPUs without AVX-512 (hooks in `vnni.py`).

    acc[n] += sum_{k<4} lhs[r, 4g + k] * rhs[4g + k, n]      u8 x s8 -> int32

    lhs panel, group g (24 bytes)                  rhs panel, group g (32 bytes)
    r0: k0 k1 k2 k3 | r1: k0 k1 k2 k3 | ... r5     n0: k0 k1 k2 k3 | n1: k0 k1 k2 k3 | ... n7

Tile 6 x 16: 12 accumulators, 2 rhs vectors and 1 broadcast in the 16 registers of AVX.
"""

from lowgemm.kernels.framework.kernel import Target
from lowgemm.kernels.vnni import Vnni

KERNEL = Vnni(
    name="x86_avxvnni",
    features=("avx2", "avxvnni"),
    mr=6,
    lanes=8,
    max_nv=2,
    compiled_for=Target("x86_64-unknown-linux-gnu", "alderlake"),
)
