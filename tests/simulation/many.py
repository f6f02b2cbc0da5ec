"""Many seeds on several processes, and the sums of what happened in them."""

from __future__ import annotations

import gc
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

# Before polars is imported: a pool of threads for frames of ten rows costs more than it saves.
os.environ["POLARS_MAX_THREADS"] = "1"

#: Seeds of one line in the log, and of one task of a process.
CHUNK = 25


@dataclass
class Part:
    """What became of the seeds ``first`` to ``first + seeds - 1``. ``wrong``: the failing ones and why."""

    first: int
    seeds: int
    seconds: float = 0.0
    steps: int = 0
    simulated: float = 0.0
    records: int = 0
    commits: int = 0
    happened: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, list[str]] = field(default_factory=dict)


def work(first: int, seeds: int) -> Part:
    """Run these seeds here."""
    from tests.simulation.run import run

    gc.freeze()  # what was imported is no garbage: each run collects its own
    part, happened = Part(first, seeds), Counter[str]()
    begin = time.process_time()
    for seed in range(first, first + seeds):
        outcome = run(seed)
        part.steps += outcome.steps
        part.simulated += outcome.simulated
        part.records += outcome.records
        part.commits += outcome.commits
        happened.update(outcome.happened)
        if outcome.wrong:
            part.wrong[str(seed)] = [outcome.digest, *outcome.wrong]
    part.seconds = round(time.process_time() - begin, 3)
    part.simulated = round(part.simulated, 3)
    part.happened = dict(sorted(happened.items()))
    return part


def parts(first: int, seeds: int, parallel: int) -> Iterator[Part]:
    """Run them on so many processes; the parts come as they are done."""
    chunks = ((at, min(CHUNK, first + seeds - at)) for at in range(first, first + seeds, CHUNK))
    if parallel == 1:
        yield from (work(*chunk) for chunk in chunks)
        return
    with ProcessPoolExecutor(parallel, get_context("spawn")) as pool:
        pending: set[Future[Part]] = {pool.submit(work, *chunk) for chunk in islice(chunks, 2 * parallel)}
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                pending |= {pool.submit(work, *chunk) for chunk in islice(chunks, len(done))}
                yield from (future.result() for future in done)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def table(found: Sequence[Part]) -> str:
    """The sums, as Markdown."""
    happened: Counter[str] = Counter()
    for part in found:
        happened.update(part.happened)
    seeds, wrong = sum(part.seeds for part in found), sum(len(part.wrong) for part in found)
    rows = [
        ("seeds", f"{seeds:,}"),
        ("of them with anything lost, doubled or wrong", f"{wrong:,}"),
        ("records committed", f"{sum(part.records for part in found):,}"),
        ("epochs committed", f"{sum(part.commits for part in found):,}"),
        ("callbacks interleaved", f"{sum(part.steps for part in found):,}"),
        ("simulated hours", f"{sum(part.simulated for part in found) / 3600:,.0f}"),
        ("CPU seconds", f"{sum(part.seconds for part in found):,.0f}"),
        *((what, f"{times:,}") for what, times in happened.most_common()),
    ]
    return "\n".join(["| | |", "|---|---:|", *(f"| {what} | {number} |" for what, number in rows)])


def read(logs: Sequence[Path]) -> list[Part]:
    return [Part(**json.loads(line)) for log in logs for line in log.read_text().splitlines()]
