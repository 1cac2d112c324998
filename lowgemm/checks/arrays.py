"""Arrays of other libraries as NumPy arrays over the same memory.

`values.as_array` comes here for everything that is not a plain `numpy.ndarray`, so every argument of the
public functions takes these: PyTorch CPU tensors, objects with DLPack, with `__array_interface__` or
`__array__`, and with the buffer protocol. Nothing is imported: torch is looked at only where the caller has
imported it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

#: DLPack's numbers of the devices whose memory the CPU can read: CPU, and host memory pinned for CUDA and for
#: ROCm.
_READABLE_DEVICES = (1, 3, 11)
_DEVICE_NAMES = {
    2: "cuda",
    4: "opencl",
    7: "vulkan",
    8: "metal",
    10: "rocm",
    13: "cuda_managed",
    14: "oneapi",
}


def _is_tensor(value: Any) -> bool:
    """Whether `value` is a `torch.Tensor`; without torch nothing is."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(value, tensor)


def _check_torch(value: Any, name: str) -> None:
    """Raise TypeError for a tensor that has no plain memory here, and say what to pass instead."""
    if value.device.type != "cpu":
        raise TypeError(f"{name}: expected a tensor on the CPU, got one on {value.device}; pass .cpu()")
    if value.requires_grad:
        raise TypeError(
            f"{name}: expected a tensor without gradient (an integer product has none); pass .detach()"
        )
    if str(value.layout) != "torch.strided":
        raise TypeError(f"{name}: expected a dense tensor, got layout {value.layout}; pass .to_dense()")
    if value.is_quantized:
        raise TypeError(
            f"{name}: expected integers, got a quantized tensor; pass .int_repr() and its zero point"
        )


def _device(value: Any) -> int | None:
    """DLPack's number of the object's device; None without DLPack."""
    kind = type(value)
    if not (hasattr(kind, "__dlpack__") and hasattr(kind, "__dlpack_device__")):
        return None
    return int(value.__dlpack_device__()[0])


def to_numpy(value: Any, name: str = "value", expected: str = "an array") -> np.ndarray:
    """An object of another library as an array, over the same memory where it has any.

    Parameters
    ----------
    value : object
        A `torch.Tensor` on the CPU; an object with ``__dlpack__``, ``__array_interface__``, ``__array__`` or
        the buffer protocol (`bytearray`, `memoryview`, `array.array`, `mmap.mmap`, ctypes arrays); a scalar
        or nested sequence, which is copied.
    name, expected : str
        For the messages.

    Returns
    -------
    ndarray
        A base-class array of `value`'s dtype.

    Raises
    ------
    TypeError
        If the object lies on another device, carries a gradient, is sparse or quantized, or has a type NumPy
        lacks.
    ValueError
        If it is a ragged sequence or a number out of range.

    Examples
    --------
    >>> import numpy as np
    >>> memory = bytearray(b"abc")
    >>> view = to_numpy(memory)
    >>> memory[0] = 1
    >>> view
    array([ 1, 98, 99], dtype=uint8)
    """
    if _is_tensor(value):
        _check_torch(value, name)
        if str(value.dtype) == "torch.bfloat16":
            raise TypeError(
                f"{name}: expected {expected} of a type that NumPy has, got torch's BFloat16; pass .float() "
                "for float32"
            )
    elif hasattr(type(value), "__cuda_array_interface__"):
        raise TypeError(f"{name}: expected {expected} on the CPU, got a {type(value).__name__} on a GPU")
    try:
        device = _device(value)
        if device is not None and device not in _READABLE_DEVICES:
            where = _DEVICE_NAMES.get(device, f"DLPack device {device}")
            raise TypeError(f"it lies on {where}, not on the CPU")
        numpy_knows = hasattr(type(value), "__array__") or hasattr(value, "__array_interface__")
        if device is not None and not numpy_knows:
            return np.from_dlpack(value)
        return np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{name}: expected {expected} ({error})") from None
    except (TypeError, BufferError, RuntimeError) as error:
        raise TypeError(f"{name}: expected {expected} ({error})") from None


def widened(a: np.ndarray) -> np.ndarray:
    """`ml_dtypes` int4, uint4, int2 and uint2 arrays as int8 or uint8, of one byte an element as theirs.

    Parameters
    ----------
    a : ndarray
        Any array; those of other dtypes come back as they are.

    Returns
    -------
    ndarray
        Unsigned elements are a view of the same bytes unless some byte has bits above its value (a view of
        other data can have them; `ml_dtypes` ignores them). Signed elements lie in their byte without the
        sign, so they are copied.

    Examples
    --------
    >>> import numpy as np
    >>> widened(np.array([1, 2], np.int16)).dtype
    dtype('int16')
    """
    bits = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2}.get(a.dtype.name)
    if bits is None or a.dtype.kind != "V" or a.dtype.itemsize != 1:
        return a
    if a.dtype.name.startswith("i"):
        return a.astype(np.int8)
    stored = a.view(np.uint8)
    return stored if a.size == 0 or int(stored.max()) < 2**bits else a.astype(np.uint8)


def bfloat16_bits(value: Any, name: str = "value") -> np.ndarray | None:
    """The bits of bfloat16 numbers, which NumPy has no type for: a uint16 array over the same memory.

    Parameters
    ----------
    value : object
        A `torch.Tensor` of bfloat16, or an array of `ml_dtypes.bfloat16` (or what NumPy makes one of).
    name : str
        For the messages.

    Returns
    -------
    ndarray of uint16, or None
        None for everything else. An object that has bfloat16 by DLPack alone is not known: NumPy does not
        read it.

    Examples
    --------
    >>> import numpy as np
    >>> print(bfloat16_bits(np.ones(3, np.float32)))
    None
    """
    if _is_tensor(value):
        if str(value.dtype) != "torch.bfloat16":
            return None
        _check_torch(value, name)
        return value.view(sys.modules["torch"].int16).numpy().view(np.uint16)
    if not (hasattr(type(value), "__array__") or hasattr(value, "__array_interface__")):
        return None
    a = value if type(value) is np.ndarray else to_numpy(value, name)
    known = a.dtype.kind == "V" and a.dtype.name == "bfloat16" and a.dtype.itemsize == 2
    return a.view(np.uint16) if known else None


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers of which these are the upper halves: exact.

    Examples
    --------
    >>> import numpy as np
    >>> print(from_bfloat16(np.uint16([0x3F80, 0xC000])))
    [ 1. -2.]
    """
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat16(a: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16 of each float32, the even one on a tie; NaN stays NaN.

    Examples
    --------
    >>> import numpy as np
    >>> print([hex(b) for b in to_bfloat16(np.float32([1, -2, 1 + 2**-8]))])
    ['0x3f80', '0xc000', '0x3f80']
    """
    bits = np.ascontiguousarray(a, dtype=np.float32).view(np.uint32)
    up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(a), quiet, (bits + up) >> np.uint32(16)).astype(np.uint16)


def as_floats(value: Any, name: str, expected: str) -> np.ndarray:
    """`to_numpy` for arguments that are real numbers: bfloat16 becomes float32, all other dtypes stay.

    Examples
    --------
    >>> as_floats([1.0, 2.0], "x", "a vector")
    array([1., 2.])
    """
    bits = bfloat16_bits(value, name)
    if bits is not None:
        return from_bfloat16(bits)
    return value if type(value) is np.ndarray else to_numpy(value, name, expected)


def detached(value: Any) -> Any:
    """A tensor that requires a gradient without it, over the same memory; everything else as it is.

    Examples
    --------
    >>> detached(3)
    3
    """
    return value.detach() if _is_tensor(value) else value


def is_array(value: Any) -> bool:
    """Whether `value` is one array of any library, rather than a sequence of them.

    Examples
    --------
    >>> is_array(bytearray(3)), is_array([1, 2])
    (True, False)
    """
    kind = type(value)
    if hasattr(kind, "__array__") or hasattr(kind, "__dlpack__") or hasattr(value, "__array_interface__"):
        return True
    try:
        memoryview(value).release()
    except (TypeError, BufferError):
        return False
    return True


def in_place(value: Any, name: str, expected: str) -> np.ndarray:
    """An array that is written into, over the memory of `value`; bfloat16 as uint16, the bits.

    Parameters
    ----------
    value : object
        As for `to_numpy`.
    name, expected : str
        For the messages.

    Returns
    -------
    ndarray

    Raises
    ------
    TypeError
        If there is no such memory: a list, or an object whose ``__array__`` makes a copy.
    ValueError
        If it may not be written.

    Examples
    --------
    >>> memory = bytearray(b"abc")
    >>> in_place(memory, "value", "an array")[0] = 65
    >>> memory
    bytearray(b'Abc')
    """
    if not is_array(value):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")

    def seen() -> np.ndarray:
        bits = bfloat16_bits(value, name)
        return to_numpy(value, name, expected) if bits is None else bits

    a = seen()
    if a.size and a.__array_interface__["data"][0] != seen().__array_interface__["data"][0]:
        got = type(value).__name__
        raise TypeError(
            f"{name}: expected {expected} to write into, got a {got} that gives copies of its data"
        )
    if not a.flags.writeable:
        raise ValueError(f"{name}: expected a writable array")
    return a
