"""The benchmark measures what its page says it measures."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice

from benchmarks import events, measure
from streamproc.topic_pages import load_page
from tests.house.documents import ROOT


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    assert list(events.generate(200, 1)) == list(events.generate(200, 1))
    assert not {e.value for e in events.generate(200, 1)} & {e.value for e in events.generate(200, 2)}


def test_events_have_416_bytes_on_average() -> None:
    sizes = [len(event.value) for event in events.generate(20_000, 3)]
    assert abs(sum(sizes) / len(sizes) - 416) < 1


def test_one_event_in_three_is_a_bots() -> None:
    bots = sum(b"bot" in event.value for event in events.generate(20_000, 3))
    assert 0.32 < bots / 20_000 < 0.345


def test_events_are_keyed_by_visitor_and_a_millisecond_apart() -> None:
    for number, event in enumerate(islice(events.generate(50, 4), 50)):
        fields = json.loads(event.value)
        assert event.key.decode() == fields["visitor_id"]
        assert fields["event_time"] == 1_760_000_000_000 + number


def test_the_reference_counts_by_path_and_minute_without_bots() -> None:
    def event(time: int, visitor: str, path: str, agent: str = "Firefox") -> bytes:
        url = f"https://a.example{path}?utm_campaign=c1"
        fields = {"event_time": time, "visitor_id": visitor, "page_url": url, "user_agent": agent}
        return json.dumps(fields).encode()

    answer = events.reference(
        [
            event(60_000, "v1", "/p/1"),
            event(60_001, "v1", "/p/1"),
            event(119_999, "v2", "/p/1"),
            event(120_000, "v2", "/p/1"),
            event(60_000, "v3", "/p/2"),
            event(60_000, "v4", "/p/2", "a bot"),
        ]
    )
    assert answer == {(60_000, "/p/1"): (3, 2), (120_000, "/p/1"): (1, 1), (60_000, "/p/2"): (1, 1)}


def test_cpu_and_memory_of_a_process_include_its_children() -> None:
    work = "import os\npid = os.fork()\nx = b'a' * 50_000_000\nwhile sum(os.times()[:2]) < 0.3: pass\n"
    done = "print(flush=True)\nopen('/dev/stdin').read()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", work + done], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdin is not None
    with process:
        process.stdout.readline(), process.stdout.readline()  # one of each
        cpu, memory = measure.cpu_seconds(process.pid), measure.peak_rss_bytes(process.pid)
        process.stdin.close()
    assert 0.55 < cpu < 5
    assert memory > 100_000_000


def test_the_counting_page_keeps_only_what_the_workload_asks_for() -> None:
    page = load_page(ROOT / "benchmarks" / "counting.toml")
    assert page.name == page.topic.name == "counting"
    assert [field.name for field in page.contract.fields] == [
        "event_time",
        "visitor_id",
        "page_url",
        "user_agent",
    ]
    assert [name for e in page.enrichments for name in e.adds] == ["path", "utm_campaign"]
    assert (page.sinks.lake, page.sinks.warehouse) == (False, False)
