"""What is remembered of a column's values, against asking anew each time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.transform.enrich import distinct
from streamproc.transform.enrich.distinct import ByValue, Found, Remembered, Shared, together

text = st.one_of(st.none(), st.sampled_from(["", "a", "b", "é", "日本", "long " * 9, "c", "d", "e", "f"]))
batches = st.lists(st.lists(text, max_size=12), max_size=10)


def column(values: Sequence[str | None]) -> pl.Series:
    return pl.Series("u", values, dtype=pl.String)


def twice(values: pl.Series) -> pl.DataFrame:
    return pl.DataFrame({"twice": values + values, "bytes": values.str.len_bytes()})


def expected(values: Sequence[str | None]) -> list[tuple[object, ...]]:
    return [("none", None) if value is None else (value * 2, len(value.encode())) for value in values]


def rows(found: Found) -> list[tuple[object, ...]]:
    return found.answer(["twice", "bytes"]).rows()


@given(batches, st.integers(0, 6), st.sampled_from([0, 400, 2**20]))
@settings(max_examples=150, deadline=None)
def test_answers_are_those_of_the_values_whatever_is_remembered(
    batches: list[list[str | None]], bound: int, most_bytes: int
) -> None:
    memory = Remembered("u", twice, bound, of_null={"twice": "none"})
    with patch.object(distinct, "MAX_BYTES", most_bytes):
        for values in batches:
            assert rows(memory.find(column(values))) == expected(values)


@given(batches, st.lists(st.booleans(), min_size=10, max_size=10), st.integers(0, 6))
@settings(max_examples=150, deadline=None)
def test_a_description_that_failed_leaves_no_wrong_answer_behind(
    batches: list[list[str | None]], fails: list[bool], bound: int
) -> None:
    failing = False

    def describe(values: pl.Series) -> pl.DataFrame:
        if failing and len(values):
            raise OSError("the database is gone")
        return twice(values)

    memory = Remembered("u", describe, bound, of_null={"twice": "none"})
    for values, failing in zip(batches, fails, strict=False):  # noqa: B007  # describe reads it
        try:
            found = memory.find(column(values))
        except OSError:
            continue
        assert rows(found) == expected(values)


def test_threads_that_ask_at_once_get_their_own_answers() -> None:
    memory = Remembered("u", twice, bound=300, of_null={"twice": "none"})
    asked = [[f"value {(start * 7 + each * each) % 500}" for each in range(60)] for start in range(120)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda values: rows(memory.find(column(values))), asked))
    assert found == [expected(values) for values in asked]


def test_a_found_answer_stays_what_it_was_when_the_memory_forgets() -> None:
    memory = Remembered("u", twice, bound=2)
    first = memory.find(column(["a", "b"]))
    memory.find(column(["c", "d", "e"]))
    assert first.answer(["twice"])["twice"].to_list() == ["aa", "bb"]
    assert first.filter(pl.Series([False, True])).answer(["twice"])["twice"].to_list() == ["bb"]


def test_what_was_not_met_for_long_is_forgotten_when_something_new_comes() -> None:
    asked: list[str] = []
    now = 0.0

    def describe(values: pl.Series) -> pl.DataFrame:
        asked.extend(values)
        return twice(values)

    memory = Remembered("u", describe, clock=lambda: now)
    memory.find(column(["old", "used"]))
    now = distinct.MOST_SECONDS + 1
    memory.find(column(["old", "used"]))
    assert asked == ["old", "used"], "nothing new, nothing to be gained"
    found = memory.find(column(["used", "new"]))
    assert rows(found) == [("usedused", 4), ("newnew", 3)]
    assert found.answers.height == 1 + 2
    now += distinct.MOST_SECONDS - 1
    memory.find(column(["old", "newer"]))
    assert asked == ["old", "used", "new", "old", "newer"]
    assert memory.find(column([])).answers.height == 1 + 4


def test_what_is_remembered_is_forgotten_when_it_would_come_from_elsewhere() -> None:
    database = {"a": "old"}

    def describe(values: pl.Series) -> pl.DataFrame:
        return pl.DataFrame({"found": [database.get(value) for value in values]}, schema={"found": pl.String})

    other = Remembered("u", twice)
    memory = together([other, Remembered("u", describe, source=lambda: database)])
    assert memory.find(column(["a", "b"])).answer(["found"]).rows() == [("old",), (None,)]
    database = {"a": "new", "b": "known"}
    assert memory.find(column(["a", "b"])).answer(["found"]).rows() == [("new",), ("known",)]


def test_several_descriptions_of_a_column_are_asked_together_and_once() -> None:
    asked: list[tuple[str, list[str]]] = []

    def named(name: str) -> Remembered:
        def describe(values: pl.Series) -> pl.DataFrame:
            asked.append((name, values.to_list()))
            return pl.DataFrame({name: values + name})

        return Remembered("u", describe, of_null={name: f"no {name}"})

    memory = together([named("x"), named("y")])
    asked.clear()
    for _ in range(2):
        assert memory.find(column(["a", None])).answer(["y", "x"]).rows() == [("ay", "ax"), ("no y", "no x")]
    assert asked == [("x", ["a"]), ("y", ["a"])]


def test_steps_share_the_memory_of_a_decoded_column_and_of_no_other() -> None:
    calls = 0

    def describe(values: pl.Series) -> pl.DataFrame:
        nonlocal calls
        calls += len(values)
        return twice(values)

    on_decoded = ByValue(Remembered("u", describe))
    on_added = ByValue(Remembered("twice", lambda values: pl.DataFrame({"again": values})))
    shared = Shared([on_decoded, on_added], {"u": pl.String()})
    assert shared.adds([on_decoded, on_added]) == {"twice", "bytes"}
    for _ in range(2):
        answers = shared.answers()
        events = answers.run(on_added, answers.run(on_decoded, column(["a", "b", "a"]).to_frame()))
        assert events["again"].to_list() == ["aa", "bb", "aa"]
    assert calls == 2


def test_an_enrichment_of_which_a_page_wants_nothing_adds_nothing() -> None:
    nothing = ByValue(Remembered("u", lambda values: twice(values).select([])))
    assert nothing(column(["a", None]).to_frame()).rows() == [("a",), (None,)]


def test_numbers_that_polars_gives_out_of_order_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Remembered("u", twice)
    number = memory._number
    monkeypatch.setattr(memory, "_number", lambda values: number(values.reverse()).reverse())
    with pytest.raises(RuntimeError, match="no longer numbers categories in order"):
        memory.find(column(["a", "b"]))


def buffers(answers: pl.Series) -> list[int]:
    """Sizes of the buffers that the strings are views into: what they keep in memory, beyond what they say."""
    arrow = answers.to_arrow(compat_level=pl.CompatLevel.newest())
    return [buffer.size for buffer in arrow.buffers()[2:]]


def test_answers_learnt_a_few_at_a_time_take_no_buffer_each() -> None:
    memory = Remembered("u", twice)
    for batch in range(500):
        memory.find(column([f"https://example.com/{batch}/{each}" for each in range(3)]))
    kept = buffers(memory.find(column([])).answers["twice"])
    assert len(kept) <= 2 * distinct._MOST_ADDITIONS
    assert sum(kept) < 2**20


def test_an_answer_that_is_a_piece_of_its_value_does_not_keep_the_batch() -> None:
    memory = Remembered("u", lambda values: pl.DataFrame({"piece": values.str.slice(0, 40)}))
    memory.find(column([f"{each:040}" + "and so on" * 10_000 for each in range(100)]))
    assert sum(buffers(memory.find(column([])).answers["piece"])) < 2**16
