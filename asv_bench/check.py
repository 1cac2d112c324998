"""Check the suite: `asv check`, then every benchmark once against the installed lowgemm; fails if any errors.

Run as ``python asv_bench/check.py [--bench REGEX]``. Nothing is written beside the suite: results, the list
of benchmarks and the description of the machine go to a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent


def run(command: list[str], folder: str, environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and output of a command; each line is shown as it comes."""
    lines = []
    with subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    return process.returncode, "".join(lines)


def main() -> int:
    """Exit status: 0 when every benchmark ran, or was skipped because this machine cannot run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", help="only the benchmarks that this regular expression finds")
    only = parser.parse_args().bench
    with tempfile.TemporaryDirectory() as folder:
        config = json.loads((HERE / "asv.conf.json").read_text())
        config |= {key: f"{folder}/{key}" for key in ("results_dir", "env_dir", "html_dir")}
        config |= {"repo": str(HERE.parent), "benchmark_dir": str(HERE / "benchmarks")}
        del config["plugins"]  # for the published pages; asv looks for them beside its configuration
        path = pathlib.Path(folder, "asv.conf.json")
        path.write_text(json.dumps(config))
        # asv keeps its description of the machine in the home folder, and asks for it where there is no
        # terminal
        environment = {**os.environ, "HOME": folder, "LOWGEMM_BENCH_SHARE": "0.01", "PYTHONUNBUFFERED": "1"}
        environment.setdefault("NUMBA_CACHE_DIR", f"{folder}/numba")
        asv = [sys.executable, "-m", "asv"]
        same = ["--python=same", "--config", str(path)]
        machine = ["machine", "--machine", "check"]
        for field in ("os", "arch", "cpu", "num_cpu", "ram"):
            machine += [f"--{field}", "-"]
        # `time_*` would calibrate, warm up and repeat; --quick runs each once
        quick = [
            "run",
            *same,
            *["--quick", "--show-stderr", "--dry-run", "--machine", "check", "--durations", "5"],
        ]
        quick += ["--attribute", "timeout=3600"]  # what fails here is wrong, not slow
        # one process imports NumPy and Numba for all of them, which would take 0.6 s for each
        if hasattr(os, "fork"):
            quick += ["--launch-method", "forkserver"]
        quick += ["--bench", only] if only else []
        for command in (machine, ["check", *same], quick):
            status, output = run([*asv, *command], folder, environment)
            if status:
                print(f"asv {command[0]} failed with status {status}", file=sys.stderr)
                return 1
            if "this commit has no" in output:
                print("skipped for want of a feature, but the newest commit has them all", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
