"""The README's examples run and print what it says."""

from __future__ import annotations

import doctest
import pathlib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    "name", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]
)
def test_examples(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    page = doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, name, name, 0)
    assert (
        Runner(Checker(), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS).run(page).failed == 0
    )


class Runner(doctest.DocTestRunner):
    """A page may say which package it needs."""

    def report_unexpected_exception(self, out, test, example, exc_info):
        if isinstance(exc_info[1], pytest.skip.Exception):
            raise exc_info[1]
        super().report_unexpected_exception(out, test, example, exc_info)


class Checker(doctest.OutputChecker):
    """NumPy leaves the dtype out where it is that of a list of integers: int64, but int32 on Windows before
    NumPy 2.
    """

    def check_output(self, want, got, optionflags):
        usual = f", dtype={np.array([1]).dtype}"
        return super().check_output(want.replace(usual, ""), got.replace(usual, ""), optionflags)


def test_readme_has_an_example():
    assert ">>> " in (ROOT / "README.md").read_text(encoding="utf-8")
