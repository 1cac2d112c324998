"""`python -m lowgemm COMMAND`."""

from __future__ import annotations

import argparse
import importlib
import sys

from lowgemm._version import __version__

_COMMANDS = {
    "demo": "multiply a real network's matrices, check every bit, time it beside float32",
    "bench": "time lowgemm beside float32 NumPy and, with --peers, other int8 libraries",
    "explain": "say what a product of a given shape would do, and why",
    "info": "print what a bug report needs",
    "run": "run a quantized ONNX model (extra `onnx`)",
    "warmup": "compile everything into the cache on disk",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lowgemm", description="Exact low-precision matrix products."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parser.add_argument("--version", action="version", version=f"lowgemm {__version__}")
    modules, parsers = {}, {}
    for name, text in _COMMANDS.items():
        modules[name] = importlib.import_module(f"lowgemm.cli.{name}")
        parsers[name] = commands.add_parser(name, help=text, description=modules[name].__doc__)
        modules[name].add_arguments(parsers[name])
    args, unknown = parser.parse_known_args(argv)
    if unknown:  # said by the parser of the command, which knows its options
        parsers[args.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        return modules[args.command].run(args)
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
