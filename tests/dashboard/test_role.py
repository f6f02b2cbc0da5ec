"""The dashboard's role reads what the pages show, and nothing else."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from streamproc.dashboard.live import Live
from streamproc.dashboard.pipeline_view import Ends, PipelineView
from streamproc.dashboard.reading import Reader, read_only
from streamproc.dashboard.role import LEDGER_TABLES, grants
from streamproc.database import Database
from streamproc.ledger import ObjectTotal
from tests.dashboard.conftest import Site

T = TypeVar("T")


@pytest.fixture
def reader_url(site: Site) -> str:
    with psycopg.connect(site.url, autocommit=True) as conn:
        for _ in range(2):  # it may be run again
            conn.execute(grants("looker", ["clickstream"], warehouse=False))
    return make_conninfo(site.url, user="looker")


@pytest.mark.slow
async def test_the_role_reads_every_page(site: Site, reader_url: str) -> None:
    reader = Reader(Database(read_only(reader_url, 5.0), "test"))

    async def totals() -> list[ObjectTotal]:
        return []

    view = PipelineView(
        site.topology, reader, ends=lambda: _now(Ends({}, {})), totals=totals, warehouse=lambda: _now(None)
    )
    snapshot, pipeline = await asyncio.gather(Live(site.topology, reader).look(), view.look())
    assert snapshot.now == site.now
    assert [row.status.owner for row in pipeline.partitions] == ["worker-1"]
    await reader.database.close()


async def _now(value: T) -> T:
    return value


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM streamproc.keys",
        "SET TRANSACTION READ WRITE; DELETE FROM clickstream.page_views",
        "SET TRANSACTION READ WRITE; UPDATE streamproc.partitions SET position = 0",
        "SET TRANSACTION READ WRITE; CREATE TABLE clickstream.mine ()",
    ],
)
def test_the_role_may_do_nothing_else(reader_url: str, statement: str) -> None:
    with psycopg.connect(reader_url) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute(statement)


def test_the_secrets_of_the_ledger_are_not_among_its_tables() -> None:
    assert "keys" not in LEDGER_TABLES
    assert "keys" not in grants("looker", ["clickstream"], warehouse=True).as_string(None)
