"""Random calls of the whole public API: every outcome is the reference's answer or a documented exception.

    python -m tests.reliability.fuzz --calls 1000000 --seed 1

The run ends with status 1 and the numbers of the wrong steps; ``--seed S --steps N`` runs the same steps again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
import warnings
from typing import Any

import numpy as np

import lowgemm as lg
from lowgemm import threads

from .session import Session, Wrong, made, refusals


def run(calls: int, seed: int, steps: int | None = None, largest: int = 70) -> dict[str, Any]:
    """Make at least `calls` calls; the counts, and the wrong steps with what was wrong."""
    session = Session(seed, largest)
    before, kernel, count = threads.MACS_PER_THREAD, lg.config.kernel, lg.config.num_threads
    threads.MACS_PER_THREAD = 5000  # so that small products go through the threads too
    start, wrong, done = time.perf_counter(), [], 0
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            while done < steps if steps is not None else made(session) < calls:
                try:
                    session.step()
                except Exception as error:
                    kind = "wrong" if isinstance(error, Wrong) else "undocumented"
                    wrong.append((done, kind, "".join(traceback.format_exception(error)[-3:])[-1500:]))
                    if len(wrong) >= 20:
                        break
                done += 1
    finally:
        threads.MACS_PER_THREAD, lg.config.kernel, lg.config.num_threads = before, kernel, count
    counts = dict(sorted(session.counts.items()))
    return {
        "seed": seed, "calls": made(session), "refused": refusals(session), "steps": done, "wrong": wrong,
        "seconds": round(time.perf_counter() - start, 1), "by function": counts,
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    result = run(args.calls, args.seed, args.steps)
    for number, kind, text in result["wrong"]:
        print(f"--- step {number}, {kind}:\n{text}")
    result["wrong"] = len(result["wrong"])
    print(json.dumps(result))
    sys.exit(bool(result["wrong"]))


if __name__ == "__main__":
    main()
