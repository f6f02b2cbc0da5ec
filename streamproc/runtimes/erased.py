"""What a worker has to know of visitors who asked to be forgotten."""

from __future__ import annotations

from streamproc.database import Database
from streamproc.ledger.erasures import Erasures
from streamproc.topology import Topology
from streamproc.transform.erased import Erased


async def read_erased(database: Database, stream: str, page: Topology) -> Erased | None:
    """The list of ``stream`` as the transform wants it; ``None`` when nobody is on it."""
    erasures = Erasures(database, stream)
    asked = await erasures.listed()
    return Erased(page.erasure, await erasures.key(), asked) if asked else None
