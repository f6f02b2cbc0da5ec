from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.shop import Shop


@pytest.fixture
def shop(tmp_path: Path, postgres: str, broker: str, topic: str) -> Shop:
    """A stream whose ledger has its tables and nothing in them."""
    shop = Shop(tmp_path / "shop", postgres, broker, topic)
    shop.with_ledger(lambda ledger: ledger.migrate())
    return shop
