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
"""
