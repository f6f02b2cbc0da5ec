"""Defects that somebody could make in the protocol, and what has to notice each of them.

A mutant is one or more replacements in the package; each text to be replaced has to be there exactly once,
so a mutant that no longer applies fails loudly (``test_mutants.py``) and has to be written anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.harness import REPOSITORY

#: What a copy of the project needs to be tested.
_COPIED = ("streamproc", "tests", "topics", "pyproject.toml")


class DoesNotApply(Exception):
    """The code has changed under a mutant."""


@dataclass(frozen=True)
class Change:
    """In ``path`` below the package, ``old`` becomes ``new``."""

    path: str
    old: str
    new: str

    def apply(self, package: Path) -> None:
        """Raises :class:`DoesNotApply` unless ``old`` is there exactly once."""
        file = package / self.path
        text = file.read_text()
        if text.count(self.old) != 1:
            raise DoesNotApply(f"{self.path} holds this {text.count(self.old)} times, not once:\n{self.old}")
        file.write_text(text.replace(self.old, self.new))


@dataclass(frozen=True)
class Mutant:
    """``killer``: the arguments of pytest, or of the bench when the first is ``faults``."""

    name: str
    changes: tuple[Change, ...]
    killer: tuple[str, ...]

    @property
    def by_bench(self) -> bool:
        return self.killer[0] == "faults"


def bench(*faults: str) -> tuple[str, ...]:
    """These faults, each once, have to find something wrong."""
    wanted = [word for fault in faults for word in ("--fault", fault)]
    return ("faults", "--runs", str(len(faults)), "--parallel", "2", *wanted)


LEDGER = "tests/ledger/test_commit.py", "tests/ledger/test_claims.py"

MUTANTS = (
    Mutant(
        "the fence is not checked",
        (
            Change(
                "ledger/claims.py",
                "return self.fence == claim.fence and self.token == claim.token",
                "return True",
            ),
            Change(
                "ledger/commit.py",
                "      AND p.fence = done.fence AND p.token = done.token AND p.position IS",
                "      AND p.position IS",
            ),
        ),
        LEDGER,
    ),
    Mutant(
        "the token is not checked",
        (
            Change(
                "ledger/claims.py",
                "return self.fence == claim.fence and self.token == claim.token",
                "return self.fence == claim.fence",
            ),
        ),
        LEDGER,
    ),
    Mutant(
        "the number of changed rows is not checked",
        (
            Change(
                "ledger/commit.py", "    if cursor.rowcount != rows:\n", "    if cursor.rowcount > rows:\n"
            ),
        ),
        LEDGER,
    ),
    Mutant(
        "partitions are locked in the order in which they come",
        (
            Change(
                "ledger/claims.py",
                "    ordered = sorted(set(partitions))\n",
                "    ordered = list(partitions)\n",
            ),
            Change(
                "ledger/claims.py",
                '    ORDER BY source COLLATE "C", partition COLLATE "C"\n    ON CONFLICT',
                "    ON CONFLICT",
            ),
        ),
        ("tests/ledger/test_claims.py",),
    ),
    Mutant(
        "a claim leaves the former owner's fence",
        (Change("ledger/claims.py", "SET fence = p.fence + 1, token = gen_random_uuid(), ", "SET "),),
        LEDGER,
    ),
    Mutant(
        "a claim does not abandon what was intended",
        (
            Change(
                "ledger/claims.py",
                "    await conn.execute(_ABANDON, names)\n    return claims\n",
                "    return claims\n",
            ),
        ),
        ("tests/ledger",),
    ),
    Mutant(
        "the position is not compared before a commit",
        (
            Change("ledger/commit.py", "        if position != advance.after:\n", "        if False:\n"),
            Change("ledger/commit.py", " AND p.position IS NOT DISTINCT FROM done.after", ""),
        ),
        LEDGER,
    ),
    Mutant(
        "a COMMIT without an answer is taken for one that happened",
        (Change("ledger/ledger.py", "        if not happened:\n", "        if False:\n"),),
        ("tests/ledger/test_lost_commit.py",),
    ),
    Mutant(
        "a COMMIT without an answer is just tried again",
        (
            Change(
                "ledger/ledger.py", "        except OutcomeUnknown:\n", "        except ZeroDivisionError:\n"
            ),
        ),
        ("tests/ledger/test_lost_commit.py",),
    ),
    Mutant(
        "a COMMIT without an answer is looked up without the row locks",
        (
            Change(
                "ledger/ledger.py",
                "            rows = await claiming.lock(conn, self.stream, mine, shared=False)\n"
                "            ours = [partition for partition, row in rows.items() if row.held_by(mine[partition])]\n"
                "            happened",
                "            ours = []\n            happened",
            ),
        ),
        ("tests/ledger/test_lost_commit.py",),
    ),
    Mutant(
        "whatever PostgreSQL answers to COMMIT is fine",
        (
            Change("database.py", '        if tag != "COMMIT":\n', "        if not tag:\n"),
            Change(
                "database.py",
                "        if conn.info.transaction_status is not TransactionStatus.INTRANS:\n",
                "        if not conn:\n",
            ),
        ),
        ("tests/ledger/test_commit.py", "tests/ledger/test_database.py"),
    ),
    Mutant(
        "the sweep deletes what can still be committed",
        (
            Change(
                "ledger/sweep.py",
                "    WHERE stream = %(stream)s AND state = 'abandoned'\n      AND abandoned_at <= CASE",
                "    WHERE stream = %(stream)s AND state IN ('abandoned', 'intended')\n"
                "      AND coalesce(abandoned_at, intended_at) <= CASE",
            ),
        ),
        ("tests/ledger/test_sweep.py",),
    ),
    Mutant(
        "the loader does not lock",
        (
            Change(
                "sinks/warehouse_postgres.py",
                '            await conn.execute("LOCK TABLE warehouse.loads IN SHARE ROW EXCLUSIVE MODE")\n'
                '            failpoint("load.locked")\n',
                '            failpoint("load.locked")\n',
            ),
        ),
        ("tests/sinks/test_warehouse.py", "tests/sinks/test_warehouse_postgres.py"),
    ),
    Mutant(
        "the loader notes what it loaded after its transaction",
        (
            Change(
                "sinks/warehouse_postgres.py",
                "        return report\n\n    async def status",
                "        async with self._database.transaction('note the loads') as conn:\n"
                "            for done in objects:\n"
                "                await conn.execute(\n"
                "                    'INSERT INTO warehouse.loads (stream, key, rows, loaded_at)'\n"
                "                    ' VALUES (%s, %s, %s, clock_timestamp()) ON CONFLICT DO NOTHING',\n"
                "                    [self._stream, done.plan.key, done.plan.rows],\n"
                "                )\n"
                "        return report\n\n    async def status",
            ),
            Change(
                "sinks/warehouse_postgres.py",
                "        await conn.execute(\n"
                '            "INSERT INTO warehouse.loads (stream, key, rows, loaded_at)"\n'
                '            " VALUES (%s, %s, %s, clock_timestamp())",\n'
                "            [self._stream, key, rows],\n"
                "        )\n",
                "",
            ),
        ),
        bench("kill at load.committed"),
    ),
    Mutant(
        "the gate lets records through that were handed out",
        (
            Change(
                "sources/kafka_partition.py",
                "            if batch.next_offset - 1 <= self.seen:\n                continue\n",
                "",
            ),
        ),
        ("tests/sources/test_kafka_partition.py",),
    ),
    Mutant(
        "a jump in the offsets is not noticed",
        (
            Change(
                "sources/kafka_partition.py",
                "        if base > self.seen + 1 and not",
                "        if base < 0 and not",
            ),
        ),
        ("tests/sources/test_kafka_partition.py",),
    ),
    Mutant(
        "a partition that was claimed before is read from its beginning",
        (
            Change("sources/kafka_claims.py", "            self.consumer.seek(tp, position + 1)\n", ""),
            Change(
                "sources/kafka_claims.py",
                "PartitionReader(self._partition(tp), position, compacted",
                "PartitionReader(self._partition(tp), -1, compacted",
            ),
        ),
        ("tests/sources/test_kafka_source.py",),
    ),
    Mutant(
        "a topic that was made anew is taken for the one that was read",
        (
            Change(
                "sources/kafka_claims.py",
                "            elif logs.get(self._partition(tp), found.topic_id) != found.topic_id:\n",
                "            elif not tp:\n",
            ),
        ),
        ("tests/sources/test_kafka_source.py",),
    ),
    Mutant(
        "the log of a position is noted anew with each claim",
        (Change("ledger/claims.py", "      AND (p.log IS NULL OR p.position IS NULL)\n", ""),),
        ("tests/ledger/test_claims.py",),
    ),
    Mutant(
        "the clock of a partition is not kept",
        (
            Change(
                "ledger/commit.py",
                "        clock_us = GREATEST(p.clock_us, done.clock_us),\n",
                "",
            ),
        ),
        bench("kill at put.last", "kill at commit.fenced"),
    ),
    Mutant(
        "event ids are forgotten when a partition changes hands",
        (
            Change(
                "pipeline/recall.py",
                "        if clock_us is None or self._lake is None:\n            return recent\n",
                "        if clock_us is None or clock_us or self._lake is None:\n            return recent\n",
            ),
        ),
        bench("kill at put.last", "kill at commit.fenced"),
    ),
    Mutant(
        "objects are intended after they are put",
        (
            Change(
                "pipeline/commit.py",
                '        await self._until_answered("intend", lambda: self._ledger.intend(epoch.id, plans, claims))\n',
                "",
            ),
            Change(
                "pipeline/commit.py",
                '        put = epoch.spent("put", ready)\n',
                '        await self._until_answered("intend", lambda: self._ledger.intend(epoch.id, plans, claims))\n'
                '        put = epoch.spent("put", ready)\n',
            ),
        ),
        bench("kill at put.last"),
    ),
    Mutant(
        "an epoch is acknowledged before its objects are put",
        (
            Change(
                "sinks/lake.py",
                "            stored = await self._store.put(file.plan.key, file.body)\n",
                "            from hashlib import sha256\n"
                "            from streamproc.sinks.object_store import Stored\n"
                "            stored = Stored(file.plan.key, len(file.body), sha256(file.body).hexdigest())\n"
                "            later = asyncio.get_running_loop().call_later\n"
                "            later(5.0, lambda: asyncio.ensure_future(self._store.put(file.plan.key, file.body)))\n",
            ),
        ),
        bench("kill at tell"),
    ),
    Mutant(
        "rejects are written outside of the epoch",
        (
            Change(
                "pipeline/commit.py",
                "        plans = [file.plan for file in files]\n",
                "        if self._lake is not None:\n"
                "            await self._lake.write([file for file in files if file.plan.kind == 'rejects'])\n"
                "        files = [file for file in files if file.plan.kind != 'rejects']\n"
                "        plans = [file.plan for file in files]\n",
            ),
        ),
        bench("kill at commit.merged"),
    ),
    Mutant(
        "the tables have a transaction of their own",
        (
            Change(
                "pipeline/commit.py",
                "            changed = await self._summaries.apply(conn, deltas, changed=wanted)\n",
                "            async with self._ledger.database.transaction('merge') as merging:\n"
                "                changed = await self._summaries.apply(merging, deltas, changed=wanted)\n",
            ),
        ),
        bench("kill at commit.merged"),
    ),
)


def prepare(mutant: Mutant | None, directory: Path) -> None:
    """A copy of the project in ``directory``, with the mutant's changes."""
    for name in _COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, directory / name)
    for change in mutant.changes if mutant is not None else ():
        change.apply(directory / "streamproc")


def kill(mutant: Mutant, directory: Path, deadline: float = 400) -> subprocess.CompletedProcess[str]:
    """Run the mutant's killer on the copy in ``directory``; an exit code of 1 means that it was caught."""
    if mutant.by_bench:
        command = [sys.executable, "-m", "tests.faults", *mutant.killer[1:]]
    else:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "not slow and not kafka and not faults and not mutants and not aws and not browser",
        ]
        command += mutant.killer
    return subprocess.run(
        command,
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
        timeout=deadline,
        check=False,
    )
