"""Arrays as callers may pass them: every layout that NumPy has, and what is no operand at all."""

from __future__ import annotations

import atexit
import contextlib
import copy
import itertools
import os
import pickle
import random
import shutil
import tempfile
from typing import Any

import numpy as np


class Subclass(np.ndarray):
    """An array type that lowgemm does not know."""


class Duck:
    """No array, but NumPy can make one of it."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values if dtype is None else self.values.astype(dtype)


class Interface:
    """An object of another library: it describes its memory and keeps it."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.values.__array_interface__


class Dlpack:
    """An object of another library that hands its memory over by DLPack."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = (
            values if values.flags.writeable else values.copy()
        )  # NumPy hands over only what can be written

    def __dlpack__(self, *args: Any, **more: Any) -> Any:
        return self.values.__dlpack__(*args, **more)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.values.__dlpack_device__()


#: Lives as long as the process. Windows opens no file twice that is deleted on closing, and deletes none that
#: is mapped.
_FOLDER = tempfile.mkdtemp()
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
_NUMBERS = itertools.count()
_SLOTS = itertools.cycle(range(16))
MEMMAP = np.memmap(os.path.join(_FOLDER, "memmap.bin"), dtype=np.uint8, mode="w+", shape=(1 << 20,))


def integers(r: random.Random, g: np.random.Generator, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Random values over the whole range, now and then only its ends."""
    info = np.iinfo(dtype)
    if r.random() < 0.2:
        return g.choice(np.array([info.min, info.min + 1, -1 if info.min else 1, 0, info.max], dtype), shape)
    return g.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def spaced(r: random.Random, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of `a` in a larger buffer, with random steps, signs and axis order; the view and the
    buffer.
    """
    order = list(range(a.ndim))
    r.shuffle(order)
    steps, starts = [r.choice((1, 1, 2, 3)) for _ in order], [r.choice((0, 0, 1, 5)) for _ in order]
    size = [starts[i] + a.shape[i] * steps[i] + r.choice((0, 3)) for i in range(a.ndim)]
    buffer = np.full([size[i] for i in order], 77, a.dtype)
    view = buffer.transpose(np.argsort(order))
    view = view[tuple(slice(starts[i], starts[i] + a.shape[i] * steps[i], steps[i]) for i in range(a.ndim))]
    view = view[tuple(slice(None, None, r.choice((1, -1))) for _ in range(a.ndim))]
    view[...] = a
    return view, buffer


def _from_disk(a: np.ndarray) -> Any:
    """As joblib passes a large array to its workers, and as a file larger than memory is opened."""
    name = os.path.join(_FOLDER, f"{next(_NUMBERS)}.npy")
    np.save(name, a)
    mapped = np.load(name, mmap_mode="r")
    with contextlib.suppress(PermissionError):  # Windows: with the folder
        os.remove(name)
    return mapped


def _read_only(a: np.ndarray) -> np.ndarray:
    b = a.view()
    b.flags.writeable = False
    return b


def foreign(r: random.Random, a: np.ndarray) -> Any:
    """The C-ordered array `a` as another program, process or library gives it, with the same strides."""
    ways = [
        lambda: pickle.loads(pickle.dumps(a, r.choice((2, 4, 5)))),  # its dtype is an object of its own
        lambda: pickle.loads(pickle.dumps(_read_only(a), 5)),
        lambda: copy.deepcopy(a),
        lambda: a.view(Subclass),
        lambda: pickle.loads(pickle.dumps(a.view(Subclass))),
        lambda: _read_only(a),
        lambda: Interface(a),
        lambda: Dlpack(a),
        lambda: Duck(a),
        lambda: np.ma.array(a),
    ]
    if a.size:  # a file or a buffer of no bytes cannot be mapped
        ways += [lambda: _from_disk(a), lambda: memoryview(a)]
    return r.choice(ways)()


def dressed(r: random.Random, a: np.ndarray) -> Any:
    """Something that NumPy reads as the 8-bit array `a`."""
    kind = r.randrange(20)
    if kind >= 16:
        return foreign(r, np.ascontiguousarray(a).reshape(a.shape))
    if kind < 4:
        return a
    if kind < 8:
        return spaced(r, a)[0]
    if kind == 8:
        return np.asfortranarray(a)
    if kind == 9:
        b = a.copy()
        b.flags.writeable = False
        return b
    if kind == 10:
        return a.view(Subclass)
    if kind == 11 and 0 < a.nbytes < 60_000:
        start = next(_SLOTS) * (1 << 16) + r.randrange(1000)  # several operands of a call lie there at once
        b = MEMMAP[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
        b[...] = a
        return b
    if kind == 12:
        return np.ma.array(a)
    if kind == 13:
        return Duck(a)
    if kind == 14 and a.ndim > 1 and a.shape[0]:
        return list(a)  # rows that are arrays keep their dtype
    if kind == 15:
        return a.astype(a.dtype.newbyteorder(">"))  # one byte has no order
    return a


def broken(r: random.Random, a: np.ndarray) -> Any:
    """Something that is no operand, or hardly one."""
    choices = (
        lambda: a.astype(np.float32),
        lambda: np.where(a > 0, np.nan, 1.0),
        lambda: a.astype(np.int64),
        lambda: a.astype(np.int16).astype(">i2"),
        lambda: a.astype(object),
        lambda: a.astype(bool),
        lambda: a.astype(np.complex64),
        lambda: a.astype(str),
        lambda: a.tolist(),
        lambda: [[1, 2], [3]],
        lambda: np.ma.array(a, mask=np.ones(a.shape, bool)),
        lambda: np.ma.masked,
        lambda: None,
        lambda: "abc",
        lambda: b"abc",
        lambda: 3,
        lambda: a.dtype.type(3),
        lambda: np.array(3, a.dtype),
        dict,
        lambda: object(),
        lambda: a.view([("x", a.dtype)]) if a.flags.c_contiguous and a.ndim else a[None],
        lambda: np.zeros((0,), a.dtype),
        lambda: np.zeros((0, 0), a.dtype),
        lambda: a[..., None],
        lambda: a[None, None],
        lambda: a.ravel(),
        lambda: a.T,
        lambda: bytearray(a.tobytes()),
        lambda: memoryview(a.tobytes()),
        lambda: np.array([a, None, "x"], dtype=object),
        lambda: np.datetime64("2020-01-01"),
        lambda: iter([1]),
        lambda: Duck(a.astype(float)),
        lambda: Duck("no array"),  # type: ignore[arg-type]
        lambda: np.repeat(a, 2, axis=0) if a.ndim else a,
    )
    return r.choice(choices)()


#: What a number or a vector should never be.
JUNK = (
    None, "x", b"x", "", [], {}, (), object(), 1.5, -0.0, float("nan"), float("inf"), -float("inf"), 1e300,
    10**30, -(10**30),
    2**31, 2**31 - 1, -(2**31), -(2**31) - 1, 2**63, -(2**63) - 1, 10**400, True, np.True_, 1j, [1, 2], [[1]],
    [1, "x"],
    [None], [float("nan")], [[1, 2], [3]], np.array(5), np.array([5]), np.array([]), np.array([1.5]),
    np.array([True]), np.float32("nan"), np.float16(3), np.int64(7), np.uint64(2**64 - 1), np.array([2**40]),
    np.array([2**64 - 1], np.uint64),
    np.array([None]), np.array([1, 2, 3], ">i4"), np.array([1, 2, 3], ">i8"), np.datetime64("2020"),
    np.timedelta64(3, "s"),
    np.ma.masked, np.ma.array([1, 2], mask=[0, 1]), range(3), iter([1, 2]), np.int8, np.dtype("i4"), Ellipsis,
    slice(3), -1, 0, 1, 31,
    32, 33, 64, 255, 256, np.zeros((2, 2), int), np.arange(1000), memoryview(b"abc"), bytearray(b"abc"),
    3 + 0j, "1", [10**30], [1e300], [2**31], np.array(["a"]), np.zeros(3, "V4"), np.zeros(3, [("x", "i4")]),
)  # fmt: skip
