"""``streamproc transform`` as a person calls it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from streamproc.cli import main
from streamproc.generator import Generator

TOPICS = Path(__file__).parents[2] / "topics"
EVENT = {
    "event_id": "1",
    "event_type": "page_view",
    "event_time": 1_736_154_000_123,
    "visitor_id": "v",
    "page_url": "https://shop.example/a?utm_source=news",
    "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "ip": "81.2.69.142",
    "properties": {"é": [1, 2.50]},
}
GOOD = json.dumps(EVENT, ensure_ascii=False).encode()


def transform(data: bytes, *arguments: str) -> Result:
    return CliRunner().invoke(
        main, ["transform", *(arguments or ("clickstream",)), "--topics", str(TOPICS)], input=data
    )


def lines_of(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def test_an_event_comes_out_with_all_columns() -> None:
    result = transform(GOOD + b"\n")
    assert (result.exit_code, result.stderr_bytes) == (0, b"")
    (row,) = lines_of(result.stdout_bytes)
    assert row["event_time"] == "2025-01-06T09:00:00.123000Z"
    assert (row["host"], row["path"], row["utm_source"]) == ("shop.example", "/a", "news")
    assert row["ip"] == "81.2.69.0", "addresses are shortened as they will be in the lake"
    assert json.loads(row["properties"]) == EVENT["properties"]
    assert row["position"] == 1


def test_rejects_go_to_stderr_with_their_bytes() -> None:
    bad = [b"{", b"", b"\xff\xfe"]
    result = transform(b"\n".join([GOOD, *bad, GOOD]))
    assert result.exit_code == 0
    assert [row["position"] for row in lines_of(result.stdout_bytes)] == [1, 5]
    rejects = lines_of(result.stderr_bytes)
    assert [(reject["line"], reject["reason"]) for reject in rejects] == [
        (2, "not_json"),
        (3, "empty"),
        (4, "not_utf8"),
    ]
    assert [base64.b64decode(reject["original"]) for reject in rejects] == bad
    assert [reject.get("text") for reject in rejects] == ["{", "", None]


def test_rejects_can_go_to_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rejects.ndjson"
    result = transform(GOOD + b"\n[]\n", "clickstream", "--rejects", str(file))
    assert lines_of(file.read_bytes())[0]["reason"] == "not_an_object"
    assert result.stderr == "2 records: 1 accepted, 0 filtered, 1 rejected\n"


def test_filtered_events_do_not_come_out() -> None:
    heartbeat = json.dumps(EVENT | {"event_type": "heartbeat"}).encode()
    result = transform(heartbeat + b"\n" + GOOD)
    assert [row["event_type"] for row in lines_of(result.stdout_bytes)] == ["page_view"]


def test_nothing_in_gives_nothing_out() -> None:
    result = transform(b"")
    assert (result.exit_code, result.stdout_bytes, result.stderr_bytes) == (0, b"", b"")


def test_every_line_of_a_long_input_is_accounted_for(tmp_path: Path) -> None:
    """Longer than a chunk, so that lines are cut by chunks; the last line has no line feed."""
    generator = Generator(2, 15_000, bad_ratio=0.02, one_line=True)
    values = [record.value or b"" for record in generator.records()]
    assert sum(map(len, values)) > 4 * 1024 * 1024
    file = tmp_path / "rejects.ndjson"
    result = transform(b"\n".join(values), "clickstream", "--rejects", str(file))
    rejects = lines_of(file.read_bytes())
    assert all(base64.b64decode(reject["original"]) == values[reject["line"] - 1] for reject in rejects)
    events = lines_of(result.stdout_bytes)
    assert all(json.loads(values[row["position"] - 1])["event_id"] == row["event_id"] for row in events)
    counts = [int(part.split()[0].replace(",", "")) for part in result.stderr.replace(":", ",").split(", ")]
    records, accepted, filtered, rejected = counts
    assert records == 15_000 == accepted + filtered + rejected
    assert (accepted, rejected) == (len(events), len(rejects))


def test_a_page_can_be_given_as_a_file() -> None:
    result = transform(GOOD, str(TOPICS / "clickstream.toml"))
    assert len(lines_of(result.stdout_bytes)) == 1


def test_the_page_is_looked_for_where_the_setting_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "mine.toml").write_bytes((TOPICS / "clickstream.toml").read_bytes())
    monkeypatch.chdir(tmp_path)
    by_variable = {"STREAMPROC_TOPICS": str(pages)}
    asked = CliRunner().invoke(main, ["transform", "mine"], input=GOOD, env=by_variable)
    assert (asked.exit_code, len(lines_of(asked.stdout_bytes))) == (0, 1)
    (tmp_path / "streamproc.toml").write_text('topics = "pages"\n')
    asked = CliRunner().invoke(main, ["transform", "mine"], input=GOOD)
    assert (asked.exit_code, len(lines_of(asked.stdout_bytes))) == (0, 1)


@pytest.mark.parametrize("topic", ["nothing", "nothing.toml"])
def test_an_unknown_topic_exits_with_2_and_says_so(topic: str) -> None:
    result = transform(GOOD, topic)
    assert result.exit_code == 2
    assert "nothing" in result.stderr


def test_a_line_without_end_is_refused_rather_than_kept_in_memory() -> None:
    result = transform(b"x" * (65 * 1024 * 1024))
    assert result.exit_code == 1
    assert "NDJSON" in result.stderr
