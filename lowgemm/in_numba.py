"""`lowgemm.gemm` and `PackedRhs` inside ``@njit`` functions.

Numba calls `init` through the ``numba_extensions`` entry point, which registers types and compiles nothing. What a
user's function then holds is small: it asks a C function for the plan of the product (`_make_plan`, the same
numbers as `plan.py`, a test compares them) and hands it to `compute.single_routine`, both by address. So the
engine is not compiled a second time into each user's function, and no Python runs and no lock is taken during a
product: it is serial, and safe without the GIL and in a `prange`.

The addresses differ from process to process, and users' functions may be cached on disk. So compiled code finds them
in `_TABLE` by a symbol of the linker, and carries a ticket (`_ticket`) that fills the table when it is loaded.

Next file to open: `compute.py`.
"""

from __future__ import annotations

import functools
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, errors
from numba.core.typing.typeof import Purpose
from numba.extending import (
    NativeValue,
    box,
    intrinsic,
    make_attribute_wrapper,
    models,
    overload,
    overload_attribute,
    register_jitable,
    register_model,
    typeof_impl,
    unbox,
)

from lowgemm import blocking, kernels, packing, workspace
from lowgemm import compute as c
from lowgemm._jit import call_address, compile_c, signature, source_stamp
from lowgemm.caches import cache_sizes
from lowgemm.gemm import gemm
from lowgemm.memory import address, as_address, load_i64, stack
from lowgemm.packed import PackedRhs

__all__ = ["PackedRhsType", "init"]

#: Version of what compiled code assumes: the table, the records, the arguments of the plan routine.
ABI = 1
_SYMBOL = f"lowgemm_table_{ABI}"
#: Addresses: plan routine, product routine, record of the kernel for arrays.
_PLAN, _SINGLE, _RECORD = range(3)
_TABLE = np.zeros(8, dtype=np.int64)

# ---- record: what the plan needs to know of a kernel ------------------------------------------------------
(
    R_MR, R_LANES, R_NR, R_KR, R_ELEMENT, R_GROUP,
    R_LHS_FLIP, R_LHS_SHIFT, R_LHS_FLIP_S, R_LHS_SHIFT_S, R_RHS_FLIP, R_RHS_SHIFT, R_RHS_FLIP_S, R_RHS_SHIFT_S,
    R_KERNEL, R_PACK_LHS, R_PACK_RHS, R_COL_TERMS, R_ROW_TERMS,
    R_ZEROS, R_STORE, R_SET, R_ADD, R_BILINEAR, R_NOTHING,
    RECORD_SIZE,
) = range(26)  # fmt: skip
#: Zeros that a microkernel reads as terms: one for each row of a block or column of a tile.
_ZEROS = np.zeros(4096, dtype=np.int32)
#: Parameters of the int32 store: bounds (unused) and whether to add.
_STORE_SET, _STORE_ADD = np.array([0, 0, 0], dtype=np.int64), np.array([0, 0, 1], dtype=np.int64)
_NOTHING = np.zeros(1, dtype=np.int64)
#: Where the plan routine leaves the bytes of scratch memory: behind the plan.
SCRATCH_AT = c.PLAN_SIZE
_PLAN_BYTES = 8 * (c.PLAN_SIZE + 1)


@functools.cache
def record_of(kernel: kernels.Kernel) -> np.ndarray:
    """Numbers of a kernel for the plan routine; compiles what they are addresses of."""
    from lowgemm.output.routines import routine

    col_terms, row_terms = c.term_routines()
    sides = [v for side in ("lhs", "rhs") for kind in "ui" for v in packing.element_map(kernel, side, kind)]
    if max(kernel.nr, blocking.MAX_MC + kernel.mr, blocking.NC_DEPTH_BLOCKED + 2 * kernel.nr) > _ZEROS.size:
        raise ValueError(f"kernel: tile of {kernel.name!r} is too large to be called from compiled code")
    return np.array(
        [
            kernel.mr, kernel.lanes, kernel.nr, kernel.kr, kernel.element_bytes, kernel.rhs_group_bytes, *sides,
            kernels.microkernel(kernel).address,
            packing.pack_routine(kernel, "lhs").address, packing.pack_routine(kernel, "rhs").address,
            col_terms.address, row_terms.address,
            _ZEROS.ctypes.data, routine("store32").address, _STORE_SET.ctypes.data, _STORE_ADD.ctypes.data,
            routine("bilinear").address, _NOTHING.ctypes.data,
        ],
        dtype=np.int64,
    )  # fmt: skip


@register_jitable
def _up(x, step):
    return (x + step - 1) // step * step


def _make_plan(l2: int, stamp: int) -> Any:
    chunk_bytes, line, align = packing.CHUNK_BYTES, packing.LINE, workspace.ALIGNMENT
    max_mc, max_mc_deep, nc_deep = blocking.MAX_MC, blocking.MAX_MC_WITH_STAGES, blocking.NC_DEPTH_BLOCKED

    @compile_c(signature("pp" + "n" * 14))
    def plan(
        r, p, m, n, depth, lrs, lks, lhs_signed, rks, rns, rhs_signed, packed, bilinear, accumulate, ors, ocs
    ):
        """Fill in `p` as `plan.Plan` does for one product on one thread without output stages."""
        _ = stamp
        mr, lanes, nr, kr = load_i64(r, R_MR), load_i64(r, R_LANES), load_i64(r, R_NR), load_i64(r, R_KR)
        size = load_i64(r, R_ELEMENT)
        direct = not bilinear and ocs == 4 and ors % 4 == 0
        # ---- as blocking.choose_blocking
        chunk = chunk_bytes // size
        kc = max(l2 // 2 // (nr * size) // chunk * chunk, chunk)
        depth_blocks = max(1, (depth + kc - 1) // kc)
        if depth_blocks > 1:
            kc = _up((depth + depth_blocks - 1) // depth_blocks, chunk)
        else:
            kc = max(depth, 1)
        depth_blocks = max(1, (depth + kc - 1) // kc)
        most = max_mc if direct and depth_blocks == 1 else max_mc_deep
        mc = max(min(l2 // 4 // (kc * size), most) // mr * mr, mr)
        mc = min(mc, _up(m, mr))
        nc = n if depth_blocks == 1 else min(n, _up(nc_deep, nr))
        row_blocks = (m + mc - 1) // mc
        mc = _up((m + row_blocks - 1) // row_blocks, mr)
        row_blocks = (m + mc - 1) // mc
        # ---- as plan.Plan
        panels = (n + lanes - 1) // lanes
        rhs_panel_bytes = _up(depth * size, chunk_bytes) * lanes
        lhs_panel_bytes = _up(kc * size, chunk_bytes) * mr
        row_sums_at = mc // mr * lhs_panel_bytes
        row_terms_at = row_sums_at + 8 * mc
        tile_at = _up(row_terms_at + 4 * mc, align)
        tile_cols = nr if depth_blocks == 1 else _up(nc, lanes)
        worker_bytes = _up(tile_at + 4 * mc * tile_cols, align) + align
        col_bytes = _up(4 * panels * lanes, align)
        slot_bytes = _up(panels * rhs_panel_bytes, align)
        q = numba.carray(p, (SCRATCH_AT + 1,), np.int64)
        q[:] = 0
        q[WORKERS] = 1
        q[M] = m
        q[N] = n
        q[DEPTH] = depth
        q[BATCH] = 1
        q[JOBS] = 1
        q[PACKED] = packed
        q[KERNEL] = load_i64(r, R_KERNEL)
        q[PACK_LHS] = load_i64(r, R_PACK_LHS)
        q[PACK_RHS] = 0 if packed else load_i64(r, R_PACK_RHS)
        q[COL_TERMS_ROUTINE] = load_i64(r, R_COL_TERMS)
        q[ROW_TERMS_ROUTINE] = load_i64(r, R_ROW_TERMS)
        q[KR] = kr
        q[LANES] = lanes
        q[NR] = nr
        q[LHS_ROW_STRIDE] = lrs
        q[LHS_K_STRIDE] = lks
        q[LHS_FLIP] = load_i64(r, R_LHS_FLIP + 2 * lhs_signed)
        q[LHS_PANEL_BYTES] = lhs_panel_bytes
        q[RHS_K_STRIDE] = rks
        q[RHS_N_STRIDE] = rns
        q[RHS_FLIP] = load_i64(r, R_RHS_FLIP + 2 * rhs_signed)
        q[RHS_PANEL_BYTES] = rhs_panel_bytes
        q[RHS_GROUP_BYTES] = load_i64(r, R_GROUP)
        q[PACK_CHUNK] = 4 * _up(line, lanes)
        q[MC] = mc
        q[NC] = nc
        q[KC] = kc
        q[ROW_BLOCKS] = row_blocks
        q[COL_BLOCKS] = (n + nc - 1) // nc
        q[DEPTH_BLOCKS] = depth_blocks
        q[LHS_SHIFT] = load_i64(r, R_LHS_SHIFT + 2 * lhs_signed)
        q[RHS_SHIFT] = load_i64(r, R_RHS_SHIFT + 2 * rhs_signed)
        q[BILINEAR] = bilinear
        q[DIRECT] = 1 if direct else 0
        q[ACCUMULATE] = accumulate
        q[OUT_ROW_STRIDE] = ors
        q[OUT_COL_STRIDE] = ocs
        q[WORKER_BYTES] = worker_bytes
        q[COL_BYTES] = col_bytes
        q[SLOT_BYTES] = slot_bytes
        q[ROW_SUMS_AT] = row_sums_at
        q[ROW_TERMS_AT] = row_terms_at
        q[TILE_AT] = tile_at
        q[ZEROS] = load_i64(r, R_ZEROS)
        stages = 0
        if bilinear:
            q[STAGES_AT] = load_i64(r, R_BILINEAR)
            q[STAGES_AT + 1] = load_i64(r, R_NOTHING)
            stages = 1
        q[STAGES_AT + 2 * stages] = load_i64(r, R_STORE)
        q[STAGES_AT + 2 * stages + 1] = load_i64(r, R_ADD if accumulate else R_SET)
        q[STAGES] = stages + 1
        scratch = 2 * col_bytes + worker_bytes
        if not packed:
            scratch += col_bytes + slot_bytes
        q[SCRATCH_AT] = scratch

    return plan


from lowgemm.compute import (  # noqa: E402, I001 (the plan's fields, as globals that compiled code sees as constants)
    ACCUMULATE, BATCH, BILINEAR, COL_BLOCKS, COL_BYTES, COL_TERMS_ROUTINE, DEPTH, DEPTH_BLOCKS, DIRECT, JOBS, KC,
    KERNEL, KR, LANES, LHS_FLIP, LHS_K_STRIDE, LHS_PANEL_BYTES, LHS_ROW_STRIDE, LHS_SHIFT, M, MC, N, NC, NR,
    OUT_COL_STRIDE, OUT_ROW_STRIDE, PACKED, PACK_CHUNK, PACK_LHS, PACK_RHS, RHS_FLIP, RHS_GROUP_BYTES, RHS_K_STRIDE,
    RHS_N_STRIDE, RHS_PANEL_BYTES, RHS_SHIFT, ROW_BLOCKS, ROW_SUMS_AT, ROW_TERMS_AT, ROW_TERMS_ROUTINE, SLOT_BYTES,
    STAGES, STAGES_AT, TILE_AT, WORKERS, WORKER_BYTES, ZEROS,
)  # fmt: skip


@functools.cache
def plan_routine() -> Any:
    """Compiled plan routine; see `_make_plan`."""
    return _make_plan(cache_sizes().l2, source_stamp())


# ---- the table --------------------------------------------------------------------------------------------
def init() -> None:
    """Make `gemm` and `PackedRhs` known to Numba (the ``numba_extensions`` entry point). Compiles nothing."""
    llvm.add_symbol(_SYMBOL, _TABLE.ctypes.data)


def _fill_table() -> None:
    if _TABLE[_PLAN] == 0:
        record = record_of(kernels.selected())
        _TABLE[_RECORD], _TABLE[_SINGLE] = record.ctypes.data, c.single_routine().address
        _TABLE[_PLAN] = plan_routine().address


class _Ticket:
    """Rides in compiled code; unpickling it (code loaded from a disk cache) makes the table ready."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _ticket, (ABI,)


def _ticket(abi: int) -> _Ticket:
    if abi != ABI:  # OSError: Numba takes the cached code for lost and compiles again
        raise OSError(f"lowgemm: code compiled for interface {abi}, this is {ABI}")
    init()
    _fill_table()
    return _TICKET


_TICKET = _Ticket()


@intrinsic(prefer_literal=True)
def _entry(typingctx, index):
    """Entry of `_TABLE`, whose address the linker knows."""
    at = index.literal_value

    def codegen(context, builder, sig, values):
        module, i64 = builder.module, ir.IntType(64)
        consts = context.environment.consts
        if _TICKET not in consts:
            consts.append(_TICKET)
        context.declare_env_global(module, context.get_env_name(context.fndesc))
        table = module.globals.get(_SYMBOL)
        if table is None:
            table = ir.GlobalVariable(module, ir.ArrayType(i64, _TABLE.size), _SYMBOL)
        zero = ir.Constant(ir.IntType(32), 0)
        return builder.load(builder.gep(table, [zero, ir.Constant(ir.IntType(32), at)]))

    return types.int64(index), codegen


@intrinsic
def _keep(typingctx, array):
    """Do nothing with an array, but later than its address is used: Numba frees it after its last use."""
    return types.void(array), lambda context, builder, sig, values: context.get_dummy_value()


# ---- PackedRhs --------------------------------------------------------------------------------------------
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
_FIELDS = ("panels", "sums", "depth", "n", "record")


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


for _name in _FIELDS:
    make_attribute_wrapper(PackedRhsType, _name, f"_{_name}")


def _describe(w: PackedRhs) -> int:
    """Address of the numbers that compiled code needs, kept on the object."""
    record = record_of(kernels.by_name(w.kernel))
    d = np.array([w.panels_address, w.sums_address, *w.shape, record.ctypes.data], dtype=np.int64)
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


# ---- gemm -------------------------------------------------------------------------------------------------
def _is_default(ty: Any, default: Any) -> bool:
    if isinstance(ty, types.Omitted):
        return bool(ty.value is default or ty.value == default)
    return ty is default or (isinstance(ty, types.NoneType) and default is None)


def _value(ty: Any) -> Any:
    """Type of an argument, seen through a default value and an optional."""
    if isinstance(ty, types.Omitted):
        return types.none if ty.value is None else types.literal(ty.value)
    return ty if isinstance(ty, types.Type) else (types.none if ty is None else types.literal(ty))


def _check_operand(ty: Any, name: str) -> None:
    if not isinstance(ty, types.Array) or ty.dtype not in (types.uint8, types.int8) or ty.ndim != 2:
        what = " or a PackedRhs of two dimensions" if name == "rhs" else ""
        raise errors.NumbaTypeError(
            f"{name}: expected a uint8 or int8 array of two dimensions{what} in compiled code, got {ty}"
        )


def _check_zero(ty: Any, name: str) -> bool:
    """Whether a zero point is a vector."""
    vector = isinstance(ty, types.Array) and ty.ndim == 1 and isinstance(ty.dtype, types.Integer)
    if not vector and not isinstance(ty, types.Integer):
        raise errors.NumbaTypeError(f"{name}: expected an integer or a vector of integers, got {ty}")
    return vector


def _range_error(name: str) -> str:
    return f"{name}: expected -2147483648 to 2147483647"


_LHS_RANGE, _RHS_RANGE = _range_error("lhs_zero_point"), _range_error("rhs_zero_point")


def _scalar(zero: Any, is_lhs: Any) -> Any:
    """Scalar zero point as int64; 0 stands for a vector."""


@overload(_scalar)
def _scalar_overload(zero, is_lhs):
    if isinstance(zero, types.Array):
        return lambda zero, is_lhs: 0

    def impl(zero, is_lhs):
        if zero < -2147483648 or zero > 2147483647:
            if is_lhs:
                raise ValueError(_LHS_RANGE)
            raise ValueError(_RHS_RANGE)
        return np.int64(zero)

    return impl


def _vector(zero: Any, size: Any, shift: Any, is_lhs: Any) -> Any:
    """Zero points less `shift` as an int32 vector."""


@overload(_vector)
def _vector_overload(zero, size, shift, is_lhs):
    if isinstance(zero, types.Array):

        def impl(zero, size, shift, is_lhs):
            if zero.size != size and zero.size != 1:
                if is_lhs:
                    raise ValueError("lhs_zero_point: expected a scalar or one value per lhs row")
                raise ValueError("rhs_zero_point: expected a scalar or one value per rhs column")
            v = np.empty(size, np.int32)
            for i in range(zero.size):
                if zero[i] < -2147483648 or zero[i] > 2147483647:
                    if is_lhs:
                        raise ValueError(_LHS_RANGE)
                    raise ValueError(_RHS_RANGE)
            for i in range(size):
                v[i] = np.int32(np.int64(zero[i if zero.size > 1 else 0]) - shift)
            return v

        return impl

    def impl(zero, size, shift, is_lhs):
        v = np.empty(size, np.int32)
        v[:] = np.int32(_scalar(zero, is_lhs) - shift)
        return v

    return impl


@register_jitable
def _overlap(a, ars, acs, am, an, b, brs, bcs, bm, bn, size):
    """Whether the bytes from first to last of an array a (elements of `size`) meet those of a byte array b."""
    a0, a1 = (
        a + min(0, ars * (am - 1)) + min(0, acs * (an - 1)),
        a + max(0, ars * (am - 1)) + max(0, acs * (an - 1)),
    )
    b0, b1 = (
        b + min(0, brs * (bm - 1)) + min(0, bcs * (bn - 1)),
        b + max(0, brs * (bm - 1)) + max(0, bcs * (bn - 1)),
    )
    return a0 <= b1 and b0 < a1 + size


def _result(out: Any, lhs: Any, rhs: Any) -> Any:
    """`out` if it fits, or a new array."""


@overload(_result)
def _result_overload(out, lhs, rhs):
    if not isinstance(out, types.Array):
        return lambda out, lhs, rhs: np.empty((lhs.shape[0], rhs.shape[1]), np.int32)

    def impl(out, lhs, rhs):
        m, n = lhs.shape[0], rhs.shape[1]
        if out.shape[0] != m or out.shape[1] != n:
            raise ValueError("out: expected the shape of the product")
        if m == 0 or n == 0:
            return out
        rs, cs = out.strides
        at = as_address(address(out))
        if at % 4 != 0 or rs % 4 != 0 or cs % 4 != 0:
            raise ValueError("out: expected an aligned array")
        ar, ac = abs(rs) if m > 1 else 0, abs(cs) if n > 1 else 0
        # rows apart by less than a row's extent, or columns by less than a column's, or elements on each other
        if (n > 1 and ac < 4) or (m > 1 and ar < 4):
            raise ValueError("out: expected distinct elements, but some overlap each other in memory")
        if m > 1 and n > 1 and ar < ac * (n - 1) + 4 and ac < ar * (m - 1) + 4:
            raise ValueError("out: expected distinct elements, but some overlap each other in memory")
        depth = lhs.shape[1]
        if depth > 0:
            if _overlap(
                at, rs, cs, m, n, as_address(address(lhs)), lhs.strides[0], lhs.strides[1], m, depth, 4
            ):
                raise ValueError("out: expected no overlap with lhs")
            if _rhs_overlap(at, rs, cs, m, n, rhs):
                raise ValueError("out: expected no overlap with rhs")
        return out

    return impl


def _rhs_overlap(at: Any, rs: Any, cs: Any, m: Any, n: Any, rhs: Any) -> Any:
    """Whether the result's bytes meet those of the rhs."""


@overload(_rhs_overlap)
def _rhs_overlap_overload(at, rs, cs, m, n, rhs):
    if isinstance(rhs, PackedRhsType):
        return lambda at, rs, cs, m, n, rhs: False

    def impl(at, rs, cs, m, n, rhs):
        k, kn = rhs.shape
        return _overlap(at, rs, cs, m, n, as_address(address(rhs)), rhs.strides[0], rhs.strides[1], k, kn, 4)

    return impl


def _side(rhs: Any) -> Any:
    """Rhs as numbers: record, address, sums (0: not packed), byte strides."""


@overload(_side)
def _side_overload(rhs):
    if isinstance(rhs, PackedRhsType):
        return lambda rhs: (rhs._record, rhs._panels, rhs._sums, 0, 0)
    return lambda rhs: (
        _entry(_RECORD), as_address(address(rhs)), 0, rhs.strides[0], rhs.strides[1]
    )  # fmt: skip


@intrinsic
def _pointer(typingctx, number):
    """An address as a pointer, to hand on to `load_i64`."""

    def codegen(context, builder, sig, values):
        return builder.inttoptr(values[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), codegen


@overload(gemm, jit_options={"nogil": True})
def _gemm_overload(
    lhs,
    rhs,
    lhs_zero_point=0,
    rhs_zero_point=0,
    output=None,
    out=None,
    accumulate=False,
    num_threads=None,
    overflow="wrap",
):
    left, right, left_zero, right_zero, to = map(_value, (lhs, rhs, lhs_zero_point, rhs_zero_point, out))
    _check_operand(left, "lhs")
    packed = isinstance(right, PackedRhsType)
    if not packed:
        _check_operand(right, "rhs")
    vectors = [_check_zero(left_zero, "lhs_zero_point"), _check_zero(right_zero, "rhs_zero_point")]
    bilinear = int(any(vectors))
    for ty, default, name, hint in (
        (output, None, "output", "; put the int32 sums through lowgemm.requantize outside"),
        (num_threads, None, "num_threads", "; a product in compiled code is serial, use prange around it"),
        (overflow, "wrap", "overflow", ""),
    ):
        if not _is_default(ty, default):
            raise errors.NumbaValueError(f"{name}: not supported in compiled code{hint}")
    given = isinstance(to, types.Array)
    if not isinstance(to, types.NoneType) and not (
        given and to.dtype == types.int32 and to.ndim == 2 and to.mutable and to.aligned
    ):
        raise errors.NumbaTypeError(f"out: expected a writable int32 array of two dimensions, got {to}")
    if not isinstance(_value(accumulate), types.Boolean):
        raise errors.NumbaTypeError(f"accumulate: expected a bool, got {accumulate}")
    if not given and not _is_default(accumulate, False):
        raise errors.NumbaValueError("accumulate: expected out= to add to")
    lhs_signed, rhs_signed = int(left.dtype.signed), int(right.dtype.signed)
    init()
    _fill_table()

    def impl(
        lhs,
        rhs,
        lhs_zero_point=0,
        rhs_zero_point=0,
        output=None,
        out=None,
        accumulate=False,
        num_threads=None,
        overflow="wrap",
    ):
        (m, depth), (rhs_depth, n) = lhs.shape, rhs.shape
        if depth != rhs_depth:
            raise ValueError("rhs: expected its depth to match lhs")
        lz, rz = _scalar(lhs_zero_point, True), _scalar(rhs_zero_point, False)
        result = _result(out, lhs, rhs)
        if m == 0 or n == 0:
            return result
        if _entry(_PLAN) == 0:
            raise RuntimeError("lowgemm: its code is not loaded in this process; import lowgemm.in_numba")
        record, rhs_at, sums, rks, rns = _side(rhs)
        plan = stack(_PLAN_BYTES)
        call_address(
            _entry(_PLAN),
            (
                record, as_address(plan), m, n, depth, lhs.strides[0], lhs.strides[1], lhs_signed, rks, rns,
                rhs_signed, 1 if sums != 0 else 0, bilinear, 1 if accumulate else 0,
                result.strides[0], result.strides[1],
            ),
        )  # fmt: skip
        # 64 more: the routines want the scratch memory aligned to a cache line
        space = np.empty(load_i64(plan, SCRATCH_AT) + 64, np.uint8)
        space_at = (as_address(address(space)) + 63) // 64 * 64
        if bilinear:
            rec = _pointer(record)
            rows = _vector(lhs_zero_point, m, load_i64(rec, R_LHS_SHIFT + 2 * lhs_signed), True)
            cols = _vector(rhs_zero_point, n, load_i64(rec, R_RHS_SHIFT + 2 * rhs_signed), False)
            call_address(
                _entry(_SINGLE),
                (
                    as_address(plan), as_address(address(lhs)), rhs_at, sums, as_address(address(result)), space_at,
                    0, 0, as_address(address(rows)), as_address(address(cols)),
                ),
            )  # fmt: skip
            _keep(rows)
            _keep(cols)
        else:
            call_address(
                _entry(_SINGLE),
                (
                    as_address(plan), as_address(address(lhs)), rhs_at, sums, as_address(address(result)), space_at,
                    lz, rz, 0, 0,
                ),
            )  # fmt: skip
        _keep(space)
        _keep(rhs)
        return result

    return impl
