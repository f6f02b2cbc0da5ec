"""Everything that must hold after a run in which every record of the topic was committed."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import psycopg

from tests.e2e import oracle
from tests.e2e.harness import Site, check_tables, settled_files
from tests.faults import audit
from tests.faults.expected import Coordinates, outcomes

Topic = dict[Coordinates, bytes | None]


@dataclass
class Verdict:
    """``lost`` and ``duplicated`` count rows of lake, rejects and warehouse; ``wrong`` says what else is."""

    lost: int = 0
    duplicated: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.wrong)

    def compare(self, what: str, got: Counter, wanted: set) -> None:
        """Add what is missing from ``got``, there twice, or there without being ``wanted``."""
        missing = wanted - got.keys()
        repeated = {row: times for row, times in got.items() if times > 1}
        extra = got.keys() - wanted
        self.lost += len(missing)
        self.duplicated += sum(repeated.values()) - len(repeated)
        for problem, rows in (("missing", missing), ("repeated", repeated), ("unexpected", extra)):
            if rows:
                self.wrong.append(f"{what}: {len(rows)} {problem}, e.g. {sorted(rows, key=repr)[:3]}")

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what)


def judge(site: Site, topic: Topic) -> Verdict:
    """All checks. ``topic``: what an independent consumer read, partitions named as the ledger names them."""
    verdict = Verdict()
    became = outcomes(topic)
    with psycopg.connect(site.ledger) as db:
        _ranges(db, topic, verdict)
        _counts(db, became, verdict)
        files = {kind: _objects(db, site.lake, kind, verdict) for kind in ("events", "rejects")}
        _listing(db, site.lake, verdict)
        lake = _lake(files["events"])
        verdict.compare(
            "lake",
            Counter((p, n) for p, n, *_ in lake),
            {at for at, outcome in became.items() if outcome == "accepted"},
        )
        _rejects(files["rejects"], topic, became, verdict)
        _warehouse(db, lake, site.stream, verdict)
        if files["events"]:
            try:
                check_tables(db, oracle.expect(files["events"]), site.stream)
            except AssertionError as error:
                verdict.wrong.append(f"tables: {str(error)[:500]}")
        verdict.wrong += [f"audit: {what}" for what in audit.refused(db)]
    return verdict


def _ranges(db: psycopg.Connection, topic: Topic, verdict: Verdict) -> None:
    """Each partition's ranges follow one another without gap or overlap, from its first to its last record."""
    last: dict[str, int] = defaultdict(lambda: -1)
    for partition, offset in topic:
        last[partition] = max(last[partition], offset)
    chains: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for partition, after, through in db.execute(
        "select partition, coalesce(after, -1), through from streamproc.epoch_ranges order by partition, through"
    ):
        chains[partition].append((int(after), int(through)))
    accepted = set(
        db.execute(
            "select partition, coalesce(from_position, -1)::bigint, to_position::bigint"
            " from streamproc.position_changes"
        ).fetchall()
    )
    for partition, end in last.items():
        chain = chains[partition]
        verdict.expect(bool(chain) and chain[0][0] == -1, f"ranges of {partition} do not begin at the start")
        for (_, through), (after, _) in itertools.pairwise(chain):
            by_hand = (partition, through, after) in accepted
            verdict.expect(after == through or by_hand, f"ranges of {partition}: {after} follows {through}")
        verdict.expect(
            bool(chain) and chain[-1][1] == end, f"lag of {partition} is not zero: {chain[-1:]}, {end}"
        )
    positions = dict(db.execute("select partition, position from streamproc.partitions").fetchall())
    for partition, end in last.items():
        verdict.expect(positions.get(partition) == end, f"{partition} stands at {positions.get(partition)}")


def _counts(db: psycopg.Connection, became: dict[Coordinates, str], verdict: Verdict) -> None:
    """In = accepted + filtered + rejected + duplicate: of each partition, of its epochs, and as expected."""
    wanted: dict[str, Counter[str]] = defaultdict(Counter)
    for (partition, _), outcome in became.items():
        wanted[partition][outcome] += 1
    columns = "partition, records, accepted, filtered, rejected, duplicate"
    sums = "partition, sum(records), sum(accepted), sum(filtered), sum(rejected), sum(duplicate)"
    for source, query in (
        ("partitions", f"select {columns} from streamproc.partitions"),
        ("epochs", f"select {sums} from streamproc.epoch_ranges group by partition"),
    ):
        for partition, records, *counts in db.execute(query).fetchall():
            expected = wanted[partition]
            names = ("accepted", "filtered", "rejected", "duplicate")
            verdict.expect(
                records == expected.total() and [*map(int, counts)] == [expected[name] for name in names],
                f"{source}: {partition} counted {records}: {[*map(int, counts)]}, expected {dict(expected)}",
            )


def _objects(db: psycopg.Connection, lake: Path, kind: str, verdict: Verdict) -> list[Path]:
    try:
        return settled_files(db, lake, kind)
    except (AssertionError, FileNotFoundError) as error:
        verdict.wrong.append(f"objects: {error}")
    keys = db.execute(
        "select key from streamproc.objects where state = 'committed' and kind = %s order by key", [kind]
    ).fetchall()
    return [lake / key for (key,) in keys if (lake / key).exists()]


def _listing(db: psycopg.Connection, lake: Path, verdict: Verdict) -> None:
    """After the sweep the store holds the committed objects and nothing else, and nothing is left intended."""
    listed = {p.relative_to(lake).as_posix() for p in lake.rglob("*.parquet") if ".unfinished" not in p.parts}
    states = dict(db.execute("select key, state from streamproc.objects").fetchall())
    committed = {key for key, state in states.items() if state == "committed"}
    verdict.expect(
        listed == committed, f"objects: {len(listed - committed)} unlisted, {len(committed - listed)} gone"
    )
    left = {key: state for key, state in states.items() if state in ("intended", "abandoned")}
    verdict.expect(not left, f"objects: {len(left)} not swept: {list(left.items())[:3]}")


def _lake(files: list[Path]) -> list[tuple]:
    if not files:
        return []
    query = (
        "select source_partition, position, event_id, epoch_us(event_time), event_type, visitor_id"
        " from read_parquet(?, union_by_name = true)"
    )
    return duckdb.connect().execute(query, [[str(f) for f in files]]).fetchall()


def _rejects(files: list[Path], topic: Topic, became: dict[Coordinates, str], verdict: Verdict) -> None:
    query = "select source_partition, position, original from read_parquet(?)"
    rows = duckdb.connect().execute(query, [[str(f) for f in files]]).fetchall() if files else []
    wanted = {at for at, outcome in became.items() if outcome == "rejected"}
    verdict.compare("rejects", Counter((p, n) for p, n, _ in rows), wanted)
    altered = [(p, n) for p, n, original in rows if original != topic.get((p, n))]
    verdict.expect(not altered, f"rejects: {len(altered)} are not as they came")


def _warehouse(db: psycopg.Connection, lake: list[tuple], stream: str, verdict: Verdict) -> None:
    """The warehouse has the lake's rows, each once."""
    rows = db.execute(
        "select source_partition, position, event_id, (extract(epoch from event_time) * 1000000)::bigint,"
        f" event_type, visitor_id from warehouse.{stream}"
    ).fetchall()
    verdict.compare("warehouse", Counter(rows), set(lake))
