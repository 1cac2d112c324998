"""Numba's type of a `PackedRhs`: how it goes into compiled code and comes back."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.typeof import Purpose
from numba.extending import (
    NativeValue,
    box,
    make_attribute_wrapper,
    models,
    overload_attribute,
    register_model,
    typeof_impl,
    unbox,
)

from lowgemm import kernels
from lowgemm.engine.packed_rhs import PackedRhs
from lowgemm.in_numba.planning import kernel_record


class PackedRhsType(types.Type):
    """Numba's type of a two-dimensional `PackedRhs`.

    Parameters
    ----------
    dtype : numba type
        uint8 or int8.
    """

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"PackedRhs({dtype})")


_TYPES = {"u": PackedRhsType(types.uint8), "i": PackedRhsType(types.int8)}
#: Fields of the native form, and what compiled code calls them.
_FIELDS = {"panels": "_panels", "sums": "_sums", "depth": "_depth", "n": "_n", "kernel": "_kernel"}


@typeof_impl.register(PackedRhs)
def _typeof_packed(value: PackedRhs, context: Any) -> PackedRhsType | None:
    # as a global of compiled code it would be frozen with addresses of this process: pass it as an argument
    if context.purpose is not Purpose.argument or value.ndim != 2:
        return None
    return _TYPES[value.dtype.kind]


@register_model(PackedRhsType)
class _PackedRhsModel(models.StructModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        members = [(name, types.int64) for name in _FIELDS]
        members += [("owner", types.MemInfoPointer(types.voidptr)), ("object", types.voidptr)]
        super().__init__(dmm, fe_type, members)


for _name, _attribute in _FIELDS.items():
    make_attribute_wrapper(PackedRhsType, _name, _attribute)


def _describe(w: PackedRhs) -> int:
    """Address of the numbers that compiled code needs, kept on the object."""
    kernel = kernel_record(kernels.by_name(w.kernel))
    d = np.array([w.panels_address, w.sums_address, *w.shape, kernel.ctypes.data], dtype=np.int64)
    w._description = d  # type: ignore[attr-defined]
    w._in_numba = int(d.ctypes.data)  # type: ignore[attr-defined]
    return w._in_numba  # type: ignore[attr-defined,no-any-return]


@unbox(PackedRhsType)
def _unbox_packed(typ: Any, obj: Any, c_: Any) -> NativeValue:
    builder, api, context = c_.builder, c_.pyapi, c_.context
    i64 = ir.IntType(64)
    value = cgutils.create_struct_proxy(typ)(context, builder)
    found = api.object_getattr_string(obj, "_in_numba")
    slot = cgutils.alloca_once_value(builder, found)
    with builder.if_then(cgutils.is_null(builder, found), likely=False):
        api.err_clear()
        function = api.unserialize(api.serialize_object(_describe))
        builder.store(api.call_function_objargs(function, (obj,)), slot)
        api.decref(function)
    found = builder.load(slot)
    failed = cgutils.is_null(builder, found)
    with builder.if_then(builder.not_(failed)):
        at = builder.inttoptr(api.long_as_longlong(found), i64.as_pointer())
        api.decref(found)
        for i, name in enumerate(_FIELDS):
            setattr(value, name, builder.load(builder.gep(at, [ir.Constant(i64, i)])))
        value.object = obj
        value.owner = api.nrt_meminfo_new_from_pyobject(obj, obj)
    return NativeValue(value._getvalue(), is_error=failed)


@box(PackedRhsType)
def _box_packed(typ: Any, val: Any, c_: Any) -> Any:
    value = cgutils.create_struct_proxy(typ)(c_.context, c_.builder, value=val)
    c_.pyapi.incref(value.object)
    if c_.context.enable_nrt:
        c_.context.nrt.decref(c_.builder, typ, val)
    return value.object


@overload_attribute(PackedRhsType, "shape")
def _packed_shape(w):
    return lambda w: (w._depth, w._n)
