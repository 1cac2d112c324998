"""`python -m lowgemm.kernels`: list, check, time and show the microkernels."""

from __future__ import annotations

import argparse
import sys

from lowgemm.kernels import all_kernels, by_name, in_software, why_not
from lowgemm.kernels.framework.kernel import Kernel
from lowgemm.kernels.tools import cross, limits, verify
from lowgemm.kernels.tools.timing import interleave, text_table


def _list() -> int:
    rows = []
    for k in all_kernels():
        why = why_not(k)
        tiles = ", ".join(f"{mr}" for mr in k.row_tiles)
        rows.append(
            [k.name, f"{k.mr} x {k.nr}", tiles, str(k.kr), f"{k.lhs_type} x {k.rhs_type}",
             " ".join(k.features) or "-", why or "yes"]
        )  # fmt: skip
    print(text_table(["kernel", "tile", "row tiles", "kr", "packed", "features", "runs here"], rows))
    return 0


def _speed(kernel: Kernel) -> tuple[float, float | None]:
    """GMAC/s of the microkernel in L1, and of the register-only loop if there is one."""
    calls = {"micro": limits.microkernel_call(kernel)}
    if not hasattr(kernel, "compile"):
        calls["register"] = limits.register_call(kernel)
    times = interleave({name: call for name, (call, _) in calls.items()}, seconds=1.5)
    rate = {name: calls[name][1] / t / 1e9 for name, t in times.items()}
    return rate["micro"], rate.get("register")


def _assembly(kernel: Kernel) -> int:
    """Print the main tile's depth loop, and the longest loops of the fused store; 1 if registers are spilled
    beside the products.
    """
    assembly = cross.compile_for(kernel)[0]
    loops = cross.depth_loops(assembly, kernel.expect)
    main = max(loops, key=lambda body: (sum(kernel.expect in line for line in body), -len(body)))
    print("\n".join(main))
    spilled = cross.spills(main)
    products = sum(kernel.expect in line for line in main)
    print(f"# depth loop: {products} {kernel.expect}, {len(main)} instructions, "
          f"{len(spilled)} touch the stack", file=sys.stderr)  # fmt: skip
    fused = cross.fused_loops(kernel, assembly)
    beside = [loop for loop in fused if any(kernel.expect in line for line in loop)]
    alone = [loop for loop in fused if loop not in beside]
    for name, group in (("beside the products", beside), ("on its own", alone)):
        if group:
            loop = max(group, key=lambda body: (sum(kernel.expect in line for line in body), len(body)))
            found = cross.spilled_vectors(loop)
            spilled += found if group is beside else []
            print(f"\n# fused store, {name}\n" + "\n".join(loop))
            stores = sum(kernel.expect_fused in line for line in loop)
            print(f"# fused store, {name}: {stores} {kernel.expect_fused}, {len(loop)} instructions, "
                  f"{len(found)} use a vector on the stack", file=sys.stderr)  # fmt: skip
    if not fused:
        print("# fused store: none, output stages run on tiles of sums in L1", file=sys.stderr)
    return 1 if spilled else 0


def _one(kernel: Kernel, args: argparse.Namespace) -> int:
    if args.ll:
        print(cross.module_ir(kernel, kernel.compiled_for.triple))
        return 0
    if args.asm:
        return _assembly(kernel)
    why = why_not(kernel)
    if why:
        print(f"{kernel.name} {why}; --asm and --ll work all the same")
        return 2
    wrong = verify.verify_native(kernel)
    print(f"{kernel.name}: {wrong} wrong elements in 200 calls with random and extreme panels")
    micro, register = _speed(kernel)
    share = f", {100 * micro / register:.1f} % of {register:.1f} on registers alone" if register else ""
    print(f"{micro:.1f} GMAC/s in L1{share}")
    return 1 if wrong else 0


def _bench() -> int:
    rows = []
    for kernel in all_kernels():
        if why_not(kernel):
            continue
        for mr in kernel.row_tiles:
            calls = {}
            for nv in range(1, kernel.max_nv + 1):
                calls[nv] = limits.microkernel_call(kernel, m=mr, nv=nv)
            times = interleave({str(nv): call for nv, (call, _) in calls.items()}, seconds=0.3)
            for nv, (_, macs) in calls.items():
                rows.append(
                    [kernel.name, f"{mr} x {nv * kernel.lanes}", f"{macs / times[str(nv)] / 1e9:.1f}"]
                )
    print(text_table(["kernel", "tile", "GMAC/s"], rows))
    return 0


def _verify(target: str) -> int:
    if target == "aarch64":
        absent = verify.missing_tools()
        if absent:
            print(f"cannot verify for aarch64: {', '.join(absent)} does not work here ({verify.PACKAGES})")
            return 2
        chosen = [k for k in all_kernels() if k.compiled_for is not None and k.compiled_for.emulator]
        check = verify.verify_emulated
    else:
        chosen = [k for k in all_kernels() if not why_not(k)]
        # what does not run here but has its program in software
        chosen += [in_software(k) for k in all_kernels() if why_not(k) and k.twin() is not None]
        check = verify.verify_native
    total = 0
    for kernel in chosen:
        wrong = check(kernel)
        total += wrong
        print(f"{kernel.name}: {wrong} wrong elements in 200 calls", flush=True)
    return 1 if total else 0


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lowgemm.kernels", description=__doc__)
    parser.add_argument(
        "what", nargs="?", default="list", help="list (default), a kernel's name, bench, or verify"
    )
    parser.add_argument(
        "--asm", action="store_true", help="print the main tile's depth loop, and the fused store"
    )
    parser.add_argument("--ll", action="store_true", help="print the LLVM IR")
    parser.add_argument("--target", choices=["native", "aarch64"], default="native", help="for verify")
    args = parser.parse_args(argv)
    if args.what == "list":
        return _list()
    if args.what == "bench":
        return _bench()
    if args.what == "verify":
        return _verify(args.target)
    try:
        kernel = by_name(args.what)
        if (args.asm or args.ll) and kernel.compiled_for is None:
            raise ValueError(f"kernel: {kernel.name!r} is plain loops; there are no tile hooks to show")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return _one(kernel, args)


if __name__ == "__main__":
    raise SystemExit(main())
