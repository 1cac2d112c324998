"""Block-wise 8-bit and 4-bit codes and optimizers with 8-bit state; `docs/blockwise.md` explains them."""

from lowgemm.blockwise.codebook import CodeBook, as_codebook
from lowgemm.blockwise.coded import BlockwiseArray
from lowgemm.blockwise.coding import block_scales, dequantize_blockwise, quantize_blockwise

__all__ = [
    "BlockwiseArray",
    "CodeBook",
    "as_codebook",
    "block_scales",
    "dequantize_blockwise",
    "quantize_blockwise",
]
