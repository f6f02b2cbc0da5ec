"""What the page *Live* asks before there is anything to ask for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streamproc.dashboard.live import Live
from streamproc.dashboard.reading import Reader, explain, read_only
from streamproc.database import Database
from streamproc.errors import DependencyError
from streamproc.ledger import Ledger
from streamproc.topology import Topology
from tests.dashboard.conftest import Site
from tests.ledger.epochs import P0


@pytest.mark.slow
@pytest.mark.parametrize("claimed", [False, True])
async def test_a_stream_without_events_has_no_now_and_that_is_no_failure(
    site: Site, topology: Topology, claimed: bool
) -> None:
    page = replace(topology, name=f"waiting_{claimed}".lower())
    async with Ledger(site.url, page.name, "w1") as ledger:
        if claimed:
            await ledger.claim([P0])
    reader = Reader(Database(read_only(site.url, 5.0), "test"))
    try:
        snapshot = await Live(page, reader).look()
    finally:
        await reader.database.close()
    assert (snapshot.now, snapshot.committed_at, snapshot.minutes) == (None, None, ())


def test_a_failure_is_told_in_whole_sentences() -> None:
    for said in ("connection refused", "Is the server running?"):
        _, text = explain(DependencyError("PostgreSQL", said))
        assert "?." not in text
        assert text.endswith(
            (
                f"{said}. The page goes on by itself when it does.",
                f"{said} The page goes on by itself when it does.",
            )
        )
