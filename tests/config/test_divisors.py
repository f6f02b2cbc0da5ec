"""Which divisions a derived column may hold; PostgreSQL, which computes the column, is the judge."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.errors import DivisionByZero

from streamproc.topic_pages.divisors import unsafe_divisor

#: All combinations of these are rows of the table that the expressions are columns of.
ROWS = """
    INSERT INTO divided (a, b, x)
    SELECT * FROM unnest('{NULL,0,1,-1,3}'::bigint[]) AS a, unnest('{NULL,0,1,-1,3}'::bigint[]) AS b,
                  unnest('{NULL,0,0.4,-1.5}'::double precision[]) AS x
"""

SAFE = [
    "a + b * 2",
    "a / 100",
    "a / 2.5",
    "a / -3",
    "a / (1e3)",
    "a % 7",
    "a / nullif(b, 0)",
    "a / NULLIF (b, 0.0)",
    "x / -nullif(b, 0)",
    "100 * a / nullif(a - b, 0) / 2",
    "cast(a as double precision) / nullif(b, 0)",
    "a / cast(nullif(b, 0) as double precision)",
    "a / nullif(b, 0)::double precision",
    "a / greatest(b, 1)",
    "a / coalesce(nullif(b, 0), 1)",
    "a / abs(nullif(x, 0))",
    "mod(a, 7)",
    "mod(a, nullif(b, 0))",
    "div(a, (nullif(b, 0)))",
    "case when b > 0 then a / b end",
    "case when 0 < b then a / b end",
    "case when b <> 0 then a / b else 0 end",
    "case when b = 0 then 0 else a / b end",
    "case when b is null or b = 0 then 0 else a / -b end",
    "case when b < 0 or (b = 0 or a = 0) then 0 else a / b + b / a end",
    "case when a > 0 and (b >= 1) then a / b end",
    "case when b != 0 then case when a > 0 then b / a else a / b end end",
    "case when b = 0 then 0 when a / b > 1 then 1 else b / 2 end",
    "case when a + b > 0 then a / (a + b) end",
    "case b when 0 then 0 else a / b end",
    "case b when 3 then a / b end",
    "case when cast(a as varchar) = 'it''s a / b %' then a else b end",
    'case when "b" > 0 then a / "b" end',
    "a /* / b */ + b",
]

UNSAFE = [
    ("a / b", "b"),
    ("a / 0", "0"),
    ("x / b", "b"),
    ("a % b", "b"),
    ("a / -(b)", "- (b)"),
    ("100 / (a - 1)", "a - 1"),
    ("a / 2 / b", "b"),
    ("a / nullif(a, 0) / (b)", "b"),
    ("a / nullif(b, 1)", "nullif(b, 1)"),
    ("a / coalesce(b, 1)", "coalesce(b, 1)"),
    ("a / greatest(b, 0)", "greatest(b, 0)"),
    ("a / ABS(b)", "abs(b)"),
    ("a / round(nullif(x, 0))", "round(nullif(x, 0))"),
    ("a / cast(nullif(x, 0) as bigint)", "cast(nullif(x, 0) as bigint)"),
    ("a / nullif(x, 0)::bigint", "nullif(x, 0) :: bigint"),
    ("mod(a, b)", "b"),
    ("div(a, b - a)", "b - a"),
    ("coalesce(a / b, 0)", "b"),
    ("nullif(a / b, 0)", "b"),
    ("case when a > 0 then a / b end", "b"),
    ("case when b >= 0 then a / b end", "b"),
    ("case when b < 1 then a / b end", "b"),
    ("case when b = 0 then a / b end", "b"),
    ("case when b > 0 then 1 else a / b end", "b"),
    ("case when b > 0 or a > 0 then a / b end", "b"),
    ("case when b = 0 and a = 0 then 0 else a / b end", "b"),
    ("case when not b > 0 then a / b end", "b"),
    ("case when a / b > 1 and b > 0 then 1 end", "b"),
    ("case when b between 0 and 1 and a > 0 then 3 / b end", "b"),
    ("case when b > 0 then a / b end + a / b", "b"),
    ("case when a + b > 0 then a / (b - a) end", "b - a"),
    ("case b when 0 then a / b end", "b"),
    ("case b when 3 then 0 else a / b end", "b"),
    ("a / case when a > 0 then b else 1 end", "case … end"),
]


def raises(connection: psycopg.Connection, sql: str) -> bool:
    """Whether some row cannot be in a table with this generated column."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(
                "CREATE TEMP TABLE divided (a bigint, b bigint, x double precision, "
                f"answer double precision GENERATED ALWAYS AS ({sql}) STORED)"
            )
            connection.execute(ROWS)
    except DivisionByZero:
        return True
    return False


@pytest.mark.parametrize("sql", SAFE)
def test_what_never_divides_by_zero_is_taken(sql: str) -> None:
    assert unsafe_divisor(sql) is None


@pytest.mark.parametrize(("sql", "divisor"), UNSAFE)
def test_a_divisor_that_may_be_zero_is_named(sql: str, divisor: str) -> None:
    assert unsafe_divisor(sql) == divisor


def test_postgresql_raises_for_those_and_no_others(postgres: str) -> None:
    unsafe = [sql for sql, _ in UNSAFE]
    with psycopg.connect(postgres, autocommit=True) as connection:
        assert [sql for sql in SAFE + unsafe if raises(connection, sql)] == unsafe
