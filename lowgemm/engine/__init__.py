"""One product, in the order of the data.

`calls` remembers what was asked before, `entry` goes into compiled code. `plan` says what is asked for, `planner` decides by `blocking` and
`batch` and fills a record (`records`). `packing` and `panels` bring operands into the kernel's order (`packed` keeps one), `compensation` holds zero points and bias,
`tiles` multiplies. `drivers` and `threads` say who does it, `pace` when a second thread is not to be had, `overflow_check` whether sums can wrap.
"""
