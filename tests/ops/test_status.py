"""What a status that is read again and again asks, and how often."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from streamproc.ledger import Ledger
from streamproc.ops.status import StatusReader
from streamproc.sinks.warehouse import WarehouseStatus
from tests.sinks.topologies import events, topology
from tests.sinks.warehouses import opened_backend, put
from tests.support.redshift_dialect import ROLE

NOON = 1_782_907_200_000_000
PAGE = topology(name="clicks")


@pytest.mark.aws
@pytest.mark.parametrize("kind", ["redshift-data", "redshift"])
async def test_redshift_is_asked_every_five_minutes_however_often_somebody_looks(
    kind: str, ledger: Ledger, request: pytest.FixtureRequest
) -> None:
    now = 0.0
    async with opened_backend(kind, request) as backend:
        warehouse = await backend.warehouse()
        await warehouse.load(await put(backend.store, events(NOON, NOON)), backend.store)
        engine = backend.engine
        assert engine is not None
        reader = StatusReader(PAGE, ledger, backend.url, lambda: now)
        first = await reader.read(None)
        assert first.warehouse is not None
        assert (first.warehouse.objects, first.warehouse.rows) == (1, 2)
        assert not any("warehouse" in note for note in first.notes)
        asked = len(engine.ran)
        now = 299.0
        again = await reader.read(None)
        assert again.warehouse == first.warehouse
        assert "the warehouse is as it was 299 s ago: Redshift is asked every 300 s" in again.notes
        assert len(engine.ran) == asked
        now = 300.0
        await reader.read(None)
        assert len(engine.ran) > asked


async def test_a_warehouse_in_postgresql_is_asked_each_time(
    ledger: Ledger, postgres: str, request: pytest.FixtureRequest
) -> None:
    async with opened_backend("postgresql", request) as backend:
        warehouse = await backend.warehouse()
        reader = StatusReader(PAGE, ledger, backend.url, lambda: 0.0)
        assert (await reader.read(None)).warehouse == WarehouseStatus(0, 0, None)
        await warehouse.load(await put(backend.store, events(NOON, NOON)), backend.store)
        found = (await reader.read(None)).warehouse
        assert found is not None
        assert found.rows == 2


async def test_a_redshift_that_does_not_answer_is_not_asked_at_each_look_either(ledger: Ledger) -> None:
    url = f"redshift://reader:none@127.0.0.1:1/dev?iam_role={quote(ROLE)}&sslmode=disable"
    reader = StatusReader(PAGE, ledger, url, lambda: 0.0)
    looks = [await reader.read(None) for _ in range(2)]
    assert [look.warehouse for look in looks] == [None, None]
    for look in looks:
        assert any("the warehouse does not answer" in note for note in look.notes)
    assert any("the warehouse is as it was" in note for note in looks[1].notes)
