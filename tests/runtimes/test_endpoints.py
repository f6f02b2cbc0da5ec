"""Which servers a process starts, and what its endpoints are then."""

from __future__ import annotations

from pathlib import Path

from streamproc.runtimes.endpoints import Endpoints
from streamproc.settings import read_settings

LEDGER = "postgresql://streamproc@db.example/streamproc"


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_a_warehouse_beside_the_ledger_is_on_its_server_wherever_that_is(tmp_path: Path) -> None:
    """One of its own in each worker's folder would be loaded by that worker alone."""
    settings = read_settings(
        environ={
            "STREAMPROC_LEDGER": LEDGER,
            "STREAMPROC_WAREHOUSE": "embedded:",
            "STREAMPROC_DATA_DIR": str(tmp_path),
        }
    )
    async with Endpoints(settings, needs_broker=False) as endpoints:
        assert (endpoints.ledger, endpoints.warehouse) == (LEDGER, LEDGER)
    assert files(tmp_path) == []


async def test_an_embedded_ledger_has_the_warehouse_beside_it(tmp_path: Path) -> None:
    settings = read_settings(environ={"STREAMPROC_DATA_DIR": str(tmp_path)})
    async with Endpoints(settings, needs_broker=False) as endpoints:
        assert endpoints.warehouse == endpoints.ledger
        assert endpoints.ledger.startswith("postgresql://")
