"""The AMX kernel: its machine code, its program on tile registers in software, what it asks the system for,
and what it leaves to others.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest
from patience import PATIENCE

import lowgemm
from lowgemm import kernels
from lowgemm.engine import planner
from lowgemm.jit.caches import CacheSizes
from lowgemm.jit.target import target
from lowgemm.kernels import x86_amx_int8
from lowgemm.kernels.framework import tile_machine, tile_permission
from lowgemm.kernels.framework.irtools import at, const, i8, i16, store
from lowgemm.kernels.tools import cross, peak, verify

KERNEL = x86_amx_int8.KERNEL
SOFTWARE = kernels.by_name("test_x86_amx_int8_software")
FIELDS = {f.name: getattr(SOFTWARE, f.name) for f in dataclasses.fields(SOFTWARE)}


# ---- machine code ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("lhs_signed", "product"), [(False, "tdpbusd"), (True, "tdpbssd")])
@pytest.mark.parametrize("scattered", [False, True])
def test_the_depth_loop_is_loads_and_products(lhs_signed, product, scattered):
    """Four loads and four products for 64 depth steps of the main tile, fewer at the edges, and nothing on
    the stack.
    """
    assembly, _ = cross.compile_for(KERNEL, lhs_signed=lhs_signed, scattered=scattered)
    shapes = []
    for loop in cross.depth_loops(assembly, product):
        loads, products = (sum(name in line for line in loop) for name in ("tileload", product))
        rest = [line for line in loop if "tile" not in line and product not in line]
        if sum(line.startswith("j") for line in rest) > 1:  # a step that leads to rows of the tile before
            assert (loads, products) == (4, 4)
            # some addresses wait on the stack there, vectors do not
            assert not [line for line in cross.spills(loop) if re.search(r"[xyz]mm", line)]
        else:
            shapes.append((loads, products))
            assert not cross.spills(loop), loop
            # a step of a scattered lhs is read from its list
            steps = [line for line in rest if line.startswith("mov")]
            assert len(steps) == int(scattered)
            rest = [line for line in rest if line not in steps]
            assert all(re.match(r"(lea|add|inc|dec|cmp|j)", line) for line in rest), rest
            assert len(rest) <= 7
    # two panels and 32 rows; one of either; one of both
    assert sorted(set(shapes)) == [(2, 1), (3, 2), (4, 4)]
    assert not re.search(r"tdpb(?!" + product[4:] + ")", assembly)


def test_the_register_loop_is_products_alone():
    assembly, _ = cross.compile_ir(peak.module_ir(KERNEL, KERNEL.compiled_for.triple), KERNEL.compiled_for)
    [loop] = cross.depth_loops(assembly, "tdpbusd")
    assert sum("tdpbusd" in line for line in loop) == 4 and not [line for line in loop if "(" in line]


def test_tiles_are_released_before_every_return():
    assembly, _ = cross.compile_for(KERNEL)
    lines = [
        line.strip() for line in assembly.splitlines() if line.startswith("\t") and not line.startswith("\t.")
    ]
    returns = [i for i, line in enumerate(lines) if line.startswith("ret")]
    assert returns and sum(line.startswith("tilerelease") for line in lines) == 1
    released = next(i for i, line in enumerate(lines) if line.startswith("tilerelease"))
    assert all(released < i for i in returns)
    between = lines[released + 1 : returns[0]]
    assert not [line for line in between if line.startswith(("j", "tile", "ldtile"))]


# ---- the program in software -------------------------------------------------------------------------------
def test_contract_in_software():
    tile_machine.faults()
    assert verify.verify_native(SOFTWARE) == 0
    assert tile_machine.faults() == {}


@pytest.fixture
def faulty():
    """Makes the program with some instructions replaced; forgotten after the test, as others try every
    kernel.
    """
    made = []

    def make(name, **hooks):
        body = {**hooks, "__module__": __name__}
        cls = dataclasses.dataclass(frozen=True)(type(name, (type(SOFTWARE),), body))
        made.append(kernels.register(cls(**{**FIELDS, "name": f"test_amx_{name}"})))
        return made[-1]

    yield make
    for kernel in made:  # its number stays taken, for Numba remembers what it compiled for it
        number = kernels.id_of(kernel)
        kernels._REGISTRY[number] = dataclasses.replace(
            SOFTWARE, name=f"test_gone_{number}", features=("gone",)
        )


def _poke(offset: int, value: int, ty=i8):
    """A `configure` that changes one number of the configuration first."""

    def configure(self, b, address):
        store(b, const(ty, value), at(b, address, offset))
        type(SOFTWARE).configure(self, b, address)

    return configure


FAULTS = {
    "unconfigured": ("no configuration", {"configure": lambda self, b, address: None}),
    "kept": ("not released", {"release": lambda self, b: None}),
    "other_palette": ("a configuration that is not allowed", {"configure": _poke(0, 2)}),
    "reserved": ("a configuration that is not allowed", {"configure": _poke(5, 1)}),
    "too_many_rows": ("a configuration that is not allowed", {"configure": _poke(48, 17)}),
    "too_wide": ("a configuration that is not allowed", {"configure": _poke(16, 65, i16)}),
    "no_rows": ("a configuration that is not allowed", {"configure": _poke(48, 0)}),
    "narrow_lhs": ("shapes that do not fit", {"configure": _poke(16 + 2 * 4, 60, i16)}),
    "narrow_rhs": ("shapes that do not fit", {"configure": _poke(16 + 2 * 6, 60, i16)}),
    "short_rhs": ("shapes that do not fit", {"configure": _poke(48 + 6, 15)}),
    "short_sums": ("shapes that do not fit", {"configure": _poke(48 + 0, 9)}),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_the_machine_notices_faults(faulty, name):
    """Each is noted by name, and gives wrong results that no caller can miss."""
    says, hooks = FAULTS[name]
    kernel = faulty(name, **hooks)
    tile_machine.faults()
    assert verify.verify_native(kernel, count=12) > 0
    assert says in tile_machine.faults()
    assert tile_machine.faults() == {}


def _swapped(self, b, acc, lhs, rhs, signed):
    type(SOFTWARE).multiply(self, b, acc, lhs, rhs, not signed)


def test_a_wrong_sign_is_a_wrong_result(faulty):
    assert verify.verify_native(faulty("other_sign", multiply=_swapped), count=12) > 0


# ---- what it asks the system for ---------------------------------------------------------------------------
@pytest.fixture
def refused(monkeypatch):
    """A system that refuses, on a CPU that could."""
    monkeypatch.setattr(
        tile_permission, "refusal", lambda: "the request for tile registers was refused: made up"
    )
    real = kernels.missing_features
    monkeypatch.setattr(kernels, "missing_features", lambda kernel: [] if kernel is KERNEL else real(kernel))
    kernels._choice.cache_clear()
    yield
    kernels._choice.cache_clear()


def test_a_refusal_means_another_kernel_and_is_said(refused, monkeypatch, capsys):
    from lowgemm.__main__ import main

    monkeypatch.setattr(lowgemm.config, "kernel", None)
    assert kernels.selected() is not KERNEL
    x = np.ones((64, 64), np.uint8)
    assert "x86_amx_int8 cannot run here: the request for tile registers was refused: made up" in str(
        lowgemm.explain(x, x)
    )
    main(["info"])
    assert "refused: made up" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"kernel: 'x86_amx_int8' cannot run here: the request .* made up"):
        lowgemm.config.kernel = "x86_amx_int8"


def test_nothing_is_asked_at_import():
    code = (
        "import lowgemm, lowgemm.kernels.framework.tile_permission as t\n"
        "assert t.refusal.cache_info().misses == 0\n"
        "import numpy as np\n"
        "lowgemm.gemm(np.ones((40, 64), np.uint8), np.ones((64, 40), np.uint8))\n"
        "print(t.refusal.cache_info().misses)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == (set(KERNEL.features) <= target()[1])


def test_threads_and_children_may_use_tiles():
    """A thread that ran before the request, one that started later, and a forked child."""
    if kernels.why_not(KERNEL):
        pytest.skip(f"{KERNEL.name} {kernels.why_not(KERNEL)}")
    code = """
import os, threading
import numpy as np, lowgemm
x = np.random.default_rng(0).integers(0, 256, (70, 130), dtype=np.uint8)
exact = x.astype(int) @ x.T.astype(int)
go, right = threading.Event(), []
def work():
    go.wait()
    right.append((lowgemm.gemm(x, x.T, num_threads=1) == exact).all())
before = threading.Thread(target=work)
before.start()
assert (lowgemm.gemm(x, x.T, num_threads=1) == exact).all()
after = threading.Thread(target=work)
after.start()
go.set(); before.join(); after.join()
assert right == [True, True], right
child = os.fork()
if child == 0:
    os._exit(0 if (lowgemm.gemm(x, x.T, num_threads=1) == exact).all() else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(lowgemm.explain(x, x.T).kernel)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and done.stdout.strip() == KERNEL.name, done.stdout + done.stderr


# ---- what it leaves to others ------------------------------------------------------------------------------
PARTIAL = kernels.register(
    dataclasses.replace(
        SOFTWARE, name="test_amx_partial", least_rows=16, least_depth=64, least_work=100 * 40 * 80
    )
)


@pytest.mark.parametrize(
    ("m", "depth", "own"),
    [
        (15, 640, False),
        (16, 640, True),
        (300, 63, False),
        (300, 64, True),
        (1, 4096, False),
        (99, 64, False),
        (100, 64, True),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_would_not_pay_takes_the_fallback(monkeypatch, m, depth, own, packed):
    """On the same packed rhs, without packing it again."""
    monkeypatch.setattr(lowgemm.config, "kernel", PARTIAL.name)
    g = np.random.default_rng(0)
    x, w = g.integers(0, 256, (m, depth), dtype=np.uint8), g.integers(0, 256, (depth, 40), dtype=np.uint8)
    rhs = lowgemm.pack_rhs(w) if packed else w
    said = lowgemm.explain(x, rhs)
    assert said.kernel == (PARTIAL.name if own else "test_panels_16x4")
    assert "REPACKED" not in said.text
    np.testing.assert_array_equal(lowgemm.gemm(x, rhs), x.astype(int) @ w.astype(int))


def test_panels_are_those_of_the_fallback():
    for kernel in (KERNEL, SOFTWARE):
        other = kernels.by_name(kernel.fallback)
        assert kernels.rhs_packer(kernel) is other
        for name in ("lanes", "kr", "rhs_type", "element_bytes"):
            assert getattr(kernel, name) == getattr(other, name), name


def test_columns_without_compensation_have_zeros_enough(monkeypatch):
    """An rhs that is packed on the fly has several depth blocks, and all but the last add none to a call's
    columns.
    """
    monkeypatch.setattr(lowgemm.config, "kernel", SOFTWARE.name)
    monkeypatch.setattr(planner, "cache_sizes", lambda: CacheSizes(48 << 10, 256 << 10, 1 << 20))
    g = np.random.default_rng(0)
    x, w = g.integers(0, 256, (17, 600), dtype=np.uint8), g.integers(-128, 128, (600, 640), dtype=np.int8)
    plan = lowgemm.explain(x, w, num_threads=1).plan
    p = plan.p
    assert plan.blocking.on_the_fly and p.depth_blocks > 1 and p.call_columns > 4 * SOFTWARE.mr
    [zeros] = [a for a in planner._kept if a.ctypes.data == p.no_compensation]
    assert zeros.size >= min(p.call_columns, p.nc) and not zeros.any()
    np.testing.assert_array_equal(lowgemm.gemm(x, w, num_threads=1), x.astype(int) @ w.astype(int))
