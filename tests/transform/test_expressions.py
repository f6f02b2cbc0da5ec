"""SQL of a topic page: what is taken, what is refused, and that what is taken sees one row only."""

from __future__ import annotations

from datetime import UTC, date, datetime

import duckdb
import polars as pl
import pytest

from streamproc.transform.expressions import FUNCTIONS, ExpressionError, compile_sql

COLUMNS: dict[str, pl.DataType] = {
    "is_bot": pl.Boolean(),
    "event_type": pl.String(),
    "host": pl.String(),
    "path": pl.String(),
    "value": pl.Float64(),
    "n": pl.Int64(),
    "m": pl.Int64(),
    "event_time": pl.Datetime("us", "UTC"),
    "event_date": pl.Date(),
    "event_hour": pl.Int8(),
    "event_weekday": pl.Int8(),
}
EVENTS = pl.DataFrame(
    {
        "is_bot": [True, False, None, False],
        "event_type": ["heartbeat", "page_view", "click", None],
        "host": ["a.example", "b.example", None, "a.example"],
        "path": ["/", "/shop/shoes", "/shop", None],
        "value": [1.5, None, -2.0, 0.0],
        "n": [1, 2, None, 40],
        "event_time": [datetime(2026, 3, 1, hour, 59) for hour in (0, 9, 23)] + [None],
        "event_hour": [0, 9, 23, None],
        "event_weekday": [7, 7, 7, None],
    },
    schema_overrides=COLUMNS,
)
ACCEPTED = [
    "is_bot or event_type = 'heartbeat'",
    "event_type in ('page_view', 'click')",
    "not is_bot and value >= 0",
    "path like '/shop%'",
    "host || path",
    "coalesce(host, 'none')",
    "case when n > 1 then 'many' when n = 1 then 'one' else 'none' end",
    "value between -2 and 1",
    "event_type is null",
    "upper(event_type)",
    "split_part(path, '/', 2)",
    "n % 2 = 1",
    "not coalesce(is_bot, false)",
]


@pytest.mark.parametrize("sql", ACCEPTED)
def test_an_expression_means_what_it_means_in_another_sql_engine(sql: str) -> None:
    expected = duckdb.sql(f"select {sql} from EVENTS").fetchall()
    assert EVENTS.select(compile_sql(sql, COLUMNS).expr).rows() == expected


@pytest.mark.parametrize("sql", ACCEPTED)
def test_an_expression_gives_each_row_the_same_answer_alone(sql: str) -> None:
    expr = compile_sql(sql, COLUMNS).expr
    alone = [EVENTS[row].select(expr).item() for row in range(EVENTS.height)]
    assert EVENTS.select(expr).to_series().to_list() == alone


def test_columns_and_type_are_told() -> None:
    compiled = compile_sql("n + n > value", COLUMNS)
    assert (compiled.columns, compiled.type) == (("n", "value"), pl.Boolean())
    assert compile_sql("n * value", COLUMNS).type == pl.Float64()


@pytest.mark.parametrize(
    "sql",
    [
        "count(*)",
        "n > count(*)",
        "sum(n)",
        "n > sum(n)",
        "max(n)",
        "first(host)",
        "array_agg(n)",
        "median(n) > 1",
        "sum(n) over (partition by host)",
        "row_number() over ()",
        "lag(n) over (order by n)",
        "rank() over (order by n)",
        "n in (select n from self)",
        "exists (select 1)",
        "n > (select max(n) from self)",
        "unnest(string_to_array(host, '.'))",
    ],
)
def test_what_sees_several_rows_is_refused(sql: str) -> None:
    with pytest.raises(ExpressionError, match="one event"):
        compile_sql(sql, COLUMNS)


@pytest.mark.parametrize(
    "sql", ["now()", "event_time < now()", "CURRENT_TIMESTAMP", "event_date = current_date"]
)
def test_what_reads_the_clock_is_refused(sql: str) -> None:
    with pytest.raises(ExpressionError, match="clock"):
        compile_sql(sql, COLUMNS)


@pytest.mark.parametrize(
    "sql", ["", "  ", "n >", "select n", "n; drop", "*", "n n n", "read_csv('/etc/passwd')", "random() > 0.5"]
)
def test_what_is_no_expression_is_refused(sql: str) -> None:
    with pytest.raises(ExpressionError):
        compile_sql(sql, COLUMNS)


@pytest.mark.parametrize(
    "sql",
    ["host > 1", "n = '1'", "host + n", "cast(host as int) > 1", "strptime(host, '%Y') is null", "not host"],
)
def test_what_could_fail_on_some_event_is_refused(sql: str) -> None:
    with pytest.raises(ExpressionError):
        compile_sql(sql, COLUMNS)


@pytest.mark.parametrize(
    "sql",
    [
        "event_weekday * 24 + event_hour",
        "event_hour * 100",
        "-event_hour * 6",
        "event_hour + 100 + 100 > 50",
        "power(event_hour, 3)",
        "length(path) - 5 > 0",
        "abs(length(path) - 5)",
        "substr(path, length(host) - 1)",
        "cast(event_hour as int) * 100000000",
        "date_part('hour', event_time) * 60 + date_part('minute', event_time)",
        "n > 1000 * 60 * 60 * 24 * 30",
    ],
)
def test_numbers_that_could_leave_their_type_and_wrap_around_are_refused(sql: str) -> None:
    with pytest.raises(ExpressionError, match=r"may not fit its type .* cast\(event_hour as bigint\)"):
        compile_sql(sql, COLUMNS)


@pytest.mark.parametrize(
    "sql",
    [
        "cast(event_weekday as bigint) * 24 + event_hour",
        "cast(event_hour as bigint) * 100",
        "cast(length(path) as bigint) - 5",
        "length(path) + length(host)",
        "event_hour % 6",
        "n * 100",
        "cast(extract(hour from event_time) as bigint) * 60 + extract(minute from event_time)",
        "case when n > 1 then 1 else 0 end + case when n > 2 then 1 else 0 end",
        "n > 1000 * 60 * 60",
        "right(path, 3)",
        "left(path, length(path))",
    ],
)
def test_numbers_that_fit_come_out_as_in_another_sql_engine(sql: str) -> None:
    expected = duckdb.sql(f"select {sql} from EVENTS").fetchall()
    assert EVENTS.select(compile_sql(sql, COLUMNS).expr).rows() == expected


@pytest.mark.parametrize("sql", ["strpos(path, '?') > 0", "POSITION('.' in host) = 1"])
def test_a_search_that_would_take_a_text_for_a_regular_expression_is_refused(sql: str) -> None:
    with pytest.raises(ExpressionError, match="takes what it looks for as a regular expression; use like"):
        compile_sql(sql, COLUMNS)


@pytest.mark.parametrize(
    "sql",
    ["replace(path, '.', 'x')", "path like '%.%'", "starts_with(path, '.')", "split_part(host, '.', 1)"],
)
def test_other_searches_take_it_as_it_stands(sql: str) -> None:
    expected = duckdb.sql(f"select {sql} from EVENTS").fetchall()
    assert EVENTS.select(compile_sql(sql, COLUMNS).expr).rows() == expected


@pytest.mark.parametrize(
    "sql",
    [
        "div(n, m)",
        "div(m, n)",
        "div(n, coalesce(event_weekday, m))",
        "div(n, try_cast(path as bigint))",
        "strftime(try_cast(n as date), '%Y')",
        "strftime(try_cast(n / 86400000 as date), '%Y')",
        "strftime(try_cast(n / 12345 as date), '%Y')",
        "cast(cast(n as timestamp) as text)",
        "cast(n as timestamp) + interval '1 month'",
    ],
)
def test_what_could_fail_on_hostile_numbers_is_refused(sql: str) -> None:
    """Also where polars panics, which is no error of its own kind."""
    with pytest.raises(ExpressionError, match="it does not"):
        compile_sql(sql, COLUMNS)


def test_a_number_of_days_is_told_to_be_bounded() -> None:
    bounded = "case when n between 0 and 50000 then n end"
    with pytest.raises(ExpressionError, match=f"as in {bounded}"):
        compile_sql("strftime(try_cast(n as date), '%Y')", COLUMNS)
    assert compile_sql(f"strftime(try_cast({bounded} as date), '%Y')", COLUMNS).type == pl.String()


def test_a_time_outside_the_calendar_is_null() -> None:
    days = pl.DataFrame({"n": [0, -719_162, -719_163, 2_932_896, 2_932_897, 2**31 - 1, 2**63 - 1, None]})
    dates = [date(1970, 1, 1), date(1, 1, 1), None, date(9999, 12, 31), None, None, None, None]
    out = days.select(compile_sql("try_cast(n as date)", COLUMNS).expr)
    assert out.to_series().to_list() == dates
    moments = [datetime(2026, 3, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 30, tzinfo=UTC)]
    events = pl.DataFrame({"event_time": pl.Series(moments, dtype=COLUMNS["event_time"])})
    out = events.select(compile_sql("event_time + interval '1 hour'", COLUMNS).expr)
    assert out.to_series().to_list() == [datetime(2026, 3, 1, 1, tzinfo=UTC), None]


def test_a_failing_cast_is_told_to_try() -> None:
    with pytest.raises(ExpressionError, match="try_cast"):
        compile_sql("cast(host as bigint)", COLUMNS)
    assert compile_sql("try_cast(host as bigint)", COLUMNS).type == pl.Int64()


def test_unknown_columns_are_all_named_with_near_matches() -> None:
    with pytest.raises(
        ExpressionError, match=r"'event_typ' \(near: event_type.*\); there is no column 'zzz'"
    ):
        compile_sql("event_typ = 'a' and zzz", COLUMNS)


def test_words_inside_texts_and_quoted_names_are_not_sql() -> None:
    assert compile_sql("event_type = 'now() select count(*)'", COLUMNS).columns == ("event_type",)
    assert compile_sql("\"over\" = 'it''s'", {"over": pl.String()}).columns == ("over",)


def test_functions_that_are_allowed_are_known_to_the_engine() -> None:
    unknown = []
    grammar = {"cast": "n as int", "try_cast": "n as int", "extract": "year from n"}
    for name in sorted(FUNCTIONS):
        try:
            pl.sql_expr(f"{name}({grammar.get(name, 'n')})")
        except pl.exceptions.PolarsError as error:
            if "unsupported function" in str(error):
                unknown.append(name)
    assert unknown == []
