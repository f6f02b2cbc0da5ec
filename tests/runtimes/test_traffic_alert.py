"""The worked example's judgement."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from examples.traffic_alert import judge

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def windows(*events: int) -> dict:
    return {(START + timedelta(minutes=n)).isoformat(): count for n, count in enumerate(events)}


def test_steady_traffic_is_no_alert():
    _, alert = judge(windows(*[100] * 40))
    assert alert is None


def test_less_than_half_of_the_hours_median_is_an_alert_about_the_newest_settled_window():
    _, alert = judge(windows(*[100] * 38, 40, 30, 35))
    assert alert == {"window_start": (START + timedelta(minutes=38)).isoformat(), "events": 40, "usual": 100}


def test_a_window_that_may_still_grow_is_not_judged():
    _, alert = judge(windows(*[100] * 40, 3, 1))
    assert alert is None


def test_one_window_is_alerted_on_once():
    seen, alert = judge(windows(*[100] * 38, 40, 30, 35))
    assert alert is not None
    _, again = judge(seen)
    assert again is None


def test_a_site_with_little_history_is_not_judged():
    _, alert = judge(windows(*[100] * 10, 1, 1, 1))
    assert alert is None


def test_what_is_older_than_an_hour_is_forgotten():
    seen, _ = judge(windows(*[100] * 90))
    assert len(seen) == 60
