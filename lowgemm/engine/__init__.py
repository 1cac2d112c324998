"""One product, in the order of the data.

* `call` checks the arguments of a call; `seen` and `ready` remember what was found right before; `planned` is
  what `lowgemm.plan` gives.
* `entry` goes into compiled code. It reads arrays (`array_objects`) and zero points (`zero_points`) as Python
  gave them.
* `plan` says what is asked for. `planner` decides, by `blocking` and `batch`, and fills a record (`records`).
* `packing` brings operands into the kernel's order, with the instructions of `packing_ir`. `packed_rhs` keeps
  an operand packed.
* `compensation` makes what zero points and bias add to each row and column. `tiles` multiplies.
* `drivers` and `threads` say who does it, `region` where there is no team of threads (`jit/team.py`).
* `overflow_check` says whether sums can wrap. `sums` is for `requantize` what `ready` is for `gemm`.

Arguments of compiled functions that mean the same in all files of this room; what is not said to be something
else is an int64:

* `plan`, `state`: addresses of a plan and of the state of a call; `p`, `s`: these records (`records`). `a` is
  the `ItemAddresses` of a batch item (`tiles`), `w` the record of a convolution's windows (`image`), `k` a
  kernel's template (`blocking`). `kernel_id` is a kernel's number in the registry, a constant.
* `m`, `n`, `depth`: rows, columns and depth of a product, and `mn` either of the first two. `row0`, `rows`,
  `col0`, `cols`, `k0`: the first row, column or depth step of a part, and how many; `task`, `part`: the
  number of a part that a worker does.
* `lhs`, `rhs`, `rhs_sums`, `out`, `src`, `source`, `dst`, `image`: addresses of first elements. `stride`,
  `row_stride`, `mn_stride` and `k_stride` are the bytes from one row, row or column, and depth step to the
  next; `lhs_row_stride`, `lhs_k_stride`, `rhs_k_stride`, `rhs_n_stride`, `src_stride`, `dst_stride`,
  `out_row_stride` and `out_col_stride` are these of an operand or of the result.
* `lhs_zero`, `rhs_zero`: zero points, of which `lhs_zeros` and `rhs_zeros` are the addresses where they
  differ from row to row or from column to column, else 0. `flip`, `lhs_flip`, `rhs_flip` are 128 where the
  top bit of each byte is changed, else 0. `has_bias`, `accumulate`, `lhs_signed`, `rhs_signed`: 1 or 0.
* `sums`, `row_sums`, `col_sums`, `sums_of_rhs`, `compensation`, `factors`: addresses of int32, one for each
  row or column; `channel` is the number of the first column of a batch item among those of all, by which
  zero points, bias and output stages count.
* `tile`: address of int32 sums, whose rows are `ld` elements apart. `space`: address of this worker's own
  scratch memory. `lanes`: int32 in a register; `l2`, `l3`: bytes of a cache.
* A microkernel's own arguments (`groups`, `c`, `ldc`, `add_c` and so on) are described in
  `kernels/framework/kernel.py`.
"""
