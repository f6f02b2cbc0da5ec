from __future__ import annotations

import asyncio
import base64
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from streamproc.errors import DependencyError
from streamproc.ledger import Ledger
from streamproc.ledger.redrives import Redrives
from streamproc.ops.redrive import RedriveReport, redrive
from streamproc.ops.rejects import Rejects, Selection
from streamproc.sinks.object_store import open_store
from streamproc.sources.kafka_redrive import Outcome, Resend
from tests.cli.shop import RECEIVED, Reject, Shop

#: Whatever the page thinks of the records: these tests are about the sending.
REDRIVE = ("rejects", "redrive", "--force")

BROKEN = b'{"time": \xff\x1b[2J}'


@pytest.fixture
def rejected(shop: Shop) -> Shop:
    """Rejects at 0/1, 0/3, 0/4 and 1/2, received at that many minutes past :data:`RECEIVED`."""
    shop.commit(0, [0, 2], [Reject(1, b"{"), Reject(3, BROKEN, "not_utf8")])
    shop.commit(0, [5], [Reject(4, None, "tombstone")])
    shop.commit(1, [0, 1], [Reject(2, "{é".encode())])
    return shop


def places(rejects: Sequence[Mapping[str, object]]) -> list[tuple[object, object]]:
    return [(each["partition"], each["position"]) for each in rejects]


# -- list ------------------------------------------------------------------------------------------------


def test_list_shows_every_reject_with_its_reason_and_exact_bytes(rejected: Shop) -> None:
    found = rejected.lines("rejects", "list")
    assert sorted(places(found)) == [("0", 1), ("0", 3), ("0", 4), ("1", 2)]
    by_place = {(each["partition"], each["position"]): each for each in found}
    broken = by_place["0", 3]
    assert base64.b64decode(broken["original_base64"]) == BROKEN
    assert broken["original"] == r'{"time": \xff\x1b[2J}'
    assert (broken["reason"], broken["detail"], broken["source"]) == ("not_utf8", "why", rejected.topic)
    assert datetime.fromisoformat(broken["received_at"]) == RECEIVED + timedelta(minutes=3)
    assert (by_place["0", 4]["original"], by_place["0", 4]["original_base64"]) == (None, None)
    assert by_place["1", 2]["original"] == "{é"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--reason", "not_json"], [("0", 1), ("1", 2)]),
        (["--reason", "not_json", "--reason", "tombstone"], [("0", 1), ("0", 4), ("1", 2)]),
        (["--reason", "nonsense"], []),
        (["--since", (RECEIVED + timedelta(minutes=3)).isoformat()], [("0", 3), ("0", 4)]),
        (["--since", "2100-01-01"], []),
    ],
)
def test_list_selects_by_reason_and_time(
    rejected: Shop, options: list[str], expected: list[tuple[str, int]]
) -> None:
    assert sorted(places(rejected.lines("rejects", "list", *options))) == expected


def test_list_stops_at_its_limit_and_says_so(rejected: Shop) -> None:
    answer = rejected.call("rejects", "list", "--limit", "2", "--json")
    assert len(answer.stdout.splitlines()) == 2
    assert "Stopped after 2" in answer.stderr


def test_a_hostile_original_cannot_speak_to_the_terminal(rejected: Shop) -> None:
    text = rejected.call("rejects", "list").stdout
    assert "\x1b" not in text
    assert r"{" '"time": \\xff\\x1b[2J}' in text


def test_the_table_cuts_a_long_original_and_json_does_not(shop: Shop) -> None:
    shop.commit(0, [], [Reject(0, b"x" * 100_000)])
    assert "(100000 bytes)" in shop.call("rejects", "list").stdout
    assert len(shop.call("rejects", "list").stdout) < 2_000
    assert len(shop.lines("rejects", "list")[0]["original"]) == 100_000


def test_the_summary_counts_by_reason_most_first(rejected: Shop) -> None:
    counts = rejected.lines("rejects", "list", "--summary")
    assert [(each["reason"], each["field"], each["rejects"]) for each in counts] == [
        ("not_json", None, 2),
        ("not_utf8", None, 1),
        ("tombstone", None, 1),
    ]
    assert datetime.fromisoformat(counts[0]["first"]) == RECEIVED + timedelta(minutes=1)
    assert datetime.fromisoformat(counts[0]["last"]) == RECEIVED + timedelta(minutes=2)
    assert "shop: 4 rejects" in rejected.call("rejects", "list", "--summary").stdout


def test_objects_that_somebody_deleted_are_passed_over_and_counted(rejected: Shop) -> None:
    next((rejected.lake / "rejects").rglob("1-*.parquet")).unlink()
    answer = rejected.call("rejects", "list", "--json")
    assert len(answer.stdout.splitlines()) == 3
    assert "1 objects of rejects are not in the lake any more" in answer.stderr


def test_rejects_that_were_never_committed_are_not_shown(rejected: Shop) -> None:
    (kept,) = (rejected.lake / "rejects").rglob("1-*.parquet")
    kept.with_name("1-start-9-9-abandoned.parquet").write_bytes(kept.read_bytes())
    assert len(rejected.lines("rejects", "list")) == 4


# -- redrive ---------------------------------------------------------------------------------------------


def test_redrive_sends_the_original_bytes_to_the_same_partition_with_their_origin(rejected: Shop) -> None:
    report = rejected.json(*REDRIVE, "--yes", "--reason", "not_utf8", "--reason", "not_json")
    assert (report["selected"], report["sent"]) == (3, 3)
    assert [record.value for record in rejected.records(0)] == [b"{", BROKEN]
    (copy,) = rejected.records(1)
    assert copy.value == "{é".encode()
    assert dict(copy.headers) == {
        "streamproc.redrive.source": rejected.topic.encode(),
        "streamproc.redrive.partition": b"1",
        "streamproc.redrive.position": b"2",
        "streamproc.redrive.reason": b"not_json",
    }


def test_a_second_redrive_sends_nothing_twice(rejected: Shop) -> None:
    rejected.json(*REDRIVE, "--yes", "--reason", "not_json")
    again = rejected.json(*REDRIVE, "--yes", "--reason", "not_json", "--reason", "not_utf8")
    assert (again["selected"], again["sent"], again["sent_before"]) == (3, 1, 2)
    values = [record.value for number in range(4) for record in rejected.records(number)]
    assert sorted(values) == sorted([b"{", BROKEN, "{é".encode()])
    listed = rejected.lines("rejects", "list")
    states = dict(zip(places(listed), (each["redrive"] for each in listed), strict=True))
    assert states == {("0", 1): "sent", ("0", 3): "sent", ("0", 4): None, ("1", 2): "sent"}


def test_a_dry_run_sends_nothing_and_remembers_nothing(rejected: Shop) -> None:
    for _ in range(2):
        report = rejected.json(*REDRIVE, "--dry-run", "--reason", "not_json")
        assert (report["selected"], report["sent"], report["sent_before"]) == (2, 2, 0)
    assert rejected.records(0) == rejected.records(1) == []


def test_redrive_asks_first_and_no_means_no(rejected: Shop) -> None:
    answer = rejected.call(*REDRIVE, "--reason", "not_json", code=1, stdin="n\n")
    assert "Send 2 rejects again?" in answer.stderr
    assert rejected.records(0) == []
    rejected.call(*REDRIVE, "--reason", "not_json", stdin="y\n")
    assert len(rejected.records(0)) == 1


def test_a_copy_that_is_rejected_again_is_not_sent_once_more(shop: Shop) -> None:
    shop.produce(0, [b"{", b"good"])
    shop.commit(0, [1], [Reject(0, b"{")])
    shop.json(*REDRIVE, "--yes")
    (_, _, copy) = shop.records(0)
    shop.commit(0, [], [Reject(copy.offset, copy.value)])
    again = shop.json(*REDRIVE, "--yes")
    assert (again["selected"], again["sent"], again["sent_before"], again["copies"]) == (2, 0, 1, 1)
    assert len(shop.records(0)) == 3
    assert [each["redrive"] for each in shop.lines("rejects", "list")] == ["sent", "copy"]


def test_a_large_reject_is_sent_alone_and_whole(shop: Shop) -> None:
    large = random.Random(5).randbytes(1_500_000)  # more than a batch: it does not compress
    shop.commit(0, [], [Reject(0, b"a"), Reject(1, large), Reject(2, b"b")])
    report = shop.json(*REDRIVE, "--yes", code=None)
    values = [record.value for record in shop.records(0)]
    if report["refused"]:  # Apache Kafka takes 1 MiB by default
        assert (report["sent"], report["refused"], values) == (2, 1, [b"a", b"b"])
    else:
        assert (report["sent"], values) == (3, [b"a", large, b"b"])


def test_more_than_a_batch_holds_arrives_whole_and_in_order(shop: Shop) -> None:
    values = [random.Random(seed).randbytes(300_000) for seed in range(10)] + [b"x"] * 600
    shop.commit(0, [], [Reject(position, value) for position, value in enumerate(values)])
    report = shop.json(*REDRIVE, "--yes")
    assert (report["selected"], report["sent"]) == (610, 610)
    copies = shop.records(0)
    assert [record.value for record in copies] == values
    origins = [int(dict(record.headers)["streamproc.redrive.position"]) for record in copies]
    assert origins == list(range(610))


def test_without_a_running_embedded_broker_nothing_is_claimed(rejected: Shop, tmp_path: Path) -> None:
    usual = rejected.settings
    rejected.settings = {"STREAMPROC_BROKER": "embedded:", "STREAMPROC_DATA_DIR": str(tmp_path / "none")}
    assert "is not running" in rejected.call(*REDRIVE, "--yes", code=1).stderr
    rejected.settings = usual
    assert rejected.json(*REDRIVE, "--yes", "--reason", "not_json")["sent"] == 2


# -- what is acceptable by now, and corrections ------------------------------------------------------------

GOOD = b'{"time": 1782900000000, "kind": "view"}'
LONG = b'{"time": 1782900000000, "kind": "a long one"}'


def test_only_what_the_page_takes_by_now_is_sent_and_the_rest_keeps_its_chance(shop: Shop) -> None:
    page = shop.pages / "shop.toml"
    limited = page.read_text().replace(
        'kind = { type = "string" }', 'kind = { type = "string", max_length = 5 }'
    )
    mended = page.read_text()
    assert limited != mended
    page.write_text(limited)
    shop.produce(0, [LONG, b"{", GOOD])
    shop.commit(0, [], [Reject(0, LONG, "too_long"), Reject(1, b"{"), Reject(2, GOOD)])
    report = shop.json("rejects", "redrive", "--yes")
    assert (report["selected"], report["sent"], report["still_rejected"]) == (3, 1, 2)
    assert report["reasons"] == {"too_long": 1, "not_json": 1}
    assert report["example"].startswith("partition 0, position 0: too_long, ")
    page.write_text(mended)
    told = shop.call("rejects", "redrive", "--yes")
    assert "1 sent\n" in told.stdout
    assert "1 would be rejected again by this topic page: not sent" in told.stdout
    assert "Would be rejected again: partition 0, position 1: not_json, " in told.stderr
    assert [record.value for record in shop.records(0)][3:] == [GOOD, LONG]


def corrections(directory: Path, *lines: object) -> str:
    path = directory / "corrections.ndjson"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(path)


def test_corrected_records_go_out_in_the_place_of_their_rejects(rejected: Shop, tmp_path: Path) -> None:
    listed = {(each["partition"], each["position"]): each for each in rejected.lines("rejects", "list")}
    file = corrections(
        tmp_path,
        {**listed["0", 1], "corrected": GOOD.decode()},
        listed["0", 3],  # not corrected
        {"partition": "0", "position": 4, "corrected": {"time": 1782900000000, "kind": "é"}},
        {"partition": 1, "position": 2, "corrected_base64": base64.b64encode(LONG).decode()},
    )
    dry = rejected.json("rejects", "redrive", "--file", file, "--dry-run")
    assert (dry["selected"], dry["sent"], rejected.records(0)) == (3, 3, [])
    report = rejected.json("rejects", "redrive", "--file", file, "--yes")
    assert (report["selected"], report["sent"]) == (3, 3)
    first, second = rejected.records(0)
    assert (first.value, json.loads(second.value)) == (GOOD, {"time": 1782900000000, "kind": "é"})
    assert dict(first.headers)["streamproc.redrive.position"] == b"1"
    assert [record.value for record in rejected.records(1)] == [LONG]
    again = rejected.json("rejects", "redrive", "--file", file, "--yes")
    assert (again["sent"], again["sent_before"]) == (0, 3)
    assert rejected.json(*REDRIVE, "--yes", "--reason", "not_json")["sent"] == 0, (
        "its own bytes count as the same"
    )


def test_a_correction_that_is_still_wrong_is_not_sent_and_can_be_corrected_again(
    rejected: Shop, tmp_path: Path
) -> None:
    wrong = corrections(tmp_path, {"partition": "0", "position": 1, "corrected": {"kind": "view"}})
    report = rejected.json("rejects", "redrive", "--file", wrong, "--yes")
    assert (report["sent"], report["still_rejected"], list(report["reasons"])) == (0, 1, ["missing_field"])
    right = corrections(tmp_path, {"partition": "0", "position": 1, "corrected": GOOD.decode()})
    assert rejected.json("rejects", "redrive", "--file", right, "--yes")["sent"] == 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2: is not JSON"),
        ("[]", "line 2: is not a JSON object"),
        ({"partition": "0", "position": "1", "corrected": "x"}, "line 2: position is not that of a reject"),
        ({"position": 1, "corrected": "x"}, "line 2: partition is not that of a reject"),
        (
            {"partition": "0", "position": 1, "corrected_base64": "?"},
            "line 2: corrected_base64 is not base64",
        ),
        (
            {"partition": "0", "position": 1, "corrected": "x", "corrected_base64": "eA=="},
            "line 2: it has both",
        ),
        ({"partition": "0", "position": 3, "corrected": "x"}, "line 2: partition 0, position 3 stands twice"),
        ({"partition": "0", "position": 2, "corrected": "x"}, "partition 0, position 2: is not a reject of"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_is_sent(
    rejected: Shop, tmp_path: Path, line: object, problem: str
) -> None:
    file = corrections(tmp_path, {"partition": "0", "position": 3, "corrected": GOOD.decode()}, line)
    answer = rejected.call("rejects", "redrive", "--file", file, "--yes", code=2)
    assert problem in answer.stderr
    assert rejected.records(0) == []


def test_a_file_from_stdin_leaves_no_stdin_to_answer_on(rejected: Shop) -> None:
    line = json.dumps({"partition": "0", "position": 1, "corrected": GOOD.decode()})
    assert "--yes" in rejected.call("rejects", "redrive", "--file", "-", code=2, stdin=line).stderr
    rejected.call("rejects", "redrive", "--file", "-", "--yes", stdin=line)
    assert [record.value for record in rejected.records(0)] == [GOOD]


# -- redrives that fail, and that run at once ------------------------------------------------------------


class Broker:
    """Remembers what it was sent; ``answer`` decides what becomes of each value, or raises."""

    def __init__(self, partitions: Sequence[str] = ("0", "1"), outcome: Outcome | None = None) -> None:
        self.sent: list[bytes | None] = []
        self.failure: Exception | None = None
        self._partitions = frozenset(partitions)
        self._outcome = outcome or Outcome(sent=True, position=1000)

    async def partitions(self) -> frozenset[str]:
        return self._partitions

    async def send(self, records: Mapping[str, Sequence[Resend]]) -> dict[str, list[Outcome]]:
        await asyncio.sleep(0)  # let a rival in
        self.sent += [resend.value for resends in records.values() for resend in resends]
        if self.failure is not None:
            raise self.failure
        return {number: [self._outcome] * len(resends) for number, resends in records.items()}


async def drive(shop: Shop, broker: Broker, run: str = "run") -> RedriveReport:
    store = open_store(shop.lake.as_uri())
    async with Ledger(shop.ledger, "shop", "operator") as ledger:
        redrives = Redrives(ledger.database, "shop", run)
        rejects = Rejects(ledger, store, Selection())
        return await redrive(rejects, redrives, broker, dry_run=False)


def test_what_an_interrupted_redrive_claimed_is_never_sent_again(rejected: Shop) -> None:
    broker = Broker()
    broker.failure = DependencyError("broker", "gone in the middle")
    with pytest.raises(DependencyError):
        asyncio.run(drive(rejected, broker))
    assert len(broker.sent) == 4
    broker.failure = None
    report = asyncio.run(drive(rejected, broker, "another run"))
    assert (report.selected, report.sent, report.unconfirmed) == (4, 0, 4)
    assert len(broker.sent) == 4
    assert {each["redrive"] for each in rejected.lines("rejects", "list")} == {"unconfirmed"}


def test_a_reject_of_unknown_fate_counts_as_unconfirmed(rejected: Shop) -> None:
    report = asyncio.run(drive(rejected, Broker(outcome=Outcome(problem="timed out"))))
    assert (report.sent, report.unconfirmed, report.problem) == (0, 4, "timed out")
    assert asyncio.run(drive(rejected, Broker())).unconfirmed == 4


def test_a_refused_reject_may_be_tried_again(rejected: Shop) -> None:
    refused = asyncio.run(drive(rejected, Broker(outcome=Outcome(refused=True, problem="too large"))))
    assert (refused.sent, refused.refused) == (0, 4)
    assert asyncio.run(drive(rejected, Broker())).sent == 4


def test_rejects_of_a_partition_that_is_gone_are_left_alone(rejected: Shop) -> None:
    report = asyncio.run(drive(rejected, Broker(partitions=["0"])))
    assert (report.sent, report.no_partition) == (3, 1)
    assert asyncio.run(drive(rejected, Broker())).sent == 1


def test_redrives_at_the_same_time_send_each_reject_once(shop: Shop) -> None:
    for number in range(3):
        values = [f"{number}-{position}".encode() for position in range(700)]
        shop.commit(number, [], [Reject(position, value) for position, value in enumerate(values)])
    broker = Broker(partitions=["0", "1", "2"])

    async def all_at_once() -> list[RedriveReport]:
        return await asyncio.gather(*(drive(shop, broker, f"run {run}") for run in range(4)))

    reports = asyncio.run(all_at_once())
    assert Counter(broker.sent) == Counter(f"{n}-{p}".encode() for n in range(3) for p in range(700))
    assert sum(report.sent for report in reports) == 2100
    for report in reports:
        parts = (report.sent, report.sent_before, report.unconfirmed, report.copies)
        assert sum(parts) == report.selected == 2100
