"""Rounds, summaries, the results file and what is drawn of it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmarks import baseline, events
from benchmarks.comparison import scaling
from benchmarks.comparison.curves import draw_curves, points_of
from benchmarks.comparison.plot import decades, draw, newest_results
from benchmarks.comparison.report import first_and_last_line, print_report
from benchmarks.comparison.results import (
    BadResults,
    Results,
    ResultsFile,
    new_results,
    read_results,
    this_machine,
)
from benchmarks.comparison.rounds import Round, Summary, summarise
from benchmarks.comparison.stamping import make_templates
from benchmarks.comparison.streamproc_worker import with_topic
from tests.house.documents import ROOT


def round_of(name: str, seconds: float, cpu: float = 1.0, **more: object) -> Round:
    fields = {"workload": "w1", "title": name.title(), "events": 100, "peak_rss_bytes": 2**20, **more}
    return Round(contestant=name, seconds=seconds, cpu_seconds=cpu, **fields)  # type: ignore[arg-type]  # as given


def failed(name: str) -> Round:
    return Round(workload="w1", contestant=name, title=name.title(), failed="it ended with 1:\nlast words")


@pytest.fixture
def results(tmp_path: Path) -> Results:
    file = new_results("a broker", tmp_path)
    for it in (
        round_of("streamproc", 1.0, 2.0),
        round_of("a<b>", 4.0, 8.0),
        round_of("streamproc", 2.0, 2.0),
    ):
        file.add(it)
    file.add(failed("a<b>"))
    file.add(failed("other"))
    file.skip("third", "no java")
    return file.results


def test_a_summary_is_the_median_of_the_rounds_that_did_not_fail() -> None:
    summary = Summary([*(round_of("a", seconds) for seconds in (1.0, 4.0, 2.0)), failed("a")])
    rate = summary.events_per_second
    assert (rate.median, rate.smallest, rate.largest) == (50, 25, 100)
    assert summary.cpu_seconds_per_million.median == 10_000
    assert summary.failures == 1


def test_stages_and_further_figures_are_medians_too() -> None:
    stages = ({"fold": 1.0}, {"fold": 3.0}, {"fold": 2.0, "put": 9.0})
    summary = Summary([round_of("a", 1.0, stages=it, more={"p99_ms": it["fold"]}) for it in stages])
    assert summary.stages_per_million == {"fold": 20_000, "put": 0}
    assert summary.more == {"p99_ms": 2.0}


def test_who_has_only_failed_has_no_summary(results: Results) -> None:
    assert list(summarise(results.rounds, "w1")) == ["streamproc", "a<b>"]
    assert summarise(results.rounds, "w3") == {}


def test_a_results_file_gives_back_what_was_kept_after_each_round(tmp_path: Path) -> None:
    file = new_results("a broker", tmp_path)
    assert read_results(file.path).rounds == []
    file.add(round_of("a", 1.0, more={"p50_ms": 3.5}))
    assert read_results(file.path) == file.results
    file.add(failed("b"))
    assert [it.failed for it in read_results(file.path).rounds] == ["", "it ended with 1:\nlast words"]
    assert newest_results(tmp_path) == file.path


def test_a_workload_is_drawn_from_the_newest_results_that_have_it(tmp_path: Path) -> None:
    """A run is of one workload or of some: the newest of all may have others."""
    for name, workload in (("1", "w1"), ("2", "w1"), ("3", "scale-events-10")):
        file = ResultsFile(tmp_path / f"peers-{name}.json", Results(started_at="", machine=this_machine("b")))
        file.add(round_of("a", 1.0, workload=workload))
    assert newest_results(tmp_path, "w1").name == "peers-2.json"
    assert newest_results(tmp_path, "scale").name == "peers-3.json"
    with pytest.raises(FileNotFoundError, match=r"no results of w3 in .*make bench-peers writes some"):
        newest_results(tmp_path, "w3")


@pytest.mark.parametrize("text", ["", "[]", '{"rounds": 3}'])
def test_a_file_that_holds_no_results_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "peers-1.json"
    path.write_text(text)
    with pytest.raises(BadResults, match=r"peers-1\.json"):
        read_results(path)


def test_the_report_shows_ratios_failures_and_who_was_skipped(results: Results) -> None:
    console = Console(width=200, record=True, quiet=False, file=Path("/dev/null").open("w"))  # noqa: SIM115
    print_report(results, console)
    text = console.export_text()
    assert (
        "3.00 times as fast, 0.25 of its CPU" in text
    )  # (100 + 50) / 2 against 25 events a second; 2 of 8 seconds
    assert "w1 A<B> FAILED: it ended with 1: … last words" in text
    assert "third skipped: no java" in text
    console.file.close()


def test_a_message_is_shortened_to_its_ends() -> None:
    assert first_and_last_line("one\ntwo\n\nthree\n") == "one … three"
    assert first_and_last_line("one\n") == "one"


def test_a_drawing_is_xml_with_every_contestant_and_its_medians(results: Results) -> None:
    svg = ElementTree.fromstring(draw(results, "w1"))
    texts = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"A<B>", "Streamproc", "75", "25", "20,000.0", "80,000.0"} <= set(texts)
    dots = [float(dot.attrib["cx"]) for dot in svg.iter("{http://www.w3.org/2000/svg}circle")]
    width = float(svg.attrib["width"])
    assert len(dots) == 4 and all(0 < x < width for x in dots)
    assert dots[0] > dots[1]  # 75 events a second lie further to the right than 25
    assert dots[2] < dots[3]  # and 2 CPU seconds further to the left than 8


def test_a_drawing_of_a_workload_without_figures_is_refused(results: Results) -> None:
    with pytest.raises(ValueError, match="w3"):
        draw(results, "w3")


def test_curves_are_drawn_with_the_cost_of_worker_and_database_at_each_point(tmp_path: Path) -> None:
    file = new_results("a broker", tmp_path)
    for workload, cpu in (
        ("scale-partitions-16", 4.0),
        ("scale-partitions-4", 2.0),
        ("scale-events-1000", 2.0),
    ):
        more = {"postgresql_cpu_seconds_per_million": 1.0}
        file.add(round_of("streamproc", 1.0, cpu / 1e4, workload=workload, more=more))
    partitions = points_of(file.results)["partitions"]
    assert [(point.value, round(point.worker, 6), point.postgresql) for point in partitions] == [
        (4, 2.0, 1.0),
        (16, 4.0, 1.0),
    ]
    svg = ElementTree.fromstring(draw_curves(file.results))
    dots = [
        (float(dot.attrib["cx"]), float(dot.attrib["cy"]))
        for dot in svg.iter("{http://www.w3.org/2000/svg}circle")
    ]
    width, height = float(svg.attrib["width"]), float(svg.attrib["height"])
    assert len(dots) == 6 and all(0 < x < width and 0 < y < height for x, y in dots)
    (left, low), (right, high) = dots[:2]
    assert left < right and high < low  # 16 partitions, 4 seconds: right of and above 4 and 2


def test_curves_without_points_are_refused(results: Results) -> None:
    with pytest.raises(ValueError, match="no curves"):
        draw_curves(results)


@given(st.lists(st.floats(1e-6, 1e12), min_size=1))
def test_an_axis_holds_all_values_between_two_different_powers_of_ten(values: list[float]) -> None:
    first, last = decades(values)
    assert first < last
    assert all(10.0**first <= value * (1 + 1e-12) and value <= 10.0**last * (1 + 1e-12) for value in values)


def test_stamped_events_are_the_generators_with_other_times() -> None:
    templates = make_templates(5, 30)
    originals = list(events.generate(30, 5))
    times = [events.START_MS + number for number in range(10, 30)]
    stamped = templates.stamped(10, times)
    assert list(zip(stamped.keys, stamped.values, strict=True)) == [(e.key, e.value) for e in originals[10:]]
    again = templates.stamped(25, [7] * 10)
    fields = [json.loads(value) for value in again.values]
    assert [it["event_time"] for it in fields] == [7] * 10
    assert [it["event_id"] for it in fields[5:]] == [json.loads(e.value)["event_id"] for e in originals[:5]]
    assert again.humans == sum("bot" not in it["user_agent"] for it in fields)


def test_curves_change_one_thing_at_a_time() -> None:
    points = scaling.points(1_200_000)
    assert len({point.workload for point in points}) == len(points)
    for curve, fixed in (
        ("scale-windows", "events"),
        ("scale-partitions", "events"),
        ("scale-events", "step_ms"),
    ):
        assert len({getattr(point, fixed) for point in points if point.curve == curve}) == 1
    # 1,200,000 events 1 ms apart are 20 minutes; ten times as many when they are 10 ms apart.
    assert [(it.value, it.step_ms) for it in points if it.curve == "scale-windows"] == [
        (20, 1),
        (200, 10),
        (2000, 100),
    ]


def test_a_page_reads_the_topic_it_is_told_to() -> None:
    page = (ROOT / "benchmarks" / "counting.toml").read_text()
    assert with_topic(page, "counting", "w1-7").count('"w1-7"') == 1
    assert with_topic(page, "counting", "w1-7").startswith(page.partition("[topic]")[0])


def test_a_stage_is_compared_in_yardsticks() -> None:
    then = baseline.Costs(
        streamproc="1", python="3", polars="2", rounds=1, yardstick=1.0, stages={"fold": 2.0, "gone": 1.0}
    )
    # A machine half as fast: twice the seconds are the same cost.
    now = baseline.Costs(
        streamproc="1", python="3", polars="2", rounds=1, yardstick=2.0, stages={"fold": 6.0, "new": 1.0}
    )
    assert baseline.changes(now, then) == {"fold": 1.5, "gone": None, "new": None}
