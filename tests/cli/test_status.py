from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from streamproc.cli.status import Pace
from streamproc.embedded.broker import answers_kafka, start_broker
from streamproc.embedded.postgres import start_postgres
from streamproc.ledger import Ledger, PartitionStatus
from streamproc.model import Counts, Partition
from streamproc.ops.status import PartitionReport, StreamReport
from streamproc.sinks.summaries import Summaries
from streamproc.sources.kafka_positions import Span
from tests.cli.shop import NOON, Reject, Shop


def fill(shop: Shop) -> None:
    """Partition 0 committed through 5 of 0..7, partition 1 through 0 of 0..0; the others are empty."""
    shop.produce(0, [b"x"] * 8)
    shop.produce(1, [b"x"])
    shop.commit(0, [0, 1, 2], [Reject(3, b"?")], filtered=1, duplicate=1, through=5, late=2)
    shop.commit(1, [0])


def test_status_says_what_was_committed_and_how_much_is_left(shop: Shop) -> None:
    fill(shop)
    (stream,) = shop.json("status")["streams"]
    assert [(p["partition"], p["position"], p["end"], p["lag"]) for p in stream["partitions"]] == [
        ("0", 5, 7, 2),
        ("1", 0, 0, 0),
        ("2", None, -1, 0),
        ("3", None, -1, 0),
    ]
    assert stream["lag"] == 2
    first = stream["partitions"][0]
    # Newest accepted event: two minutes past noon; the page allows 30 s of disorder.
    assert datetime.fromisoformat(first["watermark"]) == NOON + timedelta(minutes=1, seconds=30)
    assert first["owner"] == "w1"
    assert datetime.now(UTC) - datetime.fromisoformat(first["updated_at"]) < timedelta(minutes=5)
    totals = {"records": 7, "accepted": 4, "filtered": 1, "rejected": 1, "duplicate": 1}
    assert stream["totals"] == totals
    assert stream["lake_rows"] == 4
    assert [(e["records"], e["worker"], e["seconds"]) for e in stream["epochs"]] == [
        (1, "w1", {"put": 0.25}),
        (6, "w1", {"put": 0.25}),
    ]
    assert stream["notes"] == []


def test_status_counts_objects_by_state_with_their_bytes(shop: Shop) -> None:
    fill(shop)
    (stream,) = shop.json("status")["streams"]
    sizes = {
        kind: sum(path.stat().st_size for path in (shop.lake / prefix).rglob("*.parquet"))
        for kind, prefix in (("events", "lake"), ("rejects", "rejects"))
    }
    assert {(o["kind"], o["state"], o["objects"], o["rows"], o["bytes"]) for o in stream["objects"]} == {
        ("events", "committed", 2, 4, sizes["events"]),
        ("rejects", "committed", 1, 1, sizes["rejects"]),
    }


def test_status_shows_tables_with_rows_newest_window_and_late_events(shop: Shop) -> None:
    fill(shop)
    (before,) = shop.json("status")["streams"]
    assert before["tables"] == [
        {"table": "kinds", "rows": None, "rows_estimated": False, "newest_window": None, "late": 2}
    ]

    async def create(ledger: Ledger) -> None:
        async with ledger.database.connection("create") as conn:
            await Summaries(shop.topology.tables, "shop").ensure(conn)

    shop.with_ledger(create)
    with psycopg.connect(shop.ledger) as connection:
        for minute in range(3):
            start = NOON + timedelta(minutes=minute)
            connection.execute(
                "INSERT INTO shop.kinds (window_start, window_end, kind, events) VALUES (%s, %s, 'view', 1)",
                [start, start + timedelta(minutes=1)],
            )
    (table,) = shop.json("status")["streams"][0]["tables"]
    assert (table["rows"], table["late"]) == (3, 2)
    assert datetime.fromisoformat(table["newest_window"]) == NOON + timedelta(minutes=2)


def test_status_compares_the_warehouse_with_the_lake(shop: Shop) -> None:
    fill(shop)
    (stream,) = shop.json("status")["streams"]
    assert stream["warehouse"] == {"rows": 0, "objects": 0, "loaded_at": None, "rows_behind_lake": 4}
    shop.call("warehouse", "load")
    (stream,) = shop.json("status")["streams"]
    assert (stream["warehouse"]["rows"], stream["warehouse"]["rows_behind_lake"]) == (4, 0)


def test_status_for_a_person_is_plain_text_off_a_terminal(shop: Shop) -> None:
    fill(shop)
    text = shop.call("status", "shop").stdout
    assert "\x1b" not in text
    row = next(line for line in text.splitlines() if line.startswith("0 "))
    assert row.split()[:4] == ["0", "5", "7", "2"]
    assert "2026-07-01 12:01:30" in row


def test_a_topic_made_anew_is_a_note_and_not_a_negative_lag(shop: Shop) -> None:
    shop.produce(0, [b"x"])
    shop.commit(0, [0], through=41)
    (stream,) = shop.json("status")["streams"]
    assert stream["partitions"][0]["lag"] is None
    assert "committed through 41, but the topic ends at 0" in stream["notes"][0]


def test_a_broker_that_does_not_answer_leaves_the_rest_of_the_status(shop: Shop) -> None:
    fill(shop)
    shop.settings["STREAMPROC_BROKER"] = "kafka://127.0.0.1:1"
    (stream,) = shop.json("status")["streams"]
    assert [p["position"] for p in stream["partitions"]] == [5, 0]
    assert stream["lag"] is None
    assert "127.0.0.1:1" in stream["notes"][0]


def test_a_database_without_a_ledger_is_said_to_be_one(shop: Shop) -> None:
    with psycopg.connect(shop.ledger) as connection:
        connection.execute("DROP SCHEMA streamproc CASCADE")
    assert "has no ledger yet" in shop.call("status", code=1).stderr


def test_a_ledger_of_another_release_is_refused_and_not_upgraded(shop: Shop) -> None:
    with psycopg.connect(shop.ledger, autocommit=True) as connection:
        connection.execute("DELETE FROM streamproc.migrations WHERE number > 1")
        assert "this release needs" in shop.call("status", code=1).stderr
        connection.execute("INSERT INTO streamproc.migrations (number, name) VALUES (9999, 'future')")
        assert "newer release" in shop.call("status", code=1).stderr


def test_an_unknown_stream_is_a_usage_mistake_that_names_those_there_are(shop: Shop) -> None:
    assert "There are: shop" in shop.call("status", "shoop", code=2).stderr
    shop.call("status", shop.topic)  # by its Kafka topic too


def report(position: int | None, span: Span | None) -> PartitionReport:
    partition, now = Partition("clicks", "0"), datetime.now(UTC)
    status = PartitionStatus(partition, position, None, 1, None, now, now, Counts())
    return PartitionReport(partition, status, span, None)


@pytest.mark.parametrize(
    ("position", "kept", "lag", "gap"),
    [
        (None, range(10), 10, 0),
        (-1, range(10), 10, 0),
        (9, range(10), 0, 0),
        (4, range(3, 10), 5, 0),
        (4, range(5, 10), 5, 0),
        (4, range(7, 10), 3, 2),  # 5 and 6 are gone
        (None, range(0), 0, 0),
    ],
)
def test_lag_counts_records_that_can_be_read_and_gap_those_that_are_gone(
    position: int | None, kept: range, lag: int, gap: int
) -> None:
    found = report(position, Span(kept.start, kept.stop - 1))
    assert (found.lag, found.gap) == (lag, gap)


def test_watch_goes_on_until_ctrl_c_and_ends_well(shop: Shop) -> None:
    fill(shop)
    command = [sys.executable, "-m", "streamproc", "status", "--watch", "--interval", "0.05", "--json"]
    environment = {**os.environ, **shop.environment}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watch:
        assert watch.stdout is not None and watch.stderr is not None
        looks = [json.loads(watch.stdout.readline()) for _ in range(2)]
        watch.send_signal(signal.SIGINT)
        watch.stdout.read()
        assert watch.wait(20) == 0, watch.stderr.read()
    assert [look["streams"][0]["totals"]["records"] for look in looks] == [7, 7]


@pytest.mark.slow
def test_on_a_terminal_it_is_live_and_leaves_the_last_look_when_it_is_over(shop: Shop) -> None:
    fill(shop)
    ours, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 60, 160, 0, 0))
    command = [sys.executable, "-m", "streamproc", "status", "shop", "--interval", "0.05"]
    environment = {**os.environ, **shop.environment, "TERM": "xterm-256color"}
    with subprocess.Popen(
        command, env=environment, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE
    ) as live:
        os.close(terminal)
        shown = b""
        while shown.count(b"records/s") < 3:
            shown += os.read(ours, 65_536)
        live.send_signal(signal.SIGINT)
        while chunk := rest_of(ours):
            shown += chunk
        assert live.wait(30) == 0, live.stderr.read()
    os.close(ours)
    screen, _, left = shown.rpartition(b"\x1b[?1049l")
    assert b"\x1b[?1049h" in screen, "on a screen of its own"
    assert b"shop: partitions" in left and left.count(b"records/s") == 1
    assert "--once" in shop.call("status", "--help").stdout
    assert "\x1b" not in shop.call("status", "--once").stdout


def rest_of(terminal: int) -> bytes:
    """What comes; empty when nobody writes to it any more."""
    try:
        return os.read(terminal, 65_536)
    except OSError:
        return b""


def test_the_pace_is_what_came_between_two_looks() -> None:
    def look(records: int, rejected: int) -> StreamReport:
        counts = Counts(records=records, accepted=records - rejected, rejected=rejected)
        now = datetime.now(UTC)
        status = PartitionStatus(Partition("clicks", "0"), 9, None, 1, None, now, now, counts)
        partition = PartitionReport(Partition("clicks", "0"), status, Span(0, 9), None)
        return StreamReport("shop", "clicks", [partition], [], [], [], None, [])

    pace = Pace()
    (first,) = pace.section([look(100, 1)], 10.0).rows
    (second,) = pace.section([look(300, 5)], 12.0).rows
    (third,) = pace.section([look(50, 0)], 13.0).rows
    assert [row[:5] for row in (first, second, third)] == [
        ["shop", None, None, None, 0],
        ["shop", 100.0, 2.0, 0.0, 0],
        ["shop", 0.0, 0.0, 0.0, 0],
    ]


# -- embedded --------------------------------------------------------------------------------------------


@pytest.fixture
def data_dir(server_directory: Path) -> Path:
    """An embedded set-up in which ``shop`` ran and left partition 0 committed through 5."""
    directory = server_directory / f"set-up-{os.urandom(4).hex()}"
    with start_postgres(directory / "postgres", durable=False) as server:
        shop = Shop(directory / "site", server.url, "127.0.0.1:1", "shop")
        shop.commit(0, list(range(6)))
    return directory


def test_postgres_at_rest_is_started_and_put_to_rest_again(shop: Shop, data_dir: Path) -> None:
    (stream,) = shop.json("status", "--data-dir", str(data_dir))["streams"]
    assert [(p["position"], p["lag"]) for p in stream["partitions"]] == [(5, None)]
    assert "embedded broker is not running" in stream["notes"][0]
    assert not (data_dir / "postgres" / "data" / "postmaster.pid").exists()
    assert not (data_dir / "broker").exists(), "nothing is started that was not there"


def test_a_running_embedded_broker_is_joined_and_left_running(shop: Shop, data_dir: Path) -> None:
    with start_broker(data_dir / "broker") as broker:
        elsewhere = Shop(data_dir / "producer", shop.ledger, broker.bootstrap, "shop")
        (shop.pages / "shop.toml").write_text((elsewhere.pages / "shop.toml").read_text())
        elsewhere.call("topics", "apply", "--yes")
        elsewhere.produce(0, [b"x"] * 9)
        (stream,) = shop.json("status", "--data-dir", str(data_dir))["streams"]
        assert [p["lag"] for p in stream["partitions"]] == [3, 0, 0, 0]
        assert answers_kafka(broker.bootstrap)


def test_a_folder_in_which_nothing_ran_is_a_mistake_and_stays_as_it_is(shop: Shop, tmp_path: Path) -> None:
    said = shop.call("status", "--data-dir", str(tmp_path / "empty"), code=2).stderr
    assert "nothing has run in" in said
    assert "--data-dir" in said
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("interval", ["0", "-1", "soon"])
def test_a_watch_without_a_pause_is_wrong_usage(shop: Shop, interval: str) -> None:
    assert "--interval" in shop.call("status", "--watch", "--interval", interval, code=2).stderr
