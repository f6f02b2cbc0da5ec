"""Logs in a bucket and in a folder, read by workers over a real ledger: every row once, whatever happens."""

from __future__ import annotations

import asyncio
import errno
import gzip
import io
import json
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
from botocore.exceptions import ClientError
from structlog.testing import capture_logs

from streamproc.errors import DependencyError
from streamproc.ledger import Ledger
from streamproc.ledger.logs import Logs
from streamproc.log_objects import LogEnd, LogEntry, Period
from streamproc.model import Partition, RecordBatch
from streamproc.settings import read_settings
from streamproc.sources.log_bucket import Bucket, LogArchived, is_archived
from streamproc.sources.log_folder import Folder
from streamproc.sources.log_queue import Queue
from streamproc.sources.log_store import LogBytes, LogConnection, LogGone
from streamproc.sources.log_unpack import Caps
from streamproc.sources.logs import LogSource
from streamproc.sources.opening import connection_of
from streamproc.topology import Contract, EventTime
from tests.conftest import S3Server
from tests.faults.proxies import FaultyHttp
from tests.sources.taking import Taking

JSON = Contract((), EventTime("t"), max_record_bytes=1024)


class Member(Taking):
    """A worker: claims in the ledger, keeps what it is given, commits when it is told to."""

    def __init__(self, ledger: Ledger, connection: LogConnection, contract: Contract, lease: float) -> None:
        self.batches: list[RecordBatch] = []
        self.ledger = ledger
        self.gone: list[Partition] = []
        self.waits: list[DependencyError] = []
        self._uncommitted: list[RecordBatch] = []
        self.logs = Logs(ledger.database, ledger.stream, connection.url, ledger.worker, lease)
        self.source = LogSource(connection, contract, self, self.logs, waiting=self._waiting)

    def _waiting(self, error: DependencyError, failing: float) -> None:
        self.waits.append(error)

    async def assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, int | None]:
        claims = await self.ledger.claim(partitions)
        return {partition: claim.position for partition, claim in claims.items()}

    async def revoked(self, partitions: Sequence[Partition]) -> None:
        raise AssertionError("nobody asks for logs")

    async def finished(self, partitions: Sequence[Partition]) -> None:
        self.gone += partitions


@asynccontextmanager
async def member(
    postgres: str,
    url: str,
    *,
    name: str = "w1",
    lease: float = 30,
    contract: Contract = JSON,
    **options: Any,
) -> AsyncIterator[Member]:
    async with Ledger(postgres, "logs", name) as ledger:
        await ledger.migrate()
        connection = LogConnection(url, **{"list_every": 0.1, **options})
        one = Member(ledger, connection, contract, lease)
        await one.source.start()
        try:
            yield one
        finally:
            await one.source.close()


async def read_until(holds: Callable[[], object], *members: Member, committing: bool = True) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, [len(each.batches) for each in members]
        for each in members:
            await each.take()
            if committing:
                await each.commit()


async def read_all(*members: Member) -> None:
    """Until everything that is listed is read, of connections that end."""
    await read_until(lambda: all(each.source.finished.is_set() for each in members), *members)


def values(*members: Member) -> Counter[bytes]:
    return Counter(value or b"" for each in members for batch in each.batches for value in batch.values)


def assert_seamless(*members: Member) -> None:
    through: dict[Partition, int] = {}
    for each in members:
        for batch in each.batches:
            assert batch.after == through.get(batch.partition, -1)
            assert len(batch.values) == len(batch.positions) > 0
            through[batch.partition] = batch.through


def lines(name: str, number: int) -> list[bytes]:
    return [b'{"%s": %d}' % (name.encode(), n) for n in range(number)]


class Objects:
    def __init__(self, server: S3Server, bucket: str) -> None:
        self.bucket = bucket
        self.client = boto3.client("s3", endpoint_url=server.endpoint_url, region_name=server.region)

    def put(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body)


@pytest.fixture
def objects(s3_server: S3Server, bucket: str) -> Objects:
    return Objects(s3_server, bucket)


# -- objects -----------------------------------------------------------------------------------------


async def test_every_object_under_the_prefix_is_read_once_and_nothing_else(
    postgres: str, objects: Objects
) -> None:
    expected: Counter[bytes] = Counter()
    for number in range(23):
        written = lines(f"o{number}", 300 + number)
        expected.update(written)
        objects.put(f"logs/2026/{number:02}.gz", gzip.compress(b"\n".join(written) + b"\n"))
    objects.put("logs/last", b'{"no line feed": 1}')
    expected[b'{"no line feed": 1}'] += 1
    objects.put("logs/empty", b"")
    objects.put("other/x.gz", gzip.compress(b"not ours\n"))
    url = f"s3://{objects.bucket}/logs"
    async with member(postgres, url, once=True) as one:
        await read_all(one)
        assert values(one) == expected
        assert_seamless(one)
        assert len(one.gone) == 24
    async with member(postgres, url, once=True) as again:
        await read_all(again)
        assert not again.batches


@pytest.mark.parametrize(
    ("place", "others"),
    [
        ("s3://shop/alb/", set()),
        ("s3://shop/alb", {"alb-old/3.gz", "alb.gz"}),
        ("s3://shop/", {"alb-old/3.gz", "alb.gz", "cdn/4.gz"}),
        ("s3://shop", {"alb-old/3.gz", "alb.gz", "cdn/4.gz"}),
    ],
)
def test_a_slash_behind_the_prefix_leaves_out_what_only_begins_like_it(place: str, others: set[str]) -> None:
    keys = ("alb/1.gz", "alb/2026/2.gz", "alb-old/3.gz", "alb.gz", "cdn/4.gz")
    connection = connection_of(read_settings(environ={"STREAMPROC_BROKER": place}))
    assert isinstance(connection, LogConnection)
    bucket = Bucket(connection)
    mine = {key for key in keys if bucket.entry(key, "e", 7, 0) is not None}
    assert mine == {"alb/1.gz", "alb/2026/2.gz"} | others
    assert str(connection) == place.rstrip("/"), "by which logs are known, with a slash or without"


async def test_neighbours_of_a_folder_in_a_bucket_are_not_read(postgres: str, objects: Objects) -> None:
    objects.put("logs/a", b"ours\n")
    objects.put("logs-old/a", b"not ours\n")
    objects.put("logs", b"nor this\n")
    async with member(postgres, f"s3://{objects.bucket}/logs", once=True, below=True) as one:
        await read_all(one)
        assert values(one) == Counter([b"ours"])


async def test_an_object_whose_key_the_ledger_cannot_hold_is_told_of_once_and_holds_nobody_up(
    postgres: str, objects: Objects
) -> None:
    """S3 takes any character of Unicode in a key, U+0000 too: PostgreSQL has no text with that."""
    objects.put("logs/a\0b", b"nobody can name it\n")
    objects.put("logs/c", b"1\n")
    url = f"s3://{objects.bucket}/logs/"
    bucket = Bucket(LogConnection(url))
    await bucket.open()
    with capture_logs() as said:
        listed = [entry.place for _ in range(2) async for page in bucket.listing() for entry in page]
    await bucket.close()
    assert listed == ["logs/c", "logs/c"]
    assert [each["log"] for each in said if each["event"] == "log_name_unreadable"] == ["'logs/a\\x00b'"]
    async with member(postgres, url, once=True) as one:
        await read_all(one)
        assert values(one) == Counter([b"1"])


async def test_an_object_goes_on_behind_the_committed_row_after_a_crash(
    postgres: str, objects: Objects
) -> None:
    written = lines("x", 55_000)
    objects.put("big.gz", gzip.compress(b"\n".join(written)))
    url = f"s3://{objects.bucket}/"
    async with member(postgres, url) as first:
        await read_until(lambda: len(first.batches) >= 2, first, committing=False)
        await first.commit()
        await first.take()
        first.drop()
        committed = sum(map(len, first.batches))
    async with member(postgres, url, once=True, name="w2") as second:
        await read_all(second)
        assert second.batches[0].after == committed - 1 > 0
        assert_seamless(first, second)
        assert values(first, second) == Counter(written)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
async def test_a_connection_that_breaks_in_the_middle_of_an_object_goes_on_at_that_byte(
    postgres: str, objects: Objects, s3_server: S3Server, packed: bool
) -> None:
    chance = random.Random(5)
    written = [b'{"%d": "%b"}' % (number, chance.randbytes(30).hex().encode()) for number in range(8_000)]
    body = b"\n".join(written) + b"\n"
    async with FaultyHttp.before(s3_server.endpoint_url, chance) as (proxy, url):
        objects.put("big", gzip.compress(body) if packed else body)
        place = f"s3://{objects.bucket}/"
        proxy.cut_answers = 1.0
        async with member(postgres, place, once=True, endpoint_url=url) as one:
            await read_until(lambda: proxy.hits > 3, one)
            proxy.cut_answers = 0.0
            await read_all(one)
            assert [value for batch in one.batches for value in batch.values] == written
            assert_seamless(one)
            assert {wait.what for wait in one.waits} == {f"{place}big"}


async def test_a_store_that_is_away_is_waited_for(
    postgres: str, objects: Objects, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamproc.sources.log_bucket._ATTEMPTS", 1)
    async with (
        FaultyHttp.before(s3_server.endpoint_url, random.Random(1)) as (proxy, url),
        member(postgres, f"s3://{objects.bucket}/", endpoint_url=url) as one,
    ):
        objects.put("a", b"1\n")
        await read_until(lambda: one.gone, one)
        proxy.refuse = 1.0
        objects.put("b", b"2\n")
        await read_until(lambda: len(one.waits) > 1, one)
        proxy.refuse = 0.0
        await read_until(lambda: len(one.gone) == 2, one)
        assert values(one) == Counter([b"1", b"2"])


@pytest.mark.parametrize("asked", ["found", "take"])
async def test_who_asks_the_ledger_when_it_is_to_end_ends_although_it_is_answered(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """A query that is given up may come to its end all the same, and the cancellation with it."""
    (tmp_path / "a").write_bytes(b"1\n")
    asking = asyncio.Event()

    async def answered(*_: object, **__: object) -> Any:
        asking.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return [] if asked == "take" else 0

    async with member(postgres, tmp_path.as_uri()) as one:
        monkeypatch.setattr(one.logs, asked, answered)
        (tmp_path / "b").write_bytes(b"2\n")
        one.source._sharing.hurry.set()
        async with asyncio.timeout(20):
            await asking.wait()
            await one.source.close()
        monkeypatch.undo()


async def test_an_object_that_changes_is_another_log_and_the_same_bytes_again_are_not(
    postgres: str, objects: Objects
) -> None:
    async with member(postgres, f"s3://{objects.bucket}/") as one:
        objects.put("a", b"1\n2\n")
        await read_until(lambda: len(one.gone) == 1, one)
        objects.put("a", b"1\n2\n")
        objects.put("b", b"b\n")
        await read_until(lambda: len(one.gone) == 2, one)
        objects.put("a", b"3\n")
        await read_until(lambda: len(one.gone) == 3, one)
        assert values(one) == Counter([b"1", b"2", b"b", b"3"])


@pytest.mark.parametrize("versioned", [False, True])
async def test_a_content_that_was_written_over_before_it_was_read_is_a_version_or_gone(
    postgres: str, objects: Objects, versioned: bool
) -> None:
    if versioned:
        objects.client.put_bucket_versioning(
            Bucket=objects.bucket, VersioningConfiguration={"Status": "Enabled"}
        )
    async with Ledger(postgres, "logs", "w0") as ledger:
        await ledger.migrate()
        url = f"s3://{objects.bucket}/"
        told, bucket = Logs(ledger.database, "logs", url, "w0", 30), Bucket(LogConnection(url))
        for content in (b"1\n2\n", b"3\n", b"4\n"):  # each is told of, and nobody reads meanwhile
            objects.put("a", content)
            etag = objects.client.head_object(Bucket=objects.bucket, Key="a")["ETag"]
            entry = bucket.entry("a", etag, len(content), 1)
            assert entry is not None
            await told.found([entry])
        objects.put("ab", b"5\n")
    async with member(postgres, url, once=True) as one:
        await read_all(one)
        assert values(one) == Counter([b"1", b"2", b"3", b"4", b"5"] if versioned else [b"4", b"5"])
        assert_seamless(one)


async def test_workers_share_the_objects_and_one_that_is_gone_leaves_its_own_to_the_others(
    postgres: str, objects: Objects
) -> None:
    expected: Counter[bytes] = Counter()
    for number in range(40):
        expected.update(written := lines(f"o{number}", 50))
        objects.put(f"{number}", b"\n".join(written))
    url = f"s3://{objects.bucket}/"
    async with member(postgres, url, lease=1) as first:
        await read_until(lambda: first.batches, first, committing=False)
        for task in first.source._sharing._tasks:  # it hangs: no heartbeat, no commit
            task.cancel()
        first.drop()
        async with (
            member(postgres, url, name="w2", once=True) as second,
            member(postgres, url, name="w3", once=True) as third,
        ):
            await read_all(second, third)
            assert values(first, second, third) == expected


@pytest.mark.parametrize(
    ("body", "kept", "reason", "rest"),
    [
        (gzip.compress(b"1\n2\n" * 9000, mtime=0)[:-20], None, "truncated_object", None),
        (gzip.compress(b"1\n2\n", mtime=0) + b"garbage", 2, "corrupt_object", b""),
        (gzip.compress(b"1\n" + bytes(100 << 20), mtime=0), 1, "oversized_object", None),
    ],
    ids=["truncated", "corrupt", "bomb"],
)
async def test_what_can_be_read_of_a_broken_object_is_kept_and_its_end_is_a_reject(
    postgres: str, objects: Objects, body: bytes, kept: int | None, reason: str, rest: bytes | None
) -> None:
    objects.put("broken", body)
    objects.put("sound", b"sound\n")
    async with member(postgres, f"s3://{objects.bucket}/", once=True) as one:
        await read_all(one)
        broken = [batch for batch in one.batches if batch.partition.id.startswith("broken")]
        *sound, last = broken
        assert last.damage is not None and last.damage.reason == reason
        assert len(last) == 1 and not any(batch.damage for batch in sound)
        rows = [value for batch in sound for value in batch.values]
        assert rows == [b"1", b"2"] * (len(rows) // 2) + [b"1"] * (len(rows) % 2)
        assert kept is None or len(rows) == kept
        assert rest is None or last.values == [rest]
        assert b"sound" in values(one)
    async with member(postgres, f"s3://{objects.bucket}/", once=True) as again:
        await read_all(again)
        assert not again.batches


async def test_header_lines_are_passed_over_and_other_fields_than_the_pages_end_the_object(
    postgres: str, objects: Objects
) -> None:
    contract = Contract((), EventTime("t"), decoder="cloudfront", log_format="date time c-ip")
    objects.put("right", b"#Version: 1.0\n#Fields: date time c-ip\n2026-01-01\t00:00:00\t::1\n")
    objects.put("wrong", b"#Version: 1.0\n#Fields: time date c-ip\n2026-01-01\t00:00:00\t::1\n")
    async with member(postgres, f"s3://{objects.bucket}/", once=True, contract=contract) as one:
        await read_all(one)
        (right,) = [batch for batch in one.batches if batch.partition.id.startswith("right")]
        (wrong,) = [batch for batch in one.batches if batch.partition.id.startswith("wrong")]
        assert (list(right.positions), right.damage) == ([2], None)
        assert wrong.damage is not None and "time date c-ip" in wrong.damage.detail


async def test_rows_before_a_header_of_other_fields_are_read(postgres: str, objects: Objects) -> None:
    """Two objects that somebody has put together."""
    contract = Contract((), EventTime("t"), decoder="cloudfront", log_format="date time c-ip")
    row = b"2026-01-01\t00:00:00\t::1"
    begins = [b"#Fields: date time c-ip", row, row]
    objects.put("both", b"\n".join([*begins, b"#Fields: time date c-ip", row]) + b"\n")
    async with member(postgres, f"s3://{objects.bucket}/", once=True, contract=contract) as one:
        await read_all(one)
        rows, last = one.batches
        assert (list(rows.positions), rows.values) == ([1, 2], [row, row])
        assert (list(last.positions), last.damage is not None) == ([3], True)


async def test_only_objects_of_the_period_are_read(postgres: str, objects: Objects) -> None:
    objects.put("now", b"now\n")
    for period, expected in (
        (Period(until_ms=1_000), []),
        (Period(since_ms=int(time.time() * 1000) + 3_600_000), []),
        (Period(since_ms=1_000, until_ms=int(time.time() * 1000) + 3_600_000), [b"now"]),
    ):
        async with member(postgres, f"s3://{objects.bucket}/", once=True, period=period) as one:
            await read_all(one)
            assert list(values(one)) == expected


async def test_finished_objects_are_folded_into_one_row_and_still_known(
    postgres: str, objects: Objects
) -> None:
    for number in range(5):
        objects.put(f"{number}", b"x\ny\n")
    url = f"s3://{objects.bucket}/"
    async with member(postgres, url, once=True) as one:
        await read_all(one)
        with psycopg.connect(postgres, autocommit=True) as db:
            db.execute("UPDATE streamproc.partitions SET records = 2, accepted = 2, clock_us = 7")
            assert await one.logs.compact(0) == 5
            assert await one.logs.compact(0) == 0
            rows = db.execute(
                "SELECT partition, records, accepted, clock_us FROM streamproc.partitions"
            ).fetchall()
        assert rows == [("finished", 10, 10, 7)]
    async with member(postgres, url, once=True) as again:
        await read_all(again)
        assert not again.batches


async def test_a_claim_that_comes_after_the_log_was_finished_and_folded_reads_nothing(
    postgres: str, objects: Objects
) -> None:
    """A worker takes a log, hangs, and claims it when another one has long finished it."""
    objects.put("x", b"x\n")
    url = f"s3://{objects.bucket}/"
    async with member(postgres, url, once=True) as late:
        claim, asked, go_on = late.ledger.claim, asyncio.Event(), asyncio.Event()

        async def claim_late(partitions: Sequence[Partition]) -> Any:
            asked.set()
            await go_on.wait()
            return await claim(partitions)

        late.ledger.claim = claim_late  # type: ignore[method-assign]  # the pause that the test is about
        await asked.wait()
        with psycopg.connect(postgres, autocommit=True) as db:
            db.execute("UPDATE streamproc.logs SET expires_at = now() - interval '1 s'")
        async with member(postgres, url, once=True, name="w2") as other:
            await read_all(other)
            assert values(other) == Counter([b"x"])
            await other.logs.compact(0)
        go_on.set()
        await read_all(late)
        assert not late.batches
        assert len(late.gone) == 1


async def test_archived_objects_are_passed_over_and_keep_nobody_waiting(
    postgres: str, objects: Objects
) -> None:
    for name in ("GLACIER", "DEEP_ARCHIVE"):
        objects.client.put_object(Bucket=objects.bucket, Key=name, Body=b"old\n", StorageClass=name)
    objects.put("sound", b"new\n")
    async with member(postgres, f"s3://{objects.bucket}/", once=True) as one:
        await read_all(one)
        assert values(one) == Counter([b"new"])
        assert len(one.gone) == 1 and not one.waits


async def test_an_object_that_turns_out_to_be_archived_is_not_tried_at_each_listing(
    postgres: str, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the archive tiers of S3 Intelligent-Tiering, which a listing does not tell."""
    monkeypatch.setattr("streamproc.sources.log_bucket._ARCHIVES", frozenset())
    objects.client.put_bucket_versioning(Bucket=objects.bucket, VersioningConfiguration={"Status": "Enabled"})
    objects.client.put_object(Bucket=objects.bucket, Key="archived", Body=b"old\n", StorageClass="GLACIER")
    async with member(postgres, f"s3://{objects.bucket}/") as one:
        await read_until(lambda: one.gone, one)
        for number in range(3):  # each of them is found by a listing of its own
            objects.put(f"{number}", b"%d\n" % number)
            await read_until(lambda number=number: values(one)[b"%d" % number], one)
        assert sum(each.id.startswith("archived") for each in one.gone) == 1
        assert not one.waits


class Archive:
    """A client of S3 with one object, which cannot be read. ``told``: what a listing has about its being archived."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}

    def get_paginator(self, _: str) -> Archive:
        return self

    async def paginate(self, **_: object) -> AsyncIterator[dict[str, Any]]:
        yield {
            "Contents": [
                {"Key": "a", "ETag": '"e"', "Size": 1, "LastModified": datetime.now(UTC), **self.told}
            ]
        }

    async def get_object(self, **_: object) -> None:
        raise ClientError({"Error": {"Code": "InvalidObjectState"}}, "GetObject")


async def test_an_object_that_turned_out_to_be_archived_is_listed_when_it_is_restored_or_a_day_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = Bucket(LogConnection("s3://b/"))
    bucket._client = archive = Archive()

    async def listed() -> list[LogEntry]:
        return [entry async for entries in bucket.listing() for entry in entries]

    async def found_archived() -> None:
        (entry,) = await listed()
        with pytest.raises(LogArchived):
            await anext(bucket.read(entry, 0))
        assert not await listed()

    await found_archived()
    archive.told = {"RestoreStatus": {"IsRestoreInProgress": True}}
    assert not await listed()
    archive.told = {"RestoreStatus": {"IsRestoreInProgress": False, "RestoreExpiryDate": datetime.now(UTC)}}
    assert await listed()
    archive.told = {}
    await found_archived()
    monkeypatch.setattr("streamproc.sources.log_bucket._LEFT_ALONE", 0.0)
    assert await listed()
    assert not bucket._archived


@pytest.mark.parametrize(
    ("found", "archived"),
    [
        ({"StorageClass": "STANDARD"}, False),
        ({"StorageClass": "GLACIER_IR"}, False),
        ({}, False),
        ({"StorageClass": "DEEP_ARCHIVE"}, True),
        ({"StorageClass": "GLACIER", "RestoreStatus": {"IsRestoreInProgress": True}}, True),
        (
            {
                "StorageClass": "GLACIER",
                "RestoreStatus": {"IsRestoreInProgress": False, "RestoreExpiryDate": "2026-06-01"},
            },
            False,
        ),
    ],
    ids=["standard", "instant", "of another server", "deep", "being restored", "restored"],
)
def test_an_object_is_archived_until_it_is_restored(found: dict[str, Any], archived: bool) -> None:
    assert is_archived(found) == archived


async def test_an_object_that_is_found_again_after_its_row_was_folded_goes_on_behind_what_was_read(
    postgres: str, objects: Objects
) -> None:
    objects.put("a", b"1\n2\n3\n")
    url = f"s3://{objects.bucket}/"
    async with member(postgres, url, once=True) as one:
        read = one.source._store.read

        async def read_some(entry: LogEntry, offset: int) -> AsyncIterator[LogBytes]:
            yield LogBytes(
                b"".join([chunk.data async for chunk in read(entry, offset)])[:4], entry.modified_ms
            )
            raise LogGone("it was deleted meanwhile")

        one.source._store.read = read_some  # type: ignore[method-assign]  # the moment that the test is about
        await read_all(one)
        assert await one.logs.compact(0) == 1
    async with member(postgres, url, once=True, name="w2") as two:
        await read_all(two)
        assert values(one, two) == Counter([b"1", b"2", b"3"])
        assert_seamless(one, two)
        assert await two.logs.compact(0) == 1


async def test_a_log_that_is_taken_again_after_its_row_was_folded_stands_where_it_stood(
    postgres: str,
) -> None:
    async with Ledger(postgres, "logs", "w") as ledger:
        await ledger.migrate()
        logs, log = Logs(ledger.database, "logs", "file:///logs", "w", 30), Partition("file:///logs", "a")
        before, clock = None, None
        with psycopg.connect(postgres, autocommit=True) as db:
            for through in (4, 9, 14):
                await logs.found([LogEntry("a", "place", "version", through, 1)])
                (taken,) = await logs.take(1, Period())
                assert taken.end == (None if before is None else LogEnd(before, before, before))
                claim = (await ledger.claim([log]))[log]
                assert (claim.position, claim.clock_us) == (before, clock)
                db.execute("UPDATE streamproc.partitions SET records = 5, accepted = 5 WHERE partition = 'a'")
                db.execute(
                    """INSERT INTO streamproc.objects
                           (key, stream, kind, source, partition, through, rows, clock_us, epoch, fence, state,
                            size, checksum, intended_at, committed_at)
                       VALUES (%s, 'logs', 'events', %s, 'a', %s, 5, %s, gen_random_uuid(), 1, 'committed',
                               1, '', now(), now())""",
                    [f"{through}", log.source, through, through * 100],
                )
                await logs.finish({"a": LogEnd(through, through, through)})
                assert await logs.compact(0) == 1
                before, clock = through, through * 100
            rows = db.execute("SELECT partition, records FROM streamproc.partitions").fetchall()
            assert rows == [("finished", 15)]


async def test_folding_logs_is_no_commit(postgres: str) -> None:
    """Pages and status would say for an hour after the last log that something is committed."""
    async with Ledger(postgres, "logs", "w") as ledger:
        await ledger.migrate()
        logs = Logs(ledger.database, "logs", "s3://b", "w", 30)
        with psycopg.connect(postgres, autocommit=True) as db:
            # Two are folded together, then an older one, then one of which nothing was committed: it is claimed last.
            for folded in ({"a": (5, 7), "b": (5, 5)}, {"c": (5, 9)}, {"d": (0, 1)}):
                await logs.found([LogEntry(name, name, "version", 1, 1) for name in folded])
                assert len(await logs.take(2, Period())) == len(folded)
                await ledger.claim([Partition("s3://b", name) for name in folded])
                for name, (records, hours) in folded.items():
                    db.execute(
                        "UPDATE streamproc.partitions SET records = %(records)s, accepted = %(records)s,"
                        " updated_at = '2026-07-01 12:00+00'::timestamptz - %(hours)s * interval '1 hour'"
                        " WHERE partition = %(name)s",
                        {"records": records, "hours": hours, "name": name},
                    )
                await logs.finish({name: LogEnd(1, 1, 1) for name in folded})
                assert await logs.compact(0) == len(folded)
                rows = db.execute("SELECT partition, updated_at FROM streamproc.partitions").fetchall()
                assert rows == [("finished", datetime(2026, 7, 1, 7, tzinfo=UTC))]


async def test_what_one_worker_has_taken_another_does_not_get(postgres: str) -> None:
    async with Ledger(postgres, "logs", "w") as ledger:
        await ledger.migrate()
        one, other = (Logs(ledger.database, "logs", "s3://b", "w", 30) for _ in range(2))
        entries = [LogEntry(f"{number}", "place", "version", 1, number) for number in range(10)]
        assert (await one.found(entries), await other.found(entries)) == (10, 0)
        taken = await asyncio.gather(*(logs.take(4, Period()) for logs in (one, other, one, other)))
        ids = [each.entry.id for some in taken for each in some]
        assert sorted(ids, key=int) == [entry.id for entry in entries]
        assert await one.renew(ids) | await other.renew(ids) == set(ids)
        await one.release(ids)
        again = await other.take(10, Period())
        assert {each.entry.id for each in again} == {each.entry.id for each in taken[0] + taken[2]}


async def test_a_log_that_is_listed_again_is_written_only_when_it_has_changed(postgres: str) -> None:
    """Listings have all logs that there ever were, again and again."""

    def untouched() -> list[bool]:
        with psycopg.connect(postgres) as db:
            return [row[0] for row in db.execute("SELECT xmax = 0 FROM streamproc.logs ORDER BY partition")]

    async with Ledger(postgres, "logs", "w") as ledger:
        await ledger.migrate()
        logs = Logs(ledger.database, "logs", "s3://b", "w", 30)
        entries = [LogEntry(f"{number}", "place", "version", 1, number) for number in range(3)]
        assert await logs.found(entries) == 3
        assert await logs.found(entries) == 0
        assert untouched() == [True, True, True]
        changed = [entries[0], entries[1]._replace(place="elsewhere"), entries[2]._replace(size=2)]
        taken = await logs.take(3, Period())
        assert len(taken) == 3
        await logs.finish({entry.id: LogEnd(1, 0, 1) for entry in entries})
        assert await logs.found(changed) == 1, "it has grown; the other was renamed"
        assert [one.entry for one in await logs.take(3, Period())] == [changed[2]]


# -- notifications -----------------------------------------------------------------------------------


def s3_message(bucket: str, key: str, etag: str, size: int) -> str:
    """As S3 documents it; keys are encoded as in a form."""
    return json.dumps(
        {
            "Records": [
                {
                    "eventVersion": "2.1",
                    "eventSource": "aws:s3",
                    "eventTime": "1970-01-01T00:00:00.000Z",
                    "eventName": "ObjectCreated:Put",
                    "s3": {"bucket": {"name": bucket}, "object": {"key": key, "size": size, "eTag": etag}},
                }
            ]
        }
    )


def eventbridge_message(bucket: str, key: str, etag: str, size: int) -> str:
    """As EventBridge documents it; keys are not encoded."""
    detail = {"bucket": {"name": bucket}, "object": {"key": key, "size": size, "etag": etag}}
    return json.dumps({"detail-type": "Object Created", "time": "2021-11-12T00:00:00Z", "detail": detail})


def test_every_kind_of_message_tells_of_the_same_object() -> None:
    connection = LogConnection("s3://b/logs/", queue="http://q")
    queue = Queue(connection, Bucket(connection))
    plain = s3_message("b", "logs/a+b%C3%A9.gz", "e1", 7)
    (entry,) = queue.entries(plain)
    assert (entry.place, entry.version, entry.size) == ("logs/a bé.gz", "e1", 7)
    (by_sns,) = queue.entries(json.dumps({"Type": "Notification", "Message": plain}))
    (by_bridge,) = queue.entries(eventbridge_message("b", "logs/a bé.gz", "e1", 7))
    listed = Bucket(connection).entry("logs/a bé.gz", '"e1"', 7, 0)
    assert listed is not None
    assert {entry.id, by_sns.id, by_bridge.id, listed.id} == {entry.id}
    assert queue.entries(s3_message("other", "logs/a", "e", 7)) == []
    assert queue.entries(s3_message("b", "elsewhere/a", "e", 7)) == []
    assert queue.entries(json.dumps({"Event": "s3:TestEvent", "Bucket": "b"})) == []
    assert queue.entries(plain.replace("ObjectCreated:Put", "ObjectRemoved:Delete")) == []


class Refusing:
    """A queue that answers every request with that error."""

    def __init__(self, code: str) -> None:
        self._error = ClientError({"Error": {"Code": code, "Message": "no"}}, "ReceiveMessage")

    async def receive_message(self, **_: object) -> None:
        raise self._error

    async def delete_message_batch(self, **_: object) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("AccessDenied", "sqs:ReceiveMessage and sqs:DeleteMessage"),
        ("AWS.SimpleQueueService.NonExistentQueue", "logs.queue"),
        ("KMS.AccessDeniedException", "kms:Decrypt"),
        ("404", ""),  # of something that is no queue: waited out, as any other
    ],
)
async def test_a_queue_that_refuses_is_told_of_as_a_queue_and_not_as_a_bucket(code: str, hint: str) -> None:
    connection = LogConnection("s3://b", queue="http://q")
    queue = Queue(connection, Bucket(connection))
    queue._client = Refusing(code)
    for ask in (queue.receive, lambda: queue.delete(["r"])):
        with pytest.raises(DependencyError) as refused:
            await ask()
        assert (refused.value.what, hint in refused.value.hint) == ("http://q", True)
        assert "s3:" not in refused.value.hint


async def test_an_object_notified_three_times_is_read_once_and_its_messages_are_deleted(
    postgres: str, objects: Objects, s3_server: S3Server
) -> None:
    sqs = boto3.client("sqs", endpoint_url=s3_server.endpoint_url, region_name=s3_server.region)
    queue = sqs.create_queue(QueueName=f"q-{objects.bucket}")["QueueUrl"]
    sqs.set_queue_attributes(QueueUrl=queue, Attributes={"VisibilityTimeout": "1"})
    # The first listing sees nothing, the next one is in an hour: all that comes, comes by the queue.
    async with member(postgres, f"s3://{objects.bucket}/", queue=queue, list_every=3600.0) as one:
        await read_until(one.source._sharing.listed.is_set, one)
        objects.put("a b.gz", gzip.compress(b"1\n2\n"))
        etag = objects.client.head_object(Bucket=objects.bucket, Key="a b.gz")["ETag"].strip('"')
        for body in (
            s3_message(objects.bucket, "a+b.gz", etag, 24),
            s3_message(objects.bucket, "a+b.gz", etag, 24),
            eventbridge_message(objects.bucket, "a b.gz", etag, 24),
            "nobody can read this",
        ):
            sqs.send_message(QueueUrl=queue, MessageBody=body)

        def left() -> int:
            names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
            found = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
            return sum(map(int, found.values()))

        await read_until(lambda: one.gone and left() == 1, one)
        assert values(one) == Counter([b"1", b"2"])
    sqs.close()


async def test_while_the_queue_is_away_the_listing_finds_objects_and_later_messages_of_them_change_nothing(
    postgres: str, objects: Objects, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqs = boto3.client("sqs", endpoint_url=s3_server.endpoint_url, region_name=s3_server.region)
    queue = sqs.create_queue(QueueName=f"q-{objects.bucket}")["QueueUrl"]
    async with FaultyHttp.before(s3_server.endpoint_url, random.Random(1)) as (proxy, url):
        monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", url)
        proxy.refuse = 1.0
        async with member(postgres, f"s3://{objects.bucket}/", queue=queue) as one:
            objects.put("a", b"1\n")
            etag = objects.client.head_object(Bucket=objects.bucket, Key="a")["ETag"].strip('"')
            sqs.send_message(QueueUrl=queue, MessageBody=s3_message(objects.bucket, "a", etag, 2))
            await read_until(lambda: one.gone and one.waits, one)
            proxy.refuse = 0.0

            def left() -> int:
                names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
                found = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
                return sum(map(int, found.values()))

            await read_until(lambda: not left(), one)
            objects.put("b", b"2\n")
            await read_until(lambda: len(one.gone) == 2, one)
            assert values(one) == Counter([b"1", b"2"])
            assert {wait.what for wait in one.waits} == {queue}
    sqs.close()


# -- files -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "log files"
    folder.mkdir()
    return folder


def hold_up(one: Member) -> Callable[[], None]:
    """Have its readers stop after a megabyte; returns what lets them go on."""
    sharing, room = one.source._sharing, asyncio.Event()
    sharing._how = replace(sharing._how, room=lambda: room.is_set() or not sharing.readers)

    def go_on() -> None:
        room.set()
        for reader in sharing.readers.values():
            reader.go_on()

    return go_on


def miss_once(one: Member) -> None:
    """Have its first read find that the file was renamed after it was listed."""
    read, missed = one.source._store.read, asyncio.Event()

    async def read_late(entry: LogEntry, offset: int) -> AsyncIterator[LogBytes]:
        if not missed.is_set():
            missed.set()
            raise LogGone("it was renamed meanwhile")
        async for chunk in read(entry, offset):
            yield chunk

    one.source._store.read = read_late  # type: ignore[method-assign]  # the moment that the tests are about


async def test_a_growing_file_is_followed_and_only_whole_lines_are_read(postgres: str, folder: Path) -> None:
    log = folder / "access.log"
    async with member(postgres, folder.as_uri()) as one:
        with log.open("wb", buffering=0) as out:
            out.write(b"first\nsec")
            await read_until(lambda: one.gone, one)
            assert values(one) == Counter([b"first"])
            out.write(b"ond\nthird\nfou")
            await read_until(lambda: values(one)[b"third"], one)
            assert values(one) == Counter([b"first", b"second", b"third"])
            assert_seamless(one)
    with log.open("ab") as out:
        out.write(b"rth\n")
    async with member(postgres, folder.as_uri(), once=True, name="w2") as two:
        await read_all(two)
        assert values(two) == Counter([b"fourth"])
        assert_seamless(one, two)


async def test_rows_that_come_while_a_file_is_read_were_received_when_they_came(
    postgres: str, folder: Path
) -> None:
    log = folder / "access.log"
    rows = [b"%099d" % number for number in range(30_000)]
    log.write_bytes(b"\n".join(rows) + b"\n")
    listed = time.time() - 3600
    os.utime(log, (listed, listed))
    async with member(postgres, folder.as_uri(), list_every=3600.0) as one:
        go_on = hold_up(one)
        await read_until(lambda: one.batches, one)
        with log.open("ab") as out:
            out.write(b"later\n")
        written = log.stat().st_mtime_ns // 1_000_000
        go_on()
        await read_until(lambda: values(one)[b"later"], one)
        assert one.batches[0].received_ms == int(listed * 1000)
        assert one.batches[-1].received_ms >= written
        assert values(one) == Counter([*rows, b"later"])


async def test_a_log_that_another_worker_has_taken_is_forgotten(postgres: str, folder: Path) -> None:
    (folder / "access.log").write_bytes(b"%099d\n" % 0 * 30_000)
    async with member(postgres, folder.as_uri(), lease=1) as one:
        hold_up(one)
        await read_until(lambda: one.batches, one)
        with psycopg.connect(postgres, autocommit=True) as db:
            db.execute("UPDATE streamproc.logs SET holder = 'another', expires_at = now() + interval '1 h'")
        await read_until(lambda: one.gone, one)
        assert not one.source.assignment


@pytest.mark.parametrize("how", ["rename", "copytruncate"])
async def test_rotation_loses_nothing_and_repeats_nothing(postgres: str, folder: Path, how: str) -> None:
    log, old = folder / "access.log", folder / "access.log.1"
    written: list[bytes] = []

    def write(text: bytes) -> None:
        with log.open("ab") as out:
            out.write(text + b"\n")
        written.append(text)

    async with member(postgres, folder.as_uri()) as one:
        for turn in range(3):
            write(b"first of %d" % turn)
            write(b"seen of %d" % turn)
            await read_until(lambda: values(one) == Counter(written), one)
            write(b"not seen of %d when it was rotated" % turn)
            for number in range(turn, 0, -1):
                packed = folder / f"access.log.{number}.gz"
                if packed.exists():
                    packed.rename(folder / f"access.log.{number + 1}.gz")
            if old.exists():
                (folder / "access.log.2.gz").write_bytes(gzip.compress(old.read_bytes()))
                old.unlink()
            if how == "rename":
                log.rename(old)
            else:
                old.write_bytes(log.read_bytes())
                log.write_bytes(b"")
        write(b"the end")
        await read_until(lambda: values(one)[b"the end"], one)
        await read_until(lambda: values(one) == Counter(written), one)
        listings = one.source._store
        for _ in range(3):
            async for _entries in listings.listing():
                await one.take()
                await one.commit()
        assert values(one) == Counter(written)
        assert_seamless(one)


@pytest.mark.parametrize("then", ["empty", "longer than what was read", "shorter and alike"])
async def test_a_file_that_is_copied_and_truncated_while_it_is_read_is_read_on_in_its_copy(
    postgres: str, folder: Path, then: str
) -> None:
    log = folder / "access.log"
    rows = [b"%099d" % number for number in range(30_000)]
    others = {
        "empty": [],
        "longer than what was read": [b"x%098d" % number for number in range(40_000)],
        "shorter and alike": rows[:1],
    }[then]
    log.write_bytes(b"\n".join(rows) + b"\n")
    async with member(postgres, folder.as_uri()) as one:
        go_on = hold_up(one)
        await read_until(lambda: one.batches, one)
        (folder / "access.log.1").write_bytes(log.read_bytes())
        log.write_bytes(b"".join(row + b"\n" for row in others))
        go_on()
        await read_until(lambda: set(values(one)) >= {*rows, *others}, one)
        assert values(one) == Counter({*rows, *others})
        assert_seamless(one)


async def test_a_file_that_is_folded_again_and_again_while_it_grows_is_read_once(
    postgres: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamproc.sources.log_sharing._COMPACT_EVERY", 0.0)
    monkeypatch.setattr("streamproc.sources.log_sharing._COMPACT_FILES", 0.0)
    query, written = "SELECT partition FROM streamproc.partitions", []
    with psycopg.connect(postgres, autocommit=True) as db:
        async with member(postgres, folder.as_uri()) as one:
            for row in lines("row", 3):
                with (folder / "access.log").open("ab") as out:
                    out.write(row + b"\n")
                written.append(row)
                await read_until(lambda: values(one) == Counter(written), one)
                await read_until(lambda: db.execute(query).fetchall() == [("finished",)], one)
            assert_seamless(one)


async def test_a_file_packed_before_it_was_read_to_its_end_is_read_on(postgres: str, folder: Path) -> None:
    log = folder / "access.log"
    rows = lines("row", 5000)
    log.write_bytes(b"\n".join(rows[:100]) + b"\n")
    async with member(postgres, folder.as_uri(), once=True) as one:
        await read_all(one)
    log.unlink()
    (folder / "access.log.1.gz").write_bytes(gzip.compress(b"\n".join(rows) + b"\n"))
    async with member(postgres, folder.as_uri(), once=True, name="w2") as two:
        await read_all(two)
        assert values(one, two) == Counter(rows)
        assert_seamless(one, two)


@pytest.mark.parametrize("packed", [False, True])
async def test_a_file_renamed_between_its_listing_and_its_reading_is_found_again(
    postgres: str, folder: Path, packed: bool
) -> None:
    body = b"1\n2\n"
    (folder / "access.log").write_bytes(gzip.compress(body) if packed else body)
    async with member(postgres, folder.as_uri(), list_every=0.5) as one:
        miss_once(one)
        await read_until(lambda: len(one.gone) == 2, one)
        assert values(one) == Counter([b"1", b"2"])


async def test_a_file_that_was_renamed_before_its_committed_rows_were_passed_over_goes_on_behind_them(
    postgres: str, folder: Path
) -> None:
    rows = lines("row", 25_000)
    (folder / "access.log").write_bytes(b"\n".join(rows) + b"\n")
    async with member(postgres, folder.as_uri()) as one:
        await read_until(lambda: one.batches, one)
    async with member(postgres, folder.as_uri(), list_every=0.5, name="w2") as two:
        miss_once(two)
        await read_until(lambda: values(two)[rows[-1]], two)
        assert one.batches and values(one, two) == Counter(rows)
        assert_seamless(one, two)


async def test_two_logs_that_begin_with_the_same_line_are_two(postgres: str, folder: Path) -> None:
    (folder / "a.log").write_bytes(b"same\na\n")
    (folder / "b.log").write_bytes(b"same\nb\nb\n")
    async with member(postgres, folder.as_uri(), once=True) as one:
        await read_all(one)
        assert values(one) == Counter([b"same", b"same", b"a", b"b", b"b"])


async def test_of_two_logs_that_begin_alike_the_second_is_not_read_again_when_it_is_packed(
    postgres: str, folder: Path
) -> None:
    (folder / "a.log").write_bytes(b"same\na\n")
    (folder / "b.log").write_bytes(b"same\nb\nb\n")
    (folder / "c.log").write_bytes(b"same\nb\nc\n")
    async with member(postgres, folder.as_uri(), once=True) as one:
        await read_all(one)
        assert sum(values(one).values()) == 8
    for name in "bc":
        log = folder / f"{name}.log"
        (folder / f"{name}.log.1.gz").write_bytes(gzip.compress(log.read_bytes()))  # of another inode
        log.unlink()
    async with member(postgres, folder.as_uri(), once=True, name="w2") as two:
        await read_all(two)
        assert not two.batches


async def test_a_packed_file_that_is_being_copied_is_read_whole(postgres: str, folder: Path) -> None:
    chance = random.Random(5)
    rows = [b'{"%d": "%b"}' % (number, chance.randbytes(30).hex().encode()) for number in range(20_000)]
    packed = gzip.compress(b"\n".join(rows) + b"\n")
    async with member(postgres, folder.as_uri()) as one:
        with (folder / "copied.log.gz").open("wb", buffering=0) as out:
            for part in range(4):
                out.write(packed[len(packed) * part // 4 : len(packed) * (part + 1) // 4])
                seen = len(one.batches)
                await read_until(lambda seen=seen: len(one.batches) > seen, one)
        await read_until(lambda: values(one)[rows[-1]], one)
        assert not any(batch.damage for batch in one.batches)
        assert values(one) == Counter(rows)
        assert_seamless(one)


async def test_a_packed_file_that_ends_in_the_middle_and_grows_no_more_is_broken(
    postgres: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamproc.sources.log_reader._SETTLED", 0.0)
    rows = lines("row", 9_000)
    (folder / "cut.log.gz").write_bytes(gzip.compress(b"\n".join(rows), mtime=0)[:-1_000])
    async with member(postgres, folder.as_uri(), once=True) as one:
        await read_all(one)
        *sound, last = one.batches
        assert last.damage is not None and last.damage.reason == "truncated_object"
        read = [value for batch in sound for value in batch.values]
        assert read and read == rows[: len(read)]


async def test_what_is_no_regular_file_is_passed_over(folder: Path) -> None:
    pipe = folder / "a.pipe"
    os.mkfifo(pipe)
    (folder / "b.log").write_bytes(b"first\n")
    (folder / "c.log").symlink_to(pipe)
    store = Folder(LogConnection(folder.as_uri()))
    try:
        async with asyncio.timeout(10):
            (found,) = [entry async for entries in store.listing() for entry in entries]
            assert found.place == "b.log"
            (folder / "b.log").unlink()
            (folder / "b.log").symlink_to(pipe)
            with pytest.raises(LogGone):
                await anext(store.read(found, 0))
    finally:
        os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))  # lets go of a thread that waits for a writer


async def test_a_file_whose_name_is_not_utf8_is_passed_over_and_told_of_once(folder: Path) -> None:
    (folder / "a.log").write_bytes(b"first\n")
    (folder / os.fsdecode(b"\xe9.log")).write_bytes(b"other\n")
    below = folder / os.fsdecode(b"caf\xe9")
    below.mkdir()
    (below / "b.log").write_bytes(b"other\n")
    store = Folder(LogConnection(folder.as_uri()))
    with capture_logs() as said:
        for _ in range(2):
            assert [entry.place async for entries in store.listing() for entry in entries] == ["a.log"]
    assert [each["log"] for each in said] == [r"\xe9.log", r"caf\xe9/b.log"]


async def test_a_file_that_cannot_be_read_for_a_moment_is_waited_for(postgres: str, folder: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    log = folder / "access.log"
    log.write_bytes(b"1\n2\n")
    async with member(postgres, folder.as_uri(), list_every=3600.0) as one:
        opened, broken = one.source._store._open, [Broken()]
        one.source._store._open = lambda *asked: (broken.pop(), b"") if broken else opened(*asked)
        await read_until(lambda: one.gone, one)
        assert values(one) == Counter([b"1", b"2"])
        assert [(wait.what, "Input/output error" in wait.problem) for wait in one.waits] == [(str(log), True)]


async def test_a_file_goes_on_at_its_end_behind_a_line_that_is_too_long(postgres: str, folder: Path) -> None:
    log = folder / "access.log"
    log.write_bytes(b"first\n" + b"x" * (3 << 20) + b"\nlast\n")
    async with member(postgres, folder.as_uri(), once=True) as one:
        await read_all(one)
    with log.open("ab") as out:
        out.write(b"later\n")
    async with member(postgres, folder.as_uri(), once=True, name="w2") as two:
        await read_all(two)
        assert values(two) == Counter([b"later"])
        assert_seamless(one, two)


async def test_a_huge_log_is_read_in_little_memory(postgres: str, folder: Path) -> None:
    """The reader stops when enough is waiting, and goes on when that is taken."""
    piece = b"".join(b"%0999d\n" % number for number in range(100))
    with gzip.open(folder / "big.gz", "wb", compresslevel=1) as out:
        for _ in range(2_000):
            out.write(piece)
    async with member(postgres, folder.as_uri(), once=True, caps=Caps(ratio=10_000)) as one:
        deadline = time.monotonic() + 30
        while one.source.buffered_bytes < 64 << 20:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        seen = 0
        while not one.source.finished.is_set():
            assert one.source.buffered_bytes < 80 << 20
            seen += sum(map(len, await one.take()))
            await one.commit()
            one.batches.clear()
        assert seen == 200_000
