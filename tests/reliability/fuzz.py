"""Random calls of the whole public API: every outcome is the reference's answer or a documented exception.

    python -m tests.reliability.fuzz --calls 1000000 --seed 1

The run ends with status 1 and the numbers of the wrong steps; ``--seed S --steps N`` runs the same steps
again.
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

from .outcomes import Wrong
from .session import MISSING, Session, made, refusals
from .small_machine import caches, small_machine

#: Half of the time small products take the ways of large ones.
STEPS_WITH_SAME_CACHES = 500


def run(calls: int, seed: int, steps: int | None = None, largest: int = 70) -> dict[str, Any]:
    """Make at least `calls` calls; the counts, and the wrong steps with what was wrong."""
    session = Session(seed, largest)
    kernel, count = lg.config.kernel, lg.config.num_threads
    start, wrong, done = time.perf_counter(), [], 0
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"), small_machine():
            warnings.simplefilter("ignore")
            while done < steps if steps is not None else made(session) < calls:
                if done % STEPS_WITH_SAME_CACHES == 0:
                    caches(done // STEPS_WITH_SAME_CACHES % 2 == 0)
                try:
                    session.step()
                except Exception as error:
                    kind = "wrong" if isinstance(error, Wrong) else "undocumented"
                    wrong.append((done, kind, "".join(traceback.format_exception(error)[-3:])[-1500:]))
                    if len(wrong) >= 20:
                        break
                done += 1
    finally:
        lg.config.kernel, lg.config.num_threads = kernel, count
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
    for name in MISSING:
        print(f"not here, so its steps are left out: {name}")
    result = run(args.calls, args.seed, args.steps)
    for number, kind, text in result["wrong"]:
        print(f"--- step {number}, {kind}:\n{text}")
    result["wrong"] = len(result["wrong"])
    print(json.dumps(result))
    sys.exit(bool(result["wrong"]))


if __name__ == "__main__":
    main()
