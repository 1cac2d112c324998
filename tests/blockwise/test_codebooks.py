"""Code books against the golden tables, bit for bit, and against their defining properties."""

from __future__ import annotations

import blockdata
import numpy as np
import pytest

from lowgemm.blockwise import codebooks

TABLES = sorted(blockdata.manifest()["codebooks"])


@pytest.mark.parametrize("name", [t for t in TABLES if not t.startswith("tree_bits")])
def test_golden_table(name):
    expected, made = blockdata.arrays("codebooks")[name], blockdata.made(name)
    assert made.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(made.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("signed", [True, False])
def test_golden_bit_patterns(signed):
    expected = blockdata.arrays("codebooks")["tree_bits_to_index_" + ("signed" if signed else "unsigned")]
    np.testing.assert_array_equal(codebooks.tree_bits(signed), expected)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_dynamic_tree_for_all_sizes(signed, bits):
    for levels in range(1, bits):
        table = codebooks.dynamic_tree(signed, bits, levels)
        assert table.shape == (256,) and (np.diff(table) >= 0).all()
        if levels == bits - 1:
            assert np.unique(table).size == 2**bits, "every code has a value of its own"
        # the left-over fractions of a code with fewer decades may fall on values that it has
        assert 2 ** (bits - 1) < np.unique(table).size <= 2**bits
        assert table[-1] == 1 and 0 in table
        assert (table.min() < 0) == signed


def test_every_pattern_has_its_own_code():
    assert np.unique(codebooks.tree_bits(True)).size == 256
    assert np.unique(codebooks.tree_bits(False)).size == 256


@pytest.mark.parametrize("name", sorted(codebooks.BY_NAME))
def test_named_books_are_scaled(name):
    table = codebooks.BY_NAME[name]()
    assert table.dtype == np.float32 and table.size in (3, 4, 16, 256)
    assert np.abs(table).max() == 1 and (table == 0).any()


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: codebooks.dynamic_tree(bits=1), "bits"),
        (lambda: codebooks.dynamic_tree(bits=9), "bits"),
        (lambda: codebooks.dynamic_tree(bits=4, exponent_levels=4), "exponent_levels"),
        (lambda: codebooks.linear(bits=0), "bits"),
        (lambda: codebooks.floating(8, 0), "exponent_bits"),
        (lambda: codebooks.floating(8, 8), "exponent_bits"),
    ],
)
def test_bad_sizes(call, argument):
    with pytest.raises(ValueError, match=f"^{argument}:"):
        call()


def test_bad_type():
    with pytest.raises(TypeError, match=r"^bits:"):
        codebooks.dynamic_tree(bits=8.0)
