"""Arrays of other libraries as NumPy arrays over the same memory.

`values.as_array` comes here for everything that is not a plain `numpy.ndarray`, so every argument of the public functions
takes these: PyTorch CPU tensors, objects with DLPack, with `__array_interface__` or `__array__`, and with the buffer
protocol. Nothing is imported: torch is looked at only where the caller has imported it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

#: DLPack's numbers of the devices whose memory the CPU can read: CPU, and host memory pinned for CUDA and for ROCm.
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
        A `torch.Tensor` on the CPU; an object with ``__dlpack__``, ``__array_interface__``, ``__array__`` or the buffer
        protocol (`bytearray`, `memoryview`, `array.array`, `mmap.mmap`, ctypes arrays); a scalar or nested sequence,
        which is copied.
    name, expected : str
        For the messages.

    Returns
    -------
    ndarray
        A base-class array of `value`'s dtype.

    Raises
    ------
    TypeError
        If the object lies on another device, carries a gradient, is sparse or quantized, or has a type NumPy lacks.
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
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    if tensor is not None and isinstance(value, tensor):
        _check_torch(value, name)
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
        Unsigned elements are a view of the same bytes unless some byte has bits above its value (a view of other data can
        have them; `ml_dtypes` ignores them). Signed elements lie in their byte without the sign, so they are copied.

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
