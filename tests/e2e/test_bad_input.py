"""Naughty strings and JSON bombs among good events: each bad one is a reject, all good ones arrive."""

from __future__ import annotations

import json
from collections.abc import Iterator

import duckdb
import psycopg

from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.kafka_produce import KafkaProducer
from tests.e2e.harness import check_everything, committed_records, generated, read_topic, settled_files, until

EVENT = {
    "event_id": "id",
    "event_type": "page_view",
    "event_time": 1736154000000,
    "visitor_id": "v",
    "page_url": "https://shop.example/",
}


def event(n: int, **fields: object) -> bytes:
    return json.dumps({**EVENT, "event_id": f"bad-input-{n}", **fields}).encode()


def raw(n: int, member: str) -> bytes:
    """A good event with one more member, spelled as given."""
    return event(n)[:-1] + b", " + member.encode("utf-8", "surrogatepass") + b"}"


BOMBS: dict[str, bytes | None] = {
    "depth of 100,000": b"[" * 100_000 + b"]" * 100_000,
    "depth of 100,000 in a member": raw(1, '"properties": ' + '{"a":' * 100_000 + "1" + "}" * 100_000),
    "10 MB": event(2, page_url="https://shop.example/" + "x" * 10_000_000),
    "number of 400 digits": raw(3, '"value": ' + "9" * 400),
    "NaN": raw(4, '"value": NaN'),
    "duplicate key": raw(5, '"visitor_id": "someone else"'),
    "lone surrogate": raw(6, '"session_id": "\\ud800"'),
    "NUL": raw(7, '"session_id": "a\\u0000b"'),
    "BOM": b"\xef\xbb\xbf" + event(8),
    "broken UTF-8": event(9).replace(b"shop", b"sh\xff\xfe"),
    "empty": b"",
    "null": b"null",
    "not an object": b"[1, 2, 3]",
    "a text": b'"event"',
    "tombstone": None,
    "raw newline in a text": event(10).replace(b"shop", b"sh\nop"),
    "wrong type": event(11, event_time="yesterday"),
    "two objects": event(12) + b"\n" + event(13),
}

FINE = {
    "pretty printed": json.dumps({**EVENT, "event_id": "bad-input-20"}, indent=2).encode(),
    "unknown members": event(21, something={"else": [1, 2]}),
}


def mixed(naughty: list[str]) -> Iterator[tuple[bytes, bytes | None]]:
    """Bad records strewn among 4,000 good ones."""
    strange = list(BOMBS.values()) + list(FINE.values())
    strange += [event(100 + n, properties={"text": text}) for n, text in enumerate(naughty)]
    strange += [text.encode("utf-8", "surrogatepass") for text in naughty]
    waiting = iter(strange)
    for n, good in enumerate(generated(4_000, seed=31, bad_ratio=0)):
        yield good
        if n % 3 == 0 and (odd := next(waiting, waiting)) is not waiting:
            yield b"key", odd
    assert next(waiting, None) is None


async def test_each_bad_record_is_a_reject_and_every_good_one_around_it_arrives(site, start, shared_data):
    naughty = json.loads((shared_data / "bad_input" / "blns.json").read_text())
    records = list(mixed(naughty))
    async with KafkaProducer(KafkaConnection(site.broker, embedded=True), compression=None) as producer:
        for at in range(0, len(records), 50):
            part = records[at : at + 50]
            await producer.send(site.topic, [value for _, value in part], [key for key, _ in part])
        await producer.flush()
    worker = start("only")
    await until(lambda: committed_records(site.ledger) == len(records), "all committed", 90, [worker])
    assert worker.stop() == 0, worker.tail()
    check_everything(site, await read_topic(site.broker, site.topic))
    with psycopg.connect(site.ledger) as db:
        rejects = settled_files(db, site.lake, "rejects")
    found = (
        duckdb.connect()
        .execute("select original, reason from read_parquet(?)", [[str(f) for f in rejects]])
        .fetchall()
    )
    reasons = dict(found)
    for name, bomb in BOMBS.items():
        assert reasons.get(bomb), f"{name} is not among the rejects"
