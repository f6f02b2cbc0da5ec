"""From Kafka's record batches to ours: what is read, what is skipped, what stops a partition."""

from __future__ import annotations

import itertools
import time

import pytest
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc import native
from streamproc.errors import SourceError, UnexpectedPosition
from streamproc.model import Partition, RecordBatch
from streamproc.packed import Packed
from streamproc.sources.kafka_origin import origin_headers
from streamproc.sources.kafka_partition import PartitionReader
from tests.sources.batches import (
    GZIP,
    LZ4,
    NONE,
    SNAPPY,
    ZSTD,
    control_batch,
    corrupted,
    fetched,
    record_batch,
    resigned,
)

PARTITION = Partition("clicks", "0")


def reader(after: int = -1, *, compacted: bool = False) -> PartitionReader:
    return PartitionReader(PARTITION, after, compacted=compacted)


def everything(from_: PartitionReader) -> list[RecordBatch]:
    batches = []
    while (batch := from_.next()) is not None:
        batches.append(batch)
    return batches


@pytest.mark.parametrize("codec", [NONE, GZIP, SNAPPY, LZ4, ZSTD])
def test_every_codec_gives_the_values_with_their_positions(codec: int) -> None:
    values = [b'{"n": %d}' % n * 20 for n in range(50)]
    partition = reader(after=99)
    partition.add(fetched(record_batch(100, values, codec=codec)))
    (batch,) = everything(partition)
    assert (batch.partition, batch.after, batch.through) == (PARTITION, 99, 149)
    assert batch.values == values
    assert batch.positions == range(100, 150)
    assert batch.received_ms == 1_000 + 149
    assert batch.size == sum(map(len, values))


def test_tombstones_and_empty_values_are_records() -> None:
    partition = reader()
    partition.add(fetched(record_batch(0, [None, b"", b"x"])))
    (batch,) = everything(partition)
    assert batch.values == [None, b"", b"x"]
    assert batch.size == 1


def test_a_fetch_that_begins_inside_a_batch_gives_only_what_is_new() -> None:
    partition = reader(after=11)
    partition.add(fetched(record_batch(10, [b"a", b"b", b"c", b"d"])))
    (batch,) = everything(partition)
    assert (batch.after, batch.through, batch.values) == (11, 13, [b"c", b"d"])
    assert list(batch.positions) == [12, 13]


def test_batches_that_were_handed_out_already_are_dropped() -> None:
    partition = reader(after=13)
    partition.add(fetched(record_batch(10, [b"a", b"b", b"c", b"d"]), record_batch(14, [b"e"])))
    (batch,) = everything(partition)
    assert (batch.after, batch.through, batch.values) == (13, 14, [b"e"])


def test_a_compacted_topic_may_jump_and_names_each_position() -> None:
    partition = reader(compacted=True)
    partition.add(fetched(record_batch(5, {0: b"a", 2: b"c"}, span=4), record_batch(20, [b"z"])))
    first, second = everything(partition)
    assert (first.after, first.through, first.values, list(first.positions)) == (-1, 8, [b"a", b"c"], [5, 7])
    assert (second.after, second.through, list(second.positions)) == (8, 20, [20])


def test_a_compacted_batch_read_from_its_middle_gives_only_what_is_new() -> None:
    partition = reader(after=6, compacted=True)
    partition.add(fetched(record_batch(5, {0: b"a", 2: b"c", 3: b"d"})))
    (batch,) = everything(partition)
    assert (batch.values, list(batch.positions)) == ([b"c", b"d"], [7, 8])


def test_a_batch_that_compaction_emptied_still_moves_the_position() -> None:
    partition = reader(after=4, compacted=True)
    partition.add(fetched(record_batch(5, {0: b"a"}, span=4)))
    partition.add(fetched(record_batch(9, {}, span=3)))
    assert [(b.after, b.through, b.values) for b in everything(partition)] == [(4, 8, [b"a"]), (8, 11, [])]


def test_a_jump_in_a_topic_that_is_not_compacted_stops_it() -> None:
    partition = reader(after=9)
    partition.add(fetched(record_batch(12, [b"a"])))
    with pytest.raises(UnexpectedPosition, match="clicks/0: offset 12 came after 9"):
        partition.next()


def test_a_hole_inside_a_batch_of_a_topic_that_is_not_compacted_stops_it() -> None:
    partition = reader(after=9)
    partition.add(fetched(record_batch(10, {0: b"a", 2: b"c"})))
    with pytest.raises(UnexpectedPosition, match="2 records for the offsets 10 to 12"):
        partition.next()


def test_markers_and_aborted_transactions_are_skipped_and_accounted_for() -> None:
    partition = reader()
    partition.add(
        fetched(
            record_batch(0, [b"aborted", b"aborted"], producer=7, transactional=True),
            record_batch(2, [b"committed"], producer=8, transactional=True),
            control_batch(3, 7, abort=True),
            record_batch(4, [b"after the abort"], producer=7, transactional=True),
            control_batch(5, 8, abort=False),
            control_batch(6, 7, abort=False),
            record_batch(7, [b"plain"]),
            aborted=[(7, 0)],
        )
    )
    assert [(b.after, b.through, b.values) for b in everything(partition)] == [
        (-1, 2, [b"committed"]),
        (2, 4, [b"after the abort"]),
        (4, 7, [b"plain"]),
    ]


def test_an_interval_of_nothing_but_markers_is_handed_out_empty() -> None:
    partition = reader(after=9)
    partition.add(fetched(control_batch(10, 7, abort=False), control_batch(11, 8, abort=True)))
    (batch,) = everything(partition)
    assert (batch.after, batch.through, batch.values, batch.size) == (9, 11, [], 0)
    assert batch.received_ms == 1_011


def test_a_jump_over_a_marker_stops_too() -> None:
    partition = reader(after=9)
    partition.add(fetched(control_batch(11, 7, abort=False)))
    with pytest.raises(UnexpectedPosition, match="offset 11 came after 9"):
        partition.next()


def test_a_batch_with_a_wrong_checksum_is_never_handed_out() -> None:
    partition = reader()
    partition.add(fetched(record_batch(0, [b"good"]), corrupted(record_batch(1, [b"bad"]))))
    good = partition.next()
    assert good is not None
    assert good.values == [b"good"]
    with pytest.raises(SourceError, match=r"ends at offset 1 cannot be read.*wrong checksum"):
        partition.next()


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD])
def test_bytes_that_cannot_be_unpacked_stop_the_partition_without_a_crash(codec: int) -> None:
    whole = record_batch(0, [b"x" * 500, b"y" * 500], codec=codec)
    garbled = resigned(whole[:61] + bytes(255 - octet for octet in whole[61:]))
    partition = reader()
    partition.add(fetched(garbled))
    with pytest.raises(SourceError, match="clicks/0: the record batch that ends at offset 1 cannot be read"):
        partition.next()


def test_an_end_is_raised_after_what_was_fetched_before_it() -> None:
    partition = reader()
    partition.add(fetched(record_batch(0, [b"a"])))
    partition.end(SourceError("the log ends here"))
    assert partition.fetched_through == 0
    assert partition.next() is not None
    with pytest.raises(SourceError, match="the log ends here"):
        partition.next()


def test_records_without_a_timestamp_were_received_now() -> None:
    untimed = bytearray(record_batch(0, [b"a"]))
    untimed[27:43] = b"\xff" * 16  # first and newest timestamp: -1
    partition = reader()
    partition.add(fetched(resigned(bytes(untimed))))
    before = int(time.time() * 1000)
    (batch,) = everything(partition)
    assert before <= batch.received_ms <= int(time.time() * 1000)


def test_message_sets_of_old_kafka_are_read() -> None:
    builder = LegacyRecordBatchBuilder(1, 1, 1 << 20)  # magic 1, gzip
    for delta in range(3):
        builder.append(delta, 5_000 + delta, b"key", b"old %d" % delta)
    stored = builder.build()
    stored[7] = 2  # the broker gives the set the offset of its last message
    partition = reader()
    partition.add(fetched(bytes(stored)))
    (batch,) = everything(partition)
    assert (batch.after, batch.through, list(batch.positions)) == (-1, 2, [0, 1, 2])
    assert batch.values == [b"old 0", b"old 1", b"old 2"]
    assert batch.received_ms == 5_002


@pytest.mark.parametrize("compacted", [False, True])
def test_a_redriven_copy_names_the_position_it_was_rejected_at(compacted: bool) -> None:
    copy = origin_headers(PARTITION, 3, "not_json")
    headers = {
        0: [("traceparent", b"00-1"), ("empty", None)],
        1: [("traceparent", b"00-2"), *copy],
        2: origin_headers(PARTITION, 10, "not_json"),
    }
    partition = reader(after=6, compacted=compacted)
    partition.add(fetched(record_batch(7, [b"a", b"b", b"c", b"d"], headers=headers)))
    (batch,) = everything(partition)
    assert batch.values == [b"a", b"b", b"c", b"d"]
    assert batch.redriven == {8: 3}, "one names a later record, two are nobody's copies"


@pytest.mark.parametrize(
    "headers",
    [
        origin_headers(Partition("clicks", "1"), 3, "not_json"),
        origin_headers(Partition("other", "0"), 3, "not_json"),
        [*origin_headers(PARTITION, 3, "")[:2], ("streamproc.redrive.position", b"-3")],
        [*origin_headers(PARTITION, 3, "")[:2], ("streamproc.redrive.position", b"9" * 5000)],
        [*origin_headers(PARTITION, 3, "")[:2], ("streamproc.redrive.position", "٣".encode())],
        [*origin_headers(PARTITION, 3, "")[:2], ("streamproc.redrive.position", None)],
        origin_headers(PARTITION, 3, "")[2:],
    ],
)
def test_headers_that_name_no_earlier_record_of_the_partition_are_not_believed(
    headers: list[tuple[str, bytes | None]],
) -> None:
    partition = reader(after=6)
    partition.add(fetched(record_batch(7, [b"a"], headers={0: headers})))
    (batch,) = everything(partition)
    assert (batch.values, batch.redriven) == ([b"a"], {})


@pytest.mark.parametrize("compacted", [False, True])
def test_a_header_whose_name_is_not_utf8_keeps_nothing_from_being_read(compacted: bool) -> None:
    headers = {0: [("name", b"x")], 2: [("name", None), *origin_headers(PARTITION, 3, "not_json")]}
    whole = record_batch(7, [b"a", None, b"b"], headers=headers)
    holes = record_batch(10, {0: b"c", 2: b"d"}, headers=headers, span=4) if compacted else b""
    named = [resigned(batch.replace(b"name", b"n\xff\0e")) for batch in (whole, holes) if batch]
    partition = reader(after=6, compacted=compacted)
    partition.add(fetched(*named))
    first, *others = everything(partition)
    assert (first.after, first.through, first.values, first.redriven) == (6, 9, [b"a", None, b"b"], {9: 3})
    assert [(each.through, each.values, list(each.positions), each.redriven) for each in others] == (
        [(13, [b"c", b"d"], [10, 12], {12: 3})] if compacted else []
    )


@pytest.mark.parametrize("cut", [b"\xff", b"\xff\xff\xff\xff\x7f"])
def test_a_batch_that_is_broken_beside_such_a_name_stops_the_partition(cut: bytes) -> None:
    whole = record_batch(0, [b"a", b"b"], headers={0: [("name", b"x")]}).replace(b"name", b"n\xff\0e")
    partition = reader()
    partition.add(fetched(resigned(whole[: -len(cut)] + cut)))
    with pytest.raises(SourceError, match="the record batch that ends at offset 1 cannot be read"):
        partition.next()


def test_the_bytes_that_wait_are_counted() -> None:
    partition = reader()
    first, second = fetched(record_batch(0, [b"a"])), fetched(record_batch(1, [b"b"]))
    partition.add(first)
    partition.add(second)
    assert partition.queued_bytes == first.size + second.size
    partition.next()
    assert partition.queued_bytes == second.size
    partition.next()
    assert partition.queued_bytes == 0


#: A log as a list of batches: (kind, records). ``hole``: offsets that compaction removed altogether.
_KINDS = st.sampled_from(["plain", "committed", "aborted", "hole"])


@settings(max_examples=60, deadline=None)
@given(
    log=st.lists(st.tuples(_KINDS, st.integers(1, 5)), max_size=12),
    start=st.integers(0, 40),
    cuts=st.sets(st.integers(0, 12)),
)
def test_any_log_read_from_anywhere_in_any_pieces_gives_each_visible_record_once(
    log: list[tuple[str, int]], start: int, cuts: set[int]
) -> None:
    offset, visible, batches, aborted = 0, {}, [], []
    for index, (kind, count) in enumerate(log):
        values = [b"%d" % (offset + n) for n in range(count)]
        if kind == "hole":
            offset += count
            continue
        if kind != "aborted":
            visible |= dict(enumerate(values, start=offset))
        producer = -1 if kind == "plain" else 100 + index
        batches.append(record_batch(offset, values, producer=producer, transactional=kind != "plain"))
        if kind == "aborted":
            aborted.append((producer, offset))
        offset += count
        if kind != "plain":
            batches.append(control_batch(offset, producer, abort=kind == "aborted"))
            offset += 1

    partition = reader(after=start - 1, compacted=True)
    edges = [0, *sorted(cut for cut in cuts if cut < len(batches)), len(batches)]
    for begin, end in itertools.pairwise(edges):
        partition.add(fetched(*batches[begin:end], aborted=aborted))
    read = everything(partition)

    assert {p: v for b in read for p, v in zip(b.positions, b.values, strict=True)} == {
        p: v for p, v in visible.items() if p >= start
    }
    assert sum(map(len, read)) == sum(p >= start for p in visible)
    for before, after in itertools.pairwise(read):
        assert before.through == after.after
    if batches and offset > start and log[-1][0] != "hole":
        assert read[0].after == start - 1
        assert read[-1].through == offset - 1


@pytest.mark.skipif(native.records is None, reason="the compiled part is not there: no C compiler")
@pytest.mark.parametrize(
    ("headers", "walked"),
    [
        ([("traceparent", b"00-1-2-01"), ("empty", b""), ("null", None)], True),
        ([("streamproc.redrive.position", b"0")], False),
        ([("é", b"x")], False),
    ],
)
def test_headers_of_others_do_not_keep_records_from_the_compiled_walk(
    headers: list[tuple[str, bytes | None]], walked: bool
) -> None:
    partition = reader()
    partition.add(fetched(record_batch(0, [b"a", None, b"b"], codec=LZ4, headers={1: headers})))
    batch = partition.next()
    assert batch is not None
    assert list(batch.values) == [b"a", None, b"b"]
    assert isinstance(batch.values, Packed) == walked
