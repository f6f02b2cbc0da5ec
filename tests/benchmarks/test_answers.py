"""Answers are compared row for row, with references that follow from the workloads' words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.comparison import references
from benchmarks.comparison.answers import WrongAnswer, compare, keyed, read_answer

MINUTE = 60_000


def event(visitor: str, time: int, agent: str = "Firefox") -> bytes:
    fields = {
        "event_time": time,
        "visitor_id": visitor,
        "page_url": "https://a.example/p",
        "user_agent": agent,
    }
    return json.dumps(fields).encode()


def test_an_answer_in_any_order_is_right(tmp_path: Path) -> None:
    answer = tmp_path / "answer.jsonl"
    answer.write_text('[60000,"/b",2,1]\n[0,"/a",3,2]\n')
    compare(read_answer(answer, 2), {(0, "/a"): (3, 2), (60_000, "/b"): (2, 1)})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, "/a", 3, 2]], "1 of 2 rows are missing, 0 too many, 0 different"),
        (
            [[0, "/a", 3, 2], [0, "/b", 1, 1], [0, "/c", 1, 1]],
            "0 of 2 rows are missing, 1 too many, 0 different",
        ),
        ([[0, "/a", 3, 2], [0, "/b", 1, 2]], "0 of 2 rows are missing, 0 too many, 1 different"),
        ([[0, "/a", 3, 2], [0, "/b", "1", 1]], "1 different"),
        ([[0, "/a", 3, 2], [0, "/b", 1]], "1 different"),
    ],
)
def test_a_wrong_answer_is_told_with_its_rows(rows: list[list[int | str]], message: str) -> None:
    with pytest.raises(WrongAnswer, match=message):
        compare(keyed(rows, 2), {(0, "/a"): (3, 2), (0, "/b"): (1, 1)})


def test_two_rows_of_one_key_are_wrong_even_when_one_is_right() -> None:
    with pytest.raises(WrongAnswer, match="two rows"):
        keyed([[0, "/a", 3, 2], [0, "/a", 3, 2]], 2)


@pytest.mark.parametrize("text", ["no JSON\n", "3\n", '[["list"],"/a",1,1]\n'])
def test_an_answer_that_cannot_be_read_is_wrong(tmp_path: Path, text: str) -> None:
    answer = tmp_path / "answer.jsonl"
    answer.write_text(text)
    with pytest.raises(WrongAnswer, match="cannot be read"):
        read_answer(answer, 2)


def test_no_answer_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(WrongAnswer, match="no answer"):
        read_answer(tmp_path / "answer.jsonl", 2)


def test_a_session_goes_on_for_exactly_thirty_minutes_and_no_longer() -> None:
    values = [
        event("v1", 0),
        event("v2", 5),
        event("v1", 30 * MINUTE),
        event("v1", 60 * MINUTE + 1),
        event("v1", 60 * MINUTE + 2, agent="a bot"),
        event("v1", 70 * MINUTE),
    ]
    assert references.sessions(values) == {
        ("v1", 0): (30 * MINUTE, 2),
        ("v1", 60 * MINUTE + 1): (70 * MINUTE, 2),
        ("v2", 5): (5, 1),
    }


def test_hours_are_counted_by_visitor_with_the_latest_time() -> None:
    hour = 60 * MINUTE
    values = [
        event("v1", hour + 2),
        event("v1", hour),
        event("v1", 2 * hour),
        event("v2", 7),
        event("v2", 8, "bot"),
    ]
    assert references.visitor_hours(values) == {
        (hour, "v1"): (2, hour + 2),
        (2 * hour, "v1"): (1, 2 * hour),
        (0, "v2"): (1, 7),
    }
