"""What a file may be named by."""

import io
import pathlib

import pytest

from lowgemm.checks.files import check_file


@pytest.mark.parametrize("value", ["x.npz", b"x.npz", pathlib.Path("x.npz"), io.BytesIO()])
@pytest.mark.parametrize("method", ["read", "write"])
def test_paths_and_binary_files_are_taken(value, method):
    check_file(value, "file", method)


@pytest.mark.parametrize("value", [3, True, None, ["x.npz"], object(), io.StringIO()])
def test_all_else_is_refused_by_name(value):
    with pytest.raises(TypeError, match=r"^path: expected a path or a binary file"):
        check_file(value, "path", "read")


def test_a_number_closes_no_open_file(tmp_path):
    """`open` would take it for the number of an open file, and close that."""
    from lowgemm import npz

    with (tmp_path / "x").open("wb") as f:
        with pytest.raises(TypeError, match=r"^file: "):
            npz.read(f.fileno())
        with pytest.raises(TypeError, match=r"^file: "):
            npz.write(f.fileno(), x=1)
        f.write(b"still open")
