"""Block-wise 8-bit and 4-bit codes and optimizers with 8-bit state; `docs/blockwise.md` explains them.

Arguments of compiled functions that mean the same in all files of this room: `job_address` is the address of
a job's record, `job` the record, `scratch` the address of this worker's own memory, and `task` the number of
the part to do (`job.py`). `operands` is the record of a rule's operands (`rules.py`), `operands_at` its
address; `first_block` is the number of a block. `book` is the address of a code book's tables
(`codebook.py`), `scale` the float32 that the values of a block are divided by. `source` and `target` are
addresses, `out` the one to write to; `n`, `count` and `length` say how many elements. `row`, `rows`, `col`,
`cols`: the first of a part, and how many.
"""

from lowgemm.blockwise.codebook import CodeBook, as_codebook
from lowgemm.blockwise.coded import BlockwiseArray
from lowgemm.blockwise.coding import block_scales, dequantize_blockwise, quantize_blockwise
from lowgemm.blockwise.mixed import MixedWeight, mixed_linear
from lowgemm.blockwise.optimizer import Optimizer
from lowgemm.blockwise.optimizers import LAMB, LARS, SGD, Adagrad, Adam, AdamW, AdEMAMix, Lion, RMSprop
from lowgemm.blockwise.packed4 import PackedRhs4bit as PackedRhs4bit  # the name it had
from lowgemm.blockwise.packed4 import PackedRhsLowbit, pack_rhs_4bit, pack_rhs_codes, pack_rhs_lowbit
from lowgemm.blockwise.product4 import gemm_4bit, gemm_lowbit
from lowgemm.blockwise.vectorwise import quantize_vectorwise

__all__ = [
    "LAMB",
    "LARS",
    "SGD",
    "AdEMAMix",
    "Adagrad",
    "Adam",
    "AdamW",
    "BlockwiseArray",
    "CodeBook",
    "Lion",
    "MixedWeight",
    "Optimizer",
    "PackedRhsLowbit",
    "RMSprop",
    "as_codebook",
    "block_scales",
    "dequantize_blockwise",
    "gemm_4bit",
    "gemm_lowbit",
    "mixed_linear",
    "pack_rhs_4bit",
    "pack_rhs_codes",
    "pack_rhs_lowbit",
    "quantize_blockwise",
    "quantize_vectorwise",
]
