"""``python -m tests.simulation``: run seeds, or one of them with everything that happens in it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tests.simulation.many import CHUNK, Part, parts, read, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000, help="how many")
    parser.add_argument("--from", type=int, default=1, dest="first", help="the first of them")
    parser.add_argument("--log", type=Path, help=f"file to append a line of JSON per {CHUNK} seeds to")
    parser.add_argument("--parallel", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--seconds", type=float, help="begin no more seeds after that long")
    parser.add_argument("--stop", action="store_true", help="end with the first failing seed")
    parser.add_argument("--trace", type=int, metavar="SEED", help="run this one and print all that happens")
    parser.add_argument(
        "--table", nargs="+", type=Path, metavar="LOG", help="the sums of these logs, no runs"
    )
    options = parser.parse_args()
    if options.table:
        print(table(read(options.table)))
        return 0
    if options.trace is not None:
        return trace(options.trace)
    begin = time.monotonic()
    found: list[Part] = []
    for part in parts(options.first, options.seeds, options.parallel):
        found.append(part)
        if options.log is not None:
            with options.log.open("a") as file:
                file.write(json.dumps(asdict(part)) + "\n")
        for seed, (digest, *wrong) in part.wrong.items():
            print(f"seed {seed} (trace {digest}): " + "\n    ".join(wrong), flush=True)
            print(f"    again: python -m tests.simulation --trace {seed}", flush=True)
        late = options.seconds is not None and time.monotonic() - begin > options.seconds
        if late or (part.wrong and options.stop):
            break
    minutes = (time.monotonic() - begin) / 60
    print(table(found))
    print(
        f"\n{sum(part.seeds for part in found) / minutes:,.0f} seeds a minute on {options.parallel} processes"
    )
    return 1 if any(part.wrong for part in found) else 0


def trace(seed: int) -> int:
    from tests.simulation.run import run

    outcome = run(seed, print)
    print(f"seed {seed}, trace {outcome.digest}: {outcome.wrong or 'nothing is wrong'}")
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
