"""Blocks cover the product exactly, fit the caches, and give every thread work."""

from __future__ import annotations

import dataclasses
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowgemm import kernels
from lowgemm.engine.blocking import (
    BLOCK_COLUMNS,
    BLOCK_MACS,
    BLOCK_ROWS,
    BY_COLUMNS,
    BY_ROWS,
    CALL_TILES,
    MOST_CALL_COLUMNS,
    NOT_ON_THE_FLY,
    SPLIT_DEPTH,
    Blocking,
    block_limits,
    block_sizes,
    columns_of_a_call,
)
from lowgemm.jit.caches import cache_sizes

SIZE = st.one_of(st.integers(1, 300), st.integers(1, 10**6))


def blocks(
    kernel, m, n, depth, *, threads=1, batch=1, direct=True, on_the_fly=NOT_ON_THE_FLY, l2=None
) -> Blocking:
    """Block sizes of one product, also for a kernel that does not run here: a template would compile it."""
    most = zip(("most_rows", "most_rows_with_stages", "most_columns"), block_limits(kernel), strict=True)
    own = {
        name: getattr(kernel, name)
        for name in ("mr", "nr", "lanes", "element_bytes", "row_bytes", "any_panels")
    }
    limits = types.SimpleNamespace(**own, **dict(most), l2=l2 or cache_sizes().l2, l3=cache_sizes().l3)
    return Blocking(*block_sizes(limits, m, n, depth, threads, batch, direct, on_the_fly))


@pytest.mark.parametrize("kernel", kernels.all_kernels(), ids=lambda k: k.name)
@given(
    m=SIZE,
    n=SIZE,
    depth=st.integers(0, 10**6),
    threads=st.integers(1, 64),
    batch=st.integers(1, 9),
    direct=st.booleans(),
    on_the_fly=st.integers(0, 4),
)
def test_blocks_cover_everything_once(kernel, m, n, depth, threads, batch, direct, on_the_fly):
    b = blocks(kernel, m, n, depth, threads=threads, batch=batch, direct=direct, on_the_fly=on_the_fly)
    assert b.mc % kernel.mr == 0
    assert (b.row_blocks - 1) * b.mc < m <= b.row_blocks * b.mc
    assert (b.col_blocks - 1) * b.nc < n <= b.col_blocks * b.nc
    assert b.col_blocks == 1 or b.nc % kernel.lanes == 0
    if b.depth_blocks > 1:
        assert (b.depth_blocks - 1) * b.kc < depth <= b.depth_blocks * b.kc and b.kc % kernel.kr == 0
    else:
        assert depth <= b.kc
    each = -(-b.depth_blocks // b.splits)
    assert (b.splits - 1) * each < b.depth_blocks <= b.splits * each
    if b.splits > 1:
        assert threads > 1 and depth // b.splits >= SPLIT_DEPTH // 2


def test_more_threads_get_more_blocks():
    kernel = kernels.by_name("portable")
    b = blocks(kernel, 1024, 1024, 1024, threads=16)
    assert b.row_blocks * b.col_blocks >= 16


@pytest.mark.parametrize("kernel", kernels.all_kernels(), ids=lambda k: k.name)
def test_blocks_stay_small_where_threads_wait_for_the_last(kernel):
    for threads in (2, 3, 8):
        b = blocks(kernel, 4096, 2048, 2048, threads=threads)
        assert b.mc * b.nc * b.kc <= BLOCK_MACS or (b.mc <= 2 * BLOCK_ROWS and b.nc <= 2 * BLOCK_COLUMNS)


def test_threads_share_what_there_is():
    """Rows first, in whole rounds; then columns; and the depth where both are few."""
    kernel = kernels.by_name("portable")
    tall = blocks(kernel, 640, 640, 640, threads=3)
    assert tall.row_blocks % 3 == 0 and tall.splits == 1
    wide = blocks(kernel, 4, 4096, 4096, threads=2)
    assert wide.row_blocks == 1 and wide.col_blocks >= 4 and wide.splits == 1
    deep = blocks(kernel, 16, 64, 65536, threads=2)
    assert deep.row_blocks * deep.col_blocks == 1 and deep.splits >= 4 and deep.depth_blocks >= deep.splits
    assert blocks(kernel, 16, 64, 65536).splits == 1


def test_an_rhs_of_one_use_is_streamed_where_rows_are_few():
    kernel = kernels.by_name("portable")
    sizes = {"m": 4, "n": 4096, "depth": 4096}
    by_rows, by_columns = (blocks(kernel, **sizes, on_the_fly=s) for s in (BY_ROWS, BY_COLUMNS))
    assert by_rows.on_the_fly and by_rows.depth_blocks > 1 and by_rows.kc * by_rows.nc <= cache_sizes().l2
    assert (
        by_columns.on_the_fly
        and by_columns.col_blocks > 1
        and by_columns.kc * by_columns.nc <= cache_sizes().l2
    )
    assert not blocks(kernel, **sizes).on_the_fly
    assert not blocks(kernel, 400, 4096, 4096, on_the_fly=BY_ROWS).on_the_fly


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_a_deep_product_has_tall_blocks_of_a_part_of_the_depth(threads):
    """Where that saves half of what comes from L3, for a kernel that reads rows."""
    kernel = kernels.by_name("x86_amx_int8")
    deep = blocks(kernel, 512, 4096, 11008, threads=threads, l2=2 << 20)
    assert deep.mc == 512 and deep.depth_blocks > 1 and deep.kc % kernel.row_bytes == 0
    assert deep.mc * deep.kc + 4 * deep.mc * deep.nc <= 2 << 20
    assert deep.col_blocks % threads == 0 and deep.splits == 1
    for m, n, depth in (
        (512, 4096, 4096),  # two blocks of rows
        (512, 128, 11008),  # an rhs that fits L2
        (64, 4096, 11008),  # one block of rows
        (1024, 4096, 11008),  # more rows than fit
    ):
        assert blocks(kernel, m, n, depth, threads=threads, l2=2 << 20).depth_blocks == 1
    common = kernels.by_name("x86_avx512vnni")
    assert blocks(common, 512, 4096, 11008, threads=threads, l2=2 << 20).depth_blocks == 1


def test_a_kernel_may_say_its_own_block_sizes():
    common = kernels.by_name("portable")
    own = dataclasses.replace(common, block_rows=12, block_rows_with_stages=8, block_columns=64)
    assert blocks(own, 1000, 100, 100).mc == 12 < blocks(common, 1000, 100, 100).mc
    assert blocks(own, 1000, 100, 100, direct=False).mc == 8
    deep = blocks(own, 1000, 1000, 10**6)
    assert deep.depth_blocks > 1 and (deep.mc, deep.nc) == (8, 64)


def test_a_kernel_that_walks_along_columns_gets_as_many_as_fit_l2():
    """Beside the block of the lhs, in whole tiles, one at least; and just one where sums wait for stages, or
    for any other kernel.
    """

    def columns(mc, kc, name="x86_amx_int8", wide=True):
        kernel = kernels.by_name(name)
        own = types.SimpleNamespace(nr=kernel.nr, any_panels=int(kernel.any_panels), l2=2 << 20)
        return columns_of_a_call(own, mc, kc, wide)

    for mc, kc in [(32, 64), (256, 512), (256, 1024), (256, 2048), (96, 11008)]:
        wide = columns(mc, kc)
        room = (2 << 20) * 5 // 8
        assert wide % 32 == 0
        if wide > CALL_TILES * 32:  # it fits L2
            assert (mc + wide) * kc <= room
        if wide < MOST_CALL_COLUMNS:  # and no more does
            assert room < (mc + wide + 32) * kc
    assert columns(256, 1024) == 1024 and columns(256, 4096) == 64
    assert columns(256, 1024, wide=False) == 32
    assert columns(256, 1024, "x86_avx512vnni") == 48
