"""What a call would do, and why: `explain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numba
import numpy as np
from numpy.typing import ArrayLike

from lowgemm import config
from lowgemm.checks.arguments import as_operand
from lowgemm.conv import Prepared
from lowgemm.engine.filters import PackedFilters
from lowgemm.engine.packed_rhs import PackedRhs
from lowgemm.engine.pixels import pixels_of
from lowgemm.engine.plan import Plan
from lowgemm.engine.records import ALWAYS, LISTED, WHERE_ALIGNED
from lowgemm.gemm import checked_call
from lowgemm.jit.caches import cache_sizes
from lowgemm.jit.target import target
from lowgemm.kernels import Kernel, refused_before, selected
from lowgemm.output.base import Stage

#: Packed bytes for each multiply-accumulate's worth of time, from measurements on Zen 4: packing moves 20
#: bytes a nanosecond while the AVX512-VNNI kernel does 230 multiply-accumulates, and a finished int32 tile
#: costs a store of 4 bytes at about 30 bytes a nanosecond.
_MACS_PER_PACKED_BYTE = 230 / 20
_MACS_PER_STORED_BYTE = 230 / 30
_MACS_PER_CYCLE = 64
#: Bytes a cycle where a kernel describes its loop (`Kernel.tile_loop`), measured on an Intel Xeon with AMX at
#: 3.0 GHz: tiles from L2, packing, and int32 or byte results written along their rows, into L2 and beyond it.
#: See "Intel AMX" in docs/performance.md.
_FROM_L2, _PACKED, _STORED_IN_L2, _STORED_BEYOND = 24, 7, 14, 8


@dataclass(frozen=True)
class Explanation:
    """The decisions for one call; `str()` and `repr()` of it are the report.

    Attributes
    ----------
    plan : Plan or None
        None if nothing is compiled for the call (an empty result, or ``NUMBA_DISABLE_JIT``), and in a copy or
        a pickle: a plan is of this process.
    kernel : str
        Kernel name, or "reference".
    threads : int
        Threads.
    share_of_peak : float
        Estimated share of the time that the product instruction is busy. An estimate from tile padding and
        from the bytes packed and stored; `python -m lowgemm bench` measures.
    text : str
        The report.
    """

    plan: Plan | None
    kernel: str
    threads: int
    share_of_peak: float
    text: str

    def __reduce__(self) -> tuple[Any, ...]:
        return Explanation, (None, self.kernel, self.threads, self.share_of_peak, self.text)

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__  # at a prompt the report is what one wants to see


class TellsItself(Protocol):
    """A right operand that `gemm` does not take and that knows its own product: `PackedRhsLowbit` of
    `lowgemm.blockwise`.
    """

    def explain_product(self, lhs: ArrayLike, num_threads: int | None = None) -> tuple[str, int, float, str]:
        """Kernel, threads, share of the peak, and the report."""


def why_kernel(kernel: Kernel) -> str:
    """Why this kernel is the one in use."""
    if config.kernel is not None:
        return "forced by LOWGEMM_KERNEL or lowgemm.config.kernel"
    refused = "".join(f"; {name} {why}" for name, why in refused_before(kernel).items())
    return f"the first that Numba's target {target()[0]!r} can run{refused}"


def _why_runs(plan: Plan) -> str:
    """Why this kernel multiplies."""
    why, kernel = why_kernel(plan.kernel), plan.kernel
    if plan.runs is kernel:
        return why
    rows, depth, work = kernel.least_rows, kernel.least_depth, kernel.least_work
    pays = f"which pays from {rows} rows, depth {depth} and m n (depth + 16) = {work:,} on"
    return f"in place of {kernel.name}, {pays}; that one is {why}"


class Prediction(NamedTuple):
    """Cycles of one core for a product, by what they go to; the products and the bytes from L2 overlap, the
    others are added.
    """

    products: int
    from_l2: int
    packing: int
    stores: int

    @property
    def total(self) -> int:
        """Cycles of the whole product."""
        return max(self.products, self.from_l2) + self.packing + self.stores


def _packed_bytes(plan: Plan) -> int:
    """Elements that the call packs."""
    lhs = 0 if plan.p.lhs_in_place in (ALWAYS, LISTED) else plan.m * plan.depth * plan.blocking.col_blocks
    if plan.p.steps_at:
        lhs = plan.blocking.row_blocks * int(pixels_of(plan.p, plan.blocking.mc) * plan.p.pixel_bytes)
    return (lhs + (0 if plan.packed else plan.n * plan.depth)) * plan.runs.element_bytes


def predicted(plan: Plan) -> Prediction | None:
    """The cycles of a plan by the model of its kernel's loop, or None where the kernel has none.

    Measured products need 1.0 to 1.9 times as many (docs/performance.md).
    """
    kernel, caches = plan.runs, cache_sizes()
    step = kernel.tile_loop(plan.depth, caches.l1)
    if step is None:
        return None
    steps = (
        -(-plan.m // kernel.mr) * -(-plan.n // kernel.nr) * -(-plan.depth // kernel.step_depth) * plan.batch
    )
    stored = plan.batch * plan.m * plan.n * plan.result.itemsize
    per_cycle = _STORED_IN_L2 if 2 * stored <= caches.l2 else _STORED_BEYOND
    packed = plan.batch * _packed_bytes(plan)
    return Prediction(
        steps * step.products, steps * step.from_l2 // _FROM_L2, packed // _PACKED, stored // per_cycle
    )


def _share(plan: Plan) -> float:
    kernel = plan.runs
    macs = plan.m * plan.n * plan.depth
    if macs == 0:
        return 0.0

    def up(x: int, step: int) -> int:
        return -(-x // step) * step

    cycles = predicted(plan)
    if cycles is not None:
        return plan.batch * macs / kernel.macs_per_cycle / cycles.total
    worked = plan.m * up(plan.n, kernel.lanes) * up(plan.depth, kernel.step_depth)
    stored = plan.m * plan.n * plan.result.itemsize
    overhead = _packed_bytes(plan) * _MACS_PER_PACKED_BYTE + stored * _MACS_PER_STORED_BYTE
    # a faster kernel waits longer for the same bytes, counted in its own products
    return macs / (worked + overhead * kernel.macs_per_cycle / _MACS_PER_CYCLE)


def _how_lhs(plan: Plan) -> str:
    """How the kernel reads the lhs."""
    kind = plan.runs.lhs_type
    if plan.p.steps_at:
        return f"lhs {kind} read from grids of pixels"
    if plan.image is not None:
        return f"lhs gathered as {kind}"
    if plan.p.lhs_in_place in (ALWAYS, LISTED):
        return f"lhs {kind} in place"
    if plan.p.lhs_in_place == WHERE_ALIGNED:
        return f"lhs {kind} in place if its rows begin on cache lines, or copied"
    return f"lhs packed as {kind}"


def _how_gathered(plan: Plan) -> str:
    """How the lhs comes from an image that is not one itself."""
    if not plan.p.steps_at:
        return "patches gathered while the lhs is packed, no matrix of patches in memory"
    rows, pixels = plan.p.line_rows, plan.p.grid_width
    beyond = f"; {pixels - rows} of {pixels} rows are computed in vain" if pixels > rows else ""
    return f"each pixel copied once for a block, with padding, where all its taps find it{beyond}"


def explain(
    lhs: ArrayLike,
    rhs: ArrayLike | PackedRhs | PackedFilters | TellsItself,
    *,
    lhs_zero_point: ArrayLike = 0,
    rhs_zero_point: ArrayLike = 0,
    output: Stage | Sequence[Stage] | None = None,
    out: np.ndarray | None = None,
    accumulate: bool = False,
    num_threads: int | None = None,
    overflow: str = "wrap",
    image_zero_point: int = 0,
    filter_zero_point: ArrayLike = 0,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int | tuple[int, int]] = 0,
    dilation: int | Sequence[int] = 1,
    channels: str = "last",
) -> Explanation:
    """Say what `gemm` would do with these arguments, `conv` with packed filters, or `blockwise.gemm_lowbit`
    with weights of 4 or 2 bits.

    Parameters
    ----------
    lhs, rhs, lhs_zero_point, rhs_zero_point, output, out, accumulate, num_threads, overflow
        As for `gemm`. With weights of 4 or 2 bits `num_threads` alone matters.
    image_zero_point, filter_zero_point, stride, padding, dilation, channels
        As for `conv`, whose image is `lhs` and whose packed filters are `rhs`.

    Returns
    -------
    Explanation
        Print it.

    Raises
    ------
    TypeError, ValueError
        As `gemm` would.

    Examples
    --------
    >>> import numpy as np, lowgemm
    >>> x = np.zeros((64, 128), np.uint8)
    >>> print(lowgemm.explain(x, x.T))  # doctest: +ELLIPSIS
    64 x 128 by 128 x 64, uint8 x uint8 -> int32
    kernel    ...
    """
    tell = getattr(rhs, "explain_product", None)  # weights of fewer bits than `gemm` knows say it themselves
    if tell is not None:
        return Explanation(None, *tell(lhs, num_threads))
    if isinstance(rhs, PackedFilters):
        options = {
            "image_zero_point": image_zero_point, "filter_zero_point": filter_zero_point, "stride": stride,
            "padding": padding,
            "dilation": dilation, "output": output, "num_threads": num_threads, "channels": channels,
        }  # fmt: skip
        return _of_convolution(lhs, rhs, options)
    call = checked_call(
        lhs,
        rhs,
        lhs_zero_point=lhs_zero_point,
        rhs_zero_point=rhs_zero_point,
        output=output,
        out=out,
        accumulate=accumulate,
        num_threads=num_threads,
        overflow=overflow,
    )
    shapes = f"{call.m} x {call.depth} by {call.depth} x {call.n}"
    head = f"{shapes}, {call.lhs.dtype} x {call.rhs.dtype} -> {call.result}"
    if call.batch != 1 or call.batch_shape:
        head += f", batch {call.batch_shape}"
    if call.own_zeros:
        head += ", one after the other (zero points of each matrix)"
    if call.out.size == 0 or numba.config.DISABLE_JIT:
        why = (
            "the result is empty"
            if call.out.size == 0
            else "NUMBA_DISABLE_JIT is set: the slow definition runs"
        )
        return Explanation(None, "reference", 1, 0.0, f"{head}\nkernel    none: {why}")
    kernel = selected()
    plan = call.plan(kernel)
    if isinstance(call.rhs, PackedRhs):
        packed = (
            "packed before"
            if call.rhs.kernel == kernel.name
            else f"packed for {call.rhs.kernel}: REPACKED each call"
        )
    else:
        how = "on the fly block by block, " if plan.blocking.on_the_fly else ""
        packed = f"packed each call, {how}pack_rhs does it once"
        if plan.p.in_place:
            packed = "read where it lies, not packed (few rows)"
    return _of_plan(head, plan, packed)


def _of_convolution(image: Any, filters: PackedFilters, options: dict[str, Any]) -> Explanation:
    """What `conv` would do with packed filters."""
    x = as_operand(image, "image")
    if options["channels"] == "first":
        x = x.transpose(0, *range(2, x.ndim), 1)
    copied = x.strides[-1] != 1 or min(x.strides) < 0
    zeros = options["image_zero_point"], options["filter_zero_point"]
    known = Prepared(
        filters, x.shape, x.dtype, zeros, options["stride"], options["padding"], options["dilation"],
        options["output"], options["num_threads"],
    )  # fmt: skip
    taps = " x ".join(map(str, filters.shape[:-2]))
    head = (
        f"convolution of {x.shape} by {taps} filters in {filters.groups} groups, {x.dtype} x {filters.dtype} "
        "-> "
        f"{known.result} {known.shape}, channels last"
    )
    if 0 in known.shape or numba.config.DISABLE_JIT:
        why = (
            "the result is empty"
            if 0 in known.shape
            else "NUMBA_DISABLE_JIT is set: the slow definition runs"
        )
        return Explanation(None, "reference", 1, 0.0, f"{head}\nkernel    none: {why}")
    strides = np.empty(x.shape, np.uint8).strides if copied else x.strides
    plan = known.plan(strides)
    loop = ""
    if filters.in_loop(known.filter_zero):
        loop = "depthwise" if filters.shape[-2] == 1 else "grouped"
        image_is = "four lines at a time are interleaved; a register has four bytes of 16 channels"
        if loop == "grouped":
            image_is = "lines are copied with their padding; a register has neighbouring channels of a pixel"
    elif plan.image is None:
        image_is = "the pixels are the rows of the lhs, no copy"
    else:
        image_is = _how_gathered(plan)
    if copied:
        image_is = f"COPIED so that channels are last and side by side; {image_is}"
    if loop:
        steps = " -> ".join(step.name for step in plan.pipeline.steps)
        lines = [
            head,
            f"kernel    {loop}, in vectors of {'16 channels' if loop == 'depthwise' else 'groups'} "
            f"({why_kernel(plan.kernel)})",
            f"image     {image_is}",
            f"blocking  {plan.blocking.row_blocks} lines x {plan.blocking.col_blocks} blocks of channels",
            f"stages    {steps} on each tile in cache",
            f"threads   {plan.threads}",
            f"scratch   {plan.scratch_bytes / 1024:.0f} KiB",
        ]
        return Explanation(plan, loop, plan.threads, 0.0, "\n".join(lines))
    return _of_plan(f"{head}\nimage     {image_is}", plan, "packed before")


def _of_plan(head: str, plan: Plan, packed: str) -> Explanation:
    """The report on a plan; `packed` says how the rhs comes."""
    runs = plan.runs
    b, caches = plan.blocking, cache_sizes()
    sizes = f"L1 {caches.l1 >> 10} KiB, L2 {caches.l2 >> 10} KiB, L3 {caches.l3 >> 20} MiB"
    share = _share(plan)
    steps = [step.name for step in plan.pipeline.steps]
    folded = [s for s in ("col_bias", "row_bias") if getattr(plan.pipeline, s) is not None]
    whole = b.depth_blocks == 1 and not b.on_the_fly  # or the sums of several depth blocks wait in a tile
    if plan.fused and whole:
        stages = "scale, clamp and cast in the kernel's registers (edges through a tile)"
    elif plan.p.direct and whole:
        stages = "none: the kernel stores int32 sums itself (edges through a tile)"
    elif plan.p.stream:
        stages = "none: blocks of int32 sums are stored past the caches"
    else:
        stages = " -> ".join(steps) + " on each tile in cache"
    if folded:
        stages += f"; {' and '.join(folded)} in the kernel's zero-point compensation"
    lines = [
        head,
        f"kernel    {runs.name} ({_why_runs(plan)})",
        f"tile      {runs.mr} x {runs.nr}, {runs.step_depth} deep; {_how_lhs(plan)}, rhs packed as "
        f"{runs.rhs_type}",
        f"rhs       {packed}",
        f"blocking  mc {b.mc}, nc {b.nc}, kc {b.kc}: {b.row_blocks} x {b.col_blocks} blocks, depth in "
        f"{b.depth_blocks}"
        + (f" as {b.splits} splits (split-K)" if b.splits > 1 else "")
        + (f", {plan.p.call_columns} columns a call (predicted)" if runs.any_panels else "")
        + f" ({sizes})",
        f"stages    {stages}",
        f"threads   {plan.threads}",
        f"scratch   {plan.scratch_bytes / 1024:.0f} KiB",
        f"estimate  {100 * share:.0f} % of the kernel's peak (a model: padding, packing, stores)",
    ]
    cycles = predicted(plan)
    if cycles is not None:
        lines.append(
            f"predicted {cycles.total:,} cycles of a core: products {cycles.products:,} beside "
            f"{cycles.from_l2:,} for bytes from L2, "
            f"packing {cycles.packing:,}, stores {cycles.stores:,}"
        )
    return Explanation(plan, runs.name, plan.threads, share, "\n".join(lines))
