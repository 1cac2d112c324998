"""Reading ``.npz`` files that nobody vouches for: bad ones raise `ValueError`, and none runs code.

`numpy.load` with ``allow_pickle=False`` runs no code either, but allocates what an array's header claims
before it reads a byte, and raises a dozen kinds of exception. Here an array's header must agree with the
length of its entry, memory grows with the bytes that are really there, and only plain numbers and text come
back.
"""

from __future__ import annotations

import math
import os
import zipfile
from typing import IO, Any

import numpy as np

from lowgemm.checks.files import check_file
from lowgemm.checks.values import as_array, integer
from lowgemm.engine.packed_rhs import PackedRhs, pack_rhs

#: Deflate cannot make more than this of a byte, so an entry that claims more is lying.
_MAX_RATIO = 1032
_STEP = 1 << 20
_MAX_HEADER = 10_000
_FORMAT = "lowgemm_packed_rhs"


def write(file: str | os.PathLike[str] | IO[bytes], **arrays: Any) -> None:
    """Write arrays to a compressed ``.npz`` file.

    Parameters
    ----------
    file : path or binary file
        Where to; a path is used as it is.
    **arrays : array_like
        Of numbers or text.

    Raises
    ------
    TypeError
        If an array holds objects or records, or `file` is neither a path nor a binary file.
    """
    check_file(file, "file", "write")
    checked = {}
    for name, value in arrays.items():
        a = as_array(value, name, "an array")
        if a.dtype.kind not in "biufcSU":
            raise TypeError(f"{name}: expected numbers or text, got {a.dtype}")
        checked[name] = a
    if hasattr(file, "write"):
        _write(file, checked)
    else:
        with open(file, "wb") as f:
            _write(f, checked)


def _write(f: Any, arrays: dict[str, np.ndarray]) -> None:
    """One entry for each array. `numpy.savez_compressed` takes names for its own arguments, and more of them
    with each version.
    """
    with zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED) as z:
        for name, a in arrays.items():
            with z.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, a, allow_pickle=False)


def read(file: str | os.PathLike[str] | IO[bytes], *, max_bytes: int = 1 << 36) -> dict[str, np.ndarray]:
    """Read all arrays of an ``.npz`` file.

    Parameters
    ----------
    file : path or binary file
        What to read.
    max_bytes : int
        Most bytes of arrays to take: compressed zeros grow a thousandfold.

    Returns
    -------
    dict of str to ndarray

    Raises
    ------
    TypeError
        If it is neither a path nor a binary file.
    ValueError
        If it is no such file, is damaged, holds objects, or claims more than it has.
    OSError
        If it cannot be opened.

    Examples
    --------
    >>> import io
    >>> f = io.BytesIO()
    >>> write(f, x=[1, 2])
    >>> read(f)
    {'x': array([1, 2])}
    """
    check_file(file, "file", "read")
    max_bytes = integer(max_bytes, "max_bytes", 0, 2**63 - 1)
    if hasattr(file, "read"):
        return _read(file, max_bytes)
    with open(file, "rb") as f:
        return _read(f, max_bytes)


def _read(f: Any, max_bytes: int) -> dict[str, np.ndarray]:
    try:
        size = f.seek(0, os.SEEK_END)
        arrays: dict[str, np.ndarray] = {}
        with zipfile.ZipFile(f) as z:
            for info in z.infolist():
                name = info.filename.removesuffix(".npy")
                if name == info.filename or name in arrays:
                    raise ValueError(
                        f"file: expected one .npy entry for each array, got {info.filename!r:.80}"
                    )
                if info.compress_size > size or info.file_size > _MAX_RATIO * info.compress_size + _STEP:
                    raise ValueError(f"file: {name!r:.80} claims more than the file has")
                if info.file_size > max_bytes:
                    raise ValueError(f"file: expected at most {max_bytes} bytes of arrays")
                max_bytes -= info.file_size
                with z.open(info) as entry:
                    arrays[name] = _array(entry, name, info.file_size)
        return arrays
    except MemoryError:
        raise
    except ValueError as error:
        if str(error).startswith("file: "):
            raise
        raise ValueError(f"file: expected an .npz file of plain arrays ({error})") from None
    except Exception as error:  # zip, deflate and header parsing have a dozen kinds
        text = f"{type(error).__name__}: {error}"
        raise ValueError(f"file: expected an .npz file of plain arrays ({text:.200})") from None


def _array(entry: IO[bytes], name: str, size: int) -> np.ndarray:
    version = np.lib.format.read_magic(entry)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"file: {name!r:.80} has .npy version {version}")
    try:
        shape, fortran, dtype = readers[version](entry, max_header_size=_MAX_HEADER)
    except MemoryError:  # what Python's parser says to thousands of brackets
        raise ValueError(f"file: {name!r:.80} has a header that cannot be parsed") from None
    if dtype.kind not in "biufcSU" or dtype.itemsize == 0:
        raise ValueError(f"file: {name!r:.80}: expected numbers or text, got {dtype}")
    nbytes = math.prod(shape) * dtype.itemsize
    if len(shape) > 32 or min(shape, default=0) < 0 or nbytes != size - entry.tell():
        raise ValueError(f"file: {name!r:.80} claims shape {shape} of {dtype}, which is not what it has")
    data = bytearray()
    while len(data) < nbytes:
        part = entry.read(min(_STEP, nbytes - len(data)))
        if not part:
            raise ValueError(f"file: {name!r:.80} ends early")
        data += part
    if entry.read(1):  # and the checksum has been compared
        raise ValueError(f"file: {name!r:.80} goes on after its array")
    flat = np.frombuffer(data, dtype=dtype)
    return flat.reshape(shape[::-1]).transpose() if fortran else flat.reshape(shape)


def save_packed(file: str | os.PathLike[str] | IO[bytes], packed: PackedRhs) -> None:
    """Write a packed right-hand side; the file holds the plain matrix, so any kernel's machine can read it.

    Parameters
    ----------
    file : path or binary file
        Where to.
    packed : PackedRhs
        Made by `lowgemm.pack_rhs`.

    Raises
    ------
    TypeError
        If it is no `PackedRhs`.
    """
    if not isinstance(packed, PackedRhs):
        raise TypeError(f"packed: expected a PackedRhs, got {type(packed).__name__}")
    write(file, matrix=packed.to_array(), **{_FORMAT: np.int64(1)})


def load_packed(file: str | os.PathLike[str] | IO[bytes], *, max_bytes: int = 1 << 36) -> PackedRhs:
    """Read what `save_packed` wrote, packed for this machine.

    Parameters
    ----------
    file, max_bytes
        As in `read`.

    Returns
    -------
    PackedRhs

    Raises
    ------
    ValueError
        If the file is not sound; see `read`.

    Examples
    --------
    >>> import io, numpy as np, lowgemm
    >>> f = io.BytesIO()
    >>> save_packed(f, lowgemm.pack_rhs(np.array([[3], [4]], np.int8)))
    >>> load_packed(f).to_array()
    array([[3],
           [4]], dtype=int8)
    """
    arrays = read(file, max_bytes=max_bytes)
    if set(arrays) != {"matrix", _FORMAT} or arrays[_FORMAT].shape != () or arrays[_FORMAT] != 1:
        raise ValueError(
            f"file: expected the arrays 'matrix' and '{_FORMAT}' (1), got {sorted(arrays)!r:.200}"
        )
    matrix = arrays["matrix"]
    if matrix.dtype not in (np.uint8, np.int8) or matrix.ndim < 2:
        raise ValueError(
            f"file: expected a uint8 or int8 matrix, got {matrix.dtype}, {matrix.ndim} dimensions"
        )
    if matrix.size == 0 and math.prod(s for s in matrix.shape if s) > _STEP:
        raise ValueError(f"file: expected a smaller shape for a matrix without elements, got {matrix.shape}")
    return pack_rhs(matrix)
