"""The dashboard's role reads what the pages show, and nothing else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from streamproc.dashboard.live import Live
from streamproc.dashboard.pipeline_view import Ends, PipelineView, ledger_over
from streamproc.dashboard.reading import Reader, Shared, read_only
from streamproc.dashboard.role import LEDGER_TABLES, grants
from streamproc.database import Database
from streamproc.ledger import ObjectTotal
from tests.dashboard.conftest import Site

T = TypeVar("T")
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def reader_url(site: Site) -> str:
    with psycopg.connect(site.url, autocommit=True) as conn:
        for _ in range(2):  # it may be run again
            conn.execute(grants("looker", ["clickstream"], warehouse=False))
    return make_conninfo(site.url, user="looker")


@pytest.mark.slow
async def test_the_role_reads_every_page(site: Site, reader_url: str) -> None:
    reader = Reader(Database(read_only(reader_url, 5.0), "test"))

    ledger = ledger_over(reader, site.topology.name)
    view = PipelineView(
        site.topology,
        reader,
        ends=lambda: _now(Ends({}, {})),
        totals=Shared[Sequence[ObjectTotal]](ledger.object_totals, 1.0).get,
        late=Shared[Mapping[str, int]](ledger.late, 1.0).get,
        warehouse=lambda: _now(None),
    )
    snapshot, pipeline = await asyncio.gather(Live(site.topology, reader).look(), view.look())
    assert snapshot.now == site.now
    assert pipeline.notes == []
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


@pytest.mark.slow
def test_the_role_that_compose_makes_reads_the_stream_that_ran_and_writes_nothing(
    site: Site, tmp_path: Path
) -> None:
    """The script of the service, as it stands in the file: pages beside it never ran."""
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    (script,) = compose["services"]["dashboard-role"]["command"]
    given = {**conninfo_to_dict(site.url), "user": "compose_reader", "password": "as drawn"}
    for name, url in (("ledger_url", site.url), ("dashboard_url", make_conninfo("", **given))):
        (tmp_path / name).write_text(url + "\n")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "STREAMPROC_LEDGER_FILE": str(tmp_path / "ledger_url"),
        "STREAMPROC_TOPICS": str(REPOSITORY / "topics"),
    }
    for _ in range(2):  # it may be run again
        subprocess.run(
            [sys.executable, "-c", script.replace("/run/secrets", str(tmp_path))],
            env=environment,
            check=True,
            timeout=100,
        )
    with psycopg.connect((tmp_path / "dashboard_url").read_text().strip()) as conn:
        assert conn.execute("SELECT count(*) > 0 FROM clickstream.page_views").fetchone() == (True,)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            conn.execute("DELETE FROM clickstream.page_views")
