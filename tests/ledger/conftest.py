"""A ledger in a fresh database."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from streamproc.ledger import Ledger


@pytest.fixture
async def rival(ledger: Ledger, postgres: str) -> AsyncIterator[Ledger]:
    """Worker ``w2`` on the same stream and database."""
    async with Ledger(postgres, "clicks", "w2") as rival:
        yield rival
